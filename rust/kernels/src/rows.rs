//! Kernels over rows: sums, distances, normalization and attention.

use std::ops::Range;

use crate::math::exp;
use crate::vector::{LANES, Vector};
use crate::{Kernels, dispatch};

/// What [`sum_pairs`] adds up.
pub const DOT: u8 = 0;
const SQUARED_DIFFERENCE: u8 = 1;

/// Up to [`LANES`] numbers, filled up with `rest`.
#[inline(always)]
fn load_part<V: Vector>(from: &[f32], rest: f32) -> V {
    let mut lanes = [rest; LANES];
    for (lane, x) in lanes.iter_mut().zip(from) {
        *lane = *x;
    }
    V::load(&lanes)
}

#[inline(always)]
fn term<V: Vector, const TERM: u8>(x: V, y: V, sum: V) -> V {
    if TERM == DOT {
        x.mul_add(y, sum)
    } else {
        let difference = x.sub(y);
        difference.mul_add(difference, sum)
    }
}

/// The sum of `x · y` or of `(x - y)²` over two slices of the same length.
#[inline(always)]
pub fn sum_pairs<V: Vector, const TERM: u8>(a: &[f32], b: &[f32]) -> f32 {
    let (whole_a, rest_a) = a.as_chunks::<LANES>();
    let (whole_b, rest_b) = b.as_chunks::<LANES>();
    let mut sum = V::splat(0.0);
    for (x, y) in whole_a.iter().zip(whole_b) {
        sum = term::<V, TERM>(V::load(x), V::load(y), sum);
    }
    if !rest_a.is_empty() {
        sum = term::<V, TERM>(load_part(rest_a, 0.0), load_part(rest_b, 0.0), sum);
    }
    sum.total()
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

    /// `x / √(mean(x²) + eps) · weight` of each row of `x`.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        dispatch!(self.isa, rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]));
    }

    /// `silu(a) · b` of each row of `x`, whose halves of `width` numbers are a and b.
    pub fn gate(&self, x: &[f32], width: usize, out: &mut [f32]) {
        dispatch!(self.isa, gate(x: &[f32], width: usize, out: &mut [f32]));
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
fn distances<V: Vector>(x: &[f32], rows: &[f32], out: &mut [f32]) {
    for (row, out) in rows.chunks_exact(x.len()).zip(out) {
        *out = sum_pairs::<V, SQUARED_DIFFERENCE>(x, row);
    }
}

#[inline(always)]
fn layer_norm<V: Vector>(x: &[f32], weight: &[f32], bias: &[f32], out: &mut [f32]) {
    let width = weight.len();
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let (whole, rest) = x.as_chunks::<LANES>();
        let mut sum = V::splat(0.0);
        for x in whole {
            sum = sum.add(V::load(x));
        }
        sum = sum.add(load_part(rest, 0.0));
        let mean = sum.total() / width as f32;
        let mut sum = V::splat(0.0);
        for x in whole {
            let x = V::load(x).sub(V::splat(mean));
            sum = x.mul_add(x, sum);
        }
        let x_rest = load_part::<V>(rest, mean).sub(V::splat(mean));
        sum = x_rest.mul_add(x_rest, sum);
        let variance = sum.total() / width as f32;
        let scale = 1.0 / (variance + 1e-5).sqrt();
        for ((out, x), (w, b)) in out.iter_mut().zip(x).zip(weight.iter().zip(bias)) {
            *out = (x - mean) * scale * w + b;
        }
    }
}

/// The width of the published models' heads.
const WIDTH: usize = 64;

#[inline(always)]
fn rms_norm<V: Vector>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let scale = 1.0 / (sum_pairs::<V, DOT>(x, x) / width as f32 + eps).sqrt();
        for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
            *out = x * scale * w;
        }
    }
}

#[inline(always)]
fn gate<V: Vector>(x: &[f32], width: usize, out: &mut [f32]) {
    for (x, out) in x.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)) {
        let (a, b) = x.split_at(width);
        for ((a, b), out) in a.chunks(LANES).zip(b.chunks(LANES)).zip(out.chunks_mut(LANES)) {
            let x = load_part::<V>(a, 0.0);
            // 1 + exp(-x) is finite, for exp is clamped.
            let below = V::splat(1.0).add(exp(V::splat(0.0).sub(x)));
            let mut silu = [0.0; LANES];
            x.div(below).mul(load_part::<V>(b, 0.0)).store(&mut silu);
            out.copy_from_slice(&silu[..out.len()]);
        }
    }
}

