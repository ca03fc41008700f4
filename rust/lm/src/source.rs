//! Where the weights of a model are: files, places in them, and changes to what is there.
//!
//! How a file names its tensors, and whether they fit a configuration, is decided by whoever makes the [`Source`].

use std::collections::HashMap;

use checkpoint::{Dtype, File, FileId, shown};
use kernels::{Float, Packed, Pool, number};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::sampling::mixed;

/// A tensor `[rows, columns]`, or some rows of one, in a file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    /// How its numbers are stored: F32, F16, BF16, or U32 for packed ones.
    pub dtype: Dtype,
    /// Its rows; a vector has one.
    pub rows: usize,
    #[allow(missing_docs)]
    pub columns: usize,
    /// The byte of the file that it begins at.
    pub begin: u64,
}

impl Place {
    fn row_bytes(&self) -> usize {
        self.columns * if matches!(self.dtype, Dtype::F16 | Dtype::Bf16) { 2 } else { 4 }
    }

    fn row(&self, row: usize) -> u64 {
        self.begin.saturating_add((row * self.row_bytes()) as u64)
    }

    /// Where it ends in the file; none: beyond every file.
    fn end(&self) -> Option<u64> {
        let size = if matches!(self.dtype, Dtype::F16 | Dtype::Bf16) { 2u64 } else { 4 };
        (self.rows as u64).checked_mul(self.columns as u64)?.checked_mul(size)?.checked_add(self.begin)
    }

    fn float(&self) -> Option<Float> {
        match self.dtype {
            Dtype::F32 => Some(Float::F32),
            Dtype::F16 => Some(Float::F16),
            Dtype::Bf16 => Some(Float::Bf16),
            _ => None,
        }
    }
}

/// How a matrix is packed: number n of a row stands for `scale · n + bias`, with a scale and a bias for each group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Packing {
    /// Bits of a number: 2, 3, 4, 5, 6 or 8.
    pub bits: usize,
    /// Numbers that share a scale and a bias: 32, 64 or 128.
    pub group: usize,
    /// `[rows, groups]`.
    pub scales: Place,
    #[allow(missing_docs)]
    pub biases: Place,
}

/// A change to a matrix, from the second file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// `scaling · b @ a` is added, with `a` `[rank, columns]` and `b` `[rows, rank]`.
    Adapter {
        #[allow(missing_docs)]
        a: Place,
        #[allow(missing_docs)]
        b: Place,
        #[allow(missing_docs)]
        scaling: f32,
    },
    /// A stored matrix takes its place.
    Replacement(Place),
}

/// A weight of the model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Module {
    /// Its numbers, packed or not.
    pub weight: Place,
    /// How they are packed; none: they are not.
    pub packing: Option<Packing>,
    #[allow(missing_docs)]
    pub change: Option<Change>,
}

/// Where all weights of a model are.
#[derive(Debug)]
pub struct Source(Origin);

#[derive(Debug)]
enum Origin {
    Files(Box<Files>),
    Random(Random),
}

#[derive(Debug)]
struct Files {
    file: File,
    changes: Option<File>,
    modules: HashMap<String, Module>,
    replaced: Vec<(usize, usize)>,
}

/// Seeded random weights, which no file has, for measurements. Their variance is 1 / columns, so that activations stay
/// about as large from layer to layer; norms have weights 1.
#[derive(Clone, Copy, Debug)]
pub struct Random {
    /// Bits of a number of all matrices: 2, 3, 4, 5, 6 or 8; 16: they are not packed.
    pub bits: usize,
    /// Numbers that share a scale and a bias.
    pub group: usize,
    /// The type of what is not packed, and of scales and biases.
    pub float: Float,
    #[allow(missing_docs)]
    pub seed: u64,
    /// The widths of the feed-forwards: the temporal transformer's, the depformer's.
    pub hidden: [usize; 2],
}

