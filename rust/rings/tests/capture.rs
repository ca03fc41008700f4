//! Capture, fed by a simulated device.

use std::f32::consts::TAU;
use std::thread;
use std::time::Duration;

use rings::Capture;

const NOW: Duration = Duration::ZERO;

#[test]
fn what_is_fed_is_read_in_order_across_threads() {
    let total = 2_000_000;
    let capture = Capture::new(48000, 1, 0.1).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut next = 0;
            while next < total {
                let block = (1 + next * 7 % 1000).min(total - next);
                // A device would not wait; here nothing may be lost.
                while capture.available() + block > capture.capacity() {
                    thread::yield_now();
                }
                let samples: Vec<f32> = (next..next + block).map(|i| i as f32).collect();
                capture.feed(&samples);
                next += block;
            }
        });
        let mut next = 0;
        while next < total {
            let count = (1 + next * 13 % 1500).min(total - next);
            let pcm = capture.read(count, Duration::from_secs(10)).unwrap();
            for (i, sample) in pcm.iter().enumerate() {
                assert_eq!(*sample, (next + i) as f32);
            }
            next += count;
        }
    });
    let stats = capture.stats(0);
    assert_eq!((stats.samples, stats.lost, capture.available()), (total as u64, 0, 0));
}

#[test]
fn channels_are_mixed_and_odd_samples_become_nothing() {
    let capture = Capture::new(48000, 2, 1.0).unwrap();
    let voice: Vec<f32> = (0..48000).map(|i| (i as f32 * i as f32 * 1e-4).sin() * 0.5).collect();
    capture.feed(&voice.iter().flat_map(|sample| [0.0, *sample]).collect::<Vec<_>>());
    assert_eq!(capture.read(48000, NOW).unwrap(), voice);
    assert!(capture.stats(0).left_out.is_empty());
    capture.feed(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::NAN]);
    assert_eq!(capture.read(2, NOW).unwrap(), [0.0, 0.0]);
    // The mixer begins anew with a ring.
    let capture = Capture::new(48000, 2, 2.0).unwrap();
    capture.feed(&voice.iter().flat_map(|sample| [*sample, -*sample]).collect::<Vec<_>>());
    assert_eq!(capture.read(48000, NOW).unwrap()[480..], voice[480..]);
    assert_eq!(capture.stats(0).left_out, [1]);
}

#[test]
fn a_read_that_is_not_complete_takes_nothing() {
    let capture = Capture::new(48000, 1, 1.0).unwrap();
    capture.feed(&[0.5; 10]);
    assert_eq!(capture.read(11, Duration::from_millis(5)), None);
    assert_eq!(capture.read(10, NOW).unwrap(), [0.5; 10]);
    assert_eq!(capture.read(0, NOW).unwrap(), []);
}

#[test]
fn a_full_ring_keeps_the_oldest_and_counts_the_rest() {
    let capture = Capture::new(1000, 1, 0.1).unwrap();
    let samples: Vec<f32> = (0..130).map(|i| i as f32).collect();
    capture.feed(&samples);
    assert_eq!((capture.stats(0).lost, capture.available()), (30, 100));
    assert_eq!(capture.read(100, NOW).unwrap(), samples[..100]);
}

#[test]
fn trimming_crossfades_from_the_forgotten_sound() {
    let (rate, period) = (48000, 100);
    let step = TAU / period as f32;
    let sine: Vec<f32> = (0..20000).map(|i| (step * i as f32).sin()).collect();
    for keep in [5000, 300, 200, 7, 0] {
        let capture = Capture::new(rate, 1, 1.0).unwrap();
        capture.feed(&sine[..10000]);
        let mut heard = capture.read(1000, NOW).unwrap();
        assert_eq!(capture.trim(keep), 9000 - keep);
        assert_eq!(capture.trim(keep), 0);
        assert_eq!(capture.available(), keep);
        capture.feed(&sine[10000..]);
        // In pieces, and cut again within the crossfade.
        heard.extend(capture.read(50, NOW).unwrap());
        let rest = capture.available();
        assert_eq!(capture.trim(rest - 50), 50);
        heard.extend(capture.read(rest - 50, NOW).unwrap());
        let steepest = heard.windows(2).map(|pair| (pair[1] - pair[0]).abs()).fold(0.0, f32::max);
        assert!(steepest < 3.0 * step + 1.0 / 240.0, "a step of {steepest} with {keep} kept");
        assert_eq!(heard[1300..], sine[sine.len() - (heard.len() - 1300)..]);
    }
}

