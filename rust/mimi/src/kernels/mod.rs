//! The arithmetic. Every kernel is one generic source, compiled for each instruction set of [`Isa`] and chosen at run
//! time. All `unsafe` of the workspace is in here, each with its reason.
//!
//! Each output number is computed by the same sequence of operations whatever the number of rows in the call or of
//! threads, so a stream cut into other pieces gives the same bits.

mod math;
mod pool;
mod product;
mod rows;

pub(crate) use pool::Pool;
pub(crate) use product::{Activation, Matrix, Sink};

/// An instruction set that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// x86-64 with AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// What every processor of the target has: SSE2 on x86-64, NEON on aarch64.
    Baseline,
}

impl Isa {
    /// All that this machine can run, the fastest first.
    pub fn available() -> Vec<Self> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            all.push(Self::Avx2);
        }
        all.push(Self::Baseline);
        all
    }
}

/// Whether the baseline has a fused multiply-add; where it has not, `f32::mul_add` would be a function call.
const BASELINE_FMA: bool = cfg!(target_arch = "aarch64");

/// Runs a kernel `fn kernel<const FMA: bool>(args)` compiled for the instruction set of `$isa`.
macro_rules! dispatch {
    ($isa:expr, $kernel:ident($($arg:ident: $ty:ty),* $(,)?)) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        fn avx2($($arg: $ty),*) {
            $kernel::<true>($($arg),*)
        }
        match $isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Isa::Avx2` is only made by `Isa::available` after detection (`Kernels::new` checks it again).
            Isa::Avx2 => unsafe { avx2($($arg),*) },
            Isa::Baseline => $kernel::<{ BASELINE_FMA }>($($arg),*),
        }
    }};
}
pub(crate) use dispatch;

/// The chosen instruction set and the threads that share the work.
#[derive(Debug)]
pub(crate) struct Kernels {
    isa: Isa,
    pool: Pool,
}

impl Kernels {
    /// Panics if the machine does not have `isa`.
    pub fn new(isa: Isa, threads: usize) -> Self {
        assert!(Isa::available().contains(&isa), "{isa:?} is not available on this machine");
        Self { isa, pool: Pool::new(threads) }
    }

    pub fn pool(&self) -> &Pool {
        &self.pool
    }
}
