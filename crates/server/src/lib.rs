// SPDX-License-Identifier: Apache-2.0
//! The volume server: HTTP API, shards, and the volumes that front ends show.

pub mod api;
pub mod daemon;
mod edge;
mod mirror;
pub mod node;
pub mod worker;
