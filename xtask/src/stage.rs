// SPDX-License-Identifier: Apache-2.0
//! A stage: one step of `check` or `test`, with a deadline, and the table of what the stages did.
//!
//! A stage either runs a command or a piece of this program. It counts the tests that its command's output names; a stage
//! that names none counts as one check. A stage that failed without a failed test (it did not build, or it ran out of time)
//! adds one failure, so that the closing line never says less than what went wrong.

use crate::count::{Count, count};
use crate::process::{Echo, command_line, run};
use anyhow::Result;
use std::process::Command;
use std::time::{Duration, Instant};

/// What a stage does.
pub enum Work {
    /// Runs a command; its success is the stage's.
    Command(Box<Command>),
    /// Runs a piece of this program; `false` is a failure.
    Function(Box<dyn FnOnce() -> Result<bool>>),
}

/// One step.
pub struct Stage {
    /// What people call it.
    pub name: String,
    /// What it does.
    pub work: Work,
    /// When it is ended by force.
    pub deadline: Duration,
    /// Whether the stages after it make no sense when it fails.
    pub needed: bool,
}

/// What came of a stage.
pub struct Outcome {
    /// The stage's name.
    pub name: String,
    /// How long it took.
    pub time: Duration,
    /// Its tests, or itself as one check.
    pub count: Count,
    /// What to say of it: `ok`, `FAILED` or `OUT OF TIME`.
    pub verdict: &'static str,
    /// What a person would type to run it alone.
    pub rerun: String,
}

impl Outcome {
    /// Whether all went well.
    pub fn ok(&self) -> bool {
        self.count.failed == 0
    }
}

/// Runs one stage and says so. `remaining` is what is left of the whole run's time.
pub fn run_stage(stage: Stage, remaining: Duration) -> Outcome {
    let deadline = stage.deadline.min(remaining);
    println!("── {} (at most {})", stage.name, minutes(deadline));
    let start = Instant::now();
    let (count, verdict, rerun) = match stage.work {
        Work::Command(command) => run_command(*command, deadline),
        Work::Function(function) => {
            let rerun = format!("cargo xtask {}", stage.name);
            match function() {
                Ok(true) => (Count { passed: 1, failed: 0 }, "ok", rerun),
                Ok(false) => (Count { passed: 0, failed: 1 }, "FAILED", rerun),
                Err(error) => {
                    eprintln!("error: {error:#}");
                    (Count { passed: 0, failed: 1 }, "FAILED", rerun)
                }
            }
        }
    };
    let time = start.elapsed();
    println!("── {}: {verdict} in {}\n", stage.name, minutes(time));
    Outcome { name: stage.name, time, count, verdict, rerun }
}

fn run_command(mut command: Command, deadline: Duration) -> (Count, &'static str, String) {
    let line = command_line(&command);
    println!("   {line}");
    // A test of this module must not print closing lines of its own into the closing lines of its runner.
    let echo = if cfg!(test) { Echo::No } else { Echo::Yes };
    let finished = match run(&mut command, deadline, echo) {
        Ok(finished) => finished,
        Err(error) => {
            eprintln!("error: {error:#}");
            return (Count { passed: 0, failed: 1 }, "FAILED", line);
        }
    };
    let mut sum = count(&finished.stdout);
    sum += count(&finished.stderr);
    if finished.ok() {
        if sum == Count::default() {
            sum.passed = 1;
        }
        // A runner that reports success with failed tests would be lying; what it printed is believed.
        return (sum, if sum.failed == 0 { "ok" } else { "FAILED" }, line);
    }
    if sum.failed == 0 || finished.timed_out {
        sum.failed += 1;
    }
    (sum, if finished.timed_out { "OUT OF TIME" } else { "FAILED" }, line)
}

/// `1m 05s`, or `3.2s` when it is short.
pub fn minutes(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds < 60 { format!("{:.1}s", time.as_secs_f64()) } else { format!("{}m {:02}s", seconds / 60, seconds % 60) }
}

/// Prints the table of the stages and the closing line that CI reads; gives whether nothing failed.
pub fn summarize(outcomes: &[Outcome], not_run: &[String]) -> bool {
    let mut sum = Count::default();
    println!("{:<24} {:>9} {:>8} {:>8}  result", "stage", "time", "passed", "failed");
    for outcome in outcomes {
        let Outcome { name, count, verdict, .. } = outcome;
        println!("{name:<24} {:>9} {:>8} {:>8}  {verdict}", minutes(outcome.time), count.passed, count.failed);
        sum += outcome.count;
    }
    for name in not_run {
        println!("{name:<24} {:>9} {:>8} {:>8}  not run", "-", "-", "-");
    }
    let total = outcomes.iter().map(|outcome| outcome.time).sum();
    println!("{:<24} {:>9}\n", "all", minutes(total));
    for outcome in outcomes.iter().filter(|outcome| !outcome.ok()) {
        println!("{} failed; alone: {}", outcome.name, outcome.rerun);
    }
    println!("{} passed, {} failed", sum.passed, sum.failed);
    sum.failed == 0 && not_run.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, deadline: Duration) -> Stage {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Stage { name: "s".to_owned(), work: Work::Command(Box::new(command)), deadline, needed: false }
    }

    fn counts(script: &str) -> (u64, u64) {
        let outcome = run_stage(shell(script, Duration::from_secs(30)), Duration::MAX);
        (outcome.count.passed, outcome.count.failed)
    }

    #[test]
    fn a_stage_counts_its_tests_or_itself() {
        assert_eq!(counts("true"), (1, 0));
        assert_eq!(counts("false"), (0, 1));
        assert_eq!(counts("echo 'test result: ok. 4 passed; 0 failed;'"), (4, 0));
        assert_eq!(counts("echo 'test result: FAILED. 4 passed; 2 failed;' >&2; exit 1"), (4, 2));
        assert_eq!(counts("echo 'test result: ok. 4 passed; 0 failed;'; exit 1"), (4, 1));
    }

    #[test]
    fn a_stage_past_its_deadline_is_ended_with_all_its_children() {
        let start = Instant::now();
        let outcome = run_stage(shell("sleep 600 & sleep 600; true", Duration::from_millis(200)), Duration::MAX);
        assert_eq!((outcome.verdict, outcome.count.failed), ("OUT OF TIME", 1));
        assert!(start.elapsed() < Duration::from_secs(60), "took {:?}", start.elapsed());
    }

    #[test]
    fn times_are_readable() {
        assert_eq!(minutes(Duration::from_millis(1234)), "1.2s");
        assert_eq!(minutes(Duration::from_secs(125)), "2m 05s");
    }
}
