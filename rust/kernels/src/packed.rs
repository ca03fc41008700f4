//! Products of matrices with packed weights (2 to 8 bits, a scale and a bias for each group of a row) and a few rows.
//!
//! Weights stay packed in memory, in *panels* of 16 outputs, so that one register holds the same inputs of 16 outputs.
//! A panel is one stream of bytes: for each group its 16 scales, its 16 biases, and its blocks of 32 inputs. A block of
//! b bits takes b lines of 64 bytes. A line belongs to a plane of 4, 2 or 1 bits (8 bits are a plane of their own; 6
//! bits are planes of 4 and 2, 5 of 4 and 1, 3 of 2 and 1), and its lane r to output r. In a lane of a plane of p bits,
//! byte c holds, from the lowest bits on, the inputs c, c + 4, c + 8, … of the 32 / p that the line has. So a shift and
//! a mask give four neighbouring inputs as bytes, which one dot product takes.
//!
//! The rows are float32, or they are rounded to integers of 8 or 16 bits with scales ([`Way`]); sums of
//! products are exact then as far as a scale goes. Each result is computed by the same operations whatever the number
//! of rows or threads.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::Kernels;
use crate::float::{Float, bfloat16};
use crate::lanes::{Dot, Lanes, WIDTH, packed_dispatch};
use crate::memory::{Aligned, Plain};
use crate::pool::Pool;

/// Inputs in a block.
pub const BLOCK: usize = 32;

/// Products with fewer bytes of weights are done by the caller's thread alone: to hand work over takes a microsecond.
const SHARED_BYTES: usize = 48 << 10;

/// Bytes of packed weights that are read at a time.
pub(crate) const READ_BYTES: usize = 1 << 20;

/// How far ahead weights are fetched, in bytes.
const AHEAD: usize = 4096;

/// The largest magnitude of 16-bit activations. It is two signed bytes, the upper one counting 128.
const MOST_16: f32 = 127.0 * 128.0;

/// How the rows of a product are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Way {
    /// In float32: nothing is rounded.
    Float32,
    /// In integers of 15 bits and a sign, with a scale for as many of them as the matrix has in a group.
    #[default]
    Int16,
    /// In integers of 7 bits and a sign, with scales as those of 15 bits.
    Int8,
    /// In float32 rounded to bfloat16, as other programs compute: only to compare with that.
    Bfloat16,
}

impl Way {
    /// Whether rows are integers, and not floats.
    fn is_whole(self) -> bool {
        matches!(self, Self::Int16 | Self::Int8)
    }
}

#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Line([u8; 64]);

// SAFETY: bytes, aligned to 64.
unsafe impl Plain for Line {}

/// A matrix of packed weights, `[n, k]`: n outputs, k inputs.
#[derive(Debug)]
pub struct Packed {
    n: usize,
    k: usize,
    bits: usize,
    group: usize,
    float: Float,
    lines: Aligned<Line>,
}

impl Packed {
    /// Rows that are packed together.
    pub const PANEL: usize = WIDTH;

    /// An empty matrix of `n` outputs and `k` inputs. A group has 32, 64 or 128 inputs.
    ///
    /// # Panics
    ///
    /// `bits` is not 2, 3, 4, 5, 6 or 8, or `group` does not fit `k`.
    pub fn zeros(n: usize, k: usize, bits: usize, group: usize, float: Float) -> Self {
        assert!(matches!(bits, 2..=6 | 8), "weights of {bits} bits");
        assert!(group > 0 && group.is_multiple_of(BLOCK) && k.is_multiple_of(group), "groups of {group} in {k}");
        let matrix = Self { n, k, bits, group, float, lines: Aligned::zeroed(0) };
        let lines = Aligned::beside(n.div_ceil(WIDTH) * matrix.panel());
        Self { lines, ..matrix }
    }

    /// The number of outputs.
    pub fn outputs(&self) -> usize {
        self.n
    }

    /// The number of inputs.
    pub fn inputs(&self) -> usize {
        self.k
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.lines.len() * size_of::<Line>()
    }

    /// Lines of the scales, or of the biases, of a group.
    fn heading(&self) -> usize {
        // Two times 16 numbers of 16 bits share a line.
        self.float.size() / 2
    }

    /// Lines of a group.
    fn record(&self) -> usize {
        self.heading() + self.group / BLOCK * self.bits
    }

    /// Lines of a panel.
    fn panel(&self) -> usize {
        self.k / self.group * self.record()
    }

