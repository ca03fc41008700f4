//! How fast this machine reads memory.

use std::time::Duration;

use kernels::{Isa, Kernels};

use crate::error::{Error, Result};

/// Measures the bytes a second that some threads together read, `size` bytes again and again for `time`.
///
/// # Errors
///
/// The system does not have so much memory.
pub fn read_bandwidth(threads: usize, size: usize, time: Duration) -> Result<f64> {
    let read = Kernels::new(Isa::available()[0], threads).read_bandwidth(size, time);
    let what =
        || format!("the system does not have the {} MB of memory that it takes to see how fast it is read", size >> 20);
    read.ok_or_else(|| Error::Input(what()))
}
