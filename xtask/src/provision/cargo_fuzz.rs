// SPDX-License-Identifier: Apache-2.0
//! `cargo fuzz`: a cargo subcommand, built from source at a fixed version into `target/lab/cargo-fuzz`.
//!
//! Only a fuzz run needs it, so only a fuzz run has it built. What it runs is the toolchain of the repository, which is told that it may use what it
//! otherwise keeps to unstable ones: the instrumentation of coverage needs that, and a sanitizer, which would, is not used.

use crate::process::{Echo, run};
use crate::repo::{self, lab_directory};
use anyhow::{Result, bail};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

const PACKAGE: &str = "cargo-fuzz";
const VERSION: &str = "0.13.2";
const INSTALLATION: Duration = Duration::from_secs(600);

/// Where it lies; the version is a part of the place, so that another one is another place.
fn place() -> PathBuf {
    lab_directory().join(format!("{PACKAGE}-{VERSION}"))
}

/// Builds it unless it is there. `cargo install` puts the program there last.
pub fn provide() -> Result<()> {
    let place = place();
    if place.join("bin").join(PACKAGE).exists() {
        println!("   {PACKAGE}: there");
        return Ok(());
    }
    println!("   {PACKAGE}: building {VERSION}");
    let mut command = repo::cargo();
    command.args(["install", PACKAGE, "--version", VERSION, "--locked", "--quiet", "--root"]).arg(&place);
    command.env("CARGO_TARGET_DIR", lab_directory().join("build"));
    let finished = run(&mut command, INSTALLATION, Echo::No)?;
    if !finished.ok() {
        bail!("building {PACKAGE} {VERSION} failed:\n{}", finished.stderr.trim_end());
    }
    Ok(())
}

/// `cargo fuzz`, as it was provided.
pub fn command() -> Command {
    let mut command = repo::cargo();
    let old = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::iter::once(place().join("bin")).chain(std::env::split_paths(&old));
    let path: OsString = std::env::join_paths(directories).unwrap_or(old);
    command.env("PATH", path).env("RUSTC_BOOTSTRAP", "1").arg("fuzz");
    command
}
