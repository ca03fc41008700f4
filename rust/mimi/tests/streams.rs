//! The codec through its public face, on the embedded demo checkpoint: what Python cannot reach.

use std::path::PathBuf;

use mimi::{Isa, Mimi, Options, Precision};

fn demo(options: &Options) -> Mimi {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo/mimi.safetensors");
    Mimi::load(&path, options).unwrap()
}

/// A seeded sound with some structure: a gliding tone with noise.
fn sound(samples: usize) -> Vec<f32> {
    let (mut random, mut phase) = (fastrand::Rng::with_seed(1), 0.0f64);
    (0..samples)
        .map(|i| {
            phase += 0.02 + 0.02 * (i as f64 / 9000.0).sin();
            (0.3 * phase.sin() + 0.1 * (random.f64() - 0.5)) as f32
        })
        .collect()
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

/// Attention depends on differences of positions only, so a stream that is a year old sounds like a new one. With
/// angles in float32 it would not by far.
#[test]
fn positions_never_run_out() {
    let mimi = demo(&Options::default());
    let pcm = sound(40 * 1920); // past the window of 24 steps
    let codes = mimi.encode(&pcm).unwrap();
    let decoded = mimi.decode(&codes, 8).unwrap();
    // Past 2^24, 2^32 and at a year of steps.
    for position in [16_777_217, 4_294_967_290, 788_400_001] {
        let (mut encoder, mut decoder) = (mimi.encoder(), mimi.decoder());
        encoder.reset_at(position);
        decoder.reset_at(position);
        assert_eq!(encoder.step(&pcm).unwrap(), codes, "from step {position}");
        let difference = worst(&decoder.step(&codes, 8).unwrap(), &decoded);
        assert!(difference < 1e-5, "from step {position}: {difference}");
    }
    // At the end of the count it goes on.
    let (mut encoder, mut decoder) = (mimi.encoder(), mimi.decoder());
    encoder.reset_at(u64::MAX - 5);
    decoder.reset_at(u64::MAX - 5);
    assert_eq!(encoder.step(&pcm).unwrap().len(), codes.len());
    assert!(decoder.step(&codes, 8).unwrap().iter().all(|x| x.is_finite()));
}

const PRECISIONS: [Precision; 2] = [Precision::Float32, Precision::Float16];

#[test]
fn every_instruction_set_gives_the_same() {
    for weights in PRECISIONS {
        gives_the_same(weights);
    }
}

fn gives_the_same(weights: Precision) {
    let pcm = sound(20 * 1920 + 77);
    let mut results = Vec::new();
    for isa in Isa::available() {
        for threads in [1, 2] {
            let mimi = demo(&Options { isa: Some(isa), num_threads: Some(threads), weights, ..Options::default() });
            assert_eq!(mimi.weights(), weights);
            let latents = mimi.encode_latent(&pcm).unwrap();
            let codes = mimi.encode(&pcm).unwrap();
            let decoded = mimi.decode(&codes, 8).unwrap();
            results.push((isa, latents, codes, decoded));
        }
    }
    let (first, latents, codes, decoded) = &results[0];
    for (isa, other_latents, other_codes, other_decoded) in &results[1..] {
        let (difference, largest) = (worst(latents, other_latents), worst(latents, &vec![0.0; latents.len()]));
        assert!(difference < 1e-5 * largest.max(1.0), "{first:?} {isa:?}: {difference} of {largest}");
        assert_eq!(codes, other_codes, "{first:?} {isa:?}");
        assert!(worst(decoded, other_decoded) < 1e-5, "{first:?} {isa:?}");
    }
    for pair in results.chunks_exact(2) {
        let ((isa, latents, codes, decoded), other) = (&pair[0], &pair[1]);
        assert_eq!((latents, codes, decoded), (&other.1, &other.2, &other.3), "{isa:?}: threads change no bit");
    }
}

/// With weights in float16 nearly the same comes out, and not the very same.
#[test]
fn float16_is_near_float32() {
    let pcm = sound(20 * 1920);
    let [single, half] = PRECISIONS.map(|weights| demo(&Options { weights, ..Options::default() }));
    let latents = single.encode_latent(&pcm).unwrap();
    let difference = worst(&latents, &half.encode_latent(&pcm).unwrap());
    let largest = worst(&latents, &vec![0.0; latents.len()]);
    assert!(1e-6 * largest < difference && difference < 1e-2 * largest, "{difference} of {largest}");
    let codes = single.encode(&pcm).unwrap();
    let decoded = single.decode(&codes, 8).unwrap();
    let difference = worst(&decoded, &half.decode(&codes, 8).unwrap());
    let largest = worst(&decoded, &vec![0.0; decoded.len()]);
    assert!(1e-6 * largest < difference && difference < 1e-2 * largest, "{difference} of {largest}");
}

/// Pieces of any size give the very bits of the whole.
#[test]
fn streaming_equals_offline_to_the_bit() {
    for isa in Isa::available() {
        for weights in PRECISIONS {
            streaming_equals_offline(&Options { isa: Some(isa), weights, ..Options::default() });
        }
    }
}

fn streaming_equals_offline(options: &Options) {
    let mimi = demo(options);
    let pcm = sound(16 * 1920 + 5); // past the window of 24 steps
    let codes = mimi.encode(&pcm).unwrap();
    let decoded = mimi.decode(&codes, 8).unwrap();
    for size in [1, 333, 1921, 10_000] {
        let mut encoder = mimi.encoder();
        let streamed: Vec<u32> = pcm.chunks(size).flat_map(|piece| encoder.step(piece).unwrap()).collect();
        assert_eq!(streamed, codes[..16 * 8], "{size} samples at a time");
    }
    for frames in [1, 3, 7] {
        let mut decoder = mimi.decoder();
        let streamed: Vec<f32> = codes.chunks(8 * frames).flat_map(|piece| decoder.step(piece, 8).unwrap()).collect();
        assert_eq!(streamed, decoded, "{frames} frames at a time");
    }
}

/// A header can announce what it likes: memory is asked for only as far as the file goes.
#[test]
fn headers_that_lie_are_errors() {
    let directory = std::env::temp_dir().join(format!("mimi-test-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("liar.safetensors");
    let name = "encoder.model.0.conv.conv.bias";
    for (length, header) in [
        (u64::MAX, "{}".to_owned()),
        (1 << 40, "{}".to_owned()),
        (0, format!(r#"{{"{name}":{{"dtype":"F32","shape":[64],"data_offsets":[0,9999999999999]}}}}"#)),
        (0, format!(r#"{{"{name}":{{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,0]}}}}"#)),
        (0, format!(r#"{{"{name}":{{"dtype":"F32","shape":[64],"data_offsets":[8,4]}}}}"#)),
        (0, format!(r#"{{"{name}":{{"dtype":"F32","shape":[-1],"data_offsets":[0,0]}}}}"#)),
        (0, format!(r#"{{"{name}":[]}}"#)),
        (0, "[".repeat(5000)),
    ] {
        let length = if length == 0 { header.len() as u64 } else { length };
        std::fs::write(&path, [&length.to_le_bytes(), header.as_bytes()].concat()).unwrap();
        let message = Mimi::load(&path, &Options::default()).unwrap_err().to_string();
        assert!(message.contains("liar.safetensors") && message.ends_with('.'), "{message}");
    }
    std::fs::remove_dir_all(&directory).unwrap();
}
