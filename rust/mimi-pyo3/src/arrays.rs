//! Numpy arrays to and from Rust. Inputs are copied, because other threads may change them once the GIL is released.

use numpy::{
    Element, PyArray1, PyArray2, PyArrayDescrMethods, PyArrayMethods, PyReadonlyArray2, PyUntypedArray,
    PyUntypedArrayMethods,
};
use pyo3::prelude::*;

use crate::error::Failure;

/// Codes `[rows, frames]` as the codec takes them, `[frames, rows]`.
pub struct Codes {
    pub values: Vec<u32>,
    pub rows: usize,
}

fn array<'a, 'py>(
    object: &'a Bound<'py, PyAny>,
    name: &str,
    want: &str,
) -> Result<&'a Bound<'py, PyUntypedArray>, Failure> {
    object.cast::<PyUntypedArray>().map_err(|_| {
        let kind = object.get_type().name().map_or_else(|_| "another object".to_owned(), |name| name.to_string());
        Failure::Type(format!("{name} must be a numpy array of {want}, not {kind}."))
    })
}

fn wrong_type(array: &Bound<'_, PyUntypedArray>, name: &str, want: &str) -> Failure {
    Failure::Type(format!("{name} must be an array of {want}, not of {}; convert it first.", array.dtype()))
}

/// `pcm [samples] float32`.
pub fn pcm(object: &Bound<'_, PyAny>) -> Result<Vec<f32>, Failure> {
    let want = "float32 samples";
    let untyped = array(object, "pcm", want)?;
    if !untyped.dtype().is_equiv_to(&numpy::dtype::<f32>(object.py())) {
        return Err(wrong_type(untyped, "pcm", want));
    }
    let Ok(array) = object.cast::<PyArray1<f32>>() else {
        return Err(Failure::Value(format!(
            "pcm must have one dimension, the samples of one channel, but its shape is {:?}.",
            untyped.shape()
        )));
    };
    let array = array.try_readonly().map_err(PyErr::from)?;
    Ok(array.as_array().iter().copied().collect())
}

/// `pcm [samples] float32` for all of `channels`, or `[samples, channels]`; interleaved.
pub fn interleaved(object: &Bound<'_, PyAny>, channels: usize) -> Result<Vec<f32>, Failure> {
    let Ok(array) = object.cast::<PyArray2<f32>>() else {
        return Ok(pcm(object)?.into_iter().flat_map(|sample| std::iter::repeat_n(sample, channels)).collect());
    };
    let array = array.try_readonly().map_err(PyErr::from)?;
    let array = array.as_array();
    if array.ncols() != channels {
        return Err(Failure::Value(format!("pcm has {} channels, but {channels} are expected.", array.ncols())));
    }
    Ok(array.iter().copied().collect())
}

/// `codes [rows, frames]` of any integer type.
pub fn codes(object: &Bound<'_, PyAny>) -> Result<Codes, Failure> {
    let want = "integer codes";
    let untyped = array(object, "codes", want)?;
    if !matches!(untyped.dtype().kind(), b'i' | b'u') {
        return Err(wrong_type(untyped, "codes", want));
    }
    let &[rows, _] = untyped.shape() else {
        return Err(Failure::Value(format!(
            "codes must have two dimensions, codebooks and frames, but its shape is {:?}.",
            untyped.shape()
        )));
    };
    macro_rules! try_types {
        ($($t:ty),*) => {
            $(if let Ok(array) = object.cast::<PyArray2<$t>>() {
                let values = transposed(&array.try_readonly().map_err(PyErr::from)?)?;
                return Ok(Codes { values, rows });
            })*
        };
    }
    try_types!(u32, i64, i32, u64, u16, i16, u8, i8);
    Err(wrong_type(untyped, "codes", "integer codes in the machine's byte order"))
}

fn transposed<T: Element + Copy + TryInto<u32> + std::fmt::Display>(
    array: &PyReadonlyArray2<'_, T>,
) -> Result<Vec<u32>, Failure> {
    let array = array.as_array();
    let mut values = Vec::with_capacity(array.len());
    for (frame, column) in array.columns().into_iter().enumerate() {
        for (row, code) in column.iter().enumerate() {
            values.push((*code).try_into().map_err(|_| {
                Failure::Value(format!("codes[{row}, {frame}] is {code}, but codes are small whole numbers from 0."))
            })?);
        }
    }
    Ok(values)
}

/// Turns `[frames, rows]` into an array `[rows, frames]`.
pub fn to_rows<'py, T: Element + Copy>(
    py: Python<'py>,
    values: &[T],
    rows: usize,
) -> PyResult<Bound<'py, PyArray2<T>>> {
    let frames = values.len() / rows;
    let turned = (0..values.len()).map(|i| values[i % frames * rows + i / frames]).collect();
    PyArray1::from_vec(py, turned).reshape([rows, frames])
}
