//! Sound that resembles speech, and a room.

use echo::RATE;
use fastrand::Rng;

/// A number in [-1, 1).
pub fn signed(random: &mut Rng) -> f32 {
    2.0 * random.f32() - 1.0
}

/// `seconds` of syllables of 200 ms with a pitch and a colour of their own, pauses between them, at 24 kHz.
pub fn syllables(seed: u64, seconds: usize) -> Vec<f32> {
    let mut random = Rng::with_seed(seed);
    let mut pcm = Vec::new();
    while pcm.len() < RATE * seconds {
        let (period, colour, length) = (100.0 + 60.0 * signed(&mut random), 0.5 * signed(&mut random), 4800);
        let (mut before, mut phase) = (0.0, 0.0);
        for i in 0..length {
            phase += 1.0;
            let pulse = if phase >= period { 1.0 } else { 0.0 };
            phase %= period;
            before = colour * before + pulse + 0.05 * signed(&mut random);
            pcm.push(0.3 * before * (std::f32::consts::PI * i as f32 / length as f32).sin());
        }
        let pause = ((signed(&mut random) + 1.0) * 4000.0) as usize;
        pcm.extend(std::iter::repeat_n(0.0, pause));
    }
    pcm.truncate(RATE * seconds);
    pcm
}

/// What a microphone hears of `pcm`: `delay` samples later, with an exponential tail of 100 ms, at `gain`.
pub fn room(pcm: &[f32], delay: usize, gain: f32) -> Vec<f32> {
    let mut random = Rng::with_seed(77);
    let tail: Vec<(usize, f32)> =
        (0..120).map(|i| (20 * i, 0.25 * signed(&mut random) * (-6.9 * i as f32 / 120.0).exp())).collect();
    let mut heard = vec![0.0; pcm.len()];
    for (at, sample) in pcm.iter().enumerate().filter(|(_, sample)| **sample != 0.0) {
        for (later, factor) in std::iter::once(&(0, 1.0)).chain(&tail) {
            if let Some(to) = heard.get_mut(at + delay + later) {
                *to += gain * factor * sample;
            }
        }
    }
    heard
}
