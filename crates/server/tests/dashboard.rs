// SPDX-License-Identifier: Apache-2.0
//! The dashboard in `docs/grafana` against the metrics that a node has: each knows all that the other names.
//!
//! Nobody looks at a panel that has gone empty until it is needed, and nobody misses a metric that no panel shows. So a query may name only samples, labels and
//! fixed values of labels that a node tells, and every metric is in a query or in a list of those that are left out, with the reason.

#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use varve_engine::Stage;
use varve_serve::Operation;
use varve_server::node::{MetricInfo, metric_infos};

/// Metrics that no panel shows.
const LEFT_OUT: &[&str] = &[
    // `varve_journal_failed` says whether there is one; which, `varve status` tells.
    "varve_journal_device_failed",
    // The counts of `varve_store_seconds` say the same, by operation.
    "varve_store_puts",
    "varve_store_gets",
    "varve_store_deletes",
];
/// What Prometheus itself adds to every sample.
const ADDED: &[&str] = &["instance", "job"];

fn dashboard() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/grafana/varve.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Every query of the dashboard: of its panels and of its variables.
fn queries(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::String(text) if key == "expr" || key == "query" => found.push(text.clone()),
                    value => queries(value, found),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|value| queries(value, found)),
        _ => {}
    }
}

fn is_of_a_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_'
}

/// The samples that a query names, each with what stands in braces behind it.
fn samples(query: &str) -> Vec<(String, Vec<(String, String)>)> {
    let mut found = Vec::new();
    for (start, _) in query.match_indices("varve_") {
        let rest = &query[start..];
        let name: String = rest.chars().take_while(|c| is_of_a_name(*c)).collect();
        let selector = rest[name.len()..].strip_prefix('{').and_then(|rest| rest.split_once('}'));
        let matchers = selector.map_or("", |(inside, _)| inside).split(',').filter(|matcher| !matcher.is_empty());
        let matcher = |text: &str| {
            let label: String = text.chars().take_while(|c| is_of_a_name(*c)).collect();
            let value = text.split('"').nth(1).unwrap_or_else(|| panic!("{text} in {query}")).to_owned();
            (label, value)
        };
        found.push((name, matchers.map(matcher).collect()));
    }
    found
}

/// The labels by which a query sums up or legends may tell rows apart.
fn grouped(query: &str) -> BTreeSet<String> {
    let lists = query.split("by (").skip(1).filter_map(|rest| rest.split_once(')'));
    lists.flat_map(|(list, _)| list.split(", ").map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// The values that a fixed label can have; `None` for those that people choose.
fn fixed(label: &str) -> Option<Vec<&'static str>> {
    match label {
        "stage" => Some(Stage::ALL.map(Stage::name).to_vec()),
        // Operations on stores are not asked for by name.
        "operation" => Some(Operation::ALL.map(Operation::name).to_vec()),
        "level" => Some(vec!["ram", "ssd"]),
        _ => None,
    }
}

#[test]
fn the_dashboard_names_only_what_a_node_tells() {
    let known: BTreeMap<String, MetricInfo> = metric_infos()
        .into_iter()
        .flat_map(|info| info.samples().into_iter().map(move |s| (s, info.clone())))
        .collect();
    let mut all = Vec::new();
    queries(&dashboard(), &mut all);
    assert!(all.len() > 60, "the dashboard has lost its queries: {}", all.len());
    for query in &all {
        for (name, matchers) in samples(query) {
            let info = known.get(&name).unwrap_or_else(|| panic!("no node tells {name}: {query}"));
            let has = |label: &str| {
                info.labels.contains(&label) || ADDED.contains(&label) || (label == "le" && name.ends_with("_bucket"))
            };
            for label in grouped(query) {
                assert!(has(&label), "{name} has no label {label}: {query}");
            }
            for (label, value) in matchers {
                assert!(has(&label), "{name} has no label {label}: {query}");
                let is_known = value.starts_with('$') || fixed(&label).is_none_or(|all| all.contains(&&*value));
                assert!(is_known, "{label} is never {value}: {query}");
            }
        }
    }
}

#[test]
fn every_metric_is_in_the_dashboard_or_left_out_for_a_reason() {
    let mut all = Vec::new();
    queries(&dashboard(), &mut all);
    let shown: BTreeSet<String> = all.iter().flat_map(|query| samples(query)).map(|(name, _)| name).collect();
    let is_shown = |info: &MetricInfo| info.samples().iter().any(|sample| shown.contains(sample));
    let infos = metric_infos();
    let hidden: Vec<_> = infos.iter().filter(|info| !is_shown(info)).map(|info| &*info.name).collect();
    assert_eq!(hidden, LEFT_OUT, "left: in no query; right: said to be in none");
}

#[test]
fn the_dashboard_can_be_imported_anywhere() {
    let dashboard = dashboard();
    assert_eq!((&dashboard["schemaVersion"], &dashboard["uid"]), (&Value::from(39), &Value::from("varve")));
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "each panel has an id of its own");
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{}", panel["title"]);
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty() && targets.iter().all(|t| t["datasource"]["uid"] == "${datasource}"), "{panel}");
    }
}

#[test]
fn what_a_query_names_is_found() {
    let found = samples(r#"sum(rate(varve_a_total{stage="room",volume=~"$volume"}[5m])) / varve_b"#);
    let matchers = [("stage", "room"), ("volume", "$volume")].map(|(l, v)| (l.to_owned(), v.to_owned()));
    assert_eq!(found, [("varve_a_total".to_owned(), matchers.to_vec()), ("varve_b".to_owned(), Vec::new())]);
    assert_eq!(grouped("sum by (le, stage) (x)"), ["le", "stage"].map(str::to_owned).into());
}
