// SPDX-License-Identifier: Apache-2.0
//! Two ends of a connection: what is asked is done in its order and answered; one that breaks says so to everybody, and a stranger is told.

use super::*;
use crate::api::Token;
use crate::mirror::{Links, Member, Members, MirrorGreeter, serve};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use varve_engine::{Copies, MirrorNodes};
use varve_format::crc::crc;
use varve_format::journal::Body;
use varve_lab::certificates::Certificates;
use varve_serve::{ClientTls, ClientTlsFiles, Endpoint, Listener, ServerTls, Slots, TlsFiles};
use varve_types::{ClusterId, MirrorMedium, VolumeId};
use varve_wire::mirror::MirrorHello;

const OWNER: NodeId = NodeId::from_bytes([1; 16]);
const MIRROR: NodeId = NodeId::from_bytes([2; 16]);
const CLUSTER: ClusterId = ClusterId::from_bytes([3; 16]);
const TIMELINE: TimelineId = TimelineId::from_bytes([4; 16]);

fn record(sequence: u64) -> TailRecord {
    let data = Bytes::from(vec![sequence as u8; 4096]);
    let body = Body::Write { start: sequence, crcs: vec![crc(&data)] };
    TailRecord { epoch: Epoch(1), sequence: Sequence(sequence), flushed_through: Sequence(0), body, data }
}

fn begin(epoch: u64) -> BeginCopy {
    let (volume, medium) = (VolumeId::from_bytes([5; 16]), MirrorMedium::Ram);
    BeginCopy { volume, timeline: TIMELINE, epoch: Epoch(epoch), base: Sequence(0), medium }
}

fn delivery(previous: u64, count: u64) -> Delivery {
    let records = (previous + 1..=previous + count).map(record).collect();
    Delivery { timeline: TIMELINE, epoch: Epoch(1), previous: Sequence(previous), records }
}

/// What the server of the mirror speaks TLS with, and who connects to it.
fn tls(files: &Certificates) -> (ServerTls, ClientTls) {
    let [certificate, key] = files.server();
    let identity = Some((certificate.clone(), key.clone()));
    let server = ServerTls::open(TlsFiles { certificate, key, client_ca: Some(files.ca()) }).unwrap();
    (server, ClientTls::open(ClientTlsFiles { ca: files.ca(), identity, name: None }).unwrap())
}

/// Runs a mirror on a port, and `test` with its address and the token of its cluster.
fn with_mirror<F: Future<Output = ()>>(test: impl FnOnce(Rc<Copies>, Rc<Links>, String, String) -> F) {
    with_secured(None, test);
}

/// The same, under TLS or not.
fn with_secured<F: Future<Output = ()>>(
    tls: Option<ServerTls>,
    test: impl FnOnce(Rc<Copies>, Rc<Links>, String, String) -> F,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        let token = Token::open(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap().trim().to_owned();
        let listener = Listener::open(&Endpoint::Tcp("127.0.0.1:0".parse().unwrap())).await.unwrap();
        let listener = listener.under(tls.map(Arc::new));
        let address = listener.endpoint().to_string();
        let copies = Rc::new(Copies::new(IncarnationId::from_bytes([9; 16]), 1 << 30));
        let links = Rc::new(Links::default());
        let (sender, mut accepted) = mpsc::channel(8);
        let deliver = move |accepted| {
            let sender = sender.clone();
            async move { sender.send(accepted).await.unwrap() }
        };
        let greeter = Arc::new(MirrorGreeter { cluster: CLUSTER, token });
        let listening = listener.run(greeter, Slots::default(), deliver, std::future::pending());
        let (kept, linked) = (Rc::clone(&copies), Rc::clone(&links));
        let serving = async move {
            while let Some(accepted) = accepted.recv().await {
                let now = || Duration::from_secs(7);
                drop(tokio::task::spawn_local(serve(MIRROR, Rc::clone(&kept), Rc::clone(&linked), now, accepted)));
            }
        };
        tokio::select! {
            _ = listening => panic!("it listens until the test is over"),
            () = serving => panic!("it serves until the test is over"),
            () = test(copies, links, address, text) => {}
        }
    });
}

fn hello(token: &str) -> MirrorHello {
    MirrorHello { token: token.to_owned(), cluster: CLUSTER, node: OWNER }
}

fn dialer(hello: MirrorHello) -> Rc<Dialer> {
    Rc::new(Dialer::new(hello, None))
}

