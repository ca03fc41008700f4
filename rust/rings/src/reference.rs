//! The sound that the loudspeaker played while the microphone heard.
//!
//! Each device counts samples by its own clock. The computer's clock connects both: the number of a sample of the microphone
//! gives the time at which the device gave it, and that time gives the number of the sample that the loudspeaker took then. The
//! number that is used here moves on evenly, and follows the clocks slowly. So early or late callbacks do not tear the sound,
//! and drifting clocks only change the rate by some parts in a million.

use std::f64::consts::PI;
use std::sync::Arc;

use crate::{Capture, Playback};

const RATE: f64 = crate::RATE as f64;

/// Zeros of the sinc to each side.
const ZEROS: f64 = 8.0;
/// Values of the kernel between two of its zeros; what lies between the values is interpolated.
const STEPS: usize = 512;
/// The share of the place's error that is corrected in a second.
const FOLLOW: f64 = 0.1;
/// Seconds. If the error is larger, a stream has halted or sound was lost, and the place is found again.
const TORN: f64 = 0.02;
/// Seconds by which the reference is late against the microphone's sound. The way through the devices and the air is longer, and
/// a callback of the loudspeaker may come so much later than one of the microphone.
const MARGIN: f64 = 0.01;

/// For the thread that reads the microphone.
pub struct Reference {
    capture: Arc<Capture>,
    playback: Arc<Playback>,
    /// Where the next sample is read, in samples of the loudspeaker.
    place: Option<f64>,
    /// The microphone's sample that belongs to it.
    expected: f64,
    /// A sinc in a Hann window, from its middle on.
    kernel: Vec<f64>,
}

impl Reference {
    /// Between two streams that run, or will.
    pub fn new(capture: Arc<Capture>, playback: Arc<Playback>) -> Self {
        let value = |i| {
            let at = i as f64 / STEPS as f64;
            let sinc = if i == 0 { 1.0 } else { (PI * at).sin() / (PI * at) };
            if at < ZEROS { sinc * (0.5 + 0.5 * (PI * at / ZEROS).cos()) } else { 0.0 }
        };
        let kernel = (0..ZEROS as usize * STEPS + 2).map(value).collect();
        Self { capture, playback, place: None, expected: 0.0, kernel }
    }

    /// The sound that was played in the `count` / 24000 seconds from sample number `position` of the microphone on, at 24 kHz and
    /// [`MARGIN`] late. Silence where nothing was played.
    pub fn read(&mut self, position: f64, count: usize) -> Vec<f32> {
        let (heard_rate, played_rate) = (self.capture.rate() as f64, self.playback.rate() as f64);
        let (Some(heard_zero), Some(played_zero)) = (self.capture.clock().zero(), self.playback.clock().zero()) else {
            return vec![0.0; count];
        };
        let time = heard_zero + position / heard_rate - MARGIN;
        let wanted = (time - played_zero) * played_rate;
        let seconds = count as f64 / RATE;
        let place = self.place.map(|place| place + (position - self.expected) * played_rate / heard_rate);
        let off = place.map_or(f64::INFINITY, |place| wanted - place);
        let (place, step) = match place {
            Some(place) if off.abs() <= TORN * played_rate => {
                // Evenly through the frame: the rate changes by some parts in a million, the sound does not jump.
                let correction = off * FOLLOW * seconds;
                (place, (played_rate * seconds + correction) / count.max(1) as f64)
            }
            _ => (wanted, played_rate / RATE),
        };
        let pcm = (0..count).map(|i| self.sample(place + step * i as f64, played_rate)).collect();
        self.place = Some(place + step * count as f64);
        self.expected = position + seconds * heard_rate;
        pcm
    }

    /// The sound at a place between the samples, without what 24 kHz cannot have.
    fn sample(&self, place: f64, rate: f64) -> f32 {
        let rendered = self.playback.rendered();
        let narrow = (RATE / rate).min(1.0);
        let reach = ZEROS / narrow;
        let (first, last) = ((place - reach).ceil() as i64, (place + reach).floor() as i64);
        let mut sum = 0.0;
        for number in first..=last {
            let sample = rendered.get(number);
            if sample != 0.0 {
                let at = (number as f64 - place).abs() * narrow * STEPS as f64;
                let (index, share) = (at as usize, at.fract());
                let values = self.kernel.get(index).zip(self.kernel.get(index + 1));
                sum += f64::from(sample) * narrow * values.map_or(0.0, |(a, b)| a + share * (b - a));
            }
        }
        sum as f32
    }
}
