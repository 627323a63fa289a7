// SPDX-License-Identifier: Apache-2.0
//! The node's part in mirrors: the copies that it keeps for others, and the nodes that keep copies for it.
//!
//! Who the others are is looked up in coordination every second. That a node is alive there makes it worth a try, and no more: what counts is what it answers.
//!
//! Lives on the shard's thread; a crash loses the copies in RAM, as the records of their volumes know by what they name. What those on disk live and die with is kept in
//! [`super::disk_copies`].

use super::control::Node;
use super::directory::Directory;
use super::disk_copies::DiskCopiesFile;
use super::local::Local;
use super::membership::Membership;
use super::ownership::{Foreign, Roster};
use super::thread::ShardHandle;
use crate::api::ControlError;
use crate::mirror::{self, Accepted, Dialer, Links, Member, Members};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::{Duration, Instant};
use varve_config::{ClusterConfig, NodeTls};
use varve_coord::{MirrorRecord, Records, VolumeRecord};
use varve_engine::Copies;
use varve_serve::{ClientTls, ClientTlsFiles};
use varve_types::{ClusterId, Epoch, IncarnationId, NodeId, SessionId, TimelineId};
use varve_wire::attach::Attach;
use varve_wire::mirror::MirrorHello;

/// Between two looks who the others are.
const LOOK_TIME: Duration = Duration::from_secs(1);
/// Between two looks which copies are of use to anybody.
const TIDY_LOOKS: u32 = 30;
/// An edge that asks again within this time has not got what it was sent to.
const INSISTS_WITHIN: Duration = Duration::from_secs(10);
/// Edges that are remembered to have asked.
const MOST_ASKED: usize = 4096;
/// For how long a node is waited for that may be dead.
const PROBE_TIME: Duration = Duration::from_millis(300);

/// What is needed to begin.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) hello: MirrorHello,
    pub(super) incarnation: IncarnationId,
    /// What nodes speak TLS with.
    pub(super) tls: Option<NodeTls>,
    /// What copies on disk live and die with.
    pub(super) disk: DiskCopiesFile,
    /// Bytes of copies in RAM, at most.
    pub(super) ram: u64,
    pub(super) rack: Option<String>,
    pub(super) site: Option<String>,
}

impl Plan {
    /// That of a node of a cluster.
    ///
    /// # Errors
    /// What coordination says, which keeps the token of nodes.
    pub(super) async fn new(
        member: &Membership,
        config: &ClusterConfig,
        cluster: ClusterId,
        directory: &Directory,
    ) -> Result<Self, ControlError> {
        let disk = DiskCopiesFile::open(directory)?;
        let token = member.node_token().await?.text().to_owned();
        Ok(Self {
            hello: MirrorHello { token, cluster, node: member.id() },
            incarnation: member.incarnation(),
            tls: config.tls.clone(),
            disk,
            ram: config.mirror_ram_bytes,
            rack: config.rack.clone(),
            site: config.site.clone(),
        })
    }
}

/// See the module.
pub(super) struct Mirroring {
    dialer: Rc<Dialer>,
    pub(super) copies: Rc<Copies>,
    pub(super) members: Rc<Members>,
    links: Rc<Links>,
    /// When sessions were sent on to the owner of their volume.
    asked: RefCell<BTreeMap<SessionId, Instant>>,
    /// Copies that the last look found to be of no use.
    unused: RefCell<BTreeSet<(TimelineId, Epoch, u64)>>,
}

impl Mirroring {
    /// # Errors
    /// When the files of TLS can not be used.
    pub(super) fn new(plan: Plan) -> Result<Self, ControlError> {
        let Plan { hello, incarnation, tls, disk, ram, rack, site } = plan;
        let tls = tls.map(|NodeTls { certificate, key, ca }| {
            ClientTls::open(ClientTlsFiles { ca, identity: Some((certificate, key)), name: None })
        });
        let tls = tls.transpose().map_err(|error| ControlError::new(error.kind(), error.to_string()))?;
        let dialer = Rc::new(Dialer::new(hello, tls));
        let copies = Copies::new(incarnation, ram);
        copies.allow_disk(disk.into_copies());
        Ok(Self {
            copies: Rc::new(copies),
            members: Members::new(Rc::clone(&dialer), rack, site),
            dialer,
            links: Rc::default(),
            asked: RefCell::default(),
            unused: RefCell::default(),
        })
    }

    /// Whether this process has all of a volume's tail, as coordination knows.
    pub(super) fn has_copy(&self, volume: &VolumeRecord) -> bool {
        let is_here =
            |mirror: MirrorRecord| mirror.node == self.dialer.hello.node && self.copies.is_here(mirror.incarnation);
        volume.counting_mirror().is_some_and(is_here)
    }

    /// Whether this node may need what it has of a volume: it is named as its mirror, or takes it over.
    fn may_need(&self, volume: &VolumeRecord) -> bool {
        let own = Some(self.dialer.hello.node);
        volume.owner == own || volume.counting_mirror().map(|mirror| mirror.node) == own
    }

