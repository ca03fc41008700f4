//! The one error type of the crate.

use std::fmt;

/// A model that cannot be loaded or run.
#[derive(Debug)]
pub enum Error {
    /// A file cannot be read.
    File(checkpoint::Error),
    /// A weight is missing or does not fit.
    Weight {
        /// The module's name.
        module: String,
        /// What is wrong with it, as the end of a sentence, without a full stop.
        reason: String,
    },
    /// The configuration cannot be used: what is wrong with it, without a full stop.
    Config(String),
    /// A caller gave something that does not fit the model, as a sentence without a full stop.
    Input(String),
}

/// `Result` with the error of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn weight(module: &str, reason: impl Into<String>) -> Self {
        Self::Weight { module: module.to_owned(), reason: reason.into() }
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
            Self::Weight { module, reason } => write!(f, "The model's {module} {reason}."),
            Self::Config(what) => write!(f, "The model's configuration cannot be used: {what}."),
            Self::Input(what) => {
                let first = what.chars().next().map_or(0, char::len_utf8);
                write!(f, "{}{}.", what[..first].to_uppercase(), &what[first..])
            }
        }
    }
}

impl std::error::Error for Error {}
