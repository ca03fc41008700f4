//! Sixteen lanes of 32 bits as one value: what products with packed weights are written in.
//!
//! A lane is a float32, an integer, or four bytes. The rules are those of [`super::vector::Vector`]: methods are always
//! inlined into the function that `packed_dispatch!` compiles for a [`Dot`], and kernels use no closures.

use std::fmt;

use crate::float::f16_to_f32;

/// Lanes in a [`Lanes`].
pub const WIDTH: usize = 16;

/// How four products of bytes are added: the instructions that products with packed weights are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dot {
    /// AVX-512 with VNNI: one instruction for 64 products.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    /// AVX2 with AVX-VNNI: one instruction for 32 products.
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// AVX2 alone: several instructions for 32 products.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// NEON with products of signed by unsigned bytes (i8mm): one instruction for 16 products.
    #[cfg(target_arch = "aarch64")]
    NeonI8mm,
    /// NEON with dot products: one instruction for 16 products of signed bytes.
    #[cfg(target_arch = "aarch64")]
    NeonDot,
    /// NEON alone.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// Plain code for any processor.
    Portable,
}

impl Dot {
    /// All that this machine can run, the fastest first.
    pub fn available() -> Vec<Self> {
        vec![
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni,
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2,
            #[cfg(target_arch = "aarch64")]
            Self::NeonI8mm,
            #[cfg(target_arch = "aarch64")]
            Self::NeonDot,
            #[cfg(target_arch = "aarch64")]
            Self::Neon,
            Self::Portable,
        ]
        .into_iter()
        .filter(|dot| dot.is_available())
        .collect()
    }

    pub(crate) fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => Self::Avx2.is_available() && is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "aarch64")]
            Self::NeonI8mm => std::arch::is_aarch64_feature_detected!("i8mm"),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDot => std::arch::is_aarch64_feature_detected!("dotprod"),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => true,
            Self::Portable => true,
        }
    }
}

impl fmt::Display for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => "AVX-512 VNNI",
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => "AVX-VNNI",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "AVX2",
            #[cfg(target_arch = "aarch64")]
            Self::NeonI8mm => "NEON i8mm",
            #[cfg(target_arch = "aarch64")]
            Self::NeonDot => "NEON dot products",
            #[cfg(target_arch = "aarch64")]
            Self::Neon => "NEON",
            Self::Portable => "portable",
        })
    }
}

/// Sixteen lanes of 32 bits.
///
/// # Safety
/// The implementations may use instructions that not every processor has: they may only be reached through
/// `packed_dispatch!`.
pub unsafe trait Lanes: Copy {
    /// Whether there are registers for a few dozen of these.
    const MANY: bool = false;
    /// All bits 0.
    fn zero() -> Self;
    /// The float in every lane.
    fn splat(x: f32) -> Self;
    /// # Safety
    /// 64 bytes must be there.
    unsafe fn load(from: *const u8) -> Self;
    /// # Safety
    /// There must be room for 16 floats.
    unsafe fn store(self, to: *mut f32);
    /// Floats of 16 numbers in IEEE half precision.
    ///
    /// # Safety
    /// 32 bytes must be there.
    unsafe fn load_f16(from: *const u8) -> Self;
    /// Floats of 16 numbers in bfloat16.
    ///
    /// # Safety
    /// 32 bytes must be there.
    unsafe fn load_bf16(from: *const u8) -> Self;
    /// Floats of 16 signed bytes.
    ///
    /// # Safety
    /// 16 bytes must be there.
    unsafe fn load_i8(from: *const i8) -> Self;
    /// Each byte shifted to the right by `SHIFT`, then cut by `mask`, which must not have bits that come from a
    /// neighbour.
    fn field<const SHIFT: i32>(self, mask: u8) -> Self;
    /// `self`, and the bits of `high` shifted to the left by `SHIFT`; no bit may leave its byte.
    fn join<const SHIFT: i32>(self, high: Self) -> Self;
    /// Integers: adds to each lane the four products of `weights`, unsigned bytes, with the signed bytes of `x`.
    fn dot(self, weights: Self, x: i32) -> Self;
    /// The same for weights below 128, which may be quicker.
    #[inline(always)]
    fn dot_low(self, weights: Self, x: i32) -> Self {
        self.dot(weights, x)
    }
    /// Whether pairs of inputs of 16 bits are quicker than two planes of bytes, and than any for weights of 8 bits.
    const PAIRS: bool = false;
    /// Writes the 32 inputs of a block, in `PLANES` planes of bytes, as pairs of 16 bits: for each of eight fours the first and
    /// the third, then for each the second and the fourth.
    ///
    /// # Safety
    /// The planes must be there. It is for those with `PAIRS`.
    #[inline(always)]
    unsafe fn pairs<const PLANES: usize>(_: *const i32) -> [i32; 16] {
        unreachable!()
    }
    /// Integers: adds to each lane the four products of `weights`, unsigned bytes, with two pairs of `pairs`. It is for those with
    /// `PAIRS`.
    #[inline(always)]
    fn dot_pairs(self, _weights: Self, _even: i32, _odd: i32) -> Self {
        unreachable!()
    }
    /// Floats of signed integers.
    fn to_floats(self) -> Self;
    /// Floats of the bits from `SHIFT` on of each lane, as many as `mask` has.
    fn bits<const SHIFT: i32>(self, mask: i32) -> Self;
    fn add(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    /// `self · a + b`, rounded once where the instruction set can.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// Asks for the cache line at an address, which need not be one of the program's. A hint: it may do nothing.
    #[inline(always)]
    fn prefetch(_: *const u8) {}
}

/// Plain arrays.
#[derive(Clone, Copy)]
pub struct Plain16([u32; WIDTH]);

impl Plain16 {
    #[inline(always)]
    fn floats(self) -> [f32; WIDTH] {
        self.0.map(f32::from_bits)
    }

