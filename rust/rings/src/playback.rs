//! From the program to the device, with the policy of the delay.
//!
//! Frames come every 80 ms or so, some late, and the device takes blocks of its own size at its own clock. The samples
//! that wait between the two are the delay. The callback lets play begin when a *cushion* waits. Every underrun enlarges
//! the cushion, every minute that would have passed with a smaller one makes it smaller.
//!
//! The cushion sets a target for the lowest fill, which is the fill just before a frame comes. The target is the part of the
//! cushion beyond that frame, a reserve, and a block of the device, because a frame that comes a moment too late for one block
//! is a whole block late. The callback measures the lowest fill in windows of 2 s. It asks the writer for a correction if three
//! windows in a row miss the target by more than a dead band (clocks drift), or if one is more than a frame above it (a burst
//! after late frames). The writer drops or repeats some milliseconds at a time, at most once for each block that is written,
//! where the sound before and after the cut matches best. Meanwhile nothing is measured. Sound that is written long before it
//! is played needs no short delay, so [`Playback::unregulated`] leaves all this out.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::blend::{Blend, splice};
use crate::device::{self, Exclusive, StreamCallback};
use crate::gauge::{Clock, Counter, Level, Timing};
use crate::ring::Ring;

/// Sound that was written and not played yet.
pub struct Playback {
    channels: NonZeroUsize,
    terms: Terms,
    /// Whether the delay is kept short.
    regulated: bool,
    ring: Ring,
    render: Exclusive<Render>,
    /// Hold it to write to the ring.
    writer: Mutex<Blend>,
    /// The callback forgets samples before this number.
    cleared_to: AtomicU64,
    /// How often `clear` was called.
    clears: AtomicU64,
    /// How many samples had been written when the writer said that nothing follows for now.
    paused_at: AtomicU64,
    /// Samples that the writer shall drop, or repeat if negative.
    correction: AtomicI64,
    counts: Counts,
    level: Level,
    timing: Timing,
    rate: usize,
    clock: Clock,
    /// The rendered sound, silence included.
    rendered: Ring,
}

#[derive(Default)]
struct Counts {
    samples: Counter,
    written: Counter,
    played: Counter,
    silent: Counter,
    underruns: Counter,
    device_underflows: Counter,
    cushion: Counter,
    lost: Counter,
    cleared: Counter,
    trimmed: Counter,
    inserted: Counter,
}

/// The counts of a [`Playback`] since it was made.
///
/// Always `written + inserted - trimmed - lost == played + cleared + queued`, unless a callback is under way.
#[derive(Clone, Debug)]
pub struct PlaybackStats {
    /// Calls of the callback.
    pub callbacks: u64,
    /// Samples rendered, silence included.
    pub samples: u64,
    /// Samples written.
    pub written: u64,
    /// Samples of these that were rendered.
    pub played: u64,
    /// Times that the sound ran dry.
    pub underruns: u64,
    /// Samples rendered between running dry and the next sound.
    pub silent: u64,
    /// Samples that did not fit when they were written.
    pub lost: u64,
    /// Samples forgotten by `clear`.
    pub cleared: u64,
    /// Samples dropped to lower the delay.
    pub trimmed: u64,
    /// Samples repeated to raise the delay.
    pub inserted: u64,
    /// The cushion, in samples.
    pub cushion: u64,
    /// How many samples wait.
    pub queued: usize,
    /// Callbacks before which the device ran dry because they came late.
    pub device_underflows: u64,
    /// Seconds since the last callback, or since the ring was made.
    pub idle: f64,
    /// The longest time between the beginnings of two callbacks, in seconds.
    pub longest_gap: f64,
    /// The longest time in a callback, in seconds.
    pub longest_callback: f64,
    /// The largest magnitude of the rendered samples in question.
    pub peak: f32,
    /// The sum of the squares of the rendered samples.
    pub energy: f64,
}

/// The policy's lengths, in samples.
#[derive(Clone, Copy)]
struct Terms {
    /// What is written at a time, and the smallest cushion.
    frame: usize,
    /// The step in which the cushion grows and shrinks.
    quarter: usize,
    largest_cushion: usize,
    fade: usize,
    /// What the lowest fill shall keep when the cushion is a frame.
    reserve: usize,
    dead_band: usize,
    shortest_splice: usize,
    longest_splice: usize,
    window: usize,
    minute: usize,
}

impl Terms {
    fn new(rate: usize, frame: usize) -> Self {
        Self {
            frame,
            quarter: frame.div_ceil(4),
            largest_cushion: 4 * frame,
            fade: crate::fade_length(rate),
            reserve: rate / 100,
            dead_band: rate / 200,
            shortest_splice: rate / 400,
            longest_splice: rate / 50,
            window: 2 * rate,
            minute: 60 * rate,
        }
    }

