// SPDX-License-Identifier: Apache-2.0
//! `varve rewind`: lists the moments of a volume's recent past, and makes a volume of one.
//!
//! A moment is told as people write it: how long ago (`5m`), or when, in UTC (`2026-01-02 03:04:05`). What is brought back is the last moment at or before it.

use crate::client::{Body, Client};
use crate::failure::Result;
use crate::out;
use clap::Args;
use hyper::Method;
use varve_server::api::model;
use varve_types::{Name, format_size, parse_duration_ms};

/// Moments that are listed.
const LISTED: u32 = 20;
/// Longest way back that can be asked for: longer than any window.
const MOST_AGO_MS: u64 = 366 * 24 * 3_600_000;

/// Which moment, of which volume.
#[derive(Debug, Args)]
pub struct Rewind {
    /// The volume
    volume: Name,
    /// Name of the new volume, which is what the other one was then
    #[arg(required_unless_present = "list", conflicts_with = "list")]
    new: Option<Name>,
    /// The moment, in UTC: `2026-01-02 03:04:05`, or with a T and a Z as in RFC 3339
    #[arg(long, value_parser = parse_moment, value_name = "TIME", conflicts_with_all = ["ago", "list"], required_unless_present_any = ["ago", "list"])]
    to: Option<u64>,
    /// How long ago, as `30s`, `5m`, `2h`
    #[arg(long, value_parser = parse_ago, value_name = "TIME", conflicts_with = "list")]
    ago: Option<u64>,
    /// Show what can be had
    #[arg(long)]
    list: bool,
}

/// Does it.
pub async fn run(rewind: Rewind, client: &Client, json: bool) -> Result<()> {
    let Rewind { volume, new, to, ago, .. } = rewind;
    let path = format!("/v1/volumes/{volume}/rewind");
    let Some(name) = new else {
        let points: model::RewindPoints = client.get(&format!("{path}?most={LISTED}")).await?;
        return out::show(json, &points, |points| list(&volume, points));
    };
    let body = Body::json(&model::Rewind { name, to_ms: to, ago_ms: ago })?;
    let rewound: model::Rewound = client.ask(Method::POST, &path, body).await?;
    out::show(json, &rewound, |rewound| {
        format!("{} is what {volume} was at {}\n", rewound.volume.name, out::moment(rewound.at_ms))
    })
}

/// What can be had, for people.
fn list(volume: &Name, points: &model::RewindPoints) -> String {
    let model::RewindPoints { window_ms, count, oldest_ms, ref latest_ms, held_bytes } = *points;
    let (Some(oldest), Some(latest)) = (oldest_ms, latest_ms.last()) else {
        return match window_ms {
            0 => format!("{volume} keeps nothing of its past: its rewind-window is 0s\n"),
            _ => format!(
                "{volume} has no moment to go back to yet: nothing was written since its window was turned on\n"
            ),
        };
    };
    let mut text = format!(
        "{} of {volume}, from {} to {}; {} are kept for them alone\n",
        out::count(count, "moment"),
        out::moment(oldest),
        out::moment(*latest),
        format_size(held_bytes)
    );
    if (latest_ms.len() as u64) < count {
        text.push_str(&format!("the latest {}:\n", latest_ms.len()));
    }
    latest_ms.iter().for_each(|at| text.push_str(&format!("  {}\n", out::moment(*at))));
    text
}

fn parse_ago(text: &str) -> std::result::Result<u64, String> {
    let wrong = || format!("{text:?} is no time that has passed: write 30s, 5m, 2h or 1d");
    parse_duration_ms(text, 0, MOST_AGO_MS).ok_or_else(wrong)
}

fn parse_moment(text: &str) -> std::result::Result<u64, String> {
    let wrong = || format!("{text:?} is no moment: write 2026-01-02 03:04:05, in UTC");
    // To the end of that second: a moment is shown without its milliseconds, and is meant when it is typed.
    out::parse_moment(text).map(|ms| ms + 999).ok_or_else(wrong)
}
