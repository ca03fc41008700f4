//! Linear layers, packed or not.

use kernels::{Inputs, Into, Kernels, Packed, Way, Wide};

use crate::error::Result;
use crate::source::{Progress, Source, Stored, read_packed};

/// A matrix `[outputs, inputs]` that rows are multiplied by.
#[derive(Debug)]
pub(crate) enum Linear {
    Packed(Packed),
    Floats(Wide),
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
        let mut matrix = Wide::zeros(stored.rows, stored.columns, stored.weight_float()?);
        matrix.fill(kernels.pool(), |first, rows| source.plain(stored, first, rows, progress))?;
        Ok(Self::Floats(matrix))
    }

    /// Outputs of a row.
    pub fn outputs(&self) -> usize {
        match self {
            Self::Packed(matrix) => matrix.outputs(),
            Self::Floats(matrix) => matrix.outputs(),
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

    /// Stores or adds rows `x` times a matrix.
    pub fn apply(&mut self, kernels: &Kernels, linear: &Linear, x: &[f32], out: Into<'_>) {
        match linear {
            Linear::Packed(matrix) => {
                kernels.round(&mut self.inputs, x, matrix);
                kernels.packed_product(matrix, &self.inputs, out);
            }
            Linear::Floats(matrix) => kernels.wide_product(matrix, x, out),
        }
    }
}
