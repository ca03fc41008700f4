//! `Capture` and `Playback`: the rings between a sound device and Python.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use numpy::{PyArray1, PyArray2, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::arrays;
use crate::error::Failure;
use crate::without_gil;

/// A number that may be 0.
pub fn natural(name: &str, value: i64) -> Result<usize, Failure> {
    usize::try_from(value).map_err(|_| Failure::Value(format!("{name} is {value}, but at least 0 is expected.")))
}

/// A time to wait.
pub fn seconds(timeout: f64) -> Result<Duration, Failure> {
    Duration::try_from_secs_f64(timeout)
        .map_err(|_| Failure::Value(format!("timeout is {timeout}, but seconds from 0 are expected.")))
}

macro_rules! dict {
    ($py:expr, $stats:expr, $($key:ident),*) => {{
        let dict = PyDict::new($py);
        $(dict.set_item(stringify!($key), $stats.$key)?;)*
        dict
    }};
}

/// Mixes several channels into one, so that whoever speaks into any of them is heard as loud as alone.
///
/// Every channel weighs as much as its share of the power at the moment, so the same sound on all channels passes
/// unchanged, as does a sound on one of them while the others are silent. A channel in opposite phase to one of the
/// loudest would extinguish it and is left out. The result does not depend on how the sound is cut, and is not late;
/// a single channel passes as it is.
///
/// Parameters
/// ----------
/// rate : int
///     Samples per second.
/// channels : int
///     Their number, 1 to 1024.
///
/// Raises
/// ------
/// ValueError
///     An argument is out of range.
#[pyclass(module = "msh_native", frozen)]
pub struct Mixer(Mutex<rings::Mixer>);

#[pymethods]
impl Mixer {
    #[new]
    fn new(rate: i64, channels: i64) -> Result<Self, Failure> {
        let mixer = rings::Mixer::new(natural("rate", rate)?, natural("channels", channels)?);
        Ok(Self(Mutex::new(mixer.map_err(Failure::Value)?)))
    }

    /// Mixes the next ``pcm [n, channels] float32``, without the GIL, and gives ``[n] float32``.
    ///
    /// Samples that are not finite become 0. Raises TypeError for another dtype, ValueError for another shape.
    fn mix<'py>(&self, py: Python<'py>, pcm: &Bound<'_, PyAny>) -> Result<Bound<'py, PyArray1<f32>>, Failure> {
        let channels = self.lock().channels();
        let pcm = arrays::interleaved(pcm, channels)?;
        let mixed = without_gil(py, || {
            let mut mixer = self.lock();
            Ok(pcm.chunks_exact(channels).map(|frame| mixer.mix(frame)).collect())
        })?;
        Ok(PyArray1::from_vec(py, mixed))
    }

    /// The channels, counted from 0, that are left out since a while because they are in opposite phase to another.
    #[getter]
    fn left_out(&self) -> Vec<usize> {
        self.lock().left_out().collect()
    }
}

impl Mixer {
    fn lock(&self) -> MutexGuard<'_, rings::Mixer> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a microphone heard and nobody has read yet: mono float32 samples, from the device's thread to another.
///
/// A stream of PortAudio gets ``callback`` and ``userdata`` and must end before this object does. The callback mixes the
/// channels as ``Mixer`` does; samples that are not finite become 0.
///
/// Parameters
/// ----------
/// rate : int
///     Samples per second of the device.
/// channels : int
///     Channels of the device.
/// seconds : float
///     Room for sound that waits, 0.1 to 600.
///
/// Raises
/// ------
/// ValueError
///     An argument is out of range.
#[pyclass(module = "msh_native", frozen)]
pub struct Capture(pub Arc<rings::Capture>);

#[pymethods]
impl Capture {
    #[new]
    #[pyo3(signature = (rate, *, channels=1, seconds=4.0))]
    fn new(rate: i64, channels: i64, seconds: f64) -> Result<Self, Failure> {
        let capture = rings::Capture::new(natural("rate", rate)?, natural("channels", channels)?, seconds);
        Ok(Self(Arc::new(capture.map_err(Failure::Value)?)))
    }

    /// Address of the callback, a ``PaStreamCallback`` for interleaved float32 input.
    #[getter]
    fn callback(&self) -> usize {
        rings::Capture::CALLBACK as usize
    }

    /// Address that the callback takes as ``userData``.
    #[getter]
    fn userdata(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }

    /// Samples that wait.
    #[getter]
    fn available(&self) -> usize {
        self.0.available()
    }

    /// Calls the callback as a device would, without the GIL.
    ///
    /// ``pcm [n] float32`` goes to all channels, ``pcm [n, channels]`` is taken as it is. A device that runs at the same
    /// time makes samples lost.
    ///
    /// Raises TypeError for another dtype, ValueError for another shape.
    fn feed(&self, py: Python<'_>, pcm: &Bound<'_, PyAny>) -> Result<(), Failure> {
        let pcm = arrays::interleaved(pcm, self.0.channels())?;
        without_gil(py, || {
            self.0.feed(&pcm);
            Ok(())
        })
    }

