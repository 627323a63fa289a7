// SPDX-License-Identifier: Apache-2.0
//! Figures of the map that no disk at hand is large enough for: a volume of a tebibyte over a store whose segments
//! are computed.
//!
//! ```text
//! cargo run --release -p varve-sim --example bench_map -- [--size 64G] [--rounds 20] [--part 1] [--mapped 64G] [--delete 64T]
//! ```
//! With `--delete` all that is measured is how what is large is deleted: a snapshot of a 64th of that size, a discard and the volume itself of all of it.
//! With `--mapped` a volume of 64 TiB is all that is measured: so much of it is written, scattered block by block, then it is opened, read and
//! overwritten, in 1 GiB of RAM for maps.
//! The volume is filled in an order without any order, overwritten once at random (or one part of so many), and
//! then snapshots and clones are taken by the clock; the same with 1 GiB shows
//! whether size matters. Another one is written in sequence. The engine, its journal and coordination are the real
//! ones; a manifest is synced to
//! a file as a directory store would do. Samples prove that what is read is what was written last.
//!
//! Progress goes to the error output. The last line of the output is a JSON object whose keys `docs/benchmarks.md`
//! explains.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a benchmark: real clocks, real files and a real runtime are what it measures"
)]

mod arguments;
mod delete;
mod figures;
mod pattern;
mod rig;
mod store;

use arguments::{Arguments, LARGE, MAP_RAM, SMALL};
use figures::{Rows, budget, random, sequence};
use rig::Outcome;
use std::fmt::Write as _;
use std::io::Write as _;

/// The allocator of `varve`: how much RAM the process takes is a figure.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

async fn measure(arguments: &Arguments) -> Outcome<Rows> {
    if let Some(mapped) = arguments.mapped {
        return budget(LARGE, mapped, MAP_RAM).await;
    }
    if let Some(size) = arguments.delete {
        return delete::measure(size, MAP_RAM).await;
    }
    let mut rows = random(SMALL, arguments.rounds, 1, false).await?;
    rows.extend(sequence(arguments.size).await?);
    rows.extend(random(arguments.size, arguments.rounds, arguments.part, true).await?);
    Ok(rows)
}

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
