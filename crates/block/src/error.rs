// SPDX-License-Identifier: Apache-2.0
//! What can go wrong with a block device and with whatever keeps its data. The kind says what the caller must do; the text says what and where.

use std::sync::Arc;
use varve_types::{ErrorKind, Kinded};

/// Result of a block device.
pub type Result<T> = std::result::Result<T, BlockError>;

/// An error of a block device. Cheap to clone, because one failure may answer many requests.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{context}")]
pub struct BlockError {
    kind: ErrorKind,
    context: String,
    #[source]
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl BlockError {
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
    /// Whether the error that caused it, if there is one, is an `E`.
    #[must_use]
    pub fn is_caused_by<E: std::error::Error + 'static>(&self) -> bool {
        self.source.as_ref().is_some_and(|source| source.is::<E>())
    }
}

/// An error of a part below (a store, coordination) that ended the operation.
impl<E: Kinded> From<E> for BlockError {
    fn from(error: E) -> Self {
        Self { kind: error.kind(), context: error.passed_on(), source: Some(Arc::new(error)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use varve_env::{StoreError, StoreErrorKind};

    #[test]
    fn an_error_of_a_part_keeps_its_kind_its_text_and_itself() {
        let name = "a".to_owned();
        let store = || StoreError {
            kind: StoreErrorKind::NoSpace,
            operation: "put",
            name: name.clone(),
            message: "full".into(),
        };
        let passed = BlockError::from(store());
        assert_eq!((passed.kind(), passed.to_string()), (ErrorKind::NoSpace, "object store: put a: full".to_owned()));
        assert!(passed.is_caused_by::<StoreError>() && !passed.is_caused_by::<std::io::Error>());
        let judged = BlockError::caused(ErrorKind::Internal, "a seal", store());
        assert_eq!(
            (judged.kind(), judged.to_string()),
            (ErrorKind::Internal, "a seal: object store: put a: full".to_owned())
        );
        assert!(judged.is_caused_by::<StoreError>());
        assert!(!BlockError::invalid("beyond the end").is_caused_by::<StoreError>());
    }
}
