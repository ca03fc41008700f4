//! The keys and values of one layer of one conversation, in a ring, and attention over it.
//!
//! Slot s of the ring holds one position: position p is in slot `p % capacity`. Attention does not need the order of
//! time, for a key's rotation says at which position it is. Keys lie in blocks of 16 positions, so that one register
//! holds the same number of 16 keys; values lie in rows. Both are held in float32, in half precision, or in bytes with
//! a scale for each group of 64 numbers of a head (all of them, if a head is smaller).
//!
//! Attention reads keys and values once, some positions at a time: what was summed is made smaller when a larger score
//! comes (Milakov and Gimelshein 2018).

use crate::half::narrow;
use crate::lanes::{Lanes, WIDTH, packed_dispatch};
use crate::memory::Aligned;
use crate::rows::weigh;
use crate::{Kernels, dispatch};

/// Positions that are attended to at a time.
const TILE: usize = 256;
/// Numbers of a head that share a scale, at most.
const GROUP: usize = 64;
/// A byte of a key stands for its value minus this.
const ZERO: i32 = 128;

/// How keys and values are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// In IEEE single precision.
    F32,
    /// In IEEE half precision.
    F16,
    /// In bytes, with a scale for each group of a head.
    Bytes,
}

impl Held {
    /// Arrays that a ring is kept in: keys and values, and their scales.
    pub fn parts(self) -> usize {
        if self == Self::Bytes { 4 } else { 2 }
    }
}

/// Numbers as a ring holds them.
#[derive(Clone, Debug, PartialEq)]
pub enum Numbers {
    /// In IEEE single precision.
    F32(Vec<f32>),
    /// The bits of IEEE half precision.
    F16(Vec<u16>),
    /// Whole numbers, each to be multiplied by its scale.
    Bytes(Vec<i8>),
}

/// What some slots of a ring hold: keys or values `[heads, slots, dim]`, or scales `[heads, slots, groups]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Slots {
    /// `[heads, slots, width]`.
    pub shape: [usize; 3],
    #[allow(missing_docs)]
    pub numbers: Numbers,
}

/// The sizes of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingShape {
    /// Heads of keys, and of values.
    pub heads: usize,
    /// Numbers of a head.
    pub dim: usize,
    /// Positions that are held at most.
    pub capacity: usize,
    /// How they are held.
    pub held: Held,
}

impl RingShape {
    /// Numbers of a head in memory: whole registers.
    fn padded(&self) -> usize {
        self.dim.next_multiple_of(WIDTH)
    }

    fn groups(&self) -> usize {
        self.padded().div_ceil(GROUP)
    }

    /// Positions in whole blocks.
    fn positions(&self) -> usize {
        self.capacity.next_multiple_of(WIDTH)
    }

    /// Bytes of the keys and values of one position.
    pub fn bytes_a_position(&self) -> usize {
        let numbers = 2 * self.heads * self.padded();
        match self.held {
            Held::F32 => 4 * numbers,
            Held::F16 => 2 * numbers,
            Held::Bytes => numbers + 4 * 2 * self.heads * self.groups(),
        }
    }
}

/// Keys and values. Memory is taken from the system when positions are first stored.
#[derive(Debug)]
pub struct Ring {
    shape: RingShape,
    floats: [Aligned<f32>; 2],
    halves: [Aligned<u16>; 2],
    bytes: [Aligned<u8>; 2],
    scales: [Aligned<f32>; 2],
}

impl Ring {
    /// A ring that holds nothing; none if the system does not have the memory.
    pub fn new(shape: RingShape) -> Option<Self> {
        let numbers = shape.heads.checked_mul(shape.positions())?.checked_mul(shape.padded())?;
        let (floats, halves, bytes, scales) = match shape.held {
            Held::F32 => (numbers, 0, 0, 0),
            Held::F16 => (0, numbers, 0, 0),
            Held::Bytes => (0, 0, numbers, shape.heads * shape.positions() * shape.groups()),
        };
        Some(Self {
            shape,
            floats: [Aligned::try_zeroed(floats)?, Aligned::try_zeroed(floats)?],
            halves: [Aligned::try_zeroed(halves)?, Aligned::try_zeroed(halves)?],
            bytes: [Aligned::try_zeroed(bytes)?, Aligned::try_zeroed(bytes)?],
            scales: [Aligned::try_zeroed(scales)?, Aligned::try_zeroed(scales)?],
        })
    }

