//! Removes the loudspeaker's echo from the microphone's sound: 24 kHz, mono.
//!
//! ```text
//! heard, played ─▶ DelayFinder ─▶ played, as late as its echo ─▶ AEC3 (Kalman filter, suppressor) ─▶ clean
//! ```
//!
//! The canceller is WebRTC's AEC3, as ported in the crate `aec3`, on blocks of 64 samples. Its single band covers the whole of
//! 0 to 12 kHz here. AEC3 takes it for sound at 16 kHz, but that only changes units: nothing is split, resampled or lost. AEC3's
//! own search for the delay takes seconds if the loop is long; [`DelayFinder`] takes a fraction of a second. AEC3's own main
//! filter takes seconds to learn a room; the filter in `rust/vendor/aec3` needs a word or two.
//!
//! In the first words of a conversation it is not known whether there is an echo. Until then, sound that may be an echo is
//! suppressed: sound that is louder than what was heard before these words. Sound is also suppressed while the filter learns
//! from the first 0.4 s of an echo. Once it is known that there is no echo, sound passes unchanged.

mod delay;
mod ear;
mod enhance;
mod presence;

use std::array;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

use aec3::api::EchoCanceller3Config;
use aec3::audio_processing::aec3::block::Block;
use aec3::audio_processing::aec3::block_processor::BlockProcessor;

pub use delay::{DelayFinder, Evidence, FRAME};
pub use ear::Ear;
pub use enhance::{ENHANCED, Enhancer};
use presence::{GONE, Presence};
pub use rings::RATE;

/// Samples that are processed at a time. Sound from which an echo is removed is late by as much.
pub const BLOCK: usize = 64;
/// AEC3 calculates in units of 16-bit sound.
const SCALE: f32 = 32_768.0;
/// The rate at which AEC3 has a single band.
const NOMINAL_RATE: i32 = 16_000;
/// The linear filter: 149 ms.
const FILTER_BLOCKS: usize = 56;
/// How loud an echo may remain beside sound that masks it, while nobody else speaks: as a share of the release's value.
const STRICT: f32 = 0.4;
/// The filter begins so many samples before the direct sound.
const HEADROOM: usize = 256;
/// The longest delay, in samples.
const LONGEST: usize = 15_000;
/// The gain of sound that may be an echo, as long as that is not known, or while the filter learns.
const HELD_BACK: f32 = 0.03;
/// Blocks of sound from the loudspeaker from which the filter has learned enough: 0.4 s.
const LEARNED: usize = 2 * RATE / BLOCK / 5;
/// Blocks after such sound in which the room may still answer: 0.25 s.
const REVERBERANT: usize = RATE / BLOCK / 4;
/// A block's mean square from which a loudspeaker is active: -55 dBFS.
const ACTIVE: f32 = 3e-6;
/// How much a block changes the figures. They follow within a second.
const FOLLOW: f32 = BLOCK as f32 / RATE as f32;

/// When to cancel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// While there is an echo. Else sound passes unchanged.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// The latest figures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stats {
    /// Whether there is an echo.
    pub echo: bool,
    /// The echo in the microphone's sound while the loudspeaker plays, in dB of full scale; `-inf` without one.
    pub level: f32,
    /// How much of it is removed, in dB; 0 while sound passes unchanged.
    pub removed: f32,
    /// Seconds from the loudspeaker to the microphone; NaN while that is not known.
    pub delay: f32,
}

/// The figures, for any thread.
#[derive(Debug)]
struct Board {
    mode: AtomicU8,
    echo: AtomicBool,
    level: AtomicU32,
    removed: AtomicU32,
    delay: AtomicU32,
}

/// The state of the thread that reads the microphone.
pub struct Canceller {
    finder: DelayFinder,
    processor: BlockProcessor,
    board: Arc<Board>,
    /// What was played, the newest last.
    played: VecDeque<f32>,
    heard_frame: Vec<f32>,
    played_frame: Vec<f32>,
    render: Block,
    capture: Block,
    linear: Block,
    /// How many samples the played sound is delayed.
    delay: usize,
    /// Whether that number has just changed.
    moved: bool,
    presence: Presence,
    /// Frames in a row that spoke against an echo.
    against: usize,
    /// Blocks since the loudspeaker was last active.
    quiet_blocks: usize,
    /// Whether the output is that of the canceller.
    cancelling: bool,
    heard_power: f32,
    clean_power: f32,
    echo_power: f32,
}

/// Sets the mode and reads the figures while another thread cancels.
#[derive(Clone, Debug)]
pub struct Remote(Arc<Board>);

impl Remote {
    /// Changes the mode from the next frame on.
    pub fn set_mode(&self, mode: Mode) {
        self.0.mode.store(mode as u8, Ordering::Relaxed);
    }

