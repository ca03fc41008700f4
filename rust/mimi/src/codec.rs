//! The model, and the two kinds of stream through it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use checkpoint::{File, FileId, Shared};
use kernels::{Isa, Kernels, Precision, Sink};

use crate::config::Config;
use crate::conv::{Conv, History};
use crate::error::{Error, Result};
use crate::quantizer::{self, Quantizer};
use crate::scratch::sized;
use crate::seanet;
use crate::tensors::{check, check_kind};
use crate::transformer::{self, Transformer};
use crate::weights::Weights;

/// Transformer steps per frame: the stride of the last resampling.
const STEPS: usize = 2;

/// The most frames that are computed together. More would save little, and take more working memory.
const BLOCK: usize = 8;

/// Samples nearer to zero count as zero. This is 600 dB below full scale. Far below it, a fading sound becomes denormal numbers,
/// with which many processors are slow.
const SILENT: f32 = 1e-30;

/// How to load a codec.
#[derive(Clone, Debug)]
pub struct Options {
    /// Codebooks to encode to and to decode from, 1 to the configuration's `n_q`.
    pub num_codebooks: usize,
    /// Threads that share the work of a step, the caller's included; `None` takes half the cores, at most 2.
    pub num_threads: Option<usize>,
    /// The architecture; `None` takes the checkpoint's metadata key `config`, or the published values.
    pub config: Option<Config>,
    /// How the weights of matrices are held, whatever type they have in the file.
    pub weights: Precision,
    /// The instruction set; `None` picks the fastest that the machine has.
    pub isa: Option<Isa>,
}

impl Default for Options {
    fn default() -> Self {
        Self { num_codebooks: 8, num_threads: None, config: None, weights: Precision::Float32, isa: None }
    }
}

/// The layers of a codec, but for the quantizer, which depends on the number of codebooks.
#[derive(Debug)]
struct Layers {
    encoder: seanet::Encoder,
    encoder_transformer: Transformer,
    downsample: Conv,
    /// Depthwise, `[dimension, 4]`.
    upsample: Vec<f32>,
    decoder_transformer: Transformer,
    decoder: seanet::Decoder,
}

