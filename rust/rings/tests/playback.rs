//! Playback against a simulated device and a simulated model; time is counted in samples.

use std::f32::consts::TAU;

use fastrand::Rng;
use rings::Playback;

const AMPLITUDE: f32 = 0.5;

/// A sine of `cycles` in a frame, so that it goes on from frame to frame.
fn sine(frame: usize, cycles: usize) -> Vec<f32> {
    (0..frame).map(|i| AMPLITUDE * (TAU * (cycles * i) as f32 / frame as f32).sin()).collect()
}

/// The largest step that a listener may get: three times the sine's own, and a fade of 5 ms.
fn largest_step(rate: usize, frame: usize, cycles: usize) -> f32 {
    3.0 * AMPLITUDE * TAU * cycles as f32 / frame as f32 + AMPLITUDE / (rate / 200) as f32
}

/// A device that takes blocks, and what it heard.
struct Device {
    playback: Playback,
    block: Vec<f32>,
    now: f64,
    last: f32,
    step: f32,
    low: usize,
    high: usize,
}

impl Device {
    fn new(rate: usize, frame: usize) -> Self {
        let playback = Playback::new(rate, 1, frame, 4.0).unwrap();
        Self { playback, block: Vec::new(), now: 0.0, last: 0.0, step: 0.0, low: usize::MAX, high: 0 }
    }

    fn render(&mut self, samples: usize) {
        self.high = self.high.max(self.playback.queued());
        self.block.resize(samples, 0.0);
        self.playback.render(&mut self.block);
        for sample in &self.block {
            assert!(sample.abs() <= 1.0);
            self.step = self.step.max((sample - self.last).abs());
            self.last = *sample;
        }
        self.now += samples as f64;
        self.low = self.low.min(self.playback.queued());
    }

    /// The lowest and the highest fill since the last call.
    fn range(&mut self) -> (usize, usize) {
        let range = (self.low, self.high);
        (self.low, self.high) = (usize::MAX, 0);
        range
    }

    fn check_sums(&self) {
        let stats = self.playback.stats(0);
        assert_eq!(
            stats.written + stats.inserted - stats.trimmed - stats.lost,
            stats.played + stats.cleared + stats.queued as u64,
            "{stats:?}"
        );
    }
}

/// The sample rates of devices with the lengths of a frame at each.
const RATES: [(usize, usize); 3] = [(48000, 3840), (44100, 3528), (24000, 1920)];

#[test]
fn without_trouble_every_sample_comes_out_as_it_was() {
    for (rate, frame) in RATES {
        for seed in 0..20 {
            let mut random = Rng::with_seed(seed);
            let sound: Vec<f32> = (0..50 * frame).map(|_| (2.0 * random.f64() - 1.0) as f32).collect();
            let playback = Playback::new(rate, 2, frame, 4.0).unwrap();
            let mut heard = Vec::new();
            let mut frames = sound.chunks(frame);
            while heard.len() < sound.len() {
                let block = random.usize(1..=4096);
                while playback.queued() < block.max(frame) {
                    let Some(next) = frames.next() else { break };
                    playback.write(next.to_vec());
                }
                let mut output = vec![0.0; 2 * block.min(sound.len() - heard.len())];
                playback.render(&mut output);
                for pair in output.chunks(2) {
                    assert_eq!(pair[0], pair[1]);
                    heard.push(pair[0]);
                }
            }
            let fade = rate / 200;
            for (i, (heard, sound)) in heard.iter().zip(&sound).enumerate() {
                let gain = ((i + 1) as f32 / fade as f32).min(1.0);
                assert_eq!(*heard, sound * gain, "sample {i} of seed {seed} at {rate}");
            }
            let stats = playback.stats(0);
            assert_eq!((stats.underruns, stats.trimmed, stats.inserted, stats.lost), (0, 0, 0, 0));
        }
    }
}

