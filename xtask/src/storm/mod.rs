// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask storm`: a cluster on hosts of its own, disturbed in every way alone and in every pair of ways, under a load whose history is proved.
//!
//! Hosts are network namespaces: three nodes, etcd and an edge, real programs each ([`crate::fleet`]). An **episode**: the load begins; one fault strikes, then perhaps another
//! ([`fault`]); after some seconds they are undone; the load has to get on, and the cluster to become whole again, with a mirror in sync; then everything that the load was
//! answered has to be what one disk could have answered ([`history`]), and nothing may have failed. Between two episodes nothing is made anew: what one has broken the next one finds.
//!
//! Not part of `cargo xtask test`: the whole matrix takes the better part of an hour. Needs root.

mod fault;
mod history;
mod load;

use crate::fleet::{Fleet, Plan, VOLUME, Who};
use crate::process::until;
use crate::stage::minutes;
use crate::{guard, provision, repo};
use anyhow::{Context as _, Result, ensure};
use fault::{Fault, Role};
use load::{BLOCKS, Load};
use std::path::Path;
use std::time::{Duration, Instant};
use varve_lab::random::Random;

/// How long the load may take to begin, and to get on once all is undone.
const GET_ON: Duration = Duration::from_secs(60);
/// Operations of each client until it counts as begun.
const BEGUN: u64 = 30;
/// Bytes of the volume.
const SIZE: u64 = 64 << 20;

#[derive(clap::Args)]
pub struct Options {
    /// Stop behind so many minutes [default: when each combination had its turn]
    #[arg(long)]
    minutes: Option<u64>,
    /// The order of combinations, and the moments, of an earlier run.
    #[arg(long)]
    seed: Option<u64>,
    /// Only combinations with this fault, such as `owner-kill`; with several, of those that are named.
    #[arg(long)]
    only: Vec<String>,
    /// Each combination so many times.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    times: u32,
}

/// Builds, starts, disturbs.
pub fn run(options: &Options) -> Result<bool> {
    ensure!(provision::run()?, "something that is needed is not there");
    println!("building the release");
    let programs = repo::build(&["varve", "varve-edge"], true)?;
    let directory = programs.join(format!("storm-{}", std::process::id()));
    std::fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    guard::add_directory(&directory)?;
    let result = storm(options, &programs.join("varve"), &directory);
    // What it came to is told first, whatever becomes of its files.
    let removed = std::fs::remove_dir_all(&directory).with_context(|| format!("removing {}", directory.display()));
    if removed.is_ok() {
        guard::remove_directory(&directory);
    }
    result.and(removed).map(|()| true)
}

fn storm(options: &Options, varve: &Path, directory: &Path) -> Result<()> {
    let seed = options.seed.unwrap_or_else(Random::seed);
    println!("seed {seed}");
    let mut random = Random::new(seed);
    let chosen = chosen(&options.only)?;
    let mut turns: Vec<_> = (0..options.times).flat_map(|_| chosen.clone()).collect();
    random.shuffle(&mut turns);
    let plan = Plan { directory: directory.to_owned(), varve: varve.to_owned(), size: SIZE, apart: true };
    let mut fleet = Fleet::start(plan)?;
    let (start, mut blocks, mut worst) = (Instant::now(), vec![0; BLOCKS as usize], Duration::ZERO);
    let (mut operations, mut count) = (0, 0);
    for (turn, faults) in (0_u64..).zip(&turns) {
        if options.minutes.is_some_and(|most| start.elapsed() > Duration::from_secs(most * 60)) {
            break;
        }
        let name = faults.iter().map(Fault::to_string).collect::<Vec<_>>().join(" + ");
        let episode = episode(&mut fleet, faults, &mut random, turn, &mut blocks);
        let told = episode.with_context(|| {
            format!("{name} (turn {}, seed {seed}); the last words of all:\n{}", turn + 1, fleet.last_words())
        })?;
        let (time, stall) = (minutes(start.elapsed()), told.stall.as_millis());
        println!(
            "{:>4}/{} {name:<28} {:>6} operations, longest {stall:>6} ms ({time})",
            turn + 1,
            turns.len(),
            told.operations
        );
        worst = worst.max(told.stall);
        operations += told.operations;
        count += 1;
    }
    let all = turns.len();
    println!(
        "{count} of {all} combinations, {operations} operations, each block's history linearizable, nothing failed; longest operation {} ms",
        worst.as_millis()
    );
    Ok(())
}

/// The combinations that are wanted.
fn chosen(only: &[String]) -> Result<Vec<Vec<Fault>>> {
    let all = fault::combinations();
    for name in only {
        ensure!(all.iter().flatten().any(|fault| fault.to_string() == *name), "there is no fault {name}");
    }
    let is_named = |fault: &Fault| only.contains(&fault.to_string());
    let is_wanted = |faults: &Vec<Fault>| match only {
        [] => true,
        [_] => faults.iter().any(is_named),
        _ => faults.iter().all(is_named),
    };
    Ok(all.into_iter().filter(is_wanted).collect())
}

/// What came of an episode.
struct Told {
    operations: usize,
    stall: Duration,
}

fn episode(fleet: &mut Fleet, faults: &[Fault], random: &mut Random, turn: u64, blocks: &mut Vec<u64>) -> Result<Told> {
    let owner = fleet.settled()?;
    let mirror = fleet.mirror(owner)?;
    let who = |role| match role {
        Role::Owner => Who::Node(owner),
        Role::Mirror => Who::Node(mirror),
        Role::Etcd => Who::Etcd,
        Role::Edge => Who::Edge,
    };
    let mut load = Load::start(&fleet.socket(), VOLUME, random, turn)?;
    gets_on(&mut load, BEGUN)?;
    let mut struck = faults.to_vec();
    random.shuffle(&mut struck);
    for fault in struck {
        pause(random, 1500);
        fault.strike(fleet, who(fault.role)).with_context(|| fault.to_string())?;
    }
    pause(random, 6000);
    let mut undone = faults.to_vec();
    random.shuffle(&mut undone);
    undone.sort_by_key(|fault| fault.order());
    for fault in undone {
        fault.undo(fleet, who(fault.role)).with_context(|| format!("the undoing of {fault}"))?;
        pause(random, 500);
    }
    gets_on(&mut load, BEGUN)?;
    fleet.settled()?;
    let (operations, after) = load.finish()?;
    history::check(blocks, &operations).map_err(|why| anyhow::anyhow!("no disk answers so: {why}"))?;
    *blocks = after;
    let stall = operations.iter().map(|operation| operation.answered - operation.invoked).max().unwrap_or_default();
    Ok(Told { operations: operations.len(), stall: Duration::from_nanos(stall) })
}

/// Waits until every client was answered so often from now on.
fn gets_on(load: &mut Load, times: u64) -> Result<()> {
    let before = load.done();
    until(GET_ON, "every client to get on", || {
        load.must_live()?;
        Ok(load.done().iter().zip(&before).all(|(done, before)| *done >= before + times))
    })
}

/// Lets time pass, up to so many milliseconds: faults strike at no moment of anybody's choice.
fn pause(random: &mut Random, most_ms: u64) {
    std::thread::sleep(Duration::from_millis(random.below(most_ms)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn combinations_are_chosen_by_name() {
        let count = |only: &[&str]| {
            chosen(&only.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).map(|all| all.len())
        };
        assert_eq!(count(&[]).unwrap(), 154);
        assert_eq!(count(&["owner-kill"]).unwrap(), 15);
        assert_eq!(count(&["owner-kill", "etcd-cut-in"]).unwrap(), 3);
        assert!(count(&["owner-sleeps"]).is_err());
    }
}
