// SPDX-License-Identifier: Apache-2.0
//! Commands of the nodes of a cluster.

use crate::client::{Body, Client};
use crate::failure::Result;
use crate::out::{self, Table};
use clap::Subcommand;
use hyper::Method;
use varve_server::api::model::ClusterNode;
use varve_types::Name;

/// What to do with nodes.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List the nodes of the cluster, and who of them lives
    List,
    /// Show a node
    Show {
        /// Its name or its id
        node: Name,
    },
    /// Take a node out of the cluster that is stopped and owns no volumes
    Remove {
        /// Its name or its id
        node: Name,
    },
}

/// Does it.
pub async fn run(command: NodeCommand, client: &Client, json: bool) -> Result<()> {
    match command {
        NodeCommand::List => {
            let nodes: Vec<ClusterNode> = client.get("/v1/nodes").await?;
            out::show(json, &nodes, |nodes| {
                if nodes.is_empty() { "this node is a cluster by itself\n".to_owned() } else { list(nodes) }
            })
        }
        NodeCommand::Show { node } => {
            let node: ClusterNode = client.get(&format!("/v1/nodes/{node}")).await?;
            out::show(json, &node, show)
        }
        NodeCommand::Remove { node } => {
            let removed: ClusterNode = client.ask(Method::DELETE, &format!("/v1/nodes/{node}"), Body::Empty).await?;
            out::show(json, &removed, |node| format!("removed node {} ({})\n", node.name, node.id))
        }
    }
}

fn state(node: &ClusterNode) -> String {
    match node.alive_since_ms {
        Some(since) => format!("alive since {}", out::moment(since)),
        None => "dead".to_owned(),
    }
}

/// Nodes as a table; the one that answers is marked.
pub fn list(nodes: &[ClusterNode]) -> String {
    let mut table = Table::new(&["NODE", "STATE", "VOLUMES", "EDGES AT", "RACK", "SITE", "VERSION"]).right(&[2]);
    let or_none = |text: Option<&String>| text.cloned().unwrap_or_else(|| "-".to_owned());
    for node in nodes {
        table.row(vec![
            format!("{}{}", node.name, if node.this { " (this)" } else { "" }),
            state(node),
            node.volumes.to_string(),
            or_none(node.edge.first()),
            or_none(node.rack.as_ref()),
            or_none(node.site.as_ref()),
            or_none(node.version.as_ref()),
        ]);
    }
    table.render("")
}

fn show(node: &ClusterNode) -> String {
    let mut table = Table::default();
    table.pair("name", node.name.as_str());
    table.pair("id", node.id.to_string());
    table.pair("state", state(node));
    if let Some(version) = &node.version {
        table.pair("version", version.as_str());
    }
    table.pair("volumes", node.volumes.to_string());
    if !node.edge.is_empty() {
        table.pair("edges at", node.edge.join(", "));
    }
    for (what, text) in [("API at", &node.api), ("mirror at", &node.mirror), ("rack", &node.rack), ("site", &node.site)]
    {
        if let Some(text) = text {
            table.pair(what, text.as_str());
        }
    }
    table.pair("joined", out::moment(node.joined_ms));
    table.render("")
}
