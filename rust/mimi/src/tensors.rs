//! Which tensors a codec's file must have.

use std::collections::BTreeMap;

use checkpoint::{Dtype, File, shown};

use crate::error::{Error, Result};

/// Checks that the file is a codec at all, by the names of its tensors.
pub(crate) fn check_kind(file: &File) -> Result<()> {
    let any = |wanted: fn(&str) -> bool| file.tensors().keys().any(|name| wanted(name));
    let what = if any(|name| name.starts_with("quantizer.") || name.starts_with("encoder.")) {
        return Ok(());
    } else if any(|name| name.ends_with(".lora_A.weight")) {
        "it holds LoRA adapters for a language model, give it as --lora and the codec as --mimi"
    } else if any(|name| name == "out_norm.weight" || name == "out_norm.alpha" || name == "text_emb.weight") {
        "it is a Moshi language model, give it as --model and the codec as --mimi"
    } else if file.tensors().is_empty() {
        "it holds no tensors (fetch it again)"
    } else {
        "none of its tensors is one of a Mimi codec, whose names begin with `encoder.`, `decoder.` or `quantizer.`"
    };
    Err(wrong(file, what))
}

/// Checks that exactly the `expected` tensors are there, each with its shape and a type that can be read.
/// Names ending in `._initialized` may be there or not.
pub(crate) fn check(file: &File, expected: &BTreeMap<String, Vec<usize>>) -> Result<()> {
    let listed = |names: &[&String]| {
        let first: Vec<String> = names.iter().take(3).map(|n| format!("`{}`", shown(n))).collect();
        let more = if names.len() > 3 { format!(" and {} more", names.len() - 3) } else { String::new() };
        format!("{}{more}", first.join(", "))
    };
    let missing: Vec<_> = expected.keys().filter(|name| !file.tensors().contains_key(*name)).collect();
    let optional = |name: &str| {
        name.strip_suffix("._initialized").is_some_and(|book| expected.contains_key(&format!("{book}.cluster_usage")))
    };
    let surplus: Vec<_> = file.tensors().keys().filter(|n| !expected.contains_key(*n) && !optional(n)).collect();
    let lacks = || format!("the configuration asks for tensors that it lacks: {}", listed(&missing));
    let has = || format!("it has tensors that the configuration has no place for: {}", listed(&surplus));
    match (missing.is_empty(), surplus.is_empty()) {
        (true, true) => {}
        (false, true) => return Err(wrong(file, lacks())),
        (true, false) => return Err(wrong(file, has())),
        (false, false) => return Err(wrong(file, format!("{}; {}", lacks(), has()))),
    }
    for (name, shape) in expected {
        let entry = &file.tensors()[name];
        // Check the type before the shape, which another type may change, too.
        if !matches!(entry.dtype, Dtype::F32 | Dtype::F16 | Dtype::Bf16) {
            let dtype = entry.dtype.name();
            return Err(wrong(file, format!("`{name}` has the type {dtype}, but F32, BF16 or F16 is expected")));
        }
        let same = entry.shape.len() == shape.len() && entry.shape.iter().zip(shape).all(|(a, b)| *a == *b as u64);
        if !same {
            return Err(wrong(
                file,
                format!("`{name}` has the shape {:?}, but the configuration asks for {shape:?}", entry.shape),
            ));
        }
    }
    Ok(())
}

fn wrong(file: &File, reason: impl Into<String>) -> Error {
    Error::checkpoint(file.path(), reason)
}
