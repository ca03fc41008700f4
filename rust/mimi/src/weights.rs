//! What the layers take their weights from while a model is built.
//!
//! The layers are built twice by the same code. The first time, over [`Weights::plan`], only names and shapes are
//! noted; the file is checked against these before any of its data is read. The second time they are read and packed.

use std::collections::BTreeMap;

use checkpoint::File;
use kernels::{Matrix, Precision};

use crate::error::Result;
use crate::scratch::sized;

pub(crate) enum Weights<'a> {
    /// Notes the names and shapes asked for.
    Plan(BTreeMap<String, Vec<usize>>),
    /// Reads them; a matrix is packed while it is read, a few columns at a time.
    Read(&'a File, Precision, Vec<f32>),
}

impl<'a> Weights<'a> {
    pub fn plan() -> Self {
        Self::Plan(BTreeMap::new())
    }

    /// `precision` is how matrices are held.
    pub fn read(file: &'a File, precision: Precision) -> Self {
        Self::Read(file, precision, Vec::new())
    }

    /// A tensor's values, row-major; nothing while planning.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        match self {
            Self::Plan(_) => {
                self.expect(name, shape);
                Ok(Vec::new())
            }
            Self::Read(file, ..) => Ok(file.read(name)?),
        }
    }

    /// Expects a tensor without reading it.
    pub fn expect(&mut self, name: &str, shape: &[usize]) {
        if let Self::Plan(expected) = self {
            expected.insert(name.to_owned(), shape.to_vec());
        }
    }

    /// The matrix of a tensor `[outputs, inputs]` or `[outputs, inputs, taps]`: its column j is output j, multiplied by
    /// `scale[j]`, and its row `tap · inputs + i` is input i of that tap. An empty matrix while planning.
    pub fn matrix(
        &mut self,
        name: &str,
        shape: &[usize],
        bias: Option<&[f32]>,
        scale: Option<&[f32]>,
    ) -> Result<Matrix> {
        self.expect(name, shape);
        let Self::Read(file, precision, scratch) = self else { return Ok(empty()) };
        let (outputs, taps) = (shape[0], shape.get(2).copied().unwrap_or(1));
        let k = shape[1] * taps;
        let mut matrix = Matrix::zeros(k, outputs, bias, *precision);
        let mut values = file.values(name)?;
        for first in (0..outputs).step_by(Matrix::PANEL) {
            let columns = sized(scratch, Matrix::PANEL.min(outputs - first) * k);
            values.read(columns)?;
            matrix.set_columns(first, taps, columns);
        }
        if let Some(scale) = scale {
            matrix.multiply_columns(scale);
        }
        Ok(matrix)
    }

    /// The matrix of a transposed convolution's tensor `[inputs, outputs, 2 · stride]`: its column `j · outputs + o` is
    /// step j of output o. The older step of the window, rows 0 to inputs, meets the kernel's second half, the present one
    /// its first. An empty matrix while planning.
    pub fn transposed(&mut self, name: &str, [inputs, outputs, stride]: [usize; 3], bias: &[f32]) -> Result<Matrix> {
        let kernel = 2 * stride;
        self.expect(name, &[inputs, outputs, kernel]);
        let Self::Read(file, precision, scratch) = self else { return Ok(empty()) };
        let mut matrix = Matrix::zeros(2 * inputs, stride * outputs, Some(bias), *precision);
        let row = sized(scratch, outputs * kernel);
        if matrix.is_scaled() {
            let (mut most, mut values) = (vec![0.0f32; outputs * kernel], file.values(name)?);
            for _ in 0..inputs {
                values.read(row)?;
                most.iter_mut().zip(&*row).for_each(|(most, value)| *most = most.max(value.abs()));
            }
            for (o, most) in most.chunks_exact(kernel).enumerate() {
                for j in 0..stride {
                    matrix.scale_column(j * outputs + o, most[j].max(most[stride + j]));
                }
            }
        }
        let mut values = file.values(name)?;
        for i in 0..inputs {
            values.read(row)?;
            for j in 0..stride {
                matrix.set_part_of_row(i, j * outputs, kernel, stride + j, row);
                matrix.set_part_of_row(inputs + i, j * outputs, kernel, j, row);
            }
        }
        Ok(matrix)
    }

    /// [`Matrix::pack`], or an empty matrix while planning.
    pub fn pack(&self, k: usize, n: usize, weight: impl Fn(usize, usize) -> f32) -> Matrix {
        match self {
            Self::Plan(_) => empty(),
            Self::Read(_, precision, _) => Matrix::pack(k, n, None, *precision, weight),
        }
    }
}

fn empty() -> Matrix {
    Matrix::zeros(0, 1, None, Precision::Float32)
}