    /// Fills the matrix, in the pool's threads. `read(first, count)` gives some rows, as three streams of bytes: the
    /// packed numbers, of which the first is in the lowest bits; the scales; and the biases, each one number of the
    /// matrix's type for each group. The first error is given back; the matrix is of no use then.
    ///
    /// # Panics
    ///
    /// Bytes are missing, or there are too many.
    pub fn fill<E: Send>(
        &mut self,
        pool: &Pool,
        read: impl Fn(usize, usize) -> Result<[Vec<u8>; 3], E> + Sync,
    ) -> Result<(), E> {
        let (n, panel) = (self.n, self.panel());
        let at_once = (READ_BYTES / (panel * size_of::<Line>())).max(1);
        let failed = Mutex::new(None);
        let mut lines = std::mem::replace(&mut self.lines, Aligned::zeroed(0));
        let shape = &*self;
        pool.pieces(&mut lines, at_once * panel, |piece, lines| {
            let first = piece * at_once * WIDTH;
            let count = (at_once * WIDTH).min(n - first);
            match read(first, count) {
                Ok([words, scales, biases]) => shape.set_rows(lines, count, &words, &scales, &biases),
                Err(error) => drop(failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error)),
            }
        });
        self.lines = lines;
        failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// Sets `count` rows in the lines of their panels.
    fn set_rows(&self, lines: &mut [Line], count: usize, words: &[u8], scales: &[u8], biases: &[u8]) {
        let (row_words, row_numbers) = (self.k * self.bits / 8, self.k / self.group * self.float.size());
        assert_eq!(words.len(), count * row_words, "packed numbers of the rows");
        assert!(scales.len() == count * row_numbers && biases.len() == scales.len(), "numbers of the rows");
        let panels = words
            .chunks(WIDTH * row_words)
            .zip(scales.chunks(WIDTH * row_numbers).zip(biases.chunks(WIDTH * row_numbers)));
        for (lines, (words, (scales, biases))) in lines.chunks_exact_mut(self.panel()).zip(panels) {
            self.set_panel(lines, words, scales, biases);
        }
    }

    fn set_panel(&self, lines: &mut [Line], words: &[u8], scales: &[u8], biases: &[u8]) {
        let (row_bytes, groups, size) = (self.k * self.bits / 8, self.k / self.group, self.float.size());
        let rows = words.len() / row_bytes;
        let (record, heading) = (self.record(), self.heading());
        for (g, lines) in lines.chunks_exact_mut(record).enumerate() {
            let (head, blocks) = lines.split_at_mut(heading);
            for (half, numbers) in [scales, biases].into_iter().enumerate() {
                for r in 0..rows {
                    let from = &numbers[(r * groups + g) * size..][..size];
                    let at = (half * WIDTH + r) * size;
                    head[at / 64].0[at % 64..][..size].copy_from_slice(from);
                }
            }
            let per_block = BLOCK * self.bits / 8;
            for (b, lines) in blocks.chunks_exact_mut(self.bits).enumerate() {
                for r in 0..rows {
                    let at = r * row_bytes + (g * self.group / BLOCK + b) * per_block;
                    set_block(lines, r, self.bits, &words[at..][..per_block]);
                }
            }
        }
    }
}

/// Sets one row's 32 inputs of a block. `packed` has `4 · bits` bytes.
fn set_block(lines: &mut [Line], row: usize, bits: usize, packed: &[u8]) {
    let lane = 4 * row..4 * row + 4;
    match bits {
        8 => {
            for (line, four) in lines.iter_mut().zip(packed.chunks_exact(4)) {
                line.0[lane.clone()].copy_from_slice(four);
            }
        }
        4 => {
            for (line, four) in lines.iter_mut().zip(packed.as_chunks::<4>().0) {
                // Eight numbers, the first in the lowest bits; the last four go between the first four.
                let word = u32::from_le_bytes(*four);
                let spread = |half: u32| {
                    let half = (half | half << 8) & 0x00ff_00ff;
                    (half | half << 4) & 0x0f0f_0f0f
                };
                let word = spread(word & 0xffff) | spread(word >> 16) << 4;
                line.0[lane.clone()].copy_from_slice(&word.to_le_bytes());
            }
        }
        _ => {
            for line in lines.iter_mut() {
                line.0[lane.clone()].fill(0);
            }
            for i in 0..BLOCK {
                let value = number(packed, i, bits);
                let mut line = 0;
                let mut done = 0;
                for plane in planes(bits) {
                    let part = value >> done & ((1 << plane) - 1);
                    let in_a_line = BLOCK / plane;
                    let (at, rest) = (line + i / in_a_line, i % in_a_line);
                    lines[at].0[4 * row + rest % 4] |= (part << (plane * (rest / 4))) as u8;
                    line += plane;
                    done += plane;
                }
            }
        }
    }
}

/// The planes of a number of bits, from its lowest bits on.
fn planes(bits: usize) -> impl Iterator<Item = usize> {
    let (first, second) = match bits {
        6 => (4, 2),
        5 => (4, 1),
        3 => (2, 1),
        _ => (bits, 0),
    };
    [first, second].into_iter().filter(|plane| *plane > 0)
}

/// Number `i` of a stream of numbers of `bits` bits.
pub fn number(packed: &[u8], i: usize, bits: usize) -> u32 {
    let at = i * bits;
    let low = u32::from(packed[at / 8]) >> (at % 8);
    let high = packed.get(at / 8 + 1).map_or(0, |byte| u32::from(*byte)) << (8 - at % 8);
    (low | high) & ((1 << bits) - 1)
}

/// Rows of activations as products take them. The memory is kept for the next ones.
#[derive(Debug, Default)]
pub struct Inputs {
    way: Way,
    rows: usize,
    k: usize,
    /// `[rows, k]`, in the way of float32.
    floats: Vec<f32>,
    /// Four signed bytes each: `[blocks, rows, planes, 8]`. The first plane counts one, the second 128.
    bytes: Vec<i32>,
    /// `[groups, rows]`.
    scales: Vec<f32>,
    /// The sums of groups, `[groups, rows]`.
    sums: Vec<f32>,
    /// Numbers that share a scale, as many as share a scale and a bias of the matrix.
    group: usize,
}

