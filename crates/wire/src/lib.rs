// SPDX-License-Identifier: Apache-2.0
//! Every byte that Varve's own protocols put on a network.
//!
//! Pure encoders and decoders, without I/O. A connection begins with **greetings** ([`greeting`]): messages of a frame whose layout never changes, in which
//! the two sides find out whether they speak the same version, and what the one wants of the other ([`attach`]). Behind them come **requests** and **replies**
//! ([`transmission`]): fixed headers, little-endian, the payload as it is.
//!
//! Always holds: every header carries a checksum of itself and of its payload; no length is believed before its header was proved, nor above the bound of
//! its kind; a decoder takes any bytes, answers what is wrong with them, and allocates no more than a small multiple of what it was given.
//! `docs/protocol.md` tells the layouts and who says what when.

pub mod attach;
mod error;
pub mod greeting;
mod kinds;
pub mod mirror;
pub mod transmission;

pub use error::{Result, WireError};