#[inline(always)]
fn attend<V: Vector>(q: &[f32], k: &[f32], v: &[f32], parts: &[Range<usize>; 2], scores: &mut [f32], out: &mut [f32]) {
    // The same twice: with a width that the compiler knows, and with any.
    match <&[f32; WIDTH]>::try_from(q) {
        Ok(q) => attend_head::<V>(q, k, v, parts, scores, out),
        Err(_) => attend_head::<V>(q, k, v, parts, scores, out),
    }
}

#[inline(always)]
fn attend_head<V: Vector>(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    parts: &[Range<usize>; 2],
    scores: &mut [f32],
    out: &mut [f32],
) {
    let width = q.len();
    let (first, second) = scores[..parts[0].len() + parts[1].len()].split_at_mut(parts[0].len());
    for (scores, part) in [first, second].into_iter().zip(parts) {
        let rows = &k[part.start * width..part.end * width];
        for (score, row) in scores.iter_mut().zip(rows.chunks_exact(width)) {
            *score = sum_pairs::<V, DOT>(q, row);
        }
    }

    let scores = &mut scores[..parts[0].len() + parts[1].len()];
    let (whole, rest) = scores.as_chunks_mut::<LANES>();
    let mut most = load_part::<V>(rest, f32::NEG_INFINITY);
    for chunk in whole.iter() {
        most = V::load(chunk).max(most);
    }
    let mut lanes = [0.0; LANES];
    most.store(&mut lanes);
    let most = lanes.iter().fold(f32::NEG_INFINITY, |most, lane| if *lane > most { *lane } else { most });
    let mut sum = 0.0;
    weigh::<V>(scores, most, &mut sum);
    let scale = 1.0 / sum;

    let mut at = 0;
    while at < width {
        at += match width - at {
            64.. => weighted::<V, 4>(v, width, parts, scores, scale, at, out),
            16.. => weighted::<V, 1>(v, width, parts, scores, scale, at, out),
            _ => weighted_one(v, width, parts, scores, scale, at, out),
        };
    }
}

/// Makes weights of scores, `exp(score - most)`, and sums them up.
#[inline(always)]
pub fn weigh<V: Vector>(scores: &mut [f32], most: f32, sum: &mut f32) {
    let (whole, rest) = scores.as_chunks_mut::<LANES>();
    let mut sums = V::splat(0.0);
    for chunk in whole {
        let weights = exp(V::load(chunk).sub(V::splat(most)));
        weights.store(chunk);
        sums = sums.add(weights);
    }
    let mut last = [0.0; LANES];
    exp(load_part::<V>(rest, most).sub(V::splat(most))).store(&mut last);
    *sum = sums.total();
    for (score, weight) in rest.iter_mut().zip(last) {
        *score = weight;
        *sum += weight;
    }
}

/// `N` vectors of the weighted sum of the values, from column `at`. Returns the number of columns.
#[inline(always)]
fn weighted<V: Vector, const N: usize>(
    v: &[f32],
    width: usize,
    parts: &[Range<usize>; 2],
    weights: &[f32],
    scale: f32,
    at: usize,
    out: &mut [f32],
) -> usize {
    let mut sums = [V::splat(0.0); N];
    let (first, second) = weights.split_at(parts[0].len());
    for (weights, part) in [first, second].into_iter().zip(parts) {
        let rows = &v[part.start * width..part.end * width];
        for (weight, row) in weights.iter().zip(rows.chunks_exact(width)) {
            let row = &row[at..at + N * LANES].as_chunks::<LANES>().0[..N];
            for j in 0..N {
                sums[j] = V::splat(*weight).mul_add(V::load(&row[j]), sums[j]);
            }
        }
    }
    let out = &mut out[at..at + N * LANES].as_chunks_mut::<LANES>().0[..N];
    for j in 0..N {
        sums[j].mul(V::splat(scale)).store(&mut out[j]);
    }
    N * LANES
}

