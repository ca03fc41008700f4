//! The Mimi codec: 24 kHz mono audio to and from integer codes, streaming, in float32 on the CPU.
//!
//! How a frame (1920 samples, 80 ms in the published configuration) flows:
//!
//! ```text
//! Encoder  pcm ─▶ seanet (convolutions, ÷960) ─▶ transformer, 2 steps ─▶ downsample (÷2) ─▶ quantizer ─▶ codes
//! Decoder  codes ─▶ quantizer ─▶ upsample (×2) ─▶ transformer, 2 steps ─▶ seanet (transposed, ×960) ─▶ pcm
//! ```
//!
//! [`Mimi`] holds the weights, packed for the kernels at load; [`Encoder`] and [`Decoder`] hold what a stream needs to
//! remember: the last steps before each convolution and the keys and values of the attention window, as rings.
//! Everything is causal. A whole recording is encoded by a stream, too, some frames at a time, and each number is
//! computed by the same operations in the same order whatever the size of the pieces.

#![deny(unsafe_code)]

mod checkpoint;
mod codec;
mod config;
mod conv;
mod error;
#[allow(unsafe_code)]
mod kernels;
mod quantizer;
mod seanet;
mod transformer;
mod weights;

pub use codec::{Decoder, Encoder, Mimi, Options, StageTimes};
pub use config::Config;
pub use error::{Error, Result};
pub use kernels::Isa;
