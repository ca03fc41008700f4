//! The architecture as numbers, read strictly from JSON.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use checkpoint::{Pairs, foreign, shown};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// Bounds every size, so that products of a few of them cannot overflow.
const MAX_SIZE: usize = 1 << 20;

/// The most samples that a frame may have. A stream's working memory is in proportion to it, whatever the weights' sizes.
const MAX_FRAME: usize = 1 << 14;

/// A configuration has some hundred bytes. A much larger file is something else.
const MAX_FILE: u64 = 1 << 20;

/// The architecture of a codec. Keys that a JSON object leaves out take the published "v0.1" values.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Samples per second.
    pub sample_rate: usize,
    /// Frames per second.
    pub frame_rate: f64,
    /// Audio channels; only 1 is supported.
    pub channels: usize,
    /// Width of the transformers and of the latent.
    pub dimension: usize,
    /// Channels after the first convolution.
    pub n_filters: usize,
    /// Strides of the decoder, outermost last.
    pub ratios: Vec<usize>,
    /// Kernel of the first convolution.
    pub kernel_size: usize,
    /// Kernel of the first convolution in a residual block.
    pub residual_kernel_size: usize,
    /// Kernel of the last convolution.
    pub last_kernel_size: usize,
    /// The factor by which a residual block is narrower inside.
    pub compress: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Layers of each transformer.
    pub num_layers: usize,
    /// Width inside a feed-forward.
    pub dim_feedforward: usize,
    /// Attention window in transformer steps, of which a frame has two.
    pub context: usize,
    /// The longest period of the rotary embedding.
    pub max_period: f64,
    /// Codebooks in the checkpoint.
    pub n_q: usize,
    /// Entries of a codebook.
    pub bins: usize,
    /// Width of a codebook's entries.
    pub codebook_dim: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            sample_rate: 24000,
            frame_rate: 12.5,
            channels: 1,
            dimension: 512,
            n_filters: 64,
            ratios: vec![8, 6, 5, 4],
            kernel_size: 7,
            residual_kernel_size: 3,
            last_kernel_size: 3,
            compress: 2,
            num_heads: 8,
            num_layers: 8,
            dim_feedforward: 2048,
            context: 250,
            max_period: 10000.0,
            n_q: 32,
            bins: 2048,
            codebook_dim: 256,
        }
    }
}

impl Config {
    /// Reads a JSON file, as [`from_json`](Self::from_json) does.
    pub fn from_file(path: &Path) -> Result<Self> {
        let fail = |reason: String| Error::Config(format!("in {}, {reason}", path.display()));
        // Before it is opened: that would wait for the other end of a pipe.
        let at = |error| checkpoint::Error::io(path, error);
        let meta = std::fs::metadata(path).map_err(at)?;
        if meta.is_dir() {
            return Err(at(io::ErrorKind::IsADirectory.into()).into());
        }
        if !meta.is_file() {
            return Err(fail("a regular file is expected, not a pipe or a device".into()));
        }
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(at)?;
        file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(at)?;
        if let Some((what, advice)) = foreign(&bytes) {
            return Err(fail(format!("it is {what} ({advice}), a JSON file is expected")));
        }
        if bytes.len() as u64 > MAX_FILE {
            return Err(fail("there is more than 1 MiB, a configuration is expected".into()));
        }
        let text = std::str::from_utf8(&bytes).map_err(|_| fail("the text is not UTF-8".into()))?;
        Self::from_json(text).map_err(|e| match e {
            Error::Config(reason) => fail(reason),
            other => other,
        })
    }

