//! Sound that resembles speech, and a room.

/// Numbers in [-1, 1), always the same for a seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> f32 {
        // Xorshift (Marsaglia, 2003).
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// `seconds` of syllables of 200 ms with a pitch and a colour of their own, pauses between them, at 24 kHz.
pub fn syllables(seed: u64, seconds: usize) -> Vec<f32> {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut pcm = Vec::new();
    while pcm.len() < 24_000 * seconds {
        let (period, colour, length) = (100.0 + 60.0 * random.next(), 0.5 * random.next(), 4800);
        let (mut before, mut phase) = (0.0, 0.0);
        for i in 0..length {
            phase += 1.0;
            let pulse = if phase >= period { 1.0 } else { 0.0 };
            phase %= period;
            before = colour * before + pulse + 0.05 * random.next();
            pcm.push(0.3 * before * (std::f32::consts::PI * i as f32 / length as f32).sin());
        }
        let pause = ((random.next() + 1.0) * 4000.0) as usize;
        pcm.extend(std::iter::repeat_n(0.0, pause));
    }
    pcm.truncate(24_000 * seconds);
    pcm
}

/// What a microphone hears of `pcm`: `delay` samples later, with an exponential tail of 100 ms, at `gain`.
pub fn room(pcm: &[f32], delay: usize, gain: f32) -> Vec<f32> {
    let mut random = Random(77);
    let tail: Vec<(usize, f32)> =
        (0..120).map(|i| (20 * i, 0.25 * random.next() * (-6.9 * i as f32 / 120.0).exp())).collect();
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