#[test]
fn clocks_that_drift_for_ten_hours() {
    // All lengths follow the rate; a low one is simulated sooner.
    let (rate, frame, cycles) = (8000, 640, 16);
    let sound = sine(frame, cycles);
    // With a divisor of the frame, the two clocks slip past each other by a whole block now and then.
    for (drift, block) in [(1e-4, 170), (-1e-4, 170), (1e-4, 80), (-1e-4, 80), (-1e-4, 160)] {
        let mut device = Device::new(rate, frame);
        let mut frames = 0f64;
        for minute in 1..=600 {
            while device.now < 60.0 * (minute * rate) as f64 {
                while frames * frame as f64 * (1.0 + drift) <= device.now {
                    device.playback.write(sound.clone());
                    frames += 1.0;
                }
                device.render(block);
            }
            let (low, high) = device.range();
            if minute > 3 {
                assert!(low > 0 && high - frame < frame, "{low} to {high} in minute {minute}, drift {drift}");
            }
        }
        device.check_sums();
        let stats = device.playback.stats(0);
        assert!(stats.underruns <= 2, "{stats:?}");
        // Ten hours at 100 ppm are 3.6 s.
        let corrected = stats.inserted.abs_diff(stats.trimmed) as f64 / rate as f64;
        assert!((3.4..3.8).contains(&corrected), "{stats:?}");
        assert!(stats.inserted.min(stats.trimmed) < rate as u64 / 4, "{stats:?}");
        assert!(device.step < largest_step(rate, frame, cycles));
    }
}

/// Three minutes of frames that come up to 10 ms late, and one in a hundred up to `late` seconds; those after a late one
/// come in a burst.
fn conversation(rate: usize, frame: usize, seed: u64, late: f64, largest_block: usize) -> Device {
    let cycles = frame / 120;
    let sound = sine(frame, cycles);
    let mut random = Rng::with_seed(seed);
    let mut device = Device::new(rate, frame);
    let (mut frames, mut arrival) = (0f64, 0f64);
    for minute in 1..=3 {
        while device.now < 60.0 * (minute * rate) as f64 {
            while arrival <= device.now {
                device.playback.write(sound.clone());
                frames += 1.0;
                let longest = if random.f64() < 0.01 { late } else { 0.01 };
                let delay = longest * random.f64() * rate as f64;
                arrival = arrival.max(frames * frame as f64 + delay);
            }
            device.render(random.usize(1..=largest_block));
            device.check_sums();
        }
        if minute < 3 {
            device.range();
        }
    }
    assert!(device.step < largest_step(rate, frame, cycles), "a step of {}", device.step);
    let cushion = device.playback.stats(0).cushion as usize;
    assert!((frame..=4 * frame).contains(&cushion));
    device
}

#[test]
fn a_conversation_with_small_trouble_settles_at_a_small_delay() {
    for (rate, frame) in RATES {
        for seed in 0..4 {
            let mut device = conversation(rate, frame, seed, 0.01, 1024);
            let stats = device.playback.stats(0);
            assert!(stats.underruns <= 2 && stats.lost == 0, "{stats:?}");
            let (low, high) = device.range();
            assert!(low > 0 && high - frame < frame + frame / 2, "{low} to {high} at {rate} in the last minute");
        }
    }
}

#[test]
fn a_conversation_with_much_trouble_has_no_clicks_and_bounds_its_delay() {
    for (rate, frame) in RATES {
        for seed in 0..4 {
            let largest_block = if seed % 2 == 0 { 4096 } else { 512 };
            let mut device = conversation(rate, frame, seed, 0.3, largest_block);
            let stats = device.playback.stats(0);
            assert!((1..=20).contains(&stats.underruns) && stats.lost == 0, "{stats:?}");
            let (_, high) = device.range();
            assert!(high < 6 * frame + largest_block, "{high} at {rate} in the last minute");
        }
    }
}