impl Layers {
    fn load(weights: &mut Weights, config: &Config) -> Result<Self> {
        let d = config.dimension;
        let encoding = |weights: &mut Weights| -> Result<_> {
            Ok((
                seanet::Encoder::load(weights, config)?,
                Transformer::load(weights, "encoder_transformer", config)?,
                Conv::load(weights, "downsample.conv.conv.conv", [d, d, 2 * STEPS, STEPS], false)?,
            ))
        };
        let decoding = |weights: &mut Weights| -> Result<_> {
            Ok((
                weights.take("upsample.convtr.convtr.convtr.weight", &[d, 1, 2 * STEPS])?,
                Transformer::load(weights, "decoder_transformer", config)?,
                seanet::Decoder::load(weights, config)?,
            ))
        };
        let (one, other) = match weights {
            Weights::Plan(_) => (encoding(weights), decoding(weights)),
            // Half of the time goes into fresh memory, half into packing: two threads share both.
            Weights::Read(checkpoint, precision, _) => {
                let (checkpoint, precision) = (*checkpoint, *precision);
                std::thread::scope(|scope| {
                    let other = scope.spawn(|| decoding(&mut Weights::read(checkpoint, precision)));
                    let one = encoding(&mut Weights::read(checkpoint, precision));
                    (one, other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                })
            }
        };
        let (encoder, encoder_transformer, downsample) = one?;
        let (upsample, decoder_transformer, decoder) = other?;
        Ok(Self { encoder, encoder_transformer, downsample, upsample, decoder_transformer, decoder })
    }
}

#[derive(Debug)]
struct Model {
    config: Config,
    num_codebooks: usize,
    weights: Precision,
    kernels: Kernels,
    layers: Arc<Layers>,
    quantizer: Arc<Quantizer>,
}

static LAYERS: Shared<(FileId, Config, Precision), Layers> = Shared::new();
static QUANTIZERS: Shared<(FileId, Config, Precision, usize), Quantizer> = Shared::new();

/// A loaded codec. It does not change, is cheap to clone, and may be shared between threads and streams.
#[derive(Clone, Debug)]
pub struct Mimi(Arc<Model>);

impl Mimi {
    /// Loads a safetensors checkpoint, strictly: exactly the tensors of the configuration must be there. Codecs of the
    /// same file, configuration and precision share their weights, unless the file was written within the last second.
    pub fn load(path: &Path, options: &Options) -> Result<Self> {
        let file = File::open(path)?;
        let config = match (&options.config, file.metadata()?.get("config")) {
            (Some(config), _) => config.clone(),
            (None, Some(text)) => Config::from_json(text).map_err(|e| match e {
                Error::Config(reason) => {
                    Error::checkpoint(path, format!("in the configuration in its metadata, {reason}"))
                }
                other => other,
            })?,
            (None, None) => Config::default(),
        };
        check_kind(&file)?;
        let n = options.num_codebooks;
        if n == 0 || n > config.n_q {
            return Err(Error::Input(format!("num_codebooks is {n}, but 1 to {} are expected", config.n_q)));
        }
        let mut plan = Weights::plan();
        Layers::load(&mut plan, &config)?;
        Quantizer::load(&mut plan, &config, n)?;
        if let Weights::Plan(expected) = plan {
            check(&file, &expected)?;
        }
        let (id, weights) = (file.id().cloned(), options.weights);
        let read = || Weights::read(&file, weights);
        let layers =
            LAYERS.get(id.clone().map(|id| (id, config.clone(), weights)), || Layers::load(&mut read(), &config))?;
        let quantizer = QUANTIZERS
            .get(id.map(|id| (id, config.clone(), weights, n)), || Quantizer::load(&mut read(), &config, n))?;
        let threads = match options.num_threads {
            Some(n @ 1..=64) => n,
            Some(n) => return Err(Error::Input(format!("num_threads is {n}, but 1 to 64 are expected"))),
            // Two streams and a language model run side by side in the app: leave them the other cores.
            None => std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).clamp(1, 2)),
        };
        let isa = options.isa.unwrap_or_else(|| Isa::available()[0]);
        let kernels = Kernels::new(isa, threads);
        Ok(Self(Arc::new(Model { config, num_codebooks: n, weights, kernels, layers, quantizer })))
    }

    /// The architecture.
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// How the weights of matrices are held.
    pub fn weights(&self) -> Precision {
        self.0.weights
    }

    /// Samples per frame.
    pub fn frame_size(&self) -> usize {
        self.0.config.frame_size()
    }

    /// Rows of the codes.
    pub fn num_codebooks(&self) -> usize {
        self.0.num_codebooks
    }

    /// A new stream from audio to codes.
    pub fn encoder(&self) -> Encoder {
        Encoder::new(self.clone())
    }

    /// A new stream from codes to audio.
    pub fn decoder(&self) -> Decoder {
        Decoder::new(self.clone())
    }

    /// Encodes a whole recording to codes `[frames, codebooks]`. Zeros complete its last frame.
    pub fn encode(&self, pcm: &[f32]) -> Result<Vec<u32>> {
        let mut encoder = self.encoder();
        let mut codes = encoder.step(pcm)?;
        codes.extend(encoder.finish());
        Ok(codes)
    }

    /// The latents that [`encode`](Self::encode) quantizes, `[frames, dimension]`.
    pub fn encode_latent(&self, pcm: &[f32]) -> Result<Vec<f32>> {
        check_pcm(pcm)?;
        let mut encoder = self.encoder();
        let mut latents = Vec::with_capacity(pcm.len().div_ceil(self.frame_size()) * self.config().dimension);
        for block in pcm.chunks(BLOCK * self.frame_size()) {
            latents.extend_from_slice(encoder.latents(block));
        }
        Ok(latents)
    }

    /// Decodes a whole recording of codes `[frames, rows]`.
    pub fn decode(&self, codes: &[u32], rows: usize) -> Result<Vec<f32>> {
        self.decoder().step(codes, rows)
    }
}

fn check_pcm(pcm: &[f32]) -> Result<()> {
    match pcm.iter().position(|x| !x.is_finite()) {
        Some(at) => Err(Error::Input(format!("sample {at} of pcm is {}, but finite numbers are expected", pcm[at]))),
        None => Ok(()),
    }
}