#[test]
fn statistics_add_up_and_asking_changes_nothing() {
    let capture = Capture::new(1000, 1, 1.0).unwrap();
    capture.feed(&[0.5, -1.0, 0.0, 0.5]);
    capture.feed(&[0.0; 10]);
    for _ in 0..2 {
        let stats = capture.stats(0);
        assert_eq!((stats.callbacks, stats.samples, stats.peak, stats.clipped), (2, 14, 1.0, 1));
        assert_eq!((stats.energy, stats.all_zero_seconds), (1.5, 0.01));
    }
    assert_eq!(capture.stats(14).peak, 0.0);
    capture.feed(&[0.0; 10]);
    let stats = capture.stats(14);
    assert_eq!((stats.peak, stats.energy, stats.clipped, stats.all_zero_seconds), (0.0, 1.5, 1, 0.02));
    capture.feed(&[0.0, 0.25]);
    let stats = capture.stats(24);
    assert_eq!((stats.peak, stats.energy, stats.all_zero_seconds), (0.25, 1.5625, 0.0));
    // After a sample that no device can mean, the level is known as before.
    capture.feed(&[f32::MAX]);
    let before = capture.stats(0).energy;
    capture.feed(&[0.5]);
    assert_eq!(capture.stats(0).energy - before, 0.25);
}

#[test]
fn a_peak_is_found_by_the_time_at_which_it_was() {
    let capture = Capture::new(1000, 1, 1.0).unwrap();
    // A callback each 10 ms, one after the other louder or quieter, for more than the minute that is remembered.
    let peaks: Vec<f32> = (0..7000u32).map(|i| (i.wrapping_mul(2654435761) % 1000) as f32 / 1000.0).collect();
    for (i, peak) in peaks.iter().enumerate() {
        capture.feed(&[&[-*peak][..], &[0.0; 9]].concat());
        for back in [0, 1, 7, 500, 6500] {
            let from = (i + 1).saturating_sub(back);
            let oldest = (i + 1).saturating_sub(6000).max(from.saturating_sub(1));
            let wanted = if back == 0 { 0.0 } else { peaks[oldest..=i].iter().copied().fold(0.0, f32::max) };
            if i % 97 == 0 || back < 10 {
                assert_eq!(capture.stats(10 * from as u64).peak, wanted, "{back} callbacks after {i}");
            }
        }
    }
}

#[test]
fn the_callback_bears_any_buffer() {
    let capture = Capture::new(48000, 1, 1.0).unwrap();
    let user = std::ptr::from_ref(&capture).cast_mut().cast();
    let nothing: *mut std::ffi::c_void = std::ptr::null_mut();
    let buffer = [0.5f32; 4];
    let input = buffer.as_ptr().cast();
    for (input, frames, user) in
        [(nothing.cast_const(), 0, user), (nothing.cast_const(), 100, user), (input, 0, user), (input, 4, nothing)]
    {
        // SAFETY: `input` has four samples or is null, and `user` is a capture or null.
        assert_eq!(unsafe { Capture::CALLBACK(input, nothing, frames, nothing, 2, user) }, 0);
    }
    // SAFETY: no buffer has that many samples, so it is left alone.
    assert_eq!(unsafe { Capture::CALLBACK(input, nothing, std::ffi::c_ulong::MAX, nothing, 0, user) }, 0);
    let stats = capture.stats(0);
    assert_eq!((stats.callbacks, stats.device_overflows, stats.samples, capture.available()), (4, 3, 0, 0));
}
