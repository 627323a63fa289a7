// SPDX-License-Identifier: Apache-2.0
//! The metrics of a real node, read by the parser that the makers of Prometheus have written: it takes them, they are those of the reference, and they say
//! what was done.

#![allow(clippy::unwrap_used)]

mod real;

use real::{DEADLINE, Node, Run, varve};
use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};
use varve_lab::process::{find_program, wait_until};

/// The number that a sample has.
fn sample(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

/// The families that the parser finds: name, kind and number of samples.
fn families(text: &str) -> Vec<(String, String, u64)> {
    let package = "prometheus-client (PyPI; `cargo xtask provision` installs it)";
    let program = find_program("openmetrics-families", package).unwrap();
    let mut command = Command::new(program);
    let mut parser = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    parser.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let out = Run::from(parser.wait_with_output().unwrap()).ok();
    let family = |line: &str| {
        let [name, kind, samples] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
        (name.to_owned(), kind.to_owned(), samples.parse().unwrap())
    };
    out.lines().map(family).collect()
}

#[test]
fn a_real_parser_finds_what_the_reference_lists() {
    let node = Node::start(&["--volume", "disk:64M", "--volume", "idle:1M"]);
    node.qemu_io("disk", &["write -P 1 0 1M", "flush", "read -P 1 0 1M", "discard 0 64k", "write -P 2 4M 1M"]);
    // The last client has left: what it wrote goes to the store.
    node.until_status("everything to be in the store", |status| {
        status["volumes"].as_array().unwrap().iter().all(|volume| volume["dirty_bytes"] == 0)
    });
    let answer = node.metrics();
    let (_, text) = answer.split_once("\r\n\r\n").unwrap();
    let found = families(text);

    let reference = Run::from(varve().args(["reference", "metrics"]).output().unwrap()).ok();
    let rows = reference.lines().filter_map(|line| line.strip_prefix("| `varve_"));
    let listed: Vec<_> = rows
        .map(|row| {
            let mut cells = row.split(" | ");
            let name = format!("varve_{}", cells.next().unwrap().trim_end_matches('`'));
            (name, cells.next().unwrap().to_owned())
        })
        .collect();
    assert_eq!(found.iter().map(|(name, kind, _)| (name.clone(), kind.clone())).collect::<Vec<_>>(), listed);
    let samples: BTreeMap<_, _> = found.iter().map(|(name, _, samples)| (name.as_str(), *samples)).collect();
    // Four operations on one volume, 48 buckets each, sum and count; nothing of the volume that nobody used.
    assert_eq!(samples["varve_request_seconds"], 4 * 50);
    assert_eq!(samples["varve_volume_size_bytes"], 2);
}

#[test]
fn times_are_counted_where_they_pass() {
    let node = Node::start(&["--volume", "disk:64M"]);
    node.qemu_io("disk", &["write -P 1 0 1M", "flush", "read -P 1 0 1M", "discard 0 64k", "write -P 2 4M 1M"]);
    let count = |name: &str, labels: &str| sample(&node.metrics(), &format!("{name}_count{{{labels}}}")).unwrap_or(0.0);
    for operation in ["read", "write", "flush", "discard"] {
        let labels = format!("volume=\"disk\",pool=\"default\",operation=\"{operation}\"");
        assert!(count("varve_request_seconds", &labels) >= 1.0, "{operation}: {}", node.metrics());
    }
    for stage in ["journal_write", "journal_sync", "seal", "segment_put"] {
        let counted = || Ok(count("varve_stage_seconds", &format!("stage=\"{stage}\"")) >= 1.0);
        wait_until(DEADLINE, stage, counted).unwrap();
    }
    assert!(count("varve_store_seconds", "pool=\"default\",operation=\"put\"") >= 1.0);
    let text = node.metrics();
    assert!(sample(&text, "varve_layer_ram_limit_bytes").unwrap() > 0.0, "{text}");
    assert!(sample(&text, "varve_cache_limit_bytes{level=\"ram\"}").unwrap() > 0.0, "{text}");
    assert_eq!(sample(&text, "varve_stage_under_way{stage=\"room\"}"), Some(0.0), "{text}");
}
