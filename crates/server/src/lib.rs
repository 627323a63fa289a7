// SPDX-License-Identifier: Apache-2.0
//! The volume server: NBD, HTTP API, shards.

pub mod api;
pub mod config;
mod latency;
pub mod nbd;
pub mod node;
pub mod worker;
