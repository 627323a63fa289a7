// SPDX-License-Identifier: Apache-2.0
//! The group of fail-over: how long a guest waits when the node that runs its volume is lost.
//!
//! A load writes through an edge; the owner of its volume is killed, cut off, or stopped; the longest write of the load is what the guest has noticed, as the
//! load itself measures it, whatever the programs think that they did. Each disturbance has a run at each depth in a round, and none begins before the cluster
//! is as it was: all nodes there, one owner, a mirror in sync. A run in which nobody took over is an error, not a short stall.
//!
//! What counts is the worst of all runs, so it is taken at the end, over all rounds ([`conclude`]).

use super::fio::{Access, Load, export, run_on};
use super::goals::OURS;
use super::ground::Ground;
use super::groups::Values;
use super::stats::{Samples, short};
use super::targets::Kind;
use crate::fleet::{Fleet, VOLUME, Way, Who};
use crate::process::until;
use anyhow::{Context, Result, ensure};
use std::time::Duration;

/// The part of the volume that is written.
const RANGE_BYTES: u64 = 1 << 30;
/// The shortest load: time to begin, for a disturbance, and for what comes after it.
const SHORTEST_SECONDS: u32 = 10;
/// Within that the load has to have begun.
const BEGIN: Duration = Duration::from_secs(30);
/// So many writes, and it has.
const BEGUN_WRITES: u64 = 200;

/// What is done to the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disturbance {
    /// SIGKILL.
    Kill,
    /// Packets to and from it are dropped, until another has taken over.
    Cut,
    /// SIGSTOP, until another has taken over.
    Stop,
}

/// The rows of a disturbance: those of its runs, the depth of each, and those over all of them.
struct Rows {
    disturbance: Disturbance,
    stalls: [(u32, &'static str); 2],
    worst: &'static str,
    runs: &'static str,
}

const ROWS: [Rows; 3] = [
    Rows {
        disturbance: Disturbance::Kill,
        stalls: [(1, "failover.kill.stall_qd1_ms"), (32, "failover.kill.stall_qd32_ms")],
        worst: "failover.kill.stall_max_ms",
        runs: "failover.kill.runs",
    },
    Rows {
        disturbance: Disturbance::Cut,
        stalls: [(1, "failover.cut.stall_qd1_ms"), (32, "failover.cut.stall_qd32_ms")],
        worst: "failover.cut.stall_max_ms",
        runs: "failover.cut.runs",
    },
    Rows {
        disturbance: Disturbance::Stop,
        stalls: [(1, "failover.stop.stall_qd1_ms"), (32, "failover.stop.stall_qd32_ms")],
        worst: "failover.stop.stall_max_ms",
        runs: "failover.stop.runs",
    },
];

/// A turn: a new cluster, and a run of each disturbance at each depth.
pub fn measure(ground: &Ground, _: Kind, round: u32) -> Result<Values> {
    let mut fleet = Fleet::start(ground.fleet()?)?;
    let mut values = Values::new();
    for rows in &ROWS {
        for (depth, row) in rows.stalls {
            let load = Load {
                access: Access::RandomWrite,
                block_bytes: 4096,
                depth,
                flush: false,
                range_bytes: ground.size.min(RANGE_BYTES),
                seconds: Some(ground.seconds.max(SHORTEST_SECONDS)),
                ramp_seconds: 0,
                seed: 1000 + round,
                times: 1,
                rate: None,
            };
            let stall = disturbed(&mut fleet, &load, rows.disturbance, round);
            let stall = stall.with_context(|| {
                format!(
                    "{:?} at a depth of {depth}; what the programs said last:\n{}",
                    rows.disturbance,
                    fleet.last_words()
                )
            })?;
            values.push((row, stall));
        }
    }
    Ok(values)
}

/// The longest write of a load, in ms, during which the owner was disturbed.
fn disturbed(fleet: &mut Fleet, load: &Load, disturbance: Disturbance, round: u32) -> Result<f64> {
    let owner = fleet.settled()?;
    let before = fleet.writes()?;
    let place = export(&fleet.socket(), VOLUME);
    let measured = std::thread::scope(|scope| {
        let load = scope.spawn(|| run_on(load, true, &[place]));
        let done = until(BEGIN, "the load to write", || Ok(fleet.writes()? >= before + BEGUN_WRITES)).and_then(|()| {
            ensure!(!load.is_finished(), "the load ended before the owner was disturbed");
            // Not always at the same moment of the load, nor of what nodes do every so often.
            std::thread::sleep(Duration::from_millis(1000 + u64::from(round) * 137 % 1000));
            disturb(fleet, owner, disturbance)
        });
        let measured = load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        done.and(measured)
    })?;
    if disturbance == Disturbance::Kill {
        fleet.taken_over_from(owner)?;
        fleet.start_node(owner)?;
    }
    Ok(measured.max_us / 1000.0)
}

fn disturb(fleet: &mut Fleet, owner: usize, disturbance: Disturbance) -> Result<()> {
    match disturbance {
        Disturbance::Kill => fleet.kill(Who::Node(owner)),
        Disturbance::Cut => {
            fleet.cut(Who::Node(owner), Way::Both)?;
            let taken = fleet.taken_over_from(owner);
            fleet.heal(Who::Node(owner), Way::Both)?;
            taken
        }
        Disturbance::Stop => {
            fleet.stop(Who::Node(owner))?;
            let taken = fleet.taken_over_from(owner);
            fleet.go_on(Who::Node(owner))?;
            taken
        }
    }
}

/// Adds the worst of all runs of each disturbance, and how many there were.
pub fn conclude(samples: &mut Samples) {
    for rows in &ROWS {
        let spreads: Vec<_> = rows.stalls.iter().filter_map(|(_, row)| samples.spread(row, OURS)).collect();
        let Some(worst) = spreads.iter().map(|spread| spread.max).reduce(f64::max) else { continue };
        let runs = u32::try_from(spreads.iter().map(|spread| spread.samples.len()).sum::<usize>()).unwrap_or(u32::MAX);
        println!("failover: {:?}: {} ms in the worst of {runs} runs", rows.disturbance, short(worst));
        samples.add(rows.worst, OURS, 0, worst);
        samples.add(rows.runs, OURS, 0, f64::from(runs));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_run_counts_whatever_its_depth() {
        let mut samples = Samples::default();
        conclude(&mut samples);
        assert!(samples.spread("failover.kill.runs", OURS).is_none());
        for (round, stall) in [(0, 300.0), (1, 900.0), (2, 400.0)] {
            samples.add("failover.kill.stall_qd1_ms", OURS, round, stall);
            samples.add("failover.kill.stall_qd32_ms", OURS, round, stall + f64::from(round));
        }
        conclude(&mut samples);
        let only = |row| samples.spread(row, OURS).unwrap().samples;
        assert_eq!(only("failover.kill.stall_max_ms"), [901.0]);
        assert_eq!(only("failover.kill.runs"), [6.0]);
        assert!(samples.spread("failover.stop.runs", OURS).is_none());
    }

    #[test]
    fn its_rows_are_rows() {
        let known = |key: &str| super::super::groups::ROWS.iter().any(|row| row.key == key);
        for rows in &ROWS {
            assert!(known(rows.worst) && known(rows.runs) && rows.stalls.iter().all(|(_, row)| known(row)));
        }
    }
}
