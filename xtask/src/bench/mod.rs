// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask bench`.

use anyhow::{Result, bail};

#[derive(clap::Args)]
pub struct Options {}

pub fn run(_: &Options) -> Result<bool> {
    bail!("not yet")
}
