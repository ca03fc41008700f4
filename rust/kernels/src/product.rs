//! `C = A · W + bias` with what follows it done while the numbers are in registers.
//!
//! W is packed once, at load, into panels of [`NR`] columns in the order in which the inner loop reads them. A is any
//! buffer with a row stride, rows may overlap: that makes a causal convolution a product over its own history.

use std::ops::Range;
use std::ptr;

use crate::math::{elu, gelu};
use crate::memory::{Aligned, Plain};
use crate::rows::{DOT, sum_pairs};
use crate::vector::{LANES, Vector};
use crate::{Kernels, dispatch};

/// Columns of a panel.
const NR: usize = 2 * LANES;

/// Most rows of a tile: 6 × 16 sums fill 12 of the 16 vector registers of AVX2.
const MR: usize = 6;

/// Weights up to this many bytes stay in the second-level cache while all rows pass by.
const SMALL_WEIGHTS: usize = 128 * 1024;

/// Products with fewer multiplications are not worth waking other threads for.
const SHARED_WORK: usize = 1 << 17;

/// Rows of a panel to ask for ahead of their use.
const AHEAD: usize = 16;

/// One row of a panel, aligned so that a vector load never crosses a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Lane([f32; NR]);

// SAFETY: floats.
unsafe impl Plain for Lane {}

impl Lane {
    #[inline(always)]
    fn halves<V: Vector>(&self) -> [V; 2] {
        let halves = self.0.as_chunks::<LANES>().0;
        [V::load(&halves[0]), V::load(&halves[1])]
    }

    #[inline(always)]
    fn from_halves<V: Vector>(halves: [V; 2]) -> Self {
        let mut lane = Self([0.0; NR]);
        let to = lane.0.as_chunks_mut::<LANES>().0;
        halves[0].store(&mut to[0]);
        halves[1].store(&mut to[1]);
        lane
    }
}

/// A packed weight matrix `[k, n]` with its bias.
#[derive(Debug)]
pub struct Matrix {
    k: usize,
    n: usize,
    /// `[n / NR, k, NR]`, padded with zeros; empty when there is one column only.
    panels: Aligned<Lane>,
    /// The only column, `[k]`; empty when there are more.
    column: Vec<f32>,
    /// `[n / NR, NR]`, padded with zeros.
    bias: Vec<Lane>,
}

/// What is done to the numbers of a product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// ELU with alpha 1.
    Elu,
    /// The exact GELU, by the error function.
    Gelu,
}

