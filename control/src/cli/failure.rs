//! How a command ends when it does not end well.

use std::fmt::Write;
use std::io;

use hyper::StatusCode;
use thiserror::Error;

use crate::client::ClientError;

pub(super) type Outcome<T = ()> = Result<T, Failure>;

const FAILED: u8 = 1;
const BAD_INPUT: u8 = 2;

#[derive(Debug, Error)]
pub(super) enum Failure {
    #[error("{0}")]
    Failed(String),
    /// What the operator gave is at fault: a file, a name.
    #[error("{0}")]
    Input(String),
    /// All was said already; only the exit code is left.
    #[error("exit code {0}")]
    Told(u8),
}

impl Failure {
    pub(super) fn failed(text: impl Into<String>) -> Self {
        Self::Failed(text.into())
    }

    pub(super) fn input(text: impl Into<String>) -> Self {
        Self::Input(text.into())
    }

    pub(super) fn code(&self) -> u8 {
        match self {
            Self::Failed(_) => FAILED,
            Self::Input(_) => BAD_INPUT,
            Self::Told(code) => *code,
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let Some((status, refused)) = error.refused() else { return Self::Failed(error.to_string()) };
        let mut text = refused.error.clone();
        if refused.faults.len() > 1 {
            text = format!("refused for {} faults:", refused.faults.len());
            for fault in &refused.faults {
                let _ = write!(text, "\n  {}: {}\n    remedy: {}", fault.path, fault.problem, fault.remedy);
            }
        }
        match status {
            StatusCode::BAD_REQUEST
            | StatusCode::NOT_FOUND
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::UNPROCESSABLE_ENTITY => Self::Input(text),
            _ => Self::Failed(text),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        // `penstock flows | head`: the reader has seen enough.
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::Told(0);
        }
        Self::Failed(format!("cannot write the output: {error}"))
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::Failed(error.to_string())
    }
}
