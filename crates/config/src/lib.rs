// SPDX-License-Identifier: Apache-2.0
//! The configuration of a node: a TOML file, flags that go before it, and defaults behind it.
//!
//! [`FileConfig`] is the file, word for word; keys that it does not know are errors, so that a misspelt one is not silently without effect.
//! [`UpConfig`] is what is in force, with every value checked; nothing behind it looks at the file again. An error names the file, the line and
//! the key. [`KEYS`] describes every key for the reference, and a test holds it to the structure.

mod cluster;
mod keys;
mod tls;
mod values;

pub use cluster::{ClusterConfig, EtcdKeys};
pub use keys::{KEYS, Key};
pub use tls::{EdgeTls, NodeTls};
pub use values::{Bytes, CacheSpec, Duration, JournalSpec, Listen, LogFormat, VolumeSpec};

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use varve_types::{MAX_JOURNALS, MIN_RATE, Name};

/// Largest configuration file, in bytes.
const MOST_FILE: u64 = 1 << 20;

/// A configuration that is wrong or can not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ConfigError {
    message: String,
}

impl ConfigError {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }
    /// What the caller should do: mend the configuration.
    #[must_use]
    pub const fn kind(&self) -> varve_types::ErrorKind {
        varve_types::ErrorKind::Invalid
    }
}

/// The configuration file, and with the same form the flags: what is not given is `None`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct FileConfig {
    /// The data directory: journals, coordination, sockets, and the store unless another is given.
    pub data: Option<PathBuf>,
    /// The store of the pool `default`.
    pub store: Option<String>,
    /// Volumes to be there, made when they are not.
    pub volumes: Option<Vec<VolumeSpec>>,
    /// Where NBD listens beside its socket.
    pub nbd_listen: Option<Listen>,
    /// Where edges connect beside the socket.
    pub edge_listen: Option<Listen>,
    /// The certificate that edges over TCP are shown.
    pub edge_tls_cert: Option<PathBuf>,
    /// The key of that.
    pub edge_tls_key: Option<PathBuf>,
    /// The authorities that edges have to have a certificate of.
    pub edge_tls_client_ca: Option<PathBuf>,
    /// Where the API listens beside its socket.
    pub api_listen: Option<Listen>,
    /// The members of etcd, of a node of a cluster.
    pub etcd: Option<Vec<String>>,
    /// What the cluster's keys in etcd begin with.
    pub etcd_prefix: Option<String>,
    /// The authorities that etcd's certificates are signed by.
    pub etcd_ca: Option<PathBuf>,
    /// The node's certificate for etcd.
    pub etcd_cert: Option<PathBuf>,
    /// The key of that.
    pub etcd_key: Option<PathBuf>,
    /// The user of etcd.
    pub etcd_user: Option<String>,
    /// The file with the user's password.
    pub etcd_password_file: Option<PathBuf>,
    /// What the node is called.
    pub node_name: Option<Name>,
    /// The rack that it is in.
    pub rack: Option<String>,
    /// The site that it is at.
    pub site: Option<String>,
    /// Where edges reach it.
    pub edge_advertise: Option<Vec<String>>,
    /// Where other nodes send it copies of their volumes' tails.
    pub mirror_listen: Option<Listen>,
    /// Where other nodes reach that.
    pub mirror_advertise: Option<String>,
    /// The certificate that other nodes are shown.
    pub node_tls_cert: Option<PathBuf>,
    /// The key of that.
    pub node_tls_key: Option<PathBuf>,
    /// The authorities that other nodes have to have a certificate of.
    pub node_tls_ca: Option<PathBuf>,
    /// RAM for such copies.
    pub mirror_ram: Option<Bytes>,
    /// For how long it counts as alive without news of it.
    pub alive_ttl: Option<Duration>,
    /// Journals, in the place of the one in the data directory.
    pub journal: Option<Vec<JournalSpec>>,
    /// Size of the journal in the data directory.
    pub journal_size: Option<Bytes>,
    /// Bound of the read cache.
    pub ram_cache: Option<Bytes>,
    /// Devices of the read cache.
    pub cache: Option<Vec<CacheSpec>>,
    /// Bound of what finds a block.
    pub map_ram: Option<Bytes>,
    /// Bound of what is written and not yet in the store, as far as it is in RAM.
    pub layer_ram: Option<Bytes>,
    /// Of a hundred stored blocks of a volume, how many are to be alive.
    pub clean_occupancy: Option<u64>,
    /// What cleaning may read and put in a second.
    pub clean_rate: Option<Bytes>,
    /// For how long a job of cleaning that another process has counts without news.
    pub clean_lease: Option<Duration>,
    /// What scrubbing may read in a second.
    pub scrub_rate: Option<Bytes>,
    /// For how long scrubbing rests between two passes.
    pub scrub_interval: Option<Duration>,
    /// For how long what was deleted in the pool `default` can be brought back.
    pub undelete_window: Option<Duration>,
    /// What is logged.
    pub log_level: Option<String>,
    /// How it is logged.
    pub log_format: Option<LogFormat>,
}

