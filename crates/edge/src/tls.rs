// SPDX-License-Identifier: Apache-2.0
//! What a person can do where TLS to a node fails.

use std::io;
use varve_serve::TlsFault;

/// What a failed connection says, and what a person can do about it where that is known.
pub(crate) fn explain(error: &io::Error) -> String {
    let Some((fault, cause)) = TlsFault::of(error) else { return error.to_string() };
    let advice = match fault {
        TlsFault::UnknownIssuer => "nobody whom we believe vouches for its certificate: --tls-ca names who does",
        TlsFault::OtherName => "its certificate is for another name: --tls-name says which",
        TlsFault::BadCertificate => "its certificate can not be believed",
        TlsFault::NoTls => "it does not speak TLS",
        TlsFault::AsksForCertificate => "it asks for a certificate of this edge: --tls-cert and --tls-key",
        TlsFault::Disbelieves => "it does not believe the certificate of this edge",
        TlsFault::Other => "TLS failed",
    };
    format!("{advice} ({cause})")
}
