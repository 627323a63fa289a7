// SPDX-License-Identifier: Apache-2.0
//! Reads how many tests passed and failed out of what a test runner printed.
//!
//! Two runners are known: `cargo nextest` (one `Summary` line a run) and `cargo test` (one `test result` line a binary). A run
//! that printed neither counted nothing, and its stage then counts as one check that passed or failed by its exit code.

/// Tests that passed and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Passed, slow and leaky ones too.
    pub passed: u64,
    /// Failed, timed out or failed to start.
    pub failed: u64,
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// Adds up what the runner's closing lines say.
pub fn count(output: &str) -> Count {
    let mut sum = Count::default();
    for line in output.lines() {
        let line = without_colours(line);
        let line = line.trim();
        if line.starts_with("Summary [") || line.starts_with("test result:") {
            sum += count_line(line);
        }
    }
    sum
}

/// `N word` pairs, whatever stands between them.
fn count_line(line: &str) -> Count {
    let words: Vec<&str> = line.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let mut count = Count::default();
    for pair in words.windows(2) {
        let Ok(number) = pair[0].parse::<u64>() else { continue };
        match pair[1] {
            "passed" => count.passed += number,
            // nextest: "1 failed", "1 timed out", "1 exec failed"
            "failed" | "timed" | "exec" => count.failed += number,
            _ => {}
        }
    }
    count
}

fn without_colours(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' {
            // "ESC [ parameters letter"
            for end in characters.by_ref() {
                if end.is_ascii_alphabetic() {
                    break;
                }
            }
        } else {
            plain.push(character);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_runners_are_read() {
        let nextest = "\u{1b}[32;1m     Summary\u{1b}[0m [   1.204s] \u{1b}[1m12\u{1b}[0m tests run: 9 passed (1 slow), 1 failed, 2 timed out, 3 skipped";
        assert_eq!(count(nextest), Count { passed: 9, failed: 3 });
        let test = "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s\n\
                    test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s";
        assert_eq!(count(test), Count { passed: 6, failed: 2 });
    }

    #[test]
    fn other_lines_count_nothing() {
        assert_eq!(count("running 3 tests\n3 passed, 1 failed\nSummary of it: 4 passed"), Count::default());
    }
}
