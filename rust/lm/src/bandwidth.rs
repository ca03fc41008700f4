//! How fast this machine reads memory.

use std::time::Duration;

use kernels::{Isa, Kernels};

/// Measures the bytes a second that some threads together read, `size` bytes again and again for `time`.
pub fn read_bandwidth(threads: usize, size: usize, time: Duration) -> f64 {
    Kernels::new(Isa::available()[0], threads).read_bandwidth(size, time)
}
