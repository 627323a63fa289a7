// SPDX-License-Identifier: Apache-2.0
//! The edge against an owner in memory, over real sockets: what is lost and what is not when connections and owners die, and what people are told.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "these are tests: what fails here fails one")]

mod command;
mod library;
mod owner;
mod tls;
mod tools;
