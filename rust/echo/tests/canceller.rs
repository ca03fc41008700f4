//! What becomes of echoes, and of sound without one.

mod scenes;

use echo::{BLOCK, Canceller, FRAME, Mode, RATE};
use fastrand::Rng;
use scenes::{room, signed, syllables};

fn noise(pcm: &mut [f32], size: f32) {
    let mut random = Rng::with_seed(5);
    pcm.iter_mut().for_each(|sample| *sample += size * signed(&mut random));
}

fn run(canceller: &mut Canceller, heard: &[f32], played: &[f32], block: usize) -> Vec<f32> {
    let mut clean = heard.to_vec();
    for (heard, played) in clean.chunks_mut(block).zip(played.chunks(block)) {
        canceller.process(heard, played);
    }
    clean
}

fn decibels(pcm: &[f32]) -> f32 {
    10.0 * (pcm.iter().map(|x| x * x).sum::<f32>() / pcm.len() as f32 + 1e-12).log10()
}

fn second(pcm: &[f32], begin: usize) -> &[f32] {
    &pcm[RATE * begin..RATE * (begin + 2)]
}

#[test]
fn finds_any_delay_and_takes_the_echo_away() {
    let played = syllables(1, 8);
    for delay in [480, 2880, 6000, 12_000] {
        for gain in [0.1, 1.0, 2.0] {
            let mut heard = room(&played, delay, gain);
            noise(&mut heard, 3e-4);
            let mut canceller = Canceller::new(Mode::Auto);
            let clean = run(&mut canceller, &heard, &played, FRAME);
            let stats = canceller.remote().stats();
            assert!(stats.echo, "{delay} samples, {gain}");
            assert!((stats.delay - delay as f32 / RATE as f32).abs() < 0.003, "{delay} samples, {gain}: {stats:?}");
            let taken = decibels(second(&heard, 5)) - decibels(second(&clean, 5));
            assert!(taken > if gain < 1.0 { 15.0 } else { 20.0 }, "{delay} samples, {gain}: {taken} dB");
            assert!(stats.removed > 15.0 && stats.level < 0.0, "{stats:?}");
        }
    }
}

#[test]
fn sound_without_an_echo_passes_as_it_is() {
    let (voice, played) = (syllables(2, 20), syllables(3, 20));
    let mut canceller = Canceller::new(Mode::Auto);
    let clean = run(&mut canceller, &voice, &played, FRAME);
    // In the first words it is not known yet.
    assert_eq!(clean[36_000..], voice[36_000..]);
    let stats = canceller.remote().stats();
    assert!(
        !stats.echo && stats.removed == 0.0 && stats.level == f32::NEG_INFINITY && stats.delay.is_nan(),
        "{stats:?}"
    );
}

#[test]
fn who_spoke_before_moshi_did_is_heard_all_the_time() {
    let (mut voice, mut played) = (syllables(2, 20), syllables(3, 20));
    noise(&mut voice, 3e-4);
    // The first word begins while the user speaks.
    played[..48_000].fill(0.0);
    assert_eq!(run(&mut Canceller::new(Mode::Auto), &voice, &played, FRAME), voice);
    // And while the user says nothing, the room's noise is heard.
    let mut quiet = vec![0.0; voice.len()];
    noise(&mut quiet, 3e-3);
    assert_eq!(run(&mut Canceller::new(Mode::Auto), &quiet, &played, FRAME), quiet);
}

#[test]
fn off_passes_on_is_a_block_late() {
    let voice = syllables(2, 4);
    let played = vec![0.0; voice.len()];
    let mut off = Canceller::new(Mode::Off);
    assert_eq!(run(&mut off, &voice, &played, FRAME), voice);
    let clean = run(&mut Canceller::new(Mode::On), &voice, &played, FRAME);
    let error: Vec<f32> = clean[BLOCK..].iter().zip(&voice).map(|(clean, voice)| clean - voice).collect();
    assert!(decibels(&error) < decibels(&voice) - 40.0);
}

#[test]
fn follows_an_echo_that_comes_goes_and_moves() {
    let played = syllables(4, 36);
    let (near, far) = (room(&played, 2880, 1.0), room(&played, 3840, 1.0));
    let mut heard = near;
    let (moves, ends) = (RATE * 10, RATE * 20);
    heard[moves..ends].copy_from_slice(&far[moves..ends]);
    heard[ends..].fill(0.0);
    noise(&mut heard, 3e-4);
    let mut canceller = Canceller::new(Mode::Auto);
    let first = run(&mut canceller, &heard[..moves], &played[..moves], FRAME);
    assert!(decibels(second(&heard, 8)) - decibels(second(&first, 8)) > 20.0);
    let then = run(&mut canceller, &heard[moves..ends], &played[moves..ends], FRAME);
    // Back within two seconds.
    assert!(decibels(second(&heard[moves..], 2)) - decibels(second(&then, 2)) > 20.0);
    assert!((canceller.remote().stats().delay - 0.16).abs() < 0.003);
    let after = run(&mut canceller, &heard[ends..], &played[ends..], FRAME);
    assert!(!canceller.remote().stats().echo);
    assert_eq!(second(&after, 14), second(&heard[ends..], 14));
}

#[test]
fn blocks_of_any_number_and_a_reset_give_the_same() {
    let played = syllables(1, 4);
    let heard = room(&played, 2880, 1.0);
    let mut canceller = Canceller::new(Mode::On);
    let once = run(&mut canceller, &heard, &played, FRAME);
    canceller.reset();
    assert_eq!(run(&mut canceller, &heard, &played, FRAME), once);
}

#[test]
fn takes_what_is_no_sound() {
    let mut canceller = Canceller::new(Mode::On);
    for value in [0.0, 1.0, -1.0, 1e-30, 10.0] {
        let mut heard = vec![value; FRAME];
        for _ in 0..20 {
            canceller.process(&mut heard, &[value; FRAME]);
        }
        assert!(heard.iter().all(|sample| sample.is_finite()), "{value}");
    }
}

#[test]
fn what_is_no_number_or_far_too_loud_is_over_when_it_is_over() {
    let mut played = vec![0.0; 4 * RATE / FRAME * FRAME];
    noise(&mut played, 0.1);
    let heard = [&vec![0.0; 2400], &played[..played.len() - 2400]].concat();
    for value in [f32::NAN, f32::INFINITY, 1e30] {
        for in_played in [false, true] {
            let (mut heard, mut played) = (heard.clone(), played.clone());
            let broken = if in_played { &mut played } else { &mut heard };
            broken[2 * RATE] = value;
            let clean = run(&mut Canceller::new(Mode::Auto), &heard, &played, FRAME);
            let rest = 3 * RATE;
            assert!(decibels(&clean[rest..]) < decibels(&heard[rest..]) - 20.0, "{value}, {in_played}");
        }
    }
}