    /// Waits without the GIL until ``n`` samples wait and takes them.
    ///
    /// Gives ``[n] float32``, or None if they have not come within ``timeout`` seconds; then nothing is taken.
    ///
    /// Raises ValueError for an ``n`` beyond the room or a ``timeout`` that is no time.
    fn read<'py>(&self, py: Python<'py>, n: i64, timeout: f64) -> Result<Option<Bound<'py, PyArray1<f32>>>, Failure> {
        let count = natural("n", n)?;
        if count > self.0.capacity() {
            return Err(Failure::Value(format!("n is {n}, but there is room for {} samples.", self.0.capacity())));
        }
        let timeout = seconds(timeout)?;
        let pcm = without_gil(py, || Ok(self.0.read(count, timeout)))?;
        Ok(pcm.map(|pcm| PyArray1::from_vec(py, pcm)))
    }

    /// Forgets the oldest samples so that ``keep`` wait; nothing if fewer do.
    ///
    /// The next read begins with a crossfade of 5 ms from the forgotten sound. Returns how many samples were dropped.
    ///
    /// Raises ValueError for a negative ``keep``.
    fn trim(&self, keep: i64) -> Result<usize, Failure> {
        Ok(self.0.trim(natural("keep", keep)?))
    }

    /// The counts since the object was made, in a new dict.
    ///
    /// ``callbacks``; ``samples`` heard; ``lost``: samples that came while the ring was full; ``device_overflows``:
    /// callbacks before which the device lost input; ``idle``: seconds since the last callback, or since the object was
    /// made; ``longest_gap`` between callbacks and ``longest_callback``, seconds; ``all_zero_seconds``: length of the
    /// run of exact zeros that the sound ends with; ``left_out``: a list of the channels, counted from 0, that were left
    /// out for a while because they were in opposite phase to another; ``clipped``: samples of magnitude 0.999 or more;
    /// ``energy``: the sum of the samples' squares; ``peak``: the largest magnitude from sample number ``since`` on, or
    /// 10 ms earlier, in the last minute.
    ///
    /// Asking changes nothing: whoever wants the level of a time subtracts the counts at its beginning.
    ///
    /// Raises ValueError for a negative ``since``.
    #[pyo3(signature = (since=0))]
    fn stats<'py>(&self, py: Python<'py>, since: i64) -> Result<Bound<'py, PyDict>, Failure> {
        let stats = self.0.stats(natural("since", since)? as u64);
        Ok(dict!(
            py,
            stats,
            callbacks,
            samples,
            lost,
            device_overflows,
            idle,
            longest_gap,
            longest_callback,
            peak,
            energy,
            clipped,
            all_zero_seconds,
            left_out
        ))
    }
}

/// Sound that was written and not played yet: mono float32 samples, from a thread to the device's.
///
/// A stream of PortAudio gets ``callback`` and ``userdata`` and must end before this object does. The callback writes
/// the same to all channels, always finite and in [-1, 1].
///
/// Play begins when a cushion of samples waits, at first a frame, and fades in. When the sound runs dry it fades out, an
/// underrun is counted, and the cushion grows by a quarter of a frame, up to four frames; after a minute that would have
/// passed with a smaller one it shrinks. Delay that the cushion does not ask for is dropped, and delay that it lacks is
/// added, in steps of some milliseconds where the sound allows it; this takes blocks of at least 20 ms in ``write``.
///
/// Parameters
/// ----------
/// rate : int
///     Samples per second of the device.
/// channels : int
///     Channels of the device.
/// frame : int
///     Samples that come at a time, and the smallest cushion.
/// seconds : float
///     Room for sound that waits, 0.1 to 600, at least five frames.
///
/// Raises
/// ------
/// ValueError
///     An argument is out of range.
#[pyclass(module = "msh_native", frozen)]
pub struct Playback(pub Arc<rings::Playback>);

#[pymethods]
impl Playback {
    #[new]
    #[pyo3(signature = (rate, *, channels=1, frame, seconds=4.0))]
    fn new(rate: i64, channels: i64, frame: i64, seconds: f64) -> Result<Self, Failure> {
        let (rate, channels, frame) =
            (natural("rate", rate)?, natural("channels", channels)?, natural("frame", frame)?);
        Ok(Self(Arc::new(rings::Playback::new(rate, channels, frame, seconds).map_err(Failure::Value)?)))
    }

    /// Address of the callback, a ``PaStreamCallback`` for interleaved float32 output.
    #[getter]
    fn callback(&self) -> usize {
        rings::Playback::CALLBACK as usize
    }

    /// Address that the callback takes as ``userData``.
    #[getter]
    fn userdata(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }

