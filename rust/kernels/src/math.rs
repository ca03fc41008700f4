//! Functions of vectors, without branches.

use crate::vector::Vector;

#[inline(always)]
fn poly<V: Vector, const N: usize>(x: V, coefficients: [f32; N]) -> V {
    let mut y = V::splat(coefficients[N - 1]);
    let mut i = N - 1;
    while i > 0 {
        i -= 1;
        y = y.mul_add(x, V::splat(coefficients[i]));
    }
    y
}

/// `(s, q)` with `exp(x) = s + s·q`, s a power of two, for x clamped to [-87, 88]. Relative error below 1.5e-7.
#[inline(always)]
fn exp_parts<V: Vector>(x: V) -> (V, V) {
    // Adding 1.5·2^23 rounds to a whole number and leaves it in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    // ln 2 in two parts, the first exact when multiplied by a small whole number.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Chebyshev fit of (exp(r) - 1 - r) / r² on ±ln(2)/2.
    const P: [f32; 6] = [0.5, 0.166_666_67, 0.041_666_467, 0.008_333_298, 0.001_393_365_2, 0.000_198_992_87];
    let x = x.max(V::splat(-87.0)).min(V::splat(88.0));
    let t = x.mul_add(V::splat(std::f32::consts::LOG2_E), V::splat(MAGIC));
    let n = t.sub(V::splat(MAGIC));
    let r = n.mul_add(V::splat(-LN2_LOW), n.mul_add(V::splat(-LN2_HIGH), x));
    let q = r.mul(r).mul_add(poly(r, P), r);
    (t.exp2_of_low_bits(), q)
}

#[inline(always)]
pub fn exp<V: Vector>(x: V) -> V {
    let (s, q) = exp_parts(x);
    s.mul_add(q, s)
}

/// ELU with alpha 1. The parts of exp give `exp(x) - 1` without cancellation.
#[inline(always)]
pub fn elu<V: Vector>(x: V) -> V {
    let (s, q) = exp_parts(x.min(V::splat(0.0)));
    x.choose(x, s.mul_add(q, s.sub(V::splat(1.0))))
}

/// The error function, absolute error below 2e-7.
#[inline(always)]
fn erf<V: Vector>(x: V) -> V {
    // Chebyshev fits: erf(x) / x in x² on [0, 1], and -log(1 - erf(t)) on [1, 4], past which erf rounds to 1.
    const SMALL: [f32; 8] = [
        std::f32::consts::FRAC_2_SQRT_PI,
        -0.376_126_38,
        0.112_837_83,
        -0.026_865_438,
        0.005_221_053,
        -0.000_848_439_6,
        0.000_112_682_54,
        -9.673_59e-6,
    ];
    const LARGE: [f32; 9] = [
        -0.000_303_213_02,
        1.130_166_6,
        0.631_937_1,
        0.109_978_24,
        -0.026_364_718,
        0.004_740_222,
        -0.000_592_769_5,
        4.559_062e-5,
        -1.614_081_6e-6,
    ];
    let (zero, one) = (V::splat(0.0), V::splat(1.0));
    let t = x.max(zero.sub(x)).min(V::splat(4.0));
    let small = x.mul(poly(t.mul(t), SMALL));
    let large = one.sub(exp(zero.sub(poly(t, LARGE)))).copysign(x);
    one.sub(t).choose(small, large)
}

/// The exact (erf) GELU.
#[inline(always)]
pub fn gelu<V: Vector>(x: V) -> V {
    let half = x.mul(V::splat(0.5));
    half.mul_add(erf(x.mul(V::splat(std::f32::consts::FRAC_1_SQRT_2))), half)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::LANES;
    use crate::{Isa, dispatch};

    const EXP: u8 = 0;
    const ELU: u8 = 1;
    const ERF: u8 = 2;
    const GELU: u8 = 3;

    #[inline(always)]
    fn apply<V: Vector>(x: &[f32; LANES], function: u8, out: &mut [f32; LANES]) {
        let x = V::load(x);
        match function {
            EXP => exp(x),
            ELU => elu(x),
            ERF => erf(x),
            _ => gelu(x),
        }
        .store(out);
    }

    fn at(isa: Isa, function: u8, x: f32) -> f64 {
        let (x, out) = (&[x; LANES], &mut [0.0; LANES]);
        dispatch!(isa, apply(x: &[f32; LANES], function: u8, out: &mut [f32; LANES]));
        f64::from(out[3])
    }

    /// erf by its Maclaurin series, in float64: good to 1e-10 for |x| < 4.5.
    fn erf_slow(x: f64) -> f64 {
        let (mut term, mut sum, mut n) = (x, x, 0.0);
        while term.abs() > 1e-18 {
            n += 1.0;
            term *= -x * x / n;
            sum += term / (2.0 * n + 1.0);
        }
        2.0 / std::f64::consts::PI.sqrt() * sum
    }

    fn grid(low: f32, high: f32) -> impl Iterator<Item = f32> {
        (0..=100_000).map(move |i| low + (high - low) * i as f32 / 100_000.0)
    }

    #[test]
    fn close_to_float64() {
        for isa in Isa::available() {
            for x in grid(-86.0, 86.0) {
                assert!((at(isa, EXP, x) / f64::from(x).exp() - 1.0).abs() < 1.5e-7, "{isa:?} exp({x})");
            }
            for x in grid(-20.0, 5.0).chain(grid(-1e-3, 1e-3)) {
                let want = if x > 0.0 { f64::from(x) } else { f64::from(x).exp_m1() };
                assert!((at(isa, ELU, x) - want).abs() <= 2e-7 * want.abs(), "{isa:?} elu({x})");
            }
            for x in grid(-4.4, 4.4) {
                assert!((at(isa, ERF, x) - erf_slow(f64::from(x))).abs() < 2e-7, "{isa:?} erf({x})");
            }
            for x in grid(-6.0, 6.0) {
                let x64 = f64::from(x);
                let want = 0.5 * x64 * (1.0 + erf_slow(x64 * std::f64::consts::FRAC_1_SQRT_2));
                assert!((at(isa, GELU, x) - want).abs() < 2e-7 * (1.0 + x64.abs()), "{isa:?} gelu({x})");
            }
            assert_eq!(at(isa, GELU, 100.0), 100.0);
            assert_eq!(at(isa, GELU, -100.0), 0.0);
            assert_eq!(at(isa, ELU, -200.0), -1.0);
        }
    }
}