impl FileConfig {
    /// Reads a file.
    ///
    /// # Errors
    /// When it can not be read, is no TOML, has a key that is not known, or a key has a value that it does not take.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let fail = |error: std::io::Error| ConfigError::new(format!("{}: {error}", path.display()));
        let size = std::fs::metadata(path).map_err(fail)?.len();
        if size > MOST_FILE {
            return Err(ConfigError::new(format!("{}: larger than 1 MiB: no configuration", path.display())));
        }
        Self::parse(&std::fs::read_to_string(path).map_err(fail)?, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| {
            let at = path.display();
            let message = error.message().trim_end().replace('\n', "; ");
            let Some(span) = error.span() else { return ConfigError::new(format!("{at}: {message}")) };
            let start = span.start.min(text.len());
            let before = text.get(..start).unwrap_or(text);
            let number = before.matches('\n').count() + 1;
            let key = key_of(text, number);
            ConfigError::new(format!("{at}, line {number}{key}: {message}"))
        })
    }

    /// What is in force: `self` (the flags) before `file` before the defaults.
    ///
    /// # Errors
    /// When a value is not allowed.
    pub fn resolve(self, file: Self) -> Result<UpConfig, ConfigError> {
        let default = UpConfig::default();
        let cluster = cluster::resolve(&self, &file)?;
        let edge_tls = tls::resolve(&self, &file)?;
        let listen = |flag: Option<Listen>, file: Option<Listen>, default| match flag.or(file) {
            Some(Listen(address)) => address,
            None => default,
        };
        let config = UpConfig {
            data: self.data.or(file.data).unwrap_or(default.data),
            store: self.store.or(file.store),
            volumes: self.volumes.or(file.volumes).unwrap_or_default(),
            nbd_listen: listen(self.nbd_listen, file.nbd_listen, default.nbd_listen),
            edge_listen: listen(self.edge_listen, file.edge_listen, default.edge_listen),
            edge_tls,
            api_listen: listen(self.api_listen, file.api_listen, default.api_listen),
            node_name: self.node_name.or(file.node_name),
            cluster,
            journals: self.journal.or(file.journal).unwrap_or_default(),
            journal_size_bytes: self.journal_size.or(file.journal_size).map_or(default.journal_size_bytes, |b| b.0),
            ram_cache_bytes: self.ram_cache.or(file.ram_cache).map_or(default.ram_cache_bytes, |b| b.0),
            map_ram_bytes: self.map_ram.or(file.map_ram).map_or(default.map_ram_bytes, |b| b.0),
            caches: self.cache.or(file.cache).unwrap_or_default(),
            layer_ram_bytes: self.layer_ram.or(file.layer_ram).map_or(default.layer_ram_bytes, |b| b.0),
            clean_occupancy_percent: self
                .clean_occupancy
                .or(file.clean_occupancy)
                .unwrap_or(default.clean_occupancy_percent),
            clean_rate_bytes: self.clean_rate.or(file.clean_rate).map_or(default.clean_rate_bytes, |b| b.0),
            clean_lease_ms: self.clean_lease.or(file.clean_lease).map_or(default.clean_lease_ms, |d| d.0),
            scrub_rate_bytes: self.scrub_rate.or(file.scrub_rate).map_or(default.scrub_rate_bytes, |b| b.0),
            scrub_interval_ms: self.scrub_interval.or(file.scrub_interval).map_or(default.scrub_interval_ms, |d| d.0),
            undelete_window_ms: self.undelete_window.or(file.undelete_window).map(|d| d.0),
            log_level: self.log_level.or(file.log_level).unwrap_or(default.log_level),
            log_format: self.log_format.or(file.log_format).unwrap_or(default.log_format),
        };
        config.check()?;
        Ok(config)
    }
}

