//! The sizes of a model.

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Sizes above this are refused: nothing that is known comes near it.
const MOST: u64 = 1 << 24;

/// The sizes of a model, and what it is made of. The names are those of the published configurations.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The temporal transformer: its width, layers, heads, and how many heads of queries share one of keys and values.
    pub dim: usize,
    #[allow(missing_docs)]
    pub num_layers: usize,
    #[allow(missing_docs)]
    pub num_heads: usize,
    #[allow(missing_docs)]
    pub kv_repeat: usize,
    /// Steps that it sees.
    pub context: usize,
    /// The longest period of the rotary embedding, in steps.
    pub max_period: f64,
    /// The rotation turns the pairs (i, i + D/2) of a head, not (2i, 2i + 1).
    pub rope_concat: bool,
    /// Each layer also attends to a source that does not change.
    pub cross_attention: bool,
    /// Text tokens that are read, and that are chosen from.
    pub text_card: usize,
    #[allow(missing_docs)]
    pub text_card_out: usize,
    /// Codes of a codebook.
    pub card: usize,
    /// Codebooks, and how many of them are the model's own: those come first.
    pub n_q: usize,
    #[allow(missing_docs)]
    pub dep_q: usize,
    /// Text that is read has two streams in one number.
    pub demux_second_stream: bool,
    /// The depformer: as above.
    pub depformer_dim: usize,
    #[allow(missing_docs)]
    pub depformer_num_layers: usize,
    #[allow(missing_docs)]
    pub depformer_num_heads: usize,
    #[allow(missing_docs)]
    pub depformer_kv_repeat: usize,
    /// Its output is normalized, with weight and bias.
    pub depformer_norm: bool,
    /// The number of the weights that each own codebook uses.
    pub slices: Vec<usize>,
    /// The width of the rows of its embeddings, if those are multiplied by a matrix.
    pub depformer_rank: Option<usize>,
    /// Further outputs, and the classes of each.
    pub extra_heads: usize,
    #[allow(missing_docs)]
    pub extra_heads_dim: usize,
}

impl Config {
    /// Reads a configuration with the keys of a `config.json`. Keys that the model does not need are left out of
    /// account.
    pub fn from_json(text: &str) -> Result<Self> {
        let value: Value =
            serde_json::from_str(text).map_err(|error| Error::Config(format!("it is not JSON ({error})")))?;
        let Value::Object(keys) = value else { return Err(Error::Config("it is not an object".into())) };
        let text_card = size(&keys, "text_card")?;
        let dep_q = whole(&keys, "dep_q")?;
        let kv_repeat = optional(&keys, "kv_repeat")?.unwrap_or(1);
        let slices = match keys.get("depformer_weights_per_step_schedule") {
            None | Some(Value::Null) => (0..dep_q).collect(),
            Some(Value::Array(numbers)) => numbers
                .iter()
                .map(|n| n.as_u64().filter(|n| *n < MOST).map(|n| n as usize))
                .collect::<Option<Vec<_>>>()
                .ok_or_else(|| {
                    Error::Config("its schedule of the depformer's weights is not a list of numbers".into())
                })?,
            Some(_) => return Err(Error::Config("its schedule of the depformer's weights is not a list".into())),
        };
        let config = Self {
            dim: size(&keys, "dim")?,
            num_layers: size(&keys, "num_layers")?,
            num_heads: size(&keys, "num_heads")?,
            kv_repeat,
            context: size(&keys, "context")?,
            max_period: keys
                .get("max_period")
                .and_then(Value::as_f64)
                .filter(|period| *period > 0.0 && period.is_finite())
                .ok_or_else(|| Error::Config("its max_period is not a positive number".into()))?,
            rope_concat: keys.get("positional_embedding").and_then(Value::as_str) == Some("rope_concat"),
            cross_attention: flag(&keys, "cross_attention"),
            text_card,
            text_card_out: optional(&keys, "text_card_out")?.unwrap_or(text_card),
            card: size(&keys, "card")?,
            n_q: size(&keys, "n_q")?,
            dep_q,
            demux_second_stream: flag(&keys, "demux_second_stream"),
            depformer_dim: size(&keys, "depformer_dim")?,
            depformer_num_layers: size(&keys, "depformer_num_layers")?,
            depformer_num_heads: size(&keys, "depformer_num_heads")?,
            depformer_kv_repeat: optional(&keys, "depformer_kv_repeat")?.unwrap_or(kv_repeat),
            depformer_norm: keys.get("depformer_norm").is_some_and(|norm| !norm.is_null()),
            slices,
            depformer_rank: optional(&keys, "depformer_low_rank_embeddings")?,
            extra_heads: whole_or(&keys, "extra_heads_num_heads", 0)?,
            extra_heads_dim: whole_or(&keys, "extra_heads_dim", 6)?,
        };
        config.check()?;
        Ok(config)
    }

    /// The widths of the feed-forwards, the temporal transformer's and the depformer's, of a model that no file has.
    pub fn hidden_from_json(text: &str) -> Result<[usize; 2]> {
        let value: Value =
            serde_json::from_str(text).map_err(|error| Error::Config(format!("it is not JSON ({error})")))?;
        let Value::Object(keys) = value else { return Err(Error::Config("it is not an object".into())) };
        let (dim, depformer_dim) = (size(&keys, "dim")?, size(&keys, "depformer_dim")?);
        let scale = keys.get("hidden_scale").and_then(Value::as_f64).unwrap_or(4.125);
        let temporal = (scale * dim as f64) as usize;
        let depformer =
            optional(&keys, "depformer_dim_feedforward")?.unwrap_or((scale * depformer_dim as f64) as usize);
        let width = |feedforward: usize, dim: usize| {
            let width = if feedforward == 4 * dim { 21 * dim / 8 } else { 2 * feedforward / 3 };
            if (1..MOST as usize).contains(&width) {
                Ok(width)
            } else {
                Err(Error::Config("its hidden_scale is out of range".into()))
            }
        };
        Ok([width(temporal, dim)?, width(depformer, depformer_dim)?])
    }

