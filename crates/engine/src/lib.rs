// SPDX-License-Identifier: Apache-2.0
//! The volume engine: journal, layers, segments, map, snapshots, recovery.

mod device;
mod error;
#[allow(dead_code, unused_imports)] // until all of it is called by the volume
pub(crate) mod map;

pub use device::{BlockDevice, Later, StatusExtent, Submit};
pub use error::{EngineError, Result};
