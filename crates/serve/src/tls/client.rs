// SPDX-License-Identifier: Apache-2.0
//! TLS to a server: whom to believe, who this process is, and what the server has to be called.
//!
//! The one crypto provider is named where a configuration is made, so that nothing depends on what a process has installed.

use super::renewed::Renewed;
use super::{Carrier, pem};
use crate::error::{Result, ServeError};
use crate::socket::Socket;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{AlertDescription, CertificateError, ClientConfig, Error, InvalidMessage};

/// Files and names of TLS to a server, all files in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientTlsFiles {
    /// Those who may vouch for a server.
    pub ca: PathBuf,
    /// The own certificate and its key, where servers ask for one.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// What the server's certificate has to be for; else the host of its address.
    pub name: Option<String>,
}

/// TLS, ready to connect with. The files are read anew once a minute at most, when it connects.
#[derive(Debug)]
pub struct ClientTls {
    files: ClientTlsFiles,
    name: Option<ServerName<'static>>,
    known: Renewed<ClientConfig>,
}

/// Why TLS was not agreed on, where it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsFault {
    /// Nobody who is believed vouches for the server.
    UnknownIssuer,
    /// Its certificate is for another name.
    OtherName,
    /// Its certificate can not be believed.
    BadCertificate,
    /// The server does not speak TLS.
    NoTls,
    /// It asks for a certificate.
    AsksForCertificate,
    /// It does not believe the certificate that it was shown.
    Disbelieves,
    /// Something else.
    Other,
}

impl ClientTls {
    /// Reads the files.
    ///
    /// # Errors
    /// When one of them can not be read, or does not hold what it should; when the name can be nobody's.
    pub fn open(files: ClientTlsFiles) -> Result<Self> {
        let known = Renewed::new(read(&files)?);
        let name = files.name.as_deref().map(server_name).transpose()?;
        Ok(Self { files, name, known })
    }

    /// Shakes hands over a connection to `address`, `HOST:PORT`.
    ///
    /// # Errors
    /// Those of the connection, and of TLS: [`TlsFault::of`] tells which.
    pub async fn connect(&self, address: &str, stream: TcpStream) -> io::Result<Socket> {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = match &self.name {
            Some(name) => name.clone(),
            None => server_name(host).map_err(io::Error::other)?,
        };
        let connector = TlsConnector::from(self.known.get(|| read(&self.files)));
        let stream = connector.connect(name, Carrier::Here(stream)).await?;
        Ok(Socket::Tls(Box::new(stream.into())))
    }
}

impl TlsFault {
    /// What a failed connection says of TLS: which fault, and the words of TLS for it. `None` where it says nothing of TLS.
    #[must_use]
    pub fn of(error: &io::Error) -> Option<(Self, String)> {
        let inner = error.get_ref().map(|inner| inner as &(dyn std::error::Error + 'static));
        let cause = inner.and_then(|inner| inner.downcast_ref::<Error>())?;
        let fault = match cause {
            Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
                Self::UnknownIssuer
            }
            Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ) => Self::OtherName,
            Error::InvalidCertificate(_) => Self::BadCertificate,
            Error::InvalidMessage(InvalidMessage::InvalidContentType) => Self::NoTls,
            Error::AlertReceived(AlertDescription::CertificateRequired) => Self::AsksForCertificate,
            Error::AlertReceived(
                AlertDescription::CertificateUnknown
                | AlertDescription::UnknownCA
                | AlertDescription::BadCertificate
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateRevoked
                | AlertDescription::DecryptError
                | AlertDescription::UnsupportedCertificate,
            ) => Self::Disbelieves,
            _ => Self::Other,
        };
        Some((fault, cause.to_string()))
    }
}

fn read(files: &ClientTlsFiles) -> Result<ClientConfig> {
    let wrong = |path: &Path, error: Error| ServeError::Tls { path: path.to_owned(), reason: error.to_string() };
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(&files.ca, error))?
        .with_root_certificates(pem::roots(&files.ca)?);
    match &files.identity {
        None => Ok(builder.with_no_client_auth()),
        Some((certificate, key)) => builder
            .with_client_auth_cert(pem::certificates(certificate)?, pem::key(key)?)
            .map_err(|error| wrong(certificate, error)),
    }
}

fn server_name(name: &str) -> Result<ServerName<'static>> {
    ServerName::try_from(name.to_owned()).map_err(|_| ServeError::TlsName(name.to_owned()))
}
