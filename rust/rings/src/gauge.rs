//! What a callback counts for the statistics: atomics that it adds to and that others read.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

/// A counter with a single writer or several.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, count: usize) {
        self.0.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub fn set(&self, count: u64) {
        self.0.store(count, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn raise(&self, value: u64) {
        self.0.fetch_max(value, Ordering::Relaxed);
    }

    fn take(&self) -> u64 {
        self.0.swap(0, Ordering::Relaxed)
    }
}

/// When callbacks began and how long they took, on the monotonic clock.
pub struct Timing {
    start: Instant,
    callbacks: Counter,
    last: Counter,
    gap: Counter,
    duration: Counter,
}

/// Times in seconds.
pub struct Times {
    pub callbacks: u64,
    pub idle: f64,
    pub longest_gap: f64,
    pub longest_callback: f64,
}

impl Timing {
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
            callbacks: Counter::default(),
            last: Counter::default(),
            gap: Counter::default(),
            duration: Counter::default(),
        }
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// Runs a callback's `work`.
    pub fn measure(&self, work: impl FnOnce()) {
        let begin = self.now();
        if self.callbacks.get() > 0 {
            self.gap.raise(begin.saturating_sub(self.last.get()));
        }
        self.last.set(begin);
        self.callbacks.add(1);
        work();
        self.duration.raise(self.now().saturating_sub(begin));
    }

    pub fn get(&self) -> Times {
        let seconds = |nanoseconds| nanoseconds as f64 / 1e9;
        Times {
            callbacks: self.callbacks.get(),
            idle: seconds(self.now().saturating_sub(self.last.get())),
            longest_gap: seconds(self.gap.get()),
            longest_callback: seconds(self.duration.get()),
        }
    }
}

/// Nanoseconds on a clock that all devices share.
fn shared_now() -> i64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as i64
}

/// How far a clock that counts samples is followed in one callback, as a fraction of what it is off.
const LATE: i64 = 512;

/// A callback that is later than this, in nanoseconds, comes after the device halted, or after samples were lost: 0.25 s.
const HALTED: i64 = 250_000_000;

/// When a device's sample number 0 was, or would have been, at its rate: callbacks come late, never early, so the earliest
/// is believed; and slowly later ones, since two clocks drift apart. After a halt the count begins anew.
pub struct Clock {
    rate: i64,
    zero: AtomicI64,
}

/// No callback came yet.
const UNKNOWN: i64 = i64::MAX;

impl Clock {
    /// For a device of so many samples per second.
    pub fn new(rate: usize) -> Self {
        Self { rate: rate.max(1) as i64, zero: AtomicI64::new(UNKNOWN) }
    }

    /// A callback begins when `samples` have been taken or given before it.
    pub fn tick(&self, samples: u64) {
        let zero = shared_now().saturating_sub((samples as i64).saturating_mul(1_000_000_000) / self.rate);
        let known = self.zero.load(Ordering::Relaxed);
        let late = zero.saturating_sub(known);
        let zero = if (0..HALTED).contains(&late) { known.saturating_add(late / LATE) } else { zero };
        self.zero.store(zero, Ordering::Relaxed);
    }

    /// When sample number 0 was, in seconds of the shared clock.
    pub fn zero(&self) -> Option<f64> {
        let zero = self.zero.load(Ordering::Relaxed);
        (zero != UNKNOWN).then_some(zero as f64 / 1e9)
    }
}

/// A sample counts as clipped from here.
const CLIPPED: f32 = 0.999;
/// The energy is summed in fractions of this size.
const ENERGY_UNIT: f64 = 1.0 / (1u64 << 32) as f64;

/// How loud the sound was since somebody asked last.
#[derive(Default)]
pub struct Level {
    samples: Counter,
    energy: Counter,
    clipped: Counter,
    peak: AtomicU32,
}

/// The levels of one span.
pub struct Levels {
    pub peak: f32,
    pub rms: f64,
    pub clipped: u64,
}

impl Level {
    /// Adds a block's samples.
    pub fn add(&self, samples: impl Iterator<Item = f32>) {
        let (mut count, mut clipped, mut energy, mut peak) = (0, 0, 0.0, 0f32);
        for sample in samples {
            let size = sample.abs();
            count += 1;
            clipped += usize::from(size >= CLIPPED);
            energy += f64::from(size) * f64::from(size);
            peak = peak.max(size);
        }
        self.samples.add(count);
        self.clipped.add(clipped);
        self.energy.add((energy / ENERGY_UNIT) as usize);
        // The bits of floats that are not negative are in the floats' order.
        self.peak.fetch_max(peak.to_bits(), Ordering::Relaxed);
    }

    /// The levels since the last call; the next span begins.
    pub fn take(&self) -> Levels {
        let samples = self.samples.take().max(1) as f64;
        Levels {
            peak: f32::from_bits(self.peak.swap(0, Ordering::Relaxed)),
            rms: (self.energy.take() as f64 * ENERGY_UNIT / samples).sqrt(),
            clipped: self.clipped.take(),
        }
    }
}
