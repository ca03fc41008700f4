//! Sixteen float32 numbers as one value, a cache line of them: what the kernels are written in.
//!
//! Loops over plain arrays would be nicer to read, but the compiler takes them apart into single numbers before it looks
//! for vectors. The methods are always inlined into the function that [`dispatch`](crate::dispatch) compiles for an
//! instruction set; they must not be called from anywhere else. For the same reason kernels use no closures.

/// Numbers in a [`Vector`].
pub const LANES: usize = 16;

/// # Safety
/// The implementations may use instructions that not every processor has: they may only be reached through `dispatch!`.
pub unsafe trait Vector: Copy {
    /// Vectors that fit into the registers as sums, beside the few that a loop works with.
    const SUMS: usize;
    /// Vectors to ask memory for ahead of their use.
    const AHEAD: usize;
    fn splat(x: f32) -> Self;
    fn load(from: &[f32; LANES]) -> Self;
    /// Finite float16 numbers by their bits.
    fn load_half(from: &[u16; LANES]) -> Self;
    fn store(self, to: &mut [f32; LANES]);
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    /// `self · a + b`, rounded once where the instruction set can.
    fn mul_add(self, a: Self, b: Self) -> Self;
    fn min(self, other: Self) -> Self;
    fn max(self, other: Self) -> Self;
    /// `a` where `self > 0`, else `b`.
    fn choose(self, a: Self, b: Self) -> Self;
    /// The magnitude of `self` with the sign of `sign`.
    fn copysign(self, sign: Self) -> Self;
    /// 2ⁿ, for `self` = n + 1.5·2²³, -127 < n < 128: the number n is in the low bits of such a float.
    fn exp2_of_low_bits(self) -> Self;
    /// The sum of the lanes: the upper half is added to the lower one, again and again, in every instruction set.
    fn total(self) -> f32;
    /// Asks for the cache line at an address, which need not be one of the program's. A hint: it may do nothing.
    #[inline(always)]
    fn prefetch<T>(_: *const T) {}
}

/// Plain arrays, for processors without one of the others, and to compare with.
#[derive(Clone, Copy)]
pub struct Portable([f32; LANES]);

macro_rules! lanewise {
    ($j:ident => $e:expr) => {{
        let mut out = [0.0; LANES];
        for $j in 0..LANES {
            out[$j] = $e;
        }
        Portable(out)
    }};
}

