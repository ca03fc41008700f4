//! The depformer: predicts the codes of one frame, one codebook after the other.

use kernels::{Into, Kernels};

use crate::config::Config;
use crate::error::Result;
use crate::linear::{Linear, Products};
use crate::source::{Progress, Source};
use crate::table::Embedding;
use crate::transformer::{Heads, Layer, Room};

/// What layer norms add to the variance is in their kernel.
#[derive(Debug)]
struct LayerNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

/// What each codebook has of its own.
#[derive(Debug)]
struct Codebook {
    embedding: Embedding,
    norm: Option<LayerNorm>,
    out: Linear,
}

impl Codebook {
    /// The bytes of its weights, without those of the embedding.
    fn bytes(&self) -> usize {
        self.out.bytes() + self.norm.as_ref().map_or(0, |n| size_of_val(&*n.weight) + size_of_val(&*n.bias))
    }
}

/// What codebooks may share.
#[derive(Debug)]
struct Slice {
    input: Linear,
    layers: Vec<Layer>,
}

impl Slice {
    fn bytes(&self) -> usize {
        self.input.bytes() + self.layers.iter().map(Layer::bytes).sum::<usize>()
    }
}

#[derive(Debug)]
pub(crate) struct Depformer {
    codebooks: Vec<Codebook>,
    slices: Vec<Slice>,
    /// The slice of each codebook.
    numbers: Vec<usize>,
    heads: Heads,
    dim: usize,
    hidden: usize,
    widest: usize,
}

/// Chooses codes: given the number of the codebook and the logits `[rows, card]`, it sets the codes `[rows]`.
pub(crate) type Choose<'a> = &'a mut dyn FnMut(usize, &mut [f32], &mut [i32]);

impl Depformer {
    pub fn load(source: &mut Source, config: &Config, kernels: &Kernels, progress: Progress<'_>) -> Result<Self> {
        let dim = config.depformer_dim;
        let count = config.depformer_num_heads;
        let heads = Heads { count, dim: dim / count, group: config.depformer_kv_repeat };
        let slices = config
            .owners()
            .into_iter()
            .map(|owner| {
                let name = format!("depformer.slices.{owner}");
                let layers = (0..config.depformer_num_layers)
                    .map(|i| {
                        Layer::load(
                            source,
                            &format!("{name}.transformer.layers.{i}"),
                            dim,
                            heads,
                            false,
                            kernels,
                            progress,
                        )
                    })
                    .collect::<Result<_>>()?;
                let input = Linear::load(source, &format!("{name}.linear_in"), dim, config.dim, kernels, progress)?;
                Ok(Slice { input, layers })
            })
            .collect::<Result<Vec<_>>>()?;
        let codebooks = (0..config.dep_q)
            .map(|k| {
                let name = format!("depformer.slices.{k}");
                let (rows, demuxed) =
                    if k == 0 { (config.text_card + 1, config.demux_second_stream) } else { (config.card + 1, false) };
                let rank = config.depformer_rank;
                let embedding =
                    Embedding::load(source, &format!("{name}.emb"), rows, dim, rank, demuxed, kernels, progress)?;
                let norm = if config.depformer_norm {
                    let weight = source.vector(&format!("{name}.norm"), dim, progress)?;
                    Some(LayerNorm { weight, bias: source.vector(&format!("{name}.norm.bias"), dim, progress)? })
                } else {
                    None
                };
                let out = Linear::load(source, &format!("{name}.linear_out"), config.card, dim, kernels, progress)?;
                Ok(Codebook { embedding, norm, out })
            })
            .collect::<Result<Vec<_>>>()?;
        let hidden = slices.iter().flat_map(|slice| &slice.layers).map(|layer| layer.hidden).max().unwrap_or(0);
        let widest = hidden.max(dim).max(config.dim).max(heads.queries());
        Ok(Self { codebooks, slices, numbers: config.slices.clone(), heads, dim, hidden, widest })
    }

    /// The bytes that all codebooks of a step read. What they share is read by each.
    pub fn step_bytes(&self) -> usize {
        let codebooks: usize = self.codebooks.iter().map(|c| c.bytes() + c.embedding.step_bytes()).sum();
        codebooks + self.numbers.iter().map(|number| self.slices[*number].bytes()).sum::<usize>()
    }

    /// The bytes of all weights.
    pub fn held_bytes(&self) -> usize {
        let codebooks: usize = self.codebooks.iter().map(|c| c.bytes() + c.embedding.bytes()).sum();
        codebooks + self.slices.iter().map(Slice::bytes).sum::<usize>()
    }

    pub fn knows_text(&self, token: i32) -> bool {
        self.codebooks.first().is_none_or(|codebook| codebook.embedding.knows(token))
    }

