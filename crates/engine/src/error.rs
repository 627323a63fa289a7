// SPDX-License-Identifier: Apache-2.0
//! What can go wrong in the engine: the errors of its devices, and which of them may pass.

pub use varve_block::{BlockError as EngineError, Result};
use varve_types::ErrorKind;

/// What the engine asks of an error beyond its kind.
pub(crate) trait MayPass {
    /// Whether trying again may help, sooner or later. Of what is invalid only a refusal of the store: credentials and rights are mended by people,
    /// while a format that is not known stays unknown.
    fn may_pass(&self) -> bool;
}

impl MayPass for EngineError {
    fn may_pass(&self) -> bool {
        match self.kind() {
            ErrorKind::Unavailable | ErrorKind::NoSpace | ErrorKind::Busy => true,
            ErrorKind::Invalid => self.is_caused_by::<varve_env::StoreError>(),
            _ => false,
        }
    }
}