    #[inline(always)]
    fn of(floats: [f32; WIDTH]) -> Self {
        Self(floats.map(f32::to_bits))
    }
}

macro_rules! lanes {
    ($j:ident => $e:expr) => {{
        let mut out = [0; WIDTH];
        for $j in 0..WIDTH {
            out[$j] = $e;
        }
        Plain16(out)
    }};
}

// SAFETY: no special instructions.
unsafe impl Lanes for Plain16 {
    #[inline(always)]
    fn zero() -> Self {
        Self([0; WIDTH])
    }
    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self([x.to_bits(); WIDTH])
    }
    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        let bytes = unsafe { from.cast::<[[u8; 4]; WIDTH]>().read_unaligned() };
        Self(bytes.map(u32::from_le_bytes))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[f32; WIDTH]>().write_unaligned(self.floats()) };
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        let bytes = unsafe { from.cast::<[[u8; 2]; WIDTH]>().read_unaligned() };
        Self::of(bytes.map(|b| f16_to_f32(u16::from_le_bytes(b))))
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        let bytes = unsafe { from.cast::<[[u8; 2]; WIDTH]>().read_unaligned() };
        Self(bytes.map(|b| u32::from(u16::from_le_bytes(b)) << 16))
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: the caller's promise.
        let bytes = unsafe { from.cast::<[i8; WIDTH]>().read_unaligned() };
        Self::of(bytes.map(f32::from))
    }
    #[inline(always)]
    fn field<const SHIFT: i32>(self, mask: u8) -> Self {
        let mask = u32::from_ne_bytes([mask; 4]);
        lanes!(j => self.0[j] >> SHIFT & mask)
    }
    #[inline(always)]
    fn join<const SHIFT: i32>(self, high: Self) -> Self {
        lanes!(j => self.0[j] | high.0[j] << SHIFT)
    }
    #[inline(always)]
    fn dot(self, weights: Self, x: i32) -> Self {
        let x = x.to_le_bytes().map(|x| i32::from(x as i8));
        lanes!(j => {
            let w = weights.0[j].to_le_bytes().map(i32::from);
            self.0[j].wrapping_add((w[0] * x[0] + w[1] * x[1] + w[2] * x[2] + w[3] * x[3]) as u32)
        })
    }
    #[inline(always)]
    fn to_floats(self) -> Self {
        lanes!(j => (self.0[j] as i32 as f32).to_bits())
    }
    #[inline(always)]
    fn bits<const SHIFT: i32>(self, mask: i32) -> Self {
        lanes!(j => ((self.0[j] >> SHIFT & mask as u32) as f32).to_bits())
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        let (a, b) = (self.floats(), other.floats());
        lanes!(j => (a[j] + b[j]).to_bits())
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        let (a, b) = (self.floats(), other.floats());
        lanes!(j => (a[j] * b[j]).to_bits())
    }
    #[inline(always)]
    fn mul_add(self, a: Self, b: Self) -> Self {
        let (x, a, b) = (self.floats(), a.floats(), b.floats());
        lanes!(j => (x[j] * a[j] + b[j]).to_bits())
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2x16, Avx512x16, AvxVnnix16};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Lanes;
    use std::arch::x86_64::*;

    /// One intrinsic, or a few in each other.
    macro_rules! x86 {
        ($e:expr) => {
            // SAFETY: the promise of `Lanes`: `packed_dispatch!` has found the instructions. Loads and stores need no
            // alignment, and their memory is the caller's promise.
            unsafe { $e }
        };
    }

    /// Needs AVX-512 F, BW and VNNI.
    #[derive(Clone, Copy)]
    pub struct Avx512x16(__m512i);

    impl Avx512x16 {
        #[inline(always)]
        fn floats(self) -> __m512 {
            x86!(_mm512_castsi512_ps(self.0))
        }

        #[inline(always)]
        fn of(floats: __m512) -> Self {
            x86!(Self(_mm512_castps_si512(floats)))
        }
    }

    // SAFETY: every method is inlined.
    unsafe impl Lanes for Avx512x16 {
        const MANY: bool = true;
        #[inline(always)]
        fn zero() -> Self {
            x86!(Self(_mm512_setzero_si512()))
        }
        #[inline(always)]
        fn splat(x: f32) -> Self {
            Self::of(x86!(_mm512_set1_ps(x)))
        }
        #[inline(always)]
        unsafe fn load(from: *const u8) -> Self {
            x86!(Self(_mm512_loadu_si512(from.cast())))
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            x86!(_mm512_storeu_ps(to, self.floats()));
        }
        #[inline(always)]
        unsafe fn load_f16(from: *const u8) -> Self {
            Self::of(x86!(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))))
        }
        #[inline(always)]
        unsafe fn load_bf16(from: *const u8) -> Self {
            x86!(Self(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast())))))
        }
        #[inline(always)]
        unsafe fn load_i8(from: *const i8) -> Self {
            Self::of(x86!(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())))))
        }
        #[inline(always)]
        fn field<const SHIFT: i32>(self, mask: u8) -> Self {
            let mask = x86!(_mm512_set1_epi8(mask as i8));
            if SHIFT == 0 {
                return x86!(Self(_mm512_and_si512(self.0, mask)));
            }
            x86!(Self(_mm512_and_si512(_mm512_srl_epi32(self.0, _mm_cvtsi32_si128(SHIFT)), mask)))
        }
        #[inline(always)]
        fn join<const SHIFT: i32>(self, high: Self) -> Self {
            x86!(Self(_mm512_or_si512(self.0, _mm512_sll_epi32(high.0, _mm_cvtsi32_si128(SHIFT)))))
        }
        #[inline(always)]
        fn dot(self, weights: Self, x: i32) -> Self {
            x86!(Self(_mm512_dpbusd_epi32(self.0, weights.0, _mm512_set1_epi32(x))))
        }
        #[inline(always)]
        fn to_floats(self) -> Self {
            Self::of(x86!(_mm512_cvtepi32_ps(self.0)))
        }
        #[inline(always)]
        fn bits<const SHIFT: i32>(self, mask: i32) -> Self {
            let shifted = x86!(_mm512_srl_epi32(self.0, _mm_cvtsi32_si128(SHIFT)));
            if mask == 15 {
                // A table is quicker than to convert. It looks at the low four bits only.
                let table = x86!(_mm512_setr_ps(
                    0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0
                ));
                return Self::of(x86!(_mm512_permutexvar_ps(shifted, table)));
            }
            Self(x86!(_mm512_and_si512(shifted, _mm512_set1_epi32(mask)))).to_floats()
        }
        #[inline(always)]
        fn add(self, other: Self) -> Self {
            Self::of(x86!(_mm512_add_ps(self.floats(), other.floats())))
        }
        #[inline(always)]
        fn mul(self, other: Self) -> Self {
            Self::of(x86!(_mm512_mul_ps(self.floats(), other.floats())))
        }
        #[inline(always)]
        fn mul_add(self, a: Self, b: Self) -> Self {
            Self::of(x86!(_mm512_fmadd_ps(self.floats(), a.floats(), b.floats())))
        }
        #[inline(always)]
        fn prefetch(address: *const u8) {
            x86!(_mm_prefetch::<_MM_HINT_T0>(address.cast()));
        }
    }

    /// Two registers of 256 bits, with `$dot` for four products in each lane of one.
    macro_rules! two_registers {
        ($(#[$about:meta])* $name:ident, $dot:ident $(, $more:item)*) => {
            $(#[$about])*
            #[derive(Clone, Copy)]
            pub struct $name(__m256i, __m256i);

            impl $name {
                #[inline(always)]
                fn floats(self) -> (__m256, __m256) {
                    x86!((_mm256_castsi256_ps(self.0), _mm256_castsi256_ps(self.1)))
                }

                #[inline(always)]
                fn of(low: __m256, high: __m256) -> Self {
                    x86!(Self(_mm256_castps_si256(low), _mm256_castps_si256(high)))
                }
            }

            // SAFETY: every method is inlined.
            unsafe impl Lanes for $name {
                #[inline(always)]
                fn zero() -> Self {
                    x86!(Self(_mm256_setzero_si256(), _mm256_setzero_si256()))
                }
                #[inline(always)]
                fn splat(x: f32) -> Self {
                    let x = x86!(_mm256_set1_ps(x));
                    Self::of(x, x)
                }
                #[inline(always)]
                unsafe fn load(from: *const u8) -> Self {
                    x86!(Self(_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())))
                }
                #[inline(always)]
                unsafe fn store(self, to: *mut f32) {
                    let (low, high) = self.floats();
                    x86!({
                        _mm256_storeu_ps(to, low);
                        _mm256_storeu_ps(to.add(8), high);
                    });
                }
                #[inline(always)]
                unsafe fn load_f16(from: *const u8) -> Self {
                    x86!(Self::of(
                        _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                        _mm256_cvtph_ps(_mm_loadu_si128(from.add(16).cast())),
                    ))
                }
                #[inline(always)]
                unsafe fn load_bf16(from: *const u8) -> Self {
                    x86!(Self(
                        _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()))),
                        _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(16).cast()))),
                    ))
                }
                #[inline(always)]
                unsafe fn load_i8(from: *const i8) -> Self {
                    x86!(Self::of(
                        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))),
                        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.add(8).cast()))),
                    ))
                }
                #[inline(always)]
                fn field<const SHIFT: i32>(self, mask: u8) -> Self {
                    let mask = x86!(_mm256_set1_epi8(mask as i8));
                    if SHIFT == 0 {
                        return x86!(Self(_mm256_and_si256(self.0, mask), _mm256_and_si256(self.1, mask)));
                    }
                    let count = x86!(_mm_cvtsi32_si128(SHIFT));
                    x86!(Self(
                        _mm256_and_si256(_mm256_srl_epi32(self.0, count), mask),
                        _mm256_and_si256(_mm256_srl_epi32(self.1, count), mask),
                    ))
                }
                #[inline(always)]
                fn join<const SHIFT: i32>(self, high: Self) -> Self {
                    let count = x86!(_mm_cvtsi32_si128(SHIFT));
                    x86!(Self(
                        _mm256_or_si256(self.0, _mm256_sll_epi32(high.0, count)),
                        _mm256_or_si256(self.1, _mm256_sll_epi32(high.1, count)),
                    ))
                }
                #[inline(always)]
                fn dot(self, weights: Self, x: i32) -> Self {
                    let x = x86!(_mm256_set1_epi32(x));
                    x86!(Self($dot(self.0, weights.0, x), $dot(self.1, weights.1, x)))
                }
                #[inline(always)]
                fn to_floats(self) -> Self {
                    x86!(Self::of(_mm256_cvtepi32_ps(self.0), _mm256_cvtepi32_ps(self.1)))
                }
                #[inline(always)]
                fn bits<const SHIFT: i32>(self, mask: i32) -> Self {
                    let (count, mask) = x86!((_mm_cvtsi32_si128(SHIFT), _mm256_set1_epi32(mask)));
                    x86!(Self(
                        _mm256_and_si256(_mm256_srl_epi32(self.0, count), mask),
                        _mm256_and_si256(_mm256_srl_epi32(self.1, count), mask),
                    ))
                    .to_floats()
                }
                #[inline(always)]
                fn add(self, other: Self) -> Self {
                    let ((a, b), (c, d)) = (self.floats(), other.floats());
                    x86!(Self::of(_mm256_add_ps(a, c), _mm256_add_ps(b, d)))
                }
                #[inline(always)]
                fn mul(self, other: Self) -> Self {
                    let ((a, b), (c, d)) = (self.floats(), other.floats());
                    x86!(Self::of(_mm256_mul_ps(a, c), _mm256_mul_ps(b, d)))
                }
                #[inline(always)]
                fn mul_add(self, a: Self, b: Self) -> Self {
                    let ((x, y), (a, c), (b, d)) = (self.floats(), a.floats(), b.floats());
                    x86!(Self::of(_mm256_fmadd_ps(x, a, b), _mm256_fmadd_ps(y, c, d)))
                }
                #[inline(always)]
                fn prefetch(address: *const u8) {
                    x86!(_mm_prefetch::<_MM_HINT_T0>(address.cast()));
                }
                $($more)*
            }
        };
    }

    two_registers! {
        /// Needs AVX2, FMA, F16C and AVX-VNNI.
        AvxVnnix16, _mm256_dpbusd_avx_epi32
    }
    two_registers! {
        /// Needs AVX2, FMA and F16C.
        Avx2x16, four_products,
        const PAIRS: bool = true;,
        #[inline(always)]
        fn dot_low(self, weights: Self, x: i32) -> Self {
            let x = x86!(_mm256_set1_epi32(x));
            x86!(Self(four_low_products(self.0, weights.0, x), four_low_products(self.1, weights.1, x)))
        },
        #[inline(always)]
        unsafe fn pairs<const PLANES: usize>(planes: *const i32) -> [i32; 16] {
            let mut pairs = [0; 16];
            x86!({
                // In 16 bits the bytes of the last plane, the signed one, are worth themselves, or 128 times that.
                let last = _mm256_loadu_si256(planes.add(8 * (PLANES - 1)).cast());
                let (mut even, mut odd) = (_mm256_slli_epi16::<8>(last), _mm256_and_si256(last, _mm256_set1_epi16(!0xff)));
                if PLANES == 2 {
                    let first = _mm256_loadu_si256(planes.cast());
                    let low = _mm256_and_si256(first, _mm256_set1_epi16(0xff));
                    even = _mm256_add_epi16(_mm256_srai_epi16::<1>(even), low);
                    odd = _mm256_add_epi16(_mm256_srai_epi16::<1>(odd), _mm256_srli_epi16::<8>(first));
                } else {
                    (even, odd) = (_mm256_srai_epi16::<8>(even), _mm256_srai_epi16::<8>(odd));
                }
                _mm256_storeu_si256(pairs.as_mut_ptr().cast(), even);
                _mm256_storeu_si256(pairs.as_mut_ptr().add(8).cast(), odd);
            });
            pairs
        },
        #[inline(always)]
        fn dot_pairs(self, weights: Self, even: i32, odd: i32) -> Self {
            x86!({
                let (even, odd) = (_mm256_set1_epi32(even), _mm256_set1_epi32(odd));
                Self(four_pair_products(self.0, weights.0, even, odd), four_pair_products(self.1, weights.1, even, odd))
            })
        }
    }

    /// Adds four products of weights below 128 with signed bytes to each lane.
    #[inline(always)]
    unsafe fn four_low_products(sum: __m256i, weights: __m256i, x: __m256i) -> __m256i {
        x86!(_mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(weights, x), _mm256_set1_epi16(1))))
    }

    /// Adds four products of unsigned bytes with numbers of 16 bits to each lane.
    #[inline(always)]
    unsafe fn four_pair_products(sum: __m256i, weights: __m256i, even: __m256i, odd: __m256i) -> __m256i {
        x86!({
            let first = _mm256_madd_epi16(_mm256_and_si256(weights, _mm256_set1_epi16(0xff)), even);
            let second = _mm256_madd_epi16(_mm256_srli_epi16::<8>(weights), odd);
            _mm256_add_epi32(sum, _mm256_add_epi32(first, second))
        })
    }

    /// Adds four products of unsigned with signed bytes to each lane. The sum of two products of bytes of any size does
    /// not fit 16 bits, so the weights' lowest bits are multiplied apart.
    #[inline(always)]
    unsafe fn four_products(sum: __m256i, weights: __m256i, x: __m256i) -> __m256i {
        x86!({
            let high = _mm256_and_si256(_mm256_srli_epi16::<1>(weights), _mm256_set1_epi8(0x7f));
            let low = _mm256_and_si256(weights, _mm256_set1_epi8(1));
            let high = _mm256_madd_epi16(_mm256_maddubs_epi16(high, x), _mm256_set1_epi16(2));
            let low = _mm256_madd_epi16(_mm256_maddubs_epi16(low, x), _mm256_set1_epi16(1));
            _mm256_add_epi32(sum, _mm256_add_epi32(high, low))
        })
    }
}