impl Inputs {
    /// Room for `rows` rows of `k` numbers, so that no more is taken later.
    pub fn with_room(way: Way, rows: usize, k: usize) -> Self {
        let blocks = rows * k.div_ceil(BLOCK);
        let (floats, bytes) = if way.is_whole() { (0, blocks * 16) } else { (rows * k, 0) };
        Self {
            way,
            floats: Vec::with_capacity(floats),
            bytes: Vec::with_capacity(bytes),
            scales: Vec::with_capacity(blocks),
            sums: Vec::with_capacity(blocks),
            ..Self::default()
        }
    }

    fn set(&mut self, dot: Dot, x: &[f32], k: usize, group: usize) {
        assert!(group > 0 && group.is_multiple_of(BLOCK) && k.is_multiple_of(group), "groups of whole blocks");
        assert!(x.len().is_multiple_of(k), "whole rows");
        (self.rows, self.k, self.group) = (x.len() / k, k, group);
        self.sums.resize(x.len() / group, 0.0);
        if !self.way.is_whole() {
            self.floats.resize(x.len(), 0.0);
            self.floats.copy_from_slice(x);
            if self.way == Way::Bfloat16 {
                self.floats.iter_mut().for_each(|x| *x = bfloat16(*x));
            }
            let groups = k / group;
            for (i, numbers) in self.floats.chunks_exact(group).enumerate() {
                self.sums[i % groups * self.rows + i / groups] = numbers.iter().sum();
            }
            return;
        }
        let planes = if self.way == Way::Int16 { 2 } else { 1 };
        self.scales.resize(x.len() / group, 0.0);
        self.bytes.resize(x.len() / BLOCK * planes * 8, 0);
        let (rows, bytes, scales, sums) = (self.rows, &mut *self.bytes, &mut *self.scales, &mut *self.sums);
        packed_dispatch!(dot, round(
            x: &[f32], rows: usize, group: usize, planes: usize, bytes: &mut [i32], scales: &mut [f32], sums: &mut [f32]
        ));
    }
}

/// Rounds groups of numbers to integers. The loops are simple, so that the compiler makes them wide.
#[inline(always)]
fn round<L: Lanes>(
    x: &[f32],
    rows: usize,
    group: usize,
    planes: usize,
    bytes: &mut [i32],
    scales: &mut [f32],
    sums: &mut [f32],
) {
    // Added to a number, it leaves the nearest whole number in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    let most = if planes == 2 { MOST_16 } else { 127.0 };
    let groups = x.len() / group / rows.max(1);
    for (i, numbers) in x.chunks_exact(group).enumerate() {
        let (row, g) = (i / groups, i % groups);
        let mut largest = 0;
        for x in numbers {
            largest = largest.max(x.to_bits() & 0x7fff_ffff);
        }
        let largest = f32::from_bits(largest);
        // Below, the reciprocal would not be finite. What is not finite makes results that are no numbers.
        let (by, scale) = match largest {
            1e-30..=f32::MAX => (most / largest, largest / most),
            0.0..1e-30 => (0.0, 0.0),
            _ => (0.0, f32::NAN),
        };
        let mut total = 0;
        for (b, block) in numbers.as_chunks::<BLOCK>().0.iter().enumerate() {
            let bytes = &mut bytes[((g * (group / BLOCK) + b) * rows + row) * 8 * planes..][..8 * planes];
            let mut whole = [0i32; BLOCK];
            if by > 0.0 {
                for (whole, x) in whole.iter_mut().zip(block) {
                    *whole = (x * by + MAGIC).to_bits() as i32 - MAGIC.to_bits() as i32;
                }
            }
            for number in &whole {
                total += number;
            }
            let mut low = [0u8; BLOCK];
            let mask = if planes == 2 { 0x7f } else { 0xff };
            for (low, number) in low.iter_mut().zip(&whole) {
                *low = (number & mask) as u8;
            }
            for (four, byte) in low.as_chunks::<4>().0.iter().zip(bytes.iter_mut()) {
                *byte = i32::from_le_bytes(*four);
            }
            if planes == 2 {
                for (low, number) in low.iter_mut().zip(&whole) {
                    *low = (number >> 7) as u8;
                }
                for (four, byte) in low.as_chunks::<4>().0.iter().zip(&mut bytes[8..]) {
                    *byte = i32::from_le_bytes(*four);
                }
            }
        }
        scales[g * rows + row] = scale;
        sums[g * rows + row] = scale * total as f32;
    }
}

