//! What a conversation is at.

use std::sync::Arc;

use kernels::{Held, Ring, RingShape};

use crate::config::Config;

/// What the layers' attention to a source sees: keys and values that do not change. Conversations may share it.
#[derive(Debug)]
pub struct Cross {
    pub(crate) rings: Vec<Ring>,
    pub(crate) steps: usize,
}

/// The keys, values and position of one conversation.
///
/// Memory for keys and values is taken when positions are first used, up to the window.
#[derive(Debug)]
pub struct Conversation {
    pub(crate) rings: Vec<Ring>,
    pub(crate) position: u64,
    pub(crate) added: Option<Vec<f32>>,
    pub(crate) cross: Option<Arc<Cross>>,
}

impl Conversation {
    pub(crate) fn new(config: &Config, held: Held) -> Self {
        let shape = RingShape {
            heads: config.num_heads / config.kv_repeat,
            dim: config.dim / config.num_heads,
            capacity: config.context,
            held,
        };
        let rings = (0..config.num_layers).map(|_| Ring::new(shape)).collect();
        Self { rings, position: 0, added: None, cross: None }
    }

    /// Steps that were taken.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Bytes that keys and values take by now.
    pub fn bytes(&self) -> usize {
        let Some(ring) = self.rings.first() else { return 0 };
        let shape = ring.shape();
        let positions = self.position.min(shape.capacity as u64) as usize;
        self.rings.len() * positions * shape.bytes_a_position()
    }

    /// Forgets all that was heard and said. What is added to the input, and the source, stay.
    pub fn reset(&mut self) {
        self.position = 0;
    }

    /// What is added to the input of each step, `[dim]`; none: nothing.
    pub fn add_to_input(&mut self, added: Option<Vec<f32>>) {
        self.added = added;
    }

    /// What the layers attend to besides.
    pub fn attend_to(&mut self, cross: Option<Arc<Cross>>) {
        self.cross = cross;
    }
}
