// SPDX-License-Identifier: Apache-2.0
//! The kernel that guests boot: Debian's newest 6.1 "cloud" kernel, fetched and unpacked, not installed.
//!
//! It lies in `target/lab/kernel`, as the laboratory crate expects it; the lock file beside it is the one that crate takes, so a
//! test that fetches the kernel for itself and this do not get into each other's way. The tree is renamed into place
//! when it is whole.

use crate::process::output;
use crate::repo::lab_directory;
use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// The packages are named `linux-image-6.1.0-N-cloud-amd64`.
const PREFIX: &str = "linux-image-6.1.0-";
const SUFFIX: &str = "-cloud-amd64";
const DOWNLOAD: Duration = Duration::from_secs(240);

/// Fetches the kernel unless it is there.
pub fn provide() -> Result<()> {
    let lab = lab_directory();
    fs::create_dir_all(&lab).with_context(|| format!("making {}", lab.display()))?;
    let lock = fs::File::create(lab.join("kernel.lock")).context("making the kernel's lock")?;
    flock(&lock, FlockOperation::LockExclusive).context("taking the kernel's lock")?;
    let place = lab.join("kernel");
    if place.exists() {
        println!("   guest kernel: there");
        return Ok(());
    }
    let work = lab.join(format!("kernel-{}", std::process::id()));
    fs::create_dir_all(&work).with_context(|| format!("making {}", work.display()))?;
    let fetched = fetch(&work, &place);
    let removed = fs::remove_dir_all(&work);
    fetched?;
    removed.with_context(|| format!("removing {}", work.display()))
}

fn fetch(work: &Path, place: &Path) -> Result<()> {
    let package = match newest()? {
        Some(package) => package,
        None => {
            // A fresh container has an empty index.
            output(Command::new("apt-get").args(["update", "-qq"]), DOWNLOAD)?;
            newest()?.context("apt knows no kernel package of that name")?
        }
    };
    println!("   guest kernel: fetching {package}");
    output(Command::new("apt-get").args(["download", "-qq", &package]).current_dir(work), DOWNLOAD)?;
    let archive = fs::read_dir(work)
        .context("looking for the package")?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get download left no package")?;
    let tree = work.join("tree");
    output(Command::new("dpkg").arg("-x").arg(&archive).arg(&tree), DOWNLOAD)?;
    fs::rename(&tree, place).with_context(|| format!("renaming {} into place", tree.display()))
}

/// The package with the highest build number that apt knows.
fn newest() -> Result<Option<String>> {
    let pattern = format!("^{}[0-9]+{SUFFIX}$", PREFIX.replace('.', "\\."));
    let found = output(Command::new("apt-cache").args(["search", "--names-only", &pattern]), DOWNLOAD)?;
    Ok(newest_of(&found))
}

fn newest_of(found: &str) -> Option<String> {
    let build = |name: &str| name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.parse::<u32>().ok();
    let names = found.lines().filter_map(|line| line.split_whitespace().next());
    names.filter_map(|name| Some((build(name)?, name))).max().map(|(_, name)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_chosen_by_number() {
        let found = "linux-image-6.1.0-9-cloud-amd64 - Linux\nlinux-image-6.1.0-56-cloud-amd64 - Linux\n\
                     linux-image-6.1.0-57-cloud-amd64-dbg - symbols\nlinux-image-6.12.1-cloud-amd64 - Linux\n";
        assert_eq!(newest_of(found).as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(newest_of(""), None);
    }
}