/// What is done with the results.
#[derive(Debug)]
pub enum Into<'a> {
    /// They are stored in rows, `[rows, n]`.
    Store(&'a mut [f32]),
    /// They are added to rows, `[rows, n]`.
    Add(&'a mut [f32]),
}

/// Where threads put results.
pub(crate) struct Results {
    out: *mut f32,
    add: bool,
    n: usize,
}

// SAFETY: threads write the results of disjoint panels.
unsafe impl Sync for Results {}

impl Results {
    /// # Panics
    ///
    /// There is no room for `rows` rows of `n` results.
    pub fn new(out: Into<'_>, rows: usize, n: usize) -> Self {
        let (out, add) = match out {
            Into::Store(out) => (out, false),
            Into::Add(out) => (out, true),
        };
        assert!(out.len() >= rows * n, "an output is too short");
        Self { out: out.as_mut_ptr(), add, n }
    }

    /// Writes the results of a row and a panel.
    ///
    /// # Safety
    /// The row and the panel must exist, and no other thread may write to them.
    #[inline(always)]
    pub unsafe fn put<L: Lanes>(&self, row: usize, panel: usize, sum: L) {
        let width = WIDTH.min(self.n - panel * WIDTH);
        let mut lanes = [0f32; WIDTH];
        // SAFETY: the caller's promise: `width` numbers are there.
        unsafe {
            sum.store(lanes.as_mut_ptr());
            let out = std::slice::from_raw_parts_mut(self.out.add(row * self.n + panel * WIDTH), width);
            for (out, lane) in out.iter_mut().zip(lanes) {
                *out = if self.add { *out + lane } else { lane };
            }
        }
    }
}

/// How threads share panels that take so many bytes to work on: the number of parts, and the panels of one.
pub(crate) fn parts(panels: usize, bytes: usize, threads: usize) -> (usize, usize) {
    let parts = if bytes < SHARED_BYTES { 1 } else { panels.min(8 * threads) };
    let chunk = panels.div_ceil(parts.max(1)).max(1);
    (panels.div_ceil(chunk), chunk)
}

struct Task<'a> {
    w: &'a Packed,
    x: &'a Inputs,
    results: Results,
}

impl Kernels {
    /// Takes `x`, rows of as many numbers as `w` has inputs, as products with it need them.
    ///
    /// # Panics
    ///
    /// The rows are not whole.
    pub fn round(&self, inputs: &mut Inputs, x: &[f32], w: &Packed) {
        inputs.set(self.dot, x, w.k, w.group);
    }

    /// Multiplies rows with a matrix of packed weights, in the pool's threads.
    ///
    /// # Panics
    ///
    /// The rows do not have as many numbers as the matrix inputs, or there is no room for the results.
    pub fn packed_product(&self, w: &Packed, x: &Inputs, out: Into<'_>) {
        assert_eq!((x.k, x.group), (w.k, w.group), "rows that were taken for another matrix");
        let task = &Task { w, x, results: Results::new(out, x.rows, w.n) };
        let (dot, panels) = (self.dot, w.n.div_ceil(WIDTH));
        let (count, chunk) = parts(panels, w.bytes() * x.rows, self.pool.threads());
        self.pool.run(count, &|i| {
            let panels = i * chunk..panels.min((i + 1) * chunk);
            packed_dispatch!(dot, multiply(task: &Task<'_>, panels: Range<usize>));
        });
    }
}

/// All rows with some panels.
#[inline(always)]
fn multiply<L: Lanes>(task: &Task<'_>, panels: Range<usize>) {
    match (task.x.way, task.w.bits) {
        (Way::Float32 | Way::Bfloat16, 2) => floats::<L, 2>(task, panels),
        (Way::Float32 | Way::Bfloat16, 3) => floats::<L, 3>(task, panels),
        (Way::Float32 | Way::Bfloat16, 4) => floats::<L, 4>(task, panels),
        (Way::Float32 | Way::Bfloat16, 5) => floats::<L, 5>(task, panels),
        (Way::Float32 | Way::Bfloat16, 6) => floats::<L, 6>(task, panels),
        (Way::Float32 | Way::Bfloat16, _) => floats::<L, 8>(task, panels),
        (Way::Int16, 2) => integers::<L, 2, 2>(task, panels),
        (Way::Int16, 3) => integers::<L, 3, 2>(task, panels),
        (Way::Int16, 4) => integers::<L, 4, 2>(task, panels),
        (Way::Int16, 5) => integers::<L, 5, 2>(task, panels),
        (Way::Int16, 6) => integers::<L, 6, 2>(task, panels),
        (Way::Int16, _) => integers::<L, 8, 2>(task, panels),
        (Way::Int8, 2) => integers::<L, 2, 1>(task, panels),
        (Way::Int8, 3) => integers::<L, 3, 1>(task, panels),
        (Way::Int8, 4) => integers::<L, 4, 1>(task, panels),
        (Way::Int8, 5) => integers::<L, 5, 1>(task, panels),
        (Way::Int8, 6) => integers::<L, 6, 1>(task, panels),
        (Way::Int8, _) => integers::<L, 8, 1>(task, panels),
    }
}

#[inline(always)]
fn integers<L: Lanes, const BITS: usize, const PLANES: usize>(task: &Task<'_>, panels: Range<usize>) {
    let mut panel = panels.start;
    while panel < panels.end {
        // With many registers two panels share what is loaded of several rows.
        let two = L::MANY && task.x.rows >= 4 && panels.end - panel >= 2;
        let mut row = 0;
        while row < task.x.rows {
            // SAFETY: the rows and the panels exist.
            row += unsafe {
                match task.x.rows - row {
                    // Only the usual numbers of bits have code for several rows.
                    8.. if L::MANY && PLANES == 1 && (BITS == 4 || BITS == 8) => {
                        some::<L, BITS, PLANES, 8>(task, panel, row, two)
                    }
                    4.. if BITS == 4 || BITS == 8 => some::<L, BITS, PLANES, 4>(task, panel, row, two),
                    2.. if BITS == 4 || BITS == 8 => some::<L, BITS, PLANES, 2>(task, panel, row, two),
                    _ => some::<L, BITS, PLANES, 1>(task, panel, row, two),
                }
            };
        }
        panel += if two { 2 } else { 1 };
    }
}

/// `M` rows with one panel or two. Returns `M`.
///
/// # Safety
/// The rows and the panels must exist.
#[inline(always)]
unsafe fn some<L: Lanes, const BITS: usize, const PLANES: usize, const M: usize>(
    task: &Task<'_>,
    panel: usize,
    row: usize,
    two: bool,
) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        if L::MANY && M >= 4 && two {
            tile::<L, BITS, PLANES, M, 2>(task, panel, row);
        } else {
            for panel in panel..if two { panel + 2 } else { panel + 1 } {
                tile::<L, BITS, PLANES, M, 1>(task, panel, row);
            }
        }
    }
    M
}

