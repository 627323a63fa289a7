// SPDX-License-Identifier: Apache-2.0
//! TLS, users and tokens; and what people are told when they got the configuration wrong.

#![allow(clippy::unwrap_used, reason = "here a failed unwrap is a failed test")]

mod common;

use common::{Runtime, at, config, next, put, value, wait_for};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use varve_coord::{Coord, Event};
use varve_etcd::{Etcd, EtcdConfig, EtcdTls};
use varve_lab::certificates::Certificates;
use varve_lab::etcd::{Etcd as Lab, Options};
use varve_types::ErrorKind;

/// The words with which a configuration is refused.
async fn refused(config: &EtcdConfig, runtime: &Runtime) -> String {
    let begun = Instant::now();
    let error = Etcd::open(config, runtime.handle().clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(begun.elapsed() < config.give_up_after, "what a person has to mend is told at once");
    for endpoint in &config.endpoints {
        assert!(error.to_string().contains(endpoint), "{error} names {endpoint}");
    }
    error.to_string()
}

fn assert_words(error: &str, words: &[&str]) {
    for word in words {
        assert!(error.contains(word), "{error:?} says {word:?}");
    }
}

/// A configuration for TLS with this authority and this certificate and key.
fn secure(lab: &Lab, ca: Option<PathBuf>, own: Option<[PathBuf; 2]>) -> EtcdConfig {
    let mut config = config(&lab.endpoints());
    let [certificate, key] = own.map_or([None, None], |files| files.map(Some));
    config.tls = Some(EtcdTls { ca, certificate, key });
    config
}

/// A user with this password, which stands in a file.
fn with_user(mut config: EtcdConfig, lab: &Lab, password: &str) -> EtcdConfig {
    let file = lab.directory().join("password");
    std::fs::write(&file, format!("{password}\n")).unwrap();
    (config.user, config.password_file) = (Some("varve".to_owned()), Some(file));
    config
}

#[tokio::test]
async fn the_right_certificates_are_needed_on_both_sides() {
    let options = Options { tls: true, client_certificates: true, ..Options::default() };
    let (lab, runtime) = (Lab::start_with(&options).unwrap(), Runtime::start());
    let files = lab.certificates().unwrap().clone();
    let good = secure(&lab, Some(files.ca()), Some(files.client()));
    let etcd = Etcd::open(&good, runtime.handle().clone()).await.unwrap();
    let mut watch = etcd.watch("", 0).await.unwrap();
    put(&etcd, "k", "1").await.unwrap();
    assert!(matches!(next(&mut watch).await, Event::Put(entry) if entry.key == "k"));
    // A name of the certificate does as well as its address.
    let mut by_name = good.clone();
    by_name.endpoints = vec![format!("https://localhost:{}", lab.port(0))];
    let named = Etcd::open(&by_name, runtime.handle().clone()).await.unwrap();
    assert_eq!(value(&named, "k").await.as_deref(), Some("1"));

    let wrong_ca = secure(&lab, Some(files.other_ca()), Some(files.client()));
    let other = files.other_ca().display().to_string();
    assert_words(&refused(&wrong_ca, &runtime).await, &["not signed by an authority in", &other, "`ca`"]);
    let no_ca = secure(&lab, None, Some(files.client()));
    assert_words(&refused(&no_ca, &runtime).await, &["`ca`"]);
    let nameless = secure(&lab, Some(files.ca()), None);
    assert_words(&refused(&nameless, &runtime).await, &["our certificate", "`certificate`", "`key`"]);
    let stranger = secure(&lab, Some(files.ca()), Some(files.stranger()));
    assert_words(&refused(&stranger, &runtime).await, &["our certificate"]);
    let missing = secure(&lab, Some("/no/such/ca.pem".into()), None);
    assert_words(&refused(&missing, &runtime).await, &["/no/such/ca.pem", "No such file"]);
    let no_pem = secure(&lab, Some(files.client()[1].clone()), None);
    assert_words(&refused(&no_pem, &runtime).await, &["client.key", "no certificate"]);
    let mut plain = config(&[at(lab.port(0))]);
    plain.give_up_after = Duration::from_millis(500);
    let error = Etcd::open(&plain, runtime.handle().clone()).await.unwrap_err().to_string();
    assert_words(&error, &[&at(lab.port(0)), "https://"]);
}

#[tokio::test]
async fn what_is_no_etcd_is_told() {
    let (lab, runtime) = (Lab::start().unwrap(), Runtime::start());
    let tls_to_plain = config(&[format!("https://127.0.0.1:{}", lab.port(0))]);
    let files = Certificates::make(lab.directory()).unwrap();
    let tls = Some(EtcdTls { ca: Some(files.ca()), ..EtcdTls::default() });
    let tls_to_plain = EtcdConfig { tls, give_up_after: Duration::from_millis(500), ..tls_to_plain };
    let error = Etcd::open(&tls_to_plain, runtime.handle().clone()).await.unwrap_err().to_string();
    assert_words(&error, &["https://127.0.0.1", "with http://"]);
    let port = http_server();
    let mut not_etcd = config(&[at(port)]);
    not_etcd.give_up_after = Duration::from_millis(500);
    let error = Etcd::open(&not_etcd, runtime.handle().clone()).await.unwrap_err().to_string();
    assert_words(&error, &[&at(port), "is it an etcd"]);
}

#[tokio::test]
async fn two_clusters_are_not_taken_for_one() {
    let (lab, other, runtime) = (Lab::start().unwrap(), Lab::start().unwrap(), Runtime::start());
    let mut both = config(&[at(lab.port(0)), at(other.port(0))]);
    both.give_up_after = Duration::from_secs(1);
    let etcd = Etcd::open(&both, runtime.handle().clone()).await.unwrap();
    put(&etcd, "k", "1").await.unwrap();
    drop(lab);
    let error = etcd.get("k").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "the other cluster is not asked: {error}");
    assert_words(&error.to_string(), &[&at(other.port(0)), "one cluster"]);
    assert_eq!(put(&etcd, "k", "2").await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(other.ctl(&["get", "--prefix", "/varve/"]).unwrap(), "", "nothing was written to it");
}

/// A server that answers everything with a line of HTTP/1, until the test program ends.
fn http_server() -> u16 {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // What the client makes of it is what the test looks at.
            drop(stream.read(&mut [0; 1024]));
            drop(stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"));
        }
    });
    port
}

