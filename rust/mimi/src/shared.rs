//! One set of weights for all codecs of a file.
//!
//! While a codec of a file is in use, loading the same file again gives a codec with the same weights. Shared weights are
//! never written to. They are freed with the last codec that uses them.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use crate::error::Result;

/// If a file changed more recently than this, it may change again with the same times. So its weights are not shared.
const SETTLED: Duration = Duration::from_secs(1);

/// Identifies a file in its present state.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileId {
    /// `None` if the file has changed just now.
    pub fn of(meta: &Metadata) -> Option<Self> {
        let changed = Duration::new(meta.ctime().try_into().ok()?, meta.ctime_nsec().try_into().ok()?);
        let age = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + changed).ok()?;
        (age >= SETTLED).then(|| Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

/// The values in use, each with its key.
#[derive(Debug)]
pub(crate) struct Shared<K, V>(Mutex<Vec<(K, Weak<V>)>>);

impl<K: PartialEq, V> Shared<K, V> {
    pub const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// The living value of `key`, or a new one by `make`. Of two threads that want the same at once, one waits for the
    /// other. Without a key the value is not shared.
    pub fn get(&self, key: Option<K>, make: impl FnOnce() -> Result<V>) -> Result<Arc<V>> {
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
