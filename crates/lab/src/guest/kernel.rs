// SPDX-License-Identifier: Apache-2.0
//! The kernel that guests boot: Debian's own, fetched once and unpacked below the build directory.
//!
//! The development machine's kernel has no modules and cannot be booted again, so a guest runs the newest 6.1 "cloud"
//! kernel of Debian 12: small, quick to boot, with ext4 and the serial console built in and virtio, nbd and the file
//! systems as modules. `apt-get download` fetches the package and `dpkg -x` unpacks it, so nothing is installed and
//! root is not needed. It lies in `<target>/lab/kernel`; a directory is renamed into place when it is complete, so a test
//! that is killed half-way leaves nothing that looks like a kernel, and a file lock keeps tests that run at the same
//! time from fetching it twice.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FlockOperation, flock};

/// The packages are named `linux-image-6.1.0-<build>-cloud-amd64`.
const PACKAGE_PREFIX: &str = "linux-image-6.1.0-";
const PACKAGE_SUFFIX: &str = "-cloud-amd64";

/// A kernel image and the modules that belong to it.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The bzImage that QEMU loads.
    pub image: PathBuf,
    /// The directory `lib/modules/<release>`.
    pub modules: PathBuf,
    /// What `uname -r` says in the guest.
    pub release: String,
}

impl Kernel {
    /// The kernel below the build directory; fetched when it is not there yet (27 MB, needs the Debian mirror once).
    ///
    /// # Errors
    /// When it cannot be fetched; the message has the commands that put it in place.
    pub fn find() -> Result<Self> {
        let lab = target_directory().join("lab");
        fs::create_dir_all(&lab).with_context(|| format!("cannot create {}", lab.display()))?;
        let place = lab.join("kernel");
        let lock = File::create(lab.join("kernel.lock")).context("cannot create the lock of the kernel")?;
        flock(&lock, FlockOperation::LockExclusive).context("cannot lock the kernel's directory")?;
        if !place.exists() {
            fetch(&lab, &place).with_context(|| {
                let place = place.display();
                format!(
                    "no kernel for guests in {place}, and it could not be fetched; by hand: cd /tmp && apt-get update && \
                     apt-get download {PACKAGE_PREFIX}<newest>{PACKAGE_SUFFIX} && dpkg -x linux-image-*.deb {place}"
                )
            })?;
        }
        Self::open(&place)
    }

    /// The kernel in a directory that `dpkg -x` filled.
    fn open(place: &Path) -> Result<Self> {
        let modules = only_entry(&place.join("lib/modules"), "")?;
        let release = file_name(&modules)?;
        let image = only_entry(&place.join("boot"), "vmlinuz-")?;
        Ok(Self { image, modules, release })
    }

    /// The files of the named modules and of all that they need, in the order in which they have to be loaded.
    ///
    /// # Errors
    /// When a module is neither in the package nor built into the kernel.
    pub(super) fn modules_in_order(&self, wanted: &[String]) -> Result<Vec<Module>> {
        let mut found = BTreeMap::new();
        collect_modules(&self.modules.join("kernel"), &mut found)?;
        let built_in =
            fs::read_to_string(self.modules.join("modules.builtin")).context("cannot read modules.builtin")?;
        let built_in = built_in.lines().map(|path| module_name(Path::new(path))).collect();
        let mut order = Order { found, built_in, done: BTreeSet::new(), list: Vec::new() };
        for name in wanted {
            order.add(name, 0).with_context(|| format!("module {name} of Linux {}", self.release))?;
        }
        Ok(order.list)
    }
}

/// A kernel module as the guest loads it.
pub(super) struct Module {
    /// The name with underscores.
    pub(super) name: String,
    /// The ELF object, unpacked.
    pub(super) object: Vec<u8>,
}

/// Modules in the order of their needs.
struct Order {
    found: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
    done: BTreeSet<String>,
    list: Vec<Module>,
}

impl Order {
    fn add(&mut self, name: &str, depth: usize) -> Result<()> {
        ensure!(depth < 16, "needs modules in a circle");
        let name = name.replace('-', "_");
        if self.built_in.contains(&name) || self.done.contains(&name) {
            return Ok(());
        }
        let path = self.found.get(&name).with_context(|| format!("there is no module {name}"))?.clone();
        let object = read_module(&path)?;
        for need in needs(&object) {
            self.add(&need, depth + 1)?;
        }
        self.done.insert(name.clone());
        self.list.push(Module { name, object });
        Ok(())
    }
}

