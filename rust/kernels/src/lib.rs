//! The arithmetic of the models, and the threads that share it.
//!
//! Every kernel is one generic source, compiled for each instruction set of [`Isa`] and chosen at run time. The crates
//! that build models on it call the methods of [`Kernels`], and need no `unsafe` of their own: all of it is in here,
//! each with its reason.
//!
//! Each output number is computed by the same sequence of operations whatever the number of rows in the call or of
//! threads, so a stream cut into other pieces gives the same bits. But for the measurement of memory, a
//! call of [`Kernels`] or [`Pool`] allocates nothing and takes no lock.

mod bandwidth;
mod float;
mod half;
mod lanes;
mod math;
mod memory;
mod packed;
mod pool;
mod product;
mod ring;
mod rows;
mod vector;
mod wide;

use std::fmt;

pub use float::{Float, f16_to_f32};
pub use lanes::Dot;
pub use memory::{Aligned, Plain};
pub use packed::{BLOCK, Inputs, Into, Packed, Way, number};
pub use pool::Pool;
pub use product::{Activation, Matrix, Precision, Sink};
pub use ring::{Held, MOST_DIM, Numbers, Ring, RingShape, Slots};
pub use wide::Wide;

/// An instruction set that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// x86-64 with AVX-512 (F, BW, DQ and VL) besides what AVX2 has.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// x86-64 with AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// aarch64, which always has it.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// Plain code for any processor; products are rounded before they are added.
    Portable,
}

impl Isa {
    /// All that this machine can run, the fastest first.
    pub fn available() -> Vec<Self> {
        vec![
            #[cfg(target_arch = "x86_64")]
            Self::Avx512,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2,
            #[cfg(target_arch = "aarch64")]
            Self::Neon,
            Self::Portable,
        ]
        .into_iter()
        .filter(|isa| isa.is_available())
        .collect()
    }

    fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "aarch64")]
            Self::Neon => true,
            Self::Portable => true,
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "AVX-512",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "AVX2",
            #[cfg(target_arch = "aarch64")]
            Self::Neon => "NEON",
            Self::Portable => "portable",
        })
    }
}

/// Runs a kernel `fn kernel<V: Vector>(args)` compiled for the instruction set `$isa`, which must be available.
macro_rules! dispatch {
    ($isa:expr, $kernel:ident($($arg:ident: $ty:ty),* $(,)?)) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        fn avx512($($arg: $ty),*) {
            $kernel::<$crate::vector::Avx512>($($arg),*)
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn avx2($($arg: $ty),*) {
            $kernel::<$crate::vector::Avx2>($($arg),*)
        }
        match $isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the machine has it: `Kernels::new` has checked.
            $crate::Isa::Avx512 => unsafe { avx512($($arg),*) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            $crate::Isa::Avx2 => unsafe { avx2($($arg),*) },
            #[cfg(target_arch = "aarch64")]
            $crate::Isa::Neon => $kernel::<$crate::vector::Neon>($($arg),*),
            $crate::Isa::Portable => $kernel::<$crate::vector::Portable>($($arg),*),
        }
    }};
}
pub(crate) use dispatch;

/// The chosen instruction set and the threads that share the work.
#[derive(Debug)]
pub struct Kernels {
    isa: Isa,
    dot: Dot,
    pool: Pool,
}

impl Kernels {
    /// The kernels of `isa` on `threads` threads, the caller's included; on fewer where the system has no more to give.
    ///
    /// # Panics
    /// If the machine does not have `isa`.
    pub fn new(isa: Isa, threads: usize) -> Self {
        let dot = if isa == Isa::Portable { Dot::Portable } else { Dot::available()[0] };
        Self::with_dot(isa, dot, threads)
    }

    /// The same, with given instructions for products with packed weights and for attention over a ring.
    ///
    /// # Panics
    /// If the machine does not have `isa` or `dot`.
    pub fn with_dot(isa: Isa, dot: Dot, threads: usize) -> Self {
        assert!(isa.is_available(), "{isa:?} is not available on this machine");
        assert!(dot.is_available(), "{dot:?} is not available on this machine");
        Self { isa, dot, pool: Pool::new(threads) }
    }

    /// The threads, for work that is not a method of this.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }
}

/// Seeded numbers in [-1, 1).
#[cfg(test)]
fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..n).map(|_| 2.0 * random.f32() - 1.0).collect()
}
