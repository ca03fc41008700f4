//! Reads a safetensors file strictly: one tensor at a time, nothing held twice, nothing allocated beyond the file's size.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result};

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
const PIECE: usize = 1 << 18;

/// An open safetensors file whose header has been checked against the file's size.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    path: PathBuf,
    file: File,
    entries: BTreeMap<String, Entry>,
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
        Ok(Self { path: path.to_owned(), file, entries, config, data_start })
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
        let entry = &self.entries[name];
        let dtype = self.dtype(name, entry)?;
        let mut left = (entry.end - entry.begin) as usize;
        let mut values = Vec::with_capacity(left / dtype.size());
        // In pieces that stay in the cache.
        let mut piece = vec![0; left.min(PIECE)];
        while left > 0 {
            let bytes = &mut piece[..left.min(PIECE)];
            let from = self.data_start + entry.end - left as u64;
            self.file.read_exact_at(bytes, from).map_err(|e| Error::io(&self.path, e))?;
            left -= bytes.len();
            let start = values.len();
            match dtype {
                Dtype::F32 => values.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
                Dtype::F16 => values.extend(bytes.as_chunks().0.iter().map(|b| f16_to_f32(u16::from_le_bytes(*b)))),
                Dtype::Bf16 => {
                    let widen = |b: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
                    values.extend(bytes.as_chunks().0.iter().map(widen));
                }
            }
            let new: &[f32] = &values[start..];
            // Without an early end the compiler makes it wide.
            if !new.iter().fold(true, |all, v| all & v.is_finite()) {
                let at = start + new.iter().position(|v| !v.is_finite()).unwrap_or(0);
                return Err(
                    self.fail(format!("`{name}` holds {} at position {at}, finite numbers are expected", values[at]))
                );
            }
        }
        Ok(values)
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
