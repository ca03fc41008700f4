//! Safetensors files, as Python sees them.

use std::path::PathBuf;

use checkpoint::File;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};

use crate::error::Failure;
use crate::without_gil;

/// Reads the header of a safetensors file, and checks it against the file's size. No tensor is read.
///
/// Returns
/// -------
/// dict
///     For each tensor's name its dtype as in the header (``"F32"``, ``"BF16"``, …), its shape, and the byte of the file that
///     it begins at.
///
/// Raises
/// ------
/// FileError
///     The file is not a safetensors file as it should be.
/// OSError
///     The file is missing or cannot be read.
#[pyfunction]
pub fn read_header(py: Python<'_>, path: PathBuf) -> Result<Bound<'_, PyDict>, Failure> {
    let file = without_gil(py, || Ok(File::open(&path)?))?;
    let header = PyDict::new(py);
    for (name, tensor) in file.tensors() {
        header.set_item(name, (tensor.dtype.name(), PyTuple::new(py, &tensor.shape)?, tensor.begin))?;
    }
    Ok(header)
}

/// Reads all floats of a safetensors file, some megabytes at a time, and finds the first that is infinite or NaN.
///
/// Parameters
/// ----------
/// path
///     The file, of any model. Floats of 16, 32 and 64 bits are read.
/// progress
///     Called with the fraction of the floats' bytes that have been read, from 0 to 1. What it raises ends the search.
///
/// Returns
/// -------
/// tuple or None
///     The tensor's name, the number's position in it (row-major), and its value (inf, −inf or nan). None: all are finite.
///
/// Raises as ``read_header`` does.
#[pyfunction]
#[pyo3(signature = (path, progress=None))]
pub fn find_not_finite(
    py: Python<'_>,
    path: PathBuf,
    progress: Option<Py<PyAny>>,
) -> Result<Option<(String, u64, f64)>, Failure> {
    let found = without_gil(py, || {
        File::open(&path)?.find_not_finite(|fraction| {
            Python::attach(|py| {
                py.check_signals()?;
                progress.as_ref().map_or(Ok(()), |progress| progress.call1(py, (fraction,)).map(drop))
            })
            .map_err(Failure::Python)
        })
    })?;
    Ok(found.map(|found| (found.name, found.at, found.value)))
}

/// Recognises a file that is often given in place of another, by its first bytes: a web page, a git-lfs pointer, a GGUF file,
/// a PyTorch file.
///
/// Returns what it is and what to do instead; None if it is none of these.
#[pyfunction]
pub fn foreign(start: &Bound<'_, PyBytes>) -> Option<(&'static str, &'static str)> {
    checkpoint::foreign(start.as_bytes())
}
