// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask fuzz`: every decoder of bytes from a disk, a network or a person, fed by a fuzzer for a set time.
//!
//! The targets are those of `fuzz/targets`, built without a sanitizer (no crate has unsafe code) and with debug assertions. Each run begins
//! with the corpus of the repository, `fuzz/corpus/TARGET`, goes on with what earlier runs found on this machine, `target/fuzz/finds/TARGET`,
//! and adds to the latter alone. An input that breaks something lands in `target/fuzz/crashes/TARGET`; the table at the end names the one
//! command that runs it again. Once the defect is mended the input belongs into the corpus, under a name that says what it was.
//!
//! As many targets run at once as there are cores, each a process with a bound of its RAM and of the time for one input.

mod report;

use crate::process::{Echo, Finished, command_line, run as run_process};
use crate::provision::cargo_fuzz;
use crate::repo;
use crate::stage::minutes;
use anyhow::{Context, Result, bail};
use report::{Report, print};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// For how long a target runs when nothing is said.
const SECONDS: u64 = 30;
/// A build from nothing, on a machine that does other things too.
const BUILD: Duration = Duration::from_secs(3600);
/// What a process may take beside the time that it fuzzes for: reading its corpus.
const GRACE: Duration = Duration::from_secs(120);
/// Most RAM of a process. The decoders take next to nothing; a connection of NBD may hold a few replies of some MiB.
const RAM_MIB: u32 = 1024;
/// Longest time for one input.
const INPUT_SECONDS: u32 = 20;
/// Longest input of a target, in bytes: the largest structure whose every part can be reached by it.
const LONGEST: u32 = 8192;

#[derive(clap::Args)]
pub struct Options {
    /// Targets to run; all of them when none is named.
    targets: Vec<String>,
    /// For how long each target runs.
    #[arg(long, default_value_t = SECONDS)]
    seconds: u64,
    /// Runs one target on this input alone, and shows all that it says.
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// Afterwards adds to the corpus of the repository what reaches something new, and as little of it as will do.
    #[arg(long)]
    keep: bool,
}

/// Builds and runs the targets; `false` when one of them broke.
pub fn run(options: &Options) -> Result<bool> {
    let known = targets()?;
    if let Some(unknown) = options.targets.iter().find(|target| !known.contains(target)) {
        bail!("there is no target {unknown:?}; there are {}", known.join(", "));
    }
    let chosen = if options.targets.is_empty() { known } else { options.targets.clone() };
    if options.replay.is_some() && chosen.len() != 1 {
        bail!("an input is replayed by one target: cargo xtask fuzz TARGET --replay FILE");
    }
    format()?;
    cargo_fuzz::provide()?;
    let start = Instant::now();
    build(&chosen)?;
    println!("   built in {}", minutes(start.elapsed()));
    if let Some(input) = &options.replay {
        return replay(&chosen[0], input);
    }
    let reports = fuzz_all(&chosen, options.seconds)?;
    let fine = print(&reports);
    if fine && options.keep {
        chosen.iter().try_for_each(|target| keep(target))?;
    }
    Ok(fine)
}

fn directory() -> PathBuf {
    repo::root().join("fuzz")
}

/// Where builds, finds and crashes are.
fn work() -> Result<PathBuf> {
    Ok(repo::metadata()?.target_directory.join("fuzz"))
}

