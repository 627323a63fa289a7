// SPDX-License-Identifier: Apache-2.0
//! The arrows between crates: who may depend on whom.
//!
//! The table is the picture in the design, written down. A crate that is not in it has no place yet, and gets one by a line
//! here, in the same change that makes it. Tests may look down any arrow, and may use the laboratory and the simulator;
//! nothing that ships may. A manifest must also take the workspace's lints.

use super::Finding;
use crate::repo::{Metadata, Package, root};
use std::path::Path;

/// Each crate and what it may depend on, without the `varve-` of their names.
const ARROWS: [(&str, &[&str]); 20] = [
    ("types", &[]),
    ("uring", &[]),
    ("env", &["types", "uring"]),
    ("format", &["types"]),
    ("wire", &["format", "types"]),
    ("coord", &["env", "types"]),
    ("config", &["coord", "types"]),
    ("store", &["env", "types"]),
    ("block", &["env", "types"]),
    ("engine", &["block", "coord", "env", "format", "types"]),
    ("serve", &["block", "types"]),
    ("nbd", &["serve", "block", "types"]),
    ("edge", &["wire", "nbd", "serve", "block", "env", "types"]),
    (
        "server",
        &["config", "nbd", "serve", "wire", "block", "engine", "store", "coord", "etcd", "env", "types", "format"],
    ),
    ("varve", &["server", "config", "types"]),
    ("varved", &["server", "config", "types"]),
    ("sim", &["edge", "wire", "block", "engine", "server", "coord", "store", "format", "env", "types"]),
    ("etcd", &["coord", "env", "types"]),
    ("lab", &[]),
    ("xtask", &["lab"]),
];
/// Crates with `unsafe` code, which can not take the workspace's lints as they are: they repeat them.
const UNSAFE: [&str; 1] = ["uring"];
/// What tests may use and nothing else.
const FOR_TESTS: [&str; 2] = ["lab", "sim"];

/// Checks every package.
pub fn check(metadata: &Metadata, findings: &mut Vec<Finding>) {
    for package in &metadata.packages {
        let manifest = package.manifest_path.strip_prefix(root()).unwrap_or(&package.manifest_path).to_owned();
        let text = std::fs::read_to_string(&package.manifest_path).unwrap_or_default();
        dependencies(package, &manifest, &text, findings);
        if UNSAFE.contains(&short(&package.name)) {
            for line in lints_left_out(&text) {
                findings.push(Finding::error(&manifest, 1, format!("lacks the workspace's lint `{line}`")));
            }
        } else if !takes_lints(&text) {
            findings.push(Finding::error(&manifest, 1, "lacks `[lints]` with `workspace = true`".into()));
        }
    }
}

fn short(name: &str) -> &str {
    name.strip_prefix("varve-").unwrap_or(name)
}

fn allowed(name: &str) -> Option<&'static [&'static str]> {
    ARROWS.iter().find(|(from, _)| *from == short(name)).map(|(_, to)| *to)
}

/// Whether `to` can be reached from `from` over the arrows.
fn below(from: &str, to: &str) -> bool {
    allowed(from).is_some_and(|next| next.iter().any(|step| *step == short(to) || below(step, to)))
}

fn dependencies(package: &Package, manifest: &Path, text: &str, findings: &mut Vec<Finding>) {
    let Some(arrows) = allowed(&package.name) else {
        let message = format!("crate `{}` is not in the table of arrows (xtask/src/tidy/arrows.rs)", package.name);
        findings.push(Finding::error(manifest, 1, message));
        return;
    };
    for dependency in package.dependencies.iter().filter(|d| d.name.starts_with("varve")) {
        let (from, to) = (short(&package.name), short(&dependency.name));
        let test_only = dependency.kind.as_deref() == Some("dev");
        let fine =
            if test_only { FOR_TESTS.contains(&to) || to == from || below(from, to) } else { arrows.contains(&to) };
        if !fine {
            let line = text.lines().position(|line| line.starts_with(&dependency.name)).map_or(1, |line| line + 1);
            let kind = if test_only { "its tests" } else { "it" };
            let message = format!("`{from}` → `{to}` is against the arrows; {kind} may use: {}", arrows.join(", "));
            findings.push(Finding::error(manifest, line, message));
        }
    }
}

fn takes_lints(manifest: &str) -> bool {
    let mut lines = manifest.lines().map(str::trim).skip_while(|line| *line != "[lints]").skip(1);
    lines
        .find(|line| !line.is_empty() && !line.starts_with('#'))
        .is_some_and(|line| line.replace(' ', "") == "workspace=true")
}

/// The workspace's lints that a manifest does not repeat. `unsafe` code is refused there too, save where a line says why not.
fn lints_left_out(manifest: &str) -> Vec<String> {
    let workspace = std::fs::read_to_string(root().join("Cargo.toml")).unwrap_or_default();
    let lints = workspace.lines().skip_while(|line| *line != "[workspace.lints.rust]");
    let lints = lints.take_while(|line| !line.starts_with("[profile")).filter(|line| line.contains(" = "));
    let lints = lints.map(|line| line.replace("unsafe_code = \"forbid\"", "unsafe_code = \"deny\""));
    lints.filter(|lint| !manifest.lines().any(|line| line == lint)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::Dependency;

    fn check_one(name: &str, on: &str, kind: Option<&str>) -> usize {
        let dependency = Dependency { name: on.to_owned(), kind: kind.map(str::to_owned) };
        let package = Package {
            name: name.to_owned(),
            manifest_path: "Cargo.toml".into(),
            dependencies: vec![dependency],
            targets: Vec::new(),
        };
        let mut findings = Vec::new();
        dependencies(&package, Path::new("Cargo.toml"), "", &mut findings);
        findings.len()
    }

    #[test]
    fn arrows_point_down() {
        assert_eq!(check_one("varve-engine", "varve-format", None), 0);
        assert_eq!(check_one("varve-format", "varve-engine", None), 1);
        assert_eq!(check_one("varve-engine", "varve-store", None), 1);
        assert_eq!(check_one("varve-unheard-of", "varve-types", None), 1);
        assert_eq!(check_one("varve-engine", "serde", None), 0);
    }

    #[test]
    fn tests_may_use_the_laboratory_and_nothing_that_ships_may() {
        assert_eq!(check_one("varve-server", "varve-lab", Some("dev")), 0);
        assert_eq!(check_one("varve-server", "varve-lab", None), 1);
        assert_eq!(check_one("varve", "varve-engine", Some("dev")), 0);
        assert_eq!(check_one("varve-types", "varve-env", Some("dev")), 1);
    }

    #[test]
    fn there_is_no_cycle() {
        for (name, _) in ARROWS {
            assert!(!below(name, name), "{name} reaches itself");
        }
    }

    #[test]
    fn lints_are_taken_from_the_workspace() {
        assert!(takes_lints("[package]\n\n[lints]\nworkspace = true\n"));
        assert!(!takes_lints("[package]\nworkspace = true\n[lints.rust]\n"));
        let left_out = lints_left_out("[lints.rust]\nunsafe_code = \"forbid\"\nmissing_docs = \"warn\"\n");
        assert!(left_out.contains(&"unsafe_code = \"deny\"".to_owned()), "{left_out:?}");
        assert!(!left_out.contains(&"missing_docs = \"warn\"".to_owned()), "{left_out:?}");
    }
}
