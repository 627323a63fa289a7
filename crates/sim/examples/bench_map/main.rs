// SPDX-License-Identifier: Apache-2.0
//! Figures of the map that no disk at hand is large enough for: a volume of a tebibyte over a store whose segments
//! are computed.
//!
//! ```text
//! cargo run --release -p varve-sim --example bench_map -- [--size 64G] [--rounds 20]
//! ```
//! The volume is filled in an order without any order, overwritten once at random, and then snapshots and clones
//! are taken by the clock; the same with 1 GiB shows whether size matters. Another one is written in sequence. The
//! engine, its journal and coordination are the real ones; a manifest is synced to a file as a directory store
//! would do. Samples prove that what is read is what was written last.
//!
//! Progress goes to the error output. The last line of the output is a JSON object whose keys `docs/benchmarks.md`
//! explains.

mod figures;
mod pattern;
mod rig;
mod store;

use figures::{Arguments, measure};
use rig::Outcome;
use std::fmt::Write as _;
use std::io::Write as _;

fn main() -> Outcome<()> {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let rows = tokio::task::LocalSet::new().block_on(&runtime, measure(&arguments))?;
    let mut line = String::new();
    for (key, value) in rows {
        write!(line, "{}\"{key}\": {value:.4}", if line.is_empty() { "{" } else { ", " })?;
    }
    writeln!(std::io::stdout(), "{line}}}")?;
    Ok(())
}