/// How long the steps of a stream have taken so far, by stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageTimes {
    /// The convolutions between audio and 25 steps per second.
    pub seanet: Duration,
    /// The transformer.
    pub transformer: Duration,
    /// The quantizer, and the resampling between it and the transformer.
    pub quantizer: Duration,
}

/// Reads the clock between stages.
struct Stopwatch(Instant);

impl Stopwatch {
    fn start() -> Self {
        Self(Instant::now())
    }

    /// Adds the time since the last call to `stage`.
    fn lap(&mut self, stage: &mut Duration) {
        let now = Instant::now();
        *stage += now - self.0;
        self.0 = now;
    }
}

/// A stream from audio to codes. A clone goes on from the same state, on its own.
#[derive(Clone, Debug)]
pub struct Encoder {
    mimi: Mimi,
    /// Samples that do not fill a frame yet.
    pending: Vec<f32>,
    seanet: seanet::State,
    transformer: transformer::State,
    downsample: History,
    /// Whether a frame has been encoded: the downsampling pads the stream with its own first step.
    started: bool,
    latents: Vec<f32>,
    scratch: quantizer::Scratch,
    times: StageTimes,
}

impl Encoder {
    fn new(mimi: Mimi) -> Self {
        let layers = &mimi.0.layers;
        Self {
            pending: Vec::with_capacity(mimi.frame_size()),
            seanet: layers.encoder.state(),
            transformer: layers.encoder_transformer.state(STEPS * BLOCK),
            downsample: layers.downsample.history(),
            started: false,
            latents: Vec::new(),
            scratch: quantizer::Scratch::default(),
            times: StageTimes::default(),
            mimi,
        }
    }

    /// How long the steps since the stream began have taken.
    pub fn stage_times(&self) -> StageTimes {
        self.times
    }

    /// Begins a new stream; samples that did not fill a frame are forgotten.
    pub fn reset(&mut self) {
        self.times = StageTimes::default();
        self.pending.clear();
        self.seanet.reset();
        self.transformer.reset();
        self.started = false;
    }

    /// Begins a new stream as if `position` transformer steps had passed, to test streams of any age.
    pub fn reset_at(&mut self, position: u64) {
        self.reset();
        self.transformer.start_at(position);
    }

    /// Takes any number of samples, and returns the codes of the frames that they complete, `[frames, codebooks]`.
    ///
    /// # Errors
    /// [`Error::Input`] when a sample is not finite. The state has not changed then.
    pub fn step(&mut self, pcm: &[f32]) -> Result<Vec<u32>> {
        let mut codes = Vec::new();
        self.step_into(pcm, &mut codes)?;
        Ok(codes)
    }

    /// [`step`](Self::step) into a buffer, whose contents it replaces. After a first step that completed as many
    /// frames it allocates nothing.
    ///
    /// # Errors
    /// [`Error::Input`] when a sample is not finite. The state and the buffer have not changed then.
    pub fn step_into(&mut self, pcm: &[f32], codes: &mut Vec<u32>) -> Result<()> {
        check_pcm(pcm)?;
        let size = self.mimi.frame_size();
        let frames = (self.pending.len() + pcm.len()) / size;
        codes.clear();
        codes.reserve(frames * self.mimi.num_codebooks());
        let mut rest = pcm;
        if !self.pending.is_empty() {
            let (head, tail) = rest.split_at(rest.len().min(size - self.pending.len()));
            self.pending.extend_from_slice(head);
            rest = tail;
            if self.pending.len() == size {
                let frame = std::mem::take(&mut self.pending);
                self.block(&frame, codes);
                self.pending = frame;
                self.pending.clear();
            }
        }
        let (whole, tail) = rest.split_at(rest.len() / size * size);
        for block in whole.chunks(BLOCK * size) {
            self.block(block, codes);
        }
        self.pending.extend_from_slice(tail);
        Ok(())
    }

