//! Files that are something else.

/// Recognises another kind of file by its beginning: what it is, and what to do. `None`: it is not a known mistake.
pub fn foreign(start: &[u8]) -> Option<(&'static str, &'static str)> {
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    Some(match text {
        [b'<', ..] => ("a web page that was saved in place of the file", "fetch the file itself"),
        _ if text.starts_with(b"version https://git-lfs") => {
            ("a git-lfs pointer, which only names the file", "fetch the file itself, with git lfs pull")
        }
        _ if start.starts_with(b"GGUF") => ("a GGUF file", "take the .safetensors file"),
        // A ZIP archive, or how PyTorch's older files begin: the pickle protocol, and the first operations.
        _ if start.starts_with(b"PK\x03\x04")
            || matches!(start, [0x80, 2..=5, b'}' | b']' | b'c' | 0x8a | 0x95, ..]) =>
        {
            ("a PyTorch file in the pickle format", "take the .safetensors file")
        }
        _ => return None,
    })
}

/// Whether a file begins as a JSON object does.
pub(crate) fn begins_json(start: &[u8]) -> bool {
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    let inside = text.strip_prefix(b"{").map(<[u8]>::trim_ascii_start);
    matches!(inside, Some([b'"' | b'}', ..]))
}

/// What a JSON file is, given the first megabyte of it, and what to do.
pub(crate) fn json(text: &[u8]) -> (String, &'static str) {
    let text = String::from_utf8_lossy(text);
    if !text.contains("\"weight_map\"") {
        return ("a JSON file, which holds no weights".into(), "give the .safetensors file");
    }
    let plain = |name: &&str| name.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '.' | '-'));
    let mut parts: Vec<&str> =
        text.split('"').filter(|name| name.ends_with(".safetensors") && name.len() > 12).filter(plain).collect();
    parts.sort_unstable();
    parts.dedup();
    let some = parts[..parts.len().min(2)].join(", ");
    let of = match parts.len() {
        0 => String::new(),
        1 | 2 => format!(" ({some})"),
        _ => format!(" ({some} …)"),
    };
    (format!("an index of a model that is in several files{of}"), "give a model that is in one file")
}
