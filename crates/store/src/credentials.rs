// SPDX-License-Identifier: Apache-2.0
//! Where the credentials for S3 come from.
//!
//! In this order: the file that the store's address names (`credentials=FILE`); the environment (`AWS_ACCESS_KEY_ID` and
//! `AWS_SECRET_ACCESS_KEY`, with `AWS_SESSION_TOKEN` if there is one); the file `AWS_SHARED_CREDENTIALS_FILE`, else
//! `~/.aws/credentials`. Of a file the section `AWS_PROFILE`, else `default`, is read. Nothing is asked of a metadata service: a program
//! that finds no credentials says so at once. Secrets are in no error, no log line and no `Debug` output.

use std::fmt;
use std::path::{Path, PathBuf};

/// The largest file that is read.
const FILE_MAX_BYTES: u64 = 1 << 20;

/// A key and its secret.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) key: String,
    pub(crate) secret: String,
    pub(crate) token: Option<String>,
    /// The region that the file's section names.
    pub(crate) region: Option<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("key", &self.key).finish_non_exhaustive()
    }
}

/// Finds the credentials; `named` is the file from the address, `variable` reads the environment.
///
/// # Errors
/// Words that say what to do.
pub(crate) fn find(named: Option<&Path>, variable: &dyn Fn(&str) -> Option<String>) -> Result<Credentials, String> {
    let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
    let profile = variable("AWS_PROFILE").unwrap_or_else(|| "default".to_owned());
    if let Some(path) = named {
        return from_file(path, &profile);
    }
    match (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY")) {
        (Some(key), Some(secret)) => {
            return Ok(Credentials { key, secret, token: variable("AWS_SESSION_TOKEN"), region: None });
        }
        (Some(_), None) => return Err("AWS_ACCESS_KEY_ID is set, but AWS_SECRET_ACCESS_KEY is not".to_owned()),
        (None, Some(_)) => return Err("AWS_SECRET_ACCESS_KEY is set, but AWS_ACCESS_KEY_ID is not".to_owned()),
        (None, None) => {}
    }
    if let Some(path) = variable("AWS_SHARED_CREDENTIALS_FILE") {
        return from_file(Path::new(&path), &profile);
    }
    let home = variable("HOME").map(|home| PathBuf::from(home).join(".aws/credentials"));
    match home.filter(|path| path.exists()) {
        Some(path) => from_file(&path, &profile),
        None => Err("no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write a credentials file and name it with \
             AWS_SHARED_CREDENTIALS_FILE or credentials=FILE in the store's address"
            .to_owned()),
    }
}

fn from_file(path: &Path, profile: &str) -> Result<Credentials, String> {
    let shown = path.display();
    let size = std::fs::metadata(path).map_err(|error| format!("credentials file {shown}: {error}"))?.len();
    if size > FILE_MAX_BYTES {
        return Err(format!("credentials file {shown}: {size} bytes are too many for what it should be"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| format!("credentials file {shown}: {error}"))?;
    from_ini(&text, profile).map_err(|message| format!("credentials file {shown}: {message}"))
}

/// Reads one section of an ini file: `[name]`, `key = value`, whole-line comments with `#` or `;`.
fn from_ini(text: &str, profile: &str) -> Result<Credentials, String> {
    let (mut key, mut secret, mut token, mut region) = (None, None, None, None);
    let (mut found, mut inside) = (false, false);
    for line in text.trim_start_matches('\u{feff}').lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            inside = section.trim() == profile;
            found |= inside;
        } else if inside && !line.starts_with(['#', ';']) {
            let Some((name, value)) = line.split_once('=') else { continue };
            let value = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
            match name.trim().to_ascii_lowercase().as_str() {
                "aws_access_key_id" => key = value,
                "aws_secret_access_key" => secret = value,
                "aws_session_token" => token = value,
                "region" => region = value,
                _ => {} // The tools whose file this is keep other things in it, too.
            }
        }
    }
    match (key, secret) {
        (Some(key), Some(secret)) => Ok(Credentials { key, secret, token, region }),
        _ if !found => Err(format!("it has no section [{profile}]")),
        (None, _) => Err(format!("its section [{profile}] has no aws_access_key_id")),
        (_, None) => Err(format!("its section [{profile}] has no aws_secret_access_key")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# mine\n[default]\naws_access_key_id = K1\naws_secret_access_key=S=1==\n\n[ other ]\n\
        AWS_ACCESS_KEY_ID=K2\n; aws_secret_access_key = no\naws_secret_access_key = S2\naws_session_token = T2\nregion = r2\nx = y\n\
        [half]\naws_access_key_id = K3\n";

    fn environment<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn reads_sections() {
        let first = from_ini(FILE, "default").unwrap();
        assert_eq!((first.key.as_str(), first.secret.as_str(), first.token, first.region), ("K1", "S=1==", None, None));
        let other = from_ini(FILE, "other").unwrap();
        assert_eq!((other.key.as_str(), other.secret.as_str()), ("K2", "S2"));
        assert_eq!((other.token.as_deref(), other.region.as_deref()), (Some("T2"), Some("r2")));
        assert!(from_ini(FILE, "half").unwrap_err().contains("aws_secret_access_key"));
        assert!(from_ini(FILE, "none").unwrap_err().contains("[none]"));
        assert!(from_ini("", "default").is_err());
    }

    #[test]
    fn the_address_comes_before_the_environment_and_that_before_the_usual_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keys");
        std::fs::write(&file, FILE).unwrap();
        let home = dir.path().join(".aws");
        std::fs::create_dir(&home).unwrap();
        std::fs::write(home.join("credentials"), FILE.replace("K1", "K0")).unwrap();
        let (file_text, home_text) = (file.to_str().unwrap(), dir.path().to_str().unwrap());
        let keys = [("AWS_ACCESS_KEY_ID", "KE"), ("AWS_SECRET_ACCESS_KEY", "SE"), ("AWS_PROFILE", "other")];
        let shared = [("AWS_SHARED_CREDENTIALS_FILE", file_text), ("HOME", home_text), ("AWS_ACCESS_KEY_ID", "")];
        let key = |named: Option<&Path>, pairs: &[(&str, &str)]| find(named, &environment(pairs)).unwrap().key;
        assert_eq!(key(Some(&file), &keys), "K2");
        assert_eq!(key(None, &keys), "KE");
        assert_eq!(key(None, &shared), "K1");
        assert_eq!(key(None, &[("HOME", home_text)]), "K0");
    }

    #[test]
    fn says_what_is_missing_and_no_secret() {
        let error = |pairs: &[(&str, &str)]| find(None, &environment(pairs)).unwrap_err();
        assert!(error(&[]).contains("AWS_ACCESS_KEY_ID"));
        assert!(error(&[("AWS_ACCESS_KEY_ID", "K")]).contains("AWS_SECRET_ACCESS_KEY is not"));
        assert!(error(&[("AWS_SECRET_ACCESS_KEY", "S")]).contains("AWS_ACCESS_KEY_ID is not"));
        assert!(error(&[("AWS_SHARED_CREDENTIALS_FILE", "/no/such/file")]).contains("/no/such/file"));
        assert!(!format!("{:?}", from_ini(FILE, "other").unwrap()).contains("S2"));
    }
}
