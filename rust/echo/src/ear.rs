//! A microphone without the echo of a loudspeaker: from the ring to the canceller, at 24 kHz.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rings::{Capture, Playback, Reference, Source, Taken};

use crate::{BLOCK, Canceller, ENHANCED, Enhancer, Mode};

/// The least that is whole blocks of the canceller and of the enhancer.
const WHOLE: usize = 2 * ENHANCED;
const _: () = assert!(WHOLE.is_multiple_of(BLOCK));

/// A microphone at 24 kHz. One thread reads and trims. Any thread may ask for the backlog.
pub struct Ear {
    capture: Arc<Capture>,
    state: Mutex<State>,
}

struct State {
    source: Source,
    cleaning: Option<Cleaning>,
    /// What was read last, before anything was done to it.
    heard: Vec<f32>,
}

struct Cleaning {
    canceller: Arc<Mutex<Canceller>>,
    /// None while there is no loudspeaker.
    reference: Option<Reference>,
    enhancer: Option<Arc<Mutex<Enhancer>>>,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ear {
    /// A microphone whose sound is not changed.
    pub fn new(capture: Arc<Capture>) -> Self {
        let source = Source::new(capture.clone());
        Self { capture, state: Mutex::new(State { source, cleaning: None, heard: Vec::new() }) }
    }

    /// From now on, removes the echo of a loudspeaker, and enhances the voice. Both are reset, since the devices have changed.
    pub fn clean(
        &self,
        canceller: Arc<Mutex<Canceller>>,
        playback: Option<Arc<Playback>>,
        enhancer: Option<Arc<Mutex<Enhancer>>>,
    ) {
        lock(&canceller).reset();
        if let Some(enhancer) = &enhancer {
            lock(enhancer).reset();
        }
        let reference = playback.map(|playback| Reference::new(self.capture.clone(), playback));
        lock(&self.state).cleaning = Some(Cleaning { canceller, reference, enhancer });
    }

    /// Reads must be multiples of so many samples.
    pub fn block(&self) -> usize {
        match &lock(&self.state).cleaning {
            None => 1,
            Some(Cleaning { enhancer: None, .. }) => BLOCK,
            Some(_) => WHOLE,
        }
    }

    /// Whether there is room for so many samples to wait.
    pub fn has_room(&self, count: usize) -> bool {
        lock(&self.state).source.missing(count) <= self.capture.capacity()
    }

    /// Waits for `count` samples, and takes them. None, with nothing taken, if that takes longer than `timeout`.
    ///
    /// # Panics
    ///
    /// `count` is not a multiple of [`Ear::block`].
    pub fn read(&self, count: usize, timeout: Duration) -> Option<Vec<f32>> {
        let missing = lock(&self.state).source.missing(count);
        // Wait without the lock, so that other threads may ask meanwhile.
        if !self.capture.wait(missing, timeout) {
            return None;
        }
        let mut state = lock(&self.state);
        let taken = state.source.take(count)?;
        state.heard.clone_from(&taken.pcm);
        Some(match &mut state.cleaning {
            Some(cleaning) => cleaning.apply(taken),
            None => taken.pcm,
        })
    }

    /// What was read last, before anything was done to it.
    pub fn heard(&self) -> Vec<f32> {
        lock(&self.state).heard.clone()
    }

    /// How much sound waits, in seconds.
    pub fn backlog(&self) -> f64 {
        lock(&self.state).source.backlog()
    }

    /// Forgets the oldest sound so that `keep` seconds wait. Returns how many were forgotten.
    pub fn trim(&self, keep: f64) -> f64 {
        lock(&self.state).source.trim(keep)
    }
}

impl Cleaning {
    fn apply(&mut self, taken: Taken) -> Vec<f32> {
        let Taken { mut pcm, places } = taken;
        let mut canceller = lock(&self.canceller);
        let played = match &mut self.reference {
            Some(reference) if canceller.remote().mode() != Mode::Off => {
                places.iter().flat_map(|(position, count)| reference.read(*position, *count)).collect()
            }
            _ => vec![0.0; pcm.len()],
        };
        canceller.process(&mut pcm, &played);
        if let Some(enhancer) = &self.enhancer {
            lock(enhancer).process(&mut pcm);
        }
        pcm
    }
}
