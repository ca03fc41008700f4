//! Opus packets, for Python.

use std::sync::Mutex;

use numpy::{PyArray1, PyArray2, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::Failure;
use crate::{arrays, with_stream};

impl From<::opus::Error> for Failure {
    fn from(error: ::opus::Error) -> Self {
        Self::Value(error.to_string())
    }
}

/// Turns mono sound into Opus packets with the least delay.
///
/// ``sample_rate`` is one of Opus's, in Hz; ``bitrate`` is in bits a second, and kept on average; ``complexity``, 0 to 10, is
/// how much is computed.
///
/// It may be used by one thread at a time. Raises ValueError for what Opus does not have.
#[pyclass(module = "msh_native", frozen)]
pub struct OpusEncoder {
    stream: Mutex<::opus::Encoder>,
}

#[pymethods]
impl OpusEncoder {
    #[new]
    #[pyo3(signature = (sample_rate, *, bitrate, complexity))]
    fn new(sample_rate: i32, bitrate: i32, complexity: i32) -> Result<Self, Failure> {
        Ok(Self { stream: Mutex::new(::opus::Encoder::new(sample_rate, bitrate, complexity)?) })
    }

    /// How many samples the decoded sound is late.
    ///
    /// Raises RuntimeError when another thread is using the encoder.
    #[getter]
    fn delay(&self, py: Python<'_>) -> Result<usize, Failure> {
        with_stream(py, &self.stream, "OpusEncoder", |encoder| Ok(encoder.delay()))
    }

    /// Encodes a packet of 2.5, 5, 10, 20, 40, 60, 80, 100 or 120 ms: ``pcm [n] float32``, cut off at full scale.
    ///
    /// Raises TypeError for another dtype, ValueError for another length, RuntimeError when another thread is using the encoder.
    fn encode<'py>(&self, py: Python<'py>, pcm: &Bound<'py, PyAny>) -> Result<Bound<'py, PyBytes>, Failure> {
        let pcm = arrays::pcm(pcm)?;
        let packet = with_stream(py, &self.stream, "OpusEncoder", |encoder| Ok(encoder.encode(&pcm)?))?;
        Ok(PyBytes::new(py, &packet))
    }
}

/// Turns Opus packets into sound.
///
/// ``sample_rate`` is one of Opus's, in Hz, whatever rate was encoded; ``channels`` is 1 or 2.
///
/// It may be used by one thread at a time. Raises ValueError for what Opus does not have.
#[pyclass(module = "msh_native", frozen)]
pub struct OpusDecoder {
    stream: Mutex<::opus::Decoder>,
    channels: usize,
}

#[pymethods]
impl OpusDecoder {
    #[new]
    fn new(sample_rate: i32, channels: usize) -> Result<Self, Failure> {
        Ok(Self { stream: Mutex::new(::opus::Decoder::new(sample_rate, channels)?), channels })
    }

    /// Decodes a packet: ``[n, channels] float32`` in [-1, 1].
    ///
    /// Raises ValueError if it cannot be decoded; the next one can. Raises RuntimeError when another thread is using the decoder.
    fn decode<'py>(&self, py: Python<'py>, packet: &[u8]) -> Result<Bound<'py, PyArray2<f32>>, Failure> {
        let packet = packet.to_vec();
        let pcm = with_stream(py, &self.stream, "OpusDecoder", |decoder| Ok(decoder.decode(&packet)?))?;
        let shape = [pcm.len() / self.channels, self.channels];
        Ok(PyArray1::from_vec(py, pcm).reshape(shape)?)
    }
}