    /// Its sizes.
    pub fn shape(&self) -> RingShape {
        self.shape
    }

    /// Fills all slots with small numbers, to measure a ring that is full.
    pub fn fill(&mut self) {
        self.floats.iter_mut().for_each(|part| part.fill(0.01));
        self.halves.iter_mut().for_each(|part| part.fill(narrow(0.01)));
        self.bytes.iter_mut().for_each(|part| part.fill(1));
        self.scales.iter_mut().for_each(|part| part.fill(0.01));
    }

    /// Stores the keys and values of a position, each `[heads, dim]`.
    ///
    /// # Panics
    ///
    /// There is no such slot, or numbers are missing.
    pub fn store(&mut self, slot: usize, keys: &[f32], values: &[f32]) {
        let RingShape { heads, dim, capacity, held } = self.shape;
        assert!(slot < capacity && keys.len() == heads * dim && values.len() == heads * dim, "a slot and its numbers");
        let (padded, positions, groups) = (self.shape.padded(), self.shape.positions(), self.shape.groups());
        let (block, lane) = (slot / WIDTH, slot % WIDTH);
        for (h, (key, value)) in keys.chunks_exact(dim).zip(values.chunks_exact(dim)).enumerate() {
            let begin = h * positions * padded;
            let (key_at, value_at) = (begin + block * WIDTH * padded, begin + slot * padded);
            if held != Held::Bytes {
                for (i, (k, v)) in key.iter().zip(value).enumerate() {
                    let (key_at, value_at) = (key_at + i * WIDTH + lane, value_at + i);
                    if held == Held::F32 {
                        (self.floats[0][key_at], self.floats[1][value_at]) = (*k, *v);
                    } else {
                        (self.halves[0][key_at], self.halves[1][value_at]) = (narrow(*k), narrow(*v));
                    }
                }
                continue;
            }
            for (g, (k, v)) in key.chunks(GROUP).zip(value.chunks(GROUP)).enumerate() {
                let (k_scale, v_scale) = (scale(k), scale(v));
                self.scales[0][((h * positions / WIDTH + block) * groups + g) * WIDTH + lane] = k_scale;
                self.scales[1][(h * positions + slot) * groups + g] = v_scale;
                for (i, (k, v)) in k.iter().zip(v).enumerate() {
                    let i = g * GROUP + i;
                    self.bytes[0][key_at + (i / 4 * WIDTH + lane) * 4 + i % 4] = (byte(*k, k_scale) + ZERO) as u8;
                    self.bytes[1][value_at + i] = byte(*v, v_scale) as u8;
                }
            }
        }
    }
}

impl Ring {
    /// A ring with the same first `filled` slots; none if the system does not have the memory.
    pub fn copy(&self, filled: usize) -> Option<Self> {
        let mut new = Self::new(self.shape)?;
        let (padded, positions, groups) = (self.shape.padded(), self.shape.positions(), self.shape.groups());
        let slots = filled.next_multiple_of(WIDTH);
        for h in 0..self.shape.heads {
            for j in 0..2 {
                let numbers = h * positions * padded..(h * positions + slots) * padded;
                match self.shape.held {
                    Held::F32 => new.floats[j][numbers.clone()].copy_from_slice(&self.floats[j][numbers]),
                    Held::F16 => new.halves[j][numbers.clone()].copy_from_slice(&self.halves[j][numbers]),
                    Held::Bytes => {
                        new.bytes[j][numbers.clone()].copy_from_slice(&self.bytes[j][numbers]);
                        let scales = h * positions * groups..(h * positions + slots) * groups;
                        new.scales[j][scales.clone()].copy_from_slice(&self.scales[j][scales]);
                    }
                }
            }
        }
        Some(new)
    }

