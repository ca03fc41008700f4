//! The codec's errors as Python exceptions.

use std::io::ErrorKind;

use mimi::Error;
use pyo3::PyErr;
use pyo3::exceptions::{
    PyFileNotFoundError, PyIsADirectoryError, PyOSError, PyPermissionError, PyRuntimeError, PyTypeError, PyValueError,
};

pyo3::create_exception!(
    mimi,
    MimiError,
    PyValueError,
    "A checkpoint or a configuration that cannot be used; the message says what is wrong with it."
);

pyo3::create_exception!(
    msh_native,
    FileError,
    PyValueError,
    "A file that is not what it should be; its arguments are what is wrong, and what to do about it."
);

pyo3::create_exception!(
    msh_native,
    ModelError,
    PyValueError,
    "A language model that cannot be loaded or run; the message says what is wrong with it."
);

/// An error that a call can raise.
pub enum Failure {
    /// From the codec itself.
    Codec(Error),
    /// From a language model.
    Model(lm::Error),
    /// From the reader of files.
    File(checkpoint::Error),
    /// An argument of the wrong type.
    Type(String),
    /// An argument of the right type that cannot be used.
    Value(String),
    /// An object that another thread is using, or that broke in an earlier call.
    State(String),
    /// An error that Python raised.
    Python(PyErr),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Codec(error)
    }
}

impl From<lm::Error> for Failure {
    fn from(error: lm::Error) -> Self {
        match error {
            lm::Error::File(error) => Self::File(error),
            other => Self::Model(other),
        }
    }
}

impl From<checkpoint::Error> for Failure {
    fn from(error: checkpoint::Error) -> Self {
        Self::File(error)
    }
}

impl From<PyErr> for Failure {
    fn from(error: PyErr) -> Self {
        Self::Python(error)
    }
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Codec(error) => {
                let message = error.to_string();
                match error {
                    Error::File(checkpoint::Error::Io { source, .. }) => io_error(source.kind(), message),
                    Error::File(_) | Error::Checkpoint { .. } | Error::Config(_) => MimiError::new_err(message),
                    Error::Input(_) => PyValueError::new_err(message),
                }
            }
            Failure::Model(error) => ModelError::new_err(error.to_string()),
            Failure::File(error) => {
                let message = error.to_string();
                match error {
                    checkpoint::Error::Io { source, .. } => io_error(source.kind(), message),
                    checkpoint::Error::Wrong { what, advice } => FileError::new_err((what, advice)),
                }
            }
            Failure::Type(message) => PyTypeError::new_err(message),
            Failure::Value(message) => PyValueError::new_err(message),
            Failure::State(message) => PyRuntimeError::new_err(message),
            Failure::Python(error) => error,
        }
    }
}

/// The exception of Python for an error of the system.
fn io_error(kind: ErrorKind, message: String) -> PyErr {
    match kind {
        ErrorKind::NotFound => PyFileNotFoundError::new_err(message),
        ErrorKind::PermissionDenied => PyPermissionError::new_err(message),
        ErrorKind::IsADirectory => PyIsADirectoryError::new_err(message),
        _ => PyOSError::new_err(message),
    }
}
