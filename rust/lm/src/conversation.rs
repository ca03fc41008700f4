//! What a conversation is at.

use std::sync::Arc;

use kernels::{Held, Ring, RingShape, Slots};

use crate::error::{Error, Result};
use crate::model::Model;
use crate::sampling::{Noise, Sampler, TextSampler};

/// What the layers' attention to a source sees: keys and values that do not change. Conversations may share it.
#[derive(Debug)]
pub struct Cross {
    pub(crate) model: Arc<Model>,
    pub(crate) rings: Vec<Ring>,
    pub(crate) steps: usize,
}

/// Classifier-free guidance: two rows, "given" and "null", whose logits are mixed as `null + coef · (given − null)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guidance {
    #[allow(missing_docs)]
    pub coef: f32,
    /// The text's logits are mixed, too; else they are those of the given row.
    pub text: bool,
}

impl Guidance {
    /// Mixes two rows, in the first.
    pub(crate) fn mix(&self, given: &mut [f32], null: &[f32]) {
        for (given, null) in given.iter_mut().zip(null) {
            *given = null + self.coef * (*given - null);
        }
    }
}

/// How a conversation chooses, and what it holds.
#[derive(Clone, Copy, Debug)]
pub struct Choices {
    /// How keys and values are held.
    pub held: Held,
    #[allow(missing_docs)]
    pub text: TextSampler,
    #[allow(missing_docs)]
    pub audio: Sampler,
    /// With it, the conversation has two rows; else one.
    pub guidance: Option<Guidance>,
    /// Own codebooks that are computed; none: all. The codes of others are 0.
    pub codebooks: Option<usize>,
    /// The same seed gives the same choices.
    pub seed: u64,
    /// The text token to which the sampler's bonus goes.
    pub padding: Option<usize>,
}

impl Default for Choices {
    /// Keys and values in half precision, and the published samplers.
    fn default() -> Self {
        let sampler = |temperature, top_k| Sampler { temperature, top_k, top_p: 1.0, min_p: 0.0 };
        Self {
            held: Held::F16,
            text: TextSampler { sampler: sampler(0.7, 25), repetition_penalty: 1.0, padding_bonus: 0.0 },
            audio: sampler(0.8, 250),
            guidance: None,
            codebooks: None,
            seed: 0,
            padding: None,
        }
    }
}

/// One row of a conversation.
#[derive(Debug)]
pub(crate) struct Track {
    /// The keys and values of each layer.
    pub rings: Vec<Ring>,
    /// Added to the input of each step, `[dim]`.
    pub added: Option<Vec<f32>>,
}

/// One conversation: its keys and values, its position, how it chooses, and the logits of its newest step.
///
/// Memory for keys and values is taken when positions are first used, up to the window.
#[derive(Debug)]
pub struct Conversation {
    pub(crate) model: Arc<Model>,
    pub(crate) choices: Choices,
    pub(crate) tracks: Vec<Track>,
    pub(crate) position: u64,
    pub(crate) cross: Option<Arc<Cross>>,
    pub(crate) noise: Noise,
    /// The output of the newest step, `[rows, dim]`.
    pub(crate) h: Vec<f32>,
    /// There was a step whose second half has not been.
    pub(crate) heard: bool,
    /// There was a step, so that logits are there; and those of so many codebooks.
    pub(crate) stepped: bool,
    pub(crate) spoken: usize,
    pub(crate) text_logits: Vec<f32>,
    pub(crate) audio_logits: Vec<f32>,
    pub(crate) heads: Vec<f32>,
}

