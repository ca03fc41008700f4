//! The mixer against what it promises.

use rings::Mixer;

const RATE: usize = 24000;

/// Seeded noise in [-`size`, `size`).
fn noise(seed: u64, count: usize, size: f32) -> Vec<f32> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..count).map(|_| (2.0 * random.f32() - 1.0) * size).collect()
}

fn mix(channels: &[&[f32]]) -> (Vec<f32>, Vec<usize>) {
    let mut mixer = Mixer::new(RATE, channels.len()).unwrap();
    let frame = |i: usize| channels.iter().map(|channel| channel[i]).collect::<Vec<_>>();
    let mixed = (0..channels[0].len()).map(|i| mixer.mix(&frame(i))).collect();
    (mixed, mixer.left_out().collect())
}

/// The level of the difference of two sounds below that of the second, in dB.
fn error(sound: &[f32], wanted: &[f32]) -> f64 {
    let power = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x) * f64::from(x)).sum::<f64>();
    let off = power(&mut sound.iter().zip(wanted).map(|(a, b)| a - b));
    10.0 * (off / power(&mut wanted.iter().copied()) + 1e-30).log10()
}

#[test]
fn what_is_one_sound_passes_unchanged() {
    let voice = noise(1, RATE, 0.5);
    let silence = vec![0.0; RATE];
    assert_eq!(mix(&[&voice]), (voice.clone(), vec![]));
    assert_eq!(mix(&[&voice[..]; 16]), (voice.clone(), vec![]));
    for place in [0, 7, 15] {
        let mut channels = [&silence[..]; 16];
        channels[place] = &voice;
        assert_eq!(mix(&channels), (voice.clone(), vec![]), "on channel {place}");
    }
}

#[test]
fn a_voice_is_as_loud_as_alone_beside_noise_an_offset_and_others() {
    let voice = noise(2, RATE, 0.3);
    // 15 channels that rustle 30 dB below the voice.
    let rustling: Vec<Vec<f32>> = (0..15).map(|i| noise(10 + i, RATE, 0.3 / 31.6)).collect();
    let mut channels: Vec<&[f32]> = rustling.iter().map(|channel| &channel[..]).collect();
    channels.push(&voice);
    assert!(error(&mix(&channels).0, &voice) < -25.0);
    assert!(error(&mix(&[&vec![0.4; RATE], &voice]).0[RATE / 2..], &voice[RATE / 2..]) < -50.0);
    // Two in turns.
    let (mut first, mut second) = (noise(3, RATE, 0.3), noise(4, RATE, 0.3));
    first[RATE / 2..].fill(0.0);
    second[..RATE / 2].fill(0.0);
    let both: Vec<f32> = first.iter().zip(&second).map(|(a, b)| a + b).collect();
    let (mixed, left_out) = mix(&[&first, &second]);
    assert!(error(&mixed[RATE * 3 / 4..], &both[RATE * 3 / 4..]) < -60.0);
    assert!(error(&mixed, &both) < -15.0);
    assert!(left_out.is_empty());
}

#[test]
fn opposite_phase_is_left_out_and_told() {
    let voice = noise(5, RATE, 0.3);
    let turned: Vec<f32> = voice.iter().map(|sample| -sample).collect();
    let quieter: Vec<f32> = turned.iter().map(|sample| sample / 2.0).collect();
    let (mixed, left_out) = mix(&[&voice, &turned]);
    assert_eq!((&mixed[240..], left_out), (&voice[240..], vec![1]));
    let (mixed, left_out) = mix(&[&voice, &voice, &quieter, &turned]);
    assert_eq!((&mixed[240..], left_out), (&voice[240..], vec![2, 3]));
    // The loudest stays, wherever it is.
    let (mixed, left_out) = mix(&[&quieter, &voice]);
    assert!(error(&mixed[240..], &voice[240..]) < -100.0 || error(&mixed[240..], &quieter[240..]) < -100.0);
    assert_eq!(left_out.len(), 1);
    // What the two have of their own does not matter, and nobody is told of what is only unlike.
    let own = noise(6, RATE, 0.1);
    let partly: Vec<f32> = turned.iter().zip(&own).map(|(a, b)| a + b).collect();
    assert_eq!(mix(&[&voice, &partly]).1, [1]);
    assert!(mix(&[&voice, &noise(7, RATE, 0.3)]).1.is_empty());
}

#[test]
fn who_was_left_out_is_back_when_the_sound_agrees() {
    let voice = noise(8, 4 * RATE, 0.3);
    let mut other = voice.clone();
    other[..RATE].iter_mut().for_each(|sample| *sample = -*sample);
    let (mixed, left_out) = mix(&[&voice, &other]);
    assert_eq!((&mixed[240..], left_out), (&voice[240..], vec![]));
}

#[test]
fn what_is_not_finite_is_nothing_and_arguments_are_checked() {
    let mut mixer = Mixer::new(RATE, 3).unwrap();
    assert_eq!(mixer.mix(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]), 0.0);
    assert!(mixer.mix(&[f32::MAX; 3]).is_finite());
    for (rate, channels) in [(0, 1), (RATE, 0), (RATE, 1025), (2_000_000, 1)] {
        assert!(Mixer::new(rate, channels).is_err());
    }
}
