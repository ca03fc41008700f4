//! From the device to the program.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::blend::Blend;
use crate::device::{self, Exclusive, StreamCallback};
use crate::gauge::{Clock, Counter, Level, Timing};
use crate::mixer::Mixer;
use crate::ring::Ring;

/// Sound from a microphone that has not been read yet.
pub struct Capture {
    rate: usize,
    channels: NonZeroUsize,
    fade: usize,
    ring: Ring,
    /// Hold it to write to the ring.
    hearing: Exclusive<Hearing>,
    /// Hold it to take from the ring.
    reader: Mutex<Blend>,
    samples: Counter,
    lost: Counter,
    overflows: Counter,
    zeros: Counter,
    /// For each channel, whether it was left out.
    left_out: Box<[AtomicBool]>,
    level: Level,
    timing: Timing,
    clock: Clock,
}

/// The counts of a [`Capture`] since it was made.
#[derive(Clone, Debug)]
pub struct CaptureStats {
    /// Calls of the callback.
    pub callbacks: u64,
    /// Samples heard.
    pub samples: u64,
    /// Samples that came while the ring was full.
    pub lost: u64,
    /// Callbacks before which the device lost some input.
    pub device_overflows: u64,
    /// Seconds since the last callback, or since the ring was made.
    pub idle: f64,
    /// The longest time between the beginnings of two callbacks, in seconds.
    pub longest_gap: f64,
    /// The longest time in a callback, in seconds.
    pub longest_callback: f64,
    /// The largest magnitude of the samples in question.
    pub peak: f32,
    /// The sum of the samples' squares.
    pub energy: f64,
    /// Samples of magnitude 0.999 or more.
    pub clipped: u64,
    /// The length of the run of exact zeros that the sound ends with, in seconds.
    pub all_zero_seconds: f64,
    /// The channels, from 0, that were left out because they were in opposite phase to another.
    pub left_out: Vec<usize>,
}

/// State of the device's thread alone.
struct Hearing {
    mixer: Mixer,
    /// The zeros in a row up to now.
    zeros: u64,
}

impl Capture {
    /// The C function for the device; its user data is this object's address.
    pub const CALLBACK: StreamCallback = device::capture;

    /// A ring with room for `seconds` of sound. The error says which argument is out of range.
    pub fn new(rate: usize, channels: usize, seconds: f64) -> Result<Self, String> {
        let mixer = Mixer::new(rate, channels)?;
        let (channels, capacity) = (crate::checked(rate, channels)?, crate::capacity(rate, seconds)?);
        Ok(Self {
            rate,
            channels,
            fade: crate::fade_length(rate),
            ring: Ring::new(capacity, 0),
            hearing: Exclusive::new(Hearing { mixer, zeros: 0 }),
            reader: Mutex::default(),
            samples: Counter::default(),
            lost: Counter::default(),
            overflows: Counter::default(),
            zeros: Counter::default(),
            left_out: (0..channels.get()).map(|_| AtomicBool::new(false)).collect(),
            level: Level::new(rate),
            timing: Timing::new(),
            clock: Clock::new(rate),
        })
    }

    /// Channels of the device.
    pub fn channels(&self) -> usize {
        self.channels.get()
    }

    /// Samples per second.
    pub fn rate(&self) -> usize {
        self.rate
    }

    /// When the device gave the sample that is read as number 0.
    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The number of the sample that is read next, counted from the first that was heard.
    pub fn position(&self) -> u64 {
        self.ring.tail()
    }

    /// How many samples can wait at most.
    pub fn capacity(&self) -> usize {
        self.ring.capacity()
    }

    /// Calls the callback with interleaved `input` as a device would.
    pub fn feed(&self, input: &[f32]) {
        device::feed(self, input);
    }

    /// The work of the callback on interleaved `input`.
    pub(crate) fn take(&self, input: &[f32], overflow: bool) {
        self.timing.measure(|| {
            let heard = input.len() / self.channels;
            // Numbers are those of the ring, which does not count lost samples. The block was complete when it was given.
            self.clock.tick(self.ring.head().saturating_add(heard as u64));
            self.overflows.add(usize::from(overflow));
            self.samples.add(heard);
            let pushed = self.hearing.try_with(|hearing| self.mix(hearing, input));
            self.lost.add(heard.saturating_sub(pushed.unwrap_or(0)));
        });
    }

