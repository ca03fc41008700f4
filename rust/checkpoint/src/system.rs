//! What each system has its own way for: to read at a position, and to tell a file that has changed.

use std::fs::{File, Metadata};
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// If a file changed more recently than this, it may change again with the same times.
const SETTLED: Duration = Duration::from_secs(1);

/// Identifies a file in its present state.
#[derive(Clone, Debug, PartialEq)]
pub struct FileId(State);

impl FileId {
    /// `None` if the file has changed within the last second, or cannot be told from others. `path` and `meta` are of one file.
    pub(crate) fn of(path: &Path, meta: &Metadata) -> Option<Self> {
        let (state, changed) = State::of(path, meta)?;
        let age = SystemTime::now().duration_since(changed).ok()?;
        (age >= SETTLED).then_some(Self(state))
    }
}

#[cfg(unix)]
#[derive(Clone, Debug, PartialEq)]
struct State {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

#[cfg(unix)]
impl State {
    /// The state, and when it began.
    fn of(_: &Path, meta: &Metadata) -> Option<(Self, SystemTime)> {
        use std::os::unix::fs::MetadataExt;

        let changed = (meta.ctime(), meta.ctime_nsec());
        let since = Duration::new(changed.0.try_into().ok()?, changed.1.try_into().ok()?);
        let modified = (meta.mtime(), meta.mtime_nsec());
        let state = Self { device: meta.dev(), inode: meta.ino(), size: meta.len(), modified, changed };
        Some((state, SystemTime::UNIX_EPOCH + since))
    }
}

/// The standard library tells neither the number of a file here, nor when its contents changed; a program that writes to it and
/// then sets its time back is not noticed.
#[cfg(windows)]
#[derive(Clone, Debug, PartialEq)]
struct State {
    path: std::path::PathBuf,
    size: u64,
    modified: SystemTime,
    created: SystemTime,
}

#[cfg(windows)]
impl State {
    /// The state, and when it began.
    fn of(path: &Path, meta: &Metadata) -> Option<(Self, SystemTime)> {
        let (modified, created) = (meta.modified().ok()?, meta.created().ok()?);
        let state = Self { path: path.canonicalize().ok()?, size: meta.len(), modified, created };
        // A copy keeps the time of what it was made of.
        Some((state, modified.max(created)))
    }
}

/// Fills `out` with the bytes from byte `from` on. Threads may read from one file at the same time.
#[cfg(unix)]
pub(crate) fn read_exact_at(file: &File, out: &mut [u8], from: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, from)
}

/// Fills `out` with the bytes from byte `from` on. Threads may read from one file at the same time.
#[cfg(windows)]
pub(crate) fn read_exact_at(file: &File, mut out: &mut [u8], mut from: u64) -> io::Result<()> {
    use std::os::windows::fs::FileExt;

    while !out.is_empty() {
        match file.seek_read(out, from) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                out = &mut out[count..];
                from += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
