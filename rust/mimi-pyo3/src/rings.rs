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

/// Mixes several channels into one. A voice on any of them is as loud as it would be alone.
///
/// Each channel is weighted by its share of the power at the moment. So the same sound on all channels passes unchanged, and
/// so does a sound on one channel while the others are silent. A channel in opposite phase to one of the loudest would
/// cancel it, so it is left out. The result does not depend on how the sound is cut into calls, and is not late. A single
/// channel passes unchanged.
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

    /// Mixes the next ``pcm [n, channels] float32``, without the GIL, and returns ``[n] float32``.
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

    /// The channels, counted from 0, that have been left out for a while because they are in opposite phase to another.
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

/// Sound from a microphone that has not been read yet: mono float32, from the device's thread to another.
///
/// Give ``callback`` and ``userdata`` to a stream of PortAudio, which must end before this object does. The callback mixes
/// the channels as ``Mixer`` does. Samples that are not finite become 0.
///
/// Parameters
/// ----------
/// rate : int
///     Samples per second of the device.
/// channels : int
///     Channels of the device.
/// seconds : float
///     The room for sound that waits, 0.1 to 600.
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

    /// The address of the callback, a ``PaStreamCallback`` for interleaved float32 input.
    #[getter]
    fn callback(&self) -> usize {
        rings::Capture::CALLBACK as usize
    }

    /// The address that the callback takes as ``userData``.
    #[getter]
    fn userdata(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }

    /// How many samples wait.
    #[getter]
    fn available(&self) -> usize {
        self.0.available()
    }

    /// Calls the callback as a device would, without the GIL.
    ///
    /// ``pcm [n] float32`` goes to all channels; ``pcm [n, channels]`` has one column per channel. Samples may be lost if a
    /// device runs at the same time.
    ///
    /// Raises TypeError for another dtype, ValueError for another shape.
    fn feed(&self, py: Python<'_>, pcm: &Bound<'_, PyAny>) -> Result<(), Failure> {
        let pcm = arrays::interleaved(pcm, self.0.channels())?;
        without_gil(py, || {
            self.0.feed(&pcm);
            Ok(())
        })
    }

    /// Waits without the GIL for ``n`` samples, and takes them.
    ///
    /// Returns ``[n] float32``, or None if they have not come within ``timeout`` seconds; then nothing is taken.
    ///
    /// Raises ValueError if ``n`` is larger than the room, or if ``timeout`` is negative or not finite.
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
    /// Asking changes nothing: to measure a span of time, subtract the counts at its beginning from those at its end.
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

/// Sound that was written and not played yet: mono float32, from one thread to the device's.
///
/// Give ``callback`` and ``userdata`` to a stream of PortAudio, which must end before this object does. The callback writes
/// the same sound to all channels, always finite and in [-1, 1].
///
/// Play begins, with a fade, when a cushion of samples waits: one frame at first. When the sound runs dry, it fades out, an
/// underrun is counted, and the cushion grows by a quarter of a frame, up to four frames. After a minute in which a smaller
/// cushion would have been enough, it shrinks. If more or less sound waits than the cushion asks for, some milliseconds at
/// a time are dropped or repeated, where the sound allows it. For this, blocks in ``write`` must be of 20 ms or more.
///
/// Parameters
/// ----------
/// rate : int
///     Samples per second of the device.
/// channels : int
///     Channels of the device.
/// frame : int
///     The samples written at a time, which is also the smallest cushion.
/// seconds : float
///     The room for sound that waits, 0.1 to 600, at least five frames.
/// regulated : bool
///     Whether the delay is kept short, by dropping or repeating some milliseconds at a time. Without, sound can be written
///     long before it is played.
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
    #[pyo3(signature = (rate, *, channels=1, frame, seconds=4.0, regulated=true))]
    fn new(rate: i64, channels: i64, frame: i64, seconds: f64, regulated: bool) -> Result<Self, Failure> {
        let (rate, channels, frame) =
            (natural("rate", rate)?, natural("channels", channels)?, natural("frame", frame)?);
        let playback = rings::Playback::new(rate, channels, frame, seconds).map_err(Failure::Value)?;
        Ok(Self(Arc::new(if regulated { playback } else { playback.unregulated() })))
    }

    /// The address of the callback, a ``PaStreamCallback`` for interleaved float32 output.
    #[getter]
    fn callback(&self) -> usize {
        rings::Playback::CALLBACK as usize
    }

    /// The address that the callback takes as ``userData``.
    #[getter]
    fn userdata(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }

    /// How many samples wait.
    #[getter]
    fn queued(&self) -> usize {
        self.0.queued()
    }

    /// Calls the callback as a device would, without the GIL, and returns what it plays, ``[n, channels] float32``.
    ///
    /// It plays silence if a device runs at the same time.
    ///
    /// Raises ValueError for an ``n`` that is negative or larger than a device asks for.
    fn render<'py>(&self, py: Python<'py>, n: i64) -> Result<Bound<'py, PyArray2<f32>>, Failure> {
        let (count, channels) = (natural("n", n)?, self.0.channels());
        if count > 1 << 24 {
            return Err(Failure::Value(format!("n is {n}, but at most {} samples are expected.", 1 << 24)));
        }
        let pcm = without_gil(py, || {
            let mut pcm = vec![0f32; count * channels];
            self.0.render(&mut pcm);
            Ok(pcm)
        })?;
        Ok(PyArray1::from_vec(py, pcm).reshape([count, channels])?)
    }

    /// Adds ``pcm [n] float32`` to what waits, and never waits itself.
    ///
    /// Samples that do not fit are dropped. A sample that is not finite becomes 0.
    ///
    /// Raises TypeError for another dtype, ValueError for another shape.
    fn write(&self, py: Python<'_>, pcm: &Bound<'_, PyAny>) -> Result<(), Failure> {
        let pcm = arrays::pcm(pcm)?;
        without_gil(py, || {
            self.0.write(pcm);
            Ok(())
        })
    }

    /// Says that nothing follows for now: what waits is played to its end, and silence after it is not an underrun.
    fn pause(&self) {
        self.0.pause();
    }

    /// Fades the sound out in 5 ms, and forgets what waits. Play begins again with a new cushion.
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

/// Writes to a ``Playback`` at 24 kHz, whatever the rate of its device. Nothing else may write to that.
///
/// If the rates differ, sound is resampled, and its last 4.7 ms wait for the sound that follows. Any thread may call.
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

    /// Plays ``pcm [n] float32`` at 24 kHz after the sound that waits, as ``Playback.write``. Never waits itself.
    ///
    /// Raises TypeError for another dtype, ValueError for another shape.
    fn write(&self, py: Python<'_>, pcm: &Bound<'_, PyAny>) -> Result<(), Failure> {
        let pcm = arrays::pcm(pcm)?;
        without_gil(py, || {
            self.0.write(pcm);
            Ok(())
        })
    }

    /// Says that nothing follows for now: what waits is played to its end, and silence after it is not an underrun.
    fn pause(&self) {
        self.0.pause();
    }

    /// Fades the sound out in 5 ms, and forgets what waits. Play begins again with a new cushion.
    fn clear(&self) {
        self.0.clear();
    }

    /// Returns how much sound waits to be played, in seconds.
    fn queued(&self) -> f64 {
        self.0.queued()
    }
}
