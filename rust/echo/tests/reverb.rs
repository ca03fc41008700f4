//! How a room goes on where the filter ends.

use aec3::api::EchoCanceller3Config;
use aec3::audio_processing::aec3::aec3_common::FFT_LENGTH_BY_2_PLUS_1 as BINS;
use aec3::audio_processing::aec3::reverb_tail_estimator::ReverbTailEstimator;
use echo::{BLOCK, RATE};
use fastrand::Rng;

const PARTITIONS: usize = 56;
/// Bins of which a voice has nothing.
const SILENT: usize = 40;

fn estimator() -> ReverbTailEstimator {
    ReverbTailEstimator::new(&EchoCanceller3Config::default())
}

fn decay(room: f64) -> f64 {
    10f64.powf(-6.0 * BLOCK as f64 / (room * RATE as f64))
}

/// A diffuse room behind its direct sound, as a filter learned it: with an error where nothing was played.
fn response(room: f64, seed: u64) -> Vec<[f32; BINS]> {
    let mut random = Rng::with_seed(seed);
    let mut response = vec![[0.0; BINS]; PARTITIONS];
    for (p, partition) in response.iter_mut().enumerate().skip(4) {
        for (k, power) in partition.iter_mut().enumerate() {
            let diffuse = decay(room).powi(p as i32 - 4) * -(1.0 - random.f64()).ln();
            *power = if k >= SILENT { 1.0 } else { (diffuse + if p == 4 { 10.0 } else { 0.0 }) as f32 };
        }
    }
    response
}

fn voice() -> [f32; BINS] {
    std::array::from_fn(|k| if k < SILENT { 1e6 / (1 + k) as f32 } else { 0.0 })
}

#[test]
fn finds_the_decay_of_rooms_and_the_response_at_the_filters_end() {
    for room in [0.15, 0.25, 0.35, 0.5] {
        for seed in 0..10 {
            let mut estimator = estimator();
            for _ in 0..1000 {
                estimator.update(&response(room, seed), true, &voice());
            }
            let found = f64::from(estimator.reverb_decay());
            assert!((found - decay(room)).abs() < 0.04, "room {room}, seed {seed}: {found}, wanted {}", decay(room));
            let tail = &estimator.get_reverb_frequency_response()[1..SILENT - 1];
            let level = tail.iter().map(|&power| f64::from(power)).sum::<f64>() / tail.len() as f64;
            let off = 10.0 * (level / decay(room).powi(PARTITIONS as i32 - 5)).log10();
            assert!(off.abs() < 8.0, "room {room}, seed {seed}: {off} dB");
        }
    }
}

#[test]
fn no_room_decays_more_slowly_than_one_of_600_ms() {
    let mut estimator = estimator();
    for _ in 0..1000 {
        estimator.update(&vec![[1.0; BINS]; PARTITIONS], true, &voice());
    }
    assert!((f64::from(estimator.reverb_decay()) - decay(0.6)).abs() < 0.002);
}

#[test]
fn learns_nothing_from_a_filter_that_is_not_usable_too_short_or_without_sound() {
    let before = estimator().reverb_decay();
    let room = response(0.5, 0);
    for (response, usable, render) in
        [(&room[..], false, voice()), (&room[..20], true, voice()), (&room[..], true, [0.0; BINS])]
    {
        let mut estimator = estimator();
        for _ in 0..1000 {
            estimator.update(response, usable, &render);
        }
        assert_eq!(estimator.reverb_decay(), before);
    }
}
