// SPDX-License-Identifier: Apache-2.0
//! Generated documents: what the program says of itself must be what the documents say.
//!
//! A document of the table that exists is compared with what its command prints; one that does not exist is not checked yet.
//! The message names the command that writes the document anew.

use super::Finding;
use crate::process::{Echo, output, run};
use crate::repo::{cargo, metadata, root};
use anyhow::Result;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Documents and the arguments of `varve` that print them.
const DOCUMENTS: [(&str, &[&str]); 4] = [
    ("docs/cli.md", &["reference", "cli"]),
    ("docs/config.md", &["reference", "config"]),
    ("docs/metrics.md", &["reference", "metrics"]),
    ("packaging/varved.toml", &["reference", "config-file"]),
];

/// Long enough to build the program.
const DEADLINE: Duration = Duration::from_secs(900);

/// Compares every document of the table that exists.
pub fn check(findings: &mut Vec<Finding>) -> Result<()> {
    let mut build = cargo();
    // With a test beside it, and of the whole workspace: so it has the features that the tests' build has, and is there already after that.
    build.args(["build", "--quiet", "--workspace", "--bin", "varve", "--test", "commands"]);
    output(&mut build, DEADLINE)?;
    let program = metadata()?.target_directory.join("debug/varve");
    for (path, arguments) in DOCUMENTS {
        let Ok(written) = std::fs::read_to_string(root().join(path)) else { continue };
        let mut command = Command::new(&program);
        command.args(arguments);
        let finished = run(&mut command, DEADLINE, Echo::No)?;
        let line = format!("cargo run --package varve -- {}", arguments.join(" "));
        if !finished.ok() {
            let message = format!("`{line}` failed: {}", finished.stderr.trim_end());
            findings.push(Finding::error(Path::new(path), 1, message));
        } else if let Some(different) = first_difference(&written, &finished.stdout) {
            let message = format!("out of date; write it anew with `{line} > {path}`");
            findings.push(Finding::error(Path::new(path), different, message));
        }
    }
    Ok(())
}

/// The first line in which two texts differ, from 1.
fn first_difference(left: &str, right: &str) -> Option<usize> {
    if left == right {
        return None;
    }
    let same = left.lines().zip(right.lines()).take_while(|(left, right)| left == right).count();
    Some(same + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_named() {
        assert_eq!(first_difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(first_difference("a\nb\n", "a\nc\n"), Some(2));
        assert_eq!(first_difference("a\n", "a\nb\n"), Some(2));
        assert_eq!(first_difference("a\n", "a"), Some(2));
    }
}
