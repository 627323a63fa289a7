// SPDX-License-Identifier: Apache-2.0
//! What a fuzzer says at its end, as a row of a table.
//!
//! libFuzzer writes lines for people: `#N … cov: C ft: F …` now and then, `stat::NAME: VALUE` at its end, and `Test unit written to PATH`
//! of an input that broke something. A process that failed without naming an input (it was killed, its corpus could not be read) is a
//! failure too, and the end of what it said is shown.

use crate::process::Finished;

/// Lines at the end of a failed target that are shown.
const TAIL: usize = 12;
/// Lines of a panic that are shown, the calls that led there among them.
const PANIC: usize = 40;

/// What came of a target.
pub struct Report {
    /// Its name.
    pub target: String,
    /// Inputs that it was run on.
    pub executions: u64,
    /// The same a second.
    pub a_second: u64,
    /// Edges of the code that were reached.
    pub coverage: u64,
    /// Edges, and how often: what the fuzzer steers by.
    pub features: u64,
    /// The input that broke it, if one did.
    pub crash: Option<String>,
    /// The end of what a target said that failed.
    pub failure: Option<String>,
}

impl Report {
    /// Reads it from what the fuzzer said.
    pub fn new(target: &str, finished: &Finished) -> Self {
        let said = &finished.stderr;
        let word = |name: &str| said.lines().rev().find_map(|line| number_behind(line, name)).unwrap_or(0);
        let crash = said.lines().find_map(|line| line.split_once("Test unit written to ").map(|(_, path)| path.trim()));
        let failure = (!finished.ok()).then(|| tail(said));
        Self {
            target: target.to_owned(),
            executions: word("stat::number_of_executed_units:"),
            a_second: word("stat::average_exec_per_sec:"),
            coverage: word(" cov:"),
            features: word(" ft:"),
            crash: crash.map(str::to_owned),
            failure,
        }
    }

    /// One word for the table.
    pub fn verdict(&self) -> &'static str {
        match (&self.failure, &self.crash) {
            (None, _) => "ok",
            (Some(_), Some(_)) => "BROKEN",
            (Some(_), None) => "FAILED",
        }
    }
}

/// The number behind a word on a line.
fn number_behind(line: &str, name: &str) -> Option<u64> {
    let (_, rest) = line.split_once(name)?;
    rest.split_whitespace().next()?.parse().ok()
}

/// The panic, if there was one, and the end.
fn tail(said: &str) -> String {
    let lines: Vec<&str> = said.lines().collect();
    let end = lines.len().saturating_sub(TAIL);
    let panic = lines.iter().position(|line| line.contains(" panicked at ")).unwrap_or(end).min(end);
    let shown = lines[panic..end.min(panic + PANIC)].iter().chain(&lines[end..]);
    shown.copied().collect::<Vec<_>>().join("\n")
}

/// Prints failures and the table; whether there are no failures.
pub fn print(reports: &[Report]) -> bool {
    for report in reports {
        if let Some(failure) = &report.failure {
            println!("\n── {}\n{failure}", report.target);
        }
    }
    println!("\n{:<12} {:>12} {:>9} {:>9} {:>9}  result", "target", "executions", "a second", "edges", "features");
    for report in reports {
        let Report { target, executions, a_second, coverage, features, .. } = report;
        println!("{target:<12} {executions:>12} {a_second:>9} {coverage:>9} {features:>9}  {}", report.verdict());
    }
    for report in reports {
        if let Some(crash) = &report.crash {
            println!("again: cargo xtask fuzz {} --replay {crash}", report.target);
        }
    }
    reports.iter().all(|report| report.failure.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    fn report(code: i32, said: &str) -> Report {
        let status = ExitStatus::from_raw(code << 8);
        let finished = Finished { status, timed_out: false, stdout: String::new(), stderr: said.to_owned() };
        Report::new("node", &finished)
    }

    #[test]
    fn the_last_figures_are_read() {
        let said = "#2\tINITED cov: 5 ft: 6 corp: 1/1b exec/s: 0 rss: 30Mb\n#512\tpulse  cov: 70 ft: 90 corp: 9/80b\n\
                    #900\tDONE   cov: 71 ft: 95 corp: 9/80b lim: 8 exec/s: 300 rss: 31Mb\nDone 900 runs in 3 second(s)\n\
                    stat::number_of_executed_units: 900\nstat::average_exec_per_sec:     300\n";
        let report = report(0, said);
        assert_eq!((report.executions, report.a_second, report.coverage, report.features), (900, 300, 71, 95));
        assert_eq!((report.verdict(), report.crash), ("ok", None));
    }

    #[test]
    fn a_crash_names_its_input_and_a_failure_without_one_is_a_failure() {
        let said = "thread panicked\nartifact_prefix='x/'; Test unit written to x/crash-1\nBase64: AA==\n";
        let crash = report(77, said);
        assert_eq!((crash.verdict(), crash.crash.as_deref()), ("BROKEN", Some("x/crash-1")));
        assert!(!print(&[crash]));
        let failed = report(1, "no such corpus\n");
        assert_eq!((failed.verdict(), failed.failure.as_deref()), ("FAILED", Some("no such corpus")));
    }
}
