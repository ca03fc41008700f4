//! Takes conversations through steps.

use std::sync::Arc;

use kernels::{Dot, Held, Into, Isa, Kernels, Ring, RingShape, Way};

use crate::conversation::{Conversation, Cross, finite};
use crate::depformer;
use crate::error::{Error, Result};
use crate::linear::Products;
use crate::model::Model;
use crate::sampling::{self, Noise};
use crate::transformer::{NORM_EPS, Room};

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

/// One conversation in a step.
#[derive(Debug)]
pub struct Turn<'a> {
    /// The conversation that goes on.
    pub conversation: &'a mut Conversation,
    /// What it reads: a column of tokens for each of its rows, `[rows, 1 + n_q]`. −1 adds nothing. Only `hear` needs
    /// it.
    pub tokens: &'a [i32],
    /// Tokens that the repetition penalty counts. Only `hear` needs it.
    pub recent: &'a [i32],
    /// The text token that [`Engine::hear`] has chosen, and that [`Engine::speak`] goes on with.
    pub text: i32,
    /// Takes the codes, `[dep_q]`. Only `speak` needs it.
    pub codes: &'a mut [i32],
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
    sampling: sampling::Room,
    /// The turn of each row, and the row of its conversation.
    places: Vec<(usize, usize)>,
    /// The turns of `speak`, those with the most codebooks first.
    order: Vec<usize>,
    /// Rows that each codebook is computed for.
    active: Vec<usize>,
    /// cos and sin of each row's angles, `[rows, pairs of a head]`.
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
            sampling: sampling::Room::new(config.text_card_out.max(config.card)),
            places: Vec::with_capacity(rows),
            order: Vec::with_capacity(rows),
            active: vec![0; config.dep_q],
            rotation: vec![(1.0, 0.0); rows * heads.dim / 2],
            kernels,
            rows,
            model,
        }
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Takes conversations through the first half of a step: the temporal transformer, and a text token for each.
    ///
    /// # Errors
    ///
    /// There are more rows than the engine has room for, a conversation is another model's, or a token is not one of
    /// the model's. Nothing has changed then.
    pub fn hear(&mut self, turns: &mut [Turn<'_>]) -> Result<()> {
        self.place(turns)?;
        let width = 1 + self.model.config.n_q;
        for turn in turns.iter() {
            let rows = turn.conversation.rows();
            if turn.tokens.len() != rows * width {
                let what = format!("{rows} rows have {} tokens, not {}", rows * width, turn.tokens.len());
                return Err(Error::Input(what));
            }
            turn.tokens.chunks_exact(width).try_for_each(|column| self.check(column))?;
        }
        let mut row = 0;
        for turn in turns.iter() {
            for (track, column) in turn.conversation.tracks.iter().zip(turn.tokens.chunks_exact(width)) {
                self.embed(row, column, track.added.as_deref());
                row += 1;
            }
        }
        self.temporal(&mut Batch::Turns(turns), row);
        let Self { model, kernels, room, logits, h, sampling, .. } = self;
        let (config, dim) = (&model.config, model.config.dim);
        let (h, logits) = (&h[..row * dim], &mut logits[..row * config.text_card_out]);
        room.products.apply(kernels, &model.text_out, h, Into::Store(logits));
        let mut row = 0;
        for turn in turns {
            let conversation = &mut *turn.conversation;
            let rows = conversation.rows();
            conversation.h.copy_from_slice(&h[row * dim..(row + rows) * dim]);
            let logits = &mut logits[row * config.text_card_out..(row + rows) * config.text_card_out];
            let (given, null) = logits.split_at_mut(config.text_card_out);
            if let Some(guidance) = conversation.choices.guidance.filter(|guidance| guidance.text) {
                guidance.mix(given, null);
            }
            conversation.text_logits.copy_from_slice(given);
            let classes = config.extra_heads_dim.max(1);
            for (head, out) in model.extra_heads.iter().zip(conversation.heads.chunks_exact_mut(classes)) {
                room.products.apply(kernels, head, &h[row * dim..][..dim], Into::Store(out));
                softmax(out);
            }
            let choices = &conversation.choices;
            conversation.noise = Noise::new(choices.seed, conversation.position);
            choices.text.adjust(given, turn.recent, choices.padding);
            turn.text = choices.text.sampler.choose(given, &mut conversation.noise, sampling) as i32;
            conversation.position += 1;
            (conversation.heard, conversation.stepped, conversation.spoken) = (true, true, 0);
            row += rows;
        }
        Ok(())
    }

    /// Reads columns `[n, 1 + n_q]` of a prompt, many at once, with all rows of a conversation. Nothing is chosen.
    ///
    /// `embedded` are the inputs of the first columns, `[m, dim]`, where these are known otherwise.
    ///
    /// # Errors
    ///
    /// The prompt does not fit into the window with what was read, a token is not one of the model's, or numbers are
    /// not finite. Nothing has changed then.
    pub fn read(&mut self, conversation: &mut Conversation, columns: &[i32], embedded: &[f32]) -> Result<()> {
        let (width, dim) = (1 + self.model.config.n_q, self.model.config.dim);
        let count = columns.len() / width;
        if !Arc::ptr_eq(&conversation.model, &self.model) {
            return Err(Error::Input("the conversation was made with another model".into()));
        }
        if !columns.len().is_multiple_of(width) || !embedded.len().is_multiple_of(dim) || embedded.len() > count * dim {
            return Err(Error::Input("the prompt's columns, or their inputs, have another shape".into()));
        }
        if conversation.position.saturating_add(count as u64) > self.model.config.context as u64 {
            return Err(Error::Input("a prompt must fit into the model's window".into()));
        }
        columns.chunks_exact(width).try_for_each(|column| self.check(column))?;
        finite(embedded, "the prompt")?;
        for track in 0..conversation.rows() {
            for (c, columns) in columns.chunks(self.rows * width).enumerate() {
                let rows = columns.len() / width;
                let added = conversation.tracks[track].added.as_deref();
                for (i, column) in columns.chunks_exact(width).enumerate() {
                    match embedded.get((c * self.rows + i) * dim..).and_then(|rest| rest.get(..dim)) {
                        None => self.embed(i, column, added),
                        Some(given) => {
                            let x = &mut self.x[i * dim..][..dim];
                            x.copy_from_slice(given);
                            add(x, added);
                        }
                    }
                }
                let first = conversation.position + (c * self.rows) as u64;
                self.temporal(&mut Batch::Columns { conversation: &mut *conversation, track, first }, rows);
            }
        }
        conversation.position += count as u64;
        (conversation.heard, conversation.stepped) = (false, false);
        Ok(())
    }

    /// Takes conversations through the second half of a step: the depformer chooses their codes, with the text tokens
    /// that the turns have. They need not be all that heard, nor in the same order.
    ///
    /// # Errors
    ///
    /// There are more rows than the engine has room for, a conversation is another model's or has heard nothing since
    /// it last spoke, or a text is not one of the model's. Nothing has changed then.
    pub fn speak(&mut self, turns: &mut [Turn<'_>]) -> Result<()> {
        self.place(turns)?;
        let Self { model, kernels, depformer, sampling, order, active, h, .. } = self;
        let config = &model.config;
        for turn in turns.iter() {
            if !turn.conversation.heard {
                return Err(Error::Input("a conversation has heard nothing since it last spoke".into()));
            }
            if turn.codes.len() != config.dep_q {
                return Err(Error::Input(format!("a step has {} codes, not {}", config.dep_q, turn.codes.len())));
            }
            if model.depformer.as_ref().is_some_and(|depformer| !depformer.knows_text(turn.text)) {
                return Err(Error::Input(format!("the model has no text token {}", turn.text)));
            }
        }
        for turn in turns.iter_mut() {
            turn.codes.fill(0);
            turn.conversation.heard = false;
            turn.conversation.spoken = turn.conversation.codebooks();
        }
        let (Some(part), Some(state)) = (&model.depformer, depformer) else { return Ok(()) };
        order.clear();
        order.extend(0..turns.len());
        order.sort_unstable_by_key(|turn| (std::cmp::Reverse(turns[*turn].conversation.codebooks()), *turn));
        active.fill(0);
        let (mut row, dim) = (0, config.dim);
        for turn in order.iter() {
            let Turn { conversation, text, .. } = &turns[*turn];
            let rows = conversation.rows();
            h[row * dim..(row + rows) * dim].copy_from_slice(&conversation.h);
            (row..row + rows).for_each(|row| state.begin(row, *text));
            active[..conversation.codebooks()].iter_mut().for_each(|active| *active += rows);
            row += rows;
        }
        let card = config.card;
        let mut choose = |k: usize, logits: &mut [f32], chosen: &mut [i32]| {
            let mut row = 0;
            for turn in order.iter() {
                let Turn { conversation, codes, .. } = &mut turns[*turn];
                if k >= conversation.codebooks() {
                    break;
                }
                let rows = conversation.rows();
                let (given, null) = logits[row * card..(row + rows) * card].split_at_mut(card);
                if let Some(guidance) = conversation.choices.guidance {
                    guidance.mix(given, null);
                }
                conversation.audio_logits[k * card..(k + 1) * card].copy_from_slice(given);
                let code = conversation.choices.audio.choose(given, &mut conversation.noise, sampling) as i32;
                codes[k] = code;
                chosen[row..row + rows].fill(code);
                row += rows;
            }
        };
        part.run(kernels, state, &h[..row * dim], dim, active, &mut choose);
        Ok(())
    }

    /// Finds room for the rows of some turns.
    fn place(&mut self, turns: &[Turn<'_>]) -> Result<()> {
        let rows: usize = turns.iter().map(|turn| turn.conversation.rows()).sum();
        if rows > self.rows {
            return Err(Error::Input(format!(
                "{rows} rows of conversations do not fit into an engine of {}",
                self.rows
            )));
        }
        if turns.iter().any(|turn| !Arc::ptr_eq(&turn.conversation.model, &self.model)) {
            return Err(Error::Input("a conversation was made with another model".into()));
        }
        self.places.clear();
        for (turn, Turn { conversation, .. }) in turns.iter().enumerate() {
            self.places.extend((0..conversation.rows()).map(|track| (turn, track)));
        }
        Ok(())
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
        finite(source, "the source")?;
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
                let mut ring = Ring::new(shape)
                    .ok_or_else(|| Error::Input("the system does not have the memory for the source".into()))?;
                for (step, x) in source.chunks_exact(dim).enumerate() {
                    self.room.products.apply(&self.kernels, &cross.keys_values, x, Into::Store(&mut row));
                    let (keys, values) = row.split_at(dim);
                    ring.store(step, keys, values);
                }
                Ok(ring)
            })
            .collect::<Result<_>>()?;
        Ok(Cross { model: Arc::clone(&self.model), rings, steps })
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

    /// Runs the temporal transformer on the first rows of `x`, to `h`.
    fn temporal(&mut self, batch: &mut Batch<'_, '_>, rows: usize) {
        let Self { model, kernels, room, x, h, places, rotation, .. } = self;
        let (model, kernels, places) = (&**model, &*kernels, &**places);
        let (heads, dim, pairs) = (model.heads, model.config.dim, model.heads.dim / 2);
        let scale = 1.0 / (heads.dim as f32).sqrt();
        let x = &mut x[..rows * dim];
        for (row, rotation) in rotation.chunks_exact_mut(pairs).enumerate().take(rows) {
            turning(&model.frequencies, batch.at(places, row).2, rotation);
        }
        for (l, layer) in model.layers.iter().enumerate() {
            room.project(kernels, layer, x, dim);
            for row in 0..rows {
                let (conversation, track, position) = batch.at(places, row);
                let ring = &mut conversation.tracks[track].rings[l];
                let projected = &mut room.projected[row * heads.width()..][..heads.width()];
                let (turned, values) = projected.split_at_mut(heads.queries() + heads.keys());
                turn(turned, heads.dim, model.config.rope_concat, &rotation[row * pairs..][..pairs]);
                let (queries, keys) = turned.split_at_mut(heads.queries());
                ring.store((position % ring.shape().capacity as u64) as usize, keys, values);
                queries.iter_mut().for_each(|q| *q *= scale);
                if batch.one_by_one() {
                    // Before the next position takes the place of an old one, or is seen too early.
                    let seen = |_| Some(batch.seen(places, row, l));
                    let (queries, width) = (&room.projected[row * heads.width()..], heads.queries());
                    let out = &mut room.attended[row * width..][..width];
                    kernels.attend_rings(&seen, heads.dim, heads.group, (queries, heads.width()), (out, width));
                }
            }
            if !batch.one_by_one() {
                let (seen, width) = (|row| Some(batch.seen(places, row, l)), heads.queries());
                let out = &mut room.attended[..rows * width];
                kernels.attend_rings(&seen, heads.dim, heads.group, (&room.projected, heads.width()), (out, width));
            }
            room.add_attended(kernels, layer, x, dim, heads);
            if let Some(cross) = &layer.cross {
                let normed = &mut room.normed[..rows * dim];
                kernels.layer_norm(x, &cross.norm_weight, &cross.norm_bias, normed);
                let queries = &mut room.projected[..rows * dim];
                room.products.apply(kernels, &cross.queries, normed, Into::Store(queries));
                queries.iter_mut().for_each(|q| *q *= scale);
                let seen = |row| batch.source(places, row, l);
                let attended = &mut room.attended[..rows * dim];
                kernels.attend_rings(&seen, heads.dim, 1, (&room.projected, dim), (attended, dim));
                let attended = &room.attended[..rows * dim];
                room.products.apply(kernels, &cross.out, attended, Into::Add(x));
            }
            room.feed_forward(kernels, layer, x, dim);
        }
        kernels.rms_norm(x, &model.out_norm, NORM_EPS, &mut h[..rows * dim]);
    }
}

/// The rows of one run of the temporal transformer.
enum Batch<'a, 'b> {
    /// One position of each row of some conversations.
    Turns(&'a mut [Turn<'b>]),
    /// Some positions of one row of a conversation, from the first on.
    Columns { conversation: &'a mut Conversation, track: usize, first: u64 },
}

impl Batch<'_, '_> {
    /// A row's conversation, its row there, and its position.
    fn at(&mut self, places: &[(usize, usize)], row: usize) -> (&mut Conversation, usize, u64) {
        match self {
            Self::Turns(turns) => {
                let (turn, track) = places[row];
                let conversation = &mut *turns[turn].conversation;
                let position = conversation.position;
                (conversation, track, position)
            }
            Self::Columns { conversation, track, first } => (&mut **conversation, *track, *first + row as u64),
        }
    }

    /// Whether rows are positions of one conversation, each of which sees those before it.
    fn one_by_one(&self) -> bool {
        matches!(self, Self::Columns { .. })
    }

    fn conversation(&self, places: &[(usize, usize)], row: usize) -> (&Conversation, usize, u64) {
        match self {
            Self::Turns(turns) => {
                let (turn, track) = places[row];
                (&*turns[turn].conversation, track, turns[turn].conversation.position)
            }
            Self::Columns { conversation, track, first } => (&**conversation, *track, *first + row as u64),
        }
    }

    /// The ring of a row in a layer, with how many slots it sees when its position is stored.
    fn seen(&self, places: &[(usize, usize)], row: usize, layer: usize) -> (&Ring, usize) {
        let (conversation, track, position) = self.conversation(places, row);
        let ring = &conversation.tracks[track].rings[layer];
        (ring, (position + 1).min(ring.shape().capacity as u64) as usize)
    }

    /// The source that a row attends to in a layer.
    fn source(&self, places: &[(usize, usize)], row: usize, layer: usize) -> Option<(&Ring, usize)> {
        let cross = self.conversation(places, row).0.cross.as_ref()?;
        Some((&cross.rings[layer], cross.steps))
    }
}

fn add(x: &mut [f32], added: Option<&[f32]>) {
    if let Some(added) = added {
        x.iter_mut().zip(added).for_each(|(x, more)| *x += more);
    }
}

/// cos and sin of the angles of a position. In float64: in float32 they would be off after some hours.
fn turning(frequencies: &[f64], position: u64, out: &mut [(f32, f32)]) {
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
