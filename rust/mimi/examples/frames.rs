//! Encodes and decodes noise frame by frame and prints what a frame takes, by stage: something to run under a profiler.
//!
//! `cargo run --release -p mimi --example frames CHECKPOINT [THREADS [FRAMES [KERNELS [float16]]]]`
//!
//! KERNELS is an instruction set by its name, such as AVX2.

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use mimi::{Isa, Mimi, Options, Precision, StageTimes};

/// Median and least time of a whole frame, then medians by stage, in milliseconds.
struct Table(Vec<[Duration; 4]>);

impl Table {
    fn add(&mut self, whole: Duration, before: StageTimes, after: StageTimes) {
        self.0.push([
            whole,
            after.seanet - before.seanet,
            after.transformer - before.transformer,
            after.quantizer - before.quantizer,
        ]);
    }

    fn print(&self, name: &str) {
        let sorted = |column: usize| {
            let mut times: Vec<f64> = self.0.iter().map(|row| 1e3 * row[column].as_secs_f64()).collect();
            times.sort_by(f64::total_cmp);
            times
        };
        let median = |column: usize| sorted(column)[self.0.len() / 2];
        println!(
            "{name} {:7.2} (least {:5.2})   seanet {:6.2}   transformer {:6.2}   quantizer {:6.2}",
            median(0),
            sorted(0)[0],
            median(1),
            median(2),
            median(3)
        );
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("the path of a checkpoint is expected")?;
    let threads = arguments.next().map_or(Ok(1), |n| n.parse())?;
    let frames: usize = arguments.next().map_or(Ok(300), |n| n.parse())?;
    let isa = match arguments.next() {
        Some(name) => Isa::available().into_iter().find(|isa| isa.to_string() == name).ok_or("no such kernels here")?,
        None => Isa::available()[0],
    };
    let weights = match arguments.next().as_deref() {
        Some("float16") => Precision::Float16,
        Some(_) => return Err("float16 is expected after the kernels".into()),
        None => Precision::Float32,
    };
    let options = Options { num_threads: Some(threads), isa: Some(isa), weights, ..Options::default() };
    let mimi = Mimi::load(Path::new(&path), &options)?;

    let mut random = fastrand::Rng::with_seed(1);
    let (mut encoder, mut decoder) = (mimi.encoder(), mimi.decoder());
    let (mut encoding, mut decoding) = (Table(Vec::new()), Table(Vec::new()));
    let (mut codes, mut decoded) = (Vec::new(), Vec::new());
    for frame in 0..frames + 20 {
        let pcm: Vec<f32> = (0..mimi.frame_size()).map(|_| random.f32() - 0.5).collect();
        let (begin, before) = (Instant::now(), encoder.stage_times());
        encoder.step_into(&pcm, &mut codes)?;
        let (middle, between) = (Instant::now(), decoder.stage_times());
        decoder.step_into(&codes, mimi.num_codebooks(), &mut decoded)?;
        if frame >= 20 {
            decoding.add(middle.elapsed(), between, decoder.stage_times());
            encoding.add(middle - begin, before, encoder.stage_times());
        }
    }
    println!("milliseconds per frame, {isa}, {weights:?}, {threads} threads, medians of {frames} frames");
    encoding.print("encode");
    decoding.print("decode");
    Ok(())
}
