// SPDX-License-Identifier: Apache-2.0
//! What tests and benchmarks run and cargo does not build: Debian packages, two Python packages, a kernel for guests.
//!
//! Everything is looked for first, and only what is missing is installed. Debian packages need root; without it the one
//! command that installs them is printed, and the run ends. The Python packages go into environments of their own and the
//! kernel is only unpacked, both below `target/lab`, so neither needs root nor changes the machine.

pub mod cargo_fuzz;
mod debian;
mod kernel;
mod python;

use anyhow::Result;
use std::ffi::OsString;

/// Makes sure that everything is there; `false` when a person has to install something first.
pub fn run() -> Result<bool> {
    if !debian::provide()? {
        return Ok(false);
    }
    python::provide()?;
    kernel::provide()?;
    Ok(true)
}

/// The `PATH` under which tests find the programs that were installed below `target/lab`.
pub fn path_for_tests() -> OsString {
    let old = std::env::var_os("PATH").unwrap_or_default();
    let directories = python::programs().chain(std::env::split_paths(&old));
    // A directory with a colon in its name cannot be in a PATH; then the tests say which program they miss.
    std::env::join_paths(directories).unwrap_or(old)
}
