// SPDX-License-Identifier: Apache-2.0
//! Where things are: the root of the repository, its files, its packages and their targets.
//!
//! Files are what git tracks plus what it would track (new and not ignored), so that a rule bites before a file is committed.
//! Packages come from `cargo metadata --no-deps`, which reads manifests only and builds nothing.

use crate::process;
use anyhow::{Context, Result};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const QUICK: Duration = Duration::from_secs(60);
/// Long enough to build the programs.
const BUILD: Duration = Duration::from_secs(3600);

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or_else(|| Path::new("."))
}

/// What the tests run against and cargo did not build: kernels, Python programs. Kept from run to run.
pub fn lab_directory() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    root().join(target).join("lab")
}

/// The cargo that started this program.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    forget_package(&mut command);
    command.current_dir(root());
    command
}

/// Takes from a command what cargo told this program of its own package. Build scripts that look at that (the one of `ring`) would run again, and all that stands
/// on them would be built again, whenever a build is begun from a shell and from here in turn.
pub fn forget_package(command: &mut Command) {
    let told = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(told)) {
        command.env_remove(name);
    }
}

/// Builds the programs of packages, as they are released or not, and gives where they are.
pub fn build(packages: &[&str], release: bool) -> Result<PathBuf> {
    let mut command = cargo();
    command.arg("build").args(packages.iter().flat_map(|package| ["--package", package]));
    if release {
        command.arg("--release");
    }
    process::output(&mut command, BUILD)?;
    Ok(metadata()?.target_directory.join(if release { "release" } else { "debug" }))
}

/// Whether `cargo nextest` is installed.
pub fn has_nextest() -> bool {
    process::output(cargo().args(["nextest", "--version"]), QUICK).is_ok()
}

/// Every file that git tracks or would track, relative to the root, sorted.
pub fn files() -> Result<Vec<PathBuf>> {
    let mut command = Command::new("git");
    command.current_dir(root()).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let listed = process::output(&mut command, QUICK).context("tidy asks git for the files")?;
    let mut files: Vec<PathBuf> = listed.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from).collect();
    // A file that was removed and not yet committed is still listed.
    files.retain(|file| root().join(file).is_file());
    files.sort();
    files.dedup();
    Ok(files)
}

/// The workspace as cargo sees it.
#[derive(Deserialize)]
pub struct Metadata {
    /// Its packages.
    pub packages: Vec<Package>,
    /// Where cargo builds.
    pub target_directory: PathBuf,
}

/// A package of the workspace.
#[derive(Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its `Cargo.toml`, absolute.
    pub manifest_path: PathBuf,
    /// What it depends on.
    pub dependencies: Vec<Dependency>,
    /// What it builds.
    pub targets: Vec<Target>,
}

/// A dependency of a package.
#[derive(Deserialize)]
pub struct Dependency {
    /// The package depended on.
    pub name: String,
    /// `None` for a normal one, else `dev` or `build`.
    pub kind: Option<String>,
}

/// Something that a package builds.
#[derive(Deserialize)]
pub struct Target {
    /// Its name.
    pub name: String,
    /// `lib`, `bin`, `test`, `example` and so on.
    pub kind: Vec<String>,
}

impl Package {
    /// Names of its targets of one kind.
    pub fn targets_of(&self, kind: &str) -> Vec<&str> {
        self.targets.iter().filter(|t| t.kind.iter().any(|k| k == kind)).map(|t| t.name.as_str()).collect()
    }
}

/// Asks cargo for the workspace.
pub fn metadata() -> Result<Metadata> {
    let text = process::output(cargo().args(["metadata", "--no-deps", "--format-version", "1"]), QUICK)?;
    serde_json::from_str(&text).context("reading cargo metadata")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_started_does_not_take_our_package_for_its_own() {
        let mut command = Command::new("env");
        command.env("CARGO_PKG_NAME", "xtask");
        let before = command.output().unwrap();
        assert!(String::from_utf8_lossy(&before.stdout).contains("CARGO_PKG_NAME="));
        let mut command = Command::new("env");
        forget_package(&mut command);
        let told = String::from_utf8(command.output().unwrap().stdout).unwrap();
        assert!(!told.contains("CARGO_PKG_") && !told.contains("CARGO_MANIFEST_"), "{told}");
        assert!(std::env::var_os("CARGO_PKG_NAME").is_some(), "cargo tells tests of theirs");
    }
}
