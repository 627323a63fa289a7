// SPDX-License-Identifier: Apache-2.0
//! The NBD server, driven by real clients and by hostile ones, over unix sockets and TCP, in front of a device that can misbehave.

#![allow(clippy::unwrap_used, reason = "here a failed unwrap is a failed test")]

mod clients;
mod commands;
mod commits;
mod hostile;
mod ram;
mod raw;
mod server;
mod times;
mod tools;