    /// The mode.
    pub fn mode(&self) -> Mode {
        [Mode::Auto, Mode::On, Mode::Off][usize::from(self.0.mode.load(Ordering::Relaxed)).min(2)]
    }

    /// The figures.
    pub fn stats(&self) -> Stats {
        let load = |number: &AtomicU32| f32::from_bits(number.load(Ordering::Relaxed));
        Stats {
            echo: self.0.echo.load(Ordering::Relaxed),
            level: load(&self.0.level),
            removed: load(&self.0.removed),
            delay: load(&self.0.delay),
        }
    }
}

fn settings() -> EchoCanceller3Config {
    let mut config = EchoCanceller3Config::default();
    config.delay.use_external_delay_estimator = true;
    config.delay.delay_headroom_samples = 0;
    (config.filter.main.length_blocks, config.filter.main_initial.length_blocks) = (FILTER_BLOCKS, FILTER_BLOCKS);
    // The main filter is better here than the release expects of its own, and so is the model of the room behind it. Both leave
    // less to the suppressor.
    (config.erle.max_l, config.erle.max_h) = (50.0, 16.0);
    let tuning = &mut config.suppressor.normal_tuning;
    for mask in [&mut tuning.mask_lf, &mut tuning.mask_hf] {
        mask.enr_transparent *= STRICT;
        mask.enr_suppress *= STRICT;
    }
    // A room's decay from block to block, until it is known; blocks are shorter here.
    config.ep_strength.default_len = config.ep_strength.default_len.powf(NOMINAL_RATE as f32 / RATE as f32);
    config
}

fn processor() -> BlockProcessor {
    let mut processor = BlockProcessor::new(settings(), NOMINAL_RATE, 1, 1);
    processor.set_audio_buffer_delay(0);
    processor
}

/// What a device can have heard or played, of whatever there is.
fn sane(sample: &f32) -> f32 {
    if sample.is_nan() { 0.0 } else { sample.clamp(-1.0, 1.0) }
}

/// The mean square.
fn power<'a>(pcm: impl IntoIterator<Item = &'a f32, IntoIter: ExactSizeIterator>) -> f32 {
    let pcm = pcm.into_iter();
    let count = pcm.len();
    pcm.map(|x| x * x).sum::<f32>() / count as f32
}

impl Default for Canceller {
    fn default() -> Self {
        Self::new(Mode::default())
    }
}

impl Canceller {
    /// A canceller that has heard nothing.
    pub fn new(mode: Mode) -> Self {
        let board = Board {
            mode: AtomicU8::new(mode as u8),
            echo: AtomicBool::new(false),
            level: AtomicU32::new(f32::NEG_INFINITY.to_bits()),
            removed: AtomicU32::new(0),
            delay: AtomicU32::new(f32::NAN.to_bits()),
        };
        Self {
            finder: DelayFinder::new(),
            processor: processor(),
            board: Arc::new(board),
            played: vec![0.0; LONGEST + FRAME].into(),
            heard_frame: Vec::with_capacity(FRAME),
            played_frame: Vec::with_capacity(FRAME),
            render: Block::new(1, 1),
            capture: Block::new(1, 1),
            linear: Block::new(1, 1),
            delay: 0,
            moved: false,
            presence: Presence::START,
            against: 0,
            quiet_blocks: 0,
            cancelling: false,
            heard_power: 0.0,
            clean_power: 0.0,
            echo_power: 0.0,
        }
    }

    /// A handle for another thread.
    pub fn remote(&self) -> Remote {
        Remote(self.board.clone())
    }

    /// Forgets everything, as after a change of devices.
    pub fn reset(&mut self) {
        self.finder.reset();
        self.processor = processor();
        self.played.iter_mut().for_each(|sample| *sample = 0.0);
        self.heard_frame.clear();
        self.played_frame.clear();
        (self.delay, self.presence, self.against) = (0, Presence::START, 0);
        (self.heard_power, self.clean_power, self.echo_power) = (0.0, 0.0, 0.0);
        self.tell();
    }

    /// Removes the echo of `played` from `pcm`, the sound that was heard at the same time.
    ///
    /// # Panics
    ///
    /// The two differ in length, or their length is not a multiple of [`BLOCK`].
    pub fn process(&mut self, pcm: &mut [f32], played: &[f32]) {
        assert!(pcm.len() == played.len() && pcm.len().is_multiple_of(BLOCK), "whole blocks of both are expected");
        let mode = self.remote().mode();
        if mode == Mode::Off {
            self.cancelling = false;
            return;
        }
        let mut at = 0;
        while at < pcm.len() {
            let count = (FRAME - self.heard_frame.len()).min(pcm.len() - at);
            self.heard_frame.extend(pcm[at..at + count].iter().map(sane));
            self.played_frame.extend(played[at..at + count].iter().map(sane));
            if self.heard_frame.len() == FRAME {
                let evidence = self.finder.push(&self.heard_frame, &self.played_frame);
                let power = power(&self.heard_frame);
                self.heard_frame.clear();
                self.played_frame.clear();
                self.weigh(evidence, power);
            }
            at += count;
        }
        for (heard, played) in pcm.chunks_exact_mut(BLOCK).zip(played.chunks_exact(BLOCK)) {
            self.cancel(heard, played, mode == Mode::On || self.presence.is_possible());
        }
        self.tell();
    }

