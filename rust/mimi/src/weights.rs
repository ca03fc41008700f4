//! What the layers take their weights from while a model is built.
//!
//! The layers are built twice by the same code. The first time, over [`Weights::plan`], only names and shapes are
//! noted; the file is checked against these before any of its data is read. The second time they are read and packed.

use std::collections::BTreeMap;

use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::kernels::Matrix;

pub(crate) enum Weights<'a> {
    /// Notes the names and shapes asked for.
    Plan(BTreeMap<String, Vec<usize>>),
    /// Reads them.
    Read(&'a Checkpoint),
}

impl Weights<'_> {
    pub fn plan() -> Self {
        Self::Plan(BTreeMap::new())
    }

    /// A tensor's values, row-major; nothing while planning.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        match self {
            Self::Plan(expected) => {
                expected.insert(name.to_owned(), shape.to_vec());
                Ok(Vec::new())
            }
            Self::Read(checkpoint) => checkpoint.read(name),
        }
    }

    /// Expects a tensor without reading it.
    pub fn expect(&mut self, name: &str, shape: &[usize]) {
        if let Self::Plan(expected) = self {
            expected.insert(name.to_owned(), shape.to_vec());
        }
    }

    pub fn planning(&self) -> bool {
        matches!(self, Self::Plan(_))
    }

    /// [`Matrix::pack`], or an empty matrix while planning.
    pub fn pack(
        &self,
        k: usize,
        n: usize,
        bias: Option<&[f32]>,
        weight: impl Fn(usize, usize) -> f32 + Sync,
    ) -> Matrix {
        if self.planning() { Matrix::pack(0, 1, None, weight) } else { Matrix::pack(k, n, bias, weight) }
    }
}
