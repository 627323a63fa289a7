// SPDX-License-Identifier: Apache-2.0
//! Every byte that Varve keeps on a disk or in a store.

mod error;
mod pointer;

pub use error::FormatError;
pub use pointer::{Lineage, NodePointer, Pointer};