/// Four neighbouring inputs, number `J` of eight, of the 16 outputs of a block, as bytes.
///
/// # Safety
/// The block must have `BITS` lines.
#[inline(always)]
unsafe fn quad<L: Lanes, const BITS: usize, const J: usize>(block: *const u8) -> L {
    // SAFETY: the caller's promise.
    unsafe {
        match BITS {
            8 => L::load(block.add(64 * J)),
            4 => plane4::<L, J>(block),
            2 => plane2::<L, J>(block),
            6 => plane4::<L, J>(block).join::<4>(plane2::<L, J>(block.add(64 * 4))),
            5 => plane4::<L, J>(block).join::<4>(plane1::<L, J>(block.add(64 * 4))),
            _ => plane2::<L, J>(block).join::<2>(plane1::<L, J>(block.add(64 * 2))),
        }
    }
}

/// # Safety
/// The plane must have four lines.
#[inline(always)]
unsafe fn plane4<L: Lanes, const J: usize>(plane: *const u8) -> L {
    // SAFETY: the caller's promise.
    let line = unsafe { L::load(plane.add(64 * (J / 2))) };
    if J.is_multiple_of(2) { line.field::<0>(15) } else { line.field::<4>(15) }
}

/// # Safety
/// The plane must have two lines.
#[inline(always)]
unsafe fn plane2<L: Lanes, const J: usize>(plane: *const u8) -> L {
    // SAFETY: the caller's promise.
    let line = unsafe { L::load(plane.add(64 * (J / 4))) };
    match J % 4 {
        0 => line.field::<0>(3),
        1 => line.field::<2>(3),
        2 => line.field::<4>(3),
        _ => line.field::<6>(3),
    }
}

/// # Safety
/// The plane must have a line.
#[inline(always)]
unsafe fn plane1<L: Lanes, const J: usize>(plane: *const u8) -> L {
    // SAFETY: the caller's promise.
    let line = unsafe { L::load(plane) };
    match J {
        0 => line.field::<0>(1),
        1 => line.field::<1>(1),
        2 => line.field::<2>(1),
        3 => line.field::<3>(1),
        4 => line.field::<4>(1),
        5 => line.field::<5>(1),
        6 => line.field::<6>(1),
        _ => line.field::<7>(1),
    }
}

/// Scales and biases of a group.
///
/// # Safety
/// They must be there.
#[inline(always)]
unsafe fn heading<L: Lanes>(float: Float, at: *const u8) -> (L, L) {
    // SAFETY: the caller's promise.
    unsafe {
        match float {
            Float::F32 => (L::load(at), L::load(at.add(64))),
            Float::F16 => (L::load_f16(at), L::load_f16(at.add(32))),
            Float::Bf16 => (L::load_bf16(at), L::load_bf16(at.add(32))),
        }
    }
}

macro_rules! eight_quads {
    ($j:ident => $body:block) => {{
        macro_rules! one {
            ($at:expr) => {{
                const $j: usize = $at;
                $body
            }};
        }
        one!(0);
        one!(1);
        one!(2);
        one!(3);
        one!(4);
        one!(5);
        one!(6);
        one!(7);
    }};
}