/// The same for one column, of a width that is not a multiple of sixteen.
fn weighted_one(
    v: &[f32],
    width: usize,
    parts: &[Range<usize>; 2],
    weights: &[f32],
    scale: f32,
    at: usize,
    out: &mut [f32],
) -> usize {
    let steps = parts[0].clone().chain(parts[1].clone());
    out[at] = scale * weights.iter().zip(steps).map(|(weight, step)| weight * v[step * width + at]).sum::<f32>();
    1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Isa, numbers};

    #[test]
    fn attention_agrees_with_float64() {
        for isa in Isa::available() {
            let kernels = Kernels::new(isa, 1);
            for width in [4, 10, 16, 40, 64, 86] {
                for parts in [[0..1, 0..0], [3..40, 0..0], [30..41, 0..13]] {
                    let (q, k, v) = (numbers(width, 1), numbers(41 * width, 2), numbers(41 * width, 3));
                    let (mut scores, mut out) = (vec![0.0; 41], vec![0.0; width]);
                    kernels.attend(&q, &k, &v, &parts, &mut scores, &mut out);
                    let steps: Vec<usize> = parts[0].clone().chain(parts[1].clone()).collect();
                    let weights: Vec<f64> = steps
                        .iter()
                        .map(|s| (0..width).map(|i| f64::from(q[i]) * f64::from(k[s * width + i])).sum::<f64>().exp())
                        .collect();
                    for i in 0..width {
                        let sum: f64 = steps.iter().zip(&weights).map(|(s, w)| w * f64::from(v[s * width + i])).sum();
                        let want = sum / weights.iter().sum::<f64>();
                        assert!((f64::from(out[i]) - want).abs() < 2e-6, "{isa:?} {width} {parts:?} {i}");
                    }
                }
            }
        }
    }

    #[test]
    fn rms_norm_and_gate_agree_with_float64() {
        for isa in Isa::available() {
            let kernels = Kernels::new(isa, 1);
            for width in [1, 3, 8, 20, 64, 100] {
                let (x, w) = (numbers(2 * width, 1), numbers(width, 2));
                // Large and small enough for exp to be clamped.
                let x: Vec<f32> = x.iter().map(|x| 120.0 * x * x * x).collect();
                let (mut normed, mut gated) = (vec![0.0; 2 * width], vec![0.0; width]);
                kernels.rms_norm(&x, &w, 1e-3, &mut normed);
                kernels.gate(&x, width, &mut gated);
                for (row, normed) in x.chunks_exact(width).zip(normed.chunks_exact(width)) {
                    let mean = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
                    for i in 0..width {
                        let want = f64::from(row[i]) / (mean + 1e-3).sqrt() * f64::from(w[i]);
                        assert!((f64::from(normed[i]) - want).abs() < 2e-6 * (1.0 + want.abs()), "{isa:?} {width}");
                    }
                }
                for i in 0..width {
                    let (a, b) = (f64::from(x[i]), f64::from(x[width + i]));
                    let want = a / (1.0 + (-a).exp()) * b;
                    assert!((f64::from(gated[i]) - want).abs() < 1e-6 * (1.0 + want.abs()), "{isa:?} {width} {i}");
                }
            }
        }
    }

    #[test]
    fn layer_norm_and_distances_agree_with_float64() {
        for isa in Isa::available() {
            let kernels = Kernels::new(isa, 1);
            for width in [3, 8, 16, 20, 64, 100] {
                let (x, w, b) = (numbers(3 * width, 1), numbers(width, 2), numbers(width, 3));
                // Small enough for eps to count.
                let x: Vec<f32> = x.iter().map(|x| 5.0 + 0.01 * x).collect();
                let mut out = vec![0.0; 3 * width];
                kernels.layer_norm(&x, &w, &b, &mut out);
                let mut distances = vec![0.0; 3];
                kernels.distances(&w, &x, &mut distances);
                for (row, distance) in distances.iter().enumerate() {
                    let x: Vec<f64> = x[row * width..(row + 1) * width].iter().map(|x| f64::from(*x)).collect();
                    let mean = x.iter().sum::<f64>() / width as f64;
                    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
                    for i in 0..width {
                        let want = (x[i] - mean) / (variance + 1e-5).sqrt() * f64::from(w[i]) + f64::from(b[i]);
                        assert!((f64::from(out[row * width + i]) - want).abs() < 3e-4, "{isa:?} {width}");
                    }
                    let want: f64 = x.iter().zip(&w).map(|(x, w)| (x - f64::from(*w)).powi(2)).sum();
                    assert!((f64::from(*distance) / want - 1.0).abs() < 1e-6, "{isa:?} {width}");
                }
            }
        }
    }
}
