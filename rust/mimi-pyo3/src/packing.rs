//! Packs weights, for Python.

use lm::Float;
use numpy::{PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::error::Failure;
use crate::without_gil;

/// Packs rows of weights, ``values [rows, columns] float32``, as numbers of a few bits with a scale and a bias for each group
/// of a row.
///
/// Returns
/// -------
/// tuple
///     The packed numbers, ``[rows, columns * bits / 32] uint32``; the scales and the biases, ``[rows, columns / group_size]``,
///     each in ``dtype``: ``"F32"``, or ``"F16"`` and ``"BF16"`` as their bits, uint16.
///
/// Raises ValueError if the numbers do not fit each other.
#[pyfunction]
#[allow(clippy::type_complexity)]
pub fn pack<'py>(
    py: Python<'py>,
    values: PyReadonlyArray2<'py, f32>,
    bits: usize,
    group_size: usize,
    dtype: &str,
) -> Result<(Bound<'py, PyArray2<u32>>, Bound<'py, PyAny>, Bound<'py, PyAny>), Failure> {
    let &[rows, columns] = values.shape() else { return Err(Failure::Value("values have two dimensions.".into())) };
    let float = match dtype {
        "F32" => Float::F32,
        "F16" => Float::F16,
        "BF16" => Float::Bf16,
        _ => return Err(Failure::Value(format!("dtype is {dtype}, but F32, F16 or BF16 is expected."))),
    };
    if !matches!(bits, 2..=6 | 8) || !matches!(group_size, 32 | 64 | 128) || !columns.is_multiple_of(group_size) {
        return Err(Failure::Value(format!(
            "{columns} columns cannot be packed to {bits} bits in groups of {group_size}."
        )));
    }
    let values: Vec<f32> = values.as_array().iter().copied().collect();
    let [words, scales, biases] = without_gil(py, || Ok(lm::pack(&values, columns, bits, group_size, float)))?;
    let words: Vec<u32> = words.as_chunks().0.iter().map(|four| u32::from_le_bytes(*four)).collect();
    let numbers = |bytes: Vec<u8>| -> PyResult<Bound<'py, PyAny>> {
        let shape = [rows, columns / group_size];
        if float == Float::F32 {
            return Ok(PyArray1::from_vec(py, float.decode(&bytes)).reshape(shape)?.into_any());
        }
        let halves: Vec<u16> = bytes.as_chunks().0.iter().map(|two| u16::from_le_bytes(*two)).collect();
        Ok(PyArray1::from_vec(py, halves).reshape(shape)?.into_any())
    };
    Ok((PyArray1::from_vec(py, words).reshape([rows, columns * bits / 32])?, numbers(scales)?, numbers(biases)?))
}