    /// Completes a last frame with zeros, if samples wait for one, and gives its codes.
    fn finish(&mut self) -> Vec<u32> {
        let mut codes = Vec::new();
        if !self.pending.is_empty() {
            let frame = std::mem::take(&mut self.pending);
            self.block(&frame, &mut codes);
        }
        codes
    }

    fn block(&mut self, pcm: &[f32], codes: &mut Vec<u32>) {
        let frames = self.latents(pcm).len() / self.mimi.config().dimension;
        let model = &*self.mimi.0;
        let start = codes.len();
        codes.resize(start + frames * model.num_codebooks, 0);
        let mut watch = Stopwatch::start();
        let latents = &self.latents[..frames * model.config.dimension];
        model.quantizer.encode(&model.kernels, &mut self.scratch, latents, &mut codes[start..]);
        watch.lap(&mut self.times.quantizer);
    }

    /// The latents of at most [`BLOCK`] frames, `[frames, dimension]`; the last frame is completed with zeros.
    fn latents(&mut self, pcm: &[f32]) -> &[f32] {
        let Model { config, kernels, layers, .. } = &*self.mimi.0;
        let frames = pcm.len().div_ceil(config.frame_size());
        let samples = frames * config.frame_size();
        let mut watch = Stopwatch::start();
        let input = self.seanet.input.fresh(samples);
        for (to, x) in input.iter_mut().zip(pcm) {
            *to = if x.abs() < SILENT { 0.0 } else { *x };
        }
        input[pcm.len()..].fill(0.0);
        let rows = self.downsample.fresh(STEPS * frames);
        layers.encoder.run(kernels, &mut self.seanet, samples, rows);
        watch.lap(&mut self.times.seanet);
        layers.encoder_transformer.run(kernels, &mut self.transformer, rows);
        watch.lap(&mut self.times.transformer);
        if !self.started {
            self.started = true;
            self.downsample.repeat_first();
        }
        let latents = sized(&mut self.latents, frames * config.dimension);
        layers.downsample.run(kernels, &mut self.downsample, STEPS * frames, Sink::Store(latents));
        watch.lap(&mut self.times.quantizer);
        latents
    }
}

/// A stream from codes to audio.
#[derive(Debug)]
pub struct Decoder {
    mimi: Mimi,
    scratch: quantizer::Scratch,
    /// Latents; the upsampling needs the last one of the step before.
    upsample: History,
    transformer: transformer::State,
    seanet: seanet::State,
    times: StageTimes,
}

impl Decoder {
    fn new(mimi: Mimi) -> Self {
        let layers = &mimi.0.layers;
        Self {
            scratch: quantizer::Scratch::default(),
            upsample: History::new(mimi.config().dimension, 1),
            transformer: layers.decoder_transformer.state(STEPS * BLOCK),
            seanet: layers.decoder.state(),
            times: StageTimes::default(),
            mimi,
        }
    }

    /// How long the steps since the stream began have taken.
    pub fn stage_times(&self) -> StageTimes {
        self.times
    }

    /// Begins a new stream.
    pub fn reset(&mut self) {
        self.times = StageTimes::default();
        self.upsample.reset();
        self.transformer.reset();
        self.seanet.reset();
    }

    /// Begins a new stream as if `position` transformer steps had passed, to test streams of any age.
    pub fn reset_at(&mut self, position: u64) {
        self.reset();
        self.transformer.start_at(position);
    }

    /// Decodes codes `[frames, rows]`, `rows` from 1 to the number of codebooks, to `frames × frame size` samples.
    ///
    /// # Errors
    /// [`Error::Input`] when `rows` or a code is out of range. The state has not changed then.
    pub fn step(&mut self, codes: &[u32], rows: usize) -> Result<Vec<f32>> {
        let mut pcm = Vec::new();
        self.step_into(codes, rows, &mut pcm)?;
        Ok(pcm)
    }

