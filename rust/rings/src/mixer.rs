//! Mixes several channels into one. A voice on any of them is as loud as it would be alone.

/// Seconds over which a channel's power is measured: more than a period of the voice, less than a syllable.
const LEVEL: f64 = 0.02;
/// Seconds over which channels are compared.
const COMPARED: f64 = 0.3;
/// Hz below which sound counts less and less: an offset, a hum, steps.
const LOWEST: f64 = 100.0;
/// Seconds between two decisions on the channels to leave out, and of the fade after one.
const DECISION: f64 = 0.001;
const FADE: f64 = 0.005;
/// The correlation with the reference below which a channel is left out, and above which it is back.
const OPPOSED: f64 = -0.5;
const AGREEING: f64 = -0.25;
/// How many times louder than the reference a channel has to be to take its place.
const LOUDER: f64 = 4.0;
/// The least power of a channel, far below that of a 24-bit sample, so that nothing divides by 0.
const FLOOR: f64 = 1e-30;
/// The least power that counts as sound, -60 dB, and how many seconds of sound a channel must miss to be reported.
const AUDIBLE: f64 = 1e-6;
const TOLD: f64 = 0.25;

/// Mixes the channels of one recording or device into one.
///
/// Like an automatic mixer at a conference table, it weights each channel by its share of the power at the moment. So the
/// same sound on all channels passes unchanged, and so does a sound on one channel while the others are silent; an average
/// of N channels would reduce it to an N-th. A channel in opposite phase to the reference, which is one of the loudest,
/// would cancel the sound, so it is left out.
///
/// It is causal, sample by sample: the result does not depend on how the sound is cut, and nothing is late. A single
/// channel passes bit for bit.
pub struct Mixer {
    channels: Vec<Channel>,
    reference: usize,
    lowest: f64,
    level: f64,
    compared: f64,
    fade: f64,
    told: u32,
    hop: u32,
    left: u32,
}

/// The state of a channel. Powers are those of its sound above `LOWEST`.
#[derive(Clone)]
struct Channel {
    /// The sound below that.
    low: f64,
    high: f64,
    power: f64,
    /// Over the longer time: the power, and the product with the reference.
    energy: f64,
    product: f64,
    opposed: bool,
    /// 1 if it is heard, 0 if it is left out, between them in a fade.
    gain: f64,
    /// Decisions that left it out while there was sound.
    missed: u32,
}

/// The part of the way that a first-order filter goes in one sample.
fn step(seconds: f64, rate: usize) -> f64 {
    1.0 - (-1.0 / (seconds * rate as f64)).exp()
}

impl Mixer {
    /// A mixer for `channels` at `rate` samples per second. The error says which argument is out of range.
    pub fn new(rate: usize, channels: usize) -> Result<Self, String> {
        let channels = crate::checked(rate, channels)?.get();
        let new = Channel {
            low: 0.0,
            high: 0.0,
            power: FLOOR,
            energy: FLOOR,
            product: 0.0,
            opposed: false,
            gain: 1.0,
            missed: 0,
        };
        let hop = ((DECISION * rate as f64) as u32).max(1);
        Ok(Self {
            channels: vec![new; channels],
            reference: 0,
            lowest: step(1.0 / (std::f64::consts::TAU * LOWEST), rate),
            level: step(LEVEL, rate),
            compared: step(COMPARED, rate),
            fade: 1.0 / (FADE * rate as f64),
            told: (TOLD * rate as f64 / f64::from(hop)) as u32,
            hop,
            left: hop,
        })
    }

    /// The number of channels.
    pub fn channels(&self) -> usize {
        self.channels.len()
    }

    /// The next sample of the mix, of one sample of each channel; those that are not finite are 0.
    pub fn mix(&mut self, frame: &[f32]) -> f32 {
        let finite = |sample: f32| if sample.is_finite() { sample } else { 0.0 };
        if let &[sample] = frame {
            return finite(sample);
        }
        for (channel, sample) in self.channels.iter_mut().zip(frame) {
            let sample = f64::from(finite(*sample));
            channel.low += self.lowest * (sample - channel.low);
            if channel.low.abs() < FLOOR {
                channel.low = 0.0;
            }
            channel.high = sample - channel.low;
            let power = channel.high * channel.high + FLOOR;
            channel.power += self.level * (power - channel.power);
            channel.energy += self.compared * (power - channel.energy);
        }
        let reference = self.channels.get(self.reference).map_or(0.0, |channel| channel.high);
        let (mut sum, mut weights) = (0.0, 0.0);
        for (channel, sample) in self.channels.iter_mut().zip(frame) {
            channel.product += self.compared * (channel.high * reference + FLOOR - channel.product);
            let aim = if channel.opposed { 0.0 } else { 1.0 };
            channel.gain += (aim - channel.gain).clamp(-self.fade, self.fade);
            let weight = channel.gain * channel.power;
            sum += weight * f64::from(finite(*sample));
            weights += weight;
        }
        self.left -= 1;
        if self.left == 0 {
            self.left = self.hop;
            self.decide();
        }
        if weights > 0.0 { (sum / weights) as f32 } else { 0.0 }
    }

    /// Takes a new reference if another channel is clearly louder, and leaves out what is in opposite phase to it.
    fn decide(&mut self) {
        let loudest = self.channels.iter().enumerate().fold((0, 0.0), |most, (number, channel)| {
            if channel.power > most.1 { (number, channel.power) } else { most }
        });
        let Some(power) = self.channels.get(self.reference).map(|channel| channel.power) else { return };
        if loudest.1 > LOUDER * power {
            // How another compares with the new one follows from how both compared with the old one.
            let (new, old) = (&self.channels[loudest.0], &self.channels[self.reference]);
            let through = new.product / old.energy;
            self.channels.iter_mut().for_each(|channel| channel.product *= through);
            self.reference = loudest.0;
            let new = &mut self.channels[loudest.0];
            new.product = new.energy;
        }
        let energy = self.channels[self.reference].energy;
        let audible = self.channels[self.reference].power > AUDIBLE;
        for (number, channel) in self.channels.iter_mut().enumerate() {
            let correlation = channel.product / (channel.energy * energy).sqrt();
            let limit = if channel.opposed { AGREEING } else { OPPOSED };
            channel.opposed = number != self.reference && correlation < limit;
            if !channel.opposed {
                channel.missed = 0;
            } else if audible {
                channel.missed = channel.missed.saturating_add(1);
            }
        }
    }

    /// The channels, counted from 0, that have been left out for a while because they are in opposite phase.
    pub fn left_out(&self) -> impl Iterator<Item = usize> + '_ {
        let missed = self.channels.iter().enumerate().filter(|(_, channel)| channel.missed >= self.told);
        missed.map(|(number, _)| number)
    }
}
