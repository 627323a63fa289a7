// SPDX-License-Identifier: Apache-2.0
//! Every byte that Varve keeps on a disk or in a store.
//!
//! Pure encoders and decoders, without I/O. Each structure carries a magic, a version and a checksum; what is read
//! alone (a block, a page, a journal record) has a checksum that is bound to what it is, so whole bytes in the
//! wrong place fail like damaged ones. Decoders take any bytes: they answer `Corrupt` with a reason, never panic,
//! and allocate no more than a small multiple of their input. `docs/formats.md` has the layouts.

pub mod bundle;
pub mod chunk;
pub mod codec;
pub mod crc;
mod error;
pub mod journal;
pub mod manifest;
pub mod mark;
mod name;
mod node;
mod node_packed;
#[cfg(test)]
mod node_tests;
mod numbers;
pub mod owner;
pub mod page;
mod pointer;
pub mod region;
pub mod segment;
pub mod table;

pub use error::FormatError;
pub use name::{ObjectKind, ObjectName};
pub use node::{Leaf, NODE_ENTRIES, decode_interior, encode_interior};
pub use numbers::BlockSet;
pub use pointer::{Lineage, NodePointer, Pointer};
