//! Finds how long sound takes from the loudspeaker to the microphone, by normalised cross-correlation of whitened sound.
//!
//! Both signals are resampled to 8 kHz and whitened in windows of 80 ms: the magnitude of each bin is divided by that of its
//! surroundings of 40 Hz. This removes the colour and the pitch of a voice, and keeps its phases (the generalised
//! cross-correlation of Knapp and Carter, 1976, with the smoothed coherence transform as weight). The sound heard in a frame is
//! correlated with the sound played up to 600 ms before. Frames are summed with a forgetting factor, and the sum is divided by
//! the energies. The correlation of unrelated sounds stays below a bound that falls with the root of the number of frames; that
//! of an echo does not.

use std::collections::VecDeque;
use std::f32::consts::PI;
use std::sync::Arc;

use rustfft::num_complex::Complex32;
use rustfft::{Fft, FftPlanner};

use crate::RATE;

/// Samples at 24 kHz per sample at 8 kHz.
const DECIMATION: usize = 3;
/// Samples at 24 kHz that are looked at together.
pub const FRAME: usize = 1920;
const STEP: usize = FRAME / DECIMATION;
/// The window in which sound is whitened, and its hop: 80 and 40 ms.
const WINDOW: usize = 640;
const HOP: usize = WINDOW / 2;
/// Bins to each side of one that are its surroundings.
const AROUND: usize = 1;
/// The correlation's transform, and the delays that it can find: 0 to 608 ms at 8 kHz.
const SIZE: usize = 6144;
const LAGS: usize = 4865;
/// The share of the sums that is kept from frame to frame.
const MEMORY: f32 = 0.92;
/// An echo's correlation exceeds this after one frame. For more frames, divide it by the root of their number.
const CHANCE: f32 = 0.55;
/// Below this mean square a frame is silence: -60 dBFS.
const SILENCE: f32 = 1e-6;

/// 24 kHz to 8 kHz, then whitened.
struct Whitener {
    kernel: Vec<f32>,
    past: VecDeque<f32>,
    phase: usize,
    recent: VecDeque<f32>,
    fading: Vec<f32>,
    forward: Arc<dyn Fft<f32>>,
    inverse: Arc<dyn Fft<f32>>,
    spectrum: Vec<Complex32>,
    scratch: Vec<Complex32>,
    power: Vec<f32>,
}

impl Whitener {
    fn new(planner: &mut FftPlanner<f32>) -> Self {
        let (forward, inverse) = (planner.plan_fft_forward(WINDOW), planner.plan_fft_inverse(WINDOW));
        let scratch = forward.get_inplace_scratch_len().max(inverse.get_inplace_scratch_len());
        let taps = 16 * DECIMATION;
        // A sinc that ends at 3.4 kHz, in a Hann window.
        let cut = 2.0 * 3400.0 / RATE as f32;
        let kernel = (0..taps)
            .map(|i| {
                let at = i as f32 - (taps - 1) as f32 / 2.0;
                let x = PI * cut * at;
                let hann = 0.5 + 0.5 * (2.0 * PI * at / taps as f32).cos();
                cut * x.sin() / x * hann
            })
            .collect();
        Self {
            kernel,
            past: vec![0.0; taps].into(),
            phase: 0,
            recent: vec![0.0; WINDOW].into(),
            fading: vec![0.0; HOP],
            forward,
            inverse,
            spectrum: vec![Complex32::default(); WINDOW],
            scratch: vec![Complex32::default(); scratch],
            power: vec![0.0; WINDOW],
        }
    }

    /// Takes sound at 24 kHz. The sound that it completes, whitened at 8 kHz and [`HOP`] samples late, replaces the oldest in
    /// `out`.
    fn push(&mut self, pcm: &[f32], out: &mut VecDeque<f32>) {
        for sample in pcm {
            self.past.pop_front();
            self.past.push_back(*sample);
            self.phase += 1;
            if self.phase.is_multiple_of(DECIMATION) {
                self.recent.pop_front();
                self.recent.push_back(self.past.iter().zip(&self.kernel).map(|(a, b)| a * b).sum());
            }
            if self.phase == HOP * DECIMATION {
                self.phase = 0;
                self.whiten(out);
            }
        }
    }

