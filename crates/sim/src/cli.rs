// SPDX-License-Identifier: Apache-2.0
//! The commands of `varve-sim`: many seeds with progress and a table of what was reached, or one seed with its log.
//!
//! Seeds are given out one by one to as many threads as there are cores; each runs its world alone, so nothing is shared but the counts. After
//! three failures no further seed is begun. Of the first failure a short form is looked for, and the command that replays it
//! is printed: a seed and the numbers of the steps that are enough. Nothing is written but to the terminal.

use clap::Parser;
use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use varve_sim::swarm::{Cover, Failure, RunOptions, shrink, try_seed};

/// Runs a failing seed is shortened with, at most.
const SHRINK_TRIES: u32 = 400;
/// Failures after which no further seed is begun.
const MOST_FAILURES: usize = 3;
/// What all seeds together reach less often than this proves little: the table marks it.
const ENOUGH: u64 = 100;

#[derive(Parser, Debug)]
#[command(name = "varve-sim", about = "Runs the engine in a simulated world, seed after seed")]
pub struct Arguments {
    /// How many seeds to run; with --mutants, for each at most.
    #[arg(long, default_value_t = 100)]
    pub seeds: u64,
    /// The first of them; by default chosen by the clock where --seconds is given, else 0.
    #[arg(long)]
    pub from: Option<u64>,
    /// Ends after so many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// Threads; all cores by default.
    #[arg(long)]
    threads: Option<usize>,
    /// Requests a seed.
    #[arg(long, default_value_t = 2000)]
    pub ops: u64,
    /// Runs this seed alone.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Of that seed only these steps: `3,7,20-25`.
    #[arg(long, requires = "seed")]
    steps: Option<String>,
    /// Prints the log of that seed.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Plants one bug after the other, and tells after how many seeds each is caught.
    #[arg(long)]
    pub mutants: bool,
    /// Of the bugs only these, by name, with commas between.
    #[arg(long, requires = "mutants")]
    pub only: Option<String>,
    /// Plants so many bugs only, others each day, and none of those that few seeds meet.
    #[arg(long, requires = "mutants", conflicts_with = "only")]
    pub rotate: Option<usize>,
    /// Runs of each seed only the pair of nodes, between which a volume goes.
    #[arg(long)]
    pub pairs: bool,
    /// Does not shorten a seed that fails.
    #[arg(long)]
    whole: bool,
}

impl Arguments {
    /// Threads to use.
    pub fn threads(&self) -> usize {
        self.threads.or_else(|| std::thread::available_parallelism().ok().map(Into::into)).unwrap_or(1)
    }
}

/// What all threads have done so far.
#[derive(Default)]
struct Tally {
    cover: Cover,
    ops: Vec<u64>,
    crashes: Vec<u64>,
    seconds: f64,
    failures: Vec<Failure>,
}

fn median(numbers: &mut [u64]) -> u64 {
    numbers.sort_unstable();
    numbers.get(numbers.len() / 2).copied().unwrap_or(0)
}

fn parse_steps(text: &str) -> Option<BTreeSet<u64>> {
    let mut steps = BTreeSet::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        match part.split_once('-') {
            None => drop(steps.insert(part.parse().ok()?)),
            Some((from, to)) => steps.extend(from.parse::<u64>().ok()?..=to.parse().ok()?),
        }
    }
    Some(steps)
}

fn format_steps(steps: &BTreeSet<u64>) -> String {
    let steps: Vec<u64> = steps.iter().copied().collect();
    let runs = steps.chunk_by(|a, b| a + 1 == *b);
    let texts = runs.map(|run| match run {
        [one] => one.to_string(),
        run => format!("{}-{}", run[0], run[run.len() - 1]),
    });
    texts.collect::<Vec<_>>().join(",")
}

fn command_of(failure: &Failure, ops: u64) -> String {
    let steps = failure.keep.as_ref().map_or_else(String::new, |keep| format!(" --steps {}", format_steps(keep)));
    let ops = if ops == RunOptions::default().ops { String::new() } else { format!(" --ops {ops}") };
    format!("cargo xtask sim --seed {}{ops}{steps} --trace", failure.seed)
}

