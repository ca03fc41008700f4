//! Reads a safetensors file strictly: one tensor at a time, nothing held twice, never more allocated than the file's size.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::error::{Error, Result, shown};
use crate::shared::FileId;

/// How the numbers of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Dtype {
    F32,
    F16,
    Bf16,
}

#[derive(Debug)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    begin: u64,
    end: u64,
}

/// Bytes that are read at a time; a multiple of the size of every type.
const PIECE: usize = 1 << 16;

/// An open safetensors file whose header has been checked against the file's size.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    path: PathBuf,
    file: File,
    entries: BTreeMap<String, Entry>,
    /// Identifies the file; None if the file is too new for that.
    pub id: Option<FileId>,
    /// The metadata key `config`, if there is one.
    pub config: Option<String>,
    data_start: u64,
}

/// The format's own limit.
const MAX_HEADER: u64 = 100_000_000;

/// What describes one tensor has some hundred bytes.
const MAX_ENTRY: usize = 4096;

/// The keys of a JSON object, with their values as they are written, in order. A key may be there twice.
#[derive(Debug)]
pub(crate) struct Pairs<'a>(pub Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Pairs<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Pairs<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Pairs<'de>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Visit)
    }
}

/// Recognises another kind of file by its beginning: what it is, and what to do; `None` if it is not known.
pub(crate) fn foreign(start: &[u8]) -> Option<&'static str> {
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    Some(match text {
        [b'<', ..] => "it is a web page that was saved in place of the file (fetch the file itself)",
        _ if text.starts_with(b"version https://git-lfs") => {
            "it is a git-lfs pointer, which only names the file (fetch the file itself, with `git lfs pull`)"
        }
        _ if start.starts_with(b"GGUF") => "it is a GGUF file (take the .safetensors file)",
        _ if start.starts_with(b"PK\x03\x04")
            || matches!(start, [0x80, 2..=5, b'}' | b']' | b'c' | 0x8a | 0x95, ..]) =>
        {
            "it is a PyTorch file in the pickle format (take the .safetensors file)"
        }
        _ => return None,
    })
}

impl Checkpoint {
    pub fn open(path: &Path) -> Result<Self> {
        let fail = |reason: &str| Error::checkpoint(path, reason);
        // Before it is opened: that would wait for the other end of a pipe.
        let meta = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        if meta.is_dir() {
            return Err(Error::io(path, io::Error::from(io::ErrorKind::IsADirectory)));
        }
        if !meta.is_file() {
            return Err(fail("a regular file is expected, not a pipe or a device"));
        }
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let meta = file.metadata().map_err(|e| Error::io(path, e))?;
        let size = meta.len();
        if size == 0 {
            return Err(fail("the file is empty, a safetensors file is expected (fetch it again)"));
        }
        let mut start = vec![0; size.min(64) as usize];
        file.read_exact_at(&mut start, 0).map_err(|e| Error::io(path, e))?;
        // A header's length may begin with any byte.
        if let Some(what) = foreign(&start).filter(|_| start.get(8) != Some(&b'{')) {
            return Err(Error::checkpoint(path, format!("{what}, a safetensors file is expected")));
        }
        let Some(length) = start.first_chunk() else {
            return Err(fail("the file is too short to be a safetensors file (fetch it again)"));
        };
        let header_len = u64::from_le_bytes(*length);
        if header_len < 2 || header_len > size - 8 || header_len > MAX_HEADER {
            return Err(Error::checkpoint(
                path,
                format!(
                    "its first eight bytes announce a header of {header_len} bytes but {} follow, so it is not a \
                     safetensors file or is cut short (fetch it again)",
                    size - 8
                ),
            ));
        }
        let mut header = vec![0; header_len as usize];
        file.read_exact_at(&mut header, 8).map_err(|e| Error::io(path, e))?;
        if header[0] != b'{' {
            return Err(fail("its safetensors header is not a JSON object (fetch it again)"));
        }
        let Pairs(header) = serde_json::from_slice(&header)
            .map_err(|e| Error::checkpoint(path, format!("its safetensors header is not valid JSON ({e})")))?;

        let data_start = 8 + header_len;
        let available = size - data_start;
        let (mut entries, mut config) = (BTreeMap::<String, Entry>::new(), None);
        for (name, value) in header {
            if name == "__metadata__" {
                // MLX writes null if there is none.
                let metadata: Option<HashMap<String, String>> = serde_json::from_str(value.get())
                    .map_err(|_| fail("its metadata is not a JSON object whose values are strings"))?;
                config = metadata.unwrap_or_default().remove("config");
                continue;
            }
            let Some(entry) = parse_entry(value) else {
                let reason = format!("its header describes the tensor `{}` wrongly (fetch it again)", shown(&name));
                return Err(Error::checkpoint(path, reason));
            };
            if let Some((name, _)) = entries.get_key_value(&name) {
                let reason = format!("its header has the tensor `{}` twice (fetch it again)", shown(name));
                return Err(Error::checkpoint(path, reason));
            }
            entries.insert(name, entry);
        }
        let mut places: Vec<(&String, &Entry)> = entries.iter().collect();
        places.sort_by_key(|(_, entry)| (entry.begin, entry.end));
        let mut needed = 0;
        for (name, entry) in places {
            if entry.begin != needed {
                let what = if entry.begin < needed { "overlaps another one" } else { "leaves a gap before it" };
                let reason = format!("the place of the tensor `{}` {what} (fetch it again)", shown(name));
                return Err(Error::checkpoint(path, reason));
            }
            needed = entry.end;
        }
        if needed > available {
            return Err(Error::checkpoint(
                path,
                format!(
                    "it is cut short: {needed} bytes of tensors are announced but {available} are there (fetch it again)"
                ),
            ));
        }
        if needed < available {
            return Err(Error::checkpoint(
                path,
                format!(
                    "it is too long: {needed} bytes of tensors are announced but {available} are there (fetch it again)"
                ),
            ));
        }
        Ok(Self { path: path.to_owned(), file, entries, id: FileId::of(&meta), config, data_start })
    }