#[test]
fn changes_come_there_and_back() {
    with_mirror(|copies, links, address, token| there_and_back(copies, links, address, dialer(hello(&token))));
}

#[test]
fn under_tls_too() {
    let directory = tempfile::tempdir().unwrap();
    let (server, client) = tls(&Certificates::make(directory.path()).unwrap());
    with_secured(Some(server), |copies, links, address, token| {
        there_and_back(copies, links, address, Rc::new(Dialer::new(hello(&token), Some(client))))
    });
}

async fn there_and_back(copies: Rc<Copies>, links: Rc<Links>, address: String, dialer: Rc<Dialer>) {
    let peer = TcpPeer::connect(MIRROR, address, &dialer);
    let begun = peer.begin(begin(1)).await.unwrap();
    assert_eq!(begun.incarnation, copies.incarnation());
    assert!(links.has(OWNER));
    // Many at once, large and small, answered in their order.
    let all: Vec<_> = (0..40).map(|round| peer.deliver(delivery(round * 100, 100))).collect();
    for sent in all {
        sent.await.unwrap();
    }
    let gap = peer.deliver(delivery(9000, 1)).await.unwrap_err();
    assert_eq!(gap.kind(), ErrorKind::Conflict);
    peer.lease(TIMELINE, Epoch(1)).await.unwrap();
    peer.release(Release { timeline: TIMELINE, epoch: Epoch(1), through: Sequence(1000), back: 0 });
    // It is in RAM: nobody can say that it is on stable media.
    assert_eq!(peer.sync(TIMELINE, Epoch(1), Sequence(4000)).await.unwrap_err().kind(), ErrorKind::Conflict);
    let unknown = peer.fetch(TIMELINE, Epoch(2), IncarnationId::from_bytes([1; 16])).await.unwrap();
    assert_eq!(unknown, Fetched { is_whole: false, records: Vec::new() });
    let fetched = peer.fetch(TIMELINE, Epoch(2), copies.incarnation()).await.unwrap();
    assert_eq!(fetched, Fetched { is_whole: true, records: (1001..=4000).map(record).collect() });
    assert_eq!(peer.deliver(delivery(4000, 1)).await.unwrap_err().kind(), ErrorKind::Fenced);
    assert_eq!(peer.lease(TIMELINE, Epoch(1)).await.unwrap_err().kind(), ErrorKind::Fenced);
}

#[test]
fn strangers_are_told_why() {
    with_mirror(|_, links, address, token| async move {
        let other = MirrorHello { cluster: ClusterId::from_bytes([8; 16]), ..hello(&token) };
        for (said, why) in [(hello("no"), "token"), (other, "another cluster")] {
            let peer = TcpPeer::connect(MIRROR, address.clone(), &dialer(said));
            let error = peer.begin(begin(1)).await.unwrap_err();
            assert!(error.kind() == ErrorKind::Unavailable && error.to_string().contains(why), "{error}");
            assert!(peer.is_broken() && !links.has(OWNER));
        }
        let wrong = TcpPeer::connect(OWNER, address, &dialer(hello(&token)));
        assert!(wrong.begin(begin(1)).await.unwrap_err().to_string().contains("answers there"));
    });
}

#[test]
fn a_broken_connection_tells_everybody_and_another_is_made() {
    with_mirror(|copies, _, address, token| async move {
        let members = Members::new(dialer(hello(&token)), None, None);
        assert!(members.choose(begin(1).volume).is_none() && members.find(MIRROR).is_none());
        let member = |address: &str| Member { address: address.to_owned(), rack: None, site: None, alive: true };
        members.set(BTreeMap::from([(MIRROR, member("127.0.0.1:1"))]));
        let nobody = members.choose(begin(1).volume).expect("coordination says that it is alive");
        assert_eq!(nobody.begin(begin(1)).await.unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!(nobody.deliver(delivery(0, 1)).await.unwrap_err().kind(), ErrorKind::Unavailable);
        assert!(members.choose(begin(1).volume).is_none(), "it is left alone for a while");
        members.set(BTreeMap::from([(MIRROR, member(&address))]));
        let peer = members.find(MIRROR).expect("who needs just this one may ask it");
        peer.begin(begin(1)).await.unwrap();
        peer.deliver(delivery(0, 1)).await.unwrap();
        assert_eq!(copies.counts().copies, 1);
    });
}