impl Random {
    /// About as many bytes as all matrices take.
    fn bytes(&self, config: &Config) -> u64 {
        let layer = |dim: usize, heads: usize, group: usize, hidden: usize| {
            dim as f64 * (dim as f64 * (2.0 + 2.0 * (heads / group) as f64 / heads as f64) + 3.0 * hidden as f64)
        };
        let (dim, depformer) = (config.dim as f64, config.depformer_dim as f64);
        let (text, card) = (config.text_card as f64, config.card as f64);
        let layers = config.num_layers as f64 * layer(config.dim, config.num_heads, config.kv_repeat, self.hidden[0]);
        let slices = config.owners().len() as f64
            * config.depformer_num_layers as f64
            * layer(config.depformer_dim, config.depformer_num_heads, config.depformer_kv_repeat, self.hidden[1]);
        let rows = dim * (2.0 * text + config.n_q as f64 * card)
            + depformer * (text + config.dep_q as f64 * (2.0 * card + dim));
        let scales =
            if self.bits == 16 { 0.0 } else { 2.0 * 8.0 * self.float.size() as f64 / self.group.max(1) as f64 };
        let bits = if self.bits == 16 { 8.0 * self.float.size() as f64 } else { self.bits as f64 };
        ((layers + slices + rows) * (bits + scales) / 8.0) as u64
    }

    fn module(&self, rows: usize, columns: usize) -> Module {
        let dtype = match self.float {
            Float::F32 => Dtype::F32,
            Float::F16 => Dtype::F16,
            Float::Bf16 => Dtype::Bf16,
        };
        let place = |dtype, columns| Place { dtype, rows, columns, begin: 0 };
        if self.bits == 16 {
            return Module { weight: place(dtype, columns), packing: None, change: None };
        }
        let scales = place(dtype, columns / self.group.max(1));
        let packing = Some(Packing { bits: self.bits, group: self.group, scales, biases: scales });
        Module { weight: place(Dtype::U32, columns * self.bits / 32), packing, change: None }
    }

    /// Rows of a matrix, as files would store them.
    fn stored(&self, stored: &Stored, row: usize, rows: usize) -> Raw {
        let (columns, weight) = (stored.columns, &stored.module.weight);
        // FNV-1a: the matrices of a model differ.
        let name = stored
            .name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        let mut words = Vec::with_capacity(rows * weight.row_bytes());
        for row in row..row + rows {
            let mut random = mixed(self.seed ^ name ^ mixed((stored.first + row) as u64 + 1));
            let mut next = move || {
                random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
                mixed(random)
            };
            if self.bits == 16 {
                // Evenly distributed from -most to most.
                let most = (3.0 / columns as f32).sqrt();
                for _ in 0..columns {
                    let even = (next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
                    self.float.encode_onto(most * even, &mut words);
                }
                continue;
            }
            let end = words.len() + weight.row_bytes();
            while words.len() < end {
                let eight = next().to_le_bytes();
                words.extend(&eight[..8.min(end - words.len())]);
            }
        }
        if self.bits == 16 {
            return Raw { words, scales: Vec::new(), biases: Vec::new() };
        }
        let most = ((1u64 << self.bits) - 1) as f32;
        // The standard deviation of evenly distributed whole numbers of so many bits.
        let scale = (12.0 / ((most + 1.0) * (most + 1.0) - 1.0) / columns as f32).sqrt();
        let numbers = rows * columns / self.group;
        let repeated = |x: f32| self.float.encode(x).repeat(numbers);
        Raw { words, scales: repeated(scale), biases: repeated(-scale * most / 2.0) }
    }
}

/// Identifies what a source gives.
#[derive(Debug, PartialEq)]
pub(crate) struct SourceKey {
    file: FileId,
    changes: Option<FileId>,
    modules: HashMap<String, Module>,
    replaced: Vec<(usize, usize)>,
}

/// Rows as they are stored: numbers, packed or not, and, if packed, scales and biases.
struct Raw {
    words: Vec<u8>,
    scales: Vec<u8>,
    biases: Vec<u8>,
}

/// What reading tells while it goes on: bytes that were read. An error ends it.
pub(crate) type Progress<'a> = &'a (dyn Fn(u64) -> Result<()> + Sync);

impl Source {
    /// `modules` are in `file`, by the modules' names in MLX's layout; what changes them is in `changes`. `replaced`
    /// are rows of the text embedding, each with the row that takes its place.
    pub fn new(
        file: File,
        changes: Option<File>,
        modules: HashMap<String, Module>,
        replaced: Vec<(usize, usize)>,
    ) -> Self {
        Self(Origin::Files(Box::new(Files { file, changes, modules, replaced })))
    }

    /// Weights that no file has.
    pub fn random(random: Random) -> Self {
        Self(Origin::Random(random))
    }

