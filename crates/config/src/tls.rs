// SPDX-License-Identifier: Apache-2.0
//! What edges over TCP, and the nodes of a cluster among each other, speak TLS with. The files are read when the node starts; here is how the keys go together.

use crate::{ConfigError, FileConfig, given};
use std::path::PathBuf;

/// The files of a node for TLS with edges, all in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeTls {
    /// The node's certificate.
    pub certificate: PathBuf,
    /// The key of that.
    pub key: PathBuf,
    /// The authorities that edges have to have a certificate of.
    pub client_ca: Option<PathBuf>,
}

/// The files of a node for TLS with other nodes, all in PEM: each shows the others its certificate, whoever has connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeTls {
    /// The node's certificate.
    pub certificate: PathBuf,
    /// The key of that.
    pub key: PathBuf,
    /// The authorities that other nodes have to have a certificate of.
    pub ca: PathBuf,
}

/// The part of other nodes.
pub(super) fn resolve_nodes(flags: &FileConfig, file: &FileConfig) -> Result<Option<NodeTls>, ConfigError> {
    let certificate = given(&flags.node_tls_cert, &file.node_tls_cert);
    let key = given(&flags.node_tls_key, &file.node_tls_key);
    let ca = given(&flags.node_tls_ca, &file.node_tls_ca);
    match (certificate, key, ca) {
        (Some(certificate), Some(key), Some(ca)) => Ok(Some(NodeTls { certificate, key, ca })),
        (None, None, None) => Ok(None),
        (certificate, key, ca) => {
            let all = [
                ("node-tls-cert", certificate.is_some()),
                ("node-tls-key", key.is_some()),
                ("node-tls-ca", ca.is_some()),
            ];
            let missing: Vec<_> = all.into_iter().filter(|(_, is_set)| !is_set).map(|(key, _)| key).collect();
            let missing = missing.join(" and ");
            Err(ConfigError::new(format!(
                "nodes speak TLS with all of its three keys, or with none: {missing} is missing"
            )))
        }
    }
}

/// The part of edges: flags before the file.
pub(super) fn resolve(flags: &FileConfig, file: &FileConfig) -> Result<Option<EdgeTls>, ConfigError> {
    let certificate = given(&flags.edge_tls_cert, &file.edge_tls_cert);
    let key = given(&flags.edge_tls_key, &file.edge_tls_key);
    let client_ca = given(&flags.edge_tls_client_ca, &file.edge_tls_client_ca);
    match (certificate, key) {
        (Some(certificate), Some(key)) => Ok(Some(EdgeTls { certificate, key, client_ca })),
        (None, None) if client_ca.is_none() => Ok(None),
        (Some(_), None) => Err(ConfigError::new("edge-tls-cert needs edge-tls-key, the key of the certificate")),
        (None, Some(_)) => Err(ConfigError::new("edge-tls-key needs edge-tls-cert, the certificate that it is for")),
        (None, None) => {
            Err(ConfigError::new("edge-tls-client-ca needs edge-tls-cert and edge-tls-key: edges speak no TLS without"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::UpConfig;

    fn resolved(text: &str) -> Result<UpConfig, ConfigError> {
        FileConfig::default().resolve(toml::from_str(text).unwrap())
    }

    #[test]
    fn keys_that_need_each_other_are_asked_for_by_name() {
        let listen = "edge-listen = '127.0.0.1:7421'\n";
        let whole = format!("{listen}edge-tls-cert = '/c'\nedge-tls-key = '/k'\nedge-tls-client-ca = '/a'\n");
        let tls = resolved(&whole).unwrap().edge_tls.unwrap();
        assert_eq!((tls.certificate, tls.key, tls.client_ca), ("/c".into(), "/k".into(), Some("/a".into())));
        assert_eq!(resolved(listen).unwrap().edge_tls, None);
        for (text, named) in [
            ("edge-tls-cert = '/c'", "edge-tls-key"),
            ("edge-tls-key = '/k'", "edge-tls-cert"),
            ("edge-tls-client-ca = '/a'", "edge-tls-cert"),
            ("edge-tls-cert = '/c'\nedge-tls-key = '/k'", "edge-listen"),
        ] {
            let error = resolved(text).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
