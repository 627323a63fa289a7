// SPDX-License-Identifier: Apache-2.0
//! What the program says of itself: completions, manual pages, and the references `docs/cli.md`, `docs/config.md` and `docs/metrics.md`,
//! with the example `packaging/varved.toml`.
//!
//! All of it comes from the definitions that the program works with (the arguments as clap knows them, the tables of configuration keys and metrics), so
//! it can not be wrong; the documents in the tree are compared with it by the tests and by `cargo xtask tidy`, so they can not be out of date.
//! To change them, change the definitions and run `varve reference cli > docs/cli.md`.

use crate::args::Args;
use crate::failure::{Failure, Result};
use crate::out;
use clap::{Arg, ArgAction, Command, CommandFactory, ValueEnum};
use clap_complete::Shell;
use std::path::Path;
use varve_config::KEYS;
use varve_server::node::metric_infos;
use varve_types::{Overrides, Settings};

/// A reference in Markdown.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Reference {
    /// Of the commands.
    Cli,
    /// Of the configuration file.
    Config,
    /// An example of the file, with every key.
    ConfigFile,
    /// Of the metrics.
    Metrics,
}

/// A configuration as one might have it.
const EXAMPLE: &str = r#"data = "/var/lib/varve"
store = "s3://disks/pool1?endpoint=http://127.0.0.1:8333"
volumes = ["disk1:10G", "disk2:1T"]
nbd-listen = "127.0.0.1:10809"
journal-size = "8G"
ram-cache = "1G"
"#;

/// Prints completions for a shell.
pub fn completions(shell: Shell) -> Result<()> {
    let mut bytes = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "varve", &mut bytes);
    out::print(&String::from_utf8_lossy(&bytes))
}

/// Writes the manual pages.
pub fn man(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|error| Failure::io(dir.display(), &error))?;
    clap_mangen::generate_to(Args::command(), dir).map_err(|error| Failure::io(dir.display(), &error))
}

/// Prints a reference.
pub fn print(what: Reference) -> Result<()> {
    out::print(&match what {
        Reference::Cli => cli(),
        Reference::Config => config(),
        Reference::ConfigFile => config_file(),
        Reference::Metrics => metrics(),
    })
}

fn config() -> String {
    let mut text = "# Configuration\n\n\
        <!-- Written by `varve reference config`. -->\n\n\
        `varve up --config FILE`, and the daemon `varved --config FILE`, read a TOML file of these keys, all of them optional. A flag goes before the file, the file before the\n\
        default. A key that is not known is an error, which names file, line and key. Sizes are written `512`, `64K`, `256M`, `2G`, `1T`\n\
        (binary units), durations `500ms`, `10s`, `5m`, `1h`, `2d`. Settings of volumes and pools follow below.\n\n\
        | key | takes | default | flag | what it does |\n|---|---|---|---|---|\n"
        .to_owned();
    for key in KEYS {
        let flag = key.flag.map_or(String::new(), |flag| format!("`{flag}`"));
        let takes = key.takes.replace('|', "\\|");
        text.push_str(&format!("| `{}` | {takes} | {} | {flag} | {} |\n", key.name, key.default, key.about));
    }
    text.push_str(&format!("\n```toml\n{EXAMPLE}```\n"));
    text.push_str(
        "\n## Settings of volumes and pools\n\n\
        `varve volume set VOLUME KEY=VALUE` and `varve pool set POOL KEY=VALUE` change them while the node runs; a volume's go before its\n\
        pool's. `KEY=default` takes a setting back. `varve volume show` tells what is in force, and where it comes from.\n\n\
        | key | takes | default | what it does |\n|---|---|---|---|\n",
    );
    let none = Overrides::default();
    for ((key, default, _), (takes, about)) in Settings::describe(&none, &none).iter().zip(Overrides::ABOUT) {
        text.push_str(&format!("| `{key}` | {takes} | {default} | {about} |\n"));
    }
    text
}

/// Longest line of a comment in the example.
const COMMENT: usize = 110;

/// The text in lines of a comment.
fn comment(text: &str) -> String {
    let (mut lines, mut line) = (String::new(), String::new());
    for word in text.split_whitespace() {
        if !line.is_empty() && line.len() + word.len() + 3 > COMMENT {
            lines.push_str(&format!("#{line}\n"));
            line.clear();
        }
        line.push_str(&format!(" {word}"));
    }
    format!("{lines}#{line}\n")
}

/// Every key with what it does; only those in force by themselves that a daemon can not do without.
fn config_file() -> String {
    let mut text =
        "# The configuration of a Varve node: /etc/varve/varved.toml, for varved and for varve up --config.\n\
        # Written by `varve reference config-file`. Every key is here; those that are commented out show an example.\n"
            .to_owned();
    for key in KEYS {
        text.push_str(&format!("\n{}", comment(key.about)));
        text.push_str(&comment(&format!("Takes: {}. Default: {}.", key.takes, key.default)));
        let off = if key.name == "data" { "" } else { "#" };
        text.push_str(&format!("{off}{} = {}\n", key.name, key.example));
    }
    text
}

