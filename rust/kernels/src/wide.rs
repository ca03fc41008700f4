//! Products of matrices of floating-point weights, in the type that their file has, and a few rows in float32.
//!
//! Weights lie in panels of 16 outputs: for each input, the numbers of 16 outputs in a row. Each result is computed by
//! the same operations whatever the number of rows or threads.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::Kernels;
use crate::float::Float;
use crate::lanes::{Lanes, WIDTH, packed_dispatch};
use crate::memory::Aligned;
use crate::packed::{Into, READ_BYTES, Results, parts};
use crate::pool::Pool;

/// How far ahead weights are fetched, in bytes.
const AHEAD: usize = 2048;

/// A matrix `[n, k]`: n outputs, k inputs.
#[derive(Debug)]
pub struct Wide {
    n: usize,
    k: usize,
    float: Float,
    bytes: Aligned<u8>,
}

impl Wide {
    /// An empty matrix of `n` outputs and `k` inputs.
    pub fn zeros(n: usize, k: usize, float: Float) -> Self {
        Self { n, k, float, bytes: Aligned::beside(n.div_ceil(WIDTH) * WIDTH * k * float.size()) }
    }

    /// The number of outputs.
    pub fn outputs(&self) -> usize {
        self.n
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    fn panel(&self) -> usize {
        WIDTH * self.k * self.float.size()
    }

    /// Fills the matrix, in the pool's threads. `read(first, count)` gives some rows, as numbers of the matrix's type.
    /// The first error is given back; the matrix is of no use then.
    ///
    /// # Panics
    ///
    /// Bytes are missing, or there are too many.
    pub fn fill<E: Send>(
        &mut self,
        pool: &Pool,
        read: impl Fn(usize, usize) -> Result<Vec<u8>, E> + Sync,
    ) -> Result<(), E> {
        let (n, panel, row) = (self.n, self.panel(), self.k * self.float.size());
        if panel == 0 {
            return Ok(());
        }
        let (at_once, size) = ((READ_BYTES / panel).max(1), self.float.size());
        let failed = Mutex::new(None);
        pool.pieces(&mut self.bytes, at_once * panel, |piece, bytes| {
            let first = piece * at_once * WIDTH;
            let count = (at_once * WIDTH).min(n - first);
            match read(first, count) {
                Ok(rows) => {
                    assert_eq!(rows.len(), count * row, "numbers of the rows");
                    for (panel, rows) in bytes.chunks_exact_mut(panel).zip(rows.chunks(WIDTH * row)) {
                        if size == 2 { turned::<2>(rows, row, panel) } else { turned::<4>(rows, row, panel) }
                    }
                }
                Err(error) => drop(failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error)),
            }
        });
        failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

/// Puts rows of numbers of `S` bytes into a panel. Some inputs at a time, which stay in the cache.
fn turned<const S: usize>(rows: &[u8], row: usize, panel: &mut [u8]) {
    const PIECE: usize = 32;
    let panel = panel.as_chunks_mut::<S>().0;
    for (p, panel) in panel.chunks_mut(PIECE * WIDTH).enumerate() {
        for (r, numbers) in rows.chunks_exact(row).enumerate() {
            let numbers = &numbers.as_chunks::<S>().0[p * PIECE..];
            for (lanes, number) in panel.chunks_exact_mut(WIDTH).zip(numbers) {
                lanes[r] = *number;
            }
        }
    }
}

struct Task<'a> {
    w: &'a Wide,
    x: &'a [f32],
    rows: usize,
    results: Results,
}

impl Kernels {
    /// Multiplies rows `x` of as many numbers as `w` has inputs, in the pool's threads.
    ///
    /// # Panics
    ///
    /// The rows are not whole, or there is no room for the results.
    pub fn wide_product(&self, w: &Wide, x: &[f32], out: Into<'_>) {
        let rows = x.len() / w.k.max(1);
        assert_eq!(x.len(), rows * w.k, "rows of another width");
        let task = &Task { w, x, rows, results: Results::new(out, rows, w.n) };
        let (dot, panels) = (self.dot, w.n.div_ceil(WIDTH));
        let (count, chunk) = parts(panels, w.bytes() * rows.div_ceil(4), self.pool.threads());
        self.pool.run(count, &|i| {
            let panels = i * chunk..panels.min((i + 1) * chunk);
            packed_dispatch!(dot, multiply(task: &Task<'_>, panels: Range<usize>));
        });
    }
}

#[inline(always)]
fn multiply<L: Lanes>(task: &Task<'_>, panels: Range<usize>) {
    match task.w.float {
        Float::F32 => rows::<L, 0>(task, panels),
        Float::F16 => rows::<L, 1>(task, panels),
        Float::Bf16 => rows::<L, 2>(task, panels),
    }
}

#[inline(always)]
fn rows<L: Lanes, const FLOAT: u8>(task: &Task<'_>, panels: Range<usize>) {
    for panel in panels {
        let mut row = 0;
        while row < task.rows {
            // SAFETY: the rows and the panel exist.
            row += unsafe {
                match task.rows - row {
                    4.. => tile::<L, FLOAT, 4>(task, panel, row),
                    2.. => tile::<L, FLOAT, 2>(task, panel, row),
                    _ => tile::<L, FLOAT, 1>(task, panel, row),
                }
            };
        }
    }
}

/// `M` rows with a panel. Returns `M`.
///
/// # Safety
/// The rows and the panel must exist.
#[inline(always)]
unsafe fn tile<L: Lanes, const FLOAT: u8, const M: usize>(task: &Task<'_>, panel: usize, row: usize) -> usize {
    let w = task.w;
    let line = if FLOAT == 0 { 64 } else { 32 };
    // Four sums each, so that one does not wait for the other.
    let mut sums = [[L::zero(); 4]; M];
    // SAFETY: the caller's promise; a panel has `line` bytes for each input, and a row a number.
    unsafe {
        let x = task.x.as_ptr().add(row * w.k);
        let mut at = w.bytes.as_ptr().add(panel * w.panel());
        for first in (0..w.k).step_by(4) {
            L::prefetch(at.wrapping_add(AHEAD));
            L::prefetch(at.wrapping_add(AHEAD + 64));
            if FLOAT == 0 {
                L::prefetch(at.wrapping_add(AHEAD + 128));
                L::prefetch(at.wrapping_add(AHEAD + 192));
            }
            for j in 0..4.min(w.k - first) {
                let weights = match FLOAT {
                    0 => L::load(at),
                    1 => L::load_f16(at),
                    _ => L::load_bf16(at),
                };
                for (m, sums) in sums.iter_mut().enumerate() {
                    sums[j] = weights.mul_add(L::splat(*x.add(m * w.k + first + j)), sums[j]);
                }
                at = at.add(line);
            }
        }
        for (m, sums) in sums.iter().enumerate() {
            task.results.put(row + m, panel, sums[0].add(sums[1]).add(sums[2].add(sums[3])));
        }
    }
    M
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes::Dot;
    use crate::{Isa, numbers};

    const FLOATS: [Float; 3] = [Float::F32, Float::F16, Float::Bf16];

    /// A matrix of seeded numbers, and what they are after rounding.
    fn matrix(n: usize, k: usize, float: Float) -> (Wide, Vec<f32>) {
        let bytes: Vec<u8> = numbers(n * k, 1).iter().flat_map(|x| float.encode(*x)).collect();
        let mut wide = Wide::zeros(n, k, float);
        let row = k * float.size();
        let read = |first: usize, count: usize| Ok::<_, ()>(bytes[first * row..(first + count) * row].to_vec());
        wide.fill(&Pool::new(2), read).unwrap();
        (wide, float.decode(&bytes))
    }

    #[test]
    fn agrees_with_float64() {
        for dot in Dot::available() {
            for (float, (n, k, m)) in
                FLOATS.into_iter().flat_map(|f| [(1, 1, 1), (16, 7, 2), (40, 100, 5), (33, 300, 16)].map(|s| (f, s)))
            {
                let (wide, weights) = matrix(n, k, float);
                // From row to row other sizes, the largest and the least among them.
                let size = |row: usize| [1e3, 1e30, 1e-30, 0.0][row % 4];
                let x: Vec<f32> = numbers(m * k, 2).iter().enumerate().map(|(i, x)| size(i / k) * x).collect();
                let kernels = Kernels::with_dot(Isa::available()[0], dot, 2);
                let mut out = vec![7.0; m * n];
                kernels.wide_product(&wide, &x, Into::Store(&mut out));
                let stored = out.clone();
                kernels.wide_product(&wide, &x, Into::Add(&mut out));
                for (i, got) in stored.iter().enumerate() {
                    let terms = || (0..k).map(|j| f64::from(weights[i % n * k + j]) * f64::from(x[i / n * k + j]));
                    let (want, size): (f64, f64) = (terms().sum(), terms().map(f64::abs).sum());
                    assert!((f64::from(*got) - want).abs() <= 1e-6 * size, "{dot} {float:?} {m}x{k}x{n} at {i}");
                    assert_eq!(out[i], 2.0 * got);
                }
            }
        }
    }

    #[test]
    fn neighbours_and_threads_change_no_bit() {
        for (dot, float) in Dot::available().into_iter().flat_map(|dot| FLOATS.map(|float| (dot, float))) {
            let (n, k) = (200, 130);
            let (wide, _) = matrix(n, k, float);
            let x = numbers(9 * k, 4);
            let mut all = vec![0.0; 9 * n];
            Kernels::with_dot(Isa::available()[0], dot, 3).wide_product(&wide, &x, Into::Store(&mut all));
            let one = Kernels::with_dot(Isa::available()[0], dot, 1);
            for (first, m) in [(0, 1), (3, 2), (5, 3), (2, 7)] {
                let mut some = vec![0.0; m * n];
                one.wide_product(&wide, &x[first * k..(first + m) * k], Into::Store(&mut some));
                assert_eq!(some, all[first * n..(first + m) * n], "{dot} {float:?} {first} {m}");
            }
        }
    }

    #[test]
    fn an_error_of_the_reader_is_given_back() {
        let mut wide = Wide::zeros(64, 4096, Float::F32);
        assert_eq!(wide.fill(&Pool::new(2), |first, _| Err(first > 1 << 20)), Err(false));
    }
}
