//! `C = A · W + bias` with what follows it done while the numbers are in registers.
//!
//! W is packed once, at load, into panels of [`NR`] columns in the order in which the inner loop reads them. A is any
//! buffer with a row stride, rows may overlap: that makes a causal convolution a product over its own history.

use std::ops::Range;
use std::ptr;

use crate::half::narrow;
use crate::math::{elu, gelu};
use crate::memory::{Aligned, Plain};
use crate::rows::{DOT, sum_pairs};
use crate::vector::{LANES, Vector};
use crate::{Kernels, dispatch};

/// Columns of a panel.
const NR: usize = LANES;

/// Most sums of a tile: as many as the registers of any instruction set can hold.
const MOST_SUMS: usize = 24;

/// Most rows of a tile.
const MOST_ROWS: usize = 12;

/// Weights up to this many bytes stay in the second-level cache while all rows pass by.
const SMALL_WEIGHTS: usize = 128 * 1024;

/// Parts of a product for each thread: more would share it more evenly, but reading begins anew with each.
const PARTS: usize = 2;

/// Products with fewer multiplications are not worth waking other threads for.
const SHARED_WORK: usize = 1 << 17;

/// One row of a panel, aligned so that a vector load never crosses a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Lane([f32; NR]);

// SAFETY: floats, aligned to 64.
unsafe impl Plain for Lane {}

/// The same in float16.
#[derive(Clone, Copy, Debug)]
#[repr(align(32))]
struct HalfLane([u16; NR]);

// SAFETY: integers, aligned to 32.
unsafe impl Plain for HalfLane {}

/// A row of a panel as it lies in memory.
trait Stored: Plain {
    /// Panels of a tile of few rows, whose weights come from memory: as many as fill the time of reading them with sums
    /// that do not wait for each other.
    const FEW: usize;
    fn vector<V: Vector>(&self) -> V;
    fn set(&mut self, column: usize, value: f32);
}

impl Stored for Lane {
    const FEW: usize = 1;
    #[inline(always)]
    fn vector<V: Vector>(&self) -> V {
        V::load(&self.0)
    }
    #[inline(always)]
    fn set(&mut self, column: usize, value: f32) {
        self.0[column] = value;
    }
}

impl Stored for HalfLane {
    const FEW: usize = 4;
    #[inline(always)]
    fn vector<V: Vector>(&self) -> V {
        V::load_half(&self.0)
    }
    #[inline(always)]
    fn set(&mut self, column: usize, value: f32) {
        self.0[column] = narrow(value);
    }
}

/// How the weights of a [`Matrix`] are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// As they are given.
    #[default]
    Float32,
    /// Rounded to 11 bits, in half the memory. Each column is scaled by a power of two, so no weight is too large, and
    /// only one that is 2²⁸ times smaller than the largest of its column is rounded to fewer bits.
    Float16,
}

/// `[n / NR, k, NR]`, padded with zeros; empty when there is one column only.
#[derive(Debug)]
enum Panels {
    Single(Aligned<Lane>),
    Half(Aligned<HalfLane>),
}

impl Panels {
    fn bytes(&self) -> usize {
        match self {
            Self::Single(lanes) => size_of_val::<[_]>(lanes),
            Self::Half(lanes) => size_of_val::<[_]>(lanes),
        }
    }

    fn set(&mut self, at: usize, column: usize, value: f32) {
        match self {
            Self::Single(lanes) => lanes[at].set(column, value),
            Self::Half(lanes) => lanes[at].set(column, value),
        }
    }
}

/// A packed weight matrix `[k, n]` with its bias.
#[derive(Debug)]
pub struct Matrix {
    k: usize,
    n: usize,
    panels: Panels,
    /// The only column, `[k]`; empty when there are more.
    column: Vec<f32>,
    /// What the sums of the columns are multiplied with, `[n / NR, NR]`.
    scale: Vec<Lane>,
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