    /// The bytes of all weights, as they are stored.
    pub fn bytes(&self, config: &Config) -> u64 {
        match &self.0 {
            Origin::Random(random) => random.bytes(config),
            Origin::Files(files) => {
                let bytes = |place: &Place| place.end().unwrap_or(u64::MAX).saturating_sub(place.begin);
                let module = |m: &Module| {
                    m.packing
                        .map_or(0, |p| bytes(&p.scales).saturating_add(bytes(&p.biases)))
                        .saturating_add(bytes(&m.weight))
                };
                files.modules.values().map(module).fold(0, u64::saturating_add)
            }
        }
    }

    /// The rows of the text embedding to replace.
    pub(crate) fn replaced(&self) -> &[(usize, usize)] {
        match &self.0 {
            Origin::Files(files) => &files.replaced,
            Origin::Random(_) => &[],
        }
    }

    /// The rows of a matrix, before it is taken.
    pub(crate) fn rows_of(&self, name: &str) -> Option<usize> {
        match &self.0 {
            Origin::Files(files) => files.modules.get(name).map(|m| m.weight.rows),
            Origin::Random(random) => Some(2 * random.hidden[usize::from(name.starts_with("depformer"))]),
        }
    }

    /// Takes a matrix `[rows, columns]`; it must be there and fit.
    pub(crate) fn take(&mut self, name: &str, rows: usize, columns: usize) -> Result<Stored> {
        let module = match &mut self.0 {
            Origin::Files(files) => files.modules.remove(name),
            Origin::Random(random) => Some(random.module(rows, columns)),
        };
        let Some(module) = module else { return Err(Error::weight(name, "is missing")) };
        self.check_places(name, &module)?;
        let stored = Stored { name: name.to_owned(), module, first: 0, rows, columns };
        stored.check()?;
        Ok(stored)
    }

    /// All places of a module must lie in their files.
    fn check_places(&self, name: &str, module: &Module) -> Result<()> {
        let Origin::Files(files) = &self.0 else { return Ok(()) };
        let inside =
            |place: &Place, file: Option<&File>| place.end().zip(file).is_some_and(|(end, file)| end <= file.size());
        let (file, changes) = (Some(&files.file), files.changes.as_ref());
        let packing = module.packing.is_none_or(|p| inside(&p.scales, file) && inside(&p.biases, file));
        let change = match &module.change {
            None => true,
            Some(Change::Adapter { a, b, .. }) => inside(a, changes) && inside(b, changes),
            Some(Change::Replacement(place)) => inside(place, changes),
        };
        if inside(&module.weight, file) && packing && change {
            Ok(())
        } else {
            Err(Error::weight(&shown(name), "lies beyond the end of its file"))
        }
    }

    /// Identifies the files and what is read of them; none: they may change unseen, or there are none.
    pub(crate) fn key(&self) -> Option<SourceKey> {
        let Origin::Files(files) = &self.0 else { return None };
        let changes = match &files.changes {
            None => None,
            Some(file) => Some(file.id()?.clone()),
        };
        Some(SourceKey {
            file: files.file.id()?.clone(),
            changes,
            modules: files.modules.clone(),
            replaced: files.replaced.clone(),
        })
    }

    /// Takes a vector.
    pub(crate) fn vector(&mut self, name: &str, length: usize, progress: Progress<'_>) -> Result<Vec<f32>> {
        if matches!(self.0, Origin::Random(_)) {
            return Ok(vec![if name.ends_with(".bias") { 0.0 } else { 1.0 }; length]);
        }
        let stored = self.take(name, 1, length)?;
        self.rows(&stored, 0, 1, progress)
    }

    /// What is left is not a part of the model.
    pub(crate) fn finish(&self) -> Result<()> {
        let Origin::Files(files) = &self.0 else { return Ok(()) };
        match files.modules.keys().min() {
            None => Ok(()),
            Some(name) => Err(Error::weight(&shown(name), "is not a part of this model")),
        }
    }

    /// Some rows of a matrix as they are stored, without changes.
    fn raw(&self, stored: &Stored, row: usize, rows: usize, progress: Progress<'_>) -> Result<Raw> {
        let told = |raw: Raw| {
            progress((raw.words.len() + raw.scales.len() + raw.biases.len()) as u64)?;
            Ok(raw)
        };
        let (file, module, first) = match &self.0 {
            Origin::Random(random) => return told(random.stored(stored, row, rows)),
            Origin::Files(files) => (&files.file, &stored.module, stored.first + row),
        };
        let mut raw = Raw { words: read(file, &module.weight, first, rows)?, scales: Vec::new(), biases: Vec::new() };
        if let Some(packing) = &module.packing {
            raw.scales = read(file, &packing.scales, first, rows)?;
            raw.biases = read(file, &packing.biases, first, rows)?;
            check_finite(&stored.name, &raw.scales, &packing.scales)?;
            check_finite(&stored.name, &raw.biases, &packing.biases)?;
        }
        told(raw)
    }

