// SPDX-License-Identifier: Apache-2.0
//! TLS to nodes: whom to believe, who the edge is, and what the node has to be called.
//!
//! The one crypto provider is named where a configuration is made, so that nothing depends on what a process has installed.

use crate::error;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, CertificateError, ClientConfig, InvalidMessage, RootCertStore};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsConnector, rustls};
use varve_block::Result;

/// Files and names of TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsOptions {
    /// Certificates of those who may vouch for a node (PEM).
    pub ca: PathBuf,
    /// The edge's own certificate and its key (PEM), where nodes ask for one.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// What the node's certificate has to be for; else the host of its address.
    pub name: Option<String>,
}

/// TLS, ready to connect with.
#[derive(Clone)]
pub struct Tls {
    connector: TlsConnector,
    name: Option<ServerName<'static>>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tls({:?})", self.name)
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// When one of them can not be read, or does not hold what it should.
    pub fn new(options: &TlsOptions) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&options.ca)? {
            roots.add(certificate).map_err(|why| error::file(&options.ca, why))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|why| error::invalid(format!("TLS: {why}")))?
            .with_root_certificates(roots);
        let config = match &options.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates(certificate)?;
                let secret = PrivateKeyDer::from_pem_file(key).map_err(|why| error::file(key, why))?;
                builder.with_client_auth_cert(chain, secret).map_err(|why| error::file(certificate, why))?
            }
        };
        let name = options.name.clone().map(server_name).transpose().map_err(error::invalid)?;
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name })
    }

    /// Shakes hands over a connection to `address`.
    pub(crate) async fn connect(&self, address: &str, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = match &self.name {
            Some(name) => name.clone(),
            None => server_name(host.to_owned()).map_err(io::Error::other)?,
        };
        self.connector.connect(name, stream).await
    }
}

/// What a failed connection says, and what a person can do about it where that is known.
pub(crate) fn explain(error: &io::Error) -> String {
    let inner = error.get_ref().map(|inner| inner as &(dyn std::error::Error + 'static));
    let Some(cause) = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) else { return error.to_string() };
    let advice = match cause {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "nobody whom we believe vouches for its certificate: --tls-ca names who does"
        }
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "its certificate is for another name: --tls-name says which",
        rustls::Error::InvalidCertificate(_) => "its certificate can not be believed",
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => "it does not speak TLS",
        rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => {
            "it asks for a certificate of this edge: --tls-cert and --tls-key"
        }
        rustls::Error::AlertReceived(
            AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::DecryptError
            | AlertDescription::UnsupportedCertificate,
        ) => "it does not believe the certificate of this edge",
        _ => "TLS failed",
    };
    format!("{advice} ({cause})")
}

fn server_name(name: String) -> std::result::Result<ServerName<'static>, String> {
    let wrong = format!("{name:?} is no name that a certificate can be for");
    ServerName::try_from(name).map_err(|_| wrong)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>);
    let found = found.map_err(|why| error::file(path, why))?;
    if found.is_empty() { Err(error::file(path, "there is no certificate in it")) } else { Ok(found) }
}