    /// What the lowest fill should be for blocks of so many samples.
    fn target(&self, cushion: usize, block: usize) -> usize {
        cushion.saturating_sub(self.frame).saturating_add(self.reserve).saturating_add(block)
    }
}

/// Seconds of rendered sound that are remembered.
const REMEMBERED: f64 = 4.0;

/// Windows that have to agree.
const WINDOWS: usize = 3;

/// How full the ring was while it played.
struct Watch {
    /// The lowest fill of the last complete windows, of which `complete` are valid.
    lows: [usize; WINDOWS],
    complete: usize,
    low: usize,
    elapsed: usize,
    minute_low: usize,
    minute_elapsed: usize,
}

impl Watch {
    const fn new() -> Self {
        Self { lows: [0; WINDOWS], complete: 0, low: usize::MAX, elapsed: 0, minute_low: usize::MAX, minute_elapsed: 0 }
    }

    /// The lowest fill of a whole minute, once in that minute.
    fn minute(&mut self, samples: usize, fill: usize, terms: &Terms) -> Option<usize> {
        self.minute_low = self.minute_low.min(fill);
        self.minute_elapsed = self.minute_elapsed.saturating_add(samples);
        if self.minute_elapsed < terms.minute {
            return None;
        }
        let low = self.minute_low;
        (self.minute_low, self.minute_elapsed) = (usize::MAX, 0);
        Some(low)
    }

    /// The correction on which the last windows agree, once after each window.
    fn surplus(&mut self, samples: usize, fill: usize, target: usize, terms: &Terms) -> i64 {
        self.low = self.low.min(fill);
        self.elapsed = self.elapsed.saturating_add(samples);
        if self.elapsed < terms.window {
            return 0;
        }
        let [_, b, c] = self.lows;
        self.lows = [b, c, self.low];
        self.complete = (self.complete + 1).min(WINDOWS);
        let above = self.low.saturating_sub(target);
        (self.low, self.elapsed) = (usize::MAX, 0);
        if above > terms.frame {
            // Drift cannot do that in one window, so there was a burst. Do not wait for more windows.
            return above as i64;
        }
        if self.complete < WINDOWS {
            return 0;
        }
        let [a, b, c] = self.lows;
        let above = a.min(b).min(c).saturating_sub(target);
        let below = target.saturating_sub(a.max(b).max(c));
        if above > terms.dead_band {
            above as i64
        } else if below > terms.dead_band {
            -(below as i64)
        } else {
            0
        }
    }

    /// Begins the windows again.
    fn forget_windows(&mut self) {
        (self.complete, self.low, self.elapsed) = (0, usize::MAX, 0);
    }
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    /// Silent until the cushion is full; after an underrun the silence is counted.
    Waiting {
        starved: bool,
    },
    Playing,
    /// The last sound is played backwards while it fades out.
    Fading {
        starved: bool,
        back: u64,
    },
}

/// The state of the callback.
struct Render {
    state: State,
    cushion: usize,
    /// The calls of `clear` that were obeyed.
    clears: u64,
    /// The gain, in steps of a fade's length.
    gain: usize,
    /// The largest block that the device wanted lately, half a frame at most.
    block: usize,
    watch: Watch,
}

impl Playback {
    /// The C function for the device; its user data is this object's address.
    pub const CALLBACK: StreamCallback = device::playback;

    /// A ring with room for `seconds` of sound, written in frames of `frame` samples. The error says which argument is out of
    /// range.
    pub fn new(rate: usize, channels: usize, frame: usize, seconds: f64) -> Result<Self, String> {
        let (channels, capacity) = (crate::checked(rate, channels)?, crate::capacity(rate, seconds)?);
        // The largest cushion, and a frame that comes when it is full.
        if frame < 1 || frame > capacity / 5 {
            return Err(format!(
                "frame is {frame}, but 1 to {} samples, a fifth of the room, are expected.",
                capacity / 5
            ));
        }
        let terms = Terms::new(rate, frame);
        let counts = Counts::default();
        counts.cushion.set(frame as u64);
        Ok(Self {
            channels,
            terms,
            regulated: true,
            ring: Ring::new(capacity, terms.fade),
            render: Exclusive::new(Render {
                state: State::Waiting { starved: false },
                cushion: frame,
                clears: 0,
                gain: 0,
                block: 0,
                watch: Watch::new(),
            }),
            writer: Mutex::default(),
            cleared_to: AtomicU64::new(0),
            clears: AtomicU64::new(0),
            paused_at: AtomicU64::new(0),
            correction: AtomicI64::new(0),
            counts,
            level: Level::new(rate),
            timing: Timing::new(),
            rate,
            clock: Clock::new(rate),
            rendered: Ring::new(0, (REMEMBERED * rate as f64) as usize),
        })
    }

