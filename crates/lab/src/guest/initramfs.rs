// SPDX-License-Identifier: Apache-2.0
//! What a guest has on board: busybox, kernel modules, programs of the host with their libraries, files of the test.
//!
//! The whole system of a guest is one archive that the kernel unpacks into RAM, so a guest has no root disk: its disks
//! are the test's alone, and killing it leaves nothing behind but them. `/init` is `init.sh` beside this file, which
//! answers the host's commands after the test's setup script ended. Programs are copied from the host to
//! `/usr/local/bin`, their libraries, as `ldd` names them, to the paths where their loader
//! looks for them. Large programs lose their debug information, since all of it would lie in the guest's RAM.

use std::fs::{self, File};
use std::io::BufWriter;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::cpio::Archive;
use super::kernel::{Kernel, run};
use crate::process::find_program;

/// Modules that every guest needs: PCI, block devices and the two ports to the host.
const BASE_MODULES: [&str; 4] = ["virtio_pci", "virtio_blk", "virtio_console", "virtio_net"];

/// Programs above this size are stripped of their debug information.
const STRIP_ABOVE_BYTES: u64 = 4 << 20;

/// A guest gives up after this time unless told otherwise, seconds.
const LIFETIME_S: u32 = 30 * 60;

/// An archive that [`super::Guest::boot`] gives to the kernel.
#[derive(Debug, Clone)]
pub struct Initramfs {
    /// The archive's file.
    pub path: PathBuf,
}

impl Initramfs {
    /// An archive with busybox and the modules for virtio disks, to which more can be added.
    pub fn builder() -> InitramfsBuilder {
        InitramfsBuilder {
            modules: BASE_MODULES.map(str::to_owned).to_vec(),
            programs: Vec::new(),
            files: Vec::new(),
            setup: None,
            lifetime_s: LIFETIME_S,
        }
    }
}

/// Collects what goes into an [`Initramfs`].
#[derive(Debug, Clone)]
#[must_use]
pub struct InitramfsBuilder {
    modules: Vec<String>,
    programs: Vec<PathBuf>,
    files: Vec<Entry>,
    setup: Option<String>,
    lifetime_s: u32,
}

/// A file of the test.
#[derive(Debug, Clone)]
struct Entry {
    guest_path: String,
    mode: u32,
    contents: Contents,
}

#[derive(Debug, Clone)]
enum Contents {
    HostFile(PathBuf),
    Bytes(Vec<u8>),
}

impl InitramfsBuilder {
    /// Loads a kernel module, and what it needs, at boot: `nbd`, `xfs`, `btrfs`. ext4 is built in.
    pub fn module(mut self, name: &str) -> Self {
        self.modules.push(name.to_owned());
        self
    }

    /// Copies a program of the host with its shared libraries to `/usr/local/bin`. A name without a slash is looked for
    /// in the `PATH` and in the `sbin` directories, as `e2fsck`; a path is taken as it is, as
    /// `env!("CARGO_BIN_EXE_varve")`. Busybox's shell prefers its own `dd`, `sync` and so on, so a program of the host
    /// that busybox has too is called by its path.
    pub fn program(mut self, name_or_path: impl Into<PathBuf>) -> Self {
        self.programs.push(name_or_path.into());
        self
    }

    /// Copies a file of the host, with its permission bits, to a path in the guest.
    pub fn file(mut self, host: impl Into<PathBuf>, guest_path: &str) -> Self {
        let contents = Contents::HostFile(host.into());
        self.files.push(Entry { guest_path: guest_path.to_owned(), mode: 0, contents });
        self
    }

    /// Puts bytes into a file in the guest; `mode` is its permission bits.
    pub fn bytes(mut self, guest_path: &str, mode: u32, bytes: impl Into<Vec<u8>>) -> Self {
        let contents = Contents::Bytes(bytes.into());
        self.files.push(Entry { guest_path: guest_path.to_owned(), mode, contents });
        self
    }

    /// A shell script that the guest runs once at boot, before it answers; booting fails when the script fails. Its
    /// output is on the console.
    pub fn setup(mut self, script: impl Into<String>) -> Self {
        self.setup = Some(script.into());
        self
    }

    /// The guest turns itself off after this time, so that none outlives a test that was killed. 30 minutes at first.
    pub fn lifetime_s(mut self, seconds: u32) -> Self {
        self.lifetime_s = seconds;
        self
    }