    /// [`step`](Self::step) into a buffer, whose contents it replaces. After a first step with as many frames it
    /// allocates nothing.
    ///
    /// # Errors
    /// [`Error::Input`] when `rows` or a code is out of range. The state and the buffer have not changed then.
    pub fn step_into(&mut self, codes: &[u32], rows: usize, pcm: &mut Vec<f32>) -> Result<()> {
        let Model { config, num_codebooks, .. } = &*self.mimi.0;
        if rows == 0 || rows > *num_codebooks {
            return Err(Error::Input(format!("codes has {rows} rows, but 1 to {num_codebooks} are expected")));
        }
        if !codes.len().is_multiple_of(rows) {
            return Err(Error::Input(format!("{} codes are not a whole number of frames of {rows}", codes.len())));
        }
        if let Some(at) = codes.iter().position(|code| *code as usize >= config.bins) {
            return Err(Error::Input(format!(
                "codes[{}, {}] is {}, but 0 to {} are expected",
                at % rows,
                at / rows,
                codes[at],
                config.bins - 1
            )));
        }
        let size = config.frame_size();
        pcm.clear();
        pcm.resize(codes.len() / rows * size, 0.0);
        for (codes, pcm) in codes.chunks(BLOCK * rows).zip(pcm.chunks_mut(BLOCK * size)) {
            self.block(codes, rows, pcm);
        }
        Ok(())
    }

