// SPDX-License-Identifier: Apache-2.0
//! The group of the whole path: a guest's load through an edge, a node and its mirror, beside what it is compared with.
//!
//! One write at a time is made of wake-ups and of sockets, so it is compared with three processes that pass the same payload over the same kinds of sockets and
//! do nothing ([`echo`]); many at once with a server without a disk or a network. CPU is that of all our processes, edge and nodes, until they are quiet.

use super::echo;
use super::fio::{Access, Load, Measured, export, run_on};
use super::ground::{Ground, quiet_disk};
use super::groups::{HIT_BYTES, Values, load};
use super::targets::Kind;
use crate::fleet::{Fleet, Network, VOLUME, host};
use crate::process::{Daemon, until};
use anyhow::{Context, Result, bail};
use std::time::Duration;

/// How long an echo may take until it serves.
const START: Duration = Duration::from_secs(30);
const ECHO_PORT: u16 = 7430;

/// What is loaded: where fio finds it, how to wait until it is quiet, and the CPU time that it has used.
struct Loaded<'a> {
    place: Vec<String>,
    settle: &'a dyn Fn() -> Result<()>,
    cpu_seconds: &'a dyn Fn() -> Result<f64>,
}

impl Loaded<'_> {
    /// A load on what is quiet, and the CPU time of it in microseconds a request.
    fn run(&self, load: &Load) -> Result<(Measured, f64)> {
        (self.settle)()?;
        quiet_disk();
        let before = (self.cpu_seconds)()?;
        let measured = run_on(load, true, std::slice::from_ref(&self.place))?;
        (self.settle)()?;
        Ok((measured, ((self.cpu_seconds)()? - before) * 1e6 / measured.ios))
    }

    /// Writes and then reads, 32 under way; the reads are of what was written and read before.
    fn deep(&self, ground: &Ground, round: u32) -> Result<[(Measured, f64); 2]> {
        let write = self.run(&load(ground, Access::RandomWrite, 32, round))?;
        let read = Load { range_bytes: HIT_BYTES, ..load(ground, Access::RandomRead, 32, round) };
        let fill = Load { access: Access::Write, block_bytes: 1 << 20, depth: 4, seconds: None, ..read.clone() };
        self.run(&fill)?;
        self.run(&Load { access: Access::Read, ..fill })?;
        Ok([write, self.run(&read)?])
    }
}

/// A turn of one of them.
pub fn measure(ground: &Ground, kind: Kind, round: u32) -> Result<Values> {
    match kind {
        Kind::Varve => ours(ground, round),
        Kind::EchoChain => chain(ground, round),
        Kind::NbdkitMemory => {
            let target = kind.start(ground, &[VOLUME.to_owned()])?;
            let settle = || target.settle();
            let loaded = Loaded { place: target.fio_place(VOLUME), settle: &settle, cpu_seconds: &|| Ok(0.0) };
            let [(write, _), (read, _)] = loaded.deep(ground, round)?;
            Ok(vec![("path_write_qd32", write.iops), ("path_read_qd32", read.iops)])
        }
        _ => bail!("{} has no part in this group", kind.name()),
    }
}

fn ours(ground: &Ground, round: u32) -> Result<Values> {
    let fleet = Fleet::start(ground.fleet()?)?;
    let (settle, cpu_seconds) = (|| fleet.settle(), || fleet.cpu_seconds());
    let loaded = Loaded { place: export(&fleet.socket(), VOLUME), settle: &settle, cpu_seconds: &cpu_seconds };
    let (idle, _) = fleet.edge_mib()?;
    let (single, _) = loaded.run(&load(ground, Access::RandomWrite, 1, round))?;
    let measured = loaded.deep(ground, round).with_context(|| fleet.last_words());
    let [(write, write_us), (read, read_us)] = measured?;
    let (_, most) = fleet.edge_mib()?;
    Ok(vec![
        ("path_write_qd1", single.iops),
        ("path_write_qd32", write.iops),
        ("path_read_qd32", read.iops),
        ("path_cpu_write_qd32", write_us),
        ("path_cpu_read_qd32", read_us),
        ("edge_rss_idle", idle),
        ("edge_rss_loaded", most),
    ])
}

/// Three processes where the edge, the node and the mirror would be.
fn chain(ground: &Ground, round: u32) -> Result<Values> {
    let directory = ground.scratch(Kind::EchoChain)?;
    let network = Network::new(2, &directory)?;
    let program = std::env::current_exe().context("where is this program?")?;
    let socket = directory.join("nbd.sock");
    let [near, far] = [0, 1].map(|number| format!("{}:{ECHO_PORT}", host(number)));
    let mut echoes = Vec::new();
    let mut start = |mut command: std::process::Command, arguments: &[&str]| -> Result<()> {
        let log = directory.join(format!("echo-{}.log", echoes.len()));
        echoes.push(Daemon::start(command.arg(echo::SUBCOMMAND).args(arguments), &log)?);
        Ok(())
    };
    start(network.on_host(1, &program), &["--listen", &far])?;
    start(network.on_host(0, &program), &["--listen", &near, "--to", &far])?;
    let (path, size) = (socket.display().to_string(), ground.size.to_string());
    start(network.on_router(&program), &["--socket", &path, "--to", &near, "--size", &size])?;
    let settle = || Ok(());
    let loaded = Loaded { place: export(&socket, VOLUME), settle: &settle, cpu_seconds: &|| Ok(0.0) };
    // It serves when a few writes have come through.
    let probe = Load { range_bytes: 1 << 20, seconds: None, ..load(ground, Access::RandomWrite, 1, round) };
    until(START, "the chain to serve", || {
        for echo in &mut echoes {
            echo.must_live()?;
        }
        Ok(run_on(&probe, true, std::slice::from_ref(&loaded.place)).is_ok())
    })?;
    let (single, _) = loaded.run(&load(ground, Access::RandomWrite, 1, round))?;
    Ok(vec![("path_write_qd1", single.iops)])
}
