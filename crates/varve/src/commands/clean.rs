// SPDX-License-Identifier: Apache-2.0
//! Cleaning: shown, paused, bounded.

use crate::args::Clean;
use crate::client::{Body, Client};
use crate::failure::Result;
use crate::out::{self, Table};
use hyper::Method;
use varve_server::api::model::{Cleaning, SetCleaning};
use varve_types::format_size;

/// Changes what is asked for, and shows how it goes.
pub async fn run(clean: &Clean, client: &Client, json: bool) -> Result<()> {
    let paused = (clean.pause || clean.resume).then_some(clean.pause);
    let set = SetCleaning { paused, rate_bytes: clean.rate };
    let state: Cleaning = if set == SetCleaning::default() {
        client.get("/v1/cleaning").await?
    } else {
        client.ask(Method::PATCH, "/v1/cleaning", Body::json(&set)?).await?
    };
    out::show(json, &state, render)
}

fn render(state: &Cleaning) -> String {
    let doing = match (state.occupancy_percent, state.paused, state.running) {
        (0, ..) => "off (clean-occupancy is 0)",
        (_, true, true) => "paused, once what is under way has ended",
        (_, true, false) => "paused",
        (_, false, true) => "at work",
        (_, false, false) => "nothing to do",
    };
    let stored = state.live_bytes + state.dead_bytes;
    let percent = (u128::from(state.live_bytes) * 100).checked_div(u128::from(stored)).unwrap_or(100);
    let mut table = Table::default();
    table.pair("cleaning", doing);
    table
        .pair("rate", state.rate_bytes.map_or("no bound".to_owned(), |rate| format!("{} a second", format_size(rate))));
    table.pair("stored", format!("{}, {percent} % of it alive", format_size(stored)));
    table.pair("dead", format_size(state.dead_bytes));
    if state.occupancy_percent > 0 {
        table.pair("begins", format!("where less than {} % of a volume's blocks are alive", state.occupancy_percent));
    }
    table.pair("jobs", format!("{} done, {} given up", state.jobs, state.failed_jobs));
    if state.worker_jobs + state.refused_jobs + state.expired_jobs > 0 {
        let (done, refused, expired) = (state.worker_jobs, state.refused_jobs, state.expired_jobs);
        table.pair("of workers", format!("{done} done, {refused} refused, {expired} not heard of"));
    }
    table.pair("moved", format!("{} read, {} put", format_size(state.read_bytes), format_size(state.put_bytes)));
    let mut text = table.render("");
    if !state.workers.is_empty() {
        let mut table = Table::new(&["WORKER", "DOES", "DONE", "FAILED", "HEARD OF"]).right(&[2, 3]);
        for worker in &state.workers {
            let does =
                if worker.running { format!("{} read", format_size(worker.read_bytes)) } else { "waits".to_owned() };
            let heard = format!("{} ago", out::duration(worker.heard_ms));
            let (done, failed) = (worker.jobs.to_string(), worker.failed_jobs.to_string());
            table.row(vec![worker.name.to_string(), does, done, failed, heard]);
        }
        text.push('\n');
        text.push_str(&table.render(""));
    }
    text
}
