//! Takes conversations through steps.

use std::sync::Arc;

use kernels::{Dot, Held, Into, Isa, Kernels, Ring, RingShape, Way};

use crate::config::Config;
use crate::conversation::{Conversation, Cross};
use crate::depformer::{self, Depformer};
use crate::error::{Error, Result};
use crate::linear::{Linear, Products};
use crate::source::Source;
use crate::table::Embedding;
use crate::transformer::{Heads, Layer, NORM_EPS, Room};

/// The weights of a model. They do not change, and may be shared by any number of engines.
#[derive(Debug)]
pub struct Model {
    config: Config,
    heads: Heads,
    text: Embedding,
    audio: Vec<Embedding>,
    layers: Vec<Layer>,
    out_norm: Vec<f32>,
    text_out: Linear,
    extra_heads: Vec<Linear>,
    depformer: Option<Depformer>,
    /// Of the rotary embedding, radians per step, one per pair of a head.
    frequencies: Vec<f64>,
    hidden: usize,
}

impl Model {
    /// Reads a model's weights. All of the source must be used. `progress` is called with bytes that were read, from any
    /// thread; an error of it ends the loading.
    pub fn load(
        config: Config,
        mut source: Source,
        threads: usize,
        progress: &(dyn Fn(u64) -> Result<()> + Sync),
    ) -> Result<Self> {
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
            .map(|i| {
                Linear::load(source, &format!("extra_heads.{i}"), config.extra_heads_dim, dim, kernels, progress)
            })
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
        let embeddings = self.text.bytes() + self.audio.iter().map(Embedding::bytes).sum::<usize>();
        embeddings
            + self.temporal_bytes()
            + self.depformer.as_ref().map_or(0, Depformer::held_bytes)
    }

    /// The bytes of weights that a step with all codebooks reads; rows of embeddings are not counted.
    pub fn step_bytes(&self) -> usize {
        self.temporal_bytes() + self.depformer.as_ref().map_or(0, |depformer| depformer.bytes(self.config.dep_q))
    }

    fn temporal_bytes(&self) -> usize {
        self.layers.iter().map(Layer::bytes).sum::<usize>()
            + self.text_out.bytes()
            + self.extra_heads.iter().map(Linear::bytes).sum::<usize>()
    }

    /// A conversation at its beginning.
    pub fn conversation(&self, held: Held) -> Conversation {
        Conversation::new(&self.config, held)
    }
}

/// How an engine computes.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Threads that share the work, the caller's included.
    pub threads: usize,
    /// How activations are held in products with packed weights.
    pub way: Way,
    /// The instructions for these products; none: the fastest that the machine has.
    pub dot: Option<Dot>,
    /// Rows that are computed at once, at most.
    pub rows: usize,
}

/// One row of a step.
#[derive(Debug)]
pub struct Row<'a> {
    /// The conversation that goes on.
    pub conversation: &'a mut Conversation,
    /// What it reads: a column of tokens, `[1 + n_q]`. −1 adds nothing.
    pub tokens: &'a [i32],
}

/// Takes conversations through steps: memory and threads for a number of rows.
#[derive(Debug)]
pub struct Engine {
    model: Arc<Model>,
    kernels: Kernels,
    rows: usize,
    room: Room,
    depformer: Option<depformer::State>,
    x: Vec<f32>,
    /// The outputs of the step, `[rows, dim]`.
    h: Vec<f32>,
    short: Vec<f32>,
    logits: Vec<f32>,
    heads: Vec<f32>,
    /// cos and sin of a row's angles.
    rotation: Vec<(f32, f32)>,
}