    /// Some rows of a matrix in float32, unpacked and changed.
    pub(crate) fn rows(&self, stored: &Stored, row: usize, rows: usize, progress: Progress<'_>) -> Result<Vec<f32>> {
        let (module, first) = (&stored.module, stored.first + row);
        let raw = self.raw(stored, row, rows, progress)?;
        let mut values = match module.packing {
            None => floats(&stored.name, &raw.words, &module.weight)?,
            Some(packing) => {
                let scales = floats(&stored.name, &raw.scales, &packing.scales)?;
                let biases = floats(&stored.name, &raw.biases, &packing.biases)?;
                let row_bytes = module.weight.row_bytes();
                let mut values = Vec::with_capacity(rows * stored.columns);
                for i in 0..rows * stored.columns {
                    let (row, column, group) = (i / stored.columns, i % stored.columns, i / packing.group);
                    let n = number(&raw.words[row * row_bytes..], column, packing.bits);
                    values.push(scales[group] * n as f32 + biases[group]);
                }
                values
            }
        };
        let changes = match &self.0 {
            Origin::Files(files) => files.changes.as_ref(),
            Origin::Random(_) => None,
        };
        let Some(change) = module.change else { return Ok(values) };
        let Some(file) = changes else {
            return Err(Error::weight(&stored.name, "has a change, and no file that it is in"));
        };
        match change {
            Change::Replacement(place) => {
                values = float_of(&stored.name, &place)?.decode(&read(file, &place, first, rows)?)
            }
            Change::Adapter { a, b, scaling } => {
                let left = float_of(&stored.name, &b)?.decode(&read(file, &b, first, rows)?);
                let right = float_of(&stored.name, &a)?.decode(&read(file, &a, 0, a.rows)?);
                for (values, left) in values.chunks_exact_mut(stored.columns).zip(left.chunks_exact(b.columns)) {
                    for (by, row) in left.iter().zip(right.chunks_exact(a.columns)) {
                        values.iter_mut().zip(row).for_each(|(value, x)| *value += scaling * by * x);
                    }
                }
            }
        }
        let held = if module.packing.is_some() { stored.scales_float()? } else { stored.weight_float()? };
        // Packing takes the difference of two numbers, which is finite, too.
        let most = if held == Float::F16 { 65504.0 } else { f32::MAX / 2.0 };
        if !values.iter().all(|x| x.abs() <= most) {
            let what = format!("makes numbers of {} too large, infinite or NaN", shown(&stored.name));
            let wrong = checkpoint::Error::wrong(file.path(), what, "give another file, or --lora-scaling");
            return Err(Error::File(wrong));
        }
        Ok(values)
    }

    /// Some rows of a matrix that is not packed, in the type that they are stored in.
    pub(crate) fn plain(&self, stored: &Stored, row: usize, rows: usize, progress: Progress<'_>) -> Result<Vec<u8>> {
        let float = stored.weight_float()?;
        if stored.module.change.is_none() {
            let words = self.raw(stored, row, rows, progress)?.words;
            check_finite(&stored.name, &words, &stored.module.weight)?;
            return Ok(words);
        }
        let values = self.rows(stored, row, rows, progress)?;
        let mut bytes = Vec::with_capacity(values.len() * float.size());
        values.into_iter().for_each(|value| float.encode_onto(value, &mut bytes));
        Ok(bytes)
    }

    /// Some rows of a packed matrix, as they are stored: the packed numbers, the scales and the biases. What is changed
    /// is unpacked, changed, and packed again.
    pub(crate) fn packed(
        &self,
        stored: &Stored,
        packing: &Packing,
        row: usize,
        rows: usize,
        progress: Progress<'_>,
    ) -> Result<[Vec<u8>; 3]> {
        if stored.module.change.is_some() {
            let values = self.rows(stored, row, rows, progress)?;
            let float = packing.scales.float().unwrap_or(Float::F32);
            return Ok(pack(&values, stored.columns, packing.bits, packing.group, float));
        }
        let Raw { words, scales, biases } = self.raw(stored, row, rows, progress)?;
        Ok([words, scales, biases])
    }
}

fn read(file: &File, place: &Place, row: usize, rows: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; rows * place.row_bytes()];
    file.read_at(place.row(row), &mut bytes)?;
    Ok(bytes)
}

