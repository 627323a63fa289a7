// SPDX-License-Identifier: Apache-2.0
//! The arguments of the command, as clap reads them: the help comes from here.
//!
//! How a volume is to be attached is the same for `attach`, which hands it to a daemon, and for `run`, which does it here; so it stands once, as [`How`], and
//! becomes the [`Spec`] that a daemon and a configuration file know as well. What is wrong with an argument is told before anything is asked; what is in
//! the files that are named is looked at where the volume is attached.

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use varve_edge::daemon::spec::{Spec, parse_io_timeout};

/// Volumes of a Varve cluster as block devices of this host.
#[derive(Debug, Parser)]
#[command(name = "varve-edge", version, max_term_width = 100, arg_required_else_help = true)]
pub struct Args {
    /// The control socket of the daemon [default: /run/varve-edge/control.sock]
    #[arg(long, global = true, value_name = "PATH", env = "VARVE_EDGE_CONTROL")]
    pub control: Option<PathBuf>,
    /// Print facts as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// What is logged: a level, or what tracing's filters take
    #[arg(long, global = true, value_name = "FILTER", default_value = "info", env = "VARVE_EDGE_LOG")]
    pub log: String,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a daemon: serve volumes over NBD, and attach and detach them as is asked on the control socket
    Serve(Serve),
    /// Attach volumes and serve them in the foreground; give them up when stopped
    Run(Run),
    /// Attach a volume to the daemon, which shows it as an NBD export of its name
    Attach(Attach),
    /// Give a volume up: flush it and tell its owner
    Detach {
        /// The volume
        volume: String,
        /// Though NBD clients use it: their requests fail from then on
        #[arg(long)]
        force: bool,
    },
    /// List the volumes of the daemon
    List,
    /// Show what volumes have done: requests, times, reconnects
    Stats {
        /// One volume [default: all]
        volume: Option<String>,
    },
}

/// How to run a daemon.
#[derive(Debug, clap::Args)]
pub struct Serve {
    /// The unix socket for NBD clients
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// A file with volumes to attach from the start (TOML); each is tried until it can be had
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// How to run in the foreground.
#[derive(Debug, clap::Args)]
pub struct Run {
    /// The volumes: NAME or NAME@SNAPSHOT
    #[arg(required = true, value_name = "VOLUME")]
    pub volumes: Vec<String>,
    /// The unix socket for NBD clients
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    #[command(flatten)]
    pub how: How,
}

/// A volume, and how to attach it.
#[derive(Debug, clap::Args)]
pub struct Attach {
    /// The volume: NAME or NAME@SNAPSHOT
    pub volume: String,
    #[command(flatten)]
    pub how: How,
}

/// How to attach a volume.
#[derive(Debug, clap::Args)]
pub struct How {
    /// Nodes to ask, by HOST:PORT or unix:PATH; any of them knows who the owner is
    #[arg(long = "node", value_name = "ADDR", required = true, value_delimiter = ',')]
    pub nodes: Vec<String>,
    /// A file with the token that proves that the volume may be had
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Read only, beside others that do the same
    #[arg(long)]
    pub shared: bool,
    /// Take it from whoever has it
    #[arg(long)]
    pub steal: bool,
    /// Answer a request with an error when it has waited so long [default: wait for ever]
    #[arg(long, value_name = "TIME", value_parser = io_timeout)]
    pub io_timeout: Option<String>,
    /// Speak TLS with nodes, and believe those that these certificates vouch for (PEM)
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// The certificate of this edge (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// What a node's certificate has to be for [default: the host of its address]
    #[arg(long, value_name = "NAME", requires = "tls_ca")]
    pub tls_name: Option<String>,
}

fn io_timeout(text: &str) -> Result<String, String> {
    parse_io_timeout(text).map(|_| text.to_owned())
}

impl How {
    /// For a volume. Paths are made such that the daemon finds them, wherever it was started.
    pub fn spec(&self, volume: String) -> Spec {
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        Spec {
            volume,
            nodes: self.nodes.clone(),
            token_file: self.token_file.as_ref().map(absolute),
            shared: self.shared,
            steal: self.steal,
            io_timeout: self.io_timeout.clone(),
            tls_ca: self.tls_ca.as_ref().map(absolute),
            tls_cert: self.tls_cert.as_ref().map(absolute),
            tls_key: self.tls_key.as_ref().map(absolute),
            tls_name: self.tls_name.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn nodes_stand_behind_each_other_or_are_given_again() {
        let args = Args::parse_from(["varve-edge", "attach", "disk", "--node", "a:1,b:1", "--node", "c:1"]);
        let Command::Attach(attach) = args.command else { panic!("it is an attach") };
        assert_eq!(attach.how.spec(attach.volume).nodes, ["a:1", "b:1", "c:1"]);
    }
}
