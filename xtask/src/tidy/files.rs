// SPDX-License-Identifier: Apache-2.0
//! Rules of single files: size, header, length of functions, words that must not be there, hosts that must not be named.
//!
//! Each rule is a function of a path and a text, so that it can be tested without a tree. Rules of code look at text whose
//! literals and comments were blanked; rules of words and hosts look at everything, in files of any kind.
//!
//! The words are put together from halves here, for this file obeys its own rules.

use super::functions::functions;
use super::lexer::mask;
use super::{Finding, Severity};
use std::path::Path;

/// Past this many lines a file wants splitting.
const FILE_WARN_LINES: usize = 600;
/// Past this many it must be split.
const FILE_MAX_LINES: usize = 800;
/// A function's end.
const FUNCTION_MAX_LINES: usize = 70;
/// `main.rs` says what the program is and no more.
const MAIN_MAX_LINES: usize = 100;
/// A file longer than this explains itself in [`HEADER_LINES`] lines or more.
const HEADER_FROM_LINES: usize = 150;
/// See [`HEADER_FROM_LINES`].
const HEADER_LINES: usize = 5;

const SPDX: &str = "// SPDX-License-Identifier: Apache-2.0";

/// Marks of unfinished work, in any file.
const WORDS: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
/// Unfinished work that compiles, looked for in code alone.
const CODE: [&str; 3] = [concat!("to", "do!("), concat!("unimple", "mented!("), concat!("#[ign", "ore")];
/// Hosts of package registries: a build names packages, not places.
const HOSTS: [&str; 8] = [
    concat!("crates", ".io"),
    concat!("pypi", ".org"),
    concat!("pythonhosted", ".org"),
    concat!("deb.debian", ".org"),
    concat!("security.debian", ".org"),
    concat!("snapshot.debian", ".org"),
    concat!("registry.npmjs", ".org"),
    concat!("proxy.golang", ".org"),
];

/// Every rule of one file.
pub fn check(path: &Path, text: &str, findings: &mut Vec<Finding>) {
    let rust = path.extension().is_some_and(|extension| extension == "rs");
    if rust {
        size(path, text, findings);
        header(path, text, findings);
        let masked = mask(text);
        lengths(path, &masked, findings);
        code(path, &masked, findings);
    }
    words(path, text, findings);
    hosts(path, text, findings);
}

fn size(path: &Path, text: &str, findings: &mut Vec<Finding>) {
    let lines = text.lines().count();
    if lines > FILE_MAX_LINES {
        findings.push(Finding::error(path, 1, format!("{lines} lines; split the file, {FILE_MAX_LINES} is the end")));
    } else if lines > FILE_WARN_LINES {
        let message = format!("{lines} lines; past {FILE_WARN_LINES} a file wants splitting");
        findings.push(Finding { severity: Severity::Warning, ..Finding::error(path, 1, message) });
    }
    // The main.rs of a directory of tests is the test, not the way into a program.
    let of_tests = path.components().any(|part| part.as_os_str() == "tests");
    if path.ends_with("main.rs") && !of_tests && lines > MAIN_MAX_LINES {
        let message = format!("{lines} lines; a main.rs has at most {MAIN_MAX_LINES}, the rest belongs in modules");
        findings.push(Finding::error(path, 1, message));
    }
}

fn header(path: &Path, text: &str, findings: &mut Vec<Finding>) {
    let mut lines = text.lines();
    if lines.next() != Some(SPDX) {
        findings.push(Finding::error(path, 1, format!("the first line must be `{SPDX}`")));
        return;
    }
    let documented = lines.skip_while(|line| line.is_empty()).take_while(|line| line.starts_with("//!")).count();
    let all = text.lines().count();
    if documented == 0 {
        findings.push(Finding::error(
            path,
            2,
            "a module doc (`//!`) must follow: what this owns, what always holds".into(),
        ));
    } else if all > HEADER_FROM_LINES && documented < HEADER_LINES && !is_test(path) {
        let message = format!("{all} lines with a module doc of {documented}; at least {HEADER_LINES} are due");
        findings.push(Finding::error(path, 2, message));
    }
}

/// Whether a file holds nothing but tests: what they hold off is in their names.
fn is_test(path: &Path) -> bool {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy()).unwrap_or_default();
    stem == "tests" || stem.ends_with("_tests") || path.components().any(|part| part.as_os_str() == "tests")
}