// SAFETY: no special instructions.
unsafe impl Vector for Portable {
    const SUMS: usize = 6;
    const AHEAD: usize = 16;
    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self([x; LANES])
    }
    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        Self(*from)
    }
    #[inline(always)]
    fn load_half(from: &[u16; LANES]) -> Self {
        lanewise!(j => crate::half::widen(from[j]))
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        *to = self.0;
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        lanewise!(j => self.0[j] + other.0[j])
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        lanewise!(j => self.0[j] - other.0[j])
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        lanewise!(j => self.0[j] * other.0[j])
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        lanewise!(j => self.0[j] / other.0[j])
    }
    #[inline(always)]
    fn mul_add(self, a: Self, b: Self) -> Self {
        // Not `f32::mul_add`: without the instruction it is a slow function call.
        lanewise!(j => self.0[j] * a.0[j] + b.0[j])
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        lanewise!(j => if self.0[j] < other.0[j] { self.0[j] } else { other.0[j] })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        lanewise!(j => if self.0[j] > other.0[j] { self.0[j] } else { other.0[j] })
    }
    #[inline(always)]
    fn choose(self, a: Self, b: Self) -> Self {
        lanewise!(j => if self.0[j] > 0.0 { a.0[j] } else { b.0[j] })
    }
    #[inline(always)]
    fn copysign(self, sign: Self) -> Self {
        lanewise!(j => self.0[j].copysign(sign.0[j]))
    }
    #[inline(always)]
    fn exp2_of_low_bits(self) -> Self {
        lanewise!(j => f32::from_bits(self.0[j].to_bits().wrapping_add(127) << 23))
    }
    #[inline(always)]
    fn total(self) -> f32 {
        let mut sums = self.0;
        let mut half = LANES / 2;
        while half > 0 {
            for j in 0..half {
                sums[j] += sums[j + half];
            }
            half /= 2;
        }
        sums[0]
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{LANES, Vector};
    use std::arch::x86_64::*;

    /// One intrinsic, or a few in each other.
    macro_rules! intrinsics {
        ($e:expr) => {
            // SAFETY: the promise of `Vector`: `dispatch!` has found what the type needs. Loads and stores are of whole
            // arrays, or halves of them, behind references, and need no alignment. A prefetch may have any address.
            unsafe { $e }
        };
    }

    /// The sum of eight lanes, the upper half added to the lower one again and again. Needs AVX.
    #[inline(always)]
    fn total_of_eight(x: __m256) -> f32 {
        intrinsics!({
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        })
    }

    /// Needs AVX2, FMA and F16C.
    #[derive(Clone, Copy)]
    pub struct Avx2(__m256, __m256);

    // SAFETY: every method is inlined.
    unsafe impl Vector for Avx2 {
        const SUMS: usize = 6;
        const AHEAD: usize = 16;
        #[inline(always)]
        fn splat(x: f32) -> Self {
            intrinsics!(Self(_mm256_set1_ps(x), _mm256_set1_ps(x)))
        }
        #[inline(always)]
        fn load(from: &[f32; LANES]) -> Self {
            intrinsics!(Self(_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))))
        }
        #[inline(always)]
        fn load_half(from: &[u16; LANES]) -> Self {
            intrinsics!({
                let low = _mm_loadu_si128(from.as_ptr().cast());
                let high = _mm_loadu_si128(from.as_ptr().add(8).cast());
                Self(_mm256_cvtph_ps(low), _mm256_cvtph_ps(high))
            })
        }
        #[inline(always)]
        fn store(self, to: &mut [f32; LANES]) {
            intrinsics!({
                _mm256_storeu_ps(to.as_mut_ptr(), self.0);
                _mm256_storeu_ps(to.as_mut_ptr().add(8), self.1);
            });
        }
        #[inline(always)]
        fn add(self, other: Self) -> Self {
            intrinsics!(Self(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)))
        }
        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            intrinsics!(Self(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1)))
        }
        #[inline(always)]
        fn mul(self, other: Self) -> Self {
            intrinsics!(Self(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1)))
        }
        #[inline(always)]
        fn div(self, other: Self) -> Self {
            intrinsics!(Self(_mm256_div_ps(self.0, other.0), _mm256_div_ps(self.1, other.1)))
        }
        #[inline(always)]
        fn mul_add(self, a: Self, b: Self) -> Self {
            intrinsics!(Self(_mm256_fmadd_ps(self.0, a.0, b.0), _mm256_fmadd_ps(self.1, a.1, b.1)))
        }
        #[inline(always)]
        fn min(self, other: Self) -> Self {
            intrinsics!(Self(_mm256_min_ps(self.0, other.0), _mm256_min_ps(self.1, other.1)))
        }
        #[inline(always)]
        fn max(self, other: Self) -> Self {
            intrinsics!(Self(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1)))
        }
        #[inline(always)]
        fn choose(self, a: Self, b: Self) -> Self {
            intrinsics!({
                let zero = _mm256_setzero_ps();
                let low = _mm256_cmp_ps::<_CMP_GT_OQ>(self.0, zero);
                let high = _mm256_cmp_ps::<_CMP_GT_OQ>(self.1, zero);
                Self(_mm256_blendv_ps(b.0, a.0, low), _mm256_blendv_ps(b.1, a.1, high))
            })
        }
        #[inline(always)]
        fn copysign(self, sign: Self) -> Self {
            intrinsics!({
                let mask = _mm256_set1_ps(-0.0);
                let low = _mm256_or_ps(_mm256_andnot_ps(mask, self.0), _mm256_and_ps(mask, sign.0));
                let high = _mm256_or_ps(_mm256_andnot_ps(mask, self.1), _mm256_and_ps(mask, sign.1));
                Self(low, high)
            })
        }
        #[inline(always)]
        fn exp2_of_low_bits(self) -> Self {
            intrinsics!({
                let bias = _mm256_set1_epi32(127);
                let low = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_castps_si256(self.0), bias));
                let high = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_castps_si256(self.1), bias));
                Self(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
            })
        }
        #[inline(always)]
        fn total(self) -> f32 {
            intrinsics!(total_of_eight(_mm256_add_ps(self.0, self.1)))
        }
        #[inline(always)]
        fn prefetch<T>(address: *const T) {
            intrinsics!(_mm_prefetch::<_MM_HINT_T0>(address.cast()));
        }
    }

    /// Needs AVX-512 F and DQ.
    #[derive(Clone, Copy)]
    pub struct Avx512(__m512);

    // SAFETY: every method is inlined.
    unsafe impl Vector for Avx512 {
        const SUMS: usize = 24;
        const AHEAD: usize = 64;
        #[inline(always)]
        fn splat(x: f32) -> Self {
            intrinsics!(Self(_mm512_set1_ps(x)))
        }
        #[inline(always)]
        fn load(from: &[f32; LANES]) -> Self {
            intrinsics!(Self(_mm512_loadu_ps(from.as_ptr())))
        }
        #[inline(always)]
        fn load_half(from: &[u16; LANES]) -> Self {
            intrinsics!(Self(_mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast()))))
        }
        #[inline(always)]
        fn store(self, to: &mut [f32; LANES]) {
            intrinsics!(_mm512_storeu_ps(to.as_mut_ptr(), self.0));
        }
        #[inline(always)]
        fn add(self, other: Self) -> Self {
            intrinsics!(Self(_mm512_add_ps(self.0, other.0)))
        }
        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            intrinsics!(Self(_mm512_sub_ps(self.0, other.0)))
        }
        #[inline(always)]
        fn mul(self, other: Self) -> Self {
            intrinsics!(Self(_mm512_mul_ps(self.0, other.0)))
        }
        #[inline(always)]
        fn div(self, other: Self) -> Self {
            intrinsics!(Self(_mm512_div_ps(self.0, other.0)))
        }
        #[inline(always)]
        fn mul_add(self, a: Self, b: Self) -> Self {
            intrinsics!(Self(_mm512_fmadd_ps(self.0, a.0, b.0)))
        }
        #[inline(always)]
        fn min(self, other: Self) -> Self {
            intrinsics!(Self(_mm512_min_ps(self.0, other.0)))
        }
        #[inline(always)]
        fn max(self, other: Self) -> Self {
            intrinsics!(Self(_mm512_max_ps(self.0, other.0)))
        }
        #[inline(always)]
        fn choose(self, a: Self, b: Self) -> Self {
            intrinsics!({
                let positive = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(self.0, _mm512_setzero_ps());
                Self(_mm512_mask_blend_ps(positive, b.0, a.0))
            })
        }
        #[inline(always)]
        fn copysign(self, sign: Self) -> Self {
            intrinsics!({
                let mask = _mm512_set1_ps(-0.0);
                Self(_mm512_or_ps(_mm512_andnot_ps(mask, self.0), _mm512_and_ps(mask, sign.0)))
            })
        }
        #[inline(always)]
        fn exp2_of_low_bits(self) -> Self {
            intrinsics!({
                let exponent = _mm512_add_epi32(_mm512_castps_si512(self.0), _mm512_set1_epi32(127));
                Self(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent)))
            })
        }
        #[inline(always)]
        fn total(self) -> f32 {
            intrinsics!({
                let high = _mm512_extractf32x8_ps::<1>(self.0);
                total_of_eight(_mm256_add_ps(_mm512_castps512_ps256(self.0), high))
            })
        }
        #[inline(always)]
        fn prefetch<T>(address: *const T) {
            intrinsics!(_mm_prefetch::<_MM_HINT_T0>(address.cast()));
        }
    }
}

