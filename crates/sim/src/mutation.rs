// SPDX-License-Identifier: Apache-2.0
//! The mutation check: every planted bug has to be caught, and by a failure that the same seed does not have without it.

use crate::cli::{Arguments, seconds_now};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;
use varve_sim::swarm::{RunOptions, try_seed};
use varve_types::mutant::{Mutant, plant, strikes};

/// What became of a mutant.
struct Verdict {
    mutant: Mutant,
    /// Seeds that were run.
    seeds: u64,
    /// Whether its code was ever reached.
    reached: bool,
    /// What the seed that caught it says.
    caught: Option<String>,
    seconds: f64,
}

/// Runs seeds with a mutant until one fails that passes without it.
fn hunt(mutant: Mutant, from: u64, most: u64, options: &RunOptions) -> Verdict {
    let start = Instant::now();
    let mut verdict = Verdict { mutant, seeds: 0, reached: false, caught: None, seconds: 0.0 };
    while verdict.seeds < most && verdict.caught.is_none() {
        let seed = from + verdict.seeds;
        verdict.seeds += 1;
        plant(Some(mutant));
        let run = try_seed(seed, options);
        verdict.reached |= strikes() > 0;
        plant(None);
        if let Err(failure) = run
            && try_seed(seed, options).is_ok()
        {
            verdict.caught = Some(failure.message);
        }
    }
    verdict.seconds = start.elapsed().as_secs_f64();
    verdict
}

/// Runs the check and prints its table. True where every mutant was caught.
pub fn check(arguments: &Arguments) -> bool {
    let wanted: Vec<Mutant> = match &arguments.only {
        None => match arguments.rotate {
            None => Mutant::ALL.to_vec(),
            Some(count) => {
                let often: Vec<_> = Mutant::ALL.iter().filter(|mutant| !Mutant::RARE.contains(mutant)).collect();
                let first = seconds_now() as usize / 86_400 * count;
                often.iter().cycle().skip(first % often.len()).take(count.min(often.len())).map(|one| **one).collect()
            }
        },
        Some(names) => match names.split(',').map(str::parse).collect::<Result<_, _>>() {
            Ok(wanted) => wanted,
            Err(error) => {
                eprintln!("error: {error}; their names are in crates/types/src/mutant.rs");
                return false;
            }
        },
    };
    let (next, verdicts) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let options = RunOptions { ops: arguments.ops, pairs: arguments.pairs, ..RunOptions::default() };
    std::thread::scope(|scope| {
        for _ in 0..arguments.threads() {
            scope.spawn(|| {
                while let Some(mutant) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let verdict = hunt(*mutant, arguments.from.unwrap_or(0), arguments.seeds, &options);
                    tell(&verdict);
                    verdicts.lock().unwrap_or_else(PoisonError::into_inner).push(verdict);
                }
            });
        }
    });
    let verdicts = verdicts.into_inner().unwrap_or_else(PoisonError::into_inner);
    let missed: Vec<_> = verdicts.iter().filter(|verdict| verdict.caught.is_none()).collect();
    let most = verdicts.iter().filter(|verdict| verdict.caught.is_some()).map(|verdict| verdict.seeds).max();
    println!(
        "{} of {} mutants caught, the hardest in {} seeds",
        verdicts.len() - missed.len(),
        verdicts.len(),
        most.unwrap_or(0)
    );
    for verdict in &missed {
        println!("missed: {}: {}", verdict.mutant.name(), verdict.mutant.about());
    }
    missed.is_empty()
}

fn tell(verdict: &Verdict) {
    let Verdict { mutant, seeds, reached, caught, seconds } = verdict;
    let text = match caught {
        Some(message) => message.split_once(": ").map_or(message.as_str(), |(_, rest)| rest),
        None if *reached => "NOT CAUGHT, though its code was reached",
        None => "NOT CAUGHT: its code was never reached",
    };
    let text: String = text.chars().take(110).collect();
    println!("{:32} {seeds:>5} seeds {seconds:>6.1} s  {text}", mutant.name());
}
