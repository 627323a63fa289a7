// SPDX-License-Identifier: Apache-2.0
//! Certificates for tests of TLS: an authority, a server's certificate for this machine, a client's, and an authority that signed neither.
//!
//! The program `openssl` makes them, in a directory of the test. They are good for two days and for nothing else.

use crate::process::find_program;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Paths of PEM files.
#[derive(Clone, Debug)]
pub struct Certificates {
    directory: PathBuf,
}

impl Certificates {
    /// Makes them in `directory`.
    ///
    /// # Errors
    /// When `openssl` is missing or fails.
    pub fn make(directory: &Path) -> Result<Self> {
        let made = Self { directory: directory.to_owned() };
        for authority in ["ca", "other-ca"] {
            made.request(authority, &["-addext", "basicConstraints=critical,CA:TRUE"])?;
        }
        let (ca, ca_key) = (made.path("ca.pem"), made.path("ca.key"));
        let signed = ["-CA", text(&ca)?, "-CAkey", text(&ca_key)?, "-addext", "basicConstraints=CA:FALSE", "-addext"];
        // etcd shows its server's certificate also where it is a client of itself.
        let uses = "extendedKeyUsage=serverAuth,clientAuth";
        made.request(
            "server",
            &[&signed[..], &[uses, "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]].concat(),
        )?;
        made.request("client", &[&signed[..], &["extendedKeyUsage=clientAuth"]].concat())?;
        Ok(made)
    }

    /// A pair of RSA keys for signing tokens: private, public.
    ///
    /// # Errors
    /// When `openssl` is missing or fails.
    pub fn token_keys(directory: &Path) -> Result<[PathBuf; 2]> {
        let (private, public) = (directory.join("token.key"), directory.join("token.pub"));
        openssl(&["genrsa", "-out", text(&private)?, "2048"])?;
        openssl(&["rsa", "-in", text(&private)?, "-pubout", "-out", text(&public)?])?;
        Ok([private, public])
    }

    /// A new certificate and key, `NAME.pem` and `NAME.key`.
    fn request(&self, name: &str, arguments: &[&str]) -> Result<()> {
        let (certificate, key) = (self.path(&format!("{name}.pem")), self.path(&format!("{name}.key")));
        let subject = format!("/CN=lab {name}");
        let mut all =
            vec!["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
        all.extend(["-subj", &subject, "-keyout", text(&key)?, "-out", text(&certificate)?]);
        all.extend(arguments);
        openssl(&all)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The authority that signed the server's and the client's.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// An authority that signed nothing.
    #[must_use]
    pub fn other_ca(&self) -> PathBuf {
        self.path("other-ca.pem")
    }

    /// The server's certificate and key, for 127.0.0.1 and localhost.
    #[must_use]
    pub fn server(&self) -> [PathBuf; 2] {
        [self.path("server.pem"), self.path("server.key")]
    }

    /// The client's certificate and key.
    #[must_use]
    pub fn client(&self) -> [PathBuf; 2] {
        [self.path("client.pem"), self.path("client.key")]
    }

    /// A certificate and key that signed themselves.
    #[must_use]
    pub fn stranger(&self) -> [PathBuf; 2] {
        [self.path("other-ca.pem"), self.path("other-ca.key")]
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is no text", path.display()))
}

fn openssl(arguments: &[&str]) -> Result<()> {
    let program = find_program("openssl", "openssl")?;
    let output = Command::new(program).args(arguments).output().context("run openssl")?;
    ensure!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
