// SPDX-License-Identifier: Apache-2.0
//! Scrubbing: what it has found, how it goes; begun, bounded.

use crate::args::Scrub as Asked;
use crate::client::{Body, Client};
use crate::failure::Result;
use crate::out::{self, Table, moment};
use hyper::Method;
use varve_server::api::model::{Scrub, SetScrub};
use varve_types::format_size;

/// Changes what is asked for, and shows how it goes.
pub async fn run(asked: &Asked, client: &Client, json: bool) -> Result<()> {
    let set = SetScrub { rate_bytes: asked.rate, now: asked.now };
    let state: Scrub = if set == SetScrub::default() {
        client.get("/v1/scrub").await?
    } else {
        client.ask(Method::PATCH, "/v1/scrub", Body::json(&set)?).await?
    };
    out::show(json, &state, render)
}

fn render(state: &Scrub) -> String {
    let doing = match (state.rate_bytes, state.running) {
        (None, false) => "off",
        (None, true) => "off, once what is under way has ended",
        (_, true) => "at work",
        (_, false) => "rests",
    };
    let mut table = Table::default();
    table.pair("scrubbing", doing);
    table.pair("rate", state.rate_bytes.map_or("none".to_owned(), |rate| format!("{} a second", format_size(rate))));
    if let Some(pass) = &state.pass {
        let (objects, bytes) = (pass.objects, format_size(pass.read_bytes));
        table.pair("this pass", format!("{objects} objects, {bytes} since {}", moment(pass.begun_ms)));
    }
    table.pair("passes", state.passes.to_string());
    table.pair("last ended", state.ended_ms.map_or("not yet".to_owned(), moment));
    table.pair("proved", format!("{} objects, {}", state.objects, format_size(state.read_bytes)));
    table.pair("damaged", state.findings.len().to_string());
    let mut text = table.render("");
    for finding in &state.findings {
        let (object, volume, message) = (&finding.object, &finding.volume, &finding.message);
        text.push_str(&format!("\n{object}\n  of volume {volume}, since {}: {message}\n", moment(finding.found_ms)));
    }
    if !state.findings.is_empty() {
        text.push_str(
            "\nReads of what they have lost are answered with errors. Bring it back from a copy, or overwrite it.\n",
        );
    }
    text
}