fn lengths(path: &Path, masked: &str, findings: &mut Vec<Finding>) {
    for function in functions(masked).into_iter().filter(|function| function.lines > FUNCTION_MAX_LINES) {
        let message = format!("`{}` has {} lines; at most {FUNCTION_MAX_LINES}", function.name, function.lines);
        findings.push(Finding::error(path, function.line, message));
    }
}

fn code(path: &Path, masked: &str, findings: &mut Vec<Finding>) {
    for (number, line) in masked.lines().enumerate() {
        for word in CODE.iter().filter(|word| line.contains(**word)) {
            findings.push(Finding::error(path, number + 1, format!("`{word}` is unfinished work")));
        }
    }
}

fn words(path: &Path, text: &str, findings: &mut Vec<Finding>) {
    for (number, line) in text.lines().enumerate() {
        for word in line.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| WORDS.contains(word)) {
            findings.push(Finding::error(path, number + 1, format!("`{word}` is unfinished work: do it or file it")));
        }
    }
}

fn hosts(path: &Path, text: &str, findings: &mut Vec<Finding>) {
    if path.file_name().is_some_and(|name| name == "Cargo.lock") {
        return;
    }
    for (number, line) in text.lines().enumerate() {
        for host in HOSTS.iter().filter(|host| line.contains(**host)) {
            findings.push(Finding::error(path, number + 1, format!("names the package registry `{host}`")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> Vec<(usize, Severity)> {
        let mut findings = Vec::new();
        check(Path::new(path), text, &mut findings);
        findings.into_iter().map(|finding| (finding.line, finding.severity)).collect()
    }

    fn file(lines: usize, doc: usize) -> String {
        format!("{SPDX}\n{}{}", "//! Doc.\n".repeat(doc), "\n".repeat(lines - 1 - doc))
    }

    #[test]
    fn files_are_short() {
        assert_eq!(findings("a.rs", &file(600, 5)), []);
        assert_eq!(findings("a.rs", &file(601, 5)), [(1, Severity::Warning)]);
        assert_eq!(findings("a.rs", &file(801, 5)), [(1, Severity::Error)]);
        assert_eq!(findings("b/main.rs", &file(101, 5)), [(1, Severity::Error)]);
        assert_eq!(findings("domain.rs", &file(101, 5)), []);
    }

    #[test]
    fn files_have_a_header() {
        assert_eq!(findings("a.rs", "//! Doc.\n"), [(1, Severity::Error)]);
        assert_eq!(findings("a.rs", &format!("{SPDX}\nfn a() {{}}\n")), [(2, Severity::Error)]);
        assert_eq!(findings("a.rs", &file(151, 4)), [(2, Severity::Error)]);
        assert_eq!(findings("a.rs", &file(150, 1)), []);
        for tests in ["a_tests.rs", "a/tests.rs", "a/tests/b.rs"] {
            assert_eq!(findings(tests, &file(151, 1)), []);
        }
    }

    #[test]
    fn functions_are_short() {
        let long = |lines: usize| format!("{}fn a() {{\n{}}}\n", file(2, 1), "\n".repeat(lines - 2));
        assert_eq!(findings("a.rs", &long(70)), []);
        assert_eq!(findings("a.rs", &long(71)), [(3, Severity::Error)]);
    }

    #[test]
    fn unfinished_work_is_found() {
        let [first, second, third] = WORDS;
        assert_eq!(findings("a.md", &format!("a {first}: b\n{second}\n/tmp/a.{third}{third}\n")).len(), 2);
        let [a, b, c] = CODE;
        assert_eq!(findings("a.rs", &format!("{}{a})\n{b})\n{c}]\n\"{a})\" // {a})\n", file(2, 1))).len(), 3);
    }

    #[test]
    fn registries_are_named_in_the_lock_file_only() {
        assert_eq!(findings("a.toml", &format!("x = \"https://{}/y\"", HOSTS[0])), [(1, Severity::Error)]);
        for lock in ["Cargo.lock", "fuzz/Cargo.lock"] {
            assert_eq!(findings(lock, &format!("x = \"https://{}/y\"", HOSTS[0])), []);
        }
    }
}