    fn check(&self) -> Result<()> {
        let heads = |dim: usize, heads: usize, group: usize| dim.is_multiple_of(heads) && heads.is_multiple_of(group);
        let narrow = |dim: usize, heads: usize| dim / heads <= kernels::MOST_DIM;
        let owned = self.owners().iter().all(|owner| *owner < self.slices.len());
        let checks = [
            (heads(self.dim, self.num_heads, self.kv_repeat), "its dim, num_heads and kv_repeat"),
            ((self.dim / self.num_heads).is_multiple_of(2), "its dim and num_heads, which make heads of an odd width,"),
            (
                heads(self.depformer_dim, self.depformer_num_heads, self.depformer_kv_repeat),
                "its depformer_dim, depformer_num_heads and depformer_kv_repeat",
            ),
            (
                narrow(self.dim, self.num_heads) && narrow(self.depformer_dim, self.depformer_num_heads),
                "its widths and numbers of heads, which make heads that are too wide,",
            ),
            (self.dep_q <= self.n_q, "its dep_q and n_q"),
            (self.text_card_out <= self.text_card, "its text_card_out and text_card"),
            (self.slices.len() == self.dep_q && owned, "its dep_q and the schedule of the depformer's weights"),
        ];
        match checks.iter().find(|(fits, _)| !fits) {
            Some((_, what)) => Err(Error::Config(format!("{what} do not fit together"))),
            None => Ok(()),
        }
    }

    /// For each number of the depformer's weights, the codebook under whose name they are.
    pub(crate) fn owners(&self) -> Vec<usize> {
        let count = self.slices.iter().max().map_or(0, |most| most + 1);
        // A number that no codebook uses has none; such a configuration is refused.
        let mut owners = vec![usize::MAX; count];
        for (codebook, number) in self.slices.iter().enumerate().rev() {
            owners[*number] = codebook;
        }
        owners
    }
}

fn whole(keys: &Map<String, Value>, key: &str) -> Result<usize> {
    match keys.get(key).and_then(Value::as_u64) {
        Some(n) if n <= MOST => Ok(n as usize),
        _ => Err(Error::Config(format!("its {key} is not a whole number"))),
    }
}

fn size(keys: &Map<String, Value>, key: &str) -> Result<usize> {
    match whole(keys, key)? {
        0 => Err(Error::Config(format!("its {key} is 0"))),
        n => Ok(n),
    }
}

fn whole_or(keys: &Map<String, Value>, key: &str, usual: usize) -> Result<usize> {
    if keys.get(key).is_none_or(Value::is_null) { Ok(usual) } else { whole(keys, key) }
}

fn optional(keys: &Map<String, Value>, key: &str) -> Result<Option<usize>> {
    if keys.get(key).is_none_or(Value::is_null) { Ok(None) } else { size(keys, key).map(Some) }
}

fn flag(keys: &Map<String, Value>, key: &str) -> bool {
    keys.get(key).and_then(Value::as_bool).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Value {
        serde_json::json!({
            "dim": 64, "num_layers": 2, "num_heads": 4, "context": 30, "max_period": 10000, "text_card": 50, "card": 20,
            "n_q": 16, "dep_q": 8, "depformer_dim": 32, "depformer_num_layers": 1, "depformer_num_heads": 2,
            "something_else": [1, 2], "positional_embedding": "rope"
        })
    }

    #[test]
    fn what_is_left_out_has_its_usual_value() {
        let config = Config::from_json(&keys().to_string()).unwrap();
        assert_eq!((config.kv_repeat, config.depformer_kv_repeat, config.text_card_out), (1, 1, 50));
        assert_eq!(config.slices, [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(config.owners(), config.slices);
        assert!(!config.rope_concat && !config.depformer_norm && config.depformer_rank.is_none());
    }

    #[test]
    fn codebooks_may_share_weights() {
        let mut keys = keys();
        keys["depformer_weights_per_step_schedule"] = serde_json::json!([0, 1, 2, 2, 2, 3, 3, 3]);
        assert_eq!(Config::from_json(&keys.to_string()).unwrap().owners(), [0, 1, 2, 5]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (key, value, part) in [
            ("dim", Value::Null, "its dim"),
            ("dim", 0.into(), "its dim is 0"),
            ("dim", 66.into(), "its dim, num_heads"),
            ("num_heads", 64.into(), "odd width"),
            ("dim", 4096.into(), "too wide"),
            ("depformer_dim", 2048.into(), "too wide"),
            ("max_period", (-1).into(), "its max_period"),
            ("dep_q", 17.into(), "its dep_q and n_q"),
            ("text_card_out", 51.into(), "text_card_out"),
            ("depformer_weights_per_step_schedule", serde_json::json!([0, 2, 2, 2, 2, 2, 2, 2]), "schedule"),
            ("depformer_weights_per_step_schedule", serde_json::json!([0]), "schedule"),
            ("depformer_weights_per_step_schedule", "x".into(), "schedule"),
            ("n_q", (1u64 << 40).into(), "its n_q"),
            ("dep_q", (1 << 23).into(), "its dep_q and n_q"),
        ] {
            let mut keys = keys();
            keys[key] = value;
            let message = Config::from_json(&keys.to_string()).unwrap_err().to_string();
            assert!(message.contains(part), "{key}: {message}");
        }
        assert!(Config::from_json("[]").is_err() && Config::from_json("{").is_err());
    }
}