    /// Chooses the codes of some rows. `h`, `[rows, dim]`, is the temporal transformer's output. `active` are the rows
    /// of each codebook: the first so many, never more than for the codebook before. The text tokens are in
    /// [`State::begin`].
    pub fn run(
        &self,
        kernels: &Kernels,
        state: &mut State,
        h: &[f32],
        width: usize,
        active: &[usize],
        choose: Choose<'_>,
    ) {
        let (dim, heads) = (self.dim, self.heads);
        for (k, (codebook, rows)) in self.codebooks.iter().zip(active.iter().copied()).enumerate() {
            if rows == 0 {
                break;
            }
            let slice = &self.slices[self.numbers[k]];
            let x = &mut state.x[..rows * dim];
            state.room.products.apply(kernels, &slice.input, &h[..rows * width], Into::Store(x));
            for (row, x) in x.chunks_exact_mut(dim).enumerate() {
                codebook.embedding.add(kernels, &mut state.room.products, state.previous[row], &mut state.short, x);
            }
            for (l, layer) in slice.layers.iter().enumerate() {
                let x = &mut state.x[..rows * dim];
                state.room.project(kernels, layer, x, dim);
                state.seen.attend(kernels, &mut state.room, l, k, rows, heads);
                state.room.add_attended(kernels, layer, x, dim, heads);
                state.room.feed_forward(kernels, layer, x, dim);
            }
            let x = &state.x[..rows * dim];
            let normed = &mut state.room.normed[..rows * dim];
            match &codebook.norm {
                Some(norm) => kernels.layer_norm(x, &norm.weight, &norm.bias, normed),
                None => normed.copy_from_slice(x),
            }
            let logits = &mut state.logits[..rows * codebook.out.outputs()];
            state.room.products.apply(kernels, &codebook.out, normed, Into::Store(logits));
            choose(k, logits, &mut state.previous[..rows]);
        }
    }
}

/// Room for a frame of some rows.
#[derive(Debug)]
pub(crate) struct State {
    room: Room,
    x: Vec<f32>,
    short: Vec<f32>,
    logits: Vec<f32>,
    previous: Vec<i32>,
    seen: Seen,
}

impl State {
    /// Sets the text token of a row.
    pub fn begin(&mut self, row: usize, text: i32) {
        self.previous[row] = text;
    }

    pub fn new(depformer: &Depformer, config: &Config, way: kernels::Way, rows: usize) -> Self {
        let products = Products::new(way, rows, depformer.widest);
        let layers = config.depformer_num_layers;
        Self {
            room: Room::new(products, rows, depformer.dim, depformer.heads, depformer.hidden),
            x: vec![0.0; rows * depformer.dim],
            short: vec![0.0; config.depformer_rank.unwrap_or(depformer.dim)],
            logits: vec![0.0; rows * config.card],
            previous: vec![0; rows],
            seen: Seen::new(rows, layers, depformer.heads, config.dep_q),
        }
    }
}

/// The keys and values of the codebooks of one frame: `[rows, layers, heads, codebooks, dim]`.
#[derive(Debug)]
struct Seen {
    keys: Vec<f32>,
    values: Vec<f32>,
    layers: usize,
    codebooks: usize,
    scores: Vec<f32>,
}

impl Seen {
    fn new(rows: usize, layers: usize, heads: Heads, codebooks: usize) -> Self {
        let size = rows * layers * codebooks * heads.keys();
        Self { keys: vec![0.0; size], values: vec![0.0; size], layers, codebooks, scores: vec![0.0; codebooks] }
    }

    /// From the room's projected rows to its attended ones, for codebook `k`.
    fn attend(&mut self, kernels: &Kernels, room: &mut Room, layer: usize, k: usize, rows: usize, heads: Heads) {
        let (d, size) = (heads.dim, self.codebooks * heads.dim);
        let scale = 1.0 / (d as f32).sqrt();
        for row in 0..rows {
            let projected = &mut room.projected[row * heads.width()..][..heads.width()];
            let (queries, new) = projected.split_at_mut(heads.queries());
            let (keys, values) = new.split_at(heads.keys());
            queries.iter_mut().for_each(|q| *q *= scale);
            for h in 0..heads.shared() {
                let at = ((row * self.layers + layer) * heads.shared() + h) * size;
                self.keys[at + k * d..][..d].copy_from_slice(&keys[h * d..][..d]);
                self.values[at + k * d..][..d].copy_from_slice(&values[h * d..][..d]);
                let (keys, values) = (&self.keys[at..at + size], &self.values[at..at + size]);
                for q in h * heads.group..(h + 1) * heads.group {
                    let out = &mut room.attended[row * heads.queries() + q * d..][..d];
                    kernels.attend(&queries[q * d..][..d], keys, values, &[0..k + 1, 0..0], &mut self.scores, out);
                }
            }
        }
    }
}