    fn block(&mut self, codes: &[u32], rows: usize, pcm: &mut [f32]) {
        let Model { config, kernels, layers, quantizer, .. } = &*self.mimi.0;
        let d = config.dimension;
        let frames = codes.len() / rows;
        let mut watch = Stopwatch::start();
        quantizer.decode(kernels, &mut self.scratch, codes, rows, self.upsample.fresh(frames));
        let steps = self.seanet.input.fresh(STEPS * frames);
        let latents = self.upsample.window();
        for (step, out) in steps.chunks_exact_mut(d).enumerate() {
            let (frame, tap) = (step / STEPS, step % STEPS);
            let (before, now) = (&latents[frame * d..][..d], &latents[(frame + 1) * d..][..d]);
            for (c, w) in self.mimi.0.layers.upsample.chunks_exact(2 * STEPS).enumerate() {
                out[c] = w[tap] * now[c] + w[tap + STEPS] * before[c];
            }
        }
        self.upsample.advance(frames);
        watch.lap(&mut self.times.quantizer);
        layers.decoder_transformer.run(kernels, &mut self.transformer, steps);
        watch.lap(&mut self.times.transformer);
        layers.decoder.run(kernels, &mut self.seanet, STEPS * frames, pcm);
        watch.lap(&mut self.times.seanet);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a stage costs per frame.
    #[derive(Default)]
    struct Cost {
        /// Multiplications with an addition.
        products: usize,
        /// Numbers of the weights that are read.
        weights: usize,
        /// Numbers of the stream's own that are read, as far as they do not stay in a near cache.
        state: usize,
    }

    impl Cost {
        fn matrix(&mut self, rows: usize, k: usize, n: usize) {
            self.products += rows * k * n;
            self.weights += k * n;
        }

        fn conv(&mut self, rows: usize, k: usize, n: usize) {
            self.matrix(rows, k, n);
            self.weights += n;
        }

        fn residual(&mut self, rows: usize, channels: usize, config: &Config) {
            let inner = channels / config.compress;
            self.conv(rows, config.residual_kernel_size * channels, inner);
            self.conv(rows, inner, channels);
        }

        /// Its line in the table of the crate's documentation.
        fn line(&self, stage: &str) -> String {
            let mflop = 2.0 * self.products as f64 / 1e6;
            let megabytes = 4.0 * (self.weights + self.state) as f64 / 1e6;
            format!("//! | {stage} | {mflop:.1} | {megabytes:.1} |\n")
        }
    }

    fn encoder_seanet(config: &Config) -> Cost {
        let mut cost = Cost::default();
        let (mut rows, mut channels) = (config.frame_size(), config.n_filters);
        cost.conv(rows, config.kernel_size, channels);
        for stride in config.ratios.iter().rev() {
            cost.residual(rows, channels, config);
            rows /= stride;
            cost.conv(rows, 2 * stride * channels, 2 * channels);
            channels *= 2;
        }
        cost.conv(rows, config.last_kernel_size * channels, config.dimension);
        cost
    }

    fn decoder_seanet(config: &Config) -> Cost {
        let mut cost = Cost::default();
        let (mut rows, mut channels) = (STEPS, config.deepest());
        cost.conv(rows, config.kernel_size * config.dimension, channels);
        for stride in &config.ratios {
            channels /= 2;
            // One bias for all steps of the stride.
            cost.matrix(rows, 4 * channels, stride * channels);
            cost.weights += channels;
            rows *= stride;
            cost.residual(rows, channels, config);
        }
        cost.conv(rows, config.last_kernel_size * channels, 1);
        cost
    }

    fn transformer(config: &Config) -> Cost {
        let (d, wide) = (config.dimension, config.dim_feedforward);
        let mut cost = Cost::default();
        for _ in 0..config.num_layers {
            for (k, n) in [(d, 3 * d), (d, d), (d, wide), (wide, d)] {
                cost.matrix(STEPS, k, n);
            }
            cost.weights += 4 * d; // the norms
            cost.products += STEPS * 2 * config.context * d;
            cost.state += 2 * config.context * d;
        }
        cost
    }

    fn encoder_quantizer(config: &Config, codebooks: usize) -> Cost {
        let mut cost = Cost::default();
        cost.matrix(1, 2 * STEPS * config.dimension, config.dimension);
        cost.matrix(1, config.dimension, 2 * config.codebook_dim);
        for _ in 0..codebooks {
            cost.matrix(1, config.codebook_dim, config.bins);
        }
        cost
    }

    fn decoder_quantizer(config: &Config, codebooks: usize) -> Cost {
        let mut cost = Cost::default();
        cost.weights += codebooks * config.codebook_dim;
        cost.matrix(1, 2 * config.codebook_dim, config.dimension);
        cost.products += STEPS * 2 * config.dimension;
        cost.weights += 2 * STEPS * config.dimension;
        cost
    }

    #[test]
    fn the_documented_costs_are_those_of_the_published_configuration() {
        let config = Config::default();
        let codebooks = Options::default().num_codebooks;
        let encoder = [encoder_seanet(&config), transformer(&config), encoder_quantizer(&config, codebooks)];
        let decoder = [decoder_quantizer(&config, codebooks), transformer(&config), decoder_seanet(&config)];
        let mut table = String::new();
        for (name, costs, stages) in [
            ("encoder", &encoder, ["seanet", "transformer", "downsample and quantizer"]),
            ("decoder", &decoder, ["quantizer and upsample", "transformer", "seanet"]),
        ] {
            let mut total = Cost::default();
            for (stage, cost) in stages.into_iter().zip(costs) {
                table += &cost.line(&format!("{name}: {stage}"));
                total.products += cost.products;
                total.weights += cost.weights;
                total.state += cost.state;
            }
            table += &total.line(&format!("{name}, all"));
        }
        assert!(include_str!("lib.rs").contains(&table), "the table should be\n{table}");
    }

    /// The weights counted above are those of the checkpoint.
    #[test]
    fn the_counted_weights_are_there() {
        let config = Config { n_filters: 16, ratios: vec![3, 5, 2], compress: 4, num_layers: 3, ..Config::default() };
        let mut plan = Weights::plan();
        Layers::load(&mut plan, &config).unwrap();
        Quantizer::load(&mut plan, &config, 5).unwrap();
        let Weights::Plan(tensors) = plan else { unreachable!("a plan stays one") };
        let stored = |prefix: &str| -> usize {
            let wanted = tensors.iter().filter(|(name, _)| name.starts_with(prefix) && !name.ends_with(".scale"));
            wanted.map(|(_, shape)| shape.iter().product::<usize>()).sum()
        };
        assert_eq!(encoder_seanet(&config).weights, stored("encoder.model"));
        assert_eq!(decoder_seanet(&config).weights, stored("decoder.model"));
        assert_eq!(transformer(&config).weights, stored("encoder_transformer."));
        assert_eq!(transformer(&config).weights, stored("decoder_transformer."));
        let books = 5 * config.bins * config.codebook_dim;
        let projections = 2 * config.codebook_dim * config.dimension;
        assert_eq!(encoder_quantizer(&config, 5).weights, stored("downsample.") + projections + books);
        let entries = 5 * config.codebook_dim;
        assert_eq!(decoder_quantizer(&config, 5).weights, stored("upsample.") + projections + entries);
    }
}
