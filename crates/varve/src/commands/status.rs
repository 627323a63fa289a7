// SPDX-License-Identifier: Apache-2.0
//! The state of the node, once or again and again.
//!
//! While watched, each volume also has its rates, from the difference of two answers; a node that does not answer for a moment (it is started
//! again, say) is waited for. With `--json` each answer is a line.
//!
//! What is being freed in the background has a table of its own, while there is something.

use super::volume;
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::out::{self, Table};
use std::io::IsTerminal;
use std::time::Duration;
use varve_server::api::model::{Fill, PoolStatus, Status, StoreState, VolumeStatus};
use varve_types::format_size;

const PERIOD: Duration = Duration::from_secs(1);
/// Clears the screen and goes to its corner.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Shows it.
pub async fn run(watch: bool, client: &Client, json: bool) -> Result<()> {
    let mut status: Status = client.get("/v1/status").await?;
    if !watch {
        return out::show(json, &status, |status| render(status, None));
    }
    let clear = if std::io::stdout().is_terminal() { CLEAR } else { "" };
    let mut before = None;
    loop {
        if json {
            let line = serde_json::to_string(&status);
            out::print(&(line.map_err(|error| Failure::failed(error.to_string()))? + "\n"))?;
        } else {
            out::print(&format!("{clear}{}\n", render(&status, before.as_ref())))?;
        }
        before = Some(status);
        status = loop {
            tokio::time::sleep(PERIOD).await;
            match client.get("/v1/status").await {
                Ok(status) => break status,
                Err(failure) => out::complain(&failure.message),
            }
        };
    }
}

fn fill(fill: &Fill) -> String {
    let percent = u128::from(fill.used_bytes) * 100 / u128::from(fill.limit_bytes.max(1));
    format!("{} of {} ({percent} %)", format_size(fill.used_bytes), format_size(fill.limit_bytes))
}

fn render(status: &Status, before: Option<&Status>) -> String {
    let mut table = Table::default();
    table.pair("node", format!("{}, Varve {}, up {}", status.node, status.version, out::duration(status.uptime_ms)));
    if let (Some(id), Some(cluster)) = (&status.node_id, &status.cluster) {
        table.pair("cluster", format!("{cluster}, of which it is node {id}"));
    }
    table.pair("data", status.data.as_str());
    let listen = |socket: &str, port: &Option<String>| match port {
        Some(port) => format!("{socket}, {port}"),
        None => socket.to_owned(),
    };
    table.pair("NBD", listen(&status.nbd_socket, &status.nbd_listen));
    table.pair("edges", listen(&status.edge_socket, &status.edge_listen));
    if let Some(address) = &status.api_listen {
        table.pair("API", address.as_str());
    }
    for journal in &status.journals {
        let failed = if journal.failed { ", FAILED" } else { "" };
        let leaving = if journal.leaving { ", no longer configured" } else { "" };
        table.pair("journal", format!("{}{failed}{leaving}, {}", fill(&journal.fill), journal.path));
    }
    table.pair("layers", fill(&status.layers));
    table.pair("maps", fill(&status.map));
    let of_cache = |state: &Fill, hits: u64, misses: u64| {
        let part = (u128::from(hits) * 100).checked_div(u128::from(hits) + u128::from(misses));
        format!("{}{}", fill(state), part.map_or(String::new(), |part| format!(", {part} % hits")))
    };
    table.pair("cache", of_cache(&status.cache, status.cache_hits, status.cache_misses));
    if status.ssd_cache.limit_bytes > 0 {
        table.pair("cache on SSD", of_cache(&status.ssd_cache, status.ssd_cache_hits, status.ssd_cache_misses));
    }
    if status.gone_volumes > 0 {
        let what = format!("{} of {}, for their clones", format_size(status.gone_bytes), count(status.gone_volumes));
        table.pair("kept", what);
    }
    let mut text = table.render("");
    text.push('\n');
    text.push_str(&pools(&status.pools));
    if !status.volumes.is_empty() {
        text.push('\n');
        text.push_str(&volumes(status, before));
    }
    let freeing = freeing(status);
    if !freeing.is_empty() {
        text.push('\n');
        text.push_str(&freeing);
    }
    for warning in &status.warnings {
        text.push_str(&format!("\nwarning: {warning}"));
    }
    if !status.warnings.is_empty() {
        text.push('\n');
    }
    text
}