/// Where the rows of a product `v` go; each buffer is `[m, n]` without gaps.
pub enum Sink<'a> {
    /// `out = v`
    Store(&'a mut [f32]),
    /// `out += v`
    Add(&'a mut [f32]),
    /// `out = act(v)`
    Act(Activation, &'a mut [f32]),
    /// `raw = v`, `out = act(v)`
    StoreAct(&'a mut [f32], Activation, &'a mut [f32]),
    /// `out = act(raw + v)`
    AddAct(&'a [f32], Activation, &'a mut [f32]),
}

impl Matrix {
    /// Columns that are set at a time.
    pub const PANEL: usize = NR;

    /// All zeros, to be filled; `bias` has n numbers.
    pub fn zeros(k: usize, n: usize, bias: Option<&[f32]>) -> Self {
        let panels = Aligned::<Lane>::zeroed(if n == 1 { 0 } else { n.div_ceil(NR) * k });
        let column = vec![0.0; if n == 1 { k } else { 0 }];
        let mut lanes = vec![Lane([0.0; NR]); n.div_ceil(NR)];
        for (column, b) in bias.unwrap_or_default().iter().enumerate() {
            lanes[column / NR].0[column % NR] = *b;
        }
        Self { k, n, panels, column, bias: lanes }
    }

    /// Packs `weight(row, column)`, `[k, n]`; `bias` has n numbers.
    pub fn pack(k: usize, n: usize, bias: Option<&[f32]>, weight: impl Fn(usize, usize) -> f32) -> Self {
        let mut matrix = Self::zeros(k, n, bias);
        for column in 0..n {
            for row in 0..k {
                matrix.set(row, column, weight(row, column));
            }
        }
        matrix
    }

    #[inline]
    fn set(&mut self, row: usize, column: usize, value: f32) {
        if self.n == 1 {
            self.column[row] = value;
        } else {
            self.panels[column / NR * self.k + row].0[column % NR] = value;
        }
    }

    /// Sets the columns from `first`, a multiple of [`PANEL`](Self::PANEL), on, at most as many as that: `columns` is
    /// `[columns, k / taps, taps]`, and row `tap · k / taps + i` of the matrix takes `[.., i, tap]`.
    pub fn set_columns(&mut self, first: usize, taps: usize, columns: &[f32]) {
        let k = self.k;
        if self.n == 1 {
            for (i, step) in columns.chunks_exact(taps).enumerate() {
                for (tap, value) in step.iter().enumerate() {
                    self.column[tap * (k / taps) + i] = *value;
                }
            }
            return;
        }
        let lanes = &mut self.panels[first / NR * k..][..k];
        for (tap, lanes) in lanes.chunks_exact_mut(k / taps).enumerate() {
            // A column is read in pieces of a cache line: columns often lie so that they cannot all stay in the cache.
            for (piece, lanes) in lanes.chunks_mut(NR).enumerate() {
                for (c, column) in columns.chunks_exact(k).enumerate() {
                    let values = column[piece * NR * taps..].iter().skip(tap).step_by(taps);
                    for (lane, value) in lanes.iter_mut().zip(values) {
                        lane.0[c] = *value;
                    }
                }
            }
        }
    }

    /// Sets `row` to `values`, `[n, taps]`, of which it takes one tap.
    pub fn set_part_of_row(&mut self, row: usize, first: usize, taps: usize, tap: usize, values: &[f32]) {
        for (i, value) in values.iter().skip(tap).step_by(taps).enumerate() {
            self.set(row, first + i, *value);
        }
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        (self.panels.len() + self.bias.len()) * size_of::<Lane>() + self.column.len() * size_of::<f32>()
    }

    /// Numbers of a row of the product.
    pub fn columns(&self) -> usize {
        self.n
    }
}

/// A product in progress, as every thread sees it. The pointers are good for all rows and columns.
struct Task<'a> {
    w: &'a Matrix,
    a: *const f32,
    stride: usize,
    /// Added to the result, or null.
    add: *const f32,
    /// Takes the result, or null.
    raw: *mut f32,
    /// Takes its activation, or null.
    act: *mut f32,
    activation: Activation,
}

// SAFETY: threads write disjoint rows or columns of `raw` and `act`; `a` and `w` are only read, and `add` is only read
// where the same thread writes, or not written at all.
unsafe impl Sync for Task<'_> {}

impl Kernels {
    /// Multiplies `m` rows with `w`: as many numbers each as `w` has rows, from every `stride`-th number of `a` on. Rows may
    /// overlap.
    ///
    /// # Panics
    /// If `a` or a buffer of `sink` is too short.
    pub fn product(&self, a: &[f32], stride: usize, m: usize, w: &Matrix, sink: Sink<'_>) {
        if m == 0 {
            return;
        }
        let end = (m - 1).checked_mul(stride).and_then(|begin| begin.checked_add(w.k));
        assert!(end.is_some_and(|end| end <= a.len()), "the left matrix is too short");
        let size = m.checked_mul(w.n).expect("an output is too short");
        let null = ptr::null_mut();
        let (add, raw, activation, act) = match sink {
            Sink::Store(out) => (ptr::null(), checked(out, size), Activation::Elu, null),
            Sink::Add(out) => {
                let out = checked(out, size);
                (out.cast_const(), out, Activation::Elu, null)
            }
            Sink::Act(activation, out) => (ptr::null(), null, activation, checked(out, size)),
            Sink::StoreAct(raw, activation, out) => (ptr::null(), checked(raw, size), activation, checked(out, size)),
            Sink::AddAct(add, activation, out) => {
                assert!(add.len() >= size, "an operand is too short");
                (add.as_ptr(), null, activation, checked(out, size))
            }
        };
        let task = &Task { w, a: a.as_ptr(), stride, add, raw, act, activation };
        let isa = self.isa;
        let rows_first = w.n == 1 || w.panels.len() * size_of::<Lane>() <= SMALL_WEIGHTS;
        let panels = w.bias.len();
        let parts = if m * w.k * w.n < SHARED_WORK { 1 } else { 4 * self.pool.threads() };
        // Threads share the rows, in whole tiles, when the weights are small, else the columns.
        let (len, unit) = if rows_first { (m, MR) } else { (panels, 1) };
        let chunk = len.div_ceil(parts).next_multiple_of(unit);
        self.pool.run(len.div_ceil(chunk), &|i| {
            let part = i * chunk..len.min((i + 1) * chunk);
            let (rows, columns) = if rows_first { (part, 0..panels) } else { (0..m, part) };
            dispatch!(isa, block(task: &Task<'_>, rows: Range<usize>, columns: Range<usize>, rows_first: bool));
        });
    }
}

fn checked(out: &mut [f32], size: usize) -> *mut f32 {
    assert!(out.len() >= size, "an output is too short");
    out.as_mut_ptr()
}

/// The tiles of some rows and panels.
#[inline(always)]
fn block<V: Vector>(task: &Task<'_>, rows: Range<usize>, panels: Range<usize>, rows_first: bool) {
    if task.w.n == 1 {
        for row in rows {
            // SAFETY: `product` has checked the buffers for all rows.
            unsafe { single_column::<V>(task, row) };
        }
        return;
    }
    // Few rows: several panels at once, to have enough independent sums.
    let wide = match rows.len() {
        _ if rows_first => panels.len(),
        1 => 4,
        2 => 3,
        3 => 2,
        _ => 1,
    };
    let mut panel = panels.start;
    while panel < panels.end {
        let end = panels.end.min(panel + wide);
        // Tiles of nearly the same height.
        let mut left = rows.len().div_ceil(MR);
        let mut row = rows.start;
        while left > 0 {
            let height = (rows.end - row).div_ceil(left);
            columns::<V>(task, row, height, panel..end);
            row += height;
            left -= 1;
        }
        panel = end;
    }
}

/// The tiles of `height` rows and some panels.
#[inline(always)]
fn columns<V: Vector>(task: &Task<'_>, row: usize, height: usize, panels: Range<usize>) {
    let mut panel = panels.start;
    while panel < panels.end {
        let left = panels.end - panel;
        // SAFETY: `product` has checked the buffers for all rows and columns; the tile stays within both.
        panel += unsafe {
            match height {
                1 if left >= 4 => tile::<V, 1, 4>(task, row, panel),
                1 => tile::<V, 1, 1>(task, row, panel),
                2 if left >= 3 => tile::<V, 2, 3>(task, row, panel),
                2 if left >= 2 => tile::<V, 2, 2>(task, row, panel),
                2 => tile::<V, 2, 1>(task, row, panel),
                3 if left >= 2 => tile::<V, 3, 2>(task, row, panel),
                3 => tile::<V, 3, 1>(task, row, panel),
                4 => tile::<V, 4, 1>(task, row, panel),
                5 => tile::<V, 5, 1>(task, row, panel),
                _ => tile::<V, MR, 1>(task, row, panel),
            }
        };
    }
}

/// `M` rows times `P` panels. Each sum runs over k in order, whatever the shape of the tile. Returns P.
///
/// # Safety
/// Rows `row..row + M` and panels `panel..panel + P` must exist.
#[inline(always)]
unsafe fn tile<V: Vector, const M: usize, const P: usize>(task: &Task<'_>, row: usize, panel: usize) -> usize {
    let (k, stride) = (task.w.k, task.stride);
    let mut sums = [[[V::splat(0.0); 2]; P]; M];
    // SAFETY: the caller's promise; a row has k numbers and a panel k lanes.
    unsafe {
        let a = task.a.add(row * stride);
        let b = task.w.panels.as_ptr().add(panel * k);
        for i in 0..k {
            let mut xs = [V::splat(0.0); M];
            for (r, x) in xs.iter_mut().enumerate() {
                *x = V::splat(*a.add(r * stride + i));
            }
            for p in 0..P {
                let lane = b.add(p * k + i);
                if M <= 3 {
                    // Few rows wait for the weights, and the processor's own prefetching stops at the end of a page.
                    V::prefetch(lane.wrapping_add(AHEAD));
                }
                let lane = (*lane).halves::<V>();
                for (x, sums) in xs.iter().zip(&mut sums) {
                    sums[p][0] = x.mul_add(lane[0], sums[p][0]);
                    sums[p][1] = x.mul_add(lane[1], sums[p][1]);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (p, sums) in sums.iter().enumerate() {
                finish(task, row + r, panel + p, *sums);
            }
        }
    }
    P
}

/// A row times the only column.
///
/// # Safety
/// The row must exist.
#[inline(always)]
unsafe fn single_column<V: Vector>(task: &Task<'_>, row: usize) {
    let k = task.w.k;
    // SAFETY: the caller's promise; a row has k numbers.
    let a = unsafe { std::slice::from_raw_parts(task.a.add(row * task.stride), k) };
    let sum = sum_pairs::<V, DOT>(a, &task.w.column);
    let mut lanes = [0.0; LANES];
    lanes[0] = sum;
    // SAFETY: the caller's promise.
    unsafe { finish(task, row, 0, [V::load(&lanes), V::splat(0.0)]) };
}

/// Adds the bias and what the sink asks for, and writes one lane of results.
///
/// # Safety
/// The row and the panel must exist.
#[inline(always)]
unsafe fn finish<V: Vector>(task: &Task<'_>, row: usize, panel: usize, sums: [V; 2]) {
    let n = task.w.n;
    let at = row * n + panel * NR;
    let width = NR.min(n - panel * NR);
    // SAFETY: the caller's promise; a panel's lane lies within `bias`, and `width` numbers at `at` within the buffers.
    unsafe {
        let bias = task.w.bias.get_unchecked(panel).halves::<V>();
        let mut v = [sums[0].add(bias[0]), sums[1].add(bias[1])];
        if !task.add.is_null() {
            let mut old = Lane([0.0; NR]);
            copy(task.add.add(at), old.0.as_mut_ptr(), width);
            let old = old.halves::<V>();
            v = [v[0].add(old[0]), v[1].add(old[1])];
        }
        if !task.raw.is_null() {
            copy(Lane::from_halves(v).0.as_ptr(), task.raw.add(at), width);
        }
        if !task.act.is_null() {
            v = match task.activation {
                Activation::Elu => [elu(v[0]), elu(v[1])],
                Activation::Gelu => [gelu(v[0]), gelu(v[1])],
            };
            copy(Lane::from_halves(v).0.as_ptr(), task.act.add(at), width);
        }
    }
}

/// # Safety
/// Both must be good for `width` numbers, which is at most `NR`.
#[inline(always)]
unsafe fn copy(from: *const f32, to: *mut f32, width: usize) {
    // SAFETY: the caller's promise. The known size of the common case makes it two vector moves.
    unsafe {
        if width == NR {
            ptr::copy_nonoverlapping(from, to, NR);
        } else {
            ptr::copy_nonoverlapping(from, to, width);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Isa, numbers};

    fn slow(a: &[f32], stride: usize, m: usize, w: &[f32], n: usize, bias: &[f32]) -> Vec<f64> {
        let k = w.len() / n;
        let mut out = Vec::new();
        for row in 0..m {
            for column in 0..n {
                let sum: f64 = (0..k).map(|i| f64::from(a[row * stride + i]) * f64::from(w[i * n + column])).sum();
                out.push(sum + f64::from(bias[column]));
            }
        }
        out
    }

    /// Rounding errors grow with the root of the number of terms.
    fn close(a: &[f32], b: impl Iterator<Item = f64>, k: usize, what: &str) {
        let tolerance = 2e-6 * (1.0 + k as f64).sqrt();
        for (i, (x, y)) in a.iter().zip(b).enumerate() {
            assert!((f64::from(*x) - y).abs() < tolerance * (1.0 + y.abs()), "{what}: {x} for {y} at {i}");
        }
    }

    /// Every instruction set, thread count, shape of tile and sink, on overlapping rows.
    #[test]
    fn agrees_with_float64() {
        for isa in Isa::available() {
            for threads in [1, 3] {
                let kernels = Kernels::new(isa, threads);
                for (m, k, n) in [
                    (1, 40, 70),
                    (2, 33, 48),
                    (2, 700, 512),
                    (3, 17, 33),
                    (4, 5, 16),
                    (5, 64, 8),
                    (6, 64, 100),
                    (13, 9, 20),
                    (16, 300, 160),
                    (25, 7, 1),
                    (40, 192, 1),
                    (700, 24, 32),
                    (31, 2, 3),
                ] {
                    let stride = 1 + k / 2;
                    let a = numbers((m - 1) * stride + k, 1);
                    let (w, bias, old) = (numbers(k * n, 2), numbers(n, 3), numbers(m * n, 4));
                    let packed = Matrix::pack(k, n, Some(&bias), |i, j| w[i * n + j]);
                    let want = slow(&a, stride, m, &w, n, &bias);
                    let what = format!("{isa:?} {threads} {m} {k} {n}");
                    let elu = |v: f64| if v > 0.0 { v } else { v.exp_m1() };

                    let mut out = vec![0.0; m * n];
                    kernels.product(&a, stride, m, &packed, Sink::Store(&mut out));
                    close(&out, want.iter().copied(), k, &what);
                    let stored = out.clone();
                    kernels.product(&a, stride, m, &packed, Sink::Act(Activation::Elu, &mut out));
                    close(&out, want.iter().map(|v| elu(*v)), k, &what);
                    kernels.product(&a, stride, m, &packed, Sink::AddAct(&old, Activation::Elu, &mut out));
                    close(&out, want.iter().zip(&old).map(|(v, o)| elu(v + f64::from(*o))), k, &what);
                    let mut raw = vec![0.0; m * n];
                    kernels.product(&a, stride, m, &packed, Sink::StoreAct(&mut raw, Activation::Gelu, &mut out));
                    assert_eq!(raw, stored, "{what}");
                    kernels.product(&a, stride, m, &packed, Sink::Add(&mut raw));
                    close(&raw, want.iter().map(|v| 2.0 * v), k, &what);
                }
            }
        }
    }

    /// Rows computed together or alone give the same bits: streaming and offline rest on it.
    #[test]
    fn the_number_of_rows_changes_no_bit() {
        for isa in Isa::available() {
            let kernels = Kernels::new(isa, 2);
            for (k, n) in [(96, 72), (600, 200), (50, 1)] {
                let (a, w) = (numbers(23 * k, 5), numbers(k * n, 6));
                let packed = Matrix::pack(k, n, None, |i, j| w[i * n + j]);
                let mut all = vec![0.0; 23 * n];
                kernels.product(&a, k, 23, &packed, Sink::Store(&mut all));
                for m in 1..=7 {
                    let mut some = vec![0.0; m * n];
                    kernels.product(&a[5 * k..], k, m, &packed, Sink::Store(&mut some));
                    assert_eq!(some, all[5 * n..(5 + m) * n], "{isa:?} {m} {k} {n}");
                }
            }
        }
    }
}
