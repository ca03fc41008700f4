//! Linear layers, packed or not.

use kernels::{Inputs, Into, Kernels, Matrix, Packed, Precision, Sink, Way};

use crate::error::Result;
use crate::source::{Progress, Source, Stored, read_packed};

/// A matrix `[outputs, inputs]` that rows are multiplied by.
#[derive(Debug)]
pub(crate) enum Linear {
    Packed(Packed),
    Floats(Matrix),
}

impl Linear {
    pub fn load(
        source: &mut Source,
        name: &str,
        outputs: usize,
        inputs: usize,
        kernels: &Kernels,
        progress: Progress<'_>,
    ) -> Result<Self> {
        let stored = source.take(name, outputs, inputs)?;
        Self::read(source, &stored, kernels, progress)
    }

    pub fn read(source: &Source, stored: &Stored, kernels: &Kernels, progress: Progress<'_>) -> Result<Self> {
        if let Some(packing) = stored.packing() {
            return Ok(Self::Packed(read_packed(source, stored, &packing, kernels.pool(), progress)?));
        }
        let mut matrix = Matrix::zeros(stored.columns, stored.rows, None, Precision::Float32);
        for first in (0..stored.rows).step_by(Matrix::PANEL) {
            let rows = Matrix::PANEL.min(stored.rows - first);
            matrix.set_columns(first, 1, &source.rows(stored, first, rows, progress)?);
        }
        Ok(Self::Floats(matrix))
    }

    /// Outputs of a row.
    pub fn outputs(&self) -> usize {
        match self {
            Self::Packed(matrix) => matrix.outputs(),
            Self::Floats(matrix) => matrix.columns(),
        }
    }

    /// Bytes of the weights.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Packed(matrix) => matrix.bytes(),
            Self::Floats(matrix) => matrix.bytes(),
        }
    }
}

/// Multiplies rows of activations with linear layers.
#[derive(Debug)]
pub(crate) struct Products {
    inputs: Inputs,
}

impl Products {
    /// `width` is the largest number of inputs.
    pub fn new(way: Way, rows: usize, width: usize) -> Self {
        Self { inputs: Inputs::with_room(way, rows, width) }
    }

    /// Stores or adds `x`, rows of `k` numbers, times a matrix.
    pub fn apply(&mut self, kernels: &Kernels, linear: &Linear, x: &[f32], k: usize, out: Into<'_>) {
        match linear {
            Linear::Packed(matrix) => {
                kernels.round(&mut self.inputs, x, k);
                kernels.packed_product(matrix, &self.inputs, out);
            }
            Linear::Floats(matrix) => {
                let sink = match out {
                    Into::Store(out) => Sink::Store(out),
                    Into::Add(out) => Sink::Add(out),
                };
                kernels.product(x, k, x.len() / k, matrix, sink);
            }
        }
    }
}
