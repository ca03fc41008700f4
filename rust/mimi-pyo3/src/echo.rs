//! `EchoCanceller` removes the loudspeaker's echo. `VoiceEnhancer` suppresses noise and controls the gain. `Ear` is a
//! microphone with both.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use echo::{BLOCK, Canceller, ENHANCED, Enhancer, Mode, Remote};
use numpy::PyArray1;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::arrays;
use crate::error::Failure;
use crate::rings::{Capture, Playback, natural, seconds};
use crate::without_gil;

/// Removes the loudspeaker's echo from the microphone's sound, mono float32 at 24 kHz.
///
/// It finds delays of 20 to 600 ms, and follows them. While it removes an echo, sound comes out 64 samples (2.7 ms) late; else
/// sound passes unchanged. Sound that may be an echo is suppressed until it is known whether there is one, and while the first
/// 0.4 s of an echo are learned. One thread calls ``process``. Any thread may set ``mode`` and ask for ``stats``.
///
/// Parameters
/// ----------
/// mode : str
///     "auto": remove an echo once there is one; "on": always remove what may be an echo; "off": never.
///
/// Raises
/// ------
/// ValueError
///     There is no such mode.
#[pyclass(module = "msh_native", frozen)]
pub struct EchoCanceller {
    canceller: Arc<Mutex<Canceller>>,
    remote: Remote,
}

const MODES: [(&str, Mode); 3] = [("auto", Mode::Auto), ("on", Mode::On), ("off", Mode::Off)];

fn parse(mode: &str) -> Result<Mode, Failure> {
    let known = MODES.iter().find(|(name, _)| *name == mode);
    known
        .map(|(_, mode)| *mode)
        .ok_or_else(|| Failure::Value(format!("mode is \"{mode}\", but \"auto\", \"on\" or \"off\" is expected.")))
}

#[pymethods]
impl EchoCanceller {
    #[new]
    #[pyo3(signature = (*, mode="auto"))]
    fn new(mode: &str) -> Result<Self, Failure> {
        let canceller = Canceller::new(parse(mode)?);
        Ok(Self { remote: canceller.remote(), canceller: Arc::new(Mutex::new(canceller)) })
    }

    /// When to cancel: "auto", "on" or "off".
    #[getter]
    fn mode(&self) -> &'static str {
        let mode = self.remote.mode();
        MODES.iter().find(|(_, known)| *known == mode).map_or("auto", |(name, _)| name)
    }

    #[setter]
    fn set_mode(&self, mode: &str) -> Result<(), Failure> {
        self.remote.set_mode(parse(mode)?);
        Ok(())
    }

    /// Returns ``heard [n] float32`` without the echo of ``played [n] float32``, the sound played at the same time.
    ///
    /// Works without the GIL. ``n`` is a multiple of 64.
    ///
    /// Raises TypeError for another dtype, ValueError for another shape, RuntimeError if another thread is in a call.
    fn process<'py>(
        &self,
        py: Python<'py>,
        heard: &Bound<'_, PyAny>,
        played: &Bound<'_, PyAny>,
    ) -> Result<Bound<'py, PyArray1<f32>>, Failure> {
        let (mut heard, played) = (arrays::pcm(heard)?, arrays::pcm(played)?);
        if heard.len() != played.len() || heard.len() % BLOCK != 0 {
            return Err(Failure::Value(format!(
                "heard has {} samples and played {}, but the same multiple of {BLOCK} is expected.",
                heard.len(),
                played.len()
            )));
        }
        without_gil(py, || {
            alone(&self.canceller, "EchoCanceller")?.process(&mut heard, &played);
            Ok(())
        })?;
        Ok(PyArray1::from_vec(py, heard))
    }

    /// Forgets everything, as after a change of devices.
    fn reset(&self, py: Python<'_>) -> Result<(), Failure> {
        without_gil(py, || {
            self.canceller.lock().unwrap_or_else(PoisonError::into_inner).reset();
            Ok(())
        })
    }

    /// Returns the latest figures in a new dict.
    ///
    /// ``mode``: the mode in use; ``echo``: whether there is an echo; ``level``: how loud it is in the microphone's sound while
    /// the loudspeaker plays, in dB of full scale, ``-inf`` without one; ``removed``: how much of it is removed, in dB, 0 while
    /// sound passes unchanged; ``delay``: seconds from the loudspeaker to the microphone, NaN while unknown.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.remote.stats();
        let dict = PyDict::new(py);
        dict.set_item("mode", self.mode())?;
        dict.set_item("echo", stats.echo)?;
        dict.set_item("level", stats.level)?;
        dict.set_item("removed", stats.removed)?;
        dict.set_item("delay", stats.delay)?;
        Ok(dict)
    }
}

/// Locks an object that only one thread may use at a time.
fn alone<'a, T>(of: &'a Mutex<T>, name: &str) -> Result<MutexGuard<'a, T>, Failure> {
    of.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => {
            Failure::State(format!("This {name} is being used by another thread; give each thread one of its own."))
        }
        TryLockError::Poisoned(_) => Failure::State(format!("This {name} broke in an earlier call; make a new one.")),
    })
}