    /// What the first `filled` slots hold: keys, values, and their scales if they are held in bytes.
    pub fn save(&self, filled: usize) -> Vec<Slots> {
        (0..self.shape.held.parts())
            .map(|part| {
                let shape = [self.shape.heads, filled, self.width(part)];
                let at = self.places(part, filled);
                let numbers = match (part, self.shape.held) {
                    (2.., _) => Numbers::F32(at.map(|i| self.scales[part - 2][i]).collect()),
                    (_, Held::F32) => Numbers::F32(at.map(|i| self.floats[part][i]).collect()),
                    (_, Held::F16) => Numbers::F16(at.map(|i| self.halves[part][i]).collect()),
                    (0, Held::Bytes) => {
                        Numbers::Bytes(at.map(|i| (i32::from(self.bytes[0][i]) - ZERO) as i8).collect())
                    }
                    (_, Held::Bytes) => Numbers::Bytes(at.map(|i| self.bytes[1][i] as i8).collect()),
                };
                Slots { shape, numbers }
            })
            .collect()
    }

    /// Fills the first `filled` slots with what [`save`](Self::save) gave of them.
    ///
    /// # Errors
    ///
    /// The number of a part, and what is wrong with it, as the end of a sentence. The ring is of no use then.
    pub fn restore(&mut self, filled: usize, parts: &[Slots]) -> Result<(), (usize, String)> {
        for (part, slots) in parts.iter().enumerate().take(self.shape.held.parts()) {
            let shape = [self.shape.heads, filled, self.width(part)];
            if slots.shape != shape {
                return Err((part, format!("has the shape {:?}; {shape:?} is expected", slots.shape)));
            }
            let at = self.places(part, filled);
            let size = shape.iter().product::<usize>();
            match (&slots.numbers, part, self.shape.held) {
                (Numbers::F32(numbers), 2.., _) | (Numbers::F32(numbers), _, Held::F32) if numbers.len() == size => {
                    if let Some(x) = numbers.iter().find(|x| !x.is_finite()) {
                        return Err((part, format!("holds {x}; finite numbers are expected")));
                    }
                    let to = if part < 2 { &mut self.floats[part] } else { &mut self.scales[part - 2] };
                    at.zip(numbers).for_each(|(i, x)| to[i] = *x);
                }
                (Numbers::F16(numbers), 0 | 1, Held::F16) if numbers.len() == size => {
                    if numbers.iter().any(|bits| bits & 0x7c00 == 0x7c00) {
                        return Err((part, "holds numbers that are not finite".into()));
                    }
                    at.zip(numbers).for_each(|(i, x)| self.halves[part][i] = *x);
                }
                (Numbers::Bytes(numbers), 0 | 1, Held::Bytes) if numbers.len() == size => {
                    let zero = if part == 0 { ZERO } else { 0 };
                    at.zip(numbers).for_each(|(i, x)| self.bytes[part][i] = (i32::from(*x) + zero) as u8);
                }
                _ => return Err((part, "has numbers of another type".into())),
            }
        }
        Ok(())
    }

    /// The last axis of a part: keys, values, scales of keys, scales of values.
    fn width(&self, part: usize) -> usize {
        if part < 2 { self.shape.dim } else { self.shape.groups() }
    }

    /// Where the numbers of a part are, in the order `[heads, slots, width]`.
    fn places(&self, part: usize, filled: usize) -> impl Iterator<Item = usize> + use<> {
        let (shape, width) = (self.shape, self.width(part));
        let (padded, positions, groups) = (shape.padded(), shape.positions(), shape.groups());
        let place = move |h: usize, slot: usize, i: usize| {
            let (slot, lane) = (h * positions + slot, slot % WIDTH);
            let block = slot / WIDTH;
            match part {
                0 if shape.held == Held::Bytes => block * WIDTH * padded + (i / 4 * WIDTH + lane) * 4 + i % 4,
                0 => block * WIDTH * padded + i * WIDTH + lane,
                1 => slot * padded + i,
                2 => (block * groups + i) * WIDTH + lane,
                _ => slot * groups + i,
            }
        };
        let slots = (0..shape.heads).flat_map(move |h| (0..filled).map(move |slot| (h, slot)));
        slots.flat_map(move |(h, slot)| (0..width).map(move |i| place(h, slot, i)))
    }
}

/// What a group's bytes count, so that the largest magnitude is 127.
fn scale(numbers: &[f32]) -> f32 {
    numbers.iter().fold(0f32, |most, x| most.max(x.abs())) / 127.0
}

/// The nearest whole number of scales, of a number that is not larger than 127 of them.
fn byte(x: f32, scale: f32) -> i32 {
    if scale < 1e-30 { 0 } else { (x / scale).round_ties_even().clamp(-127.0, 127.0) as i32 }
}