    /// Mixes `input` into the ring, and says how many samples there was room for.
    fn mix(&self, hearing: &mut Hearing, input: &[f32]) -> usize {
        let mut block = [0.0; 256];
        let mut pushed = 0;
        for part in input.chunks(block.len() * self.channels.get()) {
            let times = part.chunks_exact(self.channels.get());
            let mixed = &mut block[..times.len()];
            for (sample, channels) in mixed.iter_mut().zip(times) {
                *sample = hearing.mixer.mix(channels);
                hearing.zeros = if *sample == 0.0 { hearing.zeros.saturating_add(1) } else { 0 };
            }
            self.level.add(self.samples.get(), mixed.iter().copied());
            pushed += self.ring.push(mixed.iter().copied());
        }
        self.zeros.set(hearing.zeros);
        for channel in hearing.mixer.left_out() {
            self.left_out[channel].store(true, Ordering::Relaxed);
        }
        pushed
    }

    /// How many samples wait.
    pub fn available(&self) -> usize {
        self.ring.len()
    }

    /// Waits for `count` samples, and takes them. None, with nothing taken, if that takes longer than `timeout`.
    pub fn read(&self, count: usize, timeout: Duration) -> Option<Vec<f32>> {
        let begin = Instant::now();
        while self.wait(count, timeout.saturating_sub(begin.elapsed())) {
            if let Some(pcm) = self.try_read(count) {
                return Some(pcm);
            }
        }
        None
    }

    /// Waits for `count` samples, at most for `timeout`, and says whether they have come.
    pub fn wait(&self, count: usize, timeout: Duration) -> bool {
        let begin = Instant::now();
        while self.available() < count {
            let Some(left) = timeout.checked_sub(begin.elapsed()).filter(|left| !left.is_zero()) else { return false };
            let missing = count.saturating_sub(self.available()) as f64 / self.rate as f64;
            thread::sleep(Duration::from_secs_f64(missing.clamp(0.001, 0.002)).min(left));
        }
        true
    }

    fn try_read(&self, count: usize) -> Option<Vec<f32>> {
        let mut blend = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        if self.ring.len() < count {
            return None;
        }
        let pcm = self.next(&blend, count);
        blend.advance(count);
        self.ring.advance_to(self.ring.tail() + count as u64);
        Some(pcm)
    }

    /// The samples that come next.
    fn next(&self, blend: &Blend, count: usize) -> Vec<f32> {
        let mut pcm: Vec<f32> = self.ring.samples(self.ring.tail(), count).collect();
        blend.apply(&mut pcm);
        pcm
    }

    /// Forgets the oldest samples so that `keep` wait, and returns how many were forgotten. The next read begins with a
    /// crossfade.
    pub fn trim(&self, keep: usize) -> usize {
        let mut blend = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = self.ring.len();
        let dropped = waiting.saturating_sub(keep);
        if dropped > 0 {
            let old = self.next(&blend, self.fade.min(waiting));
            blend.begin(old);
            self.ring.advance_to(self.ring.tail() + dropped as u64);
        }
        dropped
    }

    /// The counts, and the peak of the sound from sample number `since` on, or 10 ms earlier, in the last minute.
    pub fn stats(&self, since: u64) -> CaptureStats {
        let (times, samples) = (self.timing.get(), self.samples.get());
        let levels = self.level.get(since, samples);
        CaptureStats {
            callbacks: times.callbacks,
            samples,
            lost: self.lost.get(),
            device_overflows: self.overflows.get(),
            idle: times.idle,
            longest_gap: times.longest_gap,
            longest_callback: times.longest_callback,
            peak: levels.peak,
            energy: levels.energy,
            clipped: levels.clipped,
            all_zero_seconds: self.zeros.get() as f64 / self.rate as f64,
            left_out: (0..self.channels.get()).filter(|i| self.left_out[*i].load(Ordering::Relaxed)).collect(),
        }
    }
}
