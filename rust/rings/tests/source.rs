//! A microphone's sound at 24 kHz: what it is, where it was, and what was played meanwhile.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use rings::{Capture, Mouth, Playback, RATE, Reference, Source};

const FRAME: usize = 1920;
const RATES: [usize; 5] = [24_000, 48_000, 44_100, 16_000, 96_000];

#[test]
fn sound_tells_where_it_was() {
    for rate in RATES {
        for seed in 0..5 {
            let mut random = Rng::with_seed(seed);
            let capture = Arc::new(Capture::new(rate, 1, 4.0).unwrap());
            let mut source = Source::new(capture.clone());
            // Every sample is its own number, so that what is taken says by itself where it was.
            let scale = 10.0 * rate as f64;
            let (mut fed, mut pcm, mut places) = (0, Vec::new(), Vec::new());
            while (fed as f64) < scale * 0.9 {
                let count = 1 + (random.f64() * rate as f64 / 3.0) as usize;
                capture.feed(&(fed..fed + count).map(|i| (i as f64 / scale) as f32).collect::<Vec<_>>());
                fed += count;
                if random.f64() < 0.1 {
                    // Twice: the second before the resampler has given what was before the first.
                    for _ in 0..2 {
                        source.trim(0.1 * random.f64());
                    }
                }
                while random.f64() < 0.9 {
                    let Some(taken) = source.take(FRAME) else { break };
                    assert_eq!(taken.pcm.len(), FRAME);
                    assert_eq!(taken.places.iter().map(|place| place.1).sum::<usize>(), FRAME);
                    pcm.extend(taken.pcm);
                    for (position, count) in taken.places {
                        places.extend((0..count).map(|i| position + (i * rate) as f64 / RATE as f64));
                    }
                }
            }
            let step = rate as f64 / RATE as f64;
            let cuts: Vec<usize> = (1..places.len()).filter(|i| places[*i] - places[i - 1] > 2.0 * step).collect();
            assert!(cuts.len() > 1);
            // Beside a cut there are a crossfade of 5 ms and what the resampler makes of the step.
            let far = |i: usize| cuts.iter().all(|cut| cut.abs_diff(i) > 250) && i > 250;
            for i in (0..pcm.len()).filter(|i| far(*i)) {
                let off = f64::from(pcm[i]) * scale - places[i];
                assert!(off.abs() < 2.0, "sample {i} at {rate} is {off} off");
            }
        }
    }
}

#[test]
fn what_is_not_there_yet_is_not_taken() {
    for rate in RATES {
        let capture = Arc::new(Capture::new(rate, 1, 4.0).unwrap());
        let mut source = Source::new(capture.clone());
        for _ in 0..3 {
            capture.feed(&vec![0.0; rate / 100]);
            assert_eq!(source.take(FRAME), None);
        }
        assert!((source.backlog() - 0.03).abs() < 1e-9);
        capture.feed(&vec![0.0; source.missing(FRAME) - capture.available() - 1]);
        assert_eq!(source.take(FRAME), None);
        capture.feed(&[0.0; 1]);
        assert_eq!(source.take(FRAME).unwrap().places, [(0.0, FRAME)]);
        capture.feed(&vec![0.0; rate]);
        for frame in 1..3 {
            let places = source.take(FRAME).unwrap().places;
            assert_eq!(places.len(), 1);
            assert!((places[0].0 - (frame * FRAME * rate) as f64 / RATE as f64).abs() < 1e-6);
        }
    }
}

#[test]
fn a_mouth_says_all_it_was_given_and_nothing_of_before() {
    for rate in RATES {
        let playback = Arc::new(Playback::new(rate, 1, rate * 8 / 100, 4.0).unwrap());
        let mouth = Mouth::new(playback.clone());
        let mut output = vec![0.0; rate];
        for _ in 0..2 {
            for _ in 0..5 {
                mouth.write(vec![0.5; FRAME]);
            }
            // What the resampler waits for is all that is missing.
            assert!((0.4 - mouth.queued()) < 0.008);
            mouth.pause();
            assert!((0.4 - mouth.queued()).abs() < 1e-4);
            playback.render(&mut output);
            assert!(output[rate / 100..rate * 39 / 100].iter().all(|sample| (sample - 0.5).abs() < 1e-3));
            assert!(output[rate * 41 / 100..].iter().all(|sample| *sample == 0.0));
        }
        mouth.write(vec![0.5; 3 * FRAME]);
        mouth.clear();
        assert_eq!(mouth.queued(), 0.0);
        mouth.write(vec![0.0; 5 * FRAME]);
        mouth.pause();
        playback.render(&mut output);
        assert!(output.iter().all(|sample| *sample == 0.0), "something of before at {rate}");
        assert_eq!(playback.stats(0).underruns, 0);
    }
}

#[test]
fn what_was_played_before_anything_ran_is_silence() {
    let capture = Arc::new(Capture::new(RATE, 1, 4.0).unwrap());
    let playback = Arc::new(Playback::new(RATE, 1, FRAME, 4.0).unwrap());
    let mut reference = Reference::new(capture.clone(), playback);
    assert_eq!(reference.read(0.0, FRAME), [0.0; FRAME]);
    assert_eq!(capture.read(1, Duration::ZERO), None);
}