#[cfg(target_arch = "aarch64")]
pub use arm::Neon;

#[cfg(target_arch = "aarch64")]
mod arm {
    use super::{LANES, Vector};
    use std::arch::aarch64::*;
    use std::arch::asm;

    /// Every aarch64 processor has NEON.
    #[derive(Clone, Copy)]
    pub struct Neon([float32x4_t; 4]);

    macro_rules! intrinsics {
        ($e:expr) => {
            // SAFETY: NEON is part of the target. Loads and stores are of quarters of arrays behind references.
            unsafe { $e }
        };
    }

    macro_rules! quarters {
        ($j:ident => $e:expr) => {
            intrinsics!(Neon([
                { const $j: usize = 0; $e },
                { const $j: usize = 1; $e },
                { const $j: usize = 2; $e },
                { const $j: usize = 3; $e },
            ]))
        };
    }

    /// Four float16 numbers by their bits. The intrinsic needs a type that the oldest supported compiler lacks.
    #[inline(always)]
    fn widen(half: uint16x4_t) -> float32x4_t {
        let wide: float32x4_t;
        // SAFETY: the instruction is part of the target, and touches the two registers only.
        unsafe { asm!("fcvtl {:v}.4s, {:v}.4h", lateout(vreg) wide, in(vreg) half, options(pure, nomem, nostack)) };
        wide
    }