/// What is in force for a node.
#[derive(Clone, Debug, PartialEq)]
pub struct UpConfig {
    /// The data directory.
    pub data: PathBuf,
    /// The store of the pool `default`; `DIR/store` when there is none.
    pub store: Option<String>,
    /// Volumes to be there, made when they are not. One that is there with another size is an error.
    pub volumes: Vec<VolumeSpec>,
    /// Where NBD listens beside `DIR/nbd.sock`.
    pub nbd_listen: Option<SocketAddr>,
    /// Where edges connect beside `DIR/edge.sock`.
    pub edge_listen: Option<SocketAddr>,
    /// What edges over TCP speak TLS with; none: they speak none.
    pub edge_tls: Option<EdgeTls>,
    /// Where the API listens beside `DIR/api.sock`; a loopback address.
    pub api_listen: Option<SocketAddr>,
    /// What the node is called; the name of the host where nothing is said.
    pub node_name: Option<Name>,
    /// The cluster that it is one of; none: it is one by itself.
    pub cluster: Option<ClusterConfig>,
    /// Journals; the one in the data directory where there are none.
    pub journals: Vec<JournalSpec>,
    /// Size of the journal in the data directory.
    pub journal_size_bytes: u64,
    /// Bound of the read cache, for the node.
    pub ram_cache_bytes: u64,
    /// Bound of what finds a block, for the node.
    pub map_ram_bytes: u64,
    /// Devices of the read cache.
    pub caches: Vec<CacheSpec>,
    /// Bound of layers in RAM, for the node.
    pub layer_ram_bytes: u64,
    /// A volume is cleaned while less than so many of a hundred of its stored blocks are alive; 0: never.
    pub clean_occupancy_percent: u64,
    /// What cleaning may read and put in a second; 0: as much as it can.
    pub clean_rate_bytes: u64,
    /// Milliseconds that a job of cleaning that another process has counts without news.
    pub clean_lease_ms: u64,
    /// What scrubbing may read in a second; 0: nothing is scrubbed.
    pub scrub_rate_bytes: u64,
    /// Milliseconds between two passes of scrubbing.
    pub scrub_interval_ms: u64,
    /// The undelete window that the pool `default` gets when it is made; `None`: the default of all pools.
    pub undelete_window_ms: Option<u64>,
    /// What is logged: a level, or directives by module.
    pub log_level: String,
    /// How it is logged.
    pub log_format: LogFormat,
}

impl Default for UpConfig {
    fn default() -> Self {
        Self {
            data: PathBuf::from("./varve-data"),
            store: None,
            volumes: Vec::new(),
            nbd_listen: None,
            edge_listen: None,
            edge_tls: None,
            api_listen: Some(SocketAddr::from(([127, 0, 0, 1], 7420))),
            node_name: None,
            cluster: None,
            journals: Vec::new(),
            journal_size_bytes: 2 << 30,
            ram_cache_bytes: 256 << 20,
            map_ram_bytes: 1 << 30,
            caches: Vec::new(),
            layer_ram_bytes: 512 << 20,
            clean_occupancy_percent: 80,
            clean_rate_bytes: 0,
            clean_lease_ms: 120_000,
            scrub_rate_bytes: 16 << 20,
            scrub_interval_ms: 7 * 24 * 3_600_000,
            undelete_window_ms: None,
            log_level: "info".to_owned(),
            log_format: LogFormat::Text,
        }
    }
}

