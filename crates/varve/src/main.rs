// SPDX-License-Identifier: Apache-2.0
//! The varve command: one node, and the tool that manages it.
fn main() {}
