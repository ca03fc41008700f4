//! The language models of Moshi's family, step by step, on the CPU.
//!
//! A model is a temporal transformer, which runs once for each frame of 80 ms, and a depformer, which runs once for
//! each codebook of the frame ([`Model`]). What a conversation is at is a [`Conversation`]: its keys and values and its
//! position. An [`Engine`] takes any number of conversations, each at its own position, through a step at once, so that
//! the weights are read once for all. The row of a conversation has the same bits whatever its neighbours are.
//!
//! The crate reads weights from where a [`Source`] says that they are. It knows nothing of how files name them, and
//! nothing of Python.

mod bandwidth;
mod config;
mod conversation;
mod depformer;
mod engine;
mod error;
mod linear;
mod model;
mod sampling;
mod source;
mod table;
mod transformer;

pub use bandwidth::read_bandwidth;
pub use config::Config;
pub use conversation::{Choices, Conversation, Cross, Guidance};
pub use engine::{Engine, Options, Turn};
pub use error::{Error, Result};
pub use kernels::{Dot, Float, Held, Numbers, Slots, Way};
pub use model::{Loading, Model};
pub use sampling::{Noise, Room, Sampler, TextSampler};
pub use source::{Change, Module, Packing, Place, Random, Source, pack};
