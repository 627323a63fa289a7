// SPDX-License-Identifier: Apache-2.0
//! Commands of pools.

use super::{job, settings_table};
use crate::args;
use crate::client::{Body, Client};
use crate::failure::Result;
use crate::out::{self, Table};
use clap::Subcommand;
use hyper::Method;
use varve_server::api::model::{ImportPool, Job, JobResult, NewPool, Pool, PoolImport, SetSettings};
use varve_types::Name;

/// What to do with pools.
#[derive(Debug, Subcommand)]
pub enum PoolCommand {
    /// Make a pool on an empty store
    Create {
        /// Its name
        name: Name,
        /// Its store: file:///DIR or s3://BUCKET/PREFIX?endpoint=URL
        #[arg(long, value_name = "URL")]
        store: String,
    },
    /// List all pools
    List,
    /// Show a pool: its store, its settings with their source, its volumes
    Show {
        /// The pool
        name: Name,
    },
    /// Change settings that the volumes of a pool get
    Set {
        /// The pool
        name: Name,
        /// New values; `default` gives a setting back to the default
        #[arg(required = true, value_name = "KEY=VALUE", value_parser = args::setting)]
        settings: Vec<(String, String)>,
    },
    /// Forget a pool that has no volumes; its store is left as it is
    Delete {
        /// The pool
        name: Name,
    },
    /// Take over the pool that lies in a store, with nothing but the store
    Import {
        /// The store
        #[arg(long, value_name = "URL")]
        store: String,
    },
}

/// Does it.
pub async fn run(command: PoolCommand, client: &Client, json: bool) -> Result<()> {
    match command {
        PoolCommand::Create { name, store } => {
            let body = Body::json(&NewPool { name, store })?;
            let pool: Pool = client.ask(Method::POST, "/v1/pools", body).await?;
            out::show(json, &pool, |pool| format!("made pool {} on {}\n", pool.name, pool.store))
        }
        PoolCommand::List => {
            let pools: Vec<Pool> = client.get("/v1/pools").await?;
            out::show(json, &pools, |pools| list(pools))
        }
        PoolCommand::Show { name } => {
            let pool: Pool = client.get(&format!("/v1/pools/{name}")).await?;
            out::show(json, &pool, show)
        }
        PoolCommand::Set { name, settings } => {
            let body = Body::json(&SetSettings { settings: settings.into_iter().collect() })?;
            let pool: Pool = client.ask(Method::PATCH, &format!("/v1/pools/{name}/settings"), body).await?;
            out::show(json, &pool, |pool| settings_table(&pool.settings))
        }
        PoolCommand::Delete { name } => {
            let pool: Pool = client.ask(Method::DELETE, &format!("/v1/pools/{name}"), Body::Empty).await?;
            out::show(json, &pool, |pool| format!("forgot pool {}; its store {} is as it was\n", pool.name, pool.store))
        }
        PoolCommand::Import { store } => {
            let body = Body::json(&ImportPool { store })?;
            let begun: Job = client.ask(Method::POST, "/v1/pool-import", body).await?;
            match job::wait(client, "importing", begun).await? {
                JobResult::PoolImport(import) => out::show(json, &import, imported),
                _ => Err(job::unexpected()),
            }
        }
    }
}

fn list(pools: &[Pool]) -> String {
    let mut table = Table::new(&["NAME", "VOLUMES", "STORE"]).right(&[1]);
    for pool in pools {
        table.row(vec![pool.name.to_string(), pool.volumes.len().to_string(), pool.store.clone()]);
    }
    table.render("")
}

fn show(pool: &Pool) -> String {
    let mut table = Table::default();
    table.pair("name", pool.name.as_str());
    table.pair("store", pool.store.as_str());
    table.pair("created", out::moment(pool.created_ms));
    let volumes: Vec<_> = pool.volumes.iter().map(Name::as_str).collect();
    table.pair("volumes", if volumes.is_empty() { "none".to_owned() } else { volumes.join(", ") });
    format!("{}\n{}", table.render(""), settings_table(&pool.settings))
}

fn imported(import: &PoolImport) -> String {
    let volumes = out::count(import.pool.volumes.len() as u64, "volume");
    let mut text = format!("imported pool {} from {}: {volumes}\n", import.pool.name, import.pool.store);
    for volume in &import.pool.volumes {
        text.push_str(&format!("  {volume}\n"));
    }
    for warning in &import.warnings {
        text.push_str(&format!("note: {warning}\n"));
    }
    text
}
