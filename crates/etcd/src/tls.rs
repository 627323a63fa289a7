// SPDX-License-Identifier: Apache-2.0
//! TLS to a member: what is trusted, what we show, and what a failure means.
//!
//! The files are read for every connection, so a certificate that was renewed is in use from the next one on. The crypto provider is named here and
//! not taken from the process, so nothing has to be installed first.
//!
//! A member that does not speak TLS, or does not like what it is shown, says so in ways of its own: what a person should do about each is told here.

use crate::config::{Endpoint, EtcdTls};
use crate::fault::Fault;
use std::error::Error;
use std::io;
use std::path::Path;
use std::sync::Arc;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{self, AlertDescription, CertificateError, ClientConfig, InvalidMessage, RootCertStore};

/// Largest file of certificates that is read.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// What a connection is made with, of the files as they are now. Reads files.
pub(crate) fn connector(tls: &EtcdTls) -> Result<TlsConnector, Fault> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| wrong(format!("TLS can not be used: {error}")))?;
    let builder = builder.with_root_certificates(roots(tls.ca.as_deref())?);
    let config = match (&tls.certificate, &tls.key) {
        (Some(certificate), Some(key)) => builder
            .with_client_auth_cert(certificates(certificate)?, private_key(key)?)
            .map_err(|error| wrong(format!("{} with {}: {error}", certificate.display(), key.display()))),
        _ => Ok(builder.with_no_client_auth()),
    };
    let mut config = config?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// The name that the member's certificate has to be for.
pub(crate) fn server_name(endpoint: &Endpoint) -> Result<ServerName<'static>, Fault> {
    ServerName::try_from(endpoint.host.clone())
        .map_err(|error| wrong(format!("{:?} can not be in a certificate: {error}", endpoint.host)))
}

fn roots(ca: Option<&Path>) -> Result<RootCertStore, Fault> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| wrong(format!("{}: {error}", path.display())))?;
            }
        }
        None => {
            // Some of what a system trusts may be of a kind that is not known here.
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
        }
    }
    if roots.is_empty() {
        return Err(wrong(
            "the system trusts no certificates: name the authority of etcd's with `ca` in its `tls`".to_owned(),
        ));
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let bytes = read(path)?;
    let found = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(wrong(format!("{} has no certificate in PEM form", path.display()))),
        Err(error) => Err(wrong(format!("{}: {error}", path.display()))),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Fault> {
    PrivateKeyDer::from_pem_slice(&read(path)?)
        .map_err(|error| wrong(format!("{} is no key in PEM form without a passphrase: {error}", path.display())))
}

fn read(path: &Path) -> Result<Vec<u8>, Fault> {
    let failed = |error: io::Error| wrong(format!("{}: {error}", path.display()));
    let size = std::fs::metadata(path).map_err(failed)?.len();
    if size > MAX_FILE_BYTES {
        return Err(wrong(format!("{}: {size} bytes are too many for what it should be", path.display())));
    }
    std::fs::read(path).map_err(failed)
}

fn wrong(reason: String) -> Fault {
    Fault::Misconfigured(reason)
}

/// What a failed handshake means.
pub(crate) fn explain(error: &io::Error, tls: &EtcdTls, endpoint: &Endpoint) -> Fault {
    let Some(cause) =
        error.get_ref().and_then(|inner| (inner as &(dyn Error + 'static)).downcast_ref::<rustls::Error>())
    else {
        // One that does not understand what it is told may hang up before it has read all of that, which resets the connection.
        let advice = match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                ": if it does not speak TLS, name it with http://"
            }
            _ => "",
        };
        return Fault::NotSent(format!("{error}{advice}"));
    };
    let trusted = tls.ca.as_ref().map_or_else(|| "what the system trusts".to_owned(), |ca| ca.display().to_string());
    let advice = match cause {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            format!(
                "its certificate is not signed by an authority in {trusted}: name the right one with `ca` in etcd's `tls`"
            )
        }
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => {
            format!("its certificate is not for {}: name the endpoint as the certificate does", endpoint.host)
        }
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)
        | rustls::Error::InappropriateMessage { .. } => "it does not speak TLS: name it with http://".to_owned(),
        rustls::Error::AlertReceived(alert) => return refused(&format!("{alert:?}"), *alert),
        _ => "the TLS handshake failed".to_owned(),
    };
    wrong(format!("{advice} ({cause})"))
}

/// What it means that the member ended the connection with an alert.
fn refused(words: &str, alert: AlertDescription) -> Fault {
    match alert {
        AlertDescription::InternalError | AlertDescription::CloseNotify => {
            Fault::NotSent(format!("TLS: it answered with the alert {words}"))
        }
        _ => wrong(format!(
            "it does not take our certificate (its alert is {words}): set `certificate` and `key` in etcd's `tls` to one of a client that its authority signed"
        )),
    }
}

/// What a connection that broke at once means: with TLS 1.3 a member refuses our certificate only after the handshake.
pub(crate) fn explain_later(reason: &str) -> Option<Fault> {
    let certificate = [
        "CertificateRequired",
        "BadCertificate",
        "CertificateUnknown",
        "UnknownCA",
        "UnsupportedCertificate",
        "CertificateExpired",
    ];
    let alert = certificate.iter().find(|alert| reason.contains("alert") && reason.contains(**alert))?;
    Some(refused(alert, AlertDescription::BadCertificate))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_hangs_up_instead_of_shaking_hands_may_speak_no_tls() {
        let endpoint = Endpoint { host: "10.0.0.1".to_owned(), port: 2379, tls: true };
        for kind in [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset] {
            let fault = explain(&kind.into(), &EtcdTls::default(), &endpoint).to_string();
            assert!(fault.contains("name it with http://"), "{fault}");
        }
        let fault = explain(&io::ErrorKind::TimedOut.into(), &EtcdTls::default(), &endpoint).to_string();
        assert!(!fault.contains("http://"), "{fault}");
    }
}