/// Suppresses steady noise behind a voice, or brings the voice to one level, or both; mono float32 at 24 kHz.
///
/// Both are WebRTC's. Its noise suppressor removes 12 dB at most, and makes sound 96 samples (4 ms) late. Its adaptive digital
/// gain control has a limiter. With neither, sound passes unchanged.
///
/// Parameters
/// ----------
/// noise_suppression, gain_control : bool
///     Which of the two to do.
#[pyclass(module = "msh_native", frozen)]
pub struct VoiceEnhancer(Arc<Mutex<Enhancer>>);

#[pymethods]
impl VoiceEnhancer {
    #[new]
    #[pyo3(signature = (*, noise_suppression=false, gain_control=false))]
    fn new(noise_suppression: bool, gain_control: bool) -> Self {
        Self(Arc::new(Mutex::new(Enhancer::new(noise_suppression, gain_control))))
    }

    /// Processes ``pcm [n] float32`` and returns ``[n] float32``. Works without the GIL. ``n`` is a multiple of 480.
    ///
    /// Raises TypeError for another dtype, ValueError for another shape, RuntimeError if another thread is in a call.
    fn process<'py>(&self, py: Python<'py>, pcm: &Bound<'_, PyAny>) -> Result<Bound<'py, PyArray1<f32>>, Failure> {
        let mut pcm = arrays::pcm(pcm)?;
        if pcm.len() % ENHANCED != 0 {
            return Err(Failure::Value(format!(
                "pcm has {} samples, but a multiple of {ENHANCED} is expected.",
                pcm.len()
            )));
        }
        without_gil(py, || {
            alone(&self.0, "VoiceEnhancer")?.process(&mut pcm);
            Ok(())
        })?;
        Ok(PyArray1::from_vec(py, pcm))
    }

    /// Forgets everything, as after a change of devices.
    fn reset(&self, py: Python<'_>) -> Result<(), Failure> {
        without_gil(py, || {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).reset();
            Ok(())
        })
    }
}

/// Reads the sound of a microphone at 24 kHz, whatever the rate of its device.
///
/// If the rates differ, sound is resampled, which makes it 4.7 ms late (7 ms from 16 kHz). One thread reads and trims. Any
/// thread may ask for ``backlog``.
///
/// Parameters
/// ----------
/// capture : Capture
///     The microphone's ring. Nothing else may read from it.
#[pyclass(module = "msh_native", frozen)]
pub struct Ear(echo::Ear);

#[pymethods]
impl Ear {
    #[new]
    fn new(capture: &Bound<'_, Capture>) -> Self {
        Self(echo::Ear::new(capture.get().0.clone()))
    }

    /// From now on, removes the echo of a loudspeaker, and enhances the voice. Both are reset first.
    ///
    /// The clocks of both devices tell what was played at the same time. They may drift apart.
    ///
    /// Parameters
    /// ----------
    /// canceller : EchoCanceller
    ///     Gets the sound that was heard and that was played.
    /// playback : Playback or None
    ///     The loudspeaker's ring, which remembers 3 s; None without a loudspeaker.
    /// enhancer : VoiceEnhancer or None
    ///     Gets the voice without the echo; None: the voice is not enhanced.
    #[pyo3(signature = (canceller, playback=None, enhancer=None))]
    fn clean(
        &self,
        py: Python<'_>,
        canceller: &Bound<'_, EchoCanceller>,
        playback: Option<&Bound<'_, Playback>>,
        enhancer: Option<&Bound<'_, VoiceEnhancer>>,
    ) -> Result<(), Failure> {
        let canceller = canceller.get().canceller.clone();
        let playback = playback.map(|playback| playback.get().0.clone());
        let enhancer = enhancer.map(|enhancer| enhancer.get().0.clone());
        without_gil(py, || {
            self.0.clean(canceller, playback, enhancer);
            Ok(())
        })
    }

    /// Waits without the GIL for ``n`` samples at 24 kHz, and takes them.
    ///
    /// ``n`` must be a multiple of 64 if an echo is removed, and of 960 if the voice is enhanced as well. Returns
    /// ``[n] float32``, or None if they have not come within ``timeout`` seconds; then nothing is taken.
    ///
    /// Raises ValueError if ``n`` is larger than the room or not such a multiple, or if ``timeout`` is negative or not finite.
    fn read<'py>(&self, py: Python<'py>, n: i64, timeout: f64) -> Result<Option<Bound<'py, PyArray1<f32>>>, Failure> {
        let (count, timeout, block) = (natural("n", n)?, seconds(timeout)?, self.0.block());
        if count % block != 0 {
            return Err(Failure::Value(format!("n is {n}, but a multiple of {block} is expected.")));
        }
        if !self.0.has_room(count) {
            return Err(Failure::Value(format!("n is {n}, but there is not so much room.")));
        }
        let pcm = without_gil(py, || Ok(self.0.read(count, timeout)))?;
        Ok(pcm.map(|pcm| PyArray1::from_vec(py, pcm)))
    }

    /// Returns the sound that was read last, before its echo was removed or its voice enhanced, ``[n] float32``.
    fn heard<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f32>> {
        PyArray1::from_vec(py, self.0.heard())
    }

    /// Returns how much sound waits, in seconds.
    fn backlog(&self) -> f64 {
        self.0.backlog()
    }

    /// Forgets the oldest sound so that ``keep`` seconds wait; nothing if less waits.
    ///
    /// The next read begins with a crossfade of 5 ms. Returns how many seconds were forgotten.
    fn trim(&self, keep: f64) -> f64 {
        self.0.trim(keep)
    }
}