    /// Samples that wait.
    #[getter]
    fn queued(&self) -> usize {
        self.0.queued()
    }

    /// Calls the callback as a device would, without the GIL, and gives what it plays, ``[n, channels] float32``.
    ///
    /// It plays silence if a device runs at the same time.
    ///
    /// Raises ValueError for an ``n`` that is negative or larger than a device asks for.
    fn render<'py>(&self, py: Python<'py>, n: i64) -> Result<Bound<'py, PyArray2<f32>>, Failure> {
        let (frames, channels) = (natural("n", n)?, self.0.channels());
        if frames > 1 << 24 {
            return Err(Failure::Value(format!("n is {n}, but at most {} samples are expected.", 1 << 24)));
        }
        let pcm = without_gil(py, || {
            let mut pcm = vec![0f32; frames * channels];
            self.0.render(&mut pcm);
            Ok(pcm)
        })?;
        Ok(PyArray1::from_vec(py, pcm).reshape([frames, channels])?)
    }

    /// Adds ``pcm [n] float32`` to what waits, and never waits itself.
    ///
    /// What does not fit is dropped; a sample that is not finite becomes 0.
    ///
    /// Raises TypeError for another dtype, ValueError for another shape.
    fn write(&self, py: Python<'_>, pcm: &Bound<'_, PyAny>) -> Result<(), Failure> {
        let pcm = arrays::pcm(pcm)?;
        without_gil(py, || {
            self.0.write(pcm);
            Ok(())
        })
    }

    /// Says that nothing follows for now: what waits is played to its end, and the silence after it is no underrun.
    fn pause(&self) {
        self.0.pause();
    }

    /// Lets the sound fade out in 5 ms and forgets what waits; then a new cushion is awaited.
    fn clear(&self) {
        self.0.clear();
    }

    /// The counts since the object was made, in a new dict.
    ///
    /// ``callbacks``; ``samples`` rendered, silence included; ``written`` and, of these, ``played``; ``underruns``;
    /// ``silent``: samples rendered between running dry and the next sound; ``lost``: samples that did not fit;
    /// ``cleared``: samples forgotten by ``clear``; ``trimmed`` and ``inserted``: samples dropped and repeated to keep
    /// the delay; ``cushion`` and ``queued``, samples; ``device_underflows``: callbacks that came too late for the
    /// device; ``idle``: seconds since the last callback, or since the object was made; ``longest_gap`` between
    /// callbacks and ``longest_callback``, seconds; ``energy``: the sum of the rendered samples' squares; ``peak``: the
    /// largest magnitude from rendered sample number ``since`` on, or 10 ms earlier, in the last minute. Asking changes
    /// nothing.
    ///
    /// While no callback runs, ``written + inserted - trimmed - lost == played + cleared + queued``.
    ///
    /// Raises ValueError for a negative ``since``.
    #[pyo3(signature = (since=0))]
    fn stats<'py>(&self, py: Python<'py>, since: i64) -> Result<Bound<'py, PyDict>, Failure> {
        let stats = self.0.stats(natural("since", since)? as u64);
        Ok(dict!(
            py,
            stats,
            callbacks,
            samples,
            written,
            played,
            underruns,
            silent,
            lost,
            cleared,
            trimmed,
            inserted,
            cushion,
            queued,
            device_underflows,
            idle,
            longest_gap,
            longest_callback,
            peak,
            energy
        ))
    }
}

/// Writes to a ``Playback`` at 24 kHz, whatever the rate of its device is; for a loudspeaker to which nobody else writes.
///
/// Where the rates differ, sound is resampled, and 4.7 ms of it wait for what follows. Any thread may call.
///
/// Parameters
/// ----------
/// playback : Playback
///     The loudspeaker's ring.
#[pyclass(module = "msh_native", frozen)]
pub struct Mouth(rings::Mouth);

#[pymethods]
impl Mouth {
    #[new]
    fn new(playback: &Bound<'_, Playback>) -> Self {
        Self(rings::Mouth::new(playback.get().0.clone()))
    }

    /// Plays ``pcm [n] float32`` at 24 kHz after what waits, and never waits itself; as ``Playback.write``.
    ///
    /// Raises TypeError for another dtype, ValueError for another shape.
    fn write(&self, py: Python<'_>, pcm: &Bound<'_, PyAny>) -> Result<(), Failure> {
        let pcm = arrays::pcm(pcm)?;
        without_gil(py, || {
            self.0.write(pcm);
            Ok(())
        })
    }

    /// Says that nothing follows for now: what waits is played to its end, and the silence after it is no underrun.
    fn pause(&self) {
        self.0.pause();
    }

    /// Lets the sound fade out in 5 ms and forgets what waits; then a new cushion is awaited.
    fn clear(&self) {
        self.0.clear();
    }

    /// How much sound waits to be played, in seconds.
    fn queued(&self) -> f64 {
        self.0.queued()
    }
}
