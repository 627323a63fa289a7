// SPDX-License-Identifier: Apache-2.0
//! Which nodes there are, and which of them is to be the mirror of a volume.
//!
//! Of those that are alive one in another site is best, then one in another rack, then any; among equals the choice goes by volume, so that the load spreads, and stays
//! the same as long as the nodes do. A node that did not answer, or that has no room for another copy, is left alone for a while.

use super::dial::Dialer;
use super::peer::TcpPeer;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};
use varve_engine::{MirrorNodes, MirrorPeer};
use varve_types::{NodeId, VolumeId};

/// For how long a node that could not be reached, or has no room, is not chosen.
const LEFT_ALONE: Duration = Duration::from_secs(5);

/// A node of the cluster, as far as mirrors are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// Where it takes changes.
    pub address: String,
    /// Its rack.
    pub rack: Option<String>,
    /// Its site.
    pub site: Option<String>,
    /// Whether it is alive, as coordination knows.
    pub alive: bool,
}

/// See the module.
pub(crate) struct Members {
    dialer: Rc<Dialer>,
    rack: Option<String>,
    site: Option<String>,
    others: RefCell<BTreeMap<NodeId, Member>>,
    peers: RefCell<BTreeMap<NodeId, Rc<TcpPeer>>>,
    failed: RefCell<BTreeMap<NodeId, Instant>>,
}

impl Members {
    /// None yet: those of a node that begins to talk by `dialer`, in a rack and a site.
    pub(crate) fn new(dialer: Rc<Dialer>, rack: Option<String>, site: Option<String>) -> Rc<Self> {
        Rc::new(Self {
            dialer,
            rack,
            site,
            others: RefCell::default(),
            peers: RefCell::default(),
            failed: RefCell::default(),
        })
    }

    /// These are the other nodes now.
    pub(crate) fn set(&self, others: BTreeMap<NodeId, Member>) {
        self.peers.borrow_mut().retain(|node, _| others.contains_key(node));
        self.others.replace(others);
    }

    /// How far away a node is: the higher the better for a copy.
    fn distance(&self, member: &Member) -> u8 {
        let differs = |own: &Option<String>, other: &Option<String>| own.is_some() && other.is_some() && own != other;
        if differs(&self.site, &member.site) {
            return 2;
        }
        u8::from(differs(&self.rack, &member.rack))
    }

    /// The connection to a node: the one that there is, or a new one.
    fn connect(&self, node: NodeId) -> Option<Rc<dyn MirrorPeer>> {
        let address = self.others.borrow().get(&node)?.address.clone();
        let mut peers = self.peers.borrow_mut();
        if let Some(peer) = peers.get(&node) {
            if !peer.is_broken() {
                return Some(Rc::clone(peer) as Rc<dyn MirrorPeer>);
            }
            self.failed.borrow_mut().insert(node, Instant::now());
        }
        let peer = TcpPeer::connect(node, address, &self.dialer);
        peers.insert(node, Rc::clone(&peer));
        Some(peer)
    }
}

impl MirrorNodes for Members {
    fn choose(&self, volume: VolumeId) -> Option<Rc<dyn MirrorPeer>> {
        // Whoever has broken a connection since the last look is left alone from now on.
        for (node, peer) in &*self.peers.borrow() {
            if peer.is_broken() {
                self.failed.borrow_mut().entry(*node).or_insert_with(Instant::now);
            }
        }
        self.failed.borrow_mut().retain(|_, since| since.elapsed() < LEFT_ALONE);
        let spread = |node: &NodeId| {
            let (a, b) = (volume.to_bytes(), node.to_bytes());
            a.iter().zip(b).fold(0u64, |sum, (a, b)| sum.wrapping_mul(31).wrapping_add(u64::from(a ^ b)))
        };
        let node = {
            let (others, failed) = (self.others.borrow(), self.failed.borrow());
            let may = others.iter().filter(|(node, member)| member.alive && !failed.contains_key(node));
            may.max_by_key(|(node, member)| (self.distance(member), spread(node))).map(|(node, _)| *node)
        };
        self.connect(node?)
    }

    fn is_full(&self, node: NodeId) {
        self.failed.borrow_mut().insert(node, Instant::now());
    }

    fn find(&self, node: NodeId) -> Option<Rc<dyn MirrorPeer>> {
        self.connect(node)
    }
}
