use crate::api::config::EchoCanceller3Config;

use super::aec3_common::FFT_LENGTH_BY_2_PLUS_1;

const BINS: usize = FFT_LENGTH_BY_2_PLUS_1;
/// Where the late response begins, in partitions: behind the direct sound and the first reflections.
const LATE: usize = 8;
/// Partitions of the late response that are compared with as many after them.
const STRETCH: usize = 12;
/// The slowest decay from a partition to the next, in power: in a room of 0.6 s at 24 kHz.
const SLOWEST: f32 = 0.94;
/// How much a block changes the decay.
const FOLLOW: f32 = 0.012;
/// How much a block changes what is known of the loudspeaker's spectrum.
const EXCITE: f32 = 0.003;

/// Estimates how a room goes on where the main filter ends: the power response of its last partition, and the decay, in power,
/// from a partition to the next. A diffuse field decays exponentially (M. R. Schroeder, "New method of measuring reverberation
/// time", JASA 37, 1965), so both follow from the energies of two stretches of the filter's late part, long before its end: the
/// end itself is more of a filter's error than of a room.
pub struct ReverbTailEstimator {
    decay: f32,
    tail: [f32; BINS],
    /// The loudspeaker's spectrum: where it has nothing, the filter could learn nothing.
    excited: [f32; BINS],
}

impl ReverbTailEstimator {
    pub fn new(config: &EchoCanceller3Config) -> Self {
        Self { decay: config.ep_strength.default_len.abs(), tail: [0.0; BINS], excited: [0.0; BINS] }
    }

    /// Learns from the power response of each partition of the main filter, if it is usable, and a block's render spectrum.
    pub fn update(&mut self, response: &[[f32; BINS]], usable: bool, render: &[f32; BINS]) {
        for (mean, new) in self.excited.iter_mut().zip(render) {
            *mean += EXCITE * (new - *mean);
        }
        if !usable || response.len() < LATE + 2 * STRETCH {
            return;
        }
        let (near, far) = (mean(&response[LATE..][..STRETCH]), mean(&response[LATE + STRETCH..][..STRETCH]));
        let energy = |h: &[f32; BINS]| h.iter().zip(&self.excited).skip(1).map(|(h, x)| h * x).sum::<f32>();
        let (near_energy, far_energy) = (energy(&near), energy(&far));
        if near_energy > 0.0 {
            let decay = (far_energy / near_energy).powf(1.0 / STRETCH as f32).min(SLOWEST);
            self.decay += FOLLOW * (decay - self.decay);
        }
        // From the middle of the first stretch to the last partition.
        let away = (response.len() - 1 - LATE) as f32 - 0.5 * (STRETCH - 1) as f32;
        let share = self.decay.powf(away);
        for (k, tail) in self.tail.iter_mut().enumerate() {
            let (below, above) = (near[k.saturating_sub(1)], near[(k + 1).min(BINS - 1)]);
            *tail = share * (0.25 * below + 0.5 * near[k] + 0.25 * above);
        }
    }

    /// The decay from a partition to the next, in power.
    pub fn reverb_decay(&self) -> f32 {
        self.decay
    }

    /// The power response of the last partition.
    pub fn get_reverb_frequency_response(&self) -> &[f32; BINS] {
        &self.tail
    }
}

fn mean(partitions: &[[f32; BINS]]) -> [f32; BINS] {
    let mut mean = [0.0; BINS];
    for partition in partitions {
        for (mean, power) in mean.iter_mut().zip(partition) {
            *mean += power / partitions.len() as f32;
        }
    }
    mean
}