#[cfg(target_arch = "aarch64")]
pub use arm::{NeonDotx16, NeonI8mmx16, Neonx16};

#[cfg(target_arch = "aarch64")]
mod arm {
    use super::Lanes;
    use std::arch::aarch64::*;
    use std::arch::asm;

    macro_rules! neon {
        ($e:expr) => {
            // SAFETY: NEON is part of the target, and what is more `packed_dispatch!` has found. Memory is the caller's
            // promise.
            unsafe { $e }
        };
    }

    /// Four registers of 128 bits, with `$dot` for four products in each lane of one.
    macro_rules! four_registers {
        ($(#[$about:meta])* $name:ident, $dot:ident) => {
            $(#[$about])*
            #[derive(Clone, Copy)]
            pub struct $name([uint32x4_t; 4]);

            impl $name {
                #[inline(always)]
                fn floats(self) -> [float32x4_t; 4] {
                    neon!([
                        vreinterpretq_f32_u32(self.0[0]),
                        vreinterpretq_f32_u32(self.0[1]),
                        vreinterpretq_f32_u32(self.0[2]),
                        vreinterpretq_f32_u32(self.0[3]),
                    ])
                }

                #[inline(always)]
                fn of(f: [float32x4_t; 4]) -> Self {
                    neon!(Self([
                        vreinterpretq_u32_f32(f[0]),
                        vreinterpretq_u32_f32(f[1]),
                        vreinterpretq_u32_f32(f[2]),
                        vreinterpretq_u32_f32(f[3]),
                    ]))
                }
            }

            // SAFETY: no instructions beyond those that were found.
            unsafe impl Lanes for $name {
                #[inline(always)]
                fn zero() -> Self {
                    neon!(Self([vdupq_n_u32(0); 4]))
                }
                #[inline(always)]
                fn splat(x: f32) -> Self {
                    neon!(Self::of([vdupq_n_f32(x); 4]))
                }
                #[inline(always)]
                unsafe fn load(from: *const u8) -> Self {
                    let mut out = Self::zero();
                    for j in 0..4 {
                        out.0[j] = neon!(vreinterpretq_u32_u8(vld1q_u8(from.add(16 * j))));
                    }
                    out
                }
                #[inline(always)]
                unsafe fn store(self, to: *mut f32) {
                    let floats = self.floats();
                    for j in 0..4 {
                        neon!(vst1q_f32(to.add(4 * j), floats[j]));
                    }
                }
                #[inline(always)]
                unsafe fn load_f16(from: *const u8) -> Self {
                    let mut out = Self::zero();
                    for j in 0..4 {
                        let half = neon!(vld1_u8(from.add(8 * j)));
                        let wide: float32x4_t;
                        // SAFETY: the instruction is part of every aarch64; it reads and writes these registers only.
                        unsafe {
                            asm!(
                                "fcvtl {wide:v}.4s, {half:v}.4h",
                                wide = out(vreg) wide,
                                half = in(vreg) half,
                                options(pure, nomem, nostack, preserves_flags),
                            );
                        }
                        out.0[j] = neon!(vreinterpretq_u32_f32(wide));
                    }
                    out
                }
                #[inline(always)]
                unsafe fn load_bf16(from: *const u8) -> Self {
                    let mut out = Self::zero();
                    for j in 0..4 {
                        let half = neon!(vreinterpret_u16_u8(vld1_u8(from.add(8 * j))));
                        out.0[j] = neon!(vshll_n_u16::<16>(half));
                    }
                    out
                }
                #[inline(always)]
                unsafe fn load_i8(from: *const i8) -> Self {
                    let bytes = neon!(vld1q_s8(from));
                    let (low, high) = neon!((vmovl_s8(vget_low_s8(bytes)), vmovl_s8(vget_high_s8(bytes))));
                    neon!(Self::of([
                        vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))),
                        vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
                        vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
                        vcvtq_f32_s32(vmovl_s16(vget_high_s16(high))),
                    ]))
                }
                #[inline(always)]
                fn field<const SHIFT: i32>(self, mask: u8) -> Self {
                    let mut out = self;
                    for j in 0..4 {
                        out.0[j] = neon!({
                            let shifted = vshlq_u32(self.0[j], vdupq_n_s32(-SHIFT));
                            vandq_u32(shifted, vreinterpretq_u32_u8(vdupq_n_u8(mask)))
                        });
                    }
                    out
                }
                #[inline(always)]
                fn join<const SHIFT: i32>(self, high: Self) -> Self {
                    let mut out = self;
                    for j in 0..4 {
                        out.0[j] = neon!(vorrq_u32(self.0[j], vshlq_u32(high.0[j], vdupq_n_s32(SHIFT))));
                    }
                    out
                }
                #[inline(always)]
                fn dot(self, weights: Self, x: i32) -> Self {
                    let mut out = self;
                    let x = neon!(vreinterpretq_s8_s32(vdupq_n_s32(x)));
                    for j in 0..4 {
                        out.0[j] = $dot(self.0[j], weights.0[j], x);
                    }
                    out
                }
                #[inline(always)]
                fn to_floats(self) -> Self {
                    let mut out = self;
                    for j in 0..4 {
                        out.0[j] = neon!(vreinterpretq_u32_f32(vcvtq_f32_s32(vreinterpretq_s32_u32(self.0[j]))));
                    }
                    out
                }
                #[inline(always)]
                fn bits<const SHIFT: i32>(self, mask: i32) -> Self {
                    let mut out = self;
                    for j in 0..4 {
                        out.0[j] = neon!({
                            let shifted = vshlq_u32(self.0[j], vdupq_n_s32(-SHIFT));
                            vreinterpretq_u32_f32(vcvtq_f32_u32(vandq_u32(shifted, vdupq_n_u32(mask as u32))))
                        });
                    }
                    out
                }
                #[inline(always)]
                fn add(self, other: Self) -> Self {
                    let (mut a, b) = (self.floats(), other.floats());
                    for j in 0..4 {
                        a[j] = neon!(vaddq_f32(a[j], b[j]));
                    }
                    Self::of(a)
                }
                #[inline(always)]
                fn mul(self, other: Self) -> Self {
                    let (mut a, b) = (self.floats(), other.floats());
                    for j in 0..4 {
                        a[j] = neon!(vmulq_f32(a[j], b[j]));
                    }
                    Self::of(a)
                }
                #[inline(always)]
                fn mul_add(self, a: Self, b: Self) -> Self {
                    let (x, a, mut b) = (self.floats(), a.floats(), b.floats());
                    for j in 0..4 {
                        b[j] = neon!(vfmaq_f32(b[j], x[j], a[j]));
                    }
                    Self::of(b)
                }
            }
        };
    }

    four_registers! {
        /// Needs i8mm.
        NeonI8mmx16, mixed_products
    }
    four_registers! {
        /// Needs the dot products.
        NeonDotx16, signed_products
    }
    four_registers! {
        /// Every aarch64 processor has it.
        Neonx16, widened_products
    }

    /// Adds four products of unsigned with signed bytes to each lane.
    #[inline(always)]
    fn mixed_products(sum: uint32x4_t, weights: uint32x4_t, x: int8x16_t) -> uint32x4_t {
        let mut sum = sum;
        // SAFETY: `packed_dispatch!` has found the instruction; it reads and writes these registers only.
        unsafe {
            asm!(
                ".arch_extension i8mm",
                "usdot {sum:v}.4s, {weights:v}.16b, {x:v}.16b",
                sum = inout(vreg) sum,
                weights = in(vreg) weights,
                x = in(vreg) x,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sum
    }

    /// The same with products of signed bytes alone. The highest bit of the weights, which a signed byte does not have, is
    /// multiplied apart, and counts 128.
    #[inline(always)]
    fn signed_products(sum: uint32x4_t, weights: uint32x4_t, x: int8x16_t) -> uint32x4_t {
        let mut sum = sum;
        let (low, high) = neon!({
            let weights = vreinterpretq_u8_u32(weights);
            (vandq_u8(weights, vdupq_n_u8(0x7f)), vshrq_n_u8::<7>(weights))
        });
        let mut upper = neon!(vdupq_n_u32(0));
        // SAFETY: `packed_dispatch!` has found the instruction; it reads and writes these registers only.
        unsafe {
            asm!(
                ".arch_extension dotprod",
                "sdot {sum:v}.4s, {low:v}.16b, {x:v}.16b",
                "sdot {upper:v}.4s, {high:v}.16b, {x:v}.16b",
                sum = inout(vreg) sum,
                upper = inout(vreg) upper,
                low = in(vreg) low,
                high = in(vreg) high,
                x = in(vreg) x,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        neon!(vaddq_u32(sum, vshlq_n_u32::<7>(upper)))
    }

    /// The same with products of 16 bits.
    #[inline(always)]
    fn widened_products(sum: uint32x4_t, weights: uint32x4_t, x: int8x16_t) -> uint32x4_t {
        neon!({
            let weights = vreinterpretq_u8_u32(weights);
            let low = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(weights)));
            let high = vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(weights)));
            let (x_low, x_high) = (vmovl_s8(vget_low_s8(x)), vmovl_s8(vget_high_s8(x)));
            // Four products of each lane, in pairs.
            let first = vpaddq_s32(
                vmull_s16(vget_low_s16(low), vget_low_s16(x_low)),
                vmull_s16(vget_high_s16(low), vget_high_s16(x_low)),
            );
            let second = vpaddq_s32(
                vmull_s16(vget_low_s16(high), vget_low_s16(x_high)),
                vmull_s16(vget_high_s16(high), vget_high_s16(x_high)),
            );
            vaddq_u32(sum, vreinterpretq_u32_s32(vpaddq_s32(first, second)))
        })
    }
}

