//! The microphone's sound at 24 kHz, with its place in the sound of the capture.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::{Capture, RATE, Resampler};

/// Takes the sound of a [`Capture`] at 24 kHz; for one thread.
pub struct Source {
    capture: Arc<Capture>,
    /// None for a device of that rate.
    resampler: Option<Resampler>,
    /// Where the sound begins, as if the sound forgotten up to the next sample had come before it.
    begin: u64,
    /// Samples at 24 kHz that were taken.
    taken: u64,
    /// Where samples were forgotten, and how many, beyond what was taken.
    cuts: VecDeque<(u64, u64)>,
}

/// Sound at 24 kHz, and its parts: the sample of the capture at which each begins, and its length at 24 kHz. There are several
/// if sound between them was forgotten.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Taken {
    /// The sound.
    pub pcm: Vec<f32>,
    /// The parts.
    pub places: Vec<(f64, usize)>,
}

impl Source {
    /// From the sample that would be read next.
    pub fn new(capture: Arc<Capture>) -> Self {
        let resampler = (capture.rate() != RATE).then(|| Resampler::new(capture.rate(), RATE));
        Self { resampler, begin: capture.position(), taken: 0, cuts: VecDeque::new(), capture }
    }

    /// How many samples must wait in the capture so that `count` can be taken.
    pub fn missing(&self, count: usize) -> usize {
        self.resampler.as_ref().map_or(count, |resampler| resampler.missing(count))
    }

    /// Takes the next `count` samples. None, with nothing taken, if they are not there yet.
    pub fn take(&mut self, count: usize) -> Option<Taken> {
        let mut pcm = self.capture.read(self.missing(count), Duration::ZERO)?;
        if let Some(resampler) = &mut self.resampler {
            resampler.push(&pcm);
            pcm = resampler.take(count);
        }
        Some(Taken { pcm, places: self.places(count) })
    }

    /// Where the next `count` samples are; goes on behind them.
    fn places(&mut self, mut count: usize) -> Vec<(f64, usize)> {
        let step = self.capture.rate() as f64 / RATE as f64;
        let mut places = Vec::new();
        while count > 0 {
            let position = |begin: u64| begin as f64 + self.taken as f64 * step;
            while let Some((at, forgotten)) = self.cuts.front().copied() {
                if position(self.begin) < at as f64 {
                    break;
                }
                self.begin += forgotten;
                self.cuts.pop_front();
            }
            let position = position(self.begin);
            let until = self.cuts.front().map_or(count, |cut| ((cut.0 as f64 - position) / step).ceil() as usize);
            let part = count.min(until);
            places.push((position, part));
            self.taken += part as u64;
            count -= part;
        }
        places
    }

    /// How much sound waits, in seconds.
    pub fn backlog(&self) -> f64 {
        self.capture.available() as f64 / self.capture.rate() as f64 + self.ready()
    }

    /// Forgets the oldest sound so that `keep` seconds wait, with a crossfade at the cut. Returns how many were forgotten.
    pub fn trim(&mut self, keep: f64) -> f64 {
        let rate = self.capture.rate() as f64;
        let position = self.capture.position();
        let forgotten = self.capture.trim(((keep - self.ready()) * rate).round().max(0.0) as usize);
        if forgotten > 0 {
            self.cuts.push_back((position, forgotten as u64));
        }
        forgotten as f64 / rate
    }

    /// Seconds of sound that was read already and can be taken.
    fn ready(&self) -> f64 {
        self.resampler.as_ref().map_or(0, Resampler::ready) as f64 / RATE as f64
    }
}
