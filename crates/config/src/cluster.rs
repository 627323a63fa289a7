// SPDX-License-Identifier: Apache-2.0
//! What makes a node one of a cluster: where etcd is, and what the cluster is told of the node.
//!
//! A node without `etcd` is a cluster by itself: the other keys of clusters are refused there, save its name, so that one that was forgotten is not
//! silently without effect.
//!
//! How etcd's own keys go together is checked by its client (`varve_etcd`), which is given them as they are.

use crate::tls::{self, NodeTls};
use crate::{ConfigError, FileConfig, given};
use std::net::SocketAddr;
use std::path::PathBuf;
use varve_coord::{DEFAULT_PREFIX, LEASE_TTL, MAX_ADDRESSES};

/// Longest rack, site or address, in bytes.
const MOST_TEXT: usize = 256;
/// For how long a node counts as alive without news of it.
const ALIVE_TTL_MS: u64 = 2_000;
/// Longest such time: whoever wants more does not want to know.
const MOST_ALIVE_TTL_MS: u64 = 600_000;
/// RAM for copies of other nodes' tails.
const MIRROR_RAM: u64 = 1 << 30;

/// A node of a cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterConfig {
    /// Where coordination is.
    pub etcd: EtcdKeys,
    /// The rack that the node is in.
    pub rack: Option<String>,
    /// The site that it is at.
    pub site: Option<String>,
    /// Where edges reach it, `HOST:PORT` each; the address that it listens on where there are none.
    pub edge_advertise: Vec<String>,
    /// Where other nodes send it copies of their volumes' tails, if it takes any.
    pub mirror_listen: Option<SocketAddr>,
    /// Where they reach that; the address that it listens on where nothing is said.
    pub mirror_advertise: Option<String>,
    /// What nodes speak TLS with among each other; none: they speak none.
    pub tls: Option<NodeTls>,
    /// RAM for such copies, in bytes.
    pub mirror_ram_bytes: u64,
    /// For how long it counts as alive without news of it.
    pub alive_ttl_ms: u64,
}

/// Where etcd is and how it is talked to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdKeys {
    /// Its members.
    pub endpoints: Vec<String>,
    /// What all keys begin with.
    pub prefix: String,
    /// The authorities that its certificates are signed by.
    pub ca: Option<PathBuf>,
    /// The node's certificate.
    pub certificate: Option<PathBuf>,
    /// The key of that.
    pub key: Option<PathBuf>,
    /// The user.
    pub user: Option<String>,
    /// The file with the user's password.
    pub password_file: Option<PathBuf>,
}

/// The part of clusters of what is in force: flags before the file.
pub(super) fn resolve(flags: &FileConfig, file: &FileConfig) -> Result<Option<ClusterConfig>, ConfigError> {
    let prefix = given(&flags.etcd_prefix, &file.etcd_prefix);
    let is_prefix = prefix.is_some();
    let etcd = EtcdKeys {
        endpoints: given(&flags.etcd, &file.etcd).unwrap_or_default(),
        prefix: prefix.unwrap_or_else(|| DEFAULT_PREFIX.to_owned()),
        ca: given(&flags.etcd_ca, &file.etcd_ca),
        certificate: given(&flags.etcd_cert, &file.etcd_cert),
        key: given(&flags.etcd_key, &file.etcd_key),
        user: given(&flags.etcd_user, &file.etcd_user),
        password_file: given(&flags.etcd_password_file, &file.etcd_password_file),
    };
    let (rack, site) = (given(&flags.rack, &file.rack), given(&flags.site, &file.site));
    let (edge_advertise, alive_ttl) =
        (given(&flags.edge_advertise, &file.edge_advertise), given(&flags.alive_ttl, &file.alive_ttl));
    let (mirror_listen, mirror_advertise) =
        (given(&flags.mirror_listen, &file.mirror_listen), given(&flags.mirror_advertise, &file.mirror_advertise));
    let mirror_ram = given(&flags.mirror_ram, &file.mirror_ram);
    let tls = tls::resolve_nodes(flags, file)?;
    if etcd.endpoints.is_empty() {
        let set = [
            ("etcd-prefix", is_prefix),
            ("etcd-ca", etcd.ca.is_some()),
            ("etcd-cert", etcd.certificate.is_some()),
            ("etcd-key", etcd.key.is_some()),
            ("etcd-user", etcd.user.is_some()),
            ("etcd-password-file", etcd.password_file.is_some()),
            ("rack", rack.is_some()),
            ("site", site.is_some()),
            ("edge-advertise", edge_advertise.is_some()),
            ("mirror-listen", mirror_listen.is_some()),
            ("mirror-advertise", mirror_advertise.is_some()),
            ("mirror-ram", mirror_ram.is_some()),
            ("node-tls-cert", tls.is_some()),
            ("alive-ttl", alive_ttl.is_some()),
        ];
        return match set.into_iter().find(|(_, is_set)| *is_set) {
            Some((key, _)) => Err(ConfigError::new(format!("{key} is for a node of a cluster, and there is no etcd"))),
            None => Ok(None),
        };
    }
    let config = ClusterConfig {
        etcd,
        rack,
        site,
        edge_advertise: edge_advertise.unwrap_or_default(),
        mirror_listen: mirror_listen.and_then(|listen| listen.0),
        mirror_advertise,
        tls,
        mirror_ram_bytes: mirror_ram.map_or(MIRROR_RAM, |bytes| bytes.0),
        alive_ttl_ms: alive_ttl.map_or(ALIVE_TTL_MS, |ttl| ttl.0),
    };
    config.check()?;
    Ok(Some(config))
}

