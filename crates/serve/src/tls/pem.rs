// SPDX-License-Identifier: Apache-2.0
//! Files in PEM: certificates, and keys. None is read that is larger than any of them can be.

use crate::error::{Result, ServeError};
use std::path::Path;
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Largest file that is read.
const MOST_FILE: u64 = 4 << 20;

fn wrong(path: &Path, reason: impl ToString) -> ServeError {
    ServeError::Tls { path: path.to_owned(), reason: reason.to_string() }
}

fn check_size(path: &Path) -> Result<()> {
    let found = std::fs::metadata(path).map_err(|error| wrong(path, error))?;
    if found.len() > MOST_FILE {
        return Err(wrong(path, format!("larger than {} MiB", MOST_FILE >> 20)));
    }
    Ok(())
}

/// The certificates of a file, of which there is one at least.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    check_size(path)?;
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>);
    let read = read.map_err(|error| wrong(path, error))?;
    if read.is_empty() {
        return Err(wrong(path, "there is no certificate in it"));
    }
    Ok(read)
}

/// The key of a file.
pub(super) fn key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    check_size(path)?;
    PrivateKeyDer::from_pem_file(path).map_err(|error| wrong(path, error))
}

/// The certificates of a file, as those of authorities.
pub(super) fn roots(path: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| wrong(path, error))?;
    }
    Ok(roots)
}