    /// All zeros, to be filled; `bias` has n numbers. A single column is held in float32 whatever `precision` is.
    pub fn zeros(k: usize, n: usize, bias: Option<&[f32]>, precision: Precision) -> Self {
        let lanes = if n == 1 { 0 } else { n.div_ceil(NR) * k };
        let panels = match precision {
            Precision::Float32 => Panels::Single(Aligned::beside(lanes)),
            Precision::Float16 => Panels::Half(Aligned::beside(lanes)),
        };
        let column = vec![0.0; if n == 1 { k } else { 0 }];
        let mut lanes = vec![Lane([0.0; NR]); n.div_ceil(NR)];
        for (column, b) in bias.unwrap_or_default().iter().enumerate() {
            lanes[column / NR].0[column % NR] = *b;
        }
        Self { k, n, panels, column, scale: vec![Lane([1.0; NR]); n.div_ceil(NR)], bias: lanes }
    }

    /// Packs `weight(row, column)`, `[k, n]`; `bias` has n numbers.
    pub fn pack(
        k: usize,
        n: usize,
        bias: Option<&[f32]>,
        precision: Precision,
        weight: impl Fn(usize, usize) -> f32,
    ) -> Self {
        let mut matrix = Self::zeros(k, n, bias, precision);
        for column in 0..n {
            if matrix.is_scaled() {
                matrix.scale_column(column, (0..k).fold(0.0, |most, row| weight(row, column).abs().max(most)));
            }
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
            let value = value / self.scale[column / NR].0[column % NR];
            self.panels.set(column / NR * self.k + row, column % NR, value);
        }
    }

    /// Whether [`scale_column`](Self::scale_column) must be called before [`set_part_of_row`](Self::set_part_of_row).
    pub fn is_scaled(&self) -> bool {
        self.n > 1 && matches!(self.panels, Panels::Half(_))
    }

    /// Makes room for weights up to `most` in a column of float16.
    pub fn scale_column(&mut self, column: usize, most: f32) {
        // So that the largest is held as a number from 2¹⁴ to 2¹⁵; the scale and its inverse are normal numbers.
        let exponent = (most.to_bits() >> 23).max(15);
        self.scale[column / NR].0[column % NR] = f32::from_bits((exponent - 14) << 23);
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
        if self.is_scaled() {
            for (c, column) in columns.chunks_exact(k).enumerate() {
                self.scale_column(first + c, column.iter().fold(0.0, |most, x| x.abs().max(most)));
            }
        }
        let (panel, scale) = (first / NR, &self.scale[first / NR].0);
        match &mut self.panels {
            Panels::Single(lanes) => set_panel(&mut lanes[panel * k..][..k], scale, taps, columns),
            Panels::Half(lanes) => set_panel(&mut lanes[panel * k..][..k], scale, taps, columns),
        }
    }

    /// Sets `row` to `values`, `[n, taps]`, of which it takes one tap.
    pub fn set_part_of_row(&mut self, row: usize, first: usize, taps: usize, tap: usize, values: &[f32]) {
        for (i, value) in values.iter().skip(tap).step_by(taps).enumerate() {
            self.set(row, first + i, *value);
        }
    }

    /// Multiplies the columns of a matrix that is filled by `factors`, n numbers. The weights stay as they are.
    pub fn multiply_columns(&mut self, factors: &[f32]) {
        for (lane, factors) in self.scale.iter_mut().zip(factors.chunks(NR)) {
            lane.0.iter_mut().zip(factors).for_each(|(scale, factor)| *scale *= factor);
        }
    }

    /// Bytes of its weights.
    pub fn bytes(&self) -> usize {
        self.panels.bytes() + size_of_val::<[_]>(&self.column)
    }

    /// Numbers of a row of the product.
    pub fn columns(&self) -> usize {
        self.n
    }
}

