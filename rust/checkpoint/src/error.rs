//! The one error type of the crate.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// A file that cannot be read, or is not what it should be.
#[derive(Debug)]
pub enum Error {
    /// A file could not be opened or read.
    Io {
        /// What was read.
        path: PathBuf,
        /// Why it failed; its kind tells a missing file from a forbidden one.
        source: io::Error,
    },
    /// The file was read, but cannot be used.
    Wrong {
        /// What is wrong, with the file's name, without a full stop.
        what: String,
        /// What to do about it, without a full stop.
        advice: String,
    },
}

/// `Result` with the error of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of the system for a file.
    pub fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    /// A file that cannot be used. `what` follows its name.
    pub fn wrong(path: &Path, what: impl fmt::Display, advice: impl Into<String>) -> Self {
        Self::Wrong { what: format!("{} {what}", path.display()), advice: advice.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { path, source } => match source.kind() {
                io::ErrorKind::NotFound => write!(f, "There is no file {}.", path.display()),
                io::ErrorKind::PermissionDenied => {
                    write!(f, "The file {} may not be read by this user; change its permissions.", path.display())
                }
                io::ErrorKind::IsADirectory => {
                    write!(f, "{} is a directory, but the name of a file is expected.", path.display())
                }
                _ => write!(f, "{} cannot be read: {source}.", path.display()),
            },
            Self::Wrong { what, advice } => write!(f, "{what}; {advice}."),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::Wrong { .. } => None,
        }
    }
}

/// A name or a value from a file for a message: printable, and cut short.
pub fn shown(text: &str) -> String {
    let mut shown = String::new();
    for (count, c) in text.chars().enumerate() {
        match c {
            _ if count == 100 => return shown + "…",
            ' '..='~' => shown.push(c),
            _ => shown.extend(c.escape_unicode()),
        }
    }
    shown
}