#[test]
fn a_stall_leaves_no_delay_behind() {
    for (rate, frame) in RATES {
        let (block, cycles) = (rate / 100, frame / 120);
        let sound = sine(frame, cycles);
        let mut device = Device::new(rate, frame);
        let mut frames = 0;
        let mut run = |device: &mut Device, seconds: usize, stall: bool| {
            let end = device.now + (seconds * rate) as f64;
            while device.now < end {
                while !stall && (frames * frame) as f64 <= device.now {
                    device.playback.write(sound.clone());
                    frames += 1;
                }
                device.render(block);
            }
            device.range()
        };
        run(&mut device, 30, false);
        let (low, high) = run(&mut device, 5, false);
        let before = device.playback.stats(0);
        run(&mut device, 1, true);
        let (_, burst) = run(&mut device, 15, false);
        assert!(burst > rate * 3 / 4);
        let (low_after, high_after) = run(&mut device, 5, false);
        let after = device.playback.stats(0);
        assert_eq!(after.underruns, before.underruns + 1);
        // The cushion has grown by a step, and the dead band is 5 ms to either side.
        let allowed = frame / 4 + rate / 100;
        assert!(low_after <= low + allowed && high_after <= high + allowed, "{low_after} after {low}");
        assert!(device.step < largest_step(rate, frame, cycles));
        device.check_sums();
    }
}

#[test]
fn the_cushion_grows_with_underruns_and_shrinks_with_quiet_minutes() {
    let (rate, frame, block) = (24000, 1920, 240);
    let mut device = Device::new(rate, frame);
    let sound = sine(frame, 16);
    let mut cushions = vec![frame];
    for _ in 0..15 {
        // Written at once, or the rest of a frame would wait for the next round.
        device.playback.write(sound.repeat(4));
        while device.playback.queued() > 0 {
            device.render(block);
        }
        device.render(block);
        cushions.push(device.playback.stats(0).cushion as usize);
    }
    let expected: Vec<usize> = (0..=15).map(|i| (frame + i * frame / 4).min(4 * frame)).collect();
    assert_eq!(cushions, expected);

    let underruns = device.playback.stats(0).underruns;
    let mut frames = 0;
    let start = device.now;
    let mut cushions = Vec::new();
    for minute in 1..=15 {
        while device.now - start < 60.5 * (minute * rate) as f64 {
            while (frames * frame) as f64 <= device.now - start {
                device.playback.write(sound.clone());
                frames += 1;
            }
            device.render(block);
        }
        cushions.push(device.playback.stats(0).cushion as usize);
    }
    assert_eq!(device.playback.stats(0).underruns, underruns);
    assert!(cushions.windows(2).all(|pair| pair[0] - pair[1] <= frame / 4), "{cushions:?}");
    assert!(*cushions.last().unwrap() <= frame + frame / 4, "{cushions:?}");
    assert!(device.range().1 < 6 * frame);
    device.check_sums();
}

#[test]
fn clear_pause_and_a_full_ring_do_not_click() {
    for (rate, frame) in RATES {
        for seed in 0..20 {
            let mut random = Rng::with_seed(seed);
            let cycles = frame / 120;
            let sound = sine(frame, cycles);
            let mut device = Device::new(rate, frame);
            for _ in 0..300 {
                match random.usize(..20) {
                    0 => device.playback.clear(),
                    1 => device.playback.pause(),
                    // More than fits.
                    2 => (0..60).for_each(|_| device.playback.write(sound.clone())),
                    n if n < 8 => device.playback.write(sound.clone()),
                    _ => device.render(random.usize(1..=4096)),
                }
                device.check_sums();
            }
            let stats = device.playback.stats(0);
            assert!(stats.lost > 0 && stats.cleared > 0 && stats.played > 0, "{stats:?}");
            assert!(device.step < largest_step(rate, frame, cycles), "a step of {} in seed {seed}", device.step);
        }
    }
}

#[test]
fn silence_that_was_announced_is_no_underrun() {
    let (rate, frame) = (24000, 1920);
    let playback = Playback::new(rate, 1, frame, 4.0).unwrap();
    let mut output = vec![0.0; 3 * frame];
    playback.render(&mut output);
    // Less than the cushion is played when nothing follows.
    playback.write(vec![0.5; 1000]);
    playback.render(&mut output);
    assert!(output.iter().all(|sample| *sample == 0.0));
    playback.pause();
    playback.render(&mut output);
    assert_eq!(output[500], 0.5);
    playback.write(vec![0.5; 2 * frame]);
    playback.render(&mut output[..frame]);
    playback.clear();
    assert_eq!(playback.queued(), 0);
    playback.render(&mut output);
    assert!(output[0] > 0.0 && output[rate / 200..].iter().all(|sample| *sample == 0.0));
    let stats = playback.stats(0);
    assert_eq!((stats.underruns, stats.silent, stats.cleared), (0, 0, frame as u64));
    playback.write(vec![0.5; frame]);
    playback.render(&mut output);
    let stats = playback.stats(0);
    assert_eq!((stats.underruns, stats.silent), (1, 2 * frame as u64));
}

