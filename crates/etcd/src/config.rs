// SPDX-License-Identifier: Apache-2.0
//! How a cluster's etcd is reached: the form that a configuration file embeds, and the same checked.
//!
//! [`EtcdConfig`] is what people write; a key that is not known is an error. [`Settings`] is what is in force: everything in it was checked, and nothing
//! behind it looks at the configuration again. Files of certificates, keys and the password are named here and read when they are used, each time
//! anew, so that they can be renewed while a node runs; their contents are in no error, log line or `Debug` output.

use crate::fault::Fault;
use hyper::Uri;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;
use varve_coord::{CoordError, DEFAULT_PREFIX, Result, check_prefix};

/// Most endpoints. A cluster of etcd has three to seven members.
const MAX_ENDPOINTS: usize = 16;
/// Longest prefix, in bytes: with it and the framing of etcd's protocol the largest transaction still fits etcd's limit of 1.5 MiB.
const MAX_PREFIX_BYTES: usize = 128;
/// The port of etcd's clients.
const PORT: u16 = 2379;

/// Where etcd is and how it is talked to.
///
/// ```toml
/// endpoints = ["https://10.0.0.1:2379", "https://10.0.0.2:2379", "https://10.0.0.3:2379"]
/// prefix = "/varve/"
/// user = "varve"
/// password-file = "/etc/varve/etcd-password"
/// tls = { ca = "/etc/varve/etcd-ca.pem", certificate = "/etc/varve/etcd.pem", key = "/etc/varve/etcd-key.pem" }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct EtcdConfig {
    /// Its members, `http://HOST:PORT` or `https://HOST:PORT`, in the order in which they are tried. All are members of one cluster.
    pub endpoints: Vec<String>,
    /// What all keys begin with. Clusters of Varve that share an etcd have one each, of which none is the beginning of another. A `/` is added where
    /// it does not end with one.
    #[serde(default = "default_prefix")]
    pub prefix: String,
    /// The user, where etcd has authentication enabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The file with the user's password on its first line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// Certificates, for endpoints with `https`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<EtcdTls>,
    /// How long it may take to reach one endpoint; then the next one is tried.
    #[serde(default = "default_connect_timeout", with = "duration")]
    pub connect_timeout: Duration,
    /// How long one endpoint may take to answer a request.
    #[serde(default = "default_request_timeout", with = "duration")]
    pub request_timeout: Duration,
    /// How long a request is tried on one endpoint after the other before etcd counts as not available.
    #[serde(default = "default_give_up_after", with = "duration")]
    pub give_up_after: Duration,
}

/// Certificates for TLS, all in PEM files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct EtcdTls {
    /// The authorities that etcd's certificates are signed by; without it those that the system trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// Our own certificate, where etcd asks for one; needs `key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// The key of our own certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

fn default_prefix() -> String {
    DEFAULT_PREFIX.to_owned()
}
const fn default_connect_timeout() -> Duration {
    Duration::from_secs(2)
}
const fn default_request_timeout() -> Duration {
    Duration::from_secs(5)
}
const fn default_give_up_after() -> Duration {
    Duration::from_secs(15)
}

/// Durations as people write them: `500ms`, `10s`, `5m`.
mod duration {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::time::Duration;

    const LEAST_MS: u64 = 10;
    const MOST_MS: u64 = 600_000;

    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}ms", duration.as_millis()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        let ms = varve_types::parse_duration_ms(&text, LEAST_MS, MOST_MS);
        let wrong = || D::Error::custom(format!("{text:?} is no duration from 10ms to 10m, such as 500ms or 5s"));
        ms.map(Duration::from_millis).ok_or_else(wrong)
    }
}

impl EtcdConfig {
    /// The configuration with these endpoints and the default of everything else.
    #[must_use]
    pub fn new<E: Into<String>>(endpoints: impl IntoIterator<Item = E>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            prefix: default_prefix(),
            user: None,
            password_file: None,
            tls: None,
            connect_timeout: default_connect_timeout(),
            request_timeout: default_request_timeout(),
            give_up_after: default_give_up_after(),
        }
    }
}

