//! The one error type of the crate. Every message is one sentence that says what was wrong and what was expected.

use std::fmt;
use std::path::{Path, PathBuf};

/// An error in loading or running the codec.
#[derive(Debug)]
pub enum Error {
    /// A file could not be opened or read, or is not a safetensors file as it should be.
    File(checkpoint::Error),
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
    pub(crate) fn checkpoint(path: &Path, reason: impl Into<String>) -> Self {
        Self::Checkpoint { path: path.to_owned(), reason: reason.into() }
    }
}

impl From<checkpoint::Error> for Error {
    fn from(error: checkpoint::Error) -> Self {
        Self::File(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(error) => error.fmt(f),
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
            Self::File(error) => error.source(),
            _ => None,
        }
    }
}