    /// Writes the archive to `initramfs.cpio` in the directory.
    ///
    /// # Errors
    /// When a program, a library, a module or a file is missing.
    pub fn build(self, kernel: &Kernel, directory: &Path) -> Result<Initramfs> {
        let path = directory.join("initramfs.cpio");
        let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let mut archive = Archive::new(BufWriter::new(file));
        archive.file("init", 0o755, include_bytes!("init.sh"))?;
        archive.file("etc/lab/settings", 0o644, format!("lifetime={}\n", self.lifetime_s).as_bytes())?;
        let busybox = fs::read("/bin/busybox").context("no /bin/busybox; apt-get install busybox-static")?;
        archive.file("bin/busybox", 0o755, &busybox)?;
        let mut list = String::new();
        for module in kernel.modules_in_order(&self.modules)? {
            list.push_str(&module.name);
            list.push('\n');
            archive.file(&format!("lib/modules/{}.ko", module.name), 0o644, &module.object)?;
        }
        archive.file("etc/lab/modules", 0o644, list.as_bytes())?;
        if let Some(script) = &self.setup {
            archive.file("etc/lab/setup", 0o755, script.as_bytes())?;
        }
        for program in &self.programs {
            add_program(&mut archive, program, directory)
                .with_context(|| format!("cannot put {} into a guest", program.display()))?;
        }
        for entry in &self.files {
            add_file(&mut archive, entry).with_context(|| format!("cannot put {} into a guest", entry.guest_path))?;
        }
        archive.finish()?;
        Ok(Initramfs { path })
    }
}

fn add_file(archive: &mut Archive<BufWriter<File>>, entry: &Entry) -> Result<()> {
    match &entry.contents {
        Contents::Bytes(bytes) => archive.file(&entry.guest_path, entry.mode, bytes)?,
        Contents::HostFile(path) => {
            let mode = fs::metadata(path)?.permissions().mode();
            archive.file(&entry.guest_path, mode, &fs::read(path)?)?;
        }
    }
    Ok(())
}

fn add_program(archive: &mut Archive<BufWriter<File>>, program: &Path, directory: &Path) -> Result<()> {
    let path = locate(program)?;
    let name = path.file_name().context("a program has a name")?.to_string_lossy().into_owned();
    let bytes = if fs::metadata(&path)?.len() > STRIP_ABOVE_BYTES {
        let stripped = tempfile::NamedTempFile::new_in(directory)?;
        run(Command::new("strip").arg("--strip-debug").arg("-o").arg(stripped.path()).arg(&path))?;
        fs::read(stripped.path())?
    } else {
        fs::read(&path)?
    };
    archive.file(&format!("usr/local/bin/{name}"), 0o755, &bytes)?;
    for library in libraries(&path)? {
        if !archive.contains(&library) {
            archive.file(&library, 0o755, &fs::read(&library).with_context(|| format!("cannot read {library}"))?)?;
        }
    }
    Ok(())
}

/// The program's file; a bare name is looked for where root would find it.
fn locate(program: &Path) -> Result<PathBuf> {
    match program.to_str() {
        Some(name) if !name.contains('/') => find_program(name, "that has it"),
        _ => Ok(program.to_path_buf()),
    }
}

/// The paths of the libraries, and of their loader, that a program is linked to; none when it is static.
fn libraries(program: &Path) -> Result<Vec<String>> {
    let output = Command::new("ldd").arg(program).env("LC_ALL", "C").output().context("cannot run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if text.contains("statically linked") || text.contains("not a dynamic executable") {
        return Ok(Vec::new());
    }
    if !output.status.success() || text.contains("not found") {
        bail!("ldd: {}: {}", output.status, text.trim());
    }
    // "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)", "/lib64/ld-linux-x86-64.so.2 (0x…)", "linux-vdso.so.1 (0x…)".
    let words = text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(words.map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_brings_its_libraries_and_its_loader() {
        let found = libraries(Path::new("/bin/sh")).unwrap();
        assert!(found.iter().any(|path| path.contains("libc.so")), "{found:?}");
        assert!(found.iter().any(|path| path.contains("ld-linux")), "{found:?}");
        assert!(libraries(Path::new("/bin/busybox")).unwrap().is_empty());
        assert!(locate(Path::new("no-such-program-anywhere")).is_err());
    }
}
