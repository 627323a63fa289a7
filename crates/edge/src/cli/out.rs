// SPDX-License-Identifier: Apache-2.0
//! What is printed: JSON documents for programs, tables for eyes.
//!
//! Tables may change; the documents are those of [`varve_edge::daemon::document`], as the control socket tells them. Sizes are in binary units.
//!
//! Everything goes through `print`, which takes a reader that went away (`varve-edge stats | head`) for a reason to stop and not for an error.

use serde::Serialize;
use std::io::Write;
use varve_block::{BlockError, Result};
use varve_edge::daemon::document::{StatsDocument, VolumeDocument};
use varve_types::{ErrorKind, format_size};

/// Writes text to standard output. A reader that went away is a reason to stop, and no error.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(BlockError::new(ErrorKind::Internal, format!("standard output: {error}"))),
    }
}

/// Writes a line about what went wrong to standard error; where even that fails there is nobody to tell.
pub fn complain(message: &str) {
    let _ = writeln!(std::io::stderr(), "varve-edge: {message}");
}

/// Writes a document, or what people read instead of it.
pub fn show<T: Serialize>(json: bool, document: &T, human: impl FnOnce(&T) -> String) -> Result<()> {
    if !json {
        return print(&human(document));
    }
    let text = serde_json::to_string_pretty(document)
        .map_err(|error| BlockError::new(ErrorKind::Internal, format!("not to be written as JSON: {error}")))?;
    print(&(text + "\n"))
}

/// A table whose columns are as wide as they must be.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let pad =
            |(column, cell): (usize, &String)| format!("{cell}{}", " ".repeat(widths[column] - cell.chars().count()));
        let cells: Vec<String> = row.iter().enumerate().map(pad).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

/// A duration: the larger of its units.
fn duration(ms: u64) -> String {
    let seconds = ms / 1000;
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60) {
        (0, 0, 0) if seconds < 10 => format!("{seconds}.{} s", ms % 1000 / 100),
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min {} s", seconds % 60),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

/// What a volume is doing, as a person says it.
fn state(volume: &VolumeDocument) -> String {
    let since = duration(volume.for_ms);
    match (volume.state.as_str(), &volume.node) {
        ("connected", Some(node)) => format!("connected to {node} for {since}"),
        ("looking", _) => format!("looking for the owner for {since}"),
        ("attaching", _) => "attaching".to_owned(),
        (other, _) => format!("{other} for {since}"),
    }
}

/// The volumes.
pub fn volumes(all: &[VolumeDocument]) -> String {
    if all.is_empty() {
        return "There are no volumes here. To attach one: varve-edge attach VOLUME --node HOST:PORT\n".to_owned();
    }
    let mut rows = vec![row(&["VOLUME", "SIZE", "CLIENTS", "STATE", "NBD"])];
    for one in all {
        let clients = one.clients.to_string();
        rows.push(row(&[&one.volume, &format_size(one.size_bytes), &clients, &state(one), &one.nbd_uri]));
    }
    let mut text = table(&rows);
    for one in all {
        if let Some(trouble) = &one.trouble {
            text.push_str(&format!("{}: {trouble}\n", one.volume));
        }
    }
    text
}

/// What they have done.
pub fn stats(all: &[StatsDocument]) -> String {
    let mut text = String::new();
    for one in all {
        text.push_str(&format!(
            "{}: {}; {} reconnects, longest stall {}; {} kept\n",
            one.volume.volume,
            state(&one.volume),
            one.reconnects,
            duration(one.longest_stall_ms),
            format_size(one.kept_bytes)
        ));
        if let Some(trouble) = &one.volume.trouble {
            text.push_str(&format!("  {trouble}\n"));
        }
        let mut rows = vec![row(&["  OPERATION", "REQUESTS", "ERRORS", "BYTES", "MEAN us", "P50 us", "P99 us"])];
        for (name, done) in one.operations.iter().filter(|(_, done)| done.requests > 0) {
            let numbers = [done.mean_us, done.p50_us, done.p99_us].map(|number| number.to_string());
            let mut cells = vec![format!("  {name}"), done.requests.to_string(), done.errors.to_string()];
            cells.push(format_size(done.bytes));
            cells.extend(numbers);
            rows.push(cells);
        }
        text.push_str(&table(&rows));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_told_in_a_line() {
        let volume = VolumeDocument {
            volume: "disk".into(),
            state: "looking".into(),
            node: None,
            for_ms: 4200,
            trouble: Some("a:1: it hung up".into()),
            size_bytes: 1 << 30,
            read_only: false,
            clients: 2,
            nbd_uri: "nbd+unix:///disk?socket=/s".into(),
        };
        let text = volumes(&[volume]);
        assert_eq!(
            text,
            "VOLUME  SIZE   CLIENTS  STATE                            NBD\n\
             disk    1 GiB  2        looking for the owner for 4.2 s  nbd+unix:///disk?socket=/s\n\
             disk: a:1: it hung up\n"
        );
        assert_eq!([61_000, 3_723_000, 90_000_000].map(duration), ["1 min 1 s", "1 h 2 min", "1 d 1 h"]);
    }
}
