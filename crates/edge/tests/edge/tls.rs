// SPDX-License-Identifier: Apache-2.0
//! TLS: a node that is vouched for is believed, any other is not.

use super::owner::Owner;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::rustls;
use varve_edge::{ClientTls, ClientTlsFiles, Edge, Options, Sockets};
use varve_lab::process::find_program;

fn openssl(dir: &Path, args: &str) {
    let mut command = Command::new(find_program("openssl", "openssl").unwrap());
    let output = command.args(args.split(' ')).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "openssl {args}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A certificate of the name `node.test`, which vouches for itself.
fn certificate(dir: &Path, name: &str) {
    let subject =
        format!("-subj /CN={name} -addext subjectAltName=DNS:node.test -addext basicConstraints=critical,CA:FALSE");
    openssl(
        dir,
        &format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -keyout {name}.key -out {name}.pem {subject}"
        ),
    );
}

fn owner(dir: &Path) -> Owner {
    let chain = vec![CertificateDer::from_pem_file(dir.join("node.pem")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(dir.join("node.key")).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let config = Arc::new(config);
    Owner::start_with(Arc::new(move |stream| {
        let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
        Box::new(rustls::StreamOwned::new(connection, stream))
    }))
}

#[test]
fn a_node_that_is_vouched_for_is_believed_and_another_is_not() {
    let dir = tempfile::tempdir().unwrap();
    certificate(dir.path(), "node");
    certificate(dir.path(), "stranger");
    let owner = owner(dir.path());
    let open = |ca: &str, name: &str| {
        let files = ClientTlsFiles { ca: dir.path().join(ca), identity: None, name: Some(name.to_owned()) };
        let mut all = Options::new("disk", vec![owner.node()]);
        all.transport = Rc::new(Sockets::new(Some(Arc::new(ClientTls::open(files).unwrap()))));
        all.terms.attach_timeout = Some(Duration::from_secs(2));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let volume = Edge::default().open(all).await?;
            volume.write(0, vec![7; 1 << 20].into()).await?;
            assert_eq!(volume.read(0, 1 << 20).await?[..], vec![7; 1 << 20]);
            volume.close().await
        })
    };
    open("node.pem", "node.test").unwrap();
    for (ca, name) in [("stranger.pem", "node.test"), ("node.pem", "other.test")] {
        let error = open(ca, name).unwrap_err().to_string();
        assert!(error.contains("certificate"), "{error}");
    }
    let nothing = ClientTlsFiles { ca: dir.path().join("node.key"), identity: None, name: None };
    assert!(ClientTls::open(nothing).is_err());
}
