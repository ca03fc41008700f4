//! Causal convolutions as products over a history buffer.
//!
//! Buffers are time-major, `[steps, channels]`: the window of a kernel is contiguous, and consecutive windows are
//! `stride × channels` apart. A transposed convolution with kernel `2 × stride` is the same thing over windows of two
//! steps: a row of its product is `stride` output steps, each from the step before and the present one. So the sum of
//! overlapping outputs never has to be formed.

use kernels::{Kernels, Matrix, Sink};

use crate::error::Result;
use crate::weights::Weights;

/// The input of a convolution: the last `keep` steps of the stream so far, then the fresh ones.
///
/// State: `rows` is float32 `[keep + fresh, width]`; between steps only the first `keep` rows mean anything.
#[derive(Clone, Debug)]
pub(crate) struct History {
    rows: Vec<f32>,
    width: usize,
    keep: usize,
}

impl History {
    pub fn new(width: usize, keep: usize) -> Self {
        Self { rows: vec![0.0; keep * width], width, keep }
    }

    /// Forgets the stream: what came before it are zeros.
    pub fn reset(&mut self) {
        self.rows[..self.keep * self.width].fill(0.0);
    }

    /// The place for `steps` fresh steps. Allocates only when there were never so many.
    pub fn fresh(&mut self, steps: usize) -> &mut [f32] {
        let size = (self.keep + steps) * self.width;
        if self.rows.len() < size {
            self.rows.resize(size, 0.0);
        }
        &mut self.rows[self.keep * self.width..size]
    }

    /// The kept steps followed by the fresh ones.
    pub fn window(&self) -> &[f32] {
        &self.rows
    }

    /// Makes the kept steps repeat the first fresh one.
    pub fn repeat_first(&mut self) {
        for i in 0..self.keep {
            self.rows.copy_within(self.keep * self.width..(self.keep + 1) * self.width, i * self.width);
        }
    }

    /// Ends a step of `steps` fresh ones: the last `keep` stay.
    pub fn advance(&mut self, steps: usize) {
        self.rows.copy_within(steps * self.width..(steps + self.keep) * self.width, 0);
    }
}

/// A convolution, plain or transposed: per `stride` input steps one row of the product.
#[derive(Debug)]
pub(crate) struct Conv {
    weight: Matrix,
    inputs: usize,
    stride: usize,
    keep: usize,
}

impl Conv {
    /// A convolution of the stored weight `[outputs, inputs, kernel]`.
    pub fn load(
        weights: &mut Weights,
        name: &str,
        [inputs, outputs, kernel, stride]: [usize; 4],
        has_bias: bool,
    ) -> Result<Self> {
        let bias = if has_bias { Some(weights.take(&format!("{name}.bias"), &[outputs])?) } else { None };
        let weight = weights.matrix(&format!("{name}.weight"), &[outputs, inputs, kernel], bias.as_deref(), None)?;
        Ok(Self { weight, inputs, stride, keep: kernel - stride })
    }

    /// A transposed convolution of the stored weight `[inputs, outputs, 2 · stride]`.
    pub fn load_transposed(weights: &mut Weights, name: &str, [inputs, outputs, stride]: [usize; 3]) -> Result<Self> {
        let bias = weights.take(&format!("{name}.bias"), &[outputs])?.repeat(stride);
        let weight = weights.transposed(&format!("{name}.weight"), [inputs, outputs, stride], &bias)?;
        Ok(Self { weight, inputs, stride: 1, keep: 1 })
    }

    /// An empty input for a new stream.
    pub fn history(&self) -> History {
        History::new(self.inputs, self.keep)
    }

    /// Numbers that `steps` fresh input steps give.
    pub fn output_len(&self, steps: usize) -> usize {
        steps / self.stride * self.weight.columns()
    }

    /// Runs over the fresh steps of `input`, a whole number of strides, and then forgets all that no later step needs.
    pub fn run(&self, kernels: &Kernels, input: &mut History, steps: usize, sink: Sink<'_>) {
        kernels.product(input.window(), self.stride * self.inputs, steps / self.stride, &self.weight, sink);
        input.advance(steps);
    }

    /// The same for kernel 1, which has no history.
    pub fn run_pointwise(&self, kernels: &Kernels, input: &[f32], steps: usize, sink: Sink<'_>) {
        debug_assert_eq!(self.keep, 0);
        kernels.product(input, self.inputs, steps, &self.weight, sink);
    }
}

impl Conv {
    /// Input steps per row of the product.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Input channels.
    pub fn inputs(&self) -> usize {
        self.inputs
    }
}