#[test]
fn sound_that_waits_long_is_shortened_unless_told_otherwise() {
    let (rate, frame) = (24000, 1920);
    let mut random = Rng::with_seed(1);
    let sound: Vec<f32> = (0..300 * frame).map(|_| (2.0 * random.f64() - 1.0) as f32).collect();
    for regulated in [true, false] {
        let playback = Playback::new(rate, 1, frame, 4.0).unwrap();
        let playback = if regulated { playback } else { playback.unregulated() };
        let (mut heard, mut frames) = (Vec::new(), sound.chunks(frame));
        while heard.len() < sound.len() {
            while playback.queued() < rate {
                let Some(next) = frames.next() else { break };
                playback.write(next.to_vec());
            }
            let mut output = vec![0.0; 480];
            playback.render(&mut output);
            heard.extend(output);
        }
        let stats = playback.stats(0);
        assert_eq!(stats.inserted, 0);
        assert_eq!(stats.trimmed > 0, regulated, "{stats:?}");
        assert_eq!(heard[rate / 200..] == sound[rate / 200..], !regulated);
    }
}

#[test]
fn only_finite_samples_from_minus_one_to_one_are_played() {
    let frame = 1920;
    let playback = Playback::new(24000, 1, frame, 4.0).unwrap();
    let odd = [f32::NAN, f32::INFINITY, -f32::INFINITY, 3.0, -1e30, 0.25];
    playback.write(odd.iter().copied().cycle().take(frame).collect());
    let mut output = vec![9.0; frame];
    playback.render(&mut output);
    assert_eq!(output[1200..1206], [0.0, 0.0, 0.0, 1.0, -1.0, 0.25]);
    assert!(output.iter().all(|sample| sample.abs() <= 1.0));
}

#[test]
fn the_callback_bears_any_buffer() {
    let playback = Playback::new(24000, 1, 1920, 4.0).unwrap();
    playback.write(vec![0.5; 1920]);
    let user = std::ptr::from_ref(&playback).cast_mut().cast();
    let nothing: *mut std::ffi::c_void = std::ptr::null_mut();
    let mut buffer = [9f32; 4];
    let output = buffer.as_mut_ptr().cast();
    for (output, frames, user) in [(nothing, 0, user), (nothing, 100, user), (output, 0, user), (output, 4, nothing)] {
        // SAFETY: `output` has four samples or is null, and `user` is a playback or null.
        assert_eq!(unsafe { Playback::CALLBACK(nothing, output, frames, nothing, 4, user) }, 0);
    }
    // SAFETY: no buffer has that many samples, so it is left alone.
    assert_eq!(unsafe { Playback::CALLBACK(nothing, output, std::ffi::c_ulong::MAX, nothing, 0, user) }, 0);
    assert_eq!(buffer, [9.0; 4]);
    let stats = playback.stats(0);
    assert_eq!((stats.callbacks, stats.device_underflows, stats.samples, stats.queued), (4, 3, 0, 1920));
}

#[test]
fn arguments_out_of_range_are_named() {
    for (rate, channels, frame, seconds, name) in [
        (0, 1, 80, 4.0, "rate"),
        (48000, 0, 3840, 4.0, "channels"),
        (48000, 1, 0, 4.0, "frame"),
        (48000, 1, 48000, 4.0, "frame"),
        (48000, 1, 3840, f64::NAN, "seconds"),
    ] {
        assert!(Playback::new(rate, channels, frame, seconds).is_err_and(|error| error.starts_with(name)));
    }
}
