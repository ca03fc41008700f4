//! The statistics of a callback: atomics that it adds to, and that other threads read.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
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

/// The share of a clock's error that one callback corrects.
const LATE: i64 = 512;

/// In nanoseconds, 0.25 s. If a callback is later than this, the device halted, or samples were lost.
const HALTED: i64 = 250_000_000;

/// The time of a device's sample number 0, as if the device had always run at its rate. Callbacks come late, but never early, so
/// the earliest one counts. Later ones shift it slowly, since two clocks drift apart. After a halt it begins again.
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
/// In the energy a sample counts as no more than this: beside a larger one the others would not show in the sum.
const LARGEST: f32 = 1e3;
/// The part of a span's number that is kept beside its peak. It covers the spans of a year.
const SPAN_BITS: u64 = u32::MAX as u64;
/// Spans per second, and the number of spans with a known peak: those of the last minute.
const SPANS: usize = 100;
const KEPT: usize = 60 * SPANS;

/// How loud the sound was. Asking changes nothing: for the level of a span of time, subtract the sums at its beginning.
pub struct Level {
    /// The sum of the squares; the bits of an f64.
    energy: AtomicU64,
    clipped: Counter,
    /// Samples of a span.
    span: u64,
    /// The peaks of the spans, a span's number in the upper half and an f32's bits in the lower.
    peaks: Box<[AtomicU64]>,
}

/// The levels of all sound, and the peak of some of it.
pub struct Levels {
    pub peak: f32,
    pub energy: f64,
    pub clipped: u64,
}

impl Level {
    /// For sound of so many samples per second.
    pub fn new(rate: usize) -> Self {
        Self {
            energy: AtomicU64::new(0),
            clipped: Counter::default(),
            span: rate.div_ceil(SPANS).max(1) as u64,
            peaks: (0..KEPT).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Adds samples, after which `end` samples have been counted. Only the callback calls this.
    pub fn add(&self, end: u64, samples: impl Iterator<Item = f32>) {
        let (mut clipped, mut energy, mut peak) = (0, 0.0, 0f32);
        for sample in samples {
            let size = sample.abs();
            clipped += usize::from(size >= CLIPPED);
            let bounded = f64::from(size.min(LARGEST));
            energy += bounded * bounded;
            peak = peak.max(size);
        }
        self.clipped.add(clipped);
        let sum = f64::from_bits(self.energy.load(Ordering::Relaxed)) + energy;
        self.energy.store(sum.to_bits(), Ordering::Relaxed);
        let span = end / self.span;
        if let Some(slot) = self.slot(span) {
            let known = slot.load(Ordering::Relaxed);
            // The bits of floats that are not negative are in the floats' order.
            let new = (span << 32) | u64::from(peak.to_bits());
            slot.store(if known >> 32 == span & SPAN_BITS { known.max(new) } else { new }, Ordering::Relaxed);
        }
    }

    /// The sums, and the peak from sample number `since` to `end`, or a span earlier, of the last minute.
    pub fn get(&self, since: u64, end: u64) -> Levels {
        let (first, last) = (since / self.span, end / self.span);
        let spans = if since < end { first.max(last.saturating_sub(KEPT as u64 - 1))..last + 1 } else { 0..0 };
        let peak = spans.filter_map(|span| {
            let known = self.slot(span)?.load(Ordering::Relaxed);
            (known >> 32 == span & SPAN_BITS).then(|| f32::from_bits(known as u32))
        });
        Levels {
            peak: peak.fold(0.0, f32::max),
            energy: f64::from_bits(self.energy.load(Ordering::Relaxed)),
            clipped: self.clipped.get(),
        }
    }

    fn slot(&self, span: u64) -> Option<&AtomicU64> {
        self.peaks.get((span % KEPT as u64) as usize)
    }
}
