//! The Python extension `msh_native._native` of the packages `mimi` and `msh_native`. It checks and converts arguments, releases
//! the GIL and maps errors. It does no arithmetic.

mod arrays;
mod echo;
mod error;
mod files;
mod lm;
mod opus;
mod packing;
mod rings;

use std::path::PathBuf;
use std::sync::{Mutex, TryLockError};

use numpy::{PyArray1, PyArray2};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyMapping};

use error::{Failure, FileError, MimiError, ModelError};

/// The weights of a codec. They do not change, and may be shared between threads and streams.
///
/// Codecs of the same file, configuration and ``weights`` share them, unless the file was written within the last second.
///
/// Parameters
/// ----------
/// path : str or os.PathLike
///     A safetensors checkpoint with exactly the tensors of its configuration, in float32, bfloat16 or float16.
/// num_codebooks : int
///     Codebooks to encode to and to decode from, 1 to the configuration's ``n_q``.
/// num_threads : int or None
///     Threads that share the work of a step, the caller's included; None takes half the cores, at most 2.
/// config : mapping, str, os.PathLike or None
///     The architecture, as a mapping or a JSON file; keys left out take the published values. None takes the
///     checkpoint's metadata key ``config``, or the published values.
/// weights : str
///     How the weights of matrices are held, whatever type they have in the file: ``"float32"``, or ``"float16"`` in half
///     the memory, rounded to 11 bits. No weight is too large for that: columns are scaled by powers of two.
///
/// Raises
/// ------
/// OSError
///     A file is missing, is a folder or cannot be read (FileNotFoundError, IsADirectoryError, PermissionError).
/// MimiError
///     The checkpoint or the configuration cannot be used.
/// ValueError
///     ``num_codebooks`` or ``num_threads`` is out of range, or ``weights`` is another word.
#[pyclass(module = "mimi", frozen)]
struct Mimi(mimi::Mimi);

/// Runs `work` without the GIL.
fn without_gil<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T, Failure> + Send) -> Result<T, Failure>
where
    Failure: Send,
{
    py.detach(work)
}

/// Runs `work` on a stream without the GIL, unless another thread is using the stream.
fn with_stream<S: Send, T: Send>(
    py: Python<'_>,
    stream: &Mutex<S>,
    name: &str,
    work: impl FnOnce(&mut S) -> Result<T, Failure> + Send,
) -> Result<T, Failure> {
    without_gil(py, || match stream.try_lock() {
        Ok(mut stream) => work(&mut stream),
        Err(TryLockError::WouldBlock) => Err(Failure::State(format!(
            "This {name} is being used by another thread; give each thread one of its own."
        ))),
        Err(TryLockError::Poisoned(_)) => {
            Err(Failure::State(format!("This {name} broke in an earlier call; make a new one.")))
        }
    })
}

fn read_config(config: &Bound<'_, PyAny>) -> Result<mimi::Config, Failure> {
    if let Ok(mapping) = config.cast::<PyMapping>() {
        let plain = PyDict::new(config.py());
        plain.update(mapping)?;
        let text: String = config.py().import("json")?.call_method1("dumps", (plain,))?.extract()?;
        return Ok(mimi::Config::from_json(&text)?);
    }
    let Ok(path) = config.extract::<PathBuf>() else {
        let kind = config.get_type().name()?;
        return Err(Failure::Type(format!("config must be a mapping or the path of a JSON file, not {kind}.")));
    };
    Ok(mimi::Config::from_file(&path)?)
}

fn count(name: &str, value: i64) -> Result<usize, Failure> {
    usize::try_from(value).map_err(|_| Failure::Value(format!("{name} is {value}, but at least 1 is expected.")))
}

fn precision(weights: &str) -> Result<mimi::Precision, Failure> {
    match weights {
        "float32" => Ok(mimi::Precision::Float32),
        "float16" => Ok(mimi::Precision::Float16),
        _ => Err(Failure::Value(format!("weights is {weights:?}, but \"float32\" or \"float16\" is expected."))),
    }
}

