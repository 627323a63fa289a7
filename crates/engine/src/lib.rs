// SPDX-License-Identifier: Apache-2.0
//! The volume engine: journal, layers, segments, map, snapshots, recovery.

mod device;
mod error;

pub use device::{BlockDevice, Later, StatusExtent, Submit};
pub use error::{EngineError, Result};