impl Conversation {
    /// A conversation at its beginning.
    ///
    /// # Errors
    ///
    /// A choice is out of range.
    pub fn new(model: &Arc<Model>, choices: Choices) -> Result<Self> {
        let config = model.config();
        choices.text.check()?;
        choices.audio.check()?;
        if choices.codebooks.is_some_and(|count| count > config.dep_q) {
            return Err(Error::Input(format!("the model has {} codebooks of its own", config.dep_q)));
        }
        if choices.guidance.is_some_and(|guidance| !guidance.coef.is_finite()) {
            return Err(Error::Input("the coefficient of guidance is not a finite number".into()));
        }
        if choices.padding.is_some_and(|token| token >= config.text_card_out) {
            return Err(Error::Input(format!("the padding token is not one of the {} tokens", config.text_card_out)));
        }
        let shape = RingShape {
            heads: config.num_heads / config.kv_repeat,
            dim: config.dim / config.num_heads,
            capacity: config.context,
            held: choices.held,
        };
        let rows = choices.rows();
        let track = |_| {
            let rings: Option<Vec<Ring>> = (0..config.num_layers).map(|_| Ring::new(shape)).collect();
            rings.map(|rings| Track { rings, added: None }).ok_or_else(too_large)
        };
        Ok(Self {
            tracks: (0..rows).map(track).collect::<Result<_>>()?,
            position: 0,
            cross: None,
            noise: Noise::new(choices.seed, 0),
            h: vec![0.0; rows * config.dim],
            heard: false,
            stepped: false,
            spoken: 0,
            text_logits: vec![0.0; config.text_card_out],
            audio_logits: vec![0.0; config.dep_q * config.card],
            heads: vec![0.0; config.extra_heads * config.extra_heads_dim],
            model: Arc::clone(model),
            choices,
        })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Rows that it has in a step: 2 with guidance.
    pub fn rows(&self) -> usize {
        self.tracks.len()
    }

    /// Steps that were taken.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Own codebooks that are computed.
    pub(crate) fn codebooks(&self) -> usize {
        self.choices.codebooks.unwrap_or(self.model.config().dep_q)
    }

    /// Slots of the rings that hold something.
    fn filled(&self) -> usize {
        self.position.min(self.model.config().context as u64) as usize
    }

    /// Bytes that keys and values take by now.
    pub fn bytes(&self) -> usize {
        let rings = self.tracks.iter().flat_map(|track| &track.rings);
        rings.map(|ring| self.filled() * ring.shape().bytes_a_position()).sum()
    }

    /// Forgets all that was heard and said. What is added to the input, and the source, stay. A seed takes the place of
    /// the one before.
    pub fn reset(&mut self, seed: Option<u64>) {
        self.choices.seed = seed.unwrap_or(self.choices.seed);
        self.position = 0;
        (self.heard, self.stepped, self.spoken) = (false, false, 0);
    }

    /// Acts as if as many positions had passed as the window has, to measure a conversation of any length.
    pub fn fill_window(&mut self) {
        self.tracks.iter_mut().flat_map(|track| &mut track.rings).for_each(Ring::fill);
        self.position = self.model.config().context as u64;
    }

    /// What is added to the input of each step, `[rows, dim]`, or `[dim]` for all rows.
    ///
    /// # Errors
    ///
    /// It has another shape, or is not finite.
    pub fn add_to_input(&mut self, added: &[f32]) -> Result<()> {
        let (rows, dim) = (self.rows(), self.model.config().dim);
        if added.len() != dim && added.len() != rows * dim {
            return Err(Error::Input(format!("{} numbers are not 1 or {rows} rows of {dim}", added.len())));
        }
        finite(added, "what is added to the input")?;
        for (row, track) in self.tracks.iter_mut().enumerate() {
            let begin = if added.len() == dim { 0 } else { row * dim };
            track.added = Some(added[begin..begin + dim].to_vec());
        }
        Ok(())
    }

    /// What the layers of all rows attend to besides.
    ///
    /// # Errors
    ///
    /// The source was made with another model.
    pub fn attend_to(&mut self, cross: Arc<Cross>) -> Result<()> {
        if !Arc::ptr_eq(&cross.model, &self.model) {
            return Err(Error::Input("the source was made with another model".into()));
        }
        self.cross = Some(cross);
        Ok(())
    }

    /// The text logits of the newest step, `[text_card_out]`, mixed by guidance, before the sampler changed any.
    ///
    /// # Errors
    ///
    /// There was no step yet.
    pub fn text_logits(&self) -> Result<&[f32]> {
        self.newest(&self.text_logits)
    }

    /// The logits of the newest step's codes, `[codes, card]`, of those that were computed, mixed by guidance.
    ///
    /// # Errors
    ///
    /// There was no step yet.
    pub fn audio_logits(&self) -> Result<&[f32]> {
        self.newest(&self.audio_logits[..self.spoken * self.model.config().card])
    }

    /// What the extra heads say at the newest step, probabilities `[heads, classes]`, of the first row.
    ///
    /// # Errors
    ///
    /// There was no step yet.
    pub fn extra_heads(&self) -> Result<&[f32]> {
        self.newest(&self.heads)
    }

    fn newest<'a>(&self, numbers: &'a [f32]) -> Result<&'a [f32]> {
        if self.stepped { Ok(numbers) } else { Err(Error::Input("there was no step yet, and so no logits".into())) }
    }

    /// Another conversation that goes on from here, on its own. Only what is filled is copied.
    ///
    /// # Errors
    ///
    /// The system does not have the memory.
    pub fn copy(&self) -> Result<Self> {
        let filled = self.filled();
        let track = |track: &Track| {
            let rings: Option<Vec<Ring>> = track.rings.iter().map(|ring| ring.copy(filled)).collect();
            rings.map(|rings| Track { rings, added: track.added.clone() }).ok_or_else(too_large)
        };
        Ok(Self {
            tracks: self.tracks.iter().map(track).collect::<Result<_>>()?,
            model: Arc::clone(&self.model),
            cross: self.cross.clone(),
            noise: self.noise.clone(),
            h: self.h.clone(),
            text_logits: self.text_logits.clone(),
            audio_logits: self.audio_logits.clone(),
            heads: self.heads.clone(),
            ..*self
        })
    }

    /// The keys and values of all positions that are filled: for each row, for each layer, keys and values, and scales
    /// of both where they are held in bytes.
    pub fn save(&self) -> Vec<Slots> {
        let filled = self.filled();
        self.tracks.iter().flat_map(|track| &track.rings).flat_map(|ring| ring.save(filled)).collect()
    }

    /// Goes on from `position`, with keys and values as [`save`](Self::save) gave them, of a conversation with the same
    /// number of rows, the same model, and keys and values held in the same way.
    ///
    /// # Errors
    ///
    /// They do not fit. Nothing has changed then but what was kept of the conversation before.
    pub fn restore(&mut self, parts: &[Slots], position: u64) -> Result<()> {
        self.reset(None);
        let filled = position.min(self.model.config().context as u64) as usize;
        let mut rings = self.tracks.iter_mut().flat_map(|track| &mut track.rings);
        let in_ring = self.choices.held.parts();
        let count = self.model.config().num_layers * self.choices.rows();
        if parts.len() != count * in_ring {
            let what = format!("a kept conversation has {} arrays, not {}", count * in_ring, parts.len());
            return Err(Error::Input(what));
        }
        for (i, parts) in parts.chunks_exact(in_ring).enumerate() {
            let Some(ring) = rings.next() else { break };
            let wrong = |part: usize, what: &str| Error::Input(format!("array {} {what}", i * in_ring + part));
            ring.restore(filled, parts).map_err(|(part, what)| wrong(part, &what))?;
        }
        self.position = position;
        Ok(())
    }
}

impl Choices {
    fn rows(&self) -> usize {
        if self.guidance.is_some() { 2 } else { 1 }
    }
}

fn too_large() -> Error {
    let what = "the system does not have the memory for the keys and values of a whole window";
    Error::Input(format!("{what}; shorten it, or close other programs"))
}

/// Refuses numbers that are not finite.
pub(crate) fn finite(numbers: &[f32], what: &str) -> Result<()> {
    match numbers.iter().find(|x| !x.is_finite()) {
        None => Ok(()),
        Some(x) => Err(Error::Input(format!("{what} holds {x}; finite numbers are expected"))),
    }
}