    /// Checks that the file is a codec at all, by the names of its tensors.
    pub fn check_kind(&self) -> Result<()> {
        let any = |wanted: fn(&str) -> bool| self.entries.keys().any(|name| wanted(name));
        let what = if any(|name| name.starts_with("quantizer.") || name.starts_with("encoder.")) {
            return Ok(());
        } else if any(|name| name.ends_with(".lora_A.weight")) {
            "it holds LoRA adapters for a language model, give it as --lora and the codec as --mimi"
        } else if any(|name| name == "out_norm.weight" || name == "out_norm.alpha" || name == "text_emb.weight") {
            "it is a Moshi language model, give it as --model and the codec as --mimi"
        } else if self.entries.is_empty() {
            "it holds no tensors (fetch it again)"
        } else {
            "none of its tensors is one of a Mimi codec, whose names begin with `encoder.`, `decoder.` or `quantizer.`"
        };
        Err(self.fail(what.into()))
    }

    /// Checks that exactly the `expected` tensors are there, each with its shape and a type that can be read.
    /// Names ending in `._initialized` may be there or not.
    pub fn check(&self, expected: &BTreeMap<String, Vec<usize>>) -> Result<()> {
        let listed = |names: &[&String]| {
            let first: Vec<String> = names.iter().take(3).map(|n| format!("`{}`", shown(n))).collect();
            let more = if names.len() > 3 { format!(" and {} more", names.len() - 3) } else { String::new() };
            format!("{}{more}", first.join(", "))
        };
        let missing: Vec<_> = expected.keys().filter(|name| !self.entries.contains_key(*name)).collect();
        let optional = |name: &str| {
            name.strip_suffix("._initialized")
                .is_some_and(|book| expected.contains_key(&format!("{book}.cluster_usage")))
        };
        let surplus: Vec<_> = self.entries.keys().filter(|n| !expected.contains_key(*n) && !optional(n)).collect();
        let lacks = || format!("the configuration asks for tensors that it lacks: {}", listed(&missing));
        let has = || format!("it has tensors that the configuration has no place for: {}", listed(&surplus));
        match (missing.is_empty(), surplus.is_empty()) {
            (true, true) => {}
            (false, true) => return Err(self.fail(lacks())),
            (true, false) => return Err(self.fail(has())),
            (false, false) => return Err(self.fail(format!("{}; {}", lacks(), has()))),
        }
        for (name, shape) in expected {
            let entry = &self.entries[name];
            // Check the type before the shape, which another type may change, too.
            let dtype = self.dtype(name, entry)?;
            let same = entry.shape.len() == shape.len() && entry.shape.iter().zip(shape).all(|(a, b)| *a == *b as u64);
            if !same {
                return Err(self.fail(format!(
                    "`{name}` has the shape {:?}, but the configuration asks for {shape:?}",
                    entry.shape
                )));
            }
            let bytes = shape.iter().try_fold(dtype.size() as u64, |a, n| a.checked_mul(*n as u64));
            if bytes != Some(entry.end - entry.begin) {
                return Err(self.fail(format!(
                    "`{name}` takes {} bytes, which does not fit its shape {shape:?} and type {}",
                    entry.end - entry.begin,
                    entry.dtype
                )));
            }
        }
        Ok(())
    }

    /// The values of a tensor that [`check`](Self::check) has found, row-major, as float32.
    /// Any number of threads may read at a time.
    pub fn read(&self, name: &str) -> Result<Vec<f32>> {
        let mut values = self.values(name)?;
        let mut all = vec![0.0; values.len];
        values.read(&mut all)?;
        Ok(all)
    }