impl Engine {
    /// An engine for a model.
    ///
    /// # Panics
    ///
    /// The machine does not have the instructions that the options name.
    pub fn new(model: Arc<Model>, options: Options) -> Self {
        let config = &model.config;
        let (rows, dim, heads) = (options.rows.max(1), config.dim, model.heads);
        let kernels = match options.dot {
            Some(dot) => Kernels::with_dot(Isa::available()[0], dot, options.threads),
            None => Kernels::new(Isa::available()[0], options.threads),
        };
        let products = Products::new(options.way, rows, dim.max(model.hidden));
        Self {
            room: Room::new(products, rows, dim, heads, model.hidden),
            depformer: model.depformer.as_ref().map(|part| depformer::State::new(part, config, options.way, rows)),
            x: vec![0.0; rows * dim],
            h: vec![0.0; rows * dim],
            short: vec![0.0; dim],
            logits: vec![0.0; rows * config.text_card_out],
            heads: vec![0.0; rows * config.extra_heads * config.extra_heads_dim],
            rotation: vec![(1.0, 0.0); heads.dim / 2],
            kernels,
            rows,
            model,
        }
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Runs the temporal transformer for a position of each row. Afterwards [`text_logits`](Self::text_logits) and
    /// [`extra_heads`](Self::extra_heads) are those of the step, and [`speak`](Self::speak) may follow.
    ///
    /// # Errors
    ///
    /// There are more rows than the engine has room for, or a token is not one of the model's. Nothing has changed then.
    pub fn hear(&mut self, rows: &mut [Row<'_>]) -> Result<()> {
        if rows.len() > self.rows {
            return Err(Error::Input(format!("{} conversations do not fit into {} rows", rows.len(), self.rows)));
        }
        rows.iter().try_for_each(|row| self.check(row.tokens))?;
        for (i, row) in rows.iter().enumerate() {
            self.embed(i, row.tokens, row.conversation.added.as_deref());
        }
        let count = rows.len();
        self.temporal(&mut Batch::Rows(rows));
        rows.iter_mut().for_each(|row| row.conversation.position += 1);
        let (model, dim) = (&self.model, self.model.config.dim);
        let h = &self.h[..count * dim];
        let logits = &mut self.logits[..count * model.config.text_card_out];
        self.room.products.apply(&self.kernels, &model.text_out, h, dim, Into::Store(logits));
        let (heads, classes) = (model.extra_heads.len(), model.config.extra_heads_dim);
        for (i, out) in self.heads[..count * heads * classes].chunks_exact_mut(classes.max(1)).enumerate() {
            let (row, head) = (i / heads, &model.extra_heads[i % heads]);
            self.room.products.apply(&self.kernels, head, &h[row * dim..][..dim], dim, Into::Store(out));
            softmax(out);
        }
        Ok(())
    }

    /// Reads columns `[n, 1 + n_q]` of a prompt at the beginning of a conversation, many at once. Nothing is chosen.
    ///
    /// `embedded` are the inputs of the first columns, `[m, dim]`, where these are known otherwise.
    ///
    /// # Errors
    ///
    /// The prompt does not fit into the window with what was read, or a token is not one of the model's.
    pub fn read(&mut self, conversation: &mut Conversation, columns: &[i32], embedded: &[f32]) -> Result<()> {
        let (width, dim) = (1 + self.model.config.n_q, self.model.config.dim);
        let count = columns.len() / width;
        if conversation.position + count as u64 > self.model.config.context as u64 {
            return Err(Error::Input("a prompt must fit into the model's window".into()));
        }
        columns.chunks_exact(width).try_for_each(|column| self.check(column))?;
        for (c, columns) in columns.chunks(self.rows * width).enumerate() {
            let rows = columns.len() / width;
            for (i, column) in columns.chunks_exact(width).enumerate() {
                match embedded.get((c * self.rows + i) * dim..).and_then(|rest| rest.get(..dim)) {
                    None => self.embed(i, column, conversation.added.as_deref()),
                    Some(given) => {
                        let x = &mut self.x[i * dim..][..dim];
                        x.copy_from_slice(given);
                        add(x, conversation.added.as_deref());
                    }
                }
            }
            self.temporal(&mut Batch::Columns(conversation, rows));
            conversation.position += rows as u64;
        }
        Ok(())
    }

    /// Runs the depformer for the rows of the last [`hear`](Self::hear), which said `texts`. It chooses the first `count` codes
    /// of each row, `[rows, count]`.
    ///
    /// `choose` is called for each codebook with its number and the logits `[rows, card]`, and sets the codes `[rows]`.
    ///
    /// # Errors
    ///
    /// There are no such rows or codebooks, or a text is not one of the model's.
    pub fn speak(
        &mut self,
        texts: &[i32],
        count: usize,
        choose: &mut dyn FnMut(usize, &mut [f32], &mut [i32]),
        codes: &mut [i32],
    ) -> Result<()> {
        let config = &self.model.config;
        if texts.len() > self.rows || count > config.dep_q || codes.len() != texts.len() * count {
            return Err(Error::Input("rows or codebooks that the engine does not have".into()));
        }
        if let (Some(part), Some(state)) = (&self.model.depformer, &mut self.depformer) {
            if let Some(wrong) = texts.iter().find(|token| !part.knows_text(**token)) {
                return Err(Error::Input(format!("the model has no text token {wrong}")));
            }
            let h = &self.h[..texts.len() * config.dim];
            part.run(&self.kernels, state, h, texts, count, choose, codes);
        }
        Ok(())
    }

    /// The text logits of the last step, `[rows, text_card_out]`.
    pub fn text_logits(&mut self, rows: usize) -> &mut [f32] {
        &mut self.logits[..rows * self.model.config.text_card_out]
    }

    /// What the extra heads say in the last step: probabilities `[rows, heads, classes]`.
    pub fn extra_heads(&self, rows: usize) -> &[f32] {
        &self.heads[..rows * self.model.config.extra_heads * self.model.config.extra_heads_dim]
    }

    /// Makes what the layers' attention to a source sees of one, `[steps, dim]`. Once a conversation.
    ///
    /// # Errors
    ///
    /// The model has no such attention, or the source is empty.
    pub fn source(&mut self, source: &[f32]) -> Result<Cross> {
        let (dim, heads) = (self.model.config.dim, self.model.config.num_heads);
        let steps = source.len() / dim;
        if steps == 0 || !source.len().is_multiple_of(dim) {
            return Err(Error::Input("a source has at least one step".into()));
        }
        let shape = RingShape { heads, dim: dim / heads, capacity: steps, held: Held::F32 };
        let mut row = vec![0.0; 2 * dim];
        let rings = self
            .model
            .layers
            .iter()
            .map(|layer| {
                let Some(cross) = &layer.cross else {
                    return Err(Error::Input("this model attends to no source".into()));
                };
                let mut ring = Ring::new(shape);
                for (step, x) in source.chunks_exact(dim).enumerate() {
                    self.room.products.apply(&self.kernels, &cross.keys_values, x, dim, Into::Store(&mut row));
                    let (keys, values) = row.split_at(dim);
                    ring.store(step, keys, values);
                }
                Ok(ring)
            })
            .collect::<Result<_>>()?;
        Ok(Cross { rings, steps })
    }

    fn check(&self, tokens: &[i32]) -> Result<()> {
        let model = &self.model;
        if tokens.len() != 1 + model.config.n_q {
            return Err(Error::Input(format!("a column has {} tokens, not {}", 1 + model.config.n_q, tokens.len())));
        }
        let embeddings = std::iter::once(&model.text).chain(&model.audio);
        match tokens.iter().zip(embeddings).find(|(token, embedding)| !embedding.knows(**token)) {
            Some((token, _)) => Err(Error::Input(format!("the model has no token {token} there"))),
            None => Ok(()),
        }
    }

    /// Sums the embeddings of a column into row `i` of `x`.
    fn embed(&mut self, i: usize, tokens: &[i32], added: Option<&[f32]>) {
        let dim = self.model.config.dim;
        let x = &mut self.x[i * dim..][..dim];
        x.fill(0.0);
        for (embedding, token) in std::iter::once(&self.model.text).chain(&self.model.audio).zip(tokens) {
            embedding.add(&self.kernels, &mut self.room.products, *token, &mut self.short, x);
        }
        add(x, added);
    }

    /// Runs the temporal transformer on the rows of `x`, to `h`.
    fn temporal(&mut self, batch: &mut Batch<'_, '_>) {
        let (model, kernels, room) = (&*self.model, &self.kernels, &mut self.room);
        let (heads, dim, rows) = (model.heads, model.config.dim, batch.len());
        let x = &mut self.x[..rows * dim];
        for (l, layer) in model.layers.iter().enumerate() {
            room.project(kernels, layer, x, dim);
            for row in 0..rows {
                let (conversation, position) = batch.at(row);
                let ring = &mut conversation.rings[l];
                let capacity = ring.shape().capacity as u64;
                rotation(&model.frequencies, position, &mut self.rotation);
                let projected = &mut room.projected[row * heads.width()..][..heads.width()];
                let (turned, values) = projected.split_at_mut(heads.queries() + heads.keys());
                turn(turned, heads.dim, model.config.rope_concat, &self.rotation);
                let (queries, keys) = turned.split_at_mut(heads.queries());
                ring.store((position % capacity) as usize, keys, values);
                let scale = 1.0 / (heads.dim as f32).sqrt();
                queries.iter_mut().for_each(|q| *q *= scale);
                let filled = (position + 1).min(capacity) as usize;
                let out = &mut room.attended[row * heads.queries()..][..heads.queries()];
                kernels.attend_ring(ring, filled, heads.group, queries, out);
            }
            room.add_attended(kernels, layer, x, dim, heads);
            if let Some(cross) = &layer.cross {
                let normed = &mut room.normed[..rows * dim];
                kernels.layer_norm(x, &cross.norm_weight, &cross.norm_bias, normed);
                let queries = &mut room.projected[..rows * dim];
                room.products.apply(kernels, &cross.queries, normed, dim, Into::Store(queries));
                let scale = 1.0 / (heads.dim as f32).sqrt();
                queries.iter_mut().for_each(|q| *q *= scale);
                for row in 0..rows {
                    let attended = &mut room.attended[row * dim..][..dim];
                    match &batch.at(row).0.cross {
                        Some(source) => {
                            let ring = &source.rings[l];
                            let queries = &room.projected[row * dim..][..dim];
                            kernels.attend_ring(ring, source.steps, 1, queries, attended);
                        }
                        None => attended.fill(0.0),
                    }
                }
                let attended = &room.attended[..rows * dim];
                room.products.apply(kernels, &cross.out, attended, dim, Into::Add(x));
            }
            room.feed_forward(kernels, layer, x, dim);
        }
        kernels.rms_norm(x, &model.out_norm, NORM_EPS, &mut self.h[..rows * dim]);
    }
}

/// The rows of one run of the temporal transformer.
enum Batch<'a, 'b> {
    /// One position of each of some conversations.
    Rows(&'a mut [Row<'b>]),
    /// So many positions of one conversation, the first at its present one.
    Columns(&'a mut Conversation, usize),
}

impl Batch<'_, '_> {
    fn len(&self) -> usize {
        match self {
            Self::Rows(rows) => rows.len(),
            Self::Columns(_, count) => *count,
        }
    }

    /// A row's conversation, and its position.
    fn at(&mut self, row: usize) -> (&mut Conversation, u64) {
        match self {
            Self::Rows(rows) => {
                let position = rows[row].conversation.position;
                (&mut *rows[row].conversation, position)
            }
            Self::Columns(conversation, _) => {
                let position = conversation.position + row as u64;
                (&mut **conversation, position)
            }
        }
    }
}

fn add(x: &mut [f32], added: Option<&[f32]>) {
    if let Some(added) = added {
        x.iter_mut().zip(added).for_each(|(x, more)| *x += more);
    }
}

/// cos and sin of the angles of a position. In float64: in float32 they would be off after some hours.
fn rotation(frequencies: &[f64], position: u64, out: &mut [(f32, f32)]) {
    for (out, frequency) in out.iter_mut().zip(frequencies) {
        let (sin, cos) = (position as f64 * frequency).sin_cos();
        *out = (cos as f32, sin as f32);
    }
}

/// Turns the pairs of each head: (2i, 2i + 1), or (i, i + dim / 2) with `concat`.
fn turn(rows: &mut [f32], dim: usize, concat: bool, rotation: &[(f32, f32)]) {
    for head in rows.chunks_exact_mut(dim) {
        if concat {
            let (low, high) = head.split_at_mut(dim / 2);
            for ((a, b), (cos, sin)) in low.iter_mut().zip(high).zip(rotation) {
                (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
            }
        } else {
            for (pair, (cos, sin)) in head.as_chunks_mut::<2>().0.iter_mut().zip(rotation) {
                *pair = [pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos];
            }
        }
    }
}

fn softmax(x: &mut [f32]) {
    let most = x.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    x.iter_mut().for_each(|x| *x = (*x - most).exp());
    let total: f32 = x.iter().sum();
    x.iter_mut().for_each(|x| *x /= total);
}