    /// Decides whether there is an echo, and how late it is, from the finder's result for a frame and the frame's power.
    fn weigh(&mut self, evidence: Evidence, power: f32) {
        match evidence {
            Evidence::Nothing | Evidence::Unclear => {}
            Evidence::NoEcho | Evidence::Silence => {
                self.against += 1;
                if self.against == GONE {
                    self.finder.forget();
                }
            }
            Evidence::Echo(delay) => {
                self.against = 0;
                if self.presence.follows(delay, self.delay + HEADROOM) {
                    self.moved = true;
                    self.delay = delay.saturating_sub(HEADROOM).min(LONGEST);
                }
            }
        }
        self.presence = self.presence.after(evidence, power, self.against);
    }

    fn cancel(&mut self, heard: &mut [f32], played: &[f32], cancelling: bool) {
        for sample in played {
            self.played.pop_front();
            self.played.push_back(sane(sample));
        }
        let from = self.played.len() - self.delay - BLOCK;
        for (to, sample) in self.render.view_mut(0, 0).iter_mut().zip(self.played.range(from..)) {
            *to = SCALE * sample;
        }
        let mut clipped = false;
        for (to, sample) in self.capture.view_mut(0, 0).iter_mut().zip(heard.iter()) {
            *to = SCALE * sane(sample);
            clipped |= sample.abs() >= 0.999;
        }
        self.processor.buffer_render(&self.render);
        self.processor.process_capture(
            std::mem::take(&mut self.moved),
            clipped,
            Some(&mut self.linear),
            &mut self.capture,
        );
        let render = power(self.render.view(0, 0)) / (SCALE * SCALE);
        self.quiet_blocks += 1;
        if render > ACTIVE {
            self.quiet_blocks = 0;
            let linear = self.linear.view(0, 0);
            let all: [f32; BLOCK] = array::from_fn(|i| sane(&heard[i]));
            let echo = power(&array::from_fn::<f32, BLOCK, _>(|i| all[i] - linear[i] / SCALE));
            let all = power(&all);
            // Blocks in which somebody speaks say little of the echo.
            if 2.0 * echo > all {
                let clean = power(self.capture.view(0, 0)) / (SCALE * SCALE);
                for (mean, new) in
                    [(&mut self.heard_power, all), (&mut self.clean_power, clean), (&mut self.echo_power, echo)]
                {
                    *mean += FOLLOW * (new - *mean);
                }
            }
        }
        let held_back = match &mut self.presence {
            Presence::Unknown { suspicious, .. } => *suspicious,
            Presence::Absent => false,
            Presence::Present { learned, .. } => {
                *learned += usize::from(render > ACTIVE);
                *learned < LEARNED && self.quiet_blocks < REVERBERANT
            }
        };
        if held_back {
            self.capture.view_mut(0, 0).iter_mut().for_each(|sample| *sample *= HELD_BACK);
        }
        let clean = self.capture.view(0, 0);
        if cancelling == self.cancelling {
            if cancelling {
                heard.iter_mut().zip(clean).for_each(|(to, sample)| *to = sample / SCALE);
            }
        } else {
            for (i, (to, sample)) in heard.iter_mut().zip(clean).enumerate() {
                let share = (i + 1) as f32 / BLOCK as f32;
                let share = if cancelling { share } else { 1.0 - share };
                *to += share * (sample / SCALE - *to);
            }
            self.cancelling = cancelling;
        }
    }

    fn tell(&self) {
        let decibels = |ratio: f32| 10.0 * ratio.log10();
        let present = self.presence.is_certain();
        let known = present && self.echo_power > 0.0;
        let level = if known { decibels(self.echo_power) } else { f32::NEG_INFINITY };
        let removed =
            if known && self.cancelling { decibels(self.heard_power / self.clean_power.max(1e-12)) } else { 0.0 };
        let delay = if present { (self.delay + HEADROOM) as f32 / RATE as f32 } else { f32::NAN };
        for (to, value) in [(&self.board.level, level), (&self.board.removed, removed), (&self.board.delay, delay)] {
            to.store(value.to_bits(), Ordering::Relaxed);
        }
        self.board.echo.store(present, Ordering::Relaxed);
    }
}