fn stage_seconds(py: Python<'_>, times: mimi::StageTimes) -> Result<Bound<'_, PyDict>, Failure> {
    let seconds = PyDict::new(py);
    seconds.set_item("seanet", times.seanet.as_secs_f64())?;
    seconds.set_item("transformer", times.transformer.as_secs_f64())?;
    seconds.set_item("quantizer", times.quantizer.as_secs_f64())?;
    Ok(seconds)
}

#[pymethods]
impl Mimi {
    #[new]
    #[pyo3(signature = (path, *, num_codebooks=8, num_threads=None, config=None, weights="float32"))]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        num_codebooks: i64,
        num_threads: Option<i64>,
        config: Option<&Bound<'_, PyAny>>,
        weights: &str,
    ) -> Result<Self, Failure> {
        let options = mimi::Options {
            num_codebooks: count("num_codebooks", num_codebooks)?,
            num_threads: num_threads.map(|n| count("num_threads", n)).transpose()?,
            config: config.map(read_config).transpose()?,
            weights: precision(weights)?,
            ..mimi::Options::default()
        };
        without_gil(py, || Ok(Self(mimi::Mimi::load(&path, &options)?)))
    }

    /// Samples per second.
    #[getter]
    fn sample_rate(&self) -> usize {
        self.0.config().sample_rate
    }

    /// Frames per second.
    #[getter]
    fn frame_rate(&self) -> f64 {
        self.0.config().frame_rate
    }

    /// Samples per frame.
    #[getter]
    fn frame_size(&self) -> usize {
        self.0.frame_size()
    }

    /// Rows of the codes.
    #[getter]
    fn num_codebooks(&self) -> usize {
        self.0.num_codebooks()
    }

    /// How the weights of matrices are held, ``"float32"`` or ``"float16"``.
    #[getter]
    fn weights(&self) -> &'static str {
        match self.0.weights() {
            mimi::Precision::Float32 => "float32",
            mimi::Precision::Float16 => "float16",
        }
    }

    /// The configuration in effect, all keys with their values; a new dict each time.
    #[getter]
    fn config<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        py.import("json")?.call_method1("loads", (self.0.config().to_json().to_string(),))
    }

    /// Encodes a whole recording with its own stream.
    ///
    /// ``pcm [T] float32`` in [-1, 1] gives codes ``[num_codebooks, ceil(T / frame_size)] uint32``; zeros complete the
    /// last frame. Working memory does not grow with T.
    ///
    /// Raises TypeError for another dtype, ValueError for another shape or a sample that is not finite.
    fn encode<'py>(&self, py: Python<'py>, pcm: &Bound<'py, PyAny>) -> Result<Bound<'py, PyArray2<u32>>, Failure> {
        let pcm = arrays::pcm(pcm)?;
        let codes = without_gil(py, || Ok(self.0.encode(&pcm)?))?;
        Ok(arrays::to_rows(py, &codes, self.0.num_codebooks())?)
    }

    /// Returns the latents that ``encode`` quantizes.
    ///
    /// ``pcm [T] float32`` gives ``[dimension, ceil(T / frame_size)] float32``. Raises what ``encode`` raises.
    fn encode_latent<'py>(
        &self,
        py: Python<'py>,
        pcm: &Bound<'py, PyAny>,
    ) -> Result<Bound<'py, PyArray2<f32>>, Failure> {
        let pcm = arrays::pcm(pcm)?;
        let latents = without_gil(py, || Ok(self.0.encode_latent(&pcm)?))?;
        Ok(arrays::to_rows(py, &latents, self.0.config().dimension)?)
    }

    /// Decodes a whole recording with its own stream.
    ///
    /// ``codes [K, m]`` of any integer type, K from 1 to ``num_codebooks``, gives ``[m * frame_size] float32``, which
    /// can leave [-1, 1].
    ///
    /// Raises TypeError for another dtype, ValueError for another shape or a code out of range.
    fn decode<'py>(&self, py: Python<'py>, codes: &Bound<'py, PyAny>) -> Result<Bound<'py, PyArray1<f32>>, Failure> {
        let codes = arrays::codes(codes)?;
        let pcm = without_gil(py, || Ok(self.0.decode(&codes.values, codes.rows)?))?;
        Ok(PyArray1::from_vec(py, pcm))
    }

    /// Returns a new stream from audio to codes.
    fn encoder(&self) -> Encoder {
        Encoder { stream: Mutex::new(self.0.encoder()), num_codebooks: self.0.num_codebooks() }
    }

    /// Returns a new stream from codes to audio.
    fn decoder(&self) -> Decoder {
        Decoder { stream: Mutex::new(self.0.decoder()) }
    }
}

/// A stream from audio to codes; made by ``Mimi.encoder()``.
///
/// It may be used by one thread at a time. A call that raises leaves it as it was.
#[pyclass(module = "mimi", frozen)]
struct Encoder {
    stream: Mutex<mimi::Encoder>,
    num_codebooks: usize,
}

#[pymethods]
impl Encoder {
    /// Takes any number of samples, and returns the codes of the frames that they complete.
    ///
    /// ``pcm [n] float32`` in [-1, 1] gives ``[num_codebooks, m] uint32``. Samples that do not fill a frame wait for more.
    ///
    /// Raises TypeError for another dtype, ValueError for another shape or a sample that is not finite, RuntimeError
    /// when another thread is using the stream.
    fn step<'py>(&self, py: Python<'py>, pcm: &Bound<'py, PyAny>) -> Result<Bound<'py, PyArray2<u32>>, Failure> {
        let pcm = arrays::pcm(pcm)?;
        let codes = with_stream(py, &self.stream, "Encoder", |stream| Ok(stream.step(&pcm)?))?;
        Ok(arrays::to_rows(py, &codes, self.num_codebooks)?)
    }