    /// The same, to be read in parts.
    pub fn values<'a>(&'a self, name: &'a str) -> Result<Values<'a>> {
        let entry = &self.entries[name];
        let dtype = self.dtype(name, entry)?;
        let len = (entry.end - entry.begin) as usize / dtype.size();
        Ok(Values { checkpoint: self, name, dtype, from: self.data_start + entry.begin, len, at: 0, piece: Vec::new() })
    }

    fn dtype(&self, name: &str, entry: &Entry) -> Result<Dtype> {
        match entry.dtype.as_str() {
            "F32" => Ok(Dtype::F32),
            "F16" => Ok(Dtype::F16),
            "BF16" => Ok(Dtype::Bf16),
            other => {
                Err(self.fail(format!("`{name}` has the type {}, but F32, BF16 or F16 is expected", shown(other))))
            }
        }
    }

    fn fail(&self, reason: String) -> Error {
        Error::checkpoint(&self.path, reason)
    }
}

/// The values of a tensor in the file, from the first to the last.
#[derive(Debug)]
pub(crate) struct Values<'a> {
    checkpoint: &'a Checkpoint,
    name: &'a str,
    dtype: Dtype,
    /// Where the tensor begins in the file.
    from: u64,
    len: usize,
    /// Values that have been read.
    at: usize,
    piece: Vec<u8>,
}

impl Values<'_> {
    /// Reads the next `out.len()` values, which must be there.
    pub fn read(&mut self, out: &mut [f32]) -> Result<()> {
        assert!(out.len() <= self.len - self.at, "a tensor is not read beyond its end");
        let size = self.dtype.size();
        // In pieces that stay in the cache.
        for out in out.chunks_mut(PIECE / size) {
            self.piece.resize(out.len() * size, 0);
            let from = self.from + (self.at * size) as u64;
            let checkpoint = self.checkpoint;
            checkpoint.file.read_exact_at(&mut self.piece, from).map_err(|e| Error::io(&checkpoint.path, e))?;
            let halves = || self.piece.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b));
            match self.dtype {
                Dtype::F32 => {
                    out.iter_mut().zip(self.piece.as_chunks().0).for_each(|(v, b)| *v = f32::from_le_bytes(*b))
                }
                Dtype::F16 => out.iter_mut().zip(halves()).for_each(|(v, b)| *v = f16_to_f32(b)),
                Dtype::Bf16 => out.iter_mut().zip(halves()).for_each(|(v, b)| *v = f32::from_bits(u32::from(b) << 16)),
            }
            // Without an early end the compiler makes it wide.
            if !out.iter().fold(true, |all, v| all & v.is_finite()) {
                let at = out.iter().position(|v| !v.is_finite()).unwrap_or(0);
                return Err(checkpoint.fail(format!(
                    "`{}` holds {} at position {}, finite numbers are expected",
                    self.name,
                    out[at],
                    self.at + at
                )));
            }
            self.at += out.len();
        }
        Ok(())
    }
}

impl Dtype {
    fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

fn parse_entry(value: &RawValue) -> Option<Entry> {
    let text = value.get();
    if text.len() > MAX_ENTRY || !text.starts_with('{') {
        return None;
    }
    let Pairs(pairs) = serde_json::from_str(text).ok()?;
    let (mut dtype, mut shape, mut offsets) = (None, None, None);
    for (key, value) in pairs {
        let value = value.get();
        let again = match key.as_str() {
            "dtype" => dtype.replace(serde_json::from_str::<String>(value).ok()?).is_some(),
            "shape" => shape.replace(serde_json::from_str::<Vec<u64>>(value).ok()?).is_some(),
            "data_offsets" => offsets.replace(serde_json::from_str::<[u64; 2]>(value).ok()?).is_some(),
            _ => true,
        };
        if again {
            return None;
        }
    }
    let ([begin, end], shape, dtype) = (offsets?, shape?, dtype?);
    (begin <= end).then_some(Entry { dtype, shape, begin, end })
}

/// IEEE half precision, subnormals included.
fn f16_to_f32(half: u16) -> f32 {
    let sign = u32::from(half >> 15) << 31;
    let exponent = u32::from(half >> 10) & 0x1f;
    let mantissa = u32::from(half) & 0x3ff;
    let magnitude = match exponent {
        0 => mantissa as f32 * (-24f32).exp2(),
        31 => f32::from_bits(0xff << 23 | mantissa << 13),
        _ => f32::from_bits((exponent + 112) << 23 | mantissa << 13),
    };
    f32::from_bits(magnitude.to_bits() | sign)
}

#[cfg(test)]
mod tests {
    use super::f16_to_f32;

    #[test]
    fn half_precision() {
        for (bits, value) in [
            (0x0000, 0.0),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0x0001, 5.960_464_5e-8),
            (0x83ff, -6.097_555e-5),
            (0x0400, 6.103_515_6e-5),
            (0x3555, 0.333_251_95),
            (0x7c00, f32::INFINITY),
        ] {
            assert_eq!(f16_to_f32(bits), value, "{bits:#06x}");
        }
        assert!(f16_to_f32(0x7e00).is_nan());
    }
}