/// The modules that one needs. They are in its `.modinfo`, as `depends=a,b` between NULs; `modules.dep` is made when a
/// kernel is installed, so an unpacked package has none.
fn needs(object: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = object.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = &object[start + KEY.len()..];
    let value = value.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value).split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn read_module(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|extension| extension == "xz") {
        return run(Command::new("xz").arg("-dc").arg(path));
    }
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// `virtio_blk` of `…/virtio-blk.ko.xz`.
fn module_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.split(".ko").next().unwrap_or_default().replace('-', "_")
}

fn collect_modules(directory: &Path, found: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            collect_modules(&path, found)?;
        } else if path.to_string_lossy().contains(".ko") {
            found.insert(module_name(&path), path);
        }
    }
    Ok(())
}

/// Downloads the newest package and unpacks it to `place`.
fn fetch(lab: &Path, place: &Path) -> Result<()> {
    let package = match newest_package()? {
        Some(package) => package,
        None => {
            // A fresh container has an empty index.
            run(Command::new("apt-get").args(["update", "-qq"]))?;
            newest_package()?.context("apt knows no kernel package of that name")?
        }
    };
    let work = tempfile::Builder::new().prefix("kernel-").tempdir_in(lab)?;
    if run(Command::new("apt-get").args(["download", "-qq", &package]).current_dir(work.path())).is_err() {
        // The index is older than the mirror, which keeps only the newest builds.
        run(Command::new("apt-get").args(["update", "-qq"]))?;
        let package = newest_package()?.context("apt knows no kernel package of that name")?;
        run(Command::new("apt-get").args(["download", "-qq", &package]).current_dir(work.path()))?;
    }
    let archive = only_entry(work.path(), PACKAGE_PREFIX)?;
    let tree = work.path().join("tree");
    run(Command::new("dpkg").arg("-x").arg(&archive).arg(&tree))?;
    Kernel::open(&tree)?;
    fs::rename(&tree, place).with_context(|| format!("cannot rename {} into place", tree.display()))
}

/// The package with the highest build number that apt knows.
fn newest_package() -> Result<Option<String>> {
    let pattern = format!("^{}[0-9]+{PACKAGE_SUFFIX}$", PACKAGE_PREFIX.replace('.', "\\."));
    let output = run(Command::new("apt-cache").args(["search", "--names-only", &pattern]))?;
    let output = String::from_utf8_lossy(&output);
    let build =
        |name: &str| -> Option<u32> { name.strip_prefix(PACKAGE_PREFIX)?.strip_suffix(PACKAGE_SUFFIX)?.parse().ok() };
    let names = output.lines().filter_map(|line| line.split_whitespace().next());
    Ok(names.filter_map(|name| Some((build(name)?, name))).max().map(|(_, name)| name.to_owned()))
}

/// The one entry of a directory whose name starts with `prefix`.
fn only_entry(directory: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if file_name(&path)?.starts_with(prefix) {
            paths.push(path);
        }
    }
    match paths.as_slice() {
        [path] => Ok(path.clone()),
        _ => bail!("{} has {} entries named {prefix}*, not one", directory.display(), paths.len()),
    }
}

fn file_name(path: &Path) -> Result<String> {
    let name = path.file_name().with_context(|| format!("{} has no name", path.display()))?;
    Ok(name.to_string_lossy().into_owned())
}

/// Runs a command to its end and gives its standard output; its standard error is in the error.
pub(super) fn run(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}

/// Where cargo puts what it builds.
fn target_directory() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => workspace.join(directory),
        None => workspace.join("target"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_are_read_from_the_object() {
        assert_eq!(needs(b"ELF\0alias=x\0depends=virtio,virtio_ring\0retpoline=Y\0"), ["virtio", "virtio_ring"]);
        assert!(needs(b"ELF\0depends=\0retpoline=Y\0").is_empty());
        assert_eq!(module_name(Path::new("kernel/drivers/char/hw_random/virtio-rng.ko.xz")), "virtio_rng");
    }
}
