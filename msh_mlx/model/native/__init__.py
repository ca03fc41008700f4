"""The native engine: a thin layer over the Rust crate `lm`, for processors."""
