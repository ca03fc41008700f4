//! Tables of rows that tokens are looked up in.

use std::sync::{Mutex, PoisonError};

use kernels::{Aligned, Float, Into, Kernels, Pool, number};

use crate::error::{Error, Result};
use crate::linear::{Linear, Products};
use crate::source::{Progress, Source};

/// Rows `[rows, width]`, as the file holds them.
#[derive(Debug)]
struct Table {
    rows: usize,
    width: usize,
    float: Float,
    /// Floats, or packed numbers.
    numbers: Aligned<u8>,
    packing: Option<TablePacking>,
}

#[derive(Debug)]
struct TablePacking {
    bits: usize,
    group: usize,
    scales: Aligned<u8>,
    biases: Aligned<u8>,
}

/// Rows that are read at a time.
const PIECE: usize = 256;

impl Table {
    fn load(
        source: &mut Source,
        name: &str,
        rows: usize,
        width: usize,
        pool: &Pool,
        progress: Progress<'_>,
    ) -> Result<Self> {
        let stored = source.take(name, rows, width)?;
        let (float, words, numbers) = match stored.packing() {
            Some(packing) => (stored.scales_float()?, width * packing.bits / 8, width / packing.group),
            None => (stored.weight_float()?, width * stored.weight_float()?.size(), 0),
        };
        let empty = |row: usize| Aligned::beside(rows * row);
        let parts = [empty(words), empty(numbers * float.size()), empty(numbers * float.size())];
        let (source, filled, failed) = (&*source, Mutex::new(parts), Mutex::new(None));
        pool.run(rows.div_ceil(PIECE), &|piece| {
            let first = piece * PIECE;
            let count = PIECE.min(rows - first);
            let read = match stored.packing() {
                Some(packing) => source.packed(&stored, &packing, first, count, progress),
                None => source.plain(&stored, first, count, progress).map(|words| [words, Vec::new(), Vec::new()]),
            };
            match read {
                Ok(read) => {
                    let mut filled = filled.lock().unwrap_or_else(PoisonError::into_inner);
                    for (to, from) in filled.iter_mut().zip(read) {
                        to[first * (from.len() / count)..][..from.len()].copy_from_slice(&from);
                    }
                }
                Err(error) => drop(failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error)),
            }
        });
        if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        let [numbers, scales, biases] = filled.into_inner().unwrap_or_else(PoisonError::into_inner);
        let packing = stored.packing().map(|p| TablePacking { bits: p.bits, group: p.group, scales, biases });
        Ok(Self { rows, width, float, numbers, packing })
    }

    fn bytes(&self) -> usize {
        self.numbers.len() + self.packing.as_ref().map_or(0, |p| p.scales.len() + p.biases.len())
    }

    /// Puts row `other` in the place of row `row`.
    fn replace(&mut self, row: usize, other: usize) {
        let copy = |bytes: &mut Aligned<u8>| {
            let size = bytes.len() / self.rows;
            bytes.copy_within(other * size..(other + 1) * size, row * size);
        };
        copy(&mut self.numbers);
        if let Some(packing) = &mut self.packing {
            copy(&mut packing.scales);
            copy(&mut packing.biases);
        }
    }

    /// Calls `take` with each number of a row.
    fn each(&self, row: usize, mut take: impl FnMut(usize, f32)) {
        let Some(packing) = &self.packing else {
            let size = self.float.size();
            let numbers = &self.numbers[row * self.width * size..][..self.width * size];
            numbers.chunks_exact(size).enumerate().for_each(|(i, bytes)| take(i, self.float.decode_one(bytes)));
            return;
        };
        let (groups, size) = (self.width / packing.group, self.float.size());
        let words = &self.numbers[row * self.width * packing.bits / 8..];
        for g in 0..groups {
            let at = (row * groups + g) * size;
            let scale = self.float.decode_one(&packing.scales[at..at + size]);
            let bias = self.float.decode_one(&packing.biases[at..at + size]);
            let mut one = |i: usize, n: u32| take(i, scale * n as f32 + bias);
            let numbers = g * packing.group..(g + 1) * packing.group;
            match packing.bits {
                8 => numbers.clone().zip(&words[numbers]).for_each(|(i, byte)| one(i, u32::from(*byte))),
                4 => numbers.clone().step_by(2).zip(&words[numbers.start / 2..]).for_each(|(i, byte)| {
                    one(i, u32::from(byte & 15));
                    one(i + 1, u32::from(byte >> 4));
                }),
                bits => numbers.for_each(|i| one(i, number(words, i, bits))),
            }
        }
    }
}