impl ClusterConfig {
    fn check(&self) -> Result<(), ConfigError> {
        let least = u64::try_from(LEASE_TTL.start().as_millis()).unwrap_or(u64::MAX);
        if !(least..=MOST_ALIVE_TTL_MS).contains(&self.alive_ttl_ms) {
            return Err(ConfigError::new(format!("alive-ttl is {} ms; it must be 1s to 10m", self.alive_ttl_ms)));
        }
        for (key, text) in [("rack", &self.rack), ("site", &self.site)] {
            if text.as_ref().is_some_and(|text| text.is_empty() || text.len() > MOST_TEXT) {
                return Err(ConfigError::new(format!("{key} has 1 to {MOST_TEXT} bytes")));
            }
        }
        if self.edge_advertise.len() > MAX_ADDRESSES {
            return Err(ConfigError::new(format!("edge-advertise: more than {MAX_ADDRESSES}")));
        }
        if let Some(wrong) = self.edge_advertise.iter().find(|address| !is_address(address)) {
            return Err(ConfigError::new(format!("edge-advertise: {wrong:?} is not HOST:PORT")));
        }
        self.check_mirror()
    }

    fn check_mirror(&self) -> Result<(), ConfigError> {
        if let Some(wrong) = self.mirror_advertise.iter().find(|address| !is_address(address)) {
            return Err(ConfigError::new(format!("mirror-advertise: {wrong:?} is not HOST:PORT")));
        }
        match self.mirror_listen {
            Some(address) if address.ip().is_unspecified() && self.mirror_advertise.is_none() => {
                Err(ConfigError::new(format!(
                    "mirror-listen is {address}, which other nodes can not connect to: say in mirror-advertise where they reach this node"
                )))
            }
            None if self.mirror_advertise.is_some() => {
                Err(ConfigError::new("mirror-advertise needs mirror-listen: other nodes are not listened to"))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a node that edges can not be told how to reach.
    pub(super) fn check_reachable(&self, edge_listen: Option<SocketAddr>) -> Result<(), ConfigError> {
        match edge_listen {
            Some(address) if address.ip().is_unspecified() && self.edge_advertise.is_empty() => {
                Err(ConfigError::new(format!(
                    "edge-listen is {address}, which edges can not connect to: say in edge-advertise where they reach this node"
                )))
            }
            None if !self.edge_advertise.is_empty() => {
                Err(ConfigError::new("edge-advertise needs edge-listen: edges are not listened to"))
            }
            _ => Ok(()),
        }
    }
}

/// Whether it is `HOST:PORT`, the host being a name or an address.
fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let is_host = if host.contains(':') {
        host.starts_with('[') && host.ends_with(']')
    } else {
        !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
    };
    text.len() <= MOST_TEXT && is_host && port.parse::<u16>().is_ok_and(|port| port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::UpConfig;

    fn resolved(text: &str) -> Result<UpConfig, ConfigError> {
        FileConfig::default().resolve(toml::from_str(text).unwrap())
    }

    #[test]
    fn what_people_write_is_understood() {
        let text = "etcd = ['https://a:2379', 'https://b:2379']\netcd-prefix = '/v/'\netcd-ca = '/ca'\netcd-user = 'u'\n\
                    etcd-password-file = '/p'\nnode-name = 'n1'\nrack = 'r'\nsite = 's'\nedge-listen = '0.0.0.0:7421'\n\
                    edge-advertise = ['host:7421', '[::1]:7421', '10.0.0.1:1']\nalive-ttl = '5s'\n";
        let config = resolved(text).unwrap();
        assert_eq!(config.node_name.map(|name| name.to_string()).as_deref(), Some("n1"));
        let cluster = config.cluster.unwrap();
        assert_eq!((cluster.etcd.endpoints.len(), cluster.etcd.prefix.as_str()), (2, "/v/"));
        assert_eq!(cluster.etcd.ca, Some("/ca".into()));
        assert_eq!((cluster.edge_advertise.len(), cluster.alive_ttl_ms), (3, 5_000));
        assert_eq!(resolved("etcd = ['http://a:1']").unwrap().cluster.unwrap().alive_ttl_ms, 2_000);
        assert_eq!(resolved("").unwrap().cluster, None);
    }

    #[test]
    fn what_can_not_work_is_refused_by_name() {
        let etcd = "etcd = ['http://a:1']\n";
        for (text, named) in [
            ("rack = 'r'".to_owned(), "rack"),
            ("etcd-user = 'u'".to_owned(), "etcd-user"),
            ("alive-ttl = '2s'".to_owned(), "alive-ttl"),
            (format!("{etcd}alive-ttl = '10ms'"), "alive-ttl"),
            (format!("{etcd}alive-ttl = '1h'"), "alive-ttl"),
            (format!("{etcd}site = ''"), "site"),
            ("node-tls-cert = '/c'\nnode-tls-key = '/k'\nnode-tls-ca = '/a'".to_owned(), "node-tls-cert"),
            (format!("{etcd}node-tls-cert = '/c'\nnode-tls-ca = '/a'"), "node-tls-key is missing"),
            (format!("{etcd}node-tls-key = '/k'"), "node-tls-cert and node-tls-ca"),
            (format!("{etcd}edge-listen = '0.0.0.0:1'"), "edge-advertise"),
            (format!("{etcd}edge-advertise = ['a:1']"), "edge-listen"),
            (format!("{etcd}edge-listen = '127.0.0.1:1'\nedge-advertise = ['a']"), "HOST:PORT"),
            (format!("{etcd}edge-listen = '127.0.0.1:1'\nedge-advertise = ['::1:7']"), "HOST:PORT"),
            (format!("{etcd}edge-listen = '127.0.0.1:1'\nedge-advertise = ['a b:7']"), "HOST:PORT"),
        ] {
            let error = resolved(&text).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error:?} names {named}");
        }
    }
}