impl UpConfig {
    /// The NBD socket.
    #[must_use]
    pub fn nbd_socket(&self) -> PathBuf {
        self.data.join("nbd.sock")
    }
    /// The API socket.
    #[must_use]
    pub fn api_socket(&self) -> PathBuf {
        self.data.join("api.sock")
    }
    /// The file of the API's token.
    #[must_use]
    pub fn token_file(&self) -> PathBuf {
        self.data.join("token")
    }

    fn check(&self) -> Result<(), ConfigError> {
        let within = |key: &str, value: u64, low: u64, high: u64| {
            if (low..=high).contains(&value) {
                return Ok(());
            }
            let [low, high] = [low, high].map(varve_types::format_size);
            Err(ConfigError::new(format!("{key} is {}; it must be {low} to {high}", varve_types::format_size(value))))
        };
        within("journal-size", self.journal_size_bytes, 64 << 20, 1 << 40)?;
        within("ram-cache", self.ram_cache_bytes, 0, 1 << 40)?;
        within("map-ram", self.map_ram_bytes, 16 << 20, 1 << 40)?;
        within("layer-ram", self.layer_ram_bytes, 16 << 20, 1 << 40)?;
        if self.clean_rate_bytes != 0 {
            within("clean-rate", self.clean_rate_bytes, MIN_RATE, 1 << 40)?;
        }
        if !(1000..=3_600_000).contains(&self.clean_lease_ms) {
            return Err(ConfigError::new(format!("clean-lease is {} ms; it must be 1s to 1h", self.clean_lease_ms)));
        }
        if self.scrub_rate_bytes != 0 {
            within("scrub-rate", self.scrub_rate_bytes, MIN_RATE, 1 << 40)?;
        }
        let percent = self.clean_occupancy_percent;
        if percent != 0 && !(20..=95).contains(&percent) {
            return Err(ConfigError::new(format!(
                "clean-occupancy is {percent}; it must be 20 to 95, or 0 for no cleaning"
            )));
        }
        if let Some(address) = self.api_listen.filter(|address| !address.ip().is_loopback()) {
            return Err(ConfigError::new(format!("api-listen is {address}; it must be a loopback address, or none")));
        }
        if self.edge_tls.is_some() && self.edge_listen.is_none() {
            return Err(ConfigError::new("edge-tls-cert needs edge-listen: edges are not listened to over TCP"));
        }
        if let Some(cluster) = &self.cluster {
            cluster.check_reachable(self.edge_listen)?;
        }
        let caches = self.caches.iter().map(|cache| ("cache", &cache.path));
        let mut paths: Vec<_> = self.journals.iter().map(|spec| ("journal", &spec.path)).chain(caches).collect();
        paths.sort_by_key(|(_, path)| *path);
        if let Some(twice) = paths.windows(2).find(|pair| pair[0].1 == pair[1].1) {
            return Err(ConfigError::new(format!("{} {} is given twice", twice[0].0, twice[0].1.display())));
        }
        if self.journals.len() > MAX_JOURNALS {
            return Err(ConfigError::new(format!("journal: more than {MAX_JOURNALS}")));
        }
        let mut names: Vec<_> = self.volumes.iter().map(|volume| &volume.name).collect();
        names.sort();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(ConfigError::new(format!("volume {} is given twice", twice[0])));
        }
        Ok(())
    }
}

/// What a flag says, or else the file.
fn given<T: Clone>(flag: &Option<T>, file: &Option<T>) -> Option<T> {
    flag.clone().or_else(|| file.clone())
}

