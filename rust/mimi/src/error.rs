//! The one error type of the crate. Every message is one sentence that says what was wrong and what was expected.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// An error in loading or running the codec.
#[derive(Debug)]
pub enum Error {
    /// A file could not be opened or read.
    Io {
        /// What was read.
        path: PathBuf,
        /// Why it failed; its kind tells a missing file from a forbidden one.
        source: io::Error,
    },
    /// The file was read, but is not a Mimi checkpoint of the given configuration.
    Checkpoint {
        /// The checkpoint.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The configuration has an unknown key or a value that cannot be used.
    Config(String),
    /// A call got samples, codes or an option that it cannot take. It has not changed the stream.
    Input(String),
}

/// `Result` with the error of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn checkpoint(path: &Path, reason: impl Into<String>) -> Self {
        Self::Checkpoint { path: path.to_owned(), reason: reason.into() }
    }
}

/// A name or a value from a file for a message: printable, and cut short.
pub(crate) fn shown(text: &str) -> String {
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

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { path, source } => match source.kind() {
                io::ErrorKind::NotFound => write!(f, "There is no file {}.", path.display()),
                io::ErrorKind::PermissionDenied => {
                    write!(f, "The file {} may not be read by this user.", path.display())
                }
                io::ErrorKind::IsADirectory => {
                    write!(f, "{} is a directory, but the name of a file is expected.", path.display())
                }
                _ => write!(f, "{} cannot be read: {source}.", path.display()),
            },
            Self::Checkpoint { path, reason } => {
                write!(f, "{} is not a usable Mimi checkpoint: {reason}.", path.display())
            }
            Self::Config(reason) => write!(f, "The Mimi configuration is wrong: {reason}."),
            Self::Input(reason) => write!(f, "{reason}."),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