    // SAFETY: no instructions beyond the target's.
    unsafe impl Vector for Neon {
        const SUMS: usize = 6;
        const AHEAD: usize = 16;
        #[inline(always)]
        fn splat(x: f32) -> Self {
            intrinsics!(Self([vdupq_n_f32(x); 4]))
        }
        #[inline(always)]
        fn load(from: &[f32; LANES]) -> Self {
            quarters!(J => vld1q_f32(from.as_ptr().add(4 * J)))
        }
        #[inline(always)]
        fn load_half(from: &[u16; LANES]) -> Self {
            quarters!(J => widen(vld1_u16(from.as_ptr().add(4 * J))))
        }
        #[inline(always)]
        fn store(self, to: &mut [f32; LANES]) {
            for j in 0..4 {
                intrinsics!(vst1q_f32(to.as_mut_ptr().add(4 * j), self.0[j]));
            }
        }
        #[inline(always)]
        fn add(self, other: Self) -> Self {
            quarters!(J => vaddq_f32(self.0[J], other.0[J]))
        }
        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            quarters!(J => vsubq_f32(self.0[J], other.0[J]))
        }
        #[inline(always)]
        fn mul(self, other: Self) -> Self {
            quarters!(J => vmulq_f32(self.0[J], other.0[J]))
        }
        #[inline(always)]
        fn div(self, other: Self) -> Self {
            quarters!(J => vdivq_f32(self.0[J], other.0[J]))
        }
        #[inline(always)]
        fn mul_add(self, a: Self, b: Self) -> Self {
            quarters!(J => vfmaq_f32(b.0[J], self.0[J], a.0[J]))
        }
        #[inline(always)]
        fn min(self, other: Self) -> Self {
            quarters!(J => vminq_f32(self.0[J], other.0[J]))
        }
        #[inline(always)]
        fn max(self, other: Self) -> Self {
            quarters!(J => vmaxq_f32(self.0[J], other.0[J]))
        }
        #[inline(always)]
        fn choose(self, a: Self, b: Self) -> Self {
            quarters!(J => vbslq_f32(vcgtzq_f32(self.0[J]), a.0[J], b.0[J]))
        }
        #[inline(always)]
        fn copysign(self, sign: Self) -> Self {
            quarters!(J => vbslq_f32(vdupq_n_u32(1 << 31), sign.0[J], self.0[J]))
        }
        #[inline(always)]
        fn exp2_of_low_bits(self) -> Self {
            quarters!(J => {
                let exponent = vaddq_u32(vreinterpretq_u32_f32(self.0[J]), vdupq_n_u32(127));
                vreinterpretq_f32_u32(vshlq_n_u32::<23>(exponent))
            })
        }
        #[inline(always)]
        fn total(self) -> f32 {
            let [a, b, c, d] = self.0;
            intrinsics!({
                let sum = vaddq_f32(vaddq_f32(a, c), vaddq_f32(b, d));
                let sum = vadd_f32(vget_low_f32(sum), vget_high_f32(sum));
                vget_lane_f32::<0>(sum) + vget_lane_f32::<1>(sum)
            })
        }
    }
}