/// A member as it is dialled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Endpoint {
    /// Without the brackets of an IPv6 address.
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) tls: bool,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

/// A user and the file with the password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) password_file: PathBuf,
}

/// The configuration, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// One or more.
    pub(crate) endpoints: Vec<Endpoint>,
    /// Ends with `/`.
    pub(crate) prefix: String,
    pub(crate) user: Option<User>,
    pub(crate) tls: EtcdTls,
    pub(crate) connect_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) give_up_after: Duration,
}

impl Settings {
    pub(crate) fn check(config: &EtcdConfig) -> Result<Self> {
        let endpoints = config.endpoints.iter().map(|text| endpoint(text)).collect::<Result<Vec<_>>>()?;
        if endpoints.is_empty() || endpoints.len() > MAX_ENDPOINTS {
            return invalid(format!("etcd has 1 to {MAX_ENDPOINTS} `endpoints`, not {}", endpoints.len()));
        }
        if endpoints.iter().collect::<BTreeSet<_>>().len() < endpoints.len() {
            return invalid("one of etcd's `endpoints` is given twice");
        }
        if config.tls.is_some() && endpoints.iter().any(|endpoint| !endpoint.tls) {
            return invalid("etcd's `tls` is set, so each of its `endpoints` begins with https://");
        }
        let tls = config.tls.clone().unwrap_or_default();
        if tls.certificate.is_some() != tls.key.is_some() {
            return invalid("of etcd's `tls`, `certificate` and `key` go together");
        }
        let user = match (&config.user, &config.password_file) {
            (None, None) => None,
            (Some(name), Some(file)) if !name.is_empty() => {
                Some(User { name: name.clone(), password_file: file.clone() })
            }
            _ => return invalid("etcd's `user` and `password-file` go together"),
        };
        Ok(Self {
            endpoints,
            prefix: prefix(&config.prefix)?,
            user,
            tls,
            connect_timeout: config.connect_timeout,
            request_timeout: config.request_timeout,
            give_up_after: config.give_up_after,
        })
    }
}

impl Settings {
    /// What to do about a request that etcd did not take from this user.
    pub(crate) fn explain_refusal(&self, fault: &Fault) -> String {
        let prefix = &self.prefix;
        match &self.user {
            None => format!("{fault}: it has authentication enabled, so set `user` and `password-file`"),
            Some(User { name, .. }) => format!(
                "{fault}: the user {name} needs a role that may read and write the prefix {prefix} (etcdctl role grant-permission ROLE readwrite {prefix} --prefix)"
            ),
        }
    }
}

fn prefix(text: &str) -> Result<String> {
    check_prefix(text)?;
    let prefix = format!("{}/", text.strip_suffix('/').unwrap_or(text));
    if prefix == "/" || prefix.len() > MAX_PREFIX_BYTES {
        return invalid(format!("etcd's `prefix` has 1 to {} characters, such as /varve/", MAX_PREFIX_BYTES - 1));
    }
    Ok(prefix)
}

fn endpoint(text: &str) -> Result<Endpoint> {
    let wrong =
        || CoordError::Invalid(format!("the endpoint {text:?} of etcd is not http://HOST:PORT or https://HOST:PORT"));
    let uri: Uri = text.parse().map_err(|_| wrong())?;
    let tls = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return Err(wrong()),
    };
    let authority = uri.authority().ok_or_else(wrong)?;
    let bare = matches!(uri.path(), "" | "/") && uri.query().is_none() && !authority.as_str().contains('@');
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    // A port that is there and is no number from 1 to 65,535 is not the default.
    let port = if authority.as_str().ends_with(authority.host()) { Some(PORT) } else { authority.port_u16() };
    match port.filter(|port| bare && *port != 0 && !host.is_empty()) {
        Some(port) => Ok(Endpoint { host: host.to_owned(), port, tls }),
        None => Err(wrong()),
    }
}

