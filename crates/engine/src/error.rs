// SPDX-License-Identifier: Apache-2.0
//! What can go wrong in the engine. The kind says what the caller must do; the text says what and where.

use std::sync::Arc;
use varve_types::ErrorKind;

/// Result of the engine.
pub type Result<T> = std::result::Result<T, EngineError>;

/// An error of the engine. Cheap to clone, because one failure may answer many requests.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{context}")]
pub struct EngineError {
    kind: ErrorKind,
    context: String,
    #[source]
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl EngineError {
    /// An error of a kind; `context` says what was tried and on what.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), source: None }
    }
    /// The same with the error that caused it, whose text is joined to the context.
    pub fn caused(
        kind: ErrorKind,
        context: impl std::fmt::Display,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self { kind, context: format!("{context}: {source}"), source: Some(Arc::new(source)) }
    }
    /// A request that is wrong.
    pub fn invalid(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, context)
    }
    /// Bytes that are not what was written.
    pub fn corrupt(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, context)
    }
    /// What the caller should do.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }
    /// Whether trying again may help, sooner or later. Of what is invalid only a refusal of the store: credentials and rights are mended by people,
    /// while a format that is not known stays unknown.
    pub(crate) fn may_pass(&self) -> bool {
        match self.kind {
            ErrorKind::Unavailable | ErrorKind::NoSpace | ErrorKind::Busy => true,
            ErrorKind::Invalid => self.source.as_ref().is_some_and(|source| source.is::<varve_env::StoreError>()),
            _ => false,
        }
    }
}

impl From<varve_env::StoreError> for EngineError {
    fn from(error: varve_env::StoreError) -> Self {
        Self { kind: error.kind(), context: error.to_string(), source: Some(Arc::new(error)) }
    }
}
