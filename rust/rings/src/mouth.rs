//! Writes to a loudspeaker at 24 kHz.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Playback, RATE, Resampler};

/// Writes to a [`Playback`] at 24 kHz, whatever the rate of its device.
pub struct Mouth {
    playback: Arc<Playback>,
    /// None for a device of that rate. Hold it to write, pause or clear.
    resampler: Option<Mutex<Resampler>>,
}

impl Mouth {
    /// For a loudspeaker. Nothing else may write to it.
    pub fn new(playback: Arc<Playback>) -> Self {
        let resampler = (playback.rate() != RATE).then(|| Mutex::new(Resampler::new(RATE, playback.rate())));
        Self { playback, resampler }
    }

    fn resampler(&self) -> Option<MutexGuard<'_, Resampler>> {
        self.resampler.as_ref().map(|resampler| resampler.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Plays samples after those that wait; see [`Playback::write`].
    pub fn write(&self, mut pcm: Vec<f32>) {
        let mut resampler = self.resampler();
        if let Some(resampler) = &mut resampler {
            resampler.push(&pcm);
            pcm = resampler.take(usize::MAX);
        }
        self.playback.write(pcm);
    }

    /// Says that nothing follows for now; see [`Playback::pause`].
    pub fn pause(&self) {
        let mut resampler = self.resampler();
        if let Some(resampler) = &mut resampler {
            self.playback.write(resampler.finish());
        }
        self.playback.pause();
    }

    /// Fades the sound out, and forgets what waits; see [`Playback::clear`].
    pub fn clear(&self) {
        let mut resampler = self.resampler();
        if let Some(resampler) = &mut resampler {
            resampler.reset();
        }
        self.playback.clear();
    }

    /// How much sound waits, in seconds.
    pub fn queued(&self) -> f64 {
        self.playback.queued() as f64 / self.playback.rate() as f64
    }
}