/// A matrix in a file that was found to fit, or some rows of one.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub name: String,
    pub module: Module,
    pub first: usize,
    pub rows: usize,
    pub columns: usize,
}

impl Stored {
    /// Some of its rows.
    pub fn part(&self, first: usize, rows: usize) -> Self {
        Self { first: self.first + first, rows, ..self.clone() }
    }

    /// How it is packed.
    pub fn packing(&self) -> Option<Packing> {
        self.module.packing
    }

    /// The type of its numbers, if it is not packed.
    pub fn weight_float(&self) -> Result<Float> {
        self.float_of(&self.module.weight)
    }

    /// The type of its scales and biases, if it is packed.
    pub fn scales_float(&self) -> Result<Float> {
        self.float_of(self.module.packing.as_ref().map_or(&self.module.weight, |packing| &packing.scales))
    }

    fn float_of(&self, place: &Place) -> Result<Float> {
        float_of(&self.name, place)
    }

    fn check(&self) -> Result<()> {
        let (rows, columns) = (self.rows, self.columns);
        let other = |what: &str| Err(Error::weight(&self.name, format!("{what}; [{rows}, {columns}] is expected")));
        let weight = &self.module.weight;
        match &self.module.packing {
            None => {
                if weight.float().is_none() {
                    return Err(Error::weight(&self.name, format!("is of type {}", weight.dtype.name())));
                }
                if (weight.rows, weight.columns) != (rows, columns) {
                    return other(&format!("has the shape [{}, {}]", weight.rows, weight.columns));
                }
            }
            Some(packing) => {
                let (scales, biases) = (packing.scales.dtype, packing.biases.dtype);
                if scales != biases {
                    let what = format!("has scales of type {} and biases of type {}", scales.name(), biases.name());
                    return Err(Error::weight(&self.name, format!("{what}; one type is expected")));
                }
                let bits = matches!(packing.bits, 2..=6 | 8);
                let group = matches!(packing.group, 32 | 64 | 128) && columns.is_multiple_of(packing.group);
                let packed = weight.dtype == Dtype::U32
                    && weight.rows == rows
                    && weight.columns.checked_mul(32) == columns.checked_mul(packing.bits);
                let numbers = [packing.scales, packing.biases].iter().all(|place| {
                    place.float().is_some()
                        && place.rows == rows
                        && place.columns.checked_mul(packing.group) == Some(columns)
                });
                if !(bits && group && packed && numbers) {
                    return other("is packed in another way than its scales and biases say");
                }
            }
        }
        let fits = match self.module.change {
            None => true,
            Some(Change::Replacement(place)) => {
                (place.rows, place.columns) == (rows, columns) && place.float().is_some()
            }
            Some(Change::Adapter { a, b, .. }) => {
                (b.rows, a.columns) == (rows, columns)
                    && a.rows == b.columns
                    && a.rows > 0
                    && a.float().is_some()
                    && b.float().is_some()
            }
        };
        if fits { Ok(()) } else { other("has a change of another shape") }
    }
}

fn float_of(name: &str, place: &Place) -> Result<Float> {
    place.float().ok_or_else(|| Error::weight(name, format!("is of type {}", place.dtype.name())))
}

/// Floats of what a file holds, finite ones.
fn floats(name: &str, bytes: &[u8], place: &Place) -> Result<Vec<f32>> {
    let values = float_of(name, place)?.decode(bytes);
    match values.iter().position(|x| !x.is_finite()) {
        None => Ok(values),
        Some(at) => Err(Error::weight(&shown(name), format!("holds {}; finite numbers are expected", values[at]))),
    }
}

/// Refuses numbers that are not finite. Without an early end, which the compiler makes wide.
fn check_finite(name: &str, bytes: &[u8], place: &Place) -> Result<()> {
    let halves = |exponent: u16| {
        let numbers = bytes.as_chunks::<2>().0.iter();
        numbers.fold(true, |all, b| all & (u16::from_le_bytes(*b) & exponent != exponent))
    };
    let finite = match place.float() {
        Some(Float::F32) => {
            let numbers = bytes.as_chunks::<4>().0.iter();
            numbers.fold(true, |all, b| all & f32::from_le_bytes(*b).is_finite())
        }
        Some(Float::F16) => halves(0x7c00),
        Some(Float::Bf16) => halves(0x7f80),
        None => false,
    };
    // To say which number it is.
    if finite { Ok(()) } else { floats(name, bytes, place).map(drop) }
}