/// Runs one seed.
pub fn replay(arguments: &Arguments) -> bool {
    let Some(seed) = arguments.seed else { return false };
    let keep = match arguments.steps.as_deref().map(parse_steps) {
        Some(None) => {
            eprintln!("error: --steps takes numbers and ranges: 3,7,20-25");
            return false;
        }
        keep => keep.flatten(),
    };
    let options =
        RunOptions { ops: arguments.ops, keep, log: arguments.trace, pairs: arguments.pairs, ..RunOptions::default() };
    match try_seed(seed, &options) {
        Ok(report) => {
            report.log.iter().for_each(|line| println!("{line}"));
            print!("{}", report.cover);
            println!(
                "seed {seed}: passed: {} requests in {} steps, {} deaths, {:.0} s of virtual time, trace {:016x}",
                report.ops, report.steps, report.crashes, report.seconds, report.trace
            );
            true
        }
        Err(failure) => {
            failure.log.iter().for_each(|line| println!("{line}"));
            println!("{}", failure.message);
            if !arguments.whole && !arguments.trace {
                tell_short(failure, &options);
            }
            false
        }
    }
}

/// Shortens a failing run and tells how to replay what is left.
fn tell_short(failure: Failure, options: &RunOptions) {
    println!("it fails with: {}", command_of(&failure, options.ops));
    let short = shrink(failure, options, SHRINK_TRIES, |left| eprint!("\rshortened to {left} steps   "));
    eprintln!();
    println!("shortened: {}", short.message);
    println!("{}", command_of(&short, options.ops));
}

/// Seconds since 1970: what chooses seeds and bugs that are others each time.
pub fn seconds_now() -> u64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs())
}

/// Runs many seeds on all cores.
pub fn many(arguments: &Arguments) -> bool {
    let from = arguments.from.unwrap_or_else(|| if arguments.seconds.is_some() { seconds_now() * 1000 } else { 0 });
    let seeds = if arguments.seconds.is_some() { u64::MAX - from } else { arguments.seeds };
    let end = arguments.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let tally = Mutex::new(Tally::default());
    let options = RunOptions { ops: arguments.ops, pairs: arguments.pairs, ..RunOptions::default() };
    let start = Instant::now();
    let work = || {
        while !stop.load(Ordering::Relaxed) && end.is_none_or(|end| Instant::now() < end) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= seeds {
                break;
            }
            let done = try_seed(from + number, &options);
            let mut tally = tally.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            match done {
                Ok(report) => {
                    tally.cover.merge(&report.cover);
                    tally.ops.push(report.ops);
                    tally.crashes.push(report.crashes);
                    tally.seconds += report.seconds;
                }
                Err(failure) => {
                    println!("\n{}", failure.message);
                    tally.failures.push(failure);
                    stop.store(tally.failures.len() >= MOST_FAILURES, Ordering::Relaxed);
                }
            }
            progress(&tally, start, seeds, arguments.seconds);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..arguments.threads() {
            scope.spawn(work);
        }
    });
    let tally = tally.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    summarize(tally, start, from, arguments, &options)
}

fn progress(tally: &Tally, start: Instant, seeds: u64, seconds: Option<u64>) {
    if !std::io::stderr().is_terminal() {
        return;
    }
    let (done, took) = (tally.ops.len() as u64, start.elapsed().as_secs_f64());
    let of =
        seconds.map_or_else(|| format!("of {seeds} seeds"), |seconds| format!("seeds in {took:.0} of {seconds} s"));
    eprint!("\r{done} {of}, {:.1} a second, {} failed   ", done as f64 / took, tally.failures.len());
}

fn summarize(mut tally: Tally, start: Instant, from: u64, arguments: &Arguments, options: &RunOptions) -> bool {
    let (done, took) = (tally.ops.len(), start.elapsed().as_secs_f64());
    eprintln!();
    print!("{}", tally.cover.judged(ENOUGH));
    println!(
        "{done} seeds from {from} passed in {took:.1} s, {:.1} a second: {} requests and {} deaths a seed (median), {:.1} days of virtual time",
        done as f64 / took,
        median(&mut tally.ops),
        median(&mut tally.crashes),
        tally.seconds / 86_400.0,
    );
    if let Some(failure) = tally.failures.first() {
        println!("{} failed; the first:", tally.failures.len());
        if arguments.whole {
            println!("{}\n{}", failure.message, command_of(failure, options.ops));
        } else {
            tell_short(failure.clone(), options);
        }
    }
    tally.failures.is_empty()
}