/// An embedding: a table; short rows that a matrix makes longer; or two tokens in one number, each with its matrix.
#[derive(Debug)]
pub(crate) enum Embedding {
    Rows(EmbeddingTable),
    LowRank(EmbeddingTable, Linear),
    Demuxed(EmbeddingTable, Linear, Linear),
}

/// The table of an embedding.
#[derive(Debug)]
pub(crate) struct EmbeddingTable(Table);

impl Embedding {
    /// Loads `name`. `rank` is the width of short rows; `demuxed`: two tokens are in one number.
    #[allow(clippy::too_many_arguments)]
    pub fn load(
        source: &mut Source,
        name: &str,
        rows: usize,
        width: usize,
        rank: Option<usize>,
        demuxed: bool,
        kernels: &Kernels,
        progress: Progress<'_>,
    ) -> Result<Self> {
        let short = rank.unwrap_or(width);
        if demuxed {
            let mut linear =
                |part: &str| Linear::load(source, &format!("{name}.{part}"), width, short, kernels, progress);
            let (first, second) = (linear("out1")?, linear("out2")?);
            if rank.is_some() {
                source.take(&format!("{name}.low_rank"), width, short)?; // it is there, and nothing uses it
            }
            let table = Table::load(source, name, rows, short, kernels.pool(), progress)?;
            return Ok(Self::Demuxed(EmbeddingTable(table), first, second));
        }
        let table = EmbeddingTable(Table::load(source, name, rows, short, kernels.pool(), progress)?);
        if rank.is_none() {
            return Ok(Self::Rows(table));
        }
        let linear = Linear::load(source, &format!("{name}.low_rank"), width, short, kernels, progress)?;
        Ok(Self::LowRank(table, linear))
    }

    /// Puts rows of the table in the place of others.
    pub fn replace(&mut self, rows: &[(usize, usize)]) -> Result<()> {
        let (Self::Rows(table) | Self::LowRank(table, _) | Self::Demuxed(table, ..)) = self;
        for (row, other) in rows {
            if *row.max(other) >= table.0.rows {
                return Err(Error::Config(format!("its text has no token {}", row.max(other))));
            }
            table.0.replace(*row, *other);
        }
        Ok(())
    }

    /// The bytes of its weights.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Rows(table) => table.0.bytes(),
            Self::LowRank(table, linear) => table.0.bytes() + linear.bytes(),
            Self::Demuxed(table, first, second) => table.0.bytes() + first.bytes() + second.bytes(),
        }
    }

    /// The bytes that a step reads: a row, or two, and what makes them longer.
    pub fn step_bytes(&self) -> usize {
        let row = |table: &EmbeddingTable| table.0.bytes() / table.0.rows;
        match self {
            Self::Rows(table) => row(table),
            Self::LowRank(table, linear) => row(table) + linear.bytes(),
            Self::Demuxed(table, first, second) => 2 * row(table) + first.bytes() + second.bytes(),
        }
    }

    /// Whether a number stands for a row, or for two.
    pub fn knows(&self, token: i32) -> bool {
        let Ok(token) = usize::try_from(token) else { return token == -1 };
        match self {
            Self::Rows(table) | Self::LowRank(table, _) => token < table.0.rows,
            Self::Demuxed(table, ..) => token / table.0.rows <= table.0.rows,
        }
    }

    /// Adds the embedding of a token to `out`; −1 adds nothing. `short` is room for a row of the table.
    pub fn add(&self, kernels: &Kernels, products: &mut Products, token: i32, short: &mut [f32], out: &mut [f32]) {
        let Ok(token) = usize::try_from(token) else { return };
        let mut through = |table: &EmbeddingTable, linear: &Linear, row: usize, out: &mut [f32]| {
            let width = table.0.width;
            table.0.each(row, |i, value| short[i] = value);
            products.apply(kernels, linear, &short[..width], Into::Add(out));
        };
        match self {
            Self::Rows(table) => table.0.each(token, |i, value| out[i] += value),
            Self::LowRank(table, linear) => through(table, linear, token, out),
            Self::Demuxed(table, first, second) => {
                through(table, first, token % table.0.rows, out);
                if let Some(other) = (token / table.0.rows).checked_sub(1) {
                    through(table, second, other, out);
                }
            }
        }
    }
}