/// `M` rows with `P` panels, by integers.
///
/// # Safety
/// The rows and the panels must exist.
#[inline(always)]
unsafe fn tile<L: Lanes, const BITS: usize, const PLANES: usize, const M: usize, const P: usize>(
    task: &Task<'_>,
    panel: usize,
    row: usize,
) {
    let (w, x) = (task.w, task.x);
    let (rows, groups, in_group) = (x.rows, w.k / w.group, w.group / BLOCK);
    let apart = w.panel() * 64;
    let in_pairs = L::PAIRS && (BITS == 8 || PLANES == 2);
    let mut sums = [[L::zero(); M]; P];
    // SAFETY: the caller's promise; a panel has a record for each group, and a row `PLANES · 8` words for each block.
    unsafe {
        let mut at = w.lines.as_ptr().add(panel * w.panel()).cast::<u8>();
        let bytes = x.bytes.as_ptr().add(row * PLANES * 8);
        let (scales, totals) = (x.scales.as_ptr().add(row), x.sums.as_ptr().add(row));
        for g in 0..groups {
            let head = at;
            at = at.add(64 * w.heading());
            let mut ints = [[[L::zero(); PLANES]; M]; P];
            for b in g * in_group..(g + 1) * in_group {
                let bytes = bytes.add(b * rows * PLANES * 8);
                for p in 0..P {
                    for line in 0..BITS {
                        L::prefetch(at.wrapping_add(p * apart + AHEAD + 64 * line));
                    }
                }
                let mut pairs = [[0; 16]; M];
                if in_pairs {
                    for (m, pairs) in pairs.iter_mut().enumerate() {
                        *pairs = L::pairs::<PLANES>(bytes.add(m * PLANES * 8));
                    }
                }
                eight_quads!(J => {
                    let mut fours = [L::zero(); P];
                    for (p, four) in fours.iter_mut().enumerate() {
                        *four = quad::<L, BITS, J>(at.add(p * apart));
                    }
                    for m in 0..M {
                        if in_pairs {
                            for (four, ints) in fours.iter().zip(&mut ints) {
                                ints[m][0] = ints[m][0].dot_pairs(*four, pairs[m][J], pairs[m][8 + J]);
                            }
                            continue;
                        }
                        for plane in 0..PLANES {
                            let x = *bytes.add((m * PLANES + plane) * 8 + J);
                            for (four, ints) in fours.iter().zip(&mut ints) {
                                let sum = ints[m][plane];
                                ints[m][plane] = if BITS == 8 { sum.dot(*four, x) } else { sum.dot_low(*four, x) };
                            }
                        }
                    }
                });
                at = at.add(64 * BITS);
            }
            for (p, (ints, sums)) in ints.iter().zip(&mut sums).enumerate() {
                let (scale, bias) = heading::<L>(w.float, head.add(p * apart));
                for m in 0..M {
                    let mut sum = ints[m][0].to_floats();
                    if PLANES == 2 {
                        sum = ints[m][PLANES - 1].to_floats().mul_add(L::splat(128.0), sum);
                    }
                    let by = scale.mul(L::splat(*scales.add(g * rows + m)));
                    sums[m] = sum.mul_add(by, sums[m]);
                    sums[m] = bias.mul_add(L::splat(*totals.add(g * rows + m)), sums[m]);
                }
            }
        }
        for (p, sums) in sums.iter().enumerate() {
            for (m, sum) in sums.iter().enumerate() {
                task.results.put(row + m, panel + p, *sum);
            }
        }
    }
}

#[inline(always)]
fn floats<L: Lanes, const BITS: usize>(task: &Task<'_>, panels: Range<usize>) {
    for panel in panels {
        let mut row = 0;
        while row < task.x.rows {
            // SAFETY: the rows and the panel exist.
            row += unsafe {
                match task.x.rows - row {
                    4.. if BITS == 4 || BITS == 8 => float_tile::<L, BITS, 4>(task, panel, row),
                    2.. if BITS == 4 || BITS == 8 => float_tile::<L, BITS, 2>(task, panel, row),
                    _ => float_tile::<L, BITS, 1>(task, panel, row),
                }
            };
        }
    }
}

