// SPDX-License-Identifier: Apache-2.0
//! `varve up`: a node in the foreground.
//!
//! Reads the configuration, says what is served once it is, logs to standard error, and stops in good order on SIGTERM and Ctrl-C. Everything
//! else is the node's.
//!
//! How a process logs and is told to stop is the same for all of them, and stands in `varve_server::daemon`.

use crate::failure::{Failure, Result};
use crate::out::{self, Table};
use clap::Args;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use varve_config::{ConfigError, FileConfig, Listen, LogFormat, VolumeSpec};
use varve_server::daemon;
use varve_server::node::{Hooks, Serving, up};
use varve_types::{Name, format_size};

/// How to run a node.
#[derive(Debug, Args)]
pub struct Up {
    /// The data directory: journal, sockets, and the store unless another is given [default: ./varve-data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The store of the pool `default`: file:///DIR or s3://BUCKET/PREFIX?endpoint=URL [default: DIR/store]
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// A volume to be there, made when it is not; may be given again
    #[arg(long = "volume", value_name = "NAME:SIZE")]
    volumes: Vec<VolumeSpec>,
    /// Serve NBD on this address too [default: the socket DIR/nbd.sock alone]
    #[arg(long, value_name = "ADDR")]
    nbd_listen: Option<Listen>,
    /// Serve edges (`varve-edge`) on this address too; they need the token in DIR/edge-token [default: the socket DIR/edge.sock alone]
    #[arg(long, value_name = "ADDR")]
    edge_listen: Option<Listen>,
    /// Take copies of other nodes' volumes on this address, as a node of a cluster [default: none]
    #[arg(long, value_name = "ADDR")]
    mirror_listen: Option<Listen>,
    /// Serve the API on this loopback address beside DIR/api.sock, or on `none` [default: 127.0.0.1:7420]
    #[arg(long, value_name = "ADDR")]
    api_listen: Option<Listen>,
    /// A member of the cluster's etcd, http://HOST:PORT or https://HOST:PORT; may be given again. Without it the node is a cluster by itself
    #[arg(long = "etcd", value_name = "URL")]
    etcd: Vec<String>,
    /// What the cluster's keys in etcd begin with [default: /varve/]
    #[arg(long, value_name = "TEXT")]
    etcd_prefix: Option<String>,
    /// What the node is called [default: the host's name]
    #[arg(long, value_name = "NAME")]
    node_name: Option<Name>,
    /// The configuration file (TOML); flags go before it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Runs a node until it is told to stop.
pub fn run(args: Up, json: bool) -> Result<()> {
    let wrong = |error: ConfigError| Failure::usage(error.to_string());
    let file = args.config.as_deref().map(FileConfig::read).transpose().map_err(wrong)?.unwrap_or_default();
    let flags = FileConfig {
        data: args.data,
        store: args.store,
        volumes: (!args.volumes.is_empty()).then_some(args.volumes),
        nbd_listen: args.nbd_listen,
        edge_listen: args.edge_listen,
        mirror_listen: args.mirror_listen,
        api_listen: args.api_listen,
        etcd: (!args.etcd.is_empty()).then_some(args.etcd),
        etcd_prefix: args.etcd_prefix,
        node_name: args.node_name,
        ..FileConfig::default()
    };
    let config = flags.resolve(file).map_err(wrong)?;
    log(&config.log_level, config.log_format)?;
    let ready = Box::new(move |serving: &Serving| {
        let shown = out::show(json, &document(serving), |_| announce(serving));
        if let Err(failure) = shown {
            // Nobody reads it; the node serves all the same.
            tracing::warn!(message = failure.message, "what is served could not be printed");
        }
    });
    let stop = Box::pin(daemon::stopped(|| out::complain(LEFT)));
    Ok(up(config, Hooks { ready, stop, beat: None })?)
}

/// What a second signal leaves.
const LEFT: &str = "ended before everything was stopped: the next start recovers what was acknowledged";

/// Logs to standard error.
pub(super) fn log(level: &str, format: LogFormat) -> Result<()> {
    daemon::log(level, format).map_err(Failure::usage)
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn uri(serving: &Serving, name: &str) -> String {
    format!("nbd+unix:///{name}?socket={}", absolute(&serving.nbd_socket).display())
}

fn document(serving: &Serving) -> serde_json::Value {
    let volumes = serving.volumes.iter().map(|(name, size_bytes)| {
        serde_json::json!({ "name": name, "size_bytes": size_bytes, "nbd_uri": uri(serving, name.as_str()) })
    });
    serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "node": serving.node,
        "cluster": serving.cluster,
        "data": absolute(&serving.data),
        "store": serving.store,
        "nbd_socket": absolute(&serving.nbd_socket),
        "nbd_listen": serving.nbd_listen,
        "edge_socket": absolute(&serving.edge_socket),
        "edge_listen": serving.edge_listen,
        "api_socket": absolute(&serving.api_socket),
        "api_listen": serving.api_listen,
        "volumes": volumes.collect::<Vec<_>>(),
    })
}

/// What is served, and how to attach it.
fn announce(serving: &Serving) -> String {
    let port =
        |port: Option<SocketAddr>, prefix: &str| port.map_or(String::new(), |port| format!(" and {prefix}{port}"));
    let mut table = Table::default();
    if let Some(cluster) = &serving.cluster {
        table.pair("node", format!("{} of cluster {cluster}", serving.node));
    }
    table.pair("data", serving.data.display().to_string());
    table.pair("store", serving.store.as_str());
    table.pair("NBD", format!("{}{}", serving.nbd_socket.display(), port(serving.nbd_listen, "nbd://")));
    table.pair("edges", format!("{}{}", serving.edge_socket.display(), port(serving.edge_listen, "")));
    table.pair("API", format!("{}{}", serving.api_socket.display(), port(serving.api_listen, "http://")));
    let mut text = format!("Varve {} serves\n{}\n", env!("CARGO_PKG_VERSION"), table.render("  "));
    if serving.volumes.is_empty() {
        let data = serving.data.display();
        let api =
            if data.to_string() == "./varve-data" { String::new() } else { format!("--api unix:{data}/api.sock ") };
        text.push_str(&format!("There are no volumes yet. To make one: varve {api}volume create disk1 --size 10G\n"));
    } else {
        let mut table = Table::new(&["VOLUME", "SIZE", "ATTACH AT"]).right(&[1]);
        for (name, size) in &serving.volumes {
            table.row(vec![name.to_string(), format_size(*size), uri(serving, name.as_str())]);
        }
        text.push_str(&table.render(""));
    }
    text.push_str("\nCtrl-C stops it.\n");
    text
}