#[tokio::test]
async fn a_user_reads_and_writes_below_the_prefix_and_nowhere_else() {
    let (lab, runtime) = (Lab::start().unwrap(), Runtime::start());
    lab.enable_auth("secret", "/varve/").unwrap();
    let plain = config(&lab.endpoints());
    let good = with_user(plain.clone(), &lab, "secret");
    let etcd = Etcd::open(&good, runtime.handle().clone()).await.unwrap();
    let mut watch = etcd.watch("", 0).await.unwrap();
    put(&etcd, "k", "1").await.unwrap();
    assert!(matches!(next(&mut watch).await, Event::Put(entry) if entry.key == "k"));
    let lease = etcd.lease(Duration::from_secs(60)).await.unwrap();
    etcd.keep_alive(lease).await.unwrap();

    assert_words(&refused(&plain, &runtime).await, &["`user`", "`password-file`"]);
    let elsewhere = EtcdConfig { prefix: "/other/".to_owned(), ..good.clone() };
    assert_words(&refused(&elsewhere, &runtime).await, &["varve", "/other/", "grant-permission"]);
    let wrong = with_user(plain.clone(), &lab, "guess");
    let error = refused(&wrong, &runtime).await;
    assert_words(&error, &["the user varve", &lab.directory().join("password").display().to_string()]);
    assert!(!error.contains("guess"), "{error}");
    let mut no_file = good.clone();
    no_file.password_file = Some("/no/such/password".into());
    assert_words(&refused(&no_file, &runtime).await, &["/no/such/password"]);

    // A role that is taken away ends it, in words; one that is given back lets it go on.
    let root = |words: &[&str]| lab.ctl(&[&["--user", "root:root"], words].concat()).unwrap();
    root(&["user", "revoke-role", "varve", "varve"]);
    let error = etcd.get("k").await.unwrap_err();
    assert!(error.kind() == ErrorKind::Unavailable && error.to_string().contains("grant-permission"), "{error}");
    let error = etcd.watch("", 0).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Unavailable && error.to_string().contains("permission denied"), "{error}");
    root(&["user", "grant-role", "varve", "varve"]);
    assert_eq!(value(&etcd, "k").await.as_deref(), Some("1"));
}

#[tokio::test]
async fn a_token_that_is_over_is_renewed() {
    // Tokens that live for a second and are signed; and such as every change of a user ends.
    for short_tokens in [true, false] {
        let options = Options { tls: true, short_tokens, ..Options::default() };
        let (lab, runtime) = (Lab::start_with(&options).unwrap(), Runtime::start());
        lab.enable_auth("secret", "/varve/").unwrap();
        let files = lab.certificates().unwrap();
        let config = with_user(secure(&lab, Some(files.ca()), None), &lab, "secret");
        let etcd = Etcd::open(&config, runtime.handle().clone()).await.unwrap();
        let mut watch = etcd.watch("", 0).await.unwrap();
        let tokens =
            || lab.metric(0, "grpc_server_handled_total{grpc_code=\"OK\",grpc_method=\"Authenticate\"").unwrap();
        let begun = tokens();
        for n in 0..2_u32 {
            if !short_tokens {
                let root = |words: &[&str]| lab.ctl(&[&["--user", "root:root", "user"], words].concat()).unwrap();
                root(&["delete", "varve"]);
                root(&["add", "varve:secret"]);
                root(&["grant-role", "varve", "varve"]);
            }
            let before = tokens();
            // Changes, reads and watches go on, whatever becomes of the token.
            wait_for("the token to be renewed", async || {
                put(&etcd, "k", &n.to_string()).await.unwrap();
                let mut another = etcd.watch("k", 1).await.unwrap();
                next(&mut another).await;
                tokens() > before
            })
            .await;
        }
        assert!(tokens() >= begun + 2.0);
        loop {
            if matches!(next(&mut watch).await, Event::Put(entry) if entry.value == b"1") {
                break;
            }
        }
    }
}

/// A user in the configuration of an etcd that asks for none does no harm.
#[tokio::test]
async fn authentication_that_is_disabled_is_done_without() {
    let (lab, runtime) = (Lab::start().unwrap(), Runtime::start());
    let config = with_user(config(&lab.endpoints()), &lab, "secret");
    let etcd = Etcd::open(&config, runtime.handle().clone()).await.unwrap();
    put(&etcd, "k", "1").await.unwrap();
    // It is enabled while the node runs.
    lab.enable_auth("secret", "/varve/").unwrap();
    put(&etcd, "k", "2").await.unwrap();
    assert_eq!(value(&etcd, "k").await.as_deref(), Some("2"));
}
