//! The Mimi codec: 24 kHz mono audio to and from integer codes, streaming, in float32 on the CPU.
//!
//! How a frame (1920 samples, 80 ms in the published configuration) flows:
//!
//! ```text
//! Encoder  pcm ─▶ seanet (convolutions, ÷960) ─▶ transformer, 2 steps ─▶ downsample (÷2) ─▶ quantizer ─▶ codes
//! Decoder  codes ─▶ quantizer ─▶ upsample (×2) ─▶ transformer, 2 steps ─▶ seanet (transposed, ×960) ─▶ pcm
//! ```
//!
//! What a frame of the published configuration costs with 8 codebooks and a full attention window (a multiplication with
//! an addition counts as two operations, a number as four bytes; a test keeps the table):
//!
//! | stage | MFLOP | MB read |
//! |---|---|---|
//! | encoder: seanet | 322.6 | 50.5 |
//! | encoder: transformer | 108.9 | 108.9 |
//! | encoder: downsample and quantizer | 11.0 | 22.0 |
//! | encoder, all | 442.4 | 181.5 |
//! | decoder: quantizer and upsample | 0.5 | 1.1 |
//! | decoder: transformer | 108.9 | 108.9 |
//! | decoder: seanet | 330.0 | 58.9 |
//! | decoder, all | 439.4 | 168.9 |
//!
//! So the transformer, the quantizer and the two deepest convolutions of each seanet, which have two rows per frame, are bound
//! by the time to read their weights from memory. The other convolutions have 16 to 1920 rows, and are bound by arithmetic. Both
//! transformer steps of a frame are computed together, so that its weights are read once. Every matrix is stored in the order
//! in which it is read, in huge pages if there are any. Bias, activation and residual are applied to the sums while these are
//! in registers. While a matrix is multiplied with many rows, the next part of it is on its way from memory. Threads share the
//! columns of large matrices and the rows of small ones. [`Encoder::stage_times`] and [`Decoder::stage_times`] tell the time of
//! each stage.
//!
//! With [`Precision::Float16`] the matrices are held in half the memory, and widened to float32 as they are read; codebooks,
//! biases, norms and scales stay in float32. `benchmarks/codec_accuracy.py` measures what that changes.
//!
//! [`Mimi`] holds the weights, which are packed for the kernels when they are loaded. [`Encoder`] and [`Decoder`] hold the state
//! of a stream: the last steps before each convolution, and the keys and values of the attention window, as rings.
//! Everything is causal. A stream also encodes a whole recording, some frames at a time. Each number is computed by the same
//! operations in the same order, whatever the size of the pieces.

#![forbid(unsafe_code)]

mod codec;
mod config;
mod conv;
mod error;
mod quantizer;
mod scratch;
mod seanet;
mod tensors;
mod transformer;
mod weights;

pub use codec::{Decoder, Encoder, Mimi, Options, StageTimes};
pub use config::Config;
pub use error::{Error, Result};
pub use kernels::{Isa, Precision};
