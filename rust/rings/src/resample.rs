//! Resamples sound, sample by sample: a low-pass filter at the times of the new samples.
//!
//! New sample k belongs to the time of old sample k * from / to, which is a fraction with a fixed denominator: so the
//! filter has a fixed number of rows, one for each fraction, and the time is exact however long the sound is and however
//! it is cut. That is what places in a microphone's sound are counted by.

use std::f64::consts::PI;

/// The pass band, and where nothing is left, as a share of the lower of the two Nyquist frequencies: those of soxr's "HQ".
const PASS: f64 = 0.913;
const STOP: f64 = 1.0;
/// What is left there, dB; as much as float32 can tell.
const REJECTION: f64 = 140.0;
/// Lanes of the sums, so that they need not be made one after the other.
const LANES: usize = 16;

/// Mono float32 from one rate to another.
pub struct Resampler {
    /// From and to, with no common divisor: a new sample is `from` / `to` old ones after the one before.
    from: usize,
    to: usize,
    /// The filter's length, of which half looks ahead.
    taps: usize,
    /// A row of `taps` for each fraction of an old sample, in steps of 1 / `to`.
    rows: Vec<f32>,
    /// Old samples that are still needed.
    input: Vec<f32>,
    /// Where the next new sample is: its filter begins at `input[at]`, and the fraction.
    at: usize,
    fraction: usize,
}

fn common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

/// The modified Bessel function of order 0.
fn bessel(x: f64) -> f64 {
    let (mut sum, mut term) = (1.0, 1.0);
    for n in 1..100 {
        term *= (x / (2.0 * f64::from(n))).powi(2);
        sum += term;
        if term < sum * f64::EPSILON {
            break;
        }
    }
    sum
}

impl Resampler {
    /// Between two rates in samples per second, of which neither is 0.
    pub fn new(from: usize, to: usize) -> Self {
        let divisor = common_divisor(from, to).max(1);
        let (from, to) = (from / divisor, to / divisor);
        // In units of the old rate. A Kaiser window, by its designer's formulas for its length and its shape.
        let nyquist = (to as f64 / from as f64).min(1.0);
        let cutoff = nyquist * (PASS + STOP) / 2.0;
        let length = (REJECTION - 7.95) / (14.36 / 2.0 * nyquist * (STOP - PASS));
        let half = ((length / 2.0).ceil() as usize).next_multiple_of(LANES / 2);
        let shape = 0.1102 * (REJECTION - 8.7);
        let kernel = |time: f64| {
            let share = time / half as f64;
            let sinc = if time == 0.0 { 1.0 } else { (PI * cutoff * time).sin() / (PI * cutoff * time) };
            if share.abs() < 1.0 { sinc * bessel(shape * (1.0 - share * share).sqrt()) } else { 0.0 }
        };
        let mut rows = Vec::with_capacity(2 * half * to);
        for fraction in 0..to {
            let middle = (half - 1) as f64 + fraction as f64 / to as f64;
            let row: Vec<f64> = (0..2 * half).map(|i| kernel(i as f64 - middle)).collect();
            let sum: f64 = row.iter().sum();
            rows.extend(row.iter().map(|value| (value / sum) as f32));
        }
        // Silence before the first sample, so that new sample 0 is at its time.
        Self { from, to, taps: 2 * half, rows, input: vec![0.0; half - 1], at: 0, fraction: 0 }
    }

    /// How many old samples a new one needs beyond its time.
    pub fn look_ahead(&self) -> usize {
        self.taps / 2
    }

    /// Adds old samples.
    pub fn push(&mut self, pcm: &[f32]) {
        self.input.extend_from_slice(pcm);
    }

    /// How many new samples can be taken.
    pub fn ready(&self) -> usize {
        let Some(room) = self.input.len().checked_sub(self.at + self.taps) else { return 0 };
        ((room + 1) * self.to - self.fraction).div_ceil(self.from)
    }

    /// How many old samples are missing before `count` new ones can be taken.
    pub fn missing(&self, count: usize) -> usize {
        let Some(steps) = count.checked_sub(1) else { return 0 };
        let last = self.at + (self.fraction + steps * self.from) / self.to;
        (last + self.taps).saturating_sub(self.input.len())
    }

    /// Takes `count` new samples, or as many as there are.
    pub fn take(&mut self, count: usize) -> Vec<f32> {
        let pcm = (0..count.min(self.ready())).map(|_| self.next()).collect();
        self.input.drain(..self.at);
        self.at = 0;
        pcm
    }