/// Runs a kernel `fn kernel<L: Lanes>(args)` compiled for the instructions `$dot`, which must be available.
macro_rules! packed_dispatch {
    ($dot:expr, $kernel:ident($($arg:ident: $ty:ty),* $(,)?)) => {{
        use $crate::lanes::Dot;
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma,f16c")]
        fn avx512_vnni($($arg: $ty),*) {
            $kernel::<$crate::lanes::Avx512x16>($($arg),*)
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
        fn avx_vnni($($arg: $ty),*) {
            $kernel::<$crate::lanes::AvxVnnix16>($($arg),*)
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn avx2($($arg: $ty),*) {
            $kernel::<$crate::lanes::Avx2x16>($($arg),*)
        }
        match $dot {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the machine has it: it is one of `Dot::available`.
            Dot::Avx512Vnni => unsafe { avx512_vnni($($arg),*) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Dot::AvxVnni => unsafe { avx_vnni($($arg),*) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Dot::Avx2 => unsafe { avx2($($arg),*) },
            #[cfg(target_arch = "aarch64")]
            Dot::NeonI8mm => $kernel::<$crate::lanes::NeonI8mmx16>($($arg),*),
            #[cfg(target_arch = "aarch64")]
            Dot::NeonDot => $kernel::<$crate::lanes::NeonDotx16>($($arg),*),
            #[cfg(target_arch = "aarch64")]
            Dot::Neon => $kernel::<$crate::lanes::Neonx16>($($arg),*),
            Dot::Portable => $kernel::<$crate::lanes::Plain16>($($arg),*),
        }
    }};
}
pub(crate) use packed_dispatch;
