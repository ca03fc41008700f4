//! The weights of a model.

use std::sync::Arc;

use checkpoint::Shared;
use kernels::{Isa, Kernels};

use crate::config::Config;
use crate::depformer::Depformer;
use crate::error::{Error, Result};
use crate::linear::Linear;
use crate::source::{Source, SourceKey};
use crate::table::Embedding;
use crate::transformer::{Heads, Layer};

/// How a model is loaded.
pub struct Loading<'a> {
    /// Threads that read.
    pub threads: usize,
    /// Bytes of memory that may be taken; none: as many as it needs.
    pub memory: Option<u64>,
    /// Called with bytes that were read, from any thread. An error of it ends the loading.
    pub progress: &'a (dyn Fn(u64) -> Result<()> + Sync),
}

/// The weights of a model. They do not change, and may be shared by any number of engines.
#[derive(Debug)]
pub struct Model {
    pub(crate) config: Config,
    pub(crate) heads: Heads,
    pub(crate) text: Embedding,
    pub(crate) audio: Vec<Embedding>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) out_norm: Vec<f32>,
    pub(crate) text_out: Linear,
    pub(crate) extra_heads: Vec<Linear>,
    pub(crate) depformer: Option<Depformer>,
    /// Of the rotary embedding, radians per step, one per pair of a head.
    pub(crate) frequencies: Vec<f64>,
    pub(crate) hidden: usize,
}

impl Model {
    /// Reads a model's weights. All of the source must be used. While a model of the same files and changes is in use,
    /// that is given back.
    ///
    /// # Errors
    ///
    /// A file cannot be read, weights do not fit the configuration or are not finite, or there is too little memory.
    pub fn load(config: Config, source: Source, loading: &Loading<'_>) -> Result<Arc<Self>> {
        static MODELS: Shared<(SourceKey, Config), Model> = Shared::new();
        let key = source.key().map(|key| (key, config.clone()));
        MODELS.get(key, || Self::read(config, source, loading))
    }

    fn read(config: Config, mut source: Source, loading: &Loading<'_>) -> Result<Self> {
        let bytes = source.bytes(&config);
        if loading.memory.is_some_and(|memory| bytes > memory) {
            let memory = loading.memory.unwrap_or_default();
            let gigabytes = |bytes: u64| bytes as f64 / 1e9;
            let what = format!(
                "the weights take {:.2} GB of memory, and {:.2} GB can be had; close other programs, or take a smaller \
                 model",
                gigabytes(bytes),
                gigabytes(memory)
            );
            return Err(Error::Input(what));
        }
        let Loading { threads, progress, .. } = *loading;
        let kernels = &Kernels::new(Isa::available()[0], threads);
        let (dim, source) = (config.dim, &mut source);
        let heads = Heads { count: config.num_heads, dim: dim / config.num_heads, group: config.kv_repeat };
        let rows = config.text_card + 1;
        // A text with two streams has short rows of the full width.
        let mut text =
            Embedding::load(source, "text_emb", rows, dim, None, config.demux_second_stream, kernels, progress)?;
        text.replace(source.replaced())?;
        let audio = (0..config.n_q)
            .map(|k| {
                let name = format!("audio_embs.{k}");
                Embedding::load(source, &name, config.card + 1, dim, None, false, kernels, progress)
            })
            .collect::<Result<_>>()?;
        let layers = (0..config.num_layers)
            .map(|i| {
                let name = format!("transformer.layers.{i}");
                Layer::load(source, &name, dim, heads, config.cross_attention, kernels, progress)
            })
            .collect::<Result<Vec<_>>>()?;
        let out_norm = source.vector("out_norm", dim, progress)?;
        let text_out = Linear::load(source, "text_linear", config.text_card_out, dim, kernels, progress)?;
        let extra_heads = (0..config.extra_heads)
            .map(|i| Linear::load(source, &format!("extra_heads.{i}"), config.extra_heads_dim, dim, kernels, progress))
            .collect::<Result<_>>()?;
        let depformer =
            if config.dep_q > 0 { Some(Depformer::load(source, &config, kernels, progress)?) } else { None };
        source.finish()?;
        let frequency = |i: usize| config.max_period.powf(-2.0 * i as f64 / heads.dim as f64);
        let frequencies = (0..heads.dim / 2).map(frequency).collect();
        let hidden = layers.iter().map(|layer| layer.hidden).max().unwrap_or(0);
        Ok(Self { config, heads, text, audio, layers, out_norm, text_out, extra_heads, depformer, frequencies, hidden })
    }

    /// Its sizes.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The bytes of its weights in memory.
    pub fn held_bytes(&self) -> usize {
        self.embeddings().map(Embedding::bytes).sum::<usize>()
            + self.layers.iter().map(Layer::bytes).sum::<usize>()
            + self.heads_bytes()
            + self.depformer.as_ref().map_or(0, Depformer::held_bytes)
    }

    /// The bytes of weights that a step with all codebooks reads: every matrix once, and a row of each embedding. What
    /// the attention to a source needs once a conversation is not counted.
    pub fn step_bytes(&self) -> usize {
        self.embeddings().map(Embedding::step_bytes).sum::<usize>()
            + self.layers.iter().map(Layer::step_bytes).sum::<usize>()
            + self.heads_bytes()
            + self.depformer.as_ref().map_or(0, Depformer::step_bytes)
    }

    fn embeddings(&self) -> impl Iterator<Item = &Embedding> {
        std::iter::once(&self.text).chain(&self.audio)
    }

    /// The bytes of what follows the layers.
    fn heads_bytes(&self) -> usize {
        let extra: usize = self.extra_heads.iter().map(Linear::bytes).sum();
        size_of_val(&*self.out_norm) + self.text_out.bytes() + extra
    }
}
