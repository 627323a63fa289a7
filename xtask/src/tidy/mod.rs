// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask tidy`: the rules of the tree that a machine can check, each as `file:line: message`.
//!
//! Crate arrows and lints ([`arrows`]), what a simulation must not ask of the machine ([`bans`]), files and functions
//! ([`files`]), one version of each dependency ([`lock`]), generated documents ([`references`]). An error fails the run; a
//! warning is shown and does not. Rules are not preached, they are ratcheted: what is allowed as an exception stands in a
//! list that must stay exactly true.

mod arrows;
mod bans;
mod files;
mod functions;
mod lexer;
mod lock;
mod references;

use crate::repo;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Fails the run.
    Error,
    /// Is shown.
    Warning,
}

/// One breach of a rule.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    severity: Severity,
    path: PathBuf,
    line: usize,
    message: String,
}

impl Finding {
    /// A breach that fails the run.
    fn error(path: &Path, line: usize, message: String) -> Self {
        Self { severity: Severity::Error, path: path.to_owned(), line, message }
    }
}

/// Checks every rule and prints what breaks one; `false` if anything does.
pub fn run() -> Result<bool> {
    let mut findings = Vec::new();
    let paths = repo::files()?;
    for path in &paths {
        let bytes = std::fs::read(repo::root().join(path)).with_context(|| format!("reading {}", path.display()))?;
        // What is not text (a golden file, a picture) has no lines to check.
        if let Ok(text) = String::from_utf8(bytes) {
            files::check(path, &text, &mut findings);
            bans::check_exceptions(path, &text, &mut findings);
        }
    }
    arrows::check(&repo::metadata()?, &mut findings);
    bans::check(&mut findings);
    let read = |path: &str| std::fs::read_to_string(repo::root().join(path)).with_context(|| format!("reading {path}"));
    lock::check(&read("Cargo.lock")?, &read(lock::ALLOWED)?, &mut findings);
    references::check(&mut findings)?;

    findings.sort_by(|a, b| (a.severity, &a.path, a.line).cmp(&(b.severity, &b.path, b.line)));
    for Finding { severity, path, line, message } in &findings {
        let word = if *severity == Severity::Error { "error" } else { "warning" };
        println!("{}:{line}: {word}: {message}", path.display());
    }
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    println!("tidy: {} files, {errors} errors, {} warnings", paths.len(), findings.len() - errors);
    Ok(errors == 0)
}