/// The key on a line, for the message; nothing where the line has none.
fn key_of(text: &str, line: usize) -> String {
    let line = text.lines().nth(line - 1).unwrap_or("");
    line.split_once('=').map(|(key, _)| format!(", key {}", key.trim())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<FileConfig, ConfigError> {
        FileConfig::parse(text, Path::new("varve.toml"))
    }

    #[test]
    fn flags_go_before_the_file_and_the_file_before_defaults() {
        let file = parse(
            "data = '/d'\njournal-size = '1G'\nvolumes = ['a:1G']\nram-cache = '1G'\napi-listen = 'none'\nundelete-window = '2d'\n\
             log-format = 'json'\nnbd-listen = '127.0.0.1:10809'\n",
        )
        .unwrap();
        let flags = FileConfig { journal_size: Some(Bytes(3 << 30)), data: Some("/e".into()), ..FileConfig::default() };
        let config = flags.resolve(file).unwrap();
        assert_eq!((config.data.as_path(), config.api_listen), (Path::new("/e"), None));
        assert_eq!((config.ram_cache_bytes, config.journal_size_bytes), (1 << 30, 3 << 30));
        assert_eq!((config.undelete_window_ms, config.log_format), (Some(172_800_000), LogFormat::Json));
        assert_eq!(config.volumes[0].size_bytes, 1 << 30);
        assert_eq!(config.nbd_socket(), Path::new("/e/nbd.sock"));
        assert_eq!(FileConfig::default().resolve(FileConfig::default()).unwrap(), UpConfig::default());
    }

    #[test]
    fn errors_name_file_line_and_key() {
        for (text, parts) in [
            ("log-level = 'info'\njournal-siz = '2G'\n", ["varve.toml, line 2, key journal-siz", "unknown field"]),
            ("journal-size = '2X'\n", ["varve.toml, line 1, key journal-size", "\"2X\" is not a valid size"]),
            ("\n\nlog-level = 2\n", ["varve.toml, line 3, key log-level", "expected a string"]),
            ("volumes = ['a']\n", ["varve.toml, line 1, key volumes", "NAME:SIZE"]),
            ("nbd-listen = 'here'\n", ["line 1, key nbd-listen", "ADDRESS:PORT"]),
            ("undelete-window = 'soon'\n", ["line 1, key undelete-window", "0s to 365d"]),
            ("data = \n", ["varve.toml, line 1, key data", ""]),
        ] {
            let message = parse(text).unwrap_err().to_string();
            assert!(parts.iter().all(|part| message.contains(part)), "{text:?}: {message}");
        }
        let missing = FileConfig::read(Path::new("/nonexistent/varve.toml")).unwrap_err().to_string();
        assert!(missing.contains("/nonexistent/varve.toml"), "{missing}");
    }

    #[test]
    fn values_that_make_no_sense_are_refused() {
        for text in [
            "journal-size = '1M'",
            "layer-ram = '0'",
            "map-ram = '1M'",
            "clean-rate = '1K'",
            "clean-lease = '0s'",
            "clean-lease = '2h'",
            "scrub-rate = '1K'",
            "api-listen = '0.0.0.0:7420'",
            "volumes = ['a:1G', 'a:2G']",
            "cache = ['/cache:1G', '/cache:2G']",
            "journal = ['/ssd/a:1G', '/ssd/a:2G']",
        ] {
            let error = FileConfig::default().resolve(parse(text).unwrap()).unwrap_err().to_string();
            let key = text.split(' ').next().unwrap().trim_end_matches('s');
            assert!(error.contains(key), "{text}: {error}");
        }
        for text in ["cache = ['cache:1G']", "cache = ['/cache:1M']", "cache = ['/cache:much']"] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains("key cache"), "{text}: {error}");
        }
        let caches = parse("cache = ['/a:b:64M', '/dev/sdx']").unwrap().cache.unwrap();
        assert_eq!((caches[0].path.as_path(), caches[0].size_bytes), (Path::new("/a:b"), Some(64 << 20)));
        assert_eq!(caches[1].size_bytes, None);
    }
}
