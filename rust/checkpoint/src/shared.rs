//! One set of weights for all models of a file.
//!
//! While a model of a file is in use, loading the same file again gives a model with the same weights. Shared weights are
//! never written to. They are freed with the last model that uses them.

use std::sync::{Arc, Mutex, PoisonError, Weak};

/// The values in use, each with its key.
#[derive(Debug)]
pub struct Shared<K, V>(Mutex<Vec<(K, Weak<V>)>>);

impl<K: PartialEq, V> Shared<K, V> {
    /// No values.
    #[allow(clippy::new_without_default)]
    pub const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// The living value of `key`, or a new one by `make`. Of two threads that want the same at once, one waits for the
    /// other. Without a key the value is not shared.
    pub fn get<E>(&self, key: Option<K>, make: impl FnOnce() -> Result<V, E>) -> Result<Arc<V>, E> {
        let Some(key) = key else { return make().map(Arc::new) };
        // What a panic left is whole: a value is entered when it is made.
        let mut living = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        living.retain(|(_, value)| value.strong_count() > 0);
        if let Some(value) = living.iter().find(|(k, _)| *k == key).and_then(|(_, value)| value.upgrade()) {
            return Ok(value);
        }
        let value = Arc::new(make()?);
        living.push((key, Arc::downgrade(&value)));
        Ok(value)
    }
}