    /// Reads a JSON object. An unknown key, a key that is there twice, a value of the wrong kind, and sizes that do not fit
    /// together are errors.
    pub fn from_json(text: &str) -> Result<Self> {
        if !text.trim_ascii_start().starts_with('{') {
            return Err(Error::Config("it must be a JSON object".into()));
        }
        let Pairs(pairs) =
            serde_json::from_str(text).map_err(|e| Error::Config(format!("it is not valid JSON ({e})")))?;
        let mut object = Map::new();
        for (key, raw) in pairs {
            let value = serde_json::from_str(raw.get())
                .map_err(|e| Error::Config(format!("`{}` is not valid JSON ({e})", shown(&key))))?;
            if object.contains_key(&key) {
                return Err(Error::Config(format!("`{}` is there twice", shown(&key))));
            }
            object.insert(key, value);
        }
        Self::from_object(&object)
    }

    fn from_object(object: &Map<String, Value>) -> Result<Self> {
        let mut config = Self::default();
        for (key, value) in object {
            match key.as_str() {
                "sample_rate" => config.sample_rate = size(key, value)?,
                "frame_rate" => config.frame_rate = number(key, value)?,
                "channels" => config.channels = size(key, value)?,
                "dimension" => config.dimension = size(key, value)?,
                "n_filters" => config.n_filters = size(key, value)?,
                "ratios" => config.ratios = sizes(key, value)?,
                "kernel_size" => config.kernel_size = size(key, value)?,
                "residual_kernel_size" => config.residual_kernel_size = size(key, value)?,
                "last_kernel_size" => config.last_kernel_size = size(key, value)?,
                "compress" => config.compress = size(key, value)?,
                "num_heads" => config.num_heads = size(key, value)?,
                "num_layers" => config.num_layers = size(key, value)?,
                "dim_feedforward" => config.dim_feedforward = size(key, value)?,
                "context" => config.context = size(key, value)?,
                "max_period" => config.max_period = number(key, value)?,
                "n_q" => config.n_q = size(key, value)?,
                "bins" => config.bins = size(key, value)?,
                "codebook_dim" => config.codebook_dim = size(key, value)?,
                _ => {
                    let known = config.to_json();
                    let known: Vec<&str> =
                        known.as_object().into_iter().flat_map(Map::keys).map(String::as_str).collect();
                    return Err(Error::Config(format!(
                        "`{}` is not one of its keys ({})",
                        shown(key),
                        known.join(", ")
                    )));
                }
            }
        }
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let fail = |reason: String| Err(Error::Config(reason));
        if self.channels != 1 {
            return fail(format!("`channels` is {}, but only 1 is supported", self.channels));
        }
        if !self.dimension.is_multiple_of(self.num_heads) || !(self.dimension / self.num_heads).is_multiple_of(2) {
            return fail(format!(
                "`dimension` ({}) must be an even multiple of `num_heads` ({})",
                self.dimension, self.num_heads
            ));
        }
        if !self.n_filters.is_multiple_of(self.compress) {
            return fail(format!(
                "`n_filters` ({}) must be a multiple of `compress` ({})",
                self.n_filters, self.compress
            ));
        }
        if self.ratios.is_empty() || self.ratios.len() > 8 {
            return fail(format!("`ratios` has {} entries, but 1 to 8 are expected", self.ratios.len()));
        }
        let stride = self.ratios.iter().try_fold(2usize, |a, r| a.checked_mul(*r)).filter(|s| *s <= MAX_FRAME);
        let Some(stride) = stride else {
            return fail(format!(
                "the product of `ratios` is too large (a frame may have at most {MAX_FRAME} samples)"
            ));
        };
        if (self.frame_rate * stride as f64 - self.sample_rate as f64).abs() > 1e-6 {
            return fail(format!(
                "`sample_rate` ({}) must be `frame_rate` ({}) times twice the product of `ratios` ({stride})",
                self.sample_rate, self.frame_rate
            ));
        }
        if self.n_filters << self.ratios.len() > MAX_SIZE {
            return fail("`n_filters` doubled once per entry of `ratios` is too large".into());
        }
        if self.max_period < 1.0 {
            return fail(format!("`max_period` is {}, but at least 1 is expected", self.max_period));
        }
        for (key, value, most) in [
            // What is not in the shapes of the weights must be small: it decides on memory, too.
            ("num_layers", self.num_layers, 256),
            ("n_q", self.n_q, 1024),
            ("context", self.context, 4096),
            ("num_heads", self.num_heads, 1024),
            ("dimension", self.dimension, 65536),
            ("kernel_size", self.kernel_size, 1024),
            ("residual_kernel_size", self.residual_kernel_size, 1024),
            ("last_kernel_size", self.last_kernel_size, 1024),
        ] {
            if value > most {
                return fail(format!("`{key}` is {value}, but at most {most} is supported"));
            }
        }
        Ok(())
    }

