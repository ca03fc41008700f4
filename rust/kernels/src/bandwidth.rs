//! How fast the threads read memory: what products with weights are measured against.

use std::time::{Duration, Instant};

use crate::Kernels;
use crate::lanes::{Lanes, packed_dispatch};
use crate::memory::Aligned;

/// Bytes that a thread reads at a time.
const PIECE: usize = 1 << 20;

impl Kernels {
    /// Reads `size` bytes of memory with all threads, again and again for `time`, and at least five times. Returns the bytes a
    /// second of the fastest time; none if the system does not have so much memory.
    pub fn read_bandwidth(&self, size: usize, time: Duration) -> Option<f64> {
        let mut memory = Aligned::<f32>::try_zeroed(size / size_of::<f32>())?;
        memory.fill(1.0); // pages that were never written to are all the same one
        let (memory, pieces) = (&*memory, size / PIECE);
        let begin = Instant::now();
        let (mut fastest, mut times) = (Duration::MAX, 0);
        while times < 5 || begin.elapsed() < time {
            times += 1;
            let begin = Instant::now();
            self.pool().run(pieces, &|i| {
                let floats = &memory[i * (PIECE / 4)..][..PIECE / 4];
                let sum = &mut 0.0;
                packed_dispatch!(self.dot, sum_up(floats: &[f32], sum: &mut f32));
                // Without this, the compiler could leave out sums that nobody uses.
                std::hint::black_box(&*sum);
            });
            fastest = fastest.min(begin.elapsed());
        }
        Some((pieces * PIECE) as f64 / fastest.as_secs_f64())
    }
}

#[inline(always)]
fn sum_up<L: Lanes>(floats: &[f32], sum: &mut f32) {
    const AT_ONCE: usize = 8;
    let mut sums = [L::zero(); AT_ONCE];
    for lines in floats.as_chunks::<{ 16 * AT_ONCE }>().0 {
        for (j, sum) in sums.iter_mut().enumerate() {
            // SAFETY: a chunk has `AT_ONCE` times 16 floats.
            *sum = unsafe { L::load(lines.as_ptr().add(16 * j).cast()) }.add(*sum);
        }
    }
    let mut total = [0.0; 16];
    let all = sums.into_iter().reduce(L::add).unwrap_or(L::zero());
    // SAFETY: there is room for 16.
    unsafe { all.store(total.as_mut_ptr()) };
    *sum = total.iter().sum();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::lanes::Dot;

    #[test]
    fn all_is_read() {
        for dot in Dot::available() {
            let kernels = Kernels::with_dot(Isa::available()[0], dot, 2);
            let floats: &[f32] = &[1.0; 1024];
            let sum = &mut 0.0;
            packed_dispatch!(dot, sum_up(floats: &[f32], sum: &mut f32));
            assert_eq!(*sum, 1024.0, "{dot}");
            // More than a byte, less than a terabyte a second.
            let read = kernels.read_bandwidth(4 << 20, Duration::ZERO).unwrap();
            assert!((1.0..1e12).contains(&read), "{dot}: {read}");
            assert_eq!(kernels.read_bandwidth(1 << 60, Duration::ZERO), None);
        }
    }
}