    /// Seconds that the steps since the stream began have taken, by stage; a new dict each time.
    ///
    /// ``seanet``, ``transformer`` and ``quantizer``, the last with the resampling between it and the transformer.
    ///
    /// Raises RuntimeError when another thread is using the stream.
    fn stage_seconds<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyDict>, Failure> {
        stage_seconds(py, with_stream(py, &self.stream, "Encoder", |stream| Ok(stream.stage_times()))?)
    }

    /// Makes another stream that goes on from the state of this one, on its own.
    ///
    /// Raises RuntimeError when another thread is using the stream.
    fn copy(&self, py: Python<'_>) -> Result<Encoder, Failure> {
        let stream = with_stream(py, &self.stream, "Encoder", |stream| Ok(stream.clone()))?;
        Ok(Encoder { stream: Mutex::new(stream), num_codebooks: self.num_codebooks })
    }

    /// Begins a new stream. Samples that wait are forgotten.
    ///
    /// ``position`` is how many steps of the transformer count as passed already, to test streams of any age.
    ///
    /// Raises RuntimeError when another thread is using the stream.
    #[pyo3(signature = (*, position=0))]
    fn reset(&self, py: Python<'_>, position: u64) -> Result<(), Failure> {
        with_stream(py, &self.stream, "Encoder", |stream| {
            stream.reset_at(position);
            Ok(())
        })
    }
}

/// A stream from codes to audio; made by ``Mimi.decoder()``.
///
/// It may be used by one thread at a time. A call that raises leaves it as it was.
#[pyclass(module = "mimi", frozen)]
struct Decoder {
    stream: Mutex<mimi::Decoder>,
}

#[pymethods]
impl Decoder {
    /// Decodes any number of frames.
    ///
    /// ``codes [K, m]`` of any integer type, K from 1 to ``num_codebooks``, gives ``[m * frame_size] float32``, which
    /// can leave [-1, 1].
    ///
    /// Raises TypeError for another dtype, ValueError for another shape or a code out of range, RuntimeError when
    /// another thread is using the stream.
    fn step<'py>(&self, py: Python<'py>, codes: &Bound<'py, PyAny>) -> Result<Bound<'py, PyArray1<f32>>, Failure> {
        let codes = arrays::codes(codes)?;
        let pcm = with_stream(py, &self.stream, "Decoder", |stream| Ok(stream.step(&codes.values, codes.rows)?))?;
        Ok(PyArray1::from_vec(py, pcm))
    }

    /// Seconds that the steps since the stream began have taken, by stage; a new dict each time.
    ///
    /// ``seanet``, ``transformer`` and ``quantizer``, the last with the resampling between it and the transformer.
    ///
    /// Raises RuntimeError when another thread is using the stream.
    fn stage_seconds<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyDict>, Failure> {
        stage_seconds(py, with_stream(py, &self.stream, "Decoder", |stream| Ok(stream.stage_times()))?)
    }

    /// Begins a new stream.
    ///
    /// ``position`` is how many steps of the transformer count as passed already, to test streams of any age.
    ///
    /// Raises RuntimeError when another thread is using the stream.
    #[pyo3(signature = (*, position=0))]
    fn reset(&self, py: Python<'_>, position: u64) -> Result<(), Failure> {
        with_stream(py, &self.stream, "Decoder", |stream| {
            stream.reset_at(position);
            Ok(())
        })
    }
}

/// Returns the instruction set of the kernels on this machine: ``"AVX-512"``, ``"AVX2"``, ``"NEON"`` or, much slower,
/// ``"portable"``.
#[pyfunction]
fn kernels() -> String {
    mimi::Isa::available()[0].to_string()
}

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Mimi>()?;
    module.add_class::<Encoder>()?;
    module.add_class::<Decoder>()?;
    module.add_class::<rings::Capture>()?;
    module.add_class::<rings::Mixer>()?;
    module.add_class::<rings::Playback>()?;
    module.add_class::<rings::Mouth>()?;
    module.add_class::<echo::Ear>()?;
    module.add_class::<echo::EchoCanceller>()?;
    module.add_class::<echo::VoiceEnhancer>()?;
    module.add_class::<opus::OpusEncoder>()?;
    module.add_class::<opus::OpusDecoder>()?;
    module.add_class::<lm::PyLm>()?;
    module.add_class::<lm::PyEngine>()?;
    module.add_class::<lm::PyConversation>()?;
    module.add_class::<lm::PySource>()?;
    module.add_function(wrap_pyfunction!(lm::dots, module)?)?;
    module.add_function(wrap_pyfunction!(lm::read_bandwidth, module)?)?;
    module.add_function(wrap_pyfunction!(packing::pack, module)?)?;
    module.add_function(wrap_pyfunction!(files::find_not_finite, module)?)?;
    module.add_function(wrap_pyfunction!(files::foreign, module)?)?;
    module.add_function(wrap_pyfunction!(files::read_header, module)?)?;
    module.add_function(wrap_pyfunction!(kernels, module)?)?;
    module.add("ModelError", module.py().get_type::<ModelError>())?;
    module.add("FileError", module.py().get_type::<FileError>())?;
    module.add("MimiError", module.py().get_type::<MimiError>())
}