fn pools(pools: &[PoolStatus]) -> String {
    let mut table = Table::new(&["POOL", "VOLUMES", "REQUESTS", "OLDEST", "STORE", "STATE"]).right(&[1, 2, 3]);
    for pool in pools {
        let state = match pool.state {
            StoreState::Ok => "ok",
            StoreState::Unavailable => "unavailable",
            StoreState::Full => "full",
            StoreState::Lost => "lost",
        };
        let state = pool.message.as_ref().map_or(state.to_owned(), |message| format!("{state}: {message}"));
        let oldest = pool.oldest_request_ms.map_or("-".to_owned(), |ms| format!("{}.{} s", ms / 1000, ms % 1000 / 100));
        let (volumes, requests) = (pool.volumes.to_string(), pool.requests.to_string());
        table.row(vec![pool.name.to_string(), volumes, requests, oldest, pool.store.clone(), state]);
    }
    table.render("")
}

fn count(gone: u64) -> String {
    if gone == 1 { "a deleted volume".to_owned() } else { format!("{gone} deleted volumes") }
}

/// What is being freed in the background; nothing where that is nothing.
fn freeing(status: &Status) -> String {
    if status.endings.is_empty() && status.volumes.iter().all(|volume| volume.reclaim_bytes == 0) {
        return String::new();
    }
    let mut table = Table::new(&["FREEING", "WHAT", "LEFT", "DONE", "STATE"]).right(&[2, 3]);
    for ending in &status.endings {
        let what = if ending.whole { "deleted volume" } else { "hidden history" };
        table.row(vec![
            ending.volume.to_string(),
            what.to_owned(),
            format!("{} objects", ending.left_objects),
            ending.deleted_objects.to_string(),
            ending.message.as_ref().map_or("at work".to_owned(), |why| format!("waits: {why}")),
        ]);
    }
    for volume in status.volumes.iter().filter(|volume| volume.reclaim_bytes > 0) {
        let left = format!("up to {}", format_size(volume.reclaim_bytes));
        table.row(vec![volume.name.to_string(), "discarded".to_owned(), left, "-".to_owned(), "at work".to_owned()]);
    }
    table.render("")
}

fn volumes(status: &Status, before: Option<&Status>) -> String {
    let mut titles = vec!["VOLUME", "POOL", "SIZE", "USED", "DIRTY", "CLIENTS", "STATE"];
    if before.is_some() {
        titles.extend(["READ", "WRITTEN"]);
    }
    let mut table = Table::new(&titles).right(&[2, 3, 4, 5, 7, 8]);
    for now in &status.volumes {
        let mut row = vec![
            now.name.to_string(),
            now.pool.to_string(),
            format_size(now.size_bytes),
            format_size(now.live_bytes),
            format_size(now.dirty_bytes),
            now.attached.to_string(),
            volume::state(now.state).to_owned(),
        ];
        if let Some(before) = before {
            row.extend(rates(now, status, before));
        }
        table.row(row);
    }
    table.render("")
}

/// What was read and written a second since the answer before; nothing where the node was started since.
fn rates(now: &VolumeStatus, status: &Status, before: &Status) -> [String; 2] {
    let old = before.volumes.iter().find(|old| old.name == now.name);
    let Some(old) = old.filter(|_| before.started_ms == status.started_ms) else {
        return ["-".to_owned(), "-".to_owned()];
    };
    let ms = status.uptime_ms.saturating_sub(before.uptime_ms);
    [(now.io.read_bytes, old.io.read_bytes), (now.io.written_bytes, old.io.written_bytes)]
        .map(|(now, old)| out::rate(now.saturating_sub(old), ms))
}
