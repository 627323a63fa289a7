// SPDX-License-Identifier: Apache-2.0
//! Chores of the repository.
fn main() {}
