//! Reads a safetensors file strictly: one tensor at a time, nothing held twice, nothing allocated beyond the file's size.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result};
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
    /// Says which file this is, unless it is too young to say so.
    pub id: Option<FileId>,
    /// The metadata key `config`, if there is one.
    pub config: Option<String>,
    data_start: u64,
}

impl Checkpoint {
    pub fn open(path: &Path) -> Result<Self> {
        let fail = |reason: &str| Error::checkpoint(path, reason);
        let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
        let meta = file.metadata().map_err(|e| Error::io(path, e))?;
        if meta.is_dir() {
            return Err(Error::io(path, io::Error::from(io::ErrorKind::IsADirectory)));
        }
        if !meta.is_file() {
            return Err(fail("it is not a regular file"));
        }
        let size = meta.len();
        if size == 0 {
            return Err(fail("the file is empty, a safetensors file is expected"));
        }
        let mut length = [0; 8];
        if size < 8 {
            return Err(fail("the file is too short to be a safetensors file"));
        }
        file.read_exact(&mut length).map_err(|e| Error::io(path, e))?;
        if length.trim_ascii_start().starts_with(b"<") {
            return Err(fail("the file is a web page, a safetensors file is expected (download it again)"));
        }
        let header_len = u64::from_le_bytes(length);
        if header_len < 2 || header_len > size - 8 {
            return Err(Error::checkpoint(
                path,
                format!(
                    "its first eight bytes announce a header of {header_len} bytes but {} follow, so it is not a \
                     safetensors file or is cut short (download it again)",
                    size - 8
                ),
            ));
        }
        let mut header = vec![0; header_len as usize];
        file.read_exact(&mut header).map_err(|e| Error::io(path, e))?;
        let header: Value = serde_json::from_slice(&header)
            .map_err(|e| Error::checkpoint(path, format!("its safetensors header is not valid JSON ({e})")))?;
        let Value::Object(header) = header else {
            return Err(fail("its safetensors header is not a JSON object"));
        };

        let data_start = 8 + header_len;
        let available = size - data_start;
        let (mut entries, mut config) = (BTreeMap::new(), None);
        for (name, value) in header {
            if name == "__metadata__" {
                match value.get("config") {
                    None => {}
                    Some(Value::String(text)) => config = Some(text.clone()),
                    Some(_) => return Err(fail("its metadata key `config` is not a string")),
                }
                continue;
            }
            let entry = parse_entry(&value)
                .ok_or_else(|| Error::checkpoint(path, format!("its header describes the tensor `{name}` wrongly")))?;
            entries.insert(name, entry);
        }
        let needed = entries.values().map(|e| e.end).max().unwrap_or(0);
        if needed > available {
            return Err(Error::checkpoint(
                path,
                format!(
                    "it is cut short: {needed} bytes of tensors are announced but {available} are there (download it again)"
                ),
            ));
        }
        if needed < available {
            return Err(Error::checkpoint(
                path,
                format!("it is too long: {needed} bytes of tensors are announced but {available} are there"),
            ));
        }
        Ok(Self { path: path.to_owned(), file, entries, id: FileId::of(&meta), config, data_start })
    }

    /// Checks that exactly the `expected` tensors are there, each with its shape and a type that can be read.
    /// Names ending in `._initialized` may be there or not.
    pub fn check(&self, expected: &BTreeMap<String, Vec<usize>>) -> Result<()> {
        let listed = |names: Vec<&String>| {
            let first: Vec<String> = names.iter().take(3).map(|n| format!("`{n}`")).collect();
            let more = if names.len() > 3 { format!(" and {} more", names.len() - 3) } else { String::new() };
            format!("{}{more}", first.join(", "))
        };
        let missing: Vec<_> = expected.keys().filter(|name| !self.entries.contains_key(*name)).collect();
        if !missing.is_empty() {
            return Err(self.fail(format!("the configuration asks for tensors that it lacks: {}", listed(missing))));
        }
        let optional = |name: &str| {
            name.strip_suffix("._initialized")
                .is_some_and(|book| expected.contains_key(&format!("{book}.cluster_usage")))
        };
        let surplus: Vec<_> = self.entries.keys().filter(|n| !expected.contains_key(*n) && !optional(n)).collect();
        if !surplus.is_empty() {
            return Err(
                self.fail(format!("it has tensors that the configuration has no place for: {}", listed(surplus)))
            );
        }
        for (name, shape) in expected {
            let entry = &self.entries[name];
            let same = entry.shape.len() == shape.len() && entry.shape.iter().zip(shape).all(|(a, b)| *a == *b as u64);
            if !same {
                return Err(self.fail(format!(
                    "`{name}` has the shape {:?}, but the configuration asks for {shape:?}",
                    entry.shape
                )));
            }
            let dtype = self.dtype(name, entry)?;
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
            other => Err(self.fail(format!("`{name}` has the type {other}, but F32, BF16 or F16 is expected"))),
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

fn parse_entry(value: &Value) -> Option<Entry> {
    let shape: Option<Vec<u64>> = value.get("shape")?.as_array()?.iter().map(Value::as_u64).collect();
    let offsets = value.get("data_offsets")?.as_array()?;
    let [begin, end] = offsets.as_slice() else { return None };
    let (begin, end) = (begin.as_u64()?, end.as_u64()?);
    (begin <= end).then_some(())?;
    Some(Entry { dtype: value.get("dtype")?.as_str()?.to_owned(), shape: shape?, begin, end })
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
