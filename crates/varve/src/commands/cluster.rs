// SPDX-License-Identifier: Apache-2.0
//! Commands of the cluster: make one, show how it is.
//!
//! `init` asks etcd itself, before there is a node; `status` asks a node, and says also what that node does not know because etcd does not answer it.

use super::node;
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::out::{self, Table};
use clap::{Args, Subcommand};
use std::path::PathBuf;
use varve_config::{ConfigError, FileConfig};
use varve_server::api::model::{Cluster, CoordinationKind};
use varve_server::node::init_cluster;

/// What to do with the cluster.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Make a cluster in etcd; nodes are started with the same etcd then
    Init(Init),
    /// Show the cluster: its nodes, who of them lives, its volumes, and whether etcd answers
    Status,
}

/// Where the cluster is to be.
#[derive(Debug, Args)]
pub struct Init {
    /// A member of etcd, http://HOST:PORT or https://HOST:PORT; may be given again
    #[arg(long = "etcd", value_name = "URL")]
    etcd: Vec<String>,
    /// What the cluster's keys begin with [default: /varve/]
    #[arg(long = "etcd-prefix", alias = "prefix", value_name = "TEXT")]
    prefix: Option<String>,
    /// The authorities that etcd's certificates are signed by (PEM)
    #[arg(long = "etcd-ca", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The certificate to show to etcd (PEM)
    #[arg(long = "etcd-cert", value_name = "FILE")]
    certificate: Option<PathBuf>,
    /// The key of that (PEM)
    #[arg(long = "etcd-key", value_name = "FILE")]
    key: Option<PathBuf>,
    /// The user of etcd
    #[arg(long = "etcd-user", value_name = "NAME")]
    user: Option<String>,
    /// The file with the user's password
    #[arg(long = "etcd-password-file", value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// The configuration file of a node that says the same; flags go before it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Makes a cluster.
pub fn init(init: Init, json: bool) -> Result<()> {
    let wrong = |error: ConfigError| Failure::usage(error.to_string());
    let file = init.config.as_deref().map(FileConfig::read).transpose().map_err(wrong)?.unwrap_or_default();
    let flags = FileConfig {
        etcd: (!init.etcd.is_empty()).then_some(init.etcd),
        etcd_prefix: init.prefix,
        etcd_ca: init.ca,
        etcd_cert: init.certificate,
        etcd_key: init.key,
        etcd_user: init.user,
        etcd_password_file: init.password_file,
        ..FileConfig::default()
    };
    let Some(cluster) = flags.resolve(file).map_err(wrong)?.cluster else {
        return Err(Failure::usage("where the cluster is to be is not said: --etcd URL, or --config FILE with `etcd`"));
    };
    let id = init_cluster(&cluster.etcd)?;
    let document = serde_json::json!({ "cluster": id, "prefix": cluster.etcd.prefix });
    out::show(json, &document, |_| format!("made cluster {id} under {}\n", cluster.etcd.prefix))
}

/// Does what asks a node.
pub async fn run(command: ClusterCommand, client: &Client, json: bool) -> Result<()> {
    match command {
        ClusterCommand::Init(_) => Err(Failure::failed("this command asks no node")),
        ClusterCommand::Status => {
            let cluster: Cluster = client.get("/v1/cluster").await?;
            out::show(json, &cluster, show)
        }
    }
}

fn show(cluster: &Cluster) -> String {
    let mut table = Table::default();
    table.pair("cluster", cluster.id.to_string());
    let at = &cluster.coordination;
    let place = match at.kind {
        CoordinationKind::Embedded => "in the data directory of this node, which is by itself".to_owned(),
        CoordinationKind::Etcd => {
            format!("etcd at {}, under {}", at.endpoints.join(", "), at.prefix.as_deref().unwrap_or_default())
        }
    };
    table.pair("coordination", place);
    if let Some(message) = &at.message {
        table.pair("", format!("IT DOES NOT ANSWER: {message}"));
        return table.render("");
    }
    let volumes = &cluster.volumes;
    let mut counts = vec![format!("{} with a live owner", volumes.owned)];
    for (count, what) in
        [(volumes.orphaned, "WITH A DEAD OWNER"), (volumes.unowned, "WITHOUT AN OWNER"), (volumes.deleted, "deleted")]
    {
        if count > 0 {
            counts.push(format!("{count} {what}"));
        }
    }
    table.pair("volumes", counts.join(", "));
    let text = table.render("");
    if cluster.nodes.is_empty() { text } else { format!("{text}\n{}", node::list(&cluster.nodes)) }
}
