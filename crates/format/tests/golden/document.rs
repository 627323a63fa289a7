// SPDX-License-Identifier: Apache-2.0
//! The examples in `docs/formats.md` are the golden files, field by field.
//!
//! An example stands between `<!-- golden: FILE -->` and `<!-- /golden -->`. Every structure that has fields has one there, and every one there is of
//! a structure. `VARVE_GOLDEN=write` fills in those that differ: the document follows the golden files, which follow nothing.

use crate::dump::dump;
use crate::{Golden, all, writing};
use std::fs;
use std::path::PathBuf;

const END: &str = "<!-- /golden -->";

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/formats.md")
}

/// The document.
pub fn text() -> String {
    fs::read_to_string(path()).unwrap()
}

fn begin(golden: &Golden) -> String {
    format!("<!-- golden: {} -->", golden.file)
}

/// What belongs between the marks of a structure.
fn example(golden: &Golden) -> String {
    let bytes = golden.bytes();
    let shown = dump(&bytes, &(golden.fields)());
    let summary = format!("<details><summary>Example: <code>{}</code>, {} bytes</summary>", golden.file, bytes.len());
    format!("\n{summary}\n\n```text\n{shown}```\n\n</details>\n")
}

/// Begin and end of what stands between the marks.
fn place(document: &str, golden: &Golden) -> Option<(usize, usize)> {
    let mark = begin(golden);
    let start = document.find(&mark)? + mark.len();
    Some((start, start + document[start..].find(END)?))
}

#[test]
fn examples_are_the_golden_files() {
    let mut document = text();
    let before = document.clone();
    let shown = all().into_iter().filter(|golden| !(golden.fields)().is_empty()).collect::<Vec<_>>();
    for golden in &shown {
        let (start, end) =
            place(&document, golden).unwrap_or_else(|| panic!("docs/formats.md lacks {}", begin(golden)));
        let example = example(golden);
        if writing() {
            document.replace_range(start..end, &example);
        }
        assert!(
            document[start..].starts_with(&example) && document[start + example.len()..].starts_with(END),
            "docs/formats.md differs from {}; it should say:\n{example}",
            golden.file
        );
    }
    assert_eq!(document.matches("<!-- golden: ").count(), shown.len(), "an example is of no structure");
    if document != before {
        fs::write(path(), document).unwrap();
    }
}
