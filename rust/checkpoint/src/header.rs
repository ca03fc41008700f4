//! The header of a safetensors file: which tensors there are, of which type and shape, and where.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::error::{Error, Result, shown};

/// How the numbers of a tensor are stored.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    Bool,
    F4,
    F6E2m3,
    F6E3m2,
    U8,
    I8,
    F8E4m3,
    F8E4m3fnuz,
    F8E5m2,
    F8E5m2fnuz,
    F8E8m0,
    U16,
    I16,
    F16,
    Bf16,
    U32,
    I32,
    F32,
    U64,
    I64,
    F64,
    C64,
}

/// All types of the format: as the header calls them, and the bits of one number.
const DTYPES: [(&str, Dtype, u64); 22] = [
    ("BOOL", Dtype::Bool, 8),
    ("F4", Dtype::F4, 4),
    ("F6_E2M3", Dtype::F6E2m3, 6),
    ("F6_E3M2", Dtype::F6E3m2, 6),
    ("U8", Dtype::U8, 8),
    ("I8", Dtype::I8, 8),
    ("F8_E4M3", Dtype::F8E4m3, 8),
    ("F8_E4M3FNUZ", Dtype::F8E4m3fnuz, 8),
    ("F8_E5M2", Dtype::F8E5m2, 8),
    ("F8_E5M2FNUZ", Dtype::F8E5m2fnuz, 8),
    ("F8_E8M0", Dtype::F8E8m0, 8),
    ("U16", Dtype::U16, 16),
    ("I16", Dtype::I16, 16),
    ("F16", Dtype::F16, 16),
    ("BF16", Dtype::Bf16, 16),
    ("U32", Dtype::U32, 32),
    ("I32", Dtype::I32, 32),
    ("F32", Dtype::F32, 32),
    ("U64", Dtype::U64, 64),
    ("I64", Dtype::I64, 64),
    ("F64", Dtype::F64, 64),
    ("C64", Dtype::C64, 64),
];

impl Dtype {
    /// The type's name in a header.
    pub fn name(self) -> &'static str {
        DTYPES.iter().find(|(_, dtype, _)| *dtype == self).expect("the table has all types").0
    }

    pub(crate) fn bits(self) -> u64 {
        DTYPES.iter().find(|(_, dtype, _)| *dtype == self).expect("the table has all types").2
    }
}

/// A tensor in a file.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// How its numbers are stored, row-major and little-endian.
    pub dtype: Dtype,
    /// Its axes, the slowest first.
    pub shape: Vec<u64>,
    /// The byte of the file that it begins at.
    pub begin: u64,
    /// The byte of the file behind it.
    pub end: u64,
}

impl Tensor {
    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.end - self.begin
    }
}

/// What describes one tensor has some hundred bytes.
const MAX_ENTRY: usize = 4096;
const MAX_NAME: usize = 512;
const MAX_AXES: usize = 16;

/// The keys of a JSON object, with their values as they are written, in order. A key may be there twice.
#[derive(Debug)]
pub struct Pairs<'a>(pub Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Pairs<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Pairs<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Pairs<'de>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Visit)
    }
}

/// What a header says: the tensors by their names, and the metadata as it is written.
pub(crate) struct Header {
    pub tensors: BTreeMap<String, Tensor>,
    pub metadata: Option<String>,
}