/// The names of all targets, sorted.
fn targets() -> Result<Vec<String>> {
    let directory = directory().join("targets");
    let entries = std::fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("reading {}", directory.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}

/// The targets are a workspace of their own, which `cargo fmt --all` does not see.
fn format() -> Result<()> {
    let mut command = repo::cargo();
    command.args(["fmt", "--check", "--manifest-path"]).arg(directory().join("Cargo.toml"));
    let finished = run_process(&mut command, Duration::from_secs(60), Echo::Yes)?;
    if !finished.ok() {
        bail!("the fuzz targets are not formatted: cargo fmt --manifest-path fuzz/Cargo.toml");
    }
    Ok(())
}

fn build(targets: &[String]) -> Result<()> {
    let mut command = cargo_fuzz::command();
    command.arg("build").arg("--fuzz-dir").arg(directory()).args(["--sanitizer", "none", "--target-dir"]);
    command.arg(work()?.join("build"));
    // One by one only when it is one: together they share the build of all that they stand on.
    if let [target] = targets {
        command.arg(target);
    }
    println!("   building the targets");
    let finished = run_process(&mut command, BUILD, Echo::No)?;
    if !finished.ok() {
        bail!("`{}` failed:\n{}", command_line(&command), finished.stderr.trim_end());
    }
    Ok(())
}

/// The program of a target.
fn program(target: &str) -> Result<Command> {
    let built = work()?.join("build").join(format!("{}-unknown-linux-gnu", std::env::consts::ARCH));
    let mut command = Command::new(built.join("release").join(target));
    command.current_dir(repo::root()).env("RUST_BACKTRACE", "1");
    Ok(command)
}

fn replay(target: &str, input: &Path) -> Result<bool> {
    let input = std::path::absolute(input).context("the input's path")?;
    let mut command = program(target)?;
    command.arg(&input).arg(format!("-timeout={INPUT_SECONDS}")).arg(format!("-rss_limit_mb={RAM_MIB}"));
    let finished = run_process(&mut command, GRACE, Echo::Yes)?;
    println!("{target}: {}", if finished.ok() { "the input is taken" } else { "the input breaks it" });
    Ok(finished.ok())
}

/// Runs the targets, as many at once as there are cores.
fn fuzz_all(targets: &[String], seconds: u64) -> Result<Vec<Report>> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let waiting = Mutex::new(targets.iter().collect::<VecDeque<_>>());
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..cores.min(targets.len()) {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(target) = next else { return };
                    let result = fuzz(target, seconds);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push(result);
                }
            });
        }
    });
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut reports: Vec<Report> = done.into_iter().collect::<Result<_>>()?;
    reports.sort_by(|a, b| a.target.cmp(&b.target));
    Ok(reports)
}

fn fuzz(target: &str, seconds: u64) -> Result<Report> {
    let (corpus, finds, crashes) = places(target)?;
    let mut command = program(target)?;
    command.arg(&finds).arg(&corpus);
    command.arg(format!("-artifact_prefix={}/", crashes.display()));
    command.arg(format!("-max_total_time={seconds}")).arg(format!("-max_len={LONGEST}"));
    command.arg(format!("-rss_limit_mb={RAM_MIB}")).arg(format!("-timeout={INPUT_SECONDS}"));
    command.args(["-print_final_stats=1", "-reload=0"]);
    let finished: Finished = run_process(&mut command, Duration::from_secs(seconds) + GRACE, Echo::No)?;
    let report = Report::new(target, &finished);
    println!("   {target}: {}", report.verdict());
    Ok(report)
}

/// The corpus of the repository, what was found on this machine, and where crashes go. All are made.
fn places(target: &str) -> Result<(PathBuf, PathBuf, PathBuf)> {
    let work = work()?;
    let places =
        (directory().join("corpus").join(target), work.join("finds").join(target), work.join("crashes").join(target));
    for place in [&places.0, &places.1, &places.2] {
        std::fs::create_dir_all(place).with_context(|| format!("making {}", place.display()))?;
    }
    Ok(places)
}

/// Adds to the corpus what reaches more than it does.
fn keep(target: &str) -> Result<()> {
    let (corpus, finds, _) = places(target)?;
    let count = || Ok::<_, anyhow::Error>(std::fs::read_dir(&corpus).context("counting the corpus")?.count());
    let before = count()?;
    let mut command = program(target)?;
    // By what code is reached alone, not how often: else it would be thousands of files.
    command.args(["-set_cover_merge=1", "-use_counters=0", "-use_cmp=0", &format!("-max_len={LONGEST}")]);
    command.arg(&corpus).arg(&finds);
    let finished = run_process(&mut command, BUILD, Echo::No)?;
    if !finished.ok() {
        bail!("`{}` failed:\n{}", command_line(&command), finished.stderr.trim_end());
    }
    println!("   {target}: {} inputs were kept, {} are in the corpus", count()? - before, count()?);
    Ok(())
}