    /// Lets go of copies that are of no use to anybody: of an epoch that is over, where the record does not name this node; or of what no volume shows any more. An owner
    /// that opens anew raises the epoch before it asks for the copy, which is all the same the only one.
    fn tidy(&self, volumes: impl Iterator<Item = VolumeRecord>) {
        let used: BTreeMap<_, _> =
            volumes.map(|volume| (volume.shown, (volume.epoch, self.may_need(&volume)))).collect();
        let mut unused = BTreeSet::new();
        self.copies.retain(|timeline, epoch, number| {
            let is_used = used.get(&timeline).is_some_and(|(now, named)| *named || *now <= epoch);
            // One that was begun since the volumes were looked up is met by the next look.
            let copy = (timeline, epoch, number);
            is_used || (unused.insert(copy) && !self.unused.borrow().contains(&copy))
        });
        self.unused.replace(unused);
    }

    /// Whether the owner of a volume, of which this node has a copy, is to be taken for gone by what an edge asks. To be wrong costs a move of the volume and
    /// nothing else.
    pub(super) async fn is_owner_gone(&self, foreign: &Foreign, attach: &Attach) -> bool {
        let Some(owner) = foreign.volume.owner else { return true };
        if foreign.alive.is_none() || !self.links.has(owner) {
            return true;
        }
        // It was served by this very owner, and is not any more.
        let was_served = attach.promises.iter().any(|promise| promise.epoch == foreign.volume.epoch);
        was_served && (self.insists(attach.session) || !self.answers(owner, foreign).await)
    }

    /// Whether a session was sent to the owner a moment ago, and is here again.
    fn insists(&self, session: SessionId) -> bool {
        let mut asked = self.asked.borrow_mut();
        asked.retain(|_, since| since.elapsed() < INSISTS_WITHIN);
        if asked.len() >= MOST_ASKED {
            asked.pop_first();
        }
        asked.insert(session, Instant::now()).is_some()
    }

    /// Whether a node answers a greeting, at once.
    async fn answers(&self, owner: NodeId, foreign: &Foreign) -> bool {
        let address = foreign.node.as_ref().and_then(|node| node.mirror.clone());
        // One that takes no copies can not be asked this way.
        let Some(address) = address else { return true };
        let greeted = self.dialer.probe(owner, &address);
        matches!(tokio::time::timeout(PROBE_TIME, greeted).await, Ok(Ok(())))
    }

    fn set(&self, roster: &Roster) {
        let others = roster.nodes().into_iter().filter(|(node, _)| node.id != self.dialer.hello.node);
        let member = |(node, alive): (&varve_coord::NodeRecord, Option<&varve_coord::AliveRecord>)| {
            let (rack, site, alive) = (node.rack.clone(), node.site.clone(), alive.is_some());
            Some((node.id, Member { address: node.mirror.clone()?, rack, site, alive }))
        };
        self.members.set(others.filter_map(member).collect());
    }
}

/// Keeps copies for a node until it hangs up.
pub(super) async fn serve(local: Rc<Local>, accepted: Accepted) {
    let Some(mirroring) = &local.mirroring else { return };
    let (own, copies, links) = (mirroring.dialer.hello.node, Rc::clone(&mirroring.copies), Rc::clone(&mirroring.links));
    let env = Rc::clone(&local.env);
    mirror::serve(own, copies, links, move || env.now(), accepted).await;
}

/// Follows who the others are, for ever. A node by itself has none.
pub(super) async fn mind(node: &Node) {
    let Some(member) = &node.member else { return std::future::pending().await };
    let mut looks = 0_u32;
    loop {
        look(&node.shard, node.pools.records(), member).await;
        looks += 1;
        if looks.is_multiple_of(TIDY_LOOKS)
            && let Ok(volumes) = node.pools.records().list_volumes().await
        {
            with(&node.shard, move |mirroring| mirroring.tidy(volumes.into_iter().map(|(volume, _)| volume))).await;
        }
        tokio::time::sleep(LOOK_TIME).await;
    }
}

/// Looks up who the others are.
pub(super) async fn look(shard: &ShardHandle, records: Records<'_>, member: &Membership) {
    match Roster::load(records, Some(member)).await {
        Ok(roster) => with(shard, move |mirroring| mirroring.set(&roster)).await,
        Err(error) => tracing::debug!(%error, "who may keep copies can not be looked up"),
    }
}

async fn with(shard: &ShardHandle, work: impl FnOnce(&Mirroring) + Send + 'static) {
    let done = shard.call(move |local| {
        Box::pin(async move {
            if let Some(mirroring) = &local.mirroring {
                work(mirroring);
            }
            Ok(())
        })
    });
    if let Err(error) = done.await {
        tracing::debug!(%error, "the shard does not answer");
    }
}
