//! An open file, and the numbers in it.

use kernels::f16_to_f32;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result, shown};
use crate::foreign::{begins_json, foreign, json};
use crate::header::{Dtype, Header, Tensor, grouped};
use crate::system::{FileId, read_exact_at};

/// The format's own limit.
const MAX_HEADER: u64 = 100_000_000;
/// What is read of a JSON file, to say what it is.
const MAX_INDEX: u64 = 1 << 20;
/// Bytes that are converted at a time, in the cache; a multiple of the size of every type.
const PIECE: usize = 1 << 16;
/// Bytes between two calls of a search's `progress`.
const STRIDE: usize = 1 << 22;

/// An open safetensors file whose header has been checked against the file's size. Any number of threads may read from it.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    file: fs::File,
    id: Option<FileId>,
    size: u64,
    tensors: BTreeMap<String, Tensor>,
    metadata: Option<String>,
}

impl File {
    /// Opens a file and checks its header. No tensor is read.
    pub fn open(path: &Path) -> Result<Self> {
        let at = |error| Error::io(path, error);
        let cut = |error| unread(path, error);
        // Before it is opened: that would wait for the other end of a pipe.
        let meta = fs::metadata(path).map_err(at)?;
        if meta.is_dir() {
            return Err(at(io::ErrorKind::IsADirectory.into()));
        }
        if !meta.is_file() {
            return Err(Error::wrong(path, "is a pipe or a device", "give a regular file"));
        }
        let file = fs::File::open(path).map_err(at)?;
        let meta = file.metadata().map_err(at)?;
        let size = meta.len();
        if size == 0 {
            return Err(Error::wrong(path, "is empty", "fetch the file again"));
        }
        let mut start = vec![0; size.min(64) as usize];
        read_exact_at(&file, &mut start, 0).map_err(cut)?;
        let brace = start.get(8) == Some(&b'{');
        // A header's length may begin with any byte.
        if !brace {
            if let Some((what, advice)) = foreign(&start) {
                return Err(Error::wrong(path, format!("is {what}"), advice));
            }
            if begins_json(&start) {
                let mut text = vec![0; size.min(MAX_INDEX) as usize];
                read_exact_at(&file, &mut text, 0).map_err(cut)?;
                let (what, advice) = json(&text);
                return Err(Error::wrong(path, format!("is {what}"), advice));
            }
        }
        let length = start.first_chunk().map(|length| u64::from_le_bytes(*length));
        match length {
            Some(length) if brace && length > MAX_HEADER => {
                let what = format!("is not a safetensors file: its header would have {} bytes", grouped(length));
                Err(Error::wrong(path, what, "fetch the file again"))
            }
            Some(length) if size - 8 < length && length <= MAX_HEADER && (brace || !start[..8].is_ascii()) => {
                Err(Error::wrong(path, "is cut off in its header", "fetch the file again"))
            }
            Some(length) if brace && length > 0 && length <= size - 8 => {
                let mut text = vec![0; length as usize];
                read_exact_at(&file, &mut text, 8).map_err(cut)?;
                let Header { tensors, metadata } = Header::parse(path, &text, 8 + length, size)?;
                Ok(Self { path: path.to_owned(), file, id: FileId::of(path, &meta), size, tensors, metadata })
            }
            _ => Err(Error::wrong(path, "is not a safetensors file", "fetch the file again")),
        }
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Identifies the file as it was opened. `None`: it had changed within the last second, and may change unseen.
    pub fn id(&self) -> Option<&FileId> {
        self.id.as_ref()
    }

    /// Its bytes, when it was opened.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// All tensors, by their names.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    /// The metadata; empty if there is none, for which MLX writes null.
    pub fn metadata(&self) -> Result<HashMap<String, String>> {
        let text = self.metadata.as_deref().unwrap_or("null");
        let metadata: Option<HashMap<String, String>> = serde_json::from_str(text).map_err(|_| {
            let what = "has a broken safetensors header: its metadata is not a JSON object whose values are strings";
            Error::wrong(&self.path, what, "fetch the file again")
        })?;
        Ok(metadata.unwrap_or_default())
    }

    /// The values of a tensor of type F32, F16 or BF16, row-major, as float32. Values that are not finite are an error.
    ///
    /// # Panics
    ///
    /// There is no such tensor.
    pub fn read(&self, name: &str) -> Result<Vec<f32>> {
        let mut values = self.values(name)?;
        let mut all = vec![0.0; values.len];
        values.read(&mut all)?;
        Ok(all)
    }

    /// The same, to be read in parts.
    ///
    /// # Panics
    ///
    /// There is no such tensor.
    pub fn values<'a>(&'a self, name: &'a str) -> Result<Values<'a>> {
        let tensor = &self.tensors[name];
        let size = match tensor.dtype {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
            other => {
                let what = format!("has `{}` of type {}", shown(name), other.name());
                return Err(Error::wrong(&self.path, what, "F32, BF16 or F16 is expected"));
            }
        };
        let len = tensor.bytes() as usize / size;
        Ok(Values { file: self, name, dtype: tensor.dtype, size, from: tensor.begin, len, at: 0, piece: Vec::new() })
    }

    /// Reads all floats, and finds the first that is not finite. `progress` is called with the fraction that has been read,
    /// from 0 to 1; an error of it ends the search.
    pub fn find_not_finite<E: From<Error>>(
        &self,
        mut progress: impl FnMut(f64) -> std::result::Result<(), E>,
    ) -> std::result::Result<Option<NotFinite>, E> {
        let mut floats: Vec<_> = self.tensors.iter().filter(|(_, tensor)| exponent(tensor.dtype).is_some()).collect();
        floats.sort_by_key(|(_, tensor)| tensor.begin);
        let total: u64 = floats.iter().map(|(_, tensor)| tensor.bytes()).sum();
        let (mut done, mut buffer) = (0, vec![0; STRIDE.min(total as usize)]);
        for (name, tensor) in floats {
            let mut from = tensor.begin;
            while from < tensor.end {
                let piece = &mut buffer[..(STRIDE as u64).min(tensor.end - from) as usize];
                self.read_bytes(from, piece)?;
                if let Some((at, value)) = first_not_finite(tensor.dtype, piece) {
                    let at = (from - tensor.begin) / (tensor.dtype.bits() / 8) + at as u64;
                    return Ok(Some(NotFinite { name: name.clone(), at, value }));
                }
                from += piece.len() as u64;
                done += piece.len() as u64;
                progress(done as f64 / total as f64)?;
            }
        }
        if total == 0 {
            progress(1.0)?;
        }
        Ok(None)
    }

    /// Fills `out` with the file's bytes from byte `from` on, as they are.
    pub fn read_at(&self, from: u64, out: &mut [u8]) -> Result<()> {
        self.read_bytes(from, out)
    }

    fn read_bytes(&self, from: u64, out: &mut [u8]) -> Result<()> {
        read_exact_at(&self.file, out, from).map_err(|error| unread(&self.path, error))
    }
}

/// The error of bytes that were to be read, and were there when the file was opened.
fn unread(path: &Path, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Error::wrong(path, "became shorter while it was read", "fetch the file again"),
        _ => Error::io(path, error),
    }
}