fn invalid<T>(message: impl Into<String>) -> Result<T> {
    Err(CoordError::Invalid(message.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> std::result::Result<Settings, String> {
        let config: EtcdConfig = toml::from_str(text).map_err(|error| error.message().to_owned())?;
        Settings::check(&config).map_err(|error| error.to_string())
    }

    #[test]
    fn what_people_write_is_understood() {
        let least = checked(r#"endpoints = ["http://127.0.0.1"]"#).unwrap();
        assert_eq!(least, Settings::check(&EtcdConfig::new(["http://127.0.0.1:2379/"])).unwrap());
        assert_eq!(least.endpoints[0].to_string(), "http://127.0.0.1:2379");
        let most = checked(
            r#"endpoints = ["https://a.example:1", "https://[::1]:2"]
               prefix = "/varve/prod"
               user = "u"
               password-file = "/p"
               connect-timeout = "500ms"
               request-timeout = "1s"
               give-up-after = "1m"
               [tls]
               ca = "/ca"
               certificate = "/c"
               key = "/k""#,
        )
        .unwrap();
        assert_eq!(
            most.endpoints.iter().map(Endpoint::to_string).collect::<Vec<_>>(),
            ["https://a.example:1", "https://[::1]:2"]
        );
        assert_eq!((most.endpoints[1].host.as_str(), most.prefix.as_str()), ("::1", "/varve/prod/"));
        assert_eq!((most.connect_timeout, most.give_up_after), (Duration::from_millis(500), Duration::from_secs(60)));
        assert_eq!(most.tls.key, Some("/k".into()));
    }

    #[test]
    fn what_can_not_work_is_refused_by_name() {
        let endpoints = r#"endpoints = ["https://a:1"]"#;
        let wrong = [
            ("", "endpoints"),
            ("endpoints = []", "endpoints"),
            (r#"endpoints = ["https://a:1", "https://a:1/"]"#, "twice"),
            (r#"endpoints = ["a:1"]"#, "a:1"),
            (r#"endpoints = ["ftp://a:1"]"#, "ftp"),
            (r#"endpoints = ["http://u:p@a:1"]"#, "HOST:PORT"),
            (r#"endpoints = ["http://a:1/path"]"#, "path"),
            (r#"endpoints = ["http://a:0"]"#, "a:0"),
            (r#"endpoints = ["http://a:99999"]"#, "a:99999"),
            ("endpoints = [\"http://a:1\"]\ntls = {}", "https"),
            (&format!("{endpoints}\ntls = {{ key = \"/k\" }}"), "certificate"),
            (&format!("{endpoints}\nuser = \"u\""), "password-file"),
            (&format!("{endpoints}\nuser = \"\"\npassword-file = \"/p\""), "user"),
            (&format!("{endpoints}\nprefix = \"/\""), "prefix"),
            (&format!("{endpoints}\nprefix = \"\""), "prefix"),
            (&format!("{endpoints}\nprefix = \"a b\""), "printable"),
            (&format!("{endpoints}\nprefix = \"{}\"", "p".repeat(128)), "prefix"),
            (&format!("{endpoints}\nrequest-timeout = \"0s\""), "duration"),
            (&format!("{endpoints}\nrequest-timeout = 5"), "string"),
            (&format!("{endpoints}\nprefx = \"/a\""), "prefx"),
            (&format!("{endpoints}\ntls = {{ cert = \"/c\" }}"), "cert"),
        ];
        for (text, named) in wrong {
            let error = checked(text).unwrap_err();
            assert!(error.contains(named), "{text}: {error:?} names {named}");
        }
    }

    #[test]
    fn it_is_written_as_it_is_read() {
        let mut config = EtcdConfig::new(["https://a:1"]);
        config.tls = Some(EtcdTls { ca: Some("/ca".into()), ..EtcdTls::default() });
        config.request_timeout = Duration::from_millis(1_500);
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<EtcdConfig>(&text).unwrap(), config, "{text}");
    }
}