/// Packs rows of `columns` floats as MLX does: of each group, the number with the largest magnitude and 0 are exact, as
/// far as the type of scales and biases can hold them. Returns the packed numbers, the scales and the biases.
pub fn pack(values: &[f32], columns: usize, bits: usize, group: usize, float: Float) -> [Vec<u8>; 3] {
    let most = ((1u32 << bits) - 1) as f32;
    let (mut words, mut scales, mut biases) = (Vec::new(), Vec::new(), Vec::new());
    for row in values.chunks_exact(columns) {
        let begin = words.len();
        words.resize(begin + columns * bits / 8, 0u8);
        for (g, numbers) in row.chunks_exact(group).enumerate() {
            let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
            for x in numbers {
                (low, high) = (low.min(*x), high.max(*x));
            }
            let mut scale = ((high - low) / most).max(1e-7);
            let edge = if low.abs() > high.abs() {
                low
            } else {
                scale = -scale;
                high
            };
            let (at_edge, mut bias) = ((edge / scale).round_ties_even(), 0.0);
            if at_edge != 0.0 {
                (scale, bias) = (edge / at_edge, edge);
            }
            // As they will be read again, so that the numbers are the nearest to them.
            let (scale_bytes, bias_bytes) = (float.encode(scale), float.encode(bias));
            let (scale, bias) = (float.decode(&scale_bytes)[0], float.decode(&bias_bytes)[0]);
            scales.extend(scale_bytes);
            biases.extend(bias_bytes);
            for (i, x) in numbers.iter().enumerate() {
                let n = ((x - bias) / scale).round_ties_even().clamp(0.0, most) as u32;
                let at = (g * group + i) * bits;
                let shifted = n << (at % 8);
                words[begin + at / 8] |= shifted as u8;
                if shifted > 0xff {
                    words[begin + at / 8 + 1] |= (shifted >> 8) as u8;
                }
            }
        }
    }
    [words, scales, biases]
}

/// Reads a packed matrix, in the pool's threads.
pub(crate) fn read_packed(
    source: &Source,
    stored: &Stored,
    packing: &Packing,
    pool: &Pool,
    progress: Progress<'_>,
) -> Result<Packed> {
    let float = stored.scales_float()?;
    let mut matrix = Packed::zeros(stored.rows, stored.columns, packing.bits, packing.group, float);
    matrix.fill(pool, |first, rows| source.packed(stored, packing, first, rows, progress))?;
    Ok(matrix)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every number becomes the nearest of those that its group has, and the largest magnitude of a group comes back as
    /// it is.
    #[test]
    fn packs_to_the_nearest() {
        let mut random = fastrand::Rng::with_seed(3);
        for bits in [2, 3, 4, 5, 6, 8] {
            for float in [Float::F32, Float::F16, Float::Bf16] {
                let values: Vec<f32> = (0..4 * 128).map(|_| random.f32() * 3.0 - 1.0).collect();
                let [words, scales, biases] = pack(&values, 128, bits, 64, float);
                let (scales, biases) = (float.decode(&scales), float.decode(&biases));
                assert_eq!(words.len(), 4 * 128 * bits / 8);
                for (i, x) in values.iter().enumerate() {
                    let n = number(&words[i / 128 * 16 * bits..], i % 128, bits);
                    let value = |n: u32| scales[i / 64] * n as f32 + biases[i / 64];
                    let off = |n: u32| (value(n) - x).abs();
                    let best = (0..1 << bits).map(off).fold(f32::INFINITY, f32::min);
                    assert!(off(n) <= best + 1e-6, "{bits} {float:?} {i}: {} for {x}", value(n));
                    let group = &values[i / 64 * 64..][..64];
                    if group.iter().all(|other| other.abs() <= x.abs()) {
                        let slack = if float == Float::F32 { 1e-6 } else { 0.03 };
                        assert!(off(n) <= slack, "{bits} {float:?} {i}: {} for {x}", value(n));
                    }
                }
            }
        }
    }
}