/// `M` rows with a panel, by float32. Returns `M`.
///
/// # Safety
/// The rows and the panel must exist.
#[inline(always)]
unsafe fn float_tile<L: Lanes, const BITS: usize, const M: usize>(task: &Task<'_>, panel: usize, row: usize) -> usize {
    let (w, x) = (task.w, task.x);
    let (rows, groups, in_group) = (x.rows, w.k / w.group, w.group / BLOCK);
    let mut sums = [L::zero(); M];
    // SAFETY: the caller's promise; a panel has a record for each group, and a row 32 numbers for each block.
    unsafe {
        let mut at = w.lines.as_ptr().add(panel * w.panel()).cast::<u8>();
        let (floats, totals) = (x.floats.as_ptr().add(row * w.k), x.sums.as_ptr().add(row));
        for g in 0..groups {
            let (scale, bias) = heading::<L>(w.float, at);
            at = at.add(64 * w.heading());
            for b in g * in_group..(g + 1) * in_group {
                // Two sums each, so that one does not wait for the other.
                let mut parts = [[L::zero(); 2]; M];
                for line in 0..BITS {
                    L::prefetch(at.wrapping_add(AHEAD + 64 * line));
                }
                eight_quads!(J => {
                    let inputs = floats.add(b * BLOCK + 4 * J);
                    let four: L;
                    let values: [L; 4];
                    if BITS == 4 {
                        four = L::load(at.add(64 * (J / 2)));
                        values = if J % 2 == 0 {
                            [four.bits::<0>(15), four.bits::<8>(15), four.bits::<16>(15), four.bits::<24>(15)]
                        } else {
                            [four.bits::<4>(15), four.bits::<12>(15), four.bits::<20>(15), four.bits::<28>(15)]
                        };
                    } else {
                        four = quad::<L, BITS, J>(at);
                        values = [four.bits::<0>(255), four.bits::<8>(255), four.bits::<16>(255), four.bits::<24>(255)];
                    }
                    for (m, parts) in parts.iter_mut().enumerate() {
                        for (i, value) in values.iter().enumerate() {
                            parts[i % 2] = value.mul_add(L::splat(*inputs.add(m * w.k + i)), parts[i % 2]);
                        }
                    }
                });
                for (m, parts) in parts.iter().enumerate() {
                    sums[m] = parts[0].add(parts[1]).mul_add(scale, sums[m]);
                }
                at = at.add(64 * BITS);
            }
            for (m, sum) in sums.iter_mut().enumerate() {
                *sum = bias.mul_add(L::splat(*totals.add(g * rows + m)), *sum);
            }
        }
        for (m, sum) in sums.iter().enumerate() {
            task.results.put(row + m, panel, *sum);
        }
    }
    M
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    const BITS: [usize; 6] = [2, 3, 4, 5, 6, 8];
    const WAYS: [Way; 4] = [Way::Float32, Way::Int16, Way::Int8, Way::Bfloat16];

    /// A matrix with seeded weights, and the same weights in float64, `[n, k]`.
    fn matrix(n: usize, k: usize, bits: usize, group: usize, float: Float, seed: u64) -> (Packed, Vec<f64>) {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut packed = Packed::zeros(n, k, bits, group, float);
        let mut values = Vec::new();
        let mut all = [const { Vec::new() }; 3];
        for first in (0..n).step_by(WIDTH) {
            let rows = WIDTH.min(n - first);
            let words: Vec<u8> = (0..rows * k * bits / 8).map(|_| random.u8(..)).collect();
            let mut numbers = || {
                let mut bytes = Vec::new();
                let mut values = Vec::new();
                for _ in 0..rows * k / group {
                    let value = random.f32() - 0.3;
                    let (four, value) = match float {
                        Float::F32 => (value.to_le_bytes().to_vec(), value),
                        Float::Bf16 => {
                            let bits = (value.to_bits() >> 16) as u16;
                            (bits.to_le_bytes().to_vec(), f32::from_bits(u32::from(bits) << 16))
                        }
                        Float::F16 => {
                            // Normal numbers of half precision, of either sign.
                            let bits = random.u16(0x2000..0x3c00) | random.u16(0..2) << 15;
                            (bits.to_le_bytes().to_vec(), crate::float::f16_to_f32(bits))
                        }
                    };
                    bytes.extend(four);
                    values.push(f64::from(value));
                }
                (bytes, values)
            };
            let ((scales, scale), (biases, bias)) = (numbers(), numbers());
            all[0].extend(&words);
            all[1].extend(&scales);
            all[2].extend(&biases);
            for r in 0..rows {
                for i in 0..k {
                    let q = number(&words[r * k * bits / 8..], i, bits);
                    let g = r * k / group + i / group;
                    values.push(f64::from(q) * scale[g] + bias[g]);
                }
            }
        }
        fill(&mut packed, &all);
        (packed, values)
    }

    fn fill(packed: &mut Packed, all: &[Vec<u8>; 3]) {
        let n = packed.n;
        let read = |first: usize, count: usize| {
            let part = |bytes: &Vec<u8>| bytes[bytes.len() / n * first..][..bytes.len() / n * count].to_vec();
            Ok::<_, ()>([part(&all[0]), part(&all[1]), part(&all[2])])
        };
        packed.fill(&Pool::new(2), read).unwrap();
    }

    fn product(dot: Dot, threads: usize, w: &Packed, x: &Inputs, out: Into<'_>) {
        Kernels::with_dot(Isa::available()[0], dot, threads).packed_product(w, x, out);
    }

    fn rows(m: usize, k: usize, seed: u64) -> Vec<f32> {
        let mut random = fastrand::Rng::with_seed(seed);
        (0..m * k).map(|_| 4.0 * random.f32() - 2.0).collect()
    }

    fn inputs(way: Way, dot: Dot, x: &[f32], k: usize, group: usize) -> Inputs {
        let mut inputs = Inputs::with_room(way, x.len() / k, k);
        inputs.set(dot, x, k, group);
        inputs
    }

    /// What the rows are after rounding, in float64.
    fn rounded(inputs: &Inputs) -> Vec<f64> {
        if !inputs.way.is_whole() {
            return inputs.floats.iter().map(|x| f64::from(*x)).collect();
        }
        let planes = if inputs.way == Way::Int16 { 2 } else { 1 };
        let (rows, k) = (inputs.rows, inputs.k);
        let number = |row: usize, i: usize| {
            let bytes = &inputs.bytes[(i / BLOCK * rows + row) * 8 * planes..];
            let byte = |plane: usize| i64::from(bytes[8 * plane + i % BLOCK / 4].to_le_bytes()[i % 4] as i8);
            let n = if planes == 2 { byte(0) + 128 * byte(1) } else { byte(0) };
            n as f64 * f64::from(inputs.scales[i / inputs.group * rows + row])
        };
        let mut out = Vec::new();
        for row in 0..rows {
            out.extend((0..k).map(|i| number(row, i)));
        }
        out
    }

    #[test]
    fn agrees_with_float64() {
        for dot in Dot::available() {
            for (bits, way) in BITS.into_iter().flat_map(|b| WAYS.map(|w| (b, w))) {
                for (n, k, group, float, m) in [
                    (16, 32, 32, Float::F32, 1),
                    (40, 128, 64, Float::F16, 2),
                    (33, 256, 128, Float::Bf16, 3),
                    (100, 192, 32, Float::F16, 8),
                    (64, 128, 32, Float::F32, 13),
                    (5, 64, 64, Float::Bf16, 16),
                ] {
                    let (packed, weights) = matrix(n, k, bits, group, float, 1);
                    let x = rows(m, k, 2);
                    let inputs = inputs(way, dot, &x, k, group);
                    let exact = rounded(&inputs);
                    let mut out = vec![7.0; m * n];
                    product(dot, 2, &packed, &inputs, Into::Store(&mut out));
                    let stored = out.clone();
                    product(dot, 1, &packed, &inputs, Into::Add(&mut out));
                    for (i, (once, twice)) in stored.iter().zip(&out).enumerate() {
                        let (row, column) = (i / n, i % n);
                        let w = &weights[column * k..][..k];
                        let terms = || w.iter().zip(&exact[row * k..]).map(|(w, x)| w * x);
                        let (want, size): (f64, f64) = (terms().sum(), terms().map(f64::abs).sum());
                        let what = format!("{dot} {bits} bits {way:?} {m}x{k}x{n} at {i}");
                        assert!((f64::from(*once) - want).abs() < 1e-6 * size.max(1.0), "{what}: {once} for {want}");
                        assert_eq!(*twice, 2.0 * once, "{what}");
                    }
                }
            }
        }
    }

    /// 16 bits are nearly as good as float32, 8 bits within half a step of each number.
    #[test]
    fn rounds_to_the_nearest() {
        for dot in Dot::available() {
            let mut x = rows(3, 256, 5);
            x[..128].fill(0.0);
            x[128..256].iter_mut().for_each(|x| *x *= 1e-20);
            x[256..384].iter_mut().for_each(|x| *x *= 1e20);
            for (way, most, group) in [(Way::Int16, MOST_16), (Way::Int8, 127.0)]
                .into_iter()
                .flat_map(|(w, m)| [32, 64, 128].map(|g| (w, m, g)))
            {
                let inputs = inputs(way, dot, &x, 256, group);
                for (i, (got, want)) in rounded(&inputs).iter().zip(&x).enumerate() {
                    let numbers = &x[i / group * group..][..group];
                    let step = f64::from(numbers.iter().fold(0f32, |a, b| a.max(b.abs()))) / f64::from(most);
                    assert!((got - f64::from(*want)).abs() <= 0.501 * step, "{dot} {way:?} {i}: {got} for {want}");
                }
                for (g, sum) in inputs.sums.iter().enumerate() {
                    let begin = g % 3 * 256 + g / 3 * group;
                    let all = &rounded(&inputs)[begin..begin + group];
                    let (want, size): (f64, f64) = (all.iter().sum(), all.iter().map(|x| x.abs()).sum());
                    assert!((f64::from(*sum) - want).abs() <= 1e-6 * size, "{dot} {way:?} {g}");
                }
            }
        }
    }

    /// What is not finite is not hidden.
    #[test]
    fn what_is_not_finite_makes_no_numbers() {
        for (dot, x) in Dot::available().into_iter().flat_map(|dot| [(dot, f32::NAN), (dot, f32::INFINITY)]) {
            let (packed, _) = matrix(16, 64, 4, 64, Float::F32, 1);
            let mut row = rows(2, 64, 2);
            row[70] = x;
            for way in WAYS {
                let mut out = vec![0.0; 32];
                product(dot, 1, &packed, &inputs(way, dot, &row, 64, 64), Into::Store(&mut out));
                assert!(out[..16].iter().all(|x| x.is_finite()), "{dot} {way:?}");
                assert!(out[16..].iter().all(|x| !x.is_finite()), "{dot} {way:?}: {out:?}");
            }
        }
    }

    /// The largest weights and activations of every sign: sums of bytes must not overflow in any instruction set.
    #[test]
    fn the_largest_numbers_do_not_overflow() {
        for dot in Dot::available() {
            for bits in BITS {
                let (n, k, group) = (16, 256, 128);
                let mut packed = Packed::zeros(n, k, bits, group, Float::F32);
                let one: Vec<u8> = (0..n * k / group).flat_map(|_| 1f32.to_le_bytes()).collect();
                let zero = vec![0; one.len()];
                fill(&mut packed, &[vec![0xff; n * k * bits / 8], one, zero]);
                for way in [Way::Float32, Way::Int16, Way::Int8] {
                    for sign in [1.0, -1.0] {
                        let x = vec![sign; k];
                        let mut out = vec![0.0; n];
                        product(dot, 1, &packed, &inputs(way, dot, &x, k, group), Into::Store(&mut out));
                        let want = sign * (k * ((1 << bits) - 1)) as f32;
                        for got in &out {
                            assert!((got - want).abs() <= 1e-5 * want.abs(), "{dot} {bits} {way:?}: {got} for {want}");
                        }
                    }
                }
            }
        }
    }

    /// The row of a conversation has the same bits whatever its neighbours are, and whatever shares the work.
    #[test]
    fn neighbours_and_threads_change_no_bit() {
        for dot in Dot::available() {
            for bits in [4, 8, 5] {
                let (n, k) = (200, 512);
                let (packed, _) = matrix(n, k, bits, 64, Float::F16, 3);
                let x = rows(16, k, 4);
                for way in [Way::Float32, Way::Int16, Way::Int8] {
                    let mut all = vec![0.0; 16 * n];
                    product(dot, 3, &packed, &inputs(way, dot, &x, k, 64), Into::Store(&mut all));
                    for (first, m) in [(0, 1), (3, 2), (5, 3), (1, 7), (8, 8), (2, 13)] {
                        let mut some = vec![0.0; m * n];
                        let part = inputs(way, dot, &x[first * k..(first + m) * k], k, 64);
                        product(dot, 1, &packed, &part, Into::Store(&mut some));
                        assert_eq!(some, all[first * n..(first + m) * n], "{dot} {bits} {way:?} {first} {m}");
                    }
                }
            }
        }
    }
}