    fn whiten(&mut self, out: &mut VecDeque<f32>) {
        let mut energy = 0.0;
        for (i, (bin, sample)) in self.spectrum.iter_mut().zip(&self.recent).enumerate() {
            let hann = 0.5 - 0.5 * (2.0 * PI * i as f32 / WINDOW as f32).cos();
            *bin = Complex32::new(sample * hann, 0.0);
            energy += bin.re * bin.re;
        }
        // Loud sound counts more, but not in proportion.
        let loudness = (energy / WINDOW as f32).sqrt().sqrt();
        if energy / WINDOW as f32 > SILENCE / 10.0 {
            self.forward.process_with_scratch(&mut self.spectrum, &mut self.scratch);
            for (power, bin) in self.power.iter_mut().zip(&self.spectrum) {
                *power = bin.norm_sqr();
            }
            let floor = 1e-3 * self.power.iter().sum::<f32>() / WINDOW as f32;
            // From 250 to 3600 Hz, and the same below zero.
            let band = 250 * WINDOW / 8000..3600 * WINDOW / 8000;
            for i in 0..WINDOW {
                let bin = &mut self.spectrum[i];
                if band.contains(&i.min(WINDOW - i)) {
                    let around = &self.power[i - AROUND..=i + AROUND];
                    *bin /= (around.iter().sum::<f32>() / around.len() as f32 + floor).sqrt();
                } else {
                    *bin = Complex32::default();
                }
            }
            self.inverse.process_with_scratch(&mut self.spectrum, &mut self.scratch);
            let energy: f32 = self.spectrum.iter().map(|bin| bin.re * bin.re).sum();
            let gain = loudness / (energy / WINDOW as f32 + 1e-12).sqrt();
            self.spectrum.iter_mut().for_each(|bin| *bin *= gain);
        } else {
            self.spectrum.fill(Complex32::default());
        }
        for (i, fading) in self.fading.iter_mut().enumerate() {
            out.pop_front();
            out.push_back(*fading + self.spectrum[i].re);
            *fading = self.spectrum[HOP + i].re;
        }
    }

    fn reset(&mut self) {
        self.phase = 0;
        self.past.iter_mut().chain(&mut self.recent).chain(&mut self.fading).for_each(|sample| *sample = 0.0);
    }
}

/// The result of the sums.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Evidence {
    /// The loudspeaker was silent for as long as an echo may take.
    Nothing,
    /// The loudspeaker played something, but too little to tell.
    Unclear,
    /// The loudspeaker played something, and the microphone hears nothing, or nothing yet.
    Silence,
    /// The microphone's sound has no more in common with the played sound than by chance.
    NoEcho,
    /// The microphone hears the loudspeaker after so many samples at 24 kHz.
    Echo(usize),
}

/// Finds the delay, frame by frame.
pub struct DelayFinder {
    heard: Whitener,
    played: Whitener,
    heard_pcm: VecDeque<f32>,
    played_pcm: VecDeque<f32>,
    forward: Arc<dyn Fft<f32>>,
    inverse: Arc<dyn Fft<f32>>,
    scratch: Vec<Complex32>,
    spectrum: Vec<Complex32>,
    product: Vec<Complex32>,
    sums: Vec<f32>,
    energies: Vec<f32>,
    energy: f32,
    frames: f32,
}

impl Default for DelayFinder {
    fn default() -> Self {
        Self::new()
    }
}