    /// Lets sound wait as long as it likes: nothing is dropped or repeated, and only underruns change the cushion.
    #[must_use]
    pub fn unregulated(self) -> Self {
        Self { regulated: false, ..self }
    }

    /// Channels of the device.
    pub fn channels(&self) -> usize {
        self.channels.get()
    }

    /// Samples per second.
    pub fn rate(&self) -> usize {
        self.rate
    }

    /// When the device took the sample that was rendered as number 0.
    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The rendered sound, silence included.
    pub(crate) fn rendered(&self) -> &Ring {
        &self.rendered
    }

    /// Calls the callback for interleaved `output` as a device would.
    pub fn render(&self, output: &mut [f32]) {
        device::render(self, output);
    }

    /// The work of the callback on interleaved `output`, which is zero.
    pub(crate) fn give(&self, output: &mut [f32], underflow: bool) {
        self.timing.measure(|| {
            self.counts.device_underflows.add(usize::from(underflow));
            self.clock.tick(self.rendered.head());
            self.counts.samples.add(output.len() / self.channels);
            self.render.try_with(|render| render.fill(self, output));
            let first = || output.chunks_exact(self.channels.get()).map(|frame| frame.first().copied().unwrap_or(0.0));
            self.level.add(self.counts.samples.get(), first());
            self.rendered.overwrite(first());
        });
    }

    /// Adds samples to those that wait. Samples that do not fit are dropped; those that are not finite become 0.
    pub fn write(&self, mut pcm: Vec<f32>) {
        let mut blend = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.counts.written.add(pcm.len());
        for sample in pcm.iter_mut().filter(|sample| !sample.is_finite()) {
            *sample = 0.0;
        }
        blend.apply(&mut pcm);
        self.correct(&mut pcm);
        let fit = self.ring.push(pcm.iter().copied());
        blend.advance(fit);
        let lost = &pcm[fit..];
        self.counts.lost.add(lost.len());
        // While nothing fits, what would have followed the last sample in the ring stays the same.
        if !lost.is_empty() && (fit > 0 || blend.is_over()) {
            blend.begin(lost[..lost.len().min(self.terms.fade)].to_vec());
        }
    }

