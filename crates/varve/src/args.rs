// SPDX-License-Identifier: Apache-2.0
//! The arguments of the command, as clap reads them: from here come the help, the manual pages, the completions and `docs/cli.md`.
//!
//! Names, sizes and settings are checked as they are read, so that what is wrong with them is wrong usage (exit code 2) and costs no request.
//!
//! Commands with many forms of their own have their arguments beside what they do, in `commands`.

use crate::commands::{
    check::Check, cluster::ClusterCommand, node::NodeCommand, pool::PoolCommand, rewind::Rewind,
    snapshot::SnapshotCommand, up::Up, volume::VolumeCommand,
};
use crate::copy::{export::Export, import::Import};
use crate::reference::Reference;
use clap::{Parser, Subcommand};
use clap_complete::Shell;
use std::path::PathBuf;
use varve_server::api::model::Target;
use varve_types::{Name, Overrides};

/// Virtual disks from a log on an object store.
#[derive(Debug, Parser)]
#[command(name = "varve", version, max_term_width = 100, arg_required_else_help = true)]
pub struct Args {
    /// The API of the node: unix:PATH, or http://HOST:PORT with the token in VARVE_TOKEN
    /// [default: unix:./varve-data/api.sock]
    #[arg(long, global = true, value_name = "URL", env = "VARVE_API", hide_env_values = true)]
    pub api: Option<String>,
    /// Print facts as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a node: serve volumes until stopped
    Up(Up),
    /// Make, show and change volumes
    #[command(subcommand, arg_required_else_help = true)]
    Volume(VolumeCommand),
    /// Make, show and change pools: stores with the settings of their volumes
    #[command(subcommand, arg_required_else_help = true)]
    Pool(PoolCommand),
    /// Make a cluster of several nodes, and show how it is
    #[command(subcommand, arg_required_else_help = true)]
    Cluster(ClusterCommand),
    /// Show the nodes of the cluster, and take them out of it
    #[command(subcommand, arg_required_else_help = true)]
    Node(NodeCommand),
    /// Take snapshots, and go back to them
    #[command(subcommand, arg_required_else_help = true)]
    Snapshot(SnapshotCommand),
    /// Make a volume from a snapshot, or from the present state of a volume
    Clone {
        /// What to clone
        #[arg(value_name = "VOLUME[@SNAPSHOT]")]
        origin: Target,
        /// Name of the new volume
        new: Name,
    },
    /// Make a volume of what another one was at a moment of its recent past; or list the moments that can be had
    Rewind(Rewind),
    /// Copy what a clone shares, so that it needs its origin no more
    Flatten {
        /// The clone
        volume: Name,
    },
    /// Make a volume from an image file: raw, or any format that an installed qemu-img reads
    Import(Import),
    /// Write a volume or a snapshot to an image file: raw, or qcow2 through an installed qemu-img
    Export(Export),
    /// Show how the node is
    Status {
        /// Show it again and again, until stopped
        #[arg(long)]
        watch: bool,
    },
    /// Verify every block and every count of one volume or of all
    Check(Check),
    /// Show how cleaning goes; pause it, let it go on, bound it; or do it, beside the node
    Clean(Clean),
    /// Show what scrubbing has found and how it goes; begin a pass, bound it, turn it off
    Scrub(Scrub),
    /// Print the version
    Version,
    /// Print shell completions
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write manual pages
    Man {
        /// The directory that gets them
        dir: PathBuf,
    },
    /// Print the reference of commands, of the configuration or of the metrics, in Markdown
    #[command(hide = true)]
    Reference {
        /// Which
        what: Reference,
    },
}

/// How cleaning is to go on.
#[derive(Debug, clap::Args)]
pub struct Clean {
    /// Begin nothing new, until told to go on or the node is started again
    #[arg(long, conflicts_with = "resume")]
    pub pause: bool,
    /// Go on
    #[arg(long)]
    pub resume: bool,
    /// Read and put at most so much in a second, 64K at least; 0 for no bound. With --worker: this process, if the node allows more
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub rate: Option<u64>,
    /// Be a worker: run jobs of cleaning for the node in this process, until stopped. It reads and puts in the pools' stores itself, with credentials from its
    /// own environment, and runs beside the node where a pool is in a directory
    #[arg(long, conflicts_with_all = ["pause", "resume"])]
    pub worker: bool,
    /// End after so many jobs
    #[arg(long, value_name = "N", requires = "worker", value_parser = clap::value_parser!(u64).range(1..))]
    pub jobs: Option<u64>,
    /// End once the node has nothing to do
    #[arg(long, requires = "worker")]
    pub once: bool,
    /// What the worker is called: no two at a time share a name [default: the host's, with the number of the process]
    #[arg(long, value_name = "NAME", requires = "worker")]
    pub name: Option<Name>,
}

/// How scrubbing is to go on.
#[derive(Debug, clap::Args)]
pub struct Scrub {
    /// Begin a pass now
    #[arg(long)]
    pub now: bool,
    /// Read at most so much in a second, 64K at least; 0 turns it off until the node is started again
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub rate: Option<u64>,
}

/// A size.
fn size(text: &str) -> Result<u64, String> {
    varve_types::parse_size(text).map_err(|error| error.to_string())
}

/// `KEY=VALUE` of a setting.
pub fn setting(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not KEY=VALUE"))?;
    Overrides::default().set(key, value).map_err(|error| error.to_string())?;
    Ok((key.to_owned(), value.to_owned()))
}

/// The size of a segment, which is checked as the setting that it is.
pub fn segment_size(text: &str) -> Result<String, String> {
    setting(&format!("segment-size={text}")).map(|(_, value)| value)
}

/// The compression, checked as the setting that it is.
pub fn compression(text: &str) -> Result<String, String> {
    setting(&format!("compression={text}")).map(|(_, value)| value)
}

/// The size of a volume.
pub fn volume_size(text: &str) -> Result<u64, String> {
    varve_types::parse_volume_size(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Args::command().debug_assert();
    }
}
