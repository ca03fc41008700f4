//! Reads safetensors files: for the codec, for the Python package, and whatever engine comes beside them.
//!
//! [`File::open`] checks the whole header against the file's size before anything is read, so a place in it can be trusted.
//! Then tensors are read one at a time, by pieces; never more is allocated than the file's size. Every message is one
//! sentence that says what is wrong and what to do.
//!
//! The format: <https://huggingface.co/docs/safetensors>.

mod error;
mod file;
mod foreign;
mod header;
mod shared;
mod system;

pub use error::{Error, Result, shown};
pub use file::{File, NotFinite, Values};
pub use foreign::foreign;
pub use header::{Dtype, Pairs, Tensor};
pub use shared::Shared;
pub use system::FileId;