/// A number of a file that is infinite or NaN.
#[derive(Debug, PartialEq)]
pub struct NotFinite {
    /// The tensor.
    pub name: String,
    /// The number's position in it, row-major.
    pub at: u64,
    /// The number: ∞, −∞ or NaN.
    pub value: f64,
}

/// The values of a tensor in the file, from the first to the last.
#[derive(Debug)]
pub struct Values<'a> {
    file: &'a File,
    name: &'a str,
    dtype: Dtype,
    /// Bytes of one value.
    size: usize,
    /// Where the tensor begins in the file.
    from: u64,
    len: usize,
    /// Values that have been read.
    at: usize,
    piece: Vec<u8>,
}

impl Values<'_> {
    /// Reads the next `out.len()` values.
    ///
    /// # Panics
    ///
    /// There are not so many.
    pub fn read(&mut self, out: &mut [f32]) -> Result<()> {
        assert!(out.len() <= self.len - self.at, "a tensor is not read beyond its end");
        // In pieces that stay in the cache.
        for out in out.chunks_mut(PIECE / self.size) {
            self.piece.resize(out.len() * self.size, 0);
            self.file.read_bytes(self.from + (self.at * self.size) as u64, &mut self.piece)?;
            let halves = || self.piece.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b));
            match self.dtype {
                Dtype::F16 => out.iter_mut().zip(halves()).for_each(|(v, b)| *v = f16_to_f32(b)),
                Dtype::Bf16 => out.iter_mut().zip(halves()).for_each(|(v, b)| *v = f32::from_bits(u32::from(b) << 16)),
                _ => out.iter_mut().zip(self.piece.as_chunks().0).for_each(|(v, b)| *v = f32::from_le_bytes(*b)),
            }
            // Without an early end the compiler makes it wide.
            if !out.iter().fold(true, |all, v| all & v.is_finite()) {
                let at = out.iter().position(|v| !v.is_finite()).unwrap_or(0);
                let what = format!("holds {} at position {} of `{}`", out[at], self.at + at, shown(self.name));
                return Err(Error::wrong(&self.file.path, what, "finite numbers are expected"));
            }
            self.at += out.len();
        }
        Ok(())
    }
}

/// The bits of a float's exponent, all set if it is not finite; `None` for other types.
fn exponent(dtype: Dtype) -> Option<u64> {
    match dtype {
        Dtype::F16 => Some(0x7c00),
        Dtype::Bf16 => Some(0x7f80),
        Dtype::F32 => Some(0x7f80_0000),
        Dtype::F64 => Some(0x7ff0_0000_0000_0000),
        _ => None,
    }
}

/// The first number that is not finite: its position, and ∞, −∞ or NaN.
fn first_not_finite(dtype: Dtype, bytes: &[u8]) -> Option<(usize, f64)> {
    let exponent = exponent(dtype)?;
    let (at, bits) = match dtype.bits() {
        16 => search(bytes.as_chunks().0, exponent as u16, u16::from_le_bytes),
        32 => search(bytes.as_chunks().0, exponent as u32, u32::from_le_bytes),
        _ => search(bytes.as_chunks().0, exponent, u64::from_le_bytes),
    }?;
    let fraction = (exponent & exponent.wrapping_neg()) - 1;
    let negative = bits > exponent | fraction;
    Some((
        at,
        if bits & fraction != 0 {
            f64::NAN
        } else if negative {
            -f64::INFINITY
        } else {
            f64::INFINITY
        },
    ))
}

fn search<const N: usize, T>(numbers: &[[u8; N]], exponent: T, bits: fn([u8; N]) -> T) -> Option<(usize, u64)>
where
    T: Copy + PartialEq + Into<u64> + std::ops::BitAnd<Output = T>,
{
    // Blocks without an early end, which the compiler makes wide.
    let finite = |number: &[u8; N]| bits(*number) & exponent != exponent;
    let block = numbers.chunks(1024).position(|block| !block.iter().fold(true, |all, number| all & finite(number)))?;
    let first = block * 1024;
    let at = first + numbers[first..].iter().position(|number| !finite(number))?;
    Some((at, bits(numbers[at]).into()))
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