    /// Returns the new samples that were not taken yet, as if silence followed the old ones, and begins again.
    pub fn finish(&mut self) -> Vec<f32> {
        self.input.resize(self.input.len() + self.look_ahead(), 0.0);
        let pcm = self.take(usize::MAX);
        self.reset();
        pcm
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.input.clear();
        self.input.resize(self.look_ahead() - 1, 0.0);
        (self.at, self.fraction) = (0, 0);
    }

    fn next(&mut self) -> f32 {
        let row = &self.rows[self.fraction * self.taps..][..self.taps];
        let mut sums = [0.0; LANES];
        for (row, input) in row.chunks_exact(LANES).zip(self.input[self.at..].chunks_exact(LANES)) {
            for ((sum, weight), sample) in sums.iter_mut().zip(row).zip(input) {
                *sum += weight * sample;
            }
        }
        let next = self.fraction + self.from;
        (self.at, self.fraction) = (self.at + next / self.to, next % self.to);
        sums.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAIRS: [(usize, usize); 8] = [
        (48_000, 24_000),
        (44_100, 24_000),
        (16_000, 24_000),
        (96_000, 24_000),
        (24_000, 48_000),
        (24_000, 44_100),
        (24_000, 16_000),
        (44_056, 24_000),
    ];

    fn whole(from: usize, to: usize, pcm: &[f32]) -> Vec<f32> {
        let mut resampler = Resampler::new(from, to);
        resampler.push(pcm);
        resampler.finish()
    }

    fn noise(count: usize) -> Vec<f32> {
        let mut random = fastrand::Rng::with_seed(1);
        (0..count).map(|_| 2.0 * random.f32() - 1.0).collect()
    }

    #[test]
    fn sound_may_be_cut_anywhere() {
        for (from, to) in PAIRS {
            let pcm = noise(from / 4);
            let wanted = whole(from, to, &pcm);
            assert_eq!(wanted.len(), (pcm.len() * to).div_ceil(from));
            let (mut resampler, mut got, mut rest) = (Resampler::new(from, to), Vec::new(), &pcm[..]);
            let mut step = 1;
            while !rest.is_empty() {
                step = step * 7 % 997;
                let (next, after) = rest.split_at(step.min(rest.len()));
                resampler.push(next);
                rest = after;
                got.extend(resampler.take(step * 5 % 613));
            }
            got.extend(resampler.finish());
            assert_eq!(got, wanted, "{from} to {to}");
            // Nothing of before is left.
            resampler.push(&pcm);
            assert_eq!(resampler.finish(), wanted);
        }
    }

    #[test]
    fn what_is_missing_is_known() {
        for (from, to) in PAIRS {
            let mut resampler = Resampler::new(from, to);
            for count in [1, 1, 7, 1920, 0, 64, 1920] {
                let missing = resampler.missing(count);
                if missing > 0 {
                    resampler.push(&vec![0.5; missing - 1]);
                    assert!(resampler.ready() < count, "{from} to {to}");
                    resampler.push(&[0.5]);
                }
                assert!(resampler.ready() >= count && resampler.missing(count) == 0);
                assert!(resampler.ready() - count <= to / from, "no more than was asked for is fetched");
                assert_eq!(resampler.take(count).len(), count);
            }
        }
    }

    #[test]
    fn a_sine_stays_the_same_sine_at_its_time_or_is_gone() {
        for (from, to) in PAIRS {
            let nyquist = from.min(to) as f64 / 2.0;
            let sine = |rate: usize, hertz: f64| {
                (0..rate).map(move |i| (2.0 * PI * (hertz * i as f64 / rate as f64 % 1.0)).sin() as f32)
            };
            for share in [0.001, 0.3, 0.7, 0.91] {
                let pcm: Vec<f32> = sine(from, share * nyquist).collect();
                for (i, (got, wanted)) in whole(from, to, &pcm).iter().zip(sine(to, share * nyquist)).enumerate() {
                    let edge = i.min(to - 1 - i) > to / 50;
                    assert!(
                        !edge || (got - wanted).abs() < 2e-6,
                        "{got}, not {wanted}, at {i}, {share}, {from} to {to}"
                    );
                }
            }
            for share in [1.0, 1.05, 1.5, 1.9] {
                if share * nyquist < from as f64 / 2.0 {
                    let pcm: Vec<f32> = sine(from, share * nyquist).collect();
                    for (i, got) in whole(from, to, &pcm).iter().enumerate() {
                        assert!(
                            i.min(to - 1 - i) <= to / 50 || got.abs() < 1e-6,
                            "{got} at {i}, {share}, {from} to {to}"
                        );
                    }
                }
            }
        }
    }
}
