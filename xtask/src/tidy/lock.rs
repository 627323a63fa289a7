// SPDX-License-Identifier: Apache-2.0
//! One version of each dependency: a second copy costs build time, size and surprises.
//!
//! Copies that cannot be avoided yet, because a dependency of ours asks for an older one, are listed in `xtask/tidy-allow.txt`
//! as `name count`. The list is a ratchet: a copy that is not listed fails, and so does a line that is no longer true, so the
//! list only ever gets shorter by itself.

use super::Finding;
use std::collections::BTreeMap;
use std::path::Path;

/// Where the unavoidable copies are listed.
pub const ALLOWED: &str = "xtask/tidy-allow.txt";

/// Compares the lock file with the list.
pub fn check(lock: &str, allowed: &str, findings: &mut Vec<Finding>) {
    let counts = counts(lock);
    let mut listed = BTreeMap::new();
    for (number, line) in allowed.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        match line.split_once(' ').and_then(|(name, count)| Some((name, count.trim().parse::<usize>().ok()?))) {
            Some((name, count)) => drop(listed.insert(name, (count, number + 1))),
            None => findings.push(Finding::error(Path::new(ALLOWED), number + 1, "a line is `name count`".into())),
        }
    }
    for (name, (count, line)) in counts.iter().filter(|(_, (count, _))| *count > 1) {
        if !listed.contains_key(name.as_str()) {
            let message = format!("{count} versions of `{name}`; use one, or list it in {ALLOWED}");
            findings.push(Finding::error(Path::new("Cargo.lock"), *line, message));
        }
    }
    for (name, (count, line)) in listed {
        let real = counts.get(name).map_or(0, |(count, _)| *count);
        if real > count {
            let message = format!("{real} versions of `{name}`, and {count} are allowed");
            findings.push(Finding::error(Path::new(ALLOWED), line, message));
        } else if real < count {
            let message =
                format!("there are {real} versions of `{name}` left: lower the number, or drop the line at 1");
            findings.push(Finding::error(Path::new(ALLOWED), line, message));
        }
    }
}

/// Name → how many versions, and the line of the first.
fn counts(lock: &str) -> BTreeMap<String, (usize, usize)> {
    let mut counts = BTreeMap::new();
    for (number, line) in lock.lines().enumerate() {
        if let Some(name) = line.strip_prefix("name = \"").and_then(|rest| rest.strip_suffix('"')) {
            counts.entry(name.to_owned()).or_insert((0, number + 1)).0 += 1;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(allowed: &str) -> usize {
        let lock = "[[package]]\nname = \"a\"\n[[package]]\nname = \"a\"\n[[package]]\nname = \"b\"\n";
        let mut findings = Vec::new();
        check(lock, allowed, &mut findings);
        findings.len()
    }

    #[test]
    fn the_list_must_be_exactly_true() {
        assert_eq!(findings("# why\na 2 # because\n"), 0);
        assert_eq!(findings(""), 1);
        assert_eq!(findings("a 3"), 1);
        assert_eq!(findings("a 1"), 1);
        assert_eq!(findings("a 2\nb 2"), 1);
        assert_eq!(findings("a 2\nnonsense"), 1);
    }
}
