// SPDX-License-Identifier: Apache-2.0
//! How a volume is to be attached, as a request on the control socket or a configuration file says it.
//!
//! The keys are the names of the command's flags. Files (token, certificates) are named and not carried: they are read when the volume is attached, by the process that
//! serves it, so that no secret is in a request, a configuration or a log.
//!
//! Everything is checked before a node is asked; what is wrong is told with the file or the word that it is about.

use crate::error;
use crate::session::Terms;
use crate::transport::{Sockets, Transport};
use crate::volume::Options;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use varve_block::Result;
use varve_serve::{ClientTls, ClientTlsFiles};
use varve_types::{Name, parse_duration_ms};

/// Longest token that is taken.
const MOST_TOKEN: u64 = 1024;
/// Bounds of an I/O timeout, in milliseconds.
const IO_TIMEOUT_MS: (u64, u64) = (100, 7 * 24 * 3_600_000);

/// How a volume is to be attached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Spec {
    /// `NAME`, or `NAME@SNAPSHOT`.
    pub volume: String,
    /// Addresses of nodes.
    pub nodes: Vec<String>,
    /// A file with the token.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// Read only, beside others.
    #[serde(default)]
    pub shared: bool,
    /// Take it from whoever has it.
    #[serde(default)]
    pub steal: bool,
    /// How long a request may wait before it is answered with an error: `30s`. Without it for ever.
    #[serde(default)]
    pub io_timeout: Option<String>,
    /// Certificates of those who may vouch for a node; with it TCP connections are TLS.
    #[serde(default)]
    pub tls_ca: Option<PathBuf>,
    /// The edge's own certificate.
    #[serde(default)]
    pub tls_cert: Option<PathBuf>,
    /// Its key.
    #[serde(default)]
    pub tls_key: Option<PathBuf>,
    /// What a node's certificate has to be for.
    #[serde(default)]
    pub tls_name: Option<String>,
}

/// A configuration file of a daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct FileConfig {
    /// Volumes that are attached from the start.
    #[serde(default, rename = "volume")]
    pub volumes: Vec<Spec>,
}

impl FileConfig {
    /// Reads one.
    ///
    /// # Errors
    /// Where the file can not be read or understood.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|why| error::file(path, why))?;
        toml::from_str(&text).map_err(|why| error::file(path, why))
    }
}

/// An I/O timeout as people write it.
///
/// # Errors
/// What it should look like.
pub fn parse_io_timeout(text: &str) -> std::result::Result<Duration, String> {
    let (least, most) = IO_TIMEOUT_MS;
    let ms = parse_duration_ms(text, least, most);
    ms.map(Duration::from_millis).ok_or_else(|| format!("{text:?} is no duration from 100ms to 7d, as 30s is"))
}

impl Spec {
    /// Checks it, and reads the files that it names.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn options(&self, attach_timeout: Option<Duration>) -> Result<Options> {
        let (name, snapshot) = match self.volume.split_once('@') {
            Some((name, snapshot)) => (name, Some(snapshot)),
            None => (self.volume.as_str(), None),
        };
        for part in [Some(name), snapshot].into_iter().flatten() {
            part.parse::<Name>().map_err(|why| error::invalid(why.to_string()))?;
        }
        let io_timeout = self.io_timeout.as_deref().map(parse_io_timeout).transpose().map_err(error::invalid)?;
        let mut options = Options::new(&self.volume, self.nodes.clone());
        options.terms = Terms { io_timeout, attach_timeout, ..Terms::default() };
        (options.shared, options.steal) = (self.shared, self.steal);
        options.edge = host();
        if let Some(path) = &self.token_file {
            options.token = token(path)?;
        }
        options.transport = self.transport()?;
        Ok(options)
    }

    fn transport(&self) -> Result<Rc<dyn Transport>> {
        let identity = match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
            (None, None) => None,
            _ => {
                return Err(error::invalid(
                    "a certificate of the edge's own needs its key, and the key its certificate",
                ));
            }
        };
        let Some(ca) = &self.tls_ca else {
            if identity.is_some() || self.tls_name.is_some() {
                return Err(error::invalid("TLS needs the certificates of those who may vouch for a node"));
            }
            return Ok(Rc::new(Sockets::default()));
        };
        let files = ClientTlsFiles { ca: ca.clone(), identity, name: self.tls_name.clone() };
        let tls = ClientTls::open(files).map_err(|why| error::invalid(why.to_string()))?;
        Ok(Rc::new(Sockets::new(Some(Arc::new(tls)))))
    }
}

/// What a file with a token holds, without what surrounds it.
fn token(path: &Path) -> Result<String> {
    let length = std::fs::metadata(path).map_err(|why| error::file(path, why))?.len();
    if length > MOST_TOKEN {
        return Err(error::file(path, "it is too long for a token"));
    }
    let text = std::fs::read_to_string(path).map_err(|why| error::file(path, why))?;
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(error::file(path, "it holds no token"));
    }
    Ok(token.to_owned())
}

/// What this edge is called, for people.
fn host() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "edge".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(volume: &str) -> Spec {
        Spec { volume: volume.into(), nodes: vec!["node-1:7700".into()], ..Spec::default() }
    }

    fn wrong(spec: &Spec) -> String {
        spec.options(None).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn what_is_wrong_is_told_before_anything_is_tried() {
        assert!(spec("disk@monday").options(None).is_ok());
        assert!(wrong(&spec("a/b")).contains("is not a name"));
        assert!(wrong(&Spec { io_timeout: Some("soon".into()), ..spec("disk") }).contains("30s"));
        assert!(wrong(&Spec { tls_name: Some("x".into()), ..spec("disk") }).contains("vouch"));
        assert!(wrong(&Spec { tls_cert: Some("x".into()), ..spec("disk") }).contains("key"));
        let missing = wrong(&Spec { token_file: Some("/none/such".into()), ..spec("disk") });
        assert!(missing.contains("/none/such"), "{missing}");
    }

    #[test]
    fn a_token_is_what_stands_in_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "secret\n").unwrap();
        let options = Spec { token_file: Some(path.clone()), ..spec("disk") }.options(None).unwrap();
        assert_eq!(options.token, "secret");
        for bad in ["", "\n", "two words", &"x".repeat(2000)] {
            std::fs::write(&path, bad).unwrap();
            assert!(token(&path).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_configuration_is_read_and_what_is_not_known_is_told() {
        let text = "[[volume]]\nvolume = \"disk\"\nnodes = [\"a:1\"]\nio-timeout = \"30s\"\n";
        let config: FileConfig = toml::from_str(text).unwrap();
        assert_eq!(config.volumes[0].io_timeout.as_deref(), Some("30s"));
        assert!(toml::from_str::<FileConfig>("[[volume]]\nvolume = \"disk\"\nnodes = []\nfast = true\n").is_err());
    }
}
