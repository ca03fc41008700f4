use super::aec3_common::FFT_LENGTH_BY_2_PLUS_1;
use super::fft_data::FftData;
use super::render_buffer::RenderBuffer;

const BINS: usize = FFT_LENGTH_BY_2_PLUS_1;
/// The variance of a response of which nothing is known, by partition.
const UNKNOWN: f32 = 0.15;
/// How much of a response is still so a block later, in power.
const STILL: f32 = 0.999;
/// How much a block's error says of what else is heard.
const FOLLOW: f32 = 0.5;

/// Adapts the main filter of one render channel as a Kalman filter in the frequency domain, one partition for each block of
/// the room's response: G. Enzner and P. Vary, "Frequency-domain adaptive Kalman filter for acoustic echo control in
/// hands-free telephones", Signal Processing 86 (2006); F. Kuech, E. Mabande and G. Enzner, "State-space architecture of the
/// partitioned-block-based acoustic echo controller", ICASSP 2014. It knows how little it knows: it learns within the first
/// words, and stands still while somebody else speaks.
pub struct KalmanGain {
    /// The variance of the error of the response, by partition.
    doubt: Vec<[f32; BINS]>,
    /// The power of what is heard besides the echo.
    noise: [f32; BINS],
}

impl KalmanGain {
    pub fn new(partitions: usize) -> Self {
        Self { doubt: vec![[UNKNOWN; BINS]; partitions], noise: [0.0; BINS] }
    }

    /// What was learned may be wrong from now on.
    pub fn handle_echo_path_change(&mut self) {
        self.doubt.iter_mut().for_each(|doubt| doubt.fill(UNKNOWN));
    }

    /// Changes the first `partitions` of a response, `h`, by the spectrum of the error that it left, a block behind a block of
    /// zeros.
    pub fn adapt(&mut self, render_buffer: &RenderBuffer, error: &FftData, partitions: usize, h: &mut [Vec<FftData>]) {
        let (before, after) = render_buffer.fft_buffer().split_at(render_buffer.position());
        let render = || after.iter().chain(before).map(|channels| &channels[0]);

        let mut spread = [0.0; BINS];
        for (x, doubt) in render().zip(&self.doubt[..partitions]) {
            for k in 0..BINS {
                spread[k] += (x.re[k] * x.re[k] + x.im[k] * x.im[k]) * doubt[k];
            }
        }
        let mut step = [0.0; BINS];
        for k in 0..BINS {
            let power = error.re[k] * error.re[k] + error.im[k] * error.im[k];
            self.noise[k] += FOLLOW * (power - self.noise[k]);
            step[k] = 1.0 / (0.5 * spread[k] + self.noise[k] + 1.0);
        }
        for ((x, doubt), channels) in render().zip(&mut self.doubt[..partitions]).zip(h) {
            let h = &mut channels[0];
            for k in 0..BINS {
                let gain = doubt[k] * step[k];
                h.re[k] += gain * (x.re[k] * error.re[k] + x.im[k] * error.im[k]);
                h.im[k] += gain * (x.re[k] * error.im[k] - x.im[k] * error.re[k]);
                let known = 0.5 * gain * (x.re[k] * x.re[k] + x.im[k] * x.im[k]);
                let power = h.re[k] * h.re[k] + h.im[k] * h.im[k];
                doubt[k] = STILL * (1.0 - known) * doubt[k] + (1.0 - STILL) * power + 1e-12;
            }
        }
    }
}