/// One head's attention, as the kernels see it.
struct Head<'a> {
    ring: &'a Ring,
    /// The head of keys and values.
    head: usize,
    /// The query, `[padded]`, scaled.
    query: &'a [f32],
    /// In bytes of two planes, four to a number: `[planes, padded / 4]`.
    bytes: [[i32; MOST_DIM / 4]; 2],
    /// The scale of each group of the query's bytes, and what its products have too much, by plane.
    groups: [(f32, [i32; 2]); MOST_DIM / GROUP],
}

/// The largest head that is known; a model with larger ones is refused when it is loaded.
pub const MOST_DIM: usize = 512;

impl Kernels {
    /// Attends from the queries of some rows, each to the first slots of a ring, whose order does not matter.
    ///
    /// `seen` gives the ring of a row, and how many of its slots are filled; none: the row's result is 0. All rings
    /// have heads of the same size and number. Row r's queries, `[heads · group, dim]`, scaled, begin at `queries[r ·
    /// stride]`; query head h sees the keys and values of head `h / group`. `out` is `[rows, heads · group, dim]`.
    /// Threads share the heads of all rows.
    ///
    /// # Panics
    ///
    /// Nothing is filled, or shapes do not fit.
    pub fn attend_rings<'a>(
        &self,
        seen: &(dyn Fn(usize) -> Option<(&'a Ring, usize)> + Sync),
        dim: usize,
        group: usize,
        (queries, stride): (&[f32], usize),
        (out, width): (&mut [f32], usize),
    ) {
        assert!(dim <= MOST_DIM && width.is_multiple_of(dim) && out.len().is_multiple_of(width), "heads of a row");
        let (rows, heads) = (out.len() / width, width / dim);
        assert!(rows == 0 || queries.len() >= (rows - 1) * stride + width, "a query for each head");
        let mut work = 0;
        for (ring, filled) in (0..rows).filter_map(seen) {
            let shape = ring.shape;
            assert!((1..=shape.capacity).contains(&filled), "a ring that holds something");
            assert!(shape.dim == dim && shape.heads * group == heads, "a ring of another shape");
            work += filled * shape.bytes_a_position();
        }
        let one = |i: usize, out: &mut [f32]| {
            let (row, h) = (i / heads, i % heads);
            match seen(row) {
                Some((ring, filled)) => {
                    self.attend_head(ring, filled, h / group, &queries[row * stride + h * dim..][..dim], out);
                }
                None => out.fill(0.0),
            }
        };
        if work < SHARED_BYTES {
            out.chunks_exact_mut(dim).enumerate().for_each(|(i, out)| one(i, out));
        } else {
            self.pool().pieces(out, dim, one);
        }
    }

    fn attend_head(&self, ring: &Ring, filled: usize, head: usize, query: &[f32], out: &mut [f32]) {
        let mut padded = [0.0; MOST_DIM];
        padded[..query.len()].copy_from_slice(query);
        let width = ring.shape.padded();
        let mut state = Head {
            ring,
            head,
            query: &padded[..width],
            bytes: [[0; MOST_DIM / 4]; 2],
            groups: [(0.0, [0; 2]); MOST_DIM / GROUP],
        };
        if ring.shape.held == Held::Bytes {
            round_query(&padded[..width], &mut state.bytes, &mut state.groups);
        }
        let state = &state;
        let (mut sums, mut total, mut most) = ([0.0; MOST_DIM], 0.0, f32::NEG_INFINITY);
        let mut tile = [0.0; TILE];
        for begin in (0..filled).step_by(TILE) {
            let count = TILE.min(filled - begin);
            let whole = &mut tile[..count.next_multiple_of(WIDTH)];
            packed_dispatch!(self.dot, scores(state: &Head<'_>, begin: usize, whole: &mut [f32]));
            let tile = &mut tile[..count];
            let before = most;
            for score in tile.iter() {
                most = if *score > most { *score } else { most };
            }
            let most = most;
            let sum = &mut 0.0;
            {
                let tile = &mut *tile;
                dispatch!(self.isa, weigh(tile: &mut [f32], most: f32, sum: &mut f32));
            }
            let keep = if before == f32::NEG_INFINITY { 0.0 } else { (before - most).exp() };
            total = total * keep + *sum;
            let (tile, sums) = (&*tile, &mut sums[..width]);
            packed_dispatch!(self.dot, weighted(state: &Head<'_>, begin: usize, tile: &[f32], keep: f32, sums: &mut [f32]));
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = sum / total;
        }
    }
}

/// Attention over fewer bytes is done by the caller's thread alone.
const SHARED_BYTES: usize = 48 << 10;

/// Rounds a query to two planes of signed bytes: `[planes, width / 4]`, with a scale for each group.
fn round_query(query: &[f32], bytes: &mut [[i32; MOST_DIM / 4]; 2], groups: &mut [(f32, [i32; 2])]) {
    const MOST_QUERY: f32 = 127.0 * 128.0;
    for (g, numbers) in query.chunks(GROUP).enumerate() {
        let largest = numbers.iter().fold(0f32, |most, x| most.max(x.abs()));
        if largest < 1e-30 {
            continue;
        }
        let by = MOST_QUERY / largest;
        let mut sums = [0; 2];
        for (i, four) in numbers.chunks_exact(4).enumerate() {
            let mut planes = [[0u8; 4]; 2];
            for (j, x) in four.iter().enumerate() {
                let n = (x * by).round_ties_even() as i32;
                let (low, high) = (n & 0x7f, n >> 7);
                sums[0] += low;
                sums[1] += high;
                planes[0][j] = low as u8;
                planes[1][j] = high as u8;
            }
            for (bytes, four) in bytes.iter_mut().zip(planes) {
                bytes[g * GROUP / 4 + i] = i32::from_le_bytes(four);
            }
        }
        groups[g] = (largest / MOST_QUERY, sums.map(|sum| -ZERO * sum));
    }
}

/// The scores of the positions from `begin`, a multiple of 16, on; as many as `out` has, whole blocks.
#[inline(always)]
fn scores<L: Lanes>(head: &Head<'_>, begin: usize, out: &mut [f32]) {
    let shape = head.ring.shape;
    let (width, groups) = (shape.padded(), shape.groups());
    let first = (head.head * shape.positions() + begin) / WIDTH;
    for (b, out) in out.chunks_exact_mut(WIDTH).enumerate() {
        let block = first + b;
        let mut score = L::zero();
        // SAFETY: `attend_rings` has checked that these positions exist; a block has `width · 16` numbers, and `out`
        // 16.
        unsafe {
            if shape.held == Held::F32 {
                let keys = head.ring.floats[0].as_ptr().add(block * WIDTH * width).cast();
                score = float_scores::<L, true>(keys, head.query);
            } else if shape.held == Held::F16 {
                let keys = head.ring.halves[0].as_ptr().add(block * WIDTH * width).cast();
                score = float_scores::<L, false>(keys, head.query);
            } else {
                let keys = head.ring.bytes[0].as_ptr().add(block * WIDTH * width);
                let scales = head.ring.scales[0].as_ptr().add(block * groups * WIDTH);
                for g in 0..groups {
                    let (scale, surplus) = head.groups[g];
                    let mut low = L::splat(f32::from_bits(surplus[0] as u32));
                    let mut high = L::splat(f32::from_bits(surplus[1] as u32));
                    for i in g * GROUP / 4..((g + 1) * GROUP).min(width) / 4 {
                        let key = L::load(keys.add(i * 64));
                        low = low.dot(key, head.bytes[0][i]);
                        high = high.dot(key, head.bytes[1][i]);
                    }
                    let sum = high.to_floats().mul_add(L::splat(128.0), low.to_floats());
                    let by = L::load(scales.add(g * WIDTH).cast()).mul(L::splat(scale));
                    score = sum.mul_add(by, score);
                }
            }
            score.store(out.as_mut_ptr());
        }
    }
}

/// Number `i` of registers of floats, in single (`WIDE`) or half precision.
///
/// # Safety
/// It must be there.
#[inline(always)]
unsafe fn register<L: Lanes, const WIDE: bool>(floats: *const u8, i: usize) -> L {
    // SAFETY: the caller's promise.
    unsafe { if WIDE { L::load(floats.add(64 * i)) } else { L::load_f16(floats.add(32 * i)) } }
}

/// The scores of a block of keys in floats.
///
/// # Safety
/// There must be a register for each number of the query.
#[inline(always)]
unsafe fn float_scores<L: Lanes, const WIDE: bool>(keys: *const u8, query: &[f32]) -> L {
    let mut parts = [L::zero(); 4];
    for (i, four) in query.as_chunks::<4>().0.iter().enumerate() {
        for (j, (part, x)) in parts.iter_mut().zip(four).enumerate() {
            // SAFETY: the caller's promise.
            *part = unsafe { register::<L, WIDE>(keys, 4 * i + j) }.mul_add(L::splat(*x), *part);
        }
    }
    parts[0].add(parts[1]).add(parts[2].add(parts[3]))
}

/// Makes `sums`, `[width]`, smaller by `keep`, and adds the values of the positions from `begin` on, by their weights.
#[inline(always)]
fn weighted<L: Lanes>(head: &Head<'_>, begin: usize, weights: &[f32], keep: f32, sums: &mut [f32]) {
    let mut at = 0;
    while at < sums.len() {
        at += match sums.len() - at {
            128.. => columns::<L, 8>(head, begin, weights, keep, at, sums),
            64.. => columns::<L, 4>(head, begin, weights, keep, at, sums),
            _ => columns::<L, 1>(head, begin, weights, keep, at, sums),
        };
    }
}

/// `N` registers of the sums, from number `at` on. Returns how many numbers.
#[inline(always)]
fn columns<L: Lanes, const N: usize>(
    head: &Head<'_>,
    begin: usize,
    weights: &[f32],
    keep: f32,
    at: usize,
    sums: &mut [f32],
) -> usize {
    let shape = head.ring.shape;
    let (width, groups) = (shape.padded(), shape.groups());
    let first = head.head * shape.positions() + begin;
    let mut parts = [L::zero(); N];
    // SAFETY: `attend_rings` has checked that these positions exist; a row has `width` numbers, as many as `sums`.
    unsafe {
        for (j, part) in parts.iter_mut().enumerate() {
            *part = L::load(sums.as_ptr().add(at + j * WIDTH).cast()).mul(L::splat(keep));
        }
        for (p, weight) in weights.iter().enumerate() {
            let row = (first + p) * width + at;
            if shape.held == Held::F32 {
                let values = head.ring.floats[1].as_ptr().add(row).cast();
                for (j, part) in parts.iter_mut().enumerate() {
                    *part = register::<L, true>(values, j).mul_add(L::splat(*weight), *part);
                }
            } else if shape.held == Held::F16 {
                let values = head.ring.halves[1].as_ptr().add(row).cast();
                for (j, part) in parts.iter_mut().enumerate() {
                    *part = register::<L, false>(values, j).mul_add(L::splat(*weight), *part);
                }
            } else {
                let values = head.ring.bytes[1].as_ptr().add(row).cast::<i8>();
                let scales = head.ring.scales[1].as_ptr().add((first + p) * groups);
                for (j, part) in parts.iter_mut().enumerate() {
                    let by = weight * *scales.add((at + j * WIDTH) / GROUP);
                    *part = L::load_i8(values.add(j * WIDTH)).mul_add(L::splat(by), *part);
                }
            }
        }
        for (j, part) in parts.iter().enumerate() {
            part.store(sums.as_mut_ptr().add(at + j * WIDTH));
        }
    }
    N * WIDTH
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::float::f16_to_f32;
    use crate::lanes::Dot;
    use crate::numbers;

    /// A ring that was filled, perhaps several times over, and what it was given: keys and values `[slots, heads,
    /// dim]`.
    fn ring(shape: RingShape, stored: usize) -> (Ring, [Vec<f32>; 2]) {
        let mut ring = Ring::new(shape).unwrap();
        let width = shape.heads * shape.dim;
        let mut given = [vec![0.0; shape.capacity * width], vec![0.0; shape.capacity * width]];
        for p in 0..stored {
            let slot = p % shape.capacity;
            let (k, v) = (numbers(width, 2 * p as u64), numbers(width, 2 * p as u64 + 1));
            ring.store(slot, &k, &v);
            given[0][slot * width..][..width].copy_from_slice(&k);
            given[1][slot * width..][..width].copy_from_slice(&v);
        }
        (ring, given)
    }

    fn attend(kernels: &Kernels, ring: &Ring, filled: usize, group: usize, queries: &[f32], out: &mut [f32]) {
        let width = out.len();
        kernels.attend_rings(&|_| Some((ring, filled)), ring.shape.dim, group, (queries, width), (out, width));
    }

    /// Number `i` of a key and of a value, as the ring holds them.
    fn held(ring: &Ring, slot: usize, h: usize, i: usize) -> [f64; 2] {
        let (shape, width) = (ring.shape, ring.shape.padded());
        let (block, lane) = ((h * shape.positions() + slot) / WIDTH, slot % WIDTH);
        let value_at = (h * shape.positions() + slot) * width + i;
        let key_at = block * WIDTH * width + i * WIDTH + lane;
        match shape.held {
            Held::F32 => [ring.floats[0][key_at], ring.floats[1][value_at]].map(f64::from),
            Held::F16 => [ring.halves[0][key_at], ring.halves[1][value_at]].map(|x| f64::from(f16_to_f32(x))),
            Held::Bytes => {
                let key = ring.bytes[0][block * WIDTH * width + (i / 4 * WIDTH + lane) * 4 + i % 4];
                let g = i / GROUP;
                let scales = [
                    ring.scales[0][(block * shape.groups() + g) * WIDTH + lane],
                    ring.scales[1][(h * shape.positions() + slot) * shape.groups() + g],
                ];
                let bytes = [i32::from(key) - ZERO, i32::from(ring.bytes[1][value_at] as i8)];
                [0, 1].map(|j| f64::from(bytes[j]) * f64::from(scales[j]))
            }
        }
    }

    #[test]
    fn agrees_with_float64() {
        for dot in Dot::available() {
            for (hold, step) in [(Held::F32, 0.0), (Held::F16, 1.0 / 4096.0), (Held::Bytes, 0.5001 / 127.0)] {
                for (heads, group, dim, capacity, stored) in
                    [(2, 1, 64, 700, 900), (1, 3, 8, 5, 3), (3, 2, 40, 16, 16), (2, 1, 128, 300, 257), (1, 1, 2, 17, 1)]
                {
                    let shape = RingShape { heads, dim, capacity, held: hold };
                    let (ring, given) = ring(shape, stored);
                    let filled = stored.min(capacity);
                    // Large enough for a few positions to count much more than others.
                    let queries: Vec<f32> = numbers(heads * group * dim, 9).iter().map(|x| x * 1.5).collect();
                    let mut out = vec![0.0; queries.len()];
                    let kernels = Kernels::with_dot(Isa::available()[0], dot, 2);
                    attend(&kernels, &ring, filled, group, &queries, &mut out);
                    for h in 0..heads * group {
                        let rows: Vec<Vec<[f64; 2]>> =
                            (0..filled).map(|s| (0..dim).map(|i| held(&ring, s, h / group, i)).collect()).collect();
                        for (s, row) in rows.iter().enumerate() {
                            for (i, found) in row.iter().enumerate() {
                                for j in [0, 1] {
                                    let want = f64::from(given[j][(s * heads + h / group) * dim + i]);
                                    assert!((found[j] - want).abs() <= step, "{hold:?} {shape:?} {s} {i}");
                                }
                            }
                        }
                        let q = &queries[h * dim..][..dim];
                        let dots: Vec<f64> =
                            rows.iter().map(|row| row.iter().zip(q).map(|(k, q)| k[0] * f64::from(*q)).sum()).collect();
                        let most = dots.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
                        let weights: Vec<f64> = dots.iter().map(|d| (d - most).exp()).collect();
                        for i in 0..dim {
                            let sum: f64 = rows.iter().zip(&weights).map(|(row, w)| w * row[i][1]).sum();
                            let want = sum / weights.iter().sum::<f64>();
                            let got = f64::from(out[h * dim + i]);
                            // Queries have 15 bits where keys are bytes.
                            let tolerance = if hold == Held::Bytes { 1e-4 } else { 3e-6 };
                            assert!(
                                (got - want).abs() < tolerance,
                                "{dot} {hold:?} {shape:?} {h} {i}: {got} for {want}"
                            );
                        }
                    }
                }
            }
        }
    }

    /// Keys that are all 0, one that all attention goes to, and the largest and least numbers that a ring holds.
    #[test]
    fn extreme_numbers_agree_with_float64() {
        for (dot, held) in
            Dot::available().into_iter().flat_map(|d| [Held::F32, Held::F16, Held::Bytes].map(|h| (d, h)))
        {
            let (dim, capacity) = (64, 600);
            let shape = RingShape { heads: 1, dim, capacity, held };
            let kernels = Kernels::with_dot(Isa::available()[0], dot, 2);
            for (key_size, query_size, value_size) in
                [(0.0, 1.0, 1.0), (1.0, 0.0, 1.0), (60000.0, 1.0, 60000.0), (1.0, 1e20, 1.0), (1e-6, 1e-30, 1e-6)]
            {
                let mut ring = Ring::new(shape).unwrap();
                for slot in 0..capacity {
                    let some = |seed: usize, size: f32| numbers(dim, seed as u64).iter().map(|x| size * x).collect();
                    let (k, v): (Vec<f32>, Vec<f32>) = (some(2 * slot, key_size), some(2 * slot + 1, value_size));
                    ring.store(slot, &k, &v);
                }
                let query: Vec<f32> = numbers(dim, 9).iter().map(|x| query_size * x).collect();
                let mut out = vec![0.0; dim];
                attend(&kernels, &ring, capacity, 1, &query, &mut out);
                let found: Vec<Vec<[f64; 2]>> =
                    (0..capacity).map(|s| (0..dim).map(|i| self::held(&ring, s, 0, i)).collect()).collect();
                let dots = found.iter().map(|row| row.iter().zip(&query).map(|(k, q)| k[0] * f64::from(*q)).sum());
                let dots: Vec<f64> = dots.collect();
                let most = dots.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
                let weights: Vec<f64> = dots.iter().map(|d| (d - most).exp()).collect();
                let total: f64 = weights.iter().sum();
                for i in 0..dim {
                    let sum: f64 = found.iter().zip(&weights).map(|(row, w)| w * row[i][1]).sum();
                    let (got, want) = (f64::from(out[i]), sum / total);
                    let what = format!("{dot} {held:?} keys {key_size}, query {query_size}, {i}: {got} for {want}");
                    assert!((got - want).abs() <= 1e-5 * f64::from(value_size), "{what}");
                }
            }
        }
    }

    #[test]
    fn what_no_system_has_is_refused() {
        let shape = RingShape { heads: 1 << 20, dim: 512, capacity: 1 << 24, held: Held::F32 };
        assert!(Ring::new(shape).is_none());
    }

    /// Three rows at once, one of which sees nothing, with room between their queries.
    #[test]
    fn rows_do_not_change_each_other() {
        let shape = RingShape { heads: 2, dim: 40, capacity: 300, held: Held::F16 };
        let rings = [ring(shape, 200).0, ring(RingShape { capacity: 700, held: Held::Bytes, ..shape }, 700).0];
        let (queries, width) = (numbers(3 * 200, 3), 160);
        let seen = |row: usize| [Some((&rings[0], 200)), None, Some((&rings[1], 700))][row];
        let kernels = Kernels::new(Isa::available()[0], 3);
        let mut all = vec![7.0; 3 * width];
        kernels.attend_rings(&seen, 40, 2, (&queries, 200), (&mut all, width));
        for (row, filled) in [(0, 200), (2, 700)] {
            let mut one = vec![0.0; width];
            attend(&kernels, &rings[row / 2], filled, 2, &queries[row * 200..][..width], &mut one);
            assert_eq!(one, all[row * width..][..width]);
        }
        assert_eq!(all[width..2 * width], vec![0.0; width]);
    }

    #[test]
    fn threads_change_no_bit() {
        for held in [Held::F32, Held::F16, Held::Bytes] {
            let shape = RingShape { heads: 8, dim: 64, capacity: 500, held };
            let (ring, _) = ring(shape, 777);
            let queries = numbers(8 * 64, 3);
            let (mut one, mut three) = (vec![0.0; 512], vec![0.0; 512]);
            attend(&Kernels::new(Isa::available()[0], 1), &ring, 500, 1, &queries, &mut one);
            attend(&Kernels::new(Isa::available()[0], 3), &ring, 500, 1, &queries, &mut three);
            assert_eq!(one, three);
        }
    }
}