fn metrics() -> String {
    let mut text = "# Metrics\n\n\
        <!-- Written by `varve reference metrics`. -->\n\n\
        `GET /metrics` of the API tells them in the text form of OpenMetrics, which Prometheus reads. Counters and histograms count since the\n\
        start of the node; samples of a counter end in `_total`, those of a histogram in `_bucket`, `_sum` and `_count`. Times are in\n\
        seconds where the name says nothing else. A row of a histogram appears with the first thing that is counted in it; its bounds are\n\
        1, 2, 3, 4, 6, 8, 12 µs and so on up to 12.6 s, the same in all of them, so that rows and nodes can be added up. A block is 4096 bytes.\n\n\
        [grafana/varve.json](grafana/varve.json) is a dashboard of them for Grafana.\n\n\
        | metric | kind | labels | meaning |\n|---|---|---|---|\n"
        .to_owned();
    for metric in metric_infos() {
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        text.push_str(&format!("| `{}` | {} | {} | {} |\n", metric.name, metric.kind, labels.join(", "), metric.help));
    }
    text
}

fn cli() -> String {
    let mut text = "# The command line\n\n\
        <!-- Written by `varve reference cli`. -->\n\n\
        `varve up` is a node; every other command asks one through its HTTP API. It is found by `--api URL`, else by `VARVE_API`\n\
        (`unix:PATH`, or `http://HOST:PORT` with the token of the data directory in `VARVE_TOKEN`), else at `unix:./varve-data/api.sock`.\n\
        With `--json`, facts are printed as the documents of the API (`/openapi.json` describes them).\n\n\
        | exit code | meaning |\n|---|---|\n| 0 | done |\n| 1 | failed |\n| 2 | wrong usage |\n| 3 | not found |\n| 4 | conflict |\n\
        | 5 | unavailable |\n\n\
        Sizes are written `512`, `64K`, `10G`, `1.5T` (binary units). Names are 1 to 63 of `a`–`z`, `A`–`Z`, `0`–`9`, `.`, `_`, `-`,\n\
        and begin with a letter or a digit.\n"
        .to_owned();
    let mut root = Args::command().disable_help_subcommand(true);
    root.build();
    section(&root, "varve", &mut text);
    text
}

fn section(command: &Command, name: &str, text: &mut String) {
    let visible = || command.get_subcommands().filter(|sub| !sub.is_hide_set());
    if visible().next().is_none() || name == "varve" {
        text.push_str(&format!("\n## `{name}`\n\n"));
        if let Some(about) = command.get_about() {
            text.push_str(&format!("{about}.\n"));
        }
        if name != "varve" {
            text.push_str(&format!("\n```\n{}\n```\n", usage(command, name)));
        }
        arguments(command, name == "varve", text);
    }
    for sub in visible() {
        section(sub, &format!("{name} {}", sub.get_name()), text);
    }
}

/// The command with its own arguments, without the global ones.
fn usage(command: &Command, name: &str) -> String {
    let mut parts = vec![name.to_owned()];
    for arg in own(command) {
        let part = shape(arg);
        parts.push(match part.strip_suffix('…') {
            _ if arg.is_required_set() => part,
            Some(part) => format!("[{part}]…"),
            None => format!("[{part}]"),
        });
    }
    parts.join(" ")
}

fn own(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| !arg.is_global_set() && !["help", "version"].contains(&arg.get_id().as_str()))
}

fn shape(arg: &Arg) -> String {
    let values: Vec<_> = arg.get_value_names().unwrap_or_default().iter().map(|name| name.to_string()).collect();
    let value = if values.is_empty() { arg.get_id().as_str().to_uppercase() } else { values.join(" ") };
    let many = matches!(arg.get_action(), ArgAction::Append);
    let repeat = if many { "…" } else { "" };
    match arg.get_long() {
        None => format!("{value}{repeat}"),
        Some(long) if arg.get_action().takes_values() => format!("--{long} {value}{repeat}"),
        Some(long) => format!("--{long}"),
    }
}

fn arguments(command: &Command, root: bool, text: &mut String) {
    let args: Vec<_> = command
        .get_arguments()
        .filter(|arg| arg.is_global_set() == root && !["help", "version"].contains(&arg.get_id().as_str()))
        .collect();
    if args.is_empty() {
        return;
    }
    text.push_str("\n| argument | meaning |\n|---|---|\n");
    for arg in args {
        let default: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        let default = if default.is_empty() || !arg.get_action().takes_values() {
            String::new()
        } else {
            format!(" [default: {}]", default.join(", "))
        };
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let shape = shape(arg).replace('|', "\\|");
        text.push_str(&format!("| `{shape}` | {}{default} |\n", help.replace('|', "\\|")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use varve_config::FileConfig;

    #[test]
    fn the_example_is_a_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("varve.toml");
        std::fs::write(&path, EXAMPLE).unwrap();
        let config = FileConfig::default().resolve(FileConfig::read(&path).unwrap()).unwrap();
        assert_eq!((config.volumes.len(), config.journal_size_bytes), (2, 8 << 30));
    }

    /// Also where every key is taken into use.
    #[test]
    fn the_example_of_every_key_is_a_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("varved.toml");
        let text = config_file();
        let keys = |line: &str| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).map(str::to_owned);
        let all: Vec<_> = text.lines().map(|line| keys(line).unwrap_or_else(|| line.to_owned())).collect();
        for (text, in_cluster) in [(text.clone(), false), (all.join("\n"), true)] {
            std::fs::write(&path, text).unwrap();
            let config = FileConfig::default().resolve(FileConfig::read(&path).unwrap()).unwrap();
            assert_eq!((config.data.to_str(), config.cluster.is_some()), (Some("/var/lib/varve"), in_cluster));
        }
    }
}
