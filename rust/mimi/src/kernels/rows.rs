//! Kernels over rows: sums, distances, normalization and attention.

use std::ops::Range;

use super::math::{exp, fma};
use super::{BASELINE_FMA, Isa, Kernels, dispatch};

/// Sums are kept in this many lanes.
const LANES: usize = 16;

/// The sum of the lanes, halved again and again so that the order does not depend on the instruction set.
#[inline(always)]
pub fn total(mut lanes: [f32; LANES]) -> f32 {
    for half in [8, 4, 2, 1] {
        for j in 0..half {
            lanes[j] += lanes[j + half];
        }
    }
    lanes[0]
}

/// What [`sum_pairs`] adds up.
const DOT: u8 = 0;
const SQUARED_DIFFERENCE: u8 = 1;

/// The sum of `x · y` or of `(x - y)²` over two slices of the same length. (The choice is a constant and no closure:
/// a closure would be compiled for the baseline.)
#[inline(always)]
fn sum_pairs<const FMA: bool, const TERM: u8>(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for (x, y) in a.iter().zip(b) {
        for j in 0..LANES {
            sums[j] = term::<FMA, TERM>(x[j], y[j], sums[j]);
        }
    }
    for (j, (x, y)) in a_rest.iter().zip(b_rest).enumerate() {
        sums[j] = term::<FMA, TERM>(*x, *y, sums[j]);
    }
    total(sums)
}

#[inline(always)]
fn term<const FMA: bool, const TERM: u8>(x: f32, y: f32, sum: f32) -> f32 {
    if TERM == DOT { fma::<FMA>(x, y, sum) } else { fma::<FMA>(x - y, x - y, sum) }
}

impl Kernels {
    /// Squared distances of `x` to each row of `rows`.
    pub fn distances(&self, x: &[f32], rows: &[f32], out: &mut [f32]) {
        dispatch!(self.isa, distances(x: &[f32], rows: &[f32], out: &mut [f32]));
    }

    /// LayerNorm of each row of `x`, with weight, bias and eps 1e-5.
    pub fn layer_norm(&self, x: &[f32], weight: &[f32], bias: &[f32], out: &mut [f32]) {
        dispatch!(self.isa, layer_norm(x: &[f32], weight: &[f32], bias: &[f32], out: &mut [f32]));
    }

    /// One query of one head, already scaled, over the keys and values at `parts` of the rings `k` and `v`
    /// (`[steps, width]`), oldest first. `scores` holds at least as many numbers as there are keys.
    pub fn attend(
        &self,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        parts: &[Range<usize>; 2],
        scores: &mut [f32],
        out: &mut [f32],
    ) {
        dispatch!(
            self.isa,
            attend(q: &[f32], k: &[f32], v: &[f32], parts: &[Range<usize>; 2], scores: &mut [f32], out: &mut [f32])
        );
    }
}

#[inline(always)]
fn distances<const FMA: bool>(x: &[f32], rows: &[f32], out: &mut [f32]) {
    for (row, out) in rows.chunks_exact(x.len()).zip(out) {
        *out = sum_pairs::<FMA, SQUARED_DIFFERENCE>(x, row);
    }
}

#[inline(always)]
fn layer_norm<const FMA: bool>(x: &[f32], weight: &[f32], bias: &[f32], out: &mut [f32]) {
    let width = weight.len();
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let mut sums = [0.0f32; LANES];
        for chunk in x.chunks(LANES) {
            for (sum, x) in sums.iter_mut().zip(chunk) {
                *sum += *x;
            }
        }
        let mean = total(sums) / width as f32;
        let mut sums = [0.0f32; LANES];
        for chunk in x.chunks(LANES) {
            for (sum, x) in sums.iter_mut().zip(chunk) {
                *sum = fma::<FMA>(*x - mean, *x - mean, *sum);
            }
        }
        let variance = total(sums) / width as f32;
        let scale = 1.0 / (variance + 1e-5).sqrt();
        for ((out, x), (w, b)) in out.iter_mut().zip(x).zip(weight.iter().zip(bias)) {
            *out = fma::<FMA>((x - mean) * scale, *w, *b);
        }
    }
}

#[inline(always)]
fn attend<const FMA: bool>(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    parts: &[Range<usize>; 2],
    scores: &mut [f32],
    out: &mut [f32],
) {
    let width = q.len();
    let keys = parts[0].len() + parts[1].len();
    let scores = &mut scores[..keys];
    let (first, second) = scores.split_at_mut(parts[0].len());
    for (scores, part) in [first, second].into_iter().zip(parts) {
        let rows = &k[part.start * width..part.end * width];
        for (score, row) in scores.iter_mut().zip(rows.chunks_exact(width)) {
            *score = sum_pairs::<FMA, DOT>(q, row);
        }
    }

    let mut most = [f32::NEG_INFINITY; LANES];
    for chunk in scores.chunks(LANES) {
        for (m, x) in most.iter_mut().zip(chunk) {
            *m = if *x > *m { *x } else { *m };
        }
    }
    let most = most.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let (whole, rest) = scores.as_chunks_mut::<LANES>();
    let mut sums = [0.0f32; LANES];
    for chunk in whole {
        for j in 0..LANES {
            chunk[j] = exp::<FMA>(chunk[j] - most);
            sums[j] += chunk[j];
        }
    }
    for (j, x) in rest.iter_mut().enumerate() {
        *x = exp::<FMA>(*x - most);
        sums[j] += *x;
    }
    let scale = 1.0 / total(sums);

    let mut at = 0;
    while at < width {
        let left = width - at;
        at += match left {
            64.. => weighted::<FMA, 64>(v, width, parts, scores, scale, at, out),
            16.. => weighted::<FMA, 16>(v, width, parts, scores, scale, at, out),
            _ => weighted::<FMA, 1>(v, width, parts, scores, scale, at, out),
        };
    }
}

/// `N` columns of the weighted sum of the values, from column `at`. Returns N.
#[inline(always)]
fn weighted<const FMA: bool, const N: usize>(
    v: &[f32],
    width: usize,
    parts: &[Range<usize>; 2],
    weights: &[f32],
    scale: f32,
    at: usize,
    out: &mut [f32],
) -> usize {
    let mut sums = [0.0f32; N];
    let (first, second) = weights.split_at(parts[0].len());
    for (weights, part) in [first, second].into_iter().zip(parts) {
        let rows = &v[part.start * width..part.end * width];
        for (weight, row) in weights.iter().zip(rows.chunks_exact(width)) {
            let row: &[f32; N] = row[at..].first_chunk().expect("N columns are left");
            for j in 0..N {
                sums[j] = fma::<FMA>(*weight, row[j], sums[j]);
            }
        }
    }
    for j in 0..N {
        out[at + j] = sums[j] * scale;
    }
    N
}
