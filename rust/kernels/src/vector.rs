//! Eight float32 numbers as one value: what the kernels are written in.
//!
//! Loops over plain arrays would be nicer to read, but the compiler takes them apart into single numbers before it looks
//! for vectors. The methods are always inlined into the function that [`dispatch`](crate::dispatch) compiles for an instruction
//! set; they must not be called from anywhere else. For the same reason kernels use no closures.

/// Numbers in a [`Vector`].
pub const LANES: usize = 8;

/// # Safety
/// The implementations may use instructions that not every processor has: they may only be reached through `dispatch!`.
pub unsafe trait Vector: Copy {
    fn splat(x: f32) -> Self;
    fn load(from: &[f32; LANES]) -> Self;
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
    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self([x; LANES])
    }
    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        Self(*from)
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
}

#[cfg(target_arch = "x86_64")]
pub use x86::Avx2;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{LANES, Vector};
    use std::arch::x86_64::*;

    /// Needs AVX2 and FMA.
    #[derive(Clone, Copy)]
    pub struct Avx2(__m256);

    /// One intrinsic, or a few in each other.
    macro_rules! with_avx2 {
        ($e:expr) => {
            // SAFETY: the promise of `Vector`: `dispatch!` has found AVX2 and FMA. Loads and stores are of whole arrays
            // behind references and need no alignment.
            unsafe { $e }
        };
    }

    // SAFETY: every method is inlined.
    unsafe impl Vector for Avx2 {
        #[inline(always)]
        fn splat(x: f32) -> Self {
            with_avx2!(Self(_mm256_set1_ps(x)))
        }
        #[inline(always)]
        fn load(from: &[f32; LANES]) -> Self {
            with_avx2!(Self(_mm256_loadu_ps(from.as_ptr())))
        }
        #[inline(always)]
        fn store(self, to: &mut [f32; LANES]) {
            with_avx2!(_mm256_storeu_ps(to.as_mut_ptr(), self.0));
        }
        #[inline(always)]
        fn add(self, other: Self) -> Self {
            with_avx2!(Self(_mm256_add_ps(self.0, other.0)))
        }
        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            with_avx2!(Self(_mm256_sub_ps(self.0, other.0)))
        }
        #[inline(always)]
        fn mul(self, other: Self) -> Self {
            with_avx2!(Self(_mm256_mul_ps(self.0, other.0)))
        }
        #[inline(always)]
        fn div(self, other: Self) -> Self {
            with_avx2!(Self(_mm256_div_ps(self.0, other.0)))
        }
        #[inline(always)]
        fn mul_add(self, a: Self, b: Self) -> Self {
            with_avx2!(Self(_mm256_fmadd_ps(self.0, a.0, b.0)))
        }
        #[inline(always)]
        fn min(self, other: Self) -> Self {
            with_avx2!(Self(_mm256_min_ps(self.0, other.0)))
        }
        #[inline(always)]
        fn max(self, other: Self) -> Self {
            with_avx2!(Self(_mm256_max_ps(self.0, other.0)))
        }
        #[inline(always)]
        fn choose(self, a: Self, b: Self) -> Self {
            with_avx2!({
                let positive = _mm256_cmp_ps::<_CMP_GT_OQ>(self.0, _mm256_setzero_ps());
                Self(_mm256_blendv_ps(b.0, a.0, positive))
            })
        }
        #[inline(always)]
        fn copysign(self, sign: Self) -> Self {
            with_avx2!({
                let mask = _mm256_set1_ps(-0.0);
                Self(_mm256_or_ps(_mm256_andnot_ps(mask, self.0), _mm256_and_ps(mask, sign.0)))
            })
        }
        #[inline(always)]
        fn exp2_of_low_bits(self) -> Self {
            with_avx2!({
                let exponent = _mm256_add_epi32(_mm256_castps_si256(self.0), _mm256_set1_epi32(127));
                Self(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
            })
        }
        #[inline(always)]
        fn prefetch<T>(address: *const T) {
            with_avx2!(_mm_prefetch::<_MM_HINT_T0>(address.cast()));
        }
    }
}

#[cfg(target_arch = "aarch64")]
pub use arm::Neon;

#[cfg(target_arch = "aarch64")]
mod arm {
    use super::{LANES, Vector};
    use std::arch::aarch64::*;

    /// Every aarch64 processor has NEON.
    #[derive(Clone, Copy)]
    pub struct Neon(float32x4_t, float32x4_t);

    macro_rules! with_neon {
        ($e:expr) => {
            // SAFETY: NEON is part of the target. Loads and stores are of halves of arrays behind references.
            unsafe { $e }
        };
    }

    // SAFETY: no instructions beyond the target's.
    unsafe impl Vector for Neon {
        #[inline(always)]
        fn splat(x: f32) -> Self {
            with_neon!(Self(vdupq_n_f32(x), vdupq_n_f32(x)))
        }
        #[inline(always)]
        fn load(from: &[f32; LANES]) -> Self {
            with_neon!(Self(vld1q_f32(from.as_ptr()), vld1q_f32(from.as_ptr().add(4))))
        }
        #[inline(always)]
        fn store(self, to: &mut [f32; LANES]) {
            with_neon!({
                vst1q_f32(to.as_mut_ptr(), self.0);
                vst1q_f32(to.as_mut_ptr().add(4), self.1);
            });
        }
        #[inline(always)]
        fn add(self, other: Self) -> Self {
            with_neon!(Self(vaddq_f32(self.0, other.0), vaddq_f32(self.1, other.1)))
        }
        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            with_neon!(Self(vsubq_f32(self.0, other.0), vsubq_f32(self.1, other.1)))
        }
        #[inline(always)]
        fn mul(self, other: Self) -> Self {
            with_neon!(Self(vmulq_f32(self.0, other.0), vmulq_f32(self.1, other.1)))
        }
        #[inline(always)]
        fn div(self, other: Self) -> Self {
            with_neon!(Self(vdivq_f32(self.0, other.0), vdivq_f32(self.1, other.1)))
        }
        #[inline(always)]
        fn mul_add(self, a: Self, b: Self) -> Self {
            with_neon!(Self(vfmaq_f32(b.0, self.0, a.0), vfmaq_f32(b.1, self.1, a.1)))
        }
        #[inline(always)]
        fn min(self, other: Self) -> Self {
            with_neon!(Self(vminq_f32(self.0, other.0), vminq_f32(self.1, other.1)))
        }
        #[inline(always)]
        fn max(self, other: Self) -> Self {
            with_neon!(Self(vmaxq_f32(self.0, other.0), vmaxq_f32(self.1, other.1)))
        }
        #[inline(always)]
        fn choose(self, a: Self, b: Self) -> Self {
            with_neon!(Self(vbslq_f32(vcgtzq_f32(self.0), a.0, b.0), vbslq_f32(vcgtzq_f32(self.1), a.1, b.1)))
        }
        #[inline(always)]
        fn copysign(self, sign: Self) -> Self {
            with_neon!({
                let mask = vdupq_n_u32(1 << 31);
                Self(vbslq_f32(mask, sign.0, self.0), vbslq_f32(mask, sign.1, self.1))
            })
        }
        #[inline(always)]
        fn exp2_of_low_bits(self) -> Self {
            with_neon!({
                let bias = vdupq_n_u32(127);
                let low = vshlq_n_u32::<23>(vaddq_u32(vreinterpretq_u32_f32(self.0), bias));
                let high = vshlq_n_u32::<23>(vaddq_u32(vreinterpretq_u32_f32(self.1), bias));
                Self(vreinterpretq_f32_u32(low), vreinterpretq_f32_u32(high))
            })
        }
    }
}
