// SPDX-License-Identifier: Apache-2.0
//! A block device as front ends see it: what stands between them and whatever keeps the data.
//!
//! On the one side are the front ends (NBD and those that come later), on the other the volumes of an engine in the same process, or those of a
//! server far away. Neither knows the other: both know the [`BlockDevice`] and its [`BlockError`]. Nothing here does I/O or holds state.

mod device;
mod error;

pub use device::{BlockDevice, Later, Position, StatusExtent, Submit};
pub use error::{BlockError, Result};
