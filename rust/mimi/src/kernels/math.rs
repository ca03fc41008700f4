//! Scalar functions written so that loops over them become vector code: no branches, no calls.

/// `a * b + c`, fused where the instruction set has it.
#[inline(always)]
pub fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

#[inline(always)]
fn poly<const FMA: bool, const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut y = coefficients[N - 1];
    for c in coefficients[..N - 1].iter().rev() {
        y = fma::<FMA>(y, x, *c);
    }
    y
}

/// `(s, q)` with `exp(x) = s + s·q`, s a power of two, for x clamped to [-87, 88]. Relative error below 1e-7.
#[inline(always)]
fn exp_parts<const FMA: bool>(x: f32) -> (f32, f32) {
    // Adding 1.5·2^23 rounds to a whole number and leaves it in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    // ln 2 in two parts, the first exact when multiplied by a small whole number.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Chebyshev fit of (exp(r) - 1 - r) / r² on ±ln(2)/2.
    const P: [f32; 6] = [0.5, 0.166_666_67, 0.041_666_467, 0.008_333_298, 0.001_393_365_2, 0.000_198_992_87];
    let x = x.clamp(-87.0, 88.0);
    let t = fma::<FMA>(x, std::f32::consts::LOG2_E, MAGIC);
    let n = t - MAGIC;
    let r = fma::<FMA>(n, -LN2_LOW, fma::<FMA>(n, -LN2_HIGH, x));
    let q = fma::<FMA>(r * r, poly::<FMA, 6>(r, P), r);
    (f32::from_bits(t.to_bits().wrapping_add(127) << 23), q)
}

#[inline(always)]
pub fn exp<const FMA: bool>(x: f32) -> f32 {
    let (s, q) = exp_parts::<FMA>(x);
    fma::<FMA>(s, q, s)
}

/// ELU with alpha 1. The parts of exp give `exp(x) - 1` without cancellation.
#[inline(always)]
pub fn elu<const FMA: bool>(x: f32) -> f32 {
    let (s, q) = exp_parts::<FMA>(x.min(0.0));
    let negative = fma::<FMA>(s, q, s - 1.0);
    if x > 0.0 { x } else { negative }
}

/// The error function, absolute error below 2e-7.
#[inline(always)]
fn erf<const FMA: bool>(x: f32) -> f32 {
    // Chebyshev fits: erf(x) / x in x² on [0, 1], and -log(1 - erf(t)) on [1, 4], past which erf rounds to 1.
    const SMALL: [f32; 8] = [
        1.128_379_2,
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
    let t = x.abs().min(4.0);
    let small = x * poly::<FMA, 8>(t * t, SMALL);
    let large = (1.0 - exp::<FMA>(-poly::<FMA, 9>(t, LARGE))).copysign(x);
    if t < 1.0 { small } else { large }
}

/// The exact (erf) GELU.
#[inline(always)]
pub fn gelu<const FMA: bool>(x: f32) -> f32 {
    let half = 0.5 * x;
    fma::<FMA>(half, erf::<FMA>(x * std::f32::consts::FRAC_1_SQRT_2), half)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// erf by its Maclaurin series, in float64: good to 1e-12 for |x| < 5.
    fn erf_slow(x: f64) -> f64 {
        let (mut term, mut sum, mut n) = (x, x, 0.0);
        while term.abs() > 1e-17 * sum.abs().max(1e-300) {
            n += 1.0;
            term *= -x * x / n;
            sum += term / (2.0 * n + 1.0);
        }
        2.0 / std::f64::consts::PI.sqrt() * sum
    }

    fn grid(low: f32, high: f32) -> impl Iterator<Item = f32> {
        (0..=200_000).map(move |i| low + (high - low) * i as f32 / 200_000.0)
    }

    fn check<const FMA: bool>() {
        for x in grid(-86.0, 86.0) {
            let want = f64::from(x).exp();
            assert!((f64::from(exp::<FMA>(x)) / want - 1.0).abs() < 1.5e-7, "exp({x})");
        }
        for x in grid(-20.0, 5.0).chain(grid(-1e-3, 1e-3)) {
            let want = if x > 0.0 { f64::from(x) } else { f64::from(x).exp_m1() };
            assert!((f64::from(elu::<FMA>(x)) - want).abs() <= 1.5e-7 * want.abs(), "elu({x})");
        }
        for x in grid(-4.9, 4.9) {
            assert!((f64::from(erf::<FMA>(x)) - erf_slow(f64::from(x))).abs() < 2e-7, "erf({x})");
        }
        for x in grid(-6.0, 6.0) {
            let x64 = f64::from(x);
            let want = 0.5 * x64 * (1.0 + erf_slow(x64 * std::f64::consts::FRAC_1_SQRT_2));
            assert!((f64::from(gelu::<FMA>(x)) - want).abs() < 4e-7, "gelu({x})");
        }
        assert_eq!(gelu::<FMA>(100.0), 100.0);
        assert_eq!(gelu::<FMA>(-100.0), 0.0);
        assert_eq!(elu::<FMA>(-200.0), -1.0);
    }

    #[test]
    fn close_to_float64() {
        check::<false>();
        check::<true>();
    }
}