impl Header {
    /// Reads a header and checks it: the tensors fill the rest of the file, from byte `data` to its end at `size`, without a
    /// gap, each as large as its type and shape say.
    pub fn parse(path: &Path, text: &[u8], data: u64, size: u64) -> Result<Self> {
        let broken = || Error::wrong(path, "has a broken safetensors header", "fetch the file again");
        let why = |reason: String| {
            Error::wrong(path, format!("has a broken safetensors header: {reason}"), "fetch the file again")
        };
        let Pairs(pairs) = serde_json::from_slice(text).map_err(|_| broken())?;
        let mut header = Self { tensors: BTreeMap::new(), metadata: None };
        for (name, value) in pairs {
            let again = if name == "__metadata__" {
                header.metadata.replace(value.get().to_owned()).is_some()
            } else {
                let tensor = match parse_entry(&name, value, data) {
                    Ok(tensor) => tensor,
                    Err(Wrong::Broken) => return Err(broken()),
                    Err(Wrong::Twice(key)) => return Err(why(format!("'{}' is there twice", shown(&key)))),
                    Err(Wrong::Dtype(dtype)) => {
                        return Err(Error::Wrong {
                            what: format!(
                                "{}: {name} is of type '{}', which is not known",
                                path.display(),
                                shown(&dtype)
                            ),
                            advice: "fetch the file again, or take one with weights of type BF16".into(),
                        });
                    }
                };
                header.tensors.insert(name.clone(), tensor).is_some()
            };
            if again {
                return Err(why(format!("'{}' is there twice", shown(&name))));
            }
        }
        let mut places: Vec<(&String, &Tensor)> = header.tensors.iter().collect();
        places.sort_by_key(|(_, tensor)| (tensor.begin, tensor.end));
        let mut end = data;
        for (name, tensor) in places {
            if tensor.begin != end {
                let what = if tensor.begin < end { "overlaps another tensor" } else { "leaves a gap before it" };
                return Err(why(format!("the place of {name} {what}")));
            }
            end = tensor.end;
        }
        if end != size {
            let what = if end > size { "cut off" } else { "longer than its header says" };
            let sizes = format!("{} bytes in place of {}", grouped(size), grouped(end));
            return Err(Error::wrong(path, format!("is {what}: {sizes}"), "fetch the file again"));
        }
        Ok(header)
    }
}

/// What is wrong with the description of a tensor.
enum Wrong {
    Broken,
    /// A key of it is there twice.
    Twice(String),
    /// Its type is not one of the format's.
    Dtype(String),
}

fn parse_entry(name: &str, value: &RawValue, data: u64) -> std::result::Result<Tensor, Wrong> {
    let text = value.get();
    if text.len() > MAX_ENTRY || name.chars().count() > MAX_NAME || !name.chars().all(printable) {
        return Err(Wrong::Broken);
    }
    fn of<'a, T: Deserialize<'a>>(value: &'a RawValue) -> std::result::Result<T, Wrong> {
        serde_json::from_str(value.get()).map_err(|_| Wrong::Broken)
    }
    let Pairs(pairs) = of(value)?;
    let (mut dtype, mut shape, mut offsets) = (None, None, None);
    let mut others = Vec::new();
    for (key, value) in pairs {
        let again = match key.as_str() {
            "dtype" => dtype.replace(of::<String>(value)?).is_some(),
            "shape" => shape.replace(of::<Vec<u64>>(value)?).is_some(),
            "data_offsets" => offsets.replace(of::<[u64; 2]>(value)?).is_some(),
            _ if others.contains(&key) => true,
            _ => {
                others.push(key);
                continue;
            }
        };
        if again {
            return Err(Wrong::Twice(key));
        }
    }
    let (Some([begin, end]), Some(shape), Some(dtype)) = (offsets, shape, dtype) else { return Err(Wrong::Broken) };
    let Some((_, dtype, _)) = DTYPES.iter().find(|(name, _, _)| *name == dtype) else {
        return Err(Wrong::Dtype(dtype));
    };
    // An empty tensor may have other axes of any length.
    let empty = shape.contains(&0).then_some(0);
    let bits = empty.or_else(|| shape.iter().try_fold(dtype.bits(), |product, axis| product.checked_mul(*axis)));
    let fits = begin <= end && (end - begin).checked_mul(8).is_some_and(|room| Some(room) == bits);
    match (data.checked_add(begin), data.checked_add(end)) {
        (Some(begin), Some(end)) if fits && shape.len() <= MAX_AXES && shape.iter().all(|axis| *axis < 1 << 63) => {
            Ok(Tensor { dtype: *dtype, shape, begin, end })
        }
        _ => Err(Wrong::Broken),
    }
}

/// Whether a character of a name can be shown as it is.
fn printable(c: char) -> bool {
    matches!(c, '"' | '\'' | '\\') || c.escape_debug().len() == 1
}

/// A count with commas between thousands.
pub(crate) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
