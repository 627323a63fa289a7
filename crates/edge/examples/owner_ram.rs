// SPDX-License-Identifier: Apache-2.0
//! The owner in memory of the tests, for measuring an edge: `owner_ram`, which prints its address, then `varve-edge run disk --node ADDRESS --socket SOCKET` and a load.
//!
//! It has a thread a connection and makes two system calls a request, so what is measured is bounded by it where requests are small.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "this is of the tests"
)]

#[path = "../tests/edge/owner.rs"]
mod owner;

fn main() {
    let owner = owner::Owner::start();
    println!("{}", owner.node());
    let mut line = String::new();
    // Until its input ends.
    let _ = std::io::stdin().read_line(&mut line);
}
