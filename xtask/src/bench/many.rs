// SPDX-License-Identifier: Apache-2.0
//! The group of many: how long it takes until all volumes of a node that died serve again, on the others.
//!
//! Each volume has a client of its own, which writes a block now and then, one at a time: enough that every edge notices and asks, and little enough that the machine is not what
//! is measured. The figure is the time from the kill to the last first answer to a write that was asked behind it.

use super::ground::Ground;
use super::groups::Values;
use super::targets::Kind;
use crate::fleet::{Fleet, Who};
use crate::process::until;
use anyhow::{Context, Result, ensure};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use varve_lab::nbd::{Client, Command};

/// Volumes of the node.
const VOLUMES: usize = 200;
/// Between two writes of a volume.
const REST: Duration = Duration::from_millis(100);
/// How long all may take before it counts as never.
const MOST: Duration = Duration::from_secs(60);

/// A volume's client, as those see it who look on.
#[derive(Default)]
struct Seen {
    writes: AtomicU64,
    /// Milliseconds from the kill to the answer of the first write behind it, and one; 0 while there is none.
    back_ms: AtomicU64,
}

/// A turn: a new cluster, and the death of the node that runs everything.
pub fn measure(ground: &Ground, _: Kind, _: u32) -> Result<Values> {
    let mut fleet = Fleet::start(ground.fleet()?)?;
    let owner = fleet.settled()?;
    let names: Vec<String> = (0..VOLUMES).map(|number| format!("many{number}")).collect();
    fleet.add(owner, &names)?;
    let (stop, killed) = (AtomicBool::new(false), AtomicU64::new(u64::MAX));
    let (clock, seen): (_, Vec<Seen>) = (Instant::now(), names.iter().map(|_| Seen::default()).collect());
    let socket = fleet.socket();
    let served = std::thread::scope(|scope| {
        let (stop, killed, socket) = (&stop, &killed, &socket);
        let clients: Vec<_> = names
            .iter()
            .zip(&seen)
            .map(|(name, seen)| scope.spawn(move || write(Client::unix(socket, name)?, seen, stop, clock, killed)))
            .collect();
        let all = |done: &dyn Fn(&Seen) -> bool| {
            ensure!(
                stop.load(Ordering::Relaxed) || !clients.iter().any(|client| client.is_finished()),
                "a client has ended"
            );
            Ok(seen.iter().all(done))
        };
        let mut kill = || {
            until(MOST, "every volume to be written", || all(&|seen| seen.writes.load(Ordering::Relaxed) > 5))?;
            killed.store(elapsed_ms(clock), Ordering::Relaxed);
            fleet.kill(Who::Node(owner))?;
            until(MOST, "every volume to serve again", || all(&|seen| seen.back_ms.load(Ordering::Relaxed) > 0))
        };
        let waited = kill();
        stop.store(true, Ordering::Relaxed);
        let ended = clients
            .into_iter()
            .try_for_each(|client| client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        waited.and(ended.context("a client"))
    });
    served.with_context(|| fleet.last_words())?;
    let last = seen.iter().map(|seen| seen.back_ms.load(Ordering::Relaxed)).max().unwrap_or_default();
    #[allow(clippy::cast_precision_loss, reason = "a minute of milliseconds")]
    Ok(vec![("many_serve", last as f64)])
}

#[allow(clippy::cast_possible_truncation, reason = "milliseconds of centuries")]
fn elapsed_ms(clock: Instant) -> u64 {
    clock.elapsed().as_millis() as u64
}

fn write(mut client: Client, seen: &Seen, stop: &AtomicBool, clock: Instant, killed: &AtomicU64) -> Result<()> {
    let data = [7; 4096];
    while !stop.load(Ordering::Relaxed) {
        let asked = elapsed_ms(clock);
        client.run(Command::Write { fua: false }, 0, 4096, &data)?;
        seen.writes.fetch_add(1, Ordering::Relaxed);
        let killed = killed.load(Ordering::Relaxed);
        if asked > killed && seen.back_ms.load(Ordering::Relaxed) == 0 {
            seen.back_ms.store(elapsed_ms(clock) - killed + 1, Ordering::Relaxed);
        }
        std::thread::sleep(REST);
    }
    Ok(())
}