    /// All keys with the values in use.
    pub fn to_json(&self) -> Value {
        json!({
            "sample_rate": self.sample_rate, "frame_rate": self.frame_rate, "channels": self.channels,
            "dimension": self.dimension, "n_filters": self.n_filters, "ratios": self.ratios,
            "kernel_size": self.kernel_size, "residual_kernel_size": self.residual_kernel_size,
            "last_kernel_size": self.last_kernel_size, "compress": self.compress, "num_heads": self.num_heads,
            "num_layers": self.num_layers, "dim_feedforward": self.dim_feedforward, "context": self.context,
            "max_period": self.max_period, "n_q": self.n_q, "bins": self.bins, "codebook_dim": self.codebook_dim,
        })
    }

    /// Samples per frame.
    pub fn frame_size(&self) -> usize {
        2 * self.ratios.iter().product::<usize>()
    }

    /// Channels at the deepest convolutions.
    pub(crate) fn deepest(&self) -> usize {
        self.n_filters << self.ratios.len()
    }
}

fn size(key: &str, value: &Value) -> Result<usize> {
    match value.as_u64() {
        Some(n) if n >= 1 && n <= MAX_SIZE as u64 => Ok(n as usize),
        _ => Err(Error::Config(format!("`{key}` must be a whole number from 1 to {MAX_SIZE}, not {}", brief(value)))),
    }
}

fn sizes(key: &str, value: &Value) -> Result<Vec<usize>> {
    match value {
        Value::Array(items) => items.iter().map(|item| size(key, item)).collect(),
        _ => Err(Error::Config(format!("`{key}` must be a list of whole numbers, not {}", brief(value)))),
    }
}

fn number(key: &str, value: &Value) -> Result<f64> {
    match value.as_f64() {
        Some(x) if x > 0.0 && x.is_finite() => Ok(x),
        _ => Err(Error::Config(format!("`{key}` must be a positive number, not {}", brief(value)))),
    }
}

/// A value for a message.
fn brief(value: &Value) -> String {
    shown(&value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_keys_take_the_published_values() {
        let config = Config::from_json(r#"{"context": 24}"#).unwrap();
        assert_eq!(config, Config { context: 24, ..Config::default() });
        assert_eq!(Config::from_json(&config.to_json().to_string()).unwrap(), config);
        assert_eq!(Config::default().frame_size(), 1920);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, part) in [
            (r#"{"contxt": 24}"#, "`contxt`"),
            (r#"{"context": -1}"#, "`context`"),
            (r#"{"context": "24"}"#, "`context`"),
            (r#"{"context": 2.5}"#, "`context`"),
            (r#"{"num_heads": 7}"#, "`num_heads`"),
            (r#"{"ratios": [8, 6, 5]}"#, "`ratios`"),
            (r#"{"ratios": 4}"#, "`ratios`"),
            (r#"{"channels": 2}"#, "`channels`"),
            (r#"{"max_period": 0}"#, "`max_period`"),
            (r#"{"num_layers": 9999999}"#, "`num_layers`"),
            (r#"{"context": 65536}"#, "`context`"),
            (r#"{"context": 24, "context": 25}"#, "`context` is there twice"),
            (r#"{"ratios": [64, 64, 64], "sample_rate": 6553600}"#, "`sample_rate`"),
            (r#"{"ratios": [64, 64, 64]}"#, "`ratios` is too large"),
            ("[]", "object"),
            ("{", "JSON"),
        ] {
            let message = Config::from_json(text).unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