/// [`Matrix::set_columns`] for the lanes of a panel.
fn set_panel<L: Stored>(lanes: &mut [L], scale: &[f32; NR], taps: usize, columns: &[f32]) {
    let k = lanes.len();
    for (tap, lanes) in lanes.chunks_exact_mut(k / taps).enumerate() {
        // A column is read in pieces of a cache line: columns often lie so that they cannot all stay in the cache.
        for (piece, lanes) in lanes.chunks_mut(NR).enumerate() {
            for (c, column) in columns.chunks_exact(k).enumerate() {
                let values = column[piece * NR * taps..].iter().skip(tap).step_by(taps);
                let up = 1.0 / scale[c];
                for (lane, value) in lanes.iter_mut().zip(values) {
                    lane.set(c, value * up);
                }
            }
        }
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
        let rows_first = w.n == 1 || w.panels.bytes() <= SMALL_WEIGHTS;
        let panels = w.bias.len();
        let parts = if m * w.k * w.n < SHARED_WORK { 1 } else { PARTS * self.pool.threads() };
        // Threads share the rows, in whole tiles, when the weights are small, else the columns.
        let (len, unit) = if rows_first { (m, MOST_ROWS) } else { (panels, 1) };
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
    match &task.w.panels {
        Panels::Single(lanes) => tiles::<V, Lane>(task, lanes, rows, panels, rows_first),
        Panels::Half(lanes) => tiles::<V, HalfLane>(task, lanes, rows, panels, rows_first),
    }
}

#[inline(always)]
fn tiles<V: Vector, L: Stored>(
    task: &Task<'_>,
    lanes: &[L],
    rows: Range<usize>,
    panels: Range<usize>,
    rows_first: bool,
) {
    let k = task.w.k;
    let (most_rows, most_panels) = shape::<V, L>(rows.len(), panels.len(), rows_first);
    let group = if rows_first { panels.len() } else { most_panels };
    let passes = rows.len().div_ceil(most_rows);
    let mut sums = [Lane([0.0; NR]); MOST_SUMS];
    let mut first = panels.start;
    while first < panels.end {
        let end = panels.end.min(first + group);
        let mut row = rows.start;
        for pass in 0..passes {
            // Tiles of nearly the same height.
            let height = (rows.end - row).div_ceil(passes - pass);
            // Each pass over some panels asks for another of the next ones, so that reading and computing overlap. Behind the
            // last panel lies the model's next matrix, if it was made next.
            let next = end + pass;
            let mut panel = first;
            while panel < end {
                let mut wide = most_panels;
                while wide > end - panel {
                    wide /= 2;
                }
                // SAFETY: `product` has checked the buffers for all rows and columns; the tile stays within both.
                unsafe {
                    let ahead = lanes.as_ptr().wrapping_add(next * k);
                    let tile = Tile { row, height, panel, wide };
                    sum_tile::<V, L>(task, lanes.as_ptr(), tile, passes > 1, ahead, &mut sums);
                    for (i, sums) in sums[..height * wide].iter().enumerate() {
                        finish(task, row + i / wide, panel + i % wide, V::load(&sums.0));
                    }
                }
                panel += wide;
            }
            row += height;
        }
        first = end;
    }
}

/// Rows and panels that are multiplied at a time.
#[derive(Clone, Copy)]
struct Tile {
    row: usize,
    height: usize,
    panel: usize,
    wide: usize,
}

/// The most rows and panels of a tile, the panels a power of two. `near`: the weights stay in the cache.
#[inline(always)]
fn shape<V: Vector, L: Stored>(rows: usize, panels: usize, near: bool) -> (usize, usize) {
    let wide = if V::SUMS < MOST_SUMS {
        // Few rows take several panels, to have enough sums that do not wait for each other.
        match rows {
            1 => 4,
            2 | 3 => 2,
            _ => 1,
        }
    } else if near || rows > 2 * MOST_ROWS {
        // The fewest loads for a sum.
        4
    } else if rows > MOST_ROWS {
        // Two passes, which take as long as reading the panels.
        2
    } else {
        L::FEW
    };
    let most = 1 << wide.min(panels).ilog2();
    (MOST_ROWS.min(V::SUMS / most), most)
}

/// Calls [`sum`] for the size of the tile.
///
/// # Safety
/// The tile's rows and panels must exist.
#[inline(always)]
unsafe fn sum_tile<V: Vector, L: Stored>(
    task: &Task<'_>,
    lanes: *const L,
    tile: Tile,
    again: bool,
    ahead: *const L,
    sums: &mut [Lane; MOST_SUMS],
) {
    macro_rules! sizes {
        ($($wide:literal: $($height:literal)+;)+) => {
            // SAFETY: the caller's promise.
            unsafe {
                match (tile.wide, tile.height) {
                    $($(($wide, $height) => sum::<V, L, $height, $wide>(task, lanes, tile.row, tile.panel, again, ahead, sums),)+)+
                    (wide, height) => unreachable!("no tile is {height} by {wide}"),
                }
            }
        };
    }
    if V::SUMS < MOST_SUMS {
        sizes!(4: 1; 2: 1 2 3; 1: 1 2 3 4 5 6;)
    } else {
        sizes!(4: 1 2 3 4 5 6; 2: 1 2 3 4 5 6 7 8 9 10 11 12; 1: 1 2 3 4 5 6 7 8 9 10 11 12;)
    }
}

/// `M` rows times `P` panels, `[M, P]`. Each sum runs over k in order, whatever the size of the tile.
///
/// With `again` the panels are passed several times, and the panel at `ahead`, any address, is asked for meanwhile; else
/// each panel's own next lanes are.
///
/// # Safety
/// Rows `row..row + M` and panels `panel..panel + P` must exist.
#[inline(always)]
unsafe fn sum<V: Vector, L: Stored, const M: usize, const P: usize>(
    task: &Task<'_>,
    lanes: *const L,
    row: usize,
    panel: usize,
    again: bool,
    ahead: *const L,
    out: &mut [Lane; MOST_SUMS],
) {
    let (k, stride) = (task.w.k, task.stride);
    let mut sums = [[V::splat(0.0); P]; M];
    // SAFETY: the caller's promise; a row has k numbers and a panel k lanes.
    unsafe {
        let a = task.a.add(row * stride);
        let b = lanes.add(panel * k);
        for i in 0..k {
            let mut lane = [V::splat(0.0); P];
            if again {
                V::prefetch(ahead.wrapping_add(i));
            }
            for (p, lane) in lane.iter_mut().enumerate() {
                let from = b.add(p * k + i);
                if !again {
                    // Few rows wait for the weights, and the processor's own prefetching stops at the end of a page.
                    V::prefetch(from.wrapping_add(V::AHEAD));
                }
                *lane = (*from).vector();
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let x = V::splat(*a.add(r * stride + i));
                for p in 0..P {
                    sums[p] = x.mul_add(lane[p], sums[p]);
                }
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        for (p, sum) in sums.iter().enumerate() {
            sum.store(&mut out[r * P + p].0);
        }
    }
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
    unsafe { finish(task, row, 0, V::load(&lanes)) };
}

/// Applies the scale, the bias and what the sink asks for, and writes one lane of results.
///
/// # Safety
/// The row and the panel must exist.
#[inline(always)]
unsafe fn finish<V: Vector>(task: &Task<'_>, row: usize, panel: usize, sum: V) {
    let n = task.w.n;
    let at = row * n + panel * NR;
    let width = NR.min(n - panel * NR);
    // SAFETY: the caller's promise; a panel's lane lies within `scale` and `bias`, and `width` numbers at `at` within the
    // buffers.
    unsafe {
        let scale = V::load(&task.w.scale.get_unchecked(panel).0);
        let mut v = sum.mul_add(scale, V::load(&task.w.bias.get_unchecked(panel).0));
        if !task.add.is_null() {
            v = v.add(load::<V>(task.add.add(at), width));
        }
        if !task.raw.is_null() {
            store(v, task.raw.add(at), width);
        }
        if !task.act.is_null() {
            v = match task.activation {
                Activation::Elu => elu(v),
                Activation::Gelu => gelu(v),
            };
            store(v, task.act.add(at), width);
        }
    }
}

/// # Safety
/// `from` must be good for `width` numbers, which is at most `NR`.
#[inline(always)]
unsafe fn load<V: Vector>(from: *const f32, width: usize) -> V {
    let mut lane = Lane([0.0; NR]);
    // SAFETY: the caller's promise. The common case is one load.
    unsafe {
        if width == NR {
            return V::load(&*from.cast());
        }
        ptr::copy_nonoverlapping(from, lane.0.as_mut_ptr(), width);
    }
    V::load(&lane.0)
}

/// # Safety
/// `to` must be good for `width` numbers, which is at most `NR`.
#[inline(always)]
unsafe fn store<V: Vector>(v: V, to: *mut f32, width: usize) {
    let mut lane = Lane([0.0; NR]);
    // SAFETY: the caller's promise. The common case is one store.
    unsafe {
        if width == NR {
            return v.store(&mut *to.cast());
        }
        v.store(&mut lane.0);
        ptr::copy_nonoverlapping(lane.0.as_ptr(), to, width);
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
                    (8, 70, 90),
                    (12, 20, 32),
                    (14, 33, 130),
                    (16, 300, 160),
                    (25, 7, 1),
                    (40, 192, 1),
                    (700, 24, 32),
                    (31, 2, 3),
                    (30, 500, 100),
                ] {
                    let stride = 1 + k / 2;
                    let a = numbers((m - 1) * stride + k, 1);
                    let (w, bias, old) = (numbers(k * n, 2), numbers(n, 3), numbers(m * n, 4));
                    let packed = Matrix::pack(k, n, Some(&bias), Precision::Float32, |i, j| w[i * n + j]);
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

    /// Weights in float16 are the nearest to those given, at any size of them, and the products are as exact as with
    /// those.
    #[test]
    fn float16_agrees_with_float64() {
        for isa in Isa::available() {
            let kernels = Kernels::new(isa, 2);
            for (m, k, n) in [
                (1, 40, 150),
                (2, 33, 48),
                (3, 17, 33),
                (5, 64, 8),
                (16, 300, 160),
                (2, 300, 250),
                (30, 300, 250),
                (40, 24, 32),
                (9, 7, 1),
            ] {
                let (a, bias) = (numbers(m * k, 1), numbers(n, 3));
                // From column to column other sizes, the largest and the least that there are among them.
                let size = |column: usize| [1.0, 1e-3, 1e37, 1e5, 1e-37, 0.0, 2e-42][column % 7];
                let w: Vec<f32> = numbers(k * n, 2).iter().enumerate().map(|(i, x)| x * size(i % n)).collect();
                let matrix = Matrix::pack(k, n, Some(&bias), Precision::Float16, |i, j| w[i * n + j]);
                // Bits of a row times what is 1 in one place are the matrix's own numbers.
                let mut held = vec![0.0; k * n];
                let unit: Vec<f32> = (0..k * k).map(|i| f32::from(i / k == i % k)).collect();
                let without = Matrix::pack(k, n, None, Precision::Float16, |i, j| w[i * n + j]);
                kernels.product(&unit, k, k, &without, Sink::Store(&mut held));
                for (i, (held, given)) in held.iter().zip(&w).enumerate() {
                    let most = (0..k).map(|row| w[row * n + i % n].abs()).fold(0.0, f32::max);
                    let error = given.abs().max(most * 2f32.powi(-28)) * if n == 1 { 0.0 } else { 2f32.powi(-11) };
                    // The least float32 numbers have fewer bits.
                    assert!((held - given).abs() <= error + f32::from_bits(1), "{isa:?} {k} {n}: {held} for {given}");
                }
                let mut out = vec![0.0; m * n];
                kernels.product(&a, k, m, &matrix, Sink::Store(&mut out));
                let want = slow(&a, k, m, &held, n, &bias);
                for (i, (x, y)) in out.iter().zip(want).enumerate() {
                    let tolerance = 2e-6 * (1.0 + k as f64).sqrt() * f64::from(size(i % n).max(1.0));
                    assert!(
                        (f64::from(*x) - y).abs() < tolerance * (1.0 + y.abs()),
                        "{isa:?} {m} {k} {n}: {x} for {y}"
                    );
                }
            }
        }
    }

    /// Half of the memory, and what float16 can hold is held as it is.
    #[test]
    fn what_float16_can_hold_is_not_changed() {
        let kernels = Kernels::new(Isa::Portable, 1);
        // Multiples of the least number, to the largest.
        let w: Vec<f32> = numbers(64 * 48, 1).iter().map(|x| crate::half::widen((x.abs() * 31743.0) as u16)).collect();
        let a = numbers(3 * 64, 2);
        let (mut one, mut other) = (vec![0.0; 3 * 48], vec![0.0; 3 * 48]);
        let single = Matrix::pack(64, 48, None, Precision::Float32, |i, j| w[i * 48 + j]);
        kernels.product(&a, 64, 3, &single, Sink::Store(&mut one));
        let half = Matrix::pack(64, 48, None, Precision::Float16, |i, j| w[i * 48 + j]);
        kernels.product(&a, 64, 3, &half, Sink::Store(&mut other));
        assert_eq!(2 * half.bytes(), single.bytes());
        assert_eq!(one, other);
    }

    #[test]
    fn columns_are_multiplied() {
        let kernels = Kernels::new(Isa::Portable, 1);
        for n in [1, 20] {
            let (a, bias, factors) = (numbers(30, 1), numbers(n, 2), numbers(n, 3));
            for precision in [Precision::Float32, Precision::Float16] {
                let mut matrix = Matrix::pack(30, n, Some(&bias), precision, |i, j| (i as f32 - j as f32) / 8.0);
                let mut out = vec![0.0; n];
                matrix.multiply_columns(&factors);
                kernels.product(&a, 30, 1, &matrix, Sink::Store(&mut out));
                for j in 0..n {
                    let sum: f64 = (0..30).map(|i| f64::from(a[i]) * (i as f64 - j as f64) / 8.0).sum();
                    let want = sum * f64::from(factors[j]) + f64::from(bias[j]);
                    assert!((f64::from(out[j]) - want).abs() < 1e-5, "{precision:?} {n} {j}");
                }
            }
        }
    }

    /// However a matrix is filled, it is the same.
    #[test]
    fn columns_and_rows_fill_alike() {
        let kernels = Kernels::new(Isa::Portable, 1);
        let (k, n, taps) = (24, 40, 3);
        let w: Vec<f32> =
            numbers(n * k, 1).iter().enumerate().map(|(i, x)| x * 10f32.powi((i / k % 9) as i32)).collect();
        // `[n, k / taps, taps]`
        let weight = |row: usize, column: usize| w[(column * (k / taps) + row % (k / taps)) * taps + row / (k / taps)];
        for precision in [Precision::Float32, Precision::Float16] {
            let packed = Matrix::pack(k, n, None, precision, weight);
            let mut by_columns = Matrix::zeros(k, n, None, precision);
            for (i, columns) in w.chunks(Matrix::PANEL * k).enumerate() {
                by_columns.set_columns(i * Matrix::PANEL, taps, columns);
            }
            let mut by_rows = Matrix::zeros(k, n, None, precision);
            for column in (0..n).filter(|_| precision == Precision::Float16) {
                by_rows.scale_column(column, (0..k).fold(0.0, |most, row| weight(row, column).abs().max(most)));
            }
            for row in 0..k {
                let values: Vec<f32> = (0..n).flat_map(|column| [0.0, weight(row, column)]).collect();
                by_rows.set_part_of_row(row, 0, 2, 1, &values[..20]);
                by_rows.set_part_of_row(row, 10, 2, 1, &values[20..]);
            }
            let a = numbers(k, 2);
            let [one, two, three] = [packed, by_columns, by_rows].map(|matrix| {
                let mut out = vec![0.0; n];
                kernels.product(&a, k, 1, &matrix, Sink::Store(&mut out));
                out
            });
            assert_eq!(one, two, "{precision:?}");
            assert_eq!(one, three, "{precision:?}");
        }
    }

    /// Rows computed together or alone give the same bits: streaming and offline rest on it.
    #[test]
    fn the_number_of_rows_changes_no_bit() {
        for isa in Isa::available() {
            let kernels = Kernels::new(isa, 2);
            for (k, n) in [(96, 72), (600, 200), (50, 1)] {
                let (a, w) = (numbers(23 * k, 5), numbers(k * n, 6));
                for precision in [Precision::Float32, Precision::Float16] {
                    let packed = Matrix::pack(k, n, None, precision, |i, j| w[i * n + j]);
                    let mut all = vec![0.0; 23 * n];
                    kernels.product(&a, k, 23, &packed, Sink::Store(&mut all));
                    for m in 1..=15 {
                        let mut some = vec![0.0; m * n];
                        kernels.product(&a[5 * k..], k, m, &packed, Sink::Store(&mut some));
                        assert_eq!(some, all[5 * n..(5 + m) * n], "{isa:?} {m} {k} {n}");
                    }
                }
            }
        }
    }
}