    /// Does a step of the correction that the callback asks for.
    fn correct(&self, pcm: &mut Vec<f32>) {
        let wanted = self.correction.load(Ordering::Relaxed);
        if wanted == 0 {
            return;
        }
        let (left, terms) = (wanted.unsigned_abs() as usize, &self.terms);
        let most = (left + terms.shortest_splice).min(terms.longest_splice).min(pcm.len() / 4);
        let least = (most / 2).max(terms.shortest_splice);
        let Some(done) = splice(pcm, wanted > 0, least..=most, terms.fade) else { return };
        if wanted > 0 { &self.counts.trimmed } else { &self.counts.inserted }.add(done);
        let left = left.saturating_sub(done);
        let left = if left <= terms.shortest_splice { 0 } else { left as i64 * wanted.signum() };
        // It fails when the callback has withdrawn the correction.
        let _ = self.correction.compare_exchange(wanted, left, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// How many samples wait.
    pub fn queued(&self) -> usize {
        let from = self.ring.tail().max(self.cleared_to.load(Ordering::Acquire));
        self.ring.head().saturating_sub(from) as usize
    }

    /// Fades the sound out, and forgets what waits.
    pub fn clear(&self) {
        let mut blend = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        *blend = Blend::default();
        self.cleared_to.store(self.ring.head(), Ordering::Release);
        self.clears.fetch_add(1, Ordering::Release);
    }

    /// Says that nothing follows for now: what waits is played, and silence after it is not an underrun.
    pub fn pause(&self) {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.paused_at.store(self.ring.head(), Ordering::Release);
    }

    /// The counts, and the peak of the rendered sound from sample number `since` on, or 10 ms earlier, in the last minute.
    pub fn stats(&self, since: u64) -> PlaybackStats {
        let (times, counts) = (self.timing.get(), &self.counts);
        let samples = counts.samples.get();
        let levels = self.level.get(since, samples);
        let queued = self.queued();
        PlaybackStats {
            callbacks: times.callbacks,
            samples,
            written: counts.written.get(),
            played: counts.played.get(),
            underruns: counts.underruns.get(),
            silent: counts.silent.get(),
            lost: counts.lost.get(),
            // What the callback is still going to skip is forgotten already.
            cleared: counts.cleared.get() + self.ring.len().saturating_sub(queued) as u64,
            trimmed: counts.trimmed.get(),
            inserted: counts.inserted.get(),
            cushion: counts.cushion.get(),
            queued,
            device_underflows: counts.device_underflows.get(),
            idle: times.idle,
            longest_gap: times.longest_gap,
            longest_callback: times.longest_callback,
            peak: levels.peak,
            energy: levels.energy,
        }
    }
}

impl Render {
    /// Fills `output`, which is silent; runs in the callback.
    fn fill(&mut self, shared: &Playback, output: &mut [f32]) {
        let (ring, terms, counts) = (&shared.ring, &shared.terms, &shared.counts);
        // Read in this order: if a clear is seen, so is its mark, and no mark is beyond the head.
        let clears = shared.clears.load(Ordering::Acquire);
        let cleared_to = shared.cleared_to.load(Ordering::Acquire);
        let paused_at = shared.paused_at.load(Ordering::Acquire);
        let head = ring.head();
        let paused = paused_at == head;
        // Silence is not an underrun as long as nothing was written since.
        let calm = paused || cleared_to == head;
        let rendered = output.len() / shared.channels;
        if clears != self.clears {
            self.clears = clears;
            if self.state == State::Playing {
                self.state = State::Fading { starved: false, back: 0 };
            }
        }
        let mut times = output.chunks_exact_mut(shared.channels.get());
        while times.len() > 0 {
            let tail = ring.tail();
            let queued = head.saturating_sub(tail) as usize;
            match self.state {
                State::Waiting { starved } => {
                    if cleared_to > tail {
                        counts.cleared.add(cleared_to.saturating_sub(tail) as usize);
                        ring.advance_to(cleared_to);
                        continue;
                    }
                    if queued >= self.cushion || (paused && queued > 0) {
                        self.state = State::Playing;
                        self.watch = Watch::new();
                        shared.correction.store(0, Ordering::Relaxed);
                        continue;
                    }
                    let starved = starved && !calm;
                    self.state = State::Waiting { starved };
                    if starved {
                        counts.silent.add(times.len());
                    }
                    break;
                }
                State::Playing if queued == 0 => {
                    let starved = !calm;
                    if starved {
                        counts.underruns.add(1);
                        self.set_cushion(shared, self.cushion.saturating_add(terms.quarter).min(terms.largest_cushion));
                    }
                    self.state = State::Fading { starved, back: 0 };
                }
                State::Playing => {
                    let count = queued.min(times.len());
                    for (sample, channels) in ring.samples(tail, count).zip(times.by_ref()) {
                        self.gain = self.gain.saturating_add(1).min(terms.fade);
                        channels.fill((sample * self.factor(terms)).clamp(-1.0, 1.0));
                    }
                    counts.played.add(count);
                    ring.advance_to(tail.wrapping_add(count as u64));
                }
                State::Fading { starved, back } => {
                    let count = self.gain.min(times.len());
                    let end = tail.wrapping_sub(back);
                    let history = ring.samples(end.wrapping_sub(count as u64), count);
                    for (sample, channels) in history.rev().zip(times.by_ref()) {
                        self.gain = self.gain.saturating_sub(1);
                        channels.fill((sample * self.factor(terms)).clamp(-1.0, 1.0));
                    }
                    if starved {
                        counts.silent.add(count);
                    }
                    self.state = if self.gain == 0 {
                        State::Waiting { starved }
                    } else {
                        State::Fading { starved, back: back.wrapping_add(count as u64) }
                    };
                }
            }
        }
        if self.state == State::Playing && shared.regulated {
            self.regulate(shared, rendered, head.saturating_sub(ring.tail()) as usize);
        }
    }

    fn factor(&self, terms: &Terms) -> f32 {
        self.gain as f32 / terms.fade as f32
    }

    fn set_cushion(&mut self, shared: &Playback, cushion: usize) {
        self.cushion = cushion;
        shared.counts.cushion.set(cushion as u64);
    }

    /// Looks at the fill after `samples` were played.
    fn regulate(&mut self, shared: &Playback, samples: usize, fill: usize) {
        let terms = &shared.terms;
        self.block = self.block.max(samples.min(terms.frame / 2));
        if let Some(low) = self.watch.minute(samples, fill, terms) {
            if low >= terms.quarter.saturating_add(terms.reserve).saturating_add(self.block) {
                self.set_cushion(shared, self.cushion.saturating_sub(terms.quarter).max(terms.frame));
            }
            self.block = 0;
        }
        if shared.correction.load(Ordering::Relaxed) != 0 {
            self.watch.forget_windows();
            return;
        }
        let surplus = self.watch.surplus(samples, fill, terms.target(self.cushion, self.block), terms);
        if surplus != 0 {
            shared.correction.store(surplus, Ordering::Relaxed);
        }
    }
}