impl DelayFinder {
    /// A finder that has heard nothing.
    pub fn new() -> Self {
        let mut planner = FftPlanner::new();
        let (forward, inverse) = (planner.plan_fft_forward(SIZE), planner.plan_fft_inverse(SIZE));
        let scratch = forward.get_inplace_scratch_len().max(inverse.get_inplace_scratch_len());
        Self {
            heard: Whitener::new(&mut planner),
            played: Whitener::new(&mut planner),
            heard_pcm: vec![0.0; STEP].into(),
            played_pcm: vec![0.0; SIZE].into(),
            forward,
            inverse,
            scratch: vec![Complex32::default(); scratch],
            spectrum: vec![Complex32::default(); SIZE],
            product: vec![Complex32::default(); SIZE],
            sums: vec![0.0; LAGS],
            energies: vec![0.0; LAGS],
            energy: 0.0,
            frames: 0.0,
        }
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.heard.reset();
        self.played.reset();
        self.heard_pcm.iter_mut().chain(&mut self.played_pcm).for_each(|sample| *sample = 0.0);
        self.forget();
    }

    /// Forgets what was found, not the sound.
    pub fn forget(&mut self) {
        self.sums.fill(0.0);
        self.energies.fill(0.0);
        (self.energy, self.frames) = (0.0, 0.0);
    }

    /// Takes the sound heard and the sound played in the same [`FRAME`] samples at 24 kHz.
    pub fn push(&mut self, heard: &[f32], played: &[f32]) -> Evidence {
        self.heard.push(heard, &mut self.heard_pcm);
        self.played.push(played, &mut self.played_pcm);
        // Whitening takes the root of the loudness.
        let power = |pcm: &mut dyn Iterator<Item = &f32>| pcm.map(|x| x * x).sum::<f32>();
        let most = self.played_pcm.iter().fold(0f32, |most, x| most.max(x.abs()));
        if most * most < SILENCE.sqrt() {
            return Evidence::Nothing;
        }
        let energy = power(&mut self.heard_pcm.iter());
        if energy / (STEP as f32) < SILENCE.sqrt() {
            return Evidence::Silence;
        }
        // Real and imaginary part carry a signal each.
        for (i, bin) in self.spectrum.iter_mut().enumerate() {
            let late = i.checked_sub(SIZE - STEP).map_or(0.0, |i| self.heard_pcm[i]);
            *bin = Complex32::new(self.played_pcm[i], late);
        }
        self.forward.process_with_scratch(&mut self.spectrum, &mut self.scratch);
        for i in 0..SIZE {
            let (a, b) = (self.spectrum[i], self.spectrum[(SIZE - i) % SIZE].conj());
            let (played, heard) = ((a + b) * 0.5, (a - b) * Complex32::new(0.0, -0.5));
            self.product[i] = heard * played.conj();
        }
        self.inverse.process_with_scratch(&mut self.product, &mut self.scratch);
        self.energy = MEMORY * self.energy + energy;
        self.frames = MEMORY * self.frames + 1.0;
        // The energy of what was played while the frame, that many samples later, was heard.
        let newest = self.played_pcm.len();
        let mut played = power(&mut self.played_pcm.range(newest - STEP..));
        for lag in 0..LAGS {
            self.sums[lag] = MEMORY * self.sums[lag] + self.product[lag].re / SIZE as f32;
            self.energies[lag] = MEMORY * self.energies[lag] + played;
            if lag + 1 < LAGS {
                let (enters, leaves) = (self.played_pcm[newest - STEP - lag - 1], self.played_pcm[newest - lag - 1]);
                played = (played + enters * enters - leaves * leaves).max(0.0);
            }
        }
        self.judge()
    }

    fn judge(&self) -> Evidence {
        let floor = 0.1 * self.energies.iter().fold(0f32, |most, x| most.max(*x));
        let mut best = (0, 0f32);
        for (lag, (sum, energy)) in self.sums.iter().zip(&self.energies).enumerate() {
            let correlation = sum.abs() / (self.energy * energy.max(floor) + 1e-12).sqrt();
            if correlation > best.1 {
                best = (lag, correlation);
            }
        }
        if best.1 > CHANCE / self.frames.max(1.0).sqrt() {
            Evidence::Echo(best.0 * DECIMATION)
        } else if self.frames > 5.0 {
            Evidence::NoEcho
        } else {
            Evidence::Unclear
        }
    }
}
