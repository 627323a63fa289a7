// SPDX-License-Identifier: Apache-2.0
//! The fields of a manifest, in the order in which they are stored.
//!
//! Each `encode_…` mirrors the `decode_…` beside it; docs/formats.md has the table. Decoding checks what a field alone can
//! show (flags, ranges, known kinds); what fields say together is checked by the manifest. A new field is a new version,
//! or belongs to a feature that the manifest says it needs: nothing here is optional, so that a manifest cut short is never taken for an older one.

use super::{
    Ancestor, Birth, Cut, DeadObject, Hold, Manifest, MapObject, NodeRunRef, NodeWait, PageRef, Reclaim, Rewind,
    RewindRoot, RunRef, SnapshotEntry, TableObject, TimelineState,
};
use crate::codec::{Decoder, Encoder};
use crate::mark::decode_name;
use crate::name::{ObjectKind, ObjectName};
use crate::{FormatError, Lineage, NodePointer};
use varve_types::{Epoch, Name, Ordinal, Overrides, RootNumber, Sequence, SnapshotId, TimelineId, VolumeId, WriterId};

const SHOWN: u8 = 0;
const HIDDEN: u8 = 1;
const TOMBSTONE: u8 = 2;
const HELD: u8 = 3;

fn put_name(e: &mut Encoder, name: &Name) {
    e.blob(name.as_str().as_bytes());
}

fn put_cut(e: &mut Encoder, cut: &Cut) {
    e.owner(cut.epoch, cut.writer);
    e.varint(cut.first.0);
    e.varint(cut.end.0);
    e.varint(cut.last.0);
}

fn get_cut(d: &mut Decoder<'_>) -> Result<Cut, FormatError> {
    let (epoch, writer) = d.owner()?;
    let cut = Cut { epoch, writer, first: d.ordinal()?, end: d.ordinal()?, last: d.sequence()? };
    if cut.end < cut.first {
        return Err(d.corrupt("a row of segments ends before it begins"));
    }
    Ok(cut)
}

fn get_node(d: &mut Decoder<'_>) -> Result<NodePointer, FormatError> {
    NodePointer::from_raw(d.u64()?)
}

impl Manifest {
    pub(super) fn encode_identity(&self, e: &mut Encoder) {
        e.raw(&self.volume.to_bytes());
        e.timeline(self.timeline);
        e.varint(self.number);
        e.owner(self.epoch, self.writer);
        e.varint(self.written_ms);
        put_name(e, &self.name);
        e.varint(self.created_ms);
        e.list(&self.settings.pairs(), |e, (key, value)| {
            e.blob(key.as_bytes());
            e.blob(value.as_bytes());
        });
        e.u8(u8::from(self.template));
        match self.state {
            TimelineState::Shown => e.u8(SHOWN),
            TimelineState::Hidden { until_ms } => {
                e.u8(HIDDEN);
                e.varint(until_ms);
            }
            TimelineState::Tombstone => e.u8(TOMBSTONE),
            TimelineState::Held { swept } => {
                e.u8(HELD);
                e.u8(u8::from(swept));
            }
        }
        e.varint(self.show_number);
    }

    pub(super) fn decode_identity(d: &mut Decoder<'_>) -> Result<Self, FormatError> {
        let volume = VolumeId::from_bytes(d.array()?);
        let timeline = d.timeline()?;
        let number = d.varint()?;
        let (epoch, writer) = d.owner()?;
        let written_ms = d.varint()?;
        let name = decode_name(d)?;
        let created_ms = d.varint()?;
        let mut settings = Overrides::default();
        for (key, value) in d.list(|d| Ok((d.text(64)?.to_owned(), d.text(256)?.to_owned())))? {
            settings.set(&key, &value).map_err(|error| d.corrupt(error.to_string()))?;
        }
        let template = d.flag()?;
        let state = match d.u8()? {
            SHOWN => TimelineState::Shown,
            HIDDEN => TimelineState::Hidden { until_ms: d.varint()? },
            TOMBSTONE => TimelineState::Tombstone,
            HELD => TimelineState::Held { swept: d.flag()? },
            other => return Err(d.corrupt(format!("{other} is no state of a timeline"))),
        };
        let show_number = d.varint()?;
        let mut this = Self::new(volume, timeline, name, epoch, writer);
        this.number = number;
        this.written_ms = written_ms;
        this.created_ms = created_ms;
        this.settings = settings;
        this.template = template;
        this.state = state;
        this.show_number = show_number;
        Ok(this)
    }

    /// The manifest of an empty timeline without ancestors and of size zero.
    #[must_use]
    pub fn new(volume: VolumeId, timeline: TimelineId, name: Name, epoch: Epoch, writer: WriterId) -> Self {
        Self {
            volume,
            timeline,
            number: 0,
            epoch,
            writer,
            written_ms: 0,
            name,
            created_ms: 0,
            settings: Overrides::default(),
            template: false,
            state: TimelineState::Shown,
            show_number: 0,
            ancestors: vec![Ancestor { lineage: Lineage(0), timeline }],
            own: Lineage(0),
            birth: None,
            inherited: Vec::new(),
            boundary: Ordinal(0),
            merged: Sequence(0),
            size: 0,
            root: NodePointer::default(),
            root_number: RootNumber(0),
            last_root: RootNumber(0),
            first_ordinal: Ordinal(0),
            marks_through: Ordinal(0),
            cuts: Vec::new(),
            snapshots: Vec::new(),
            holds: Vec::new(),
            table: Vec::new(),
            kills: Vec::new(),
            node_kills: Vec::new(),
            maps: Vec::new(),
            tables: Vec::new(),
            dead: Vec::new(),
            reclaim: Vec::new(),
            bundles: false,
            rewind: Rewind::default(),
        }
    }

    pub(super) fn encode_map(&self, e: &mut Encoder) {
        e.list(&self.ancestors, |e, ancestor| {
            e.u8(ancestor.lineage.0);
            e.timeline(ancestor.timeline);
        });
        e.u8(self.own.0);
        e.option(self.birth, |e, birth| {
            e.timeline(birth.origin);
            e.varint(birth.boundary.0);
            e.varint(u64::from(birth.base_number.0));
            e.u64(birth.base_root.raw());
            e.varint(birth.base_boundary.0);
        });
        e.list(&self.inherited, put_cut);
        e.varint(self.boundary.0);
        e.varint(self.merged.0);
        e.varint(self.size);
        e.u64(self.root.raw());
        e.varint(u64::from(self.root_number.0));
        e.varint(u64::from(self.last_root.0));
        e.varint(self.first_ordinal.0);
        e.varint(self.marks_through.0);
        e.list(&self.cuts, put_cut);
    }

    pub(super) fn decode_map(&mut self, d: &mut Decoder<'_>) -> Result<(), FormatError> {
        self.ancestors = d.list(|d| Ok(Ancestor { lineage: Lineage(d.u8()?), timeline: d.timeline()? }))?;
        self.own = Lineage(d.u8()?);
        self.birth = d.option(|d| {
            Ok(Birth {
                origin: d.timeline()?,
                boundary: d.ordinal()?,
                base_number: d.root_number()?,
                base_root: get_node(d)?,
                base_boundary: d.ordinal()?,
            })
        })?;
        self.inherited = d.list(get_cut)?;
        self.boundary = d.ordinal()?;
        self.merged = d.sequence()?;
        self.size = d.varint()?;
        self.root = get_node(d)?;
        self.root_number = d.root_number()?;
        self.last_root = d.root_number()?;
        self.first_ordinal = d.ordinal()?;
        self.marks_through = d.ordinal()?;
        self.cuts = d.list(get_cut)?;
        Ok(())
    }

    pub(super) fn encode_lists(&self, e: &mut Encoder) {
        e.list(&self.snapshots, |e, s| {
            e.raw(&s.id.to_bytes());
            put_name(e, &s.name);
            e.varint(s.created_ms);
            e.varint(s.boundary.0);
            e.varint(s.sequence.0);
            e.varint(s.size);
            e.option(s.root, |e, (number, root)| {
                e.varint(u64::from(number.0));
                e.u64(root.raw());
            });
            e.u8(u8::from(s.hidden));
        });
        e.list(&self.holds, |e, h| {
            e.timeline(h.clone);
            e.raw(&h.volume.to_bytes());
            e.varint(h.boundary.0);
            e.varint(u64::from(h.base_number.0));
            e.u64(h.base_root.raw());
            e.varint(h.base_boundary.0);
            e.varint(h.epoch.0);
        });
        e.list(&self.table, |e, p| {
            e.varint(p.page);
            e.varint(p.object);
            e.varint(u64::from(p.index));
        });
        e.list(&self.kills, |e, r| {
            e.varint(r.object);
            e.varint(u64::from(r.index));
            e.varint(r.first_birth.0);
            e.varint(r.last_death.0);
            e.varint(r.count);
        });
        e.list(&self.node_kills, |e, r| {
            e.varint(r.object);
            e.varint(u64::from(r.index));
            e.varint(r.count);
            e.u8(u8::from(r.waits == NodeWait::Passing));
        });
        e.list(&self.maps, |e, m| {
            e.varint(u64::from(m.root.0));
            e.u8(m.part);
            e.owner(m.epoch, m.writer);
            e.varint(u64::from(m.records));
            e.varint(u64::from(m.live));
            e.varint(m.bytes);
        });
        e.list(&self.tables, |e, t| {
            e.varint(t.number);
            e.owner(t.epoch, t.writer);
            e.varint(t.bytes);
        });
        e.list(&self.dead, |e, dead| {
            e.u8(dead.name.kind as u8);
            e.varint(dead.name.number);
            e.u8(dead.name.part);
            e.owner(dead.name.epoch, dead.name.writer);
            e.varint(dead.since);
        });
        e.list(&self.reclaim, |e, r| {
            e.u64(r.node.raw());
            e.u8(r.level);
            e.varint(r.first_block);
            e.varint(r.death.0);
            e.varint(u64::from(r.death_root.0));
        });
    }

    pub(super) fn decode_lists(&mut self, d: &mut Decoder<'_>) -> Result<(), FormatError> {
        self.snapshots = d.list(get_snapshot)?;
        self.holds = d.list(get_hold)?;
        self.table = d.list(|d| Ok(PageRef { page: d.varint()?, object: d.varint()?, index: d.varint32()? }))?;
        self.kills = d.list(|d| {
            Ok(RunRef {
                object: d.varint()?,
                index: d.varint32()?,
                first_birth: d.ordinal()?,
                last_death: d.ordinal()?,
                count: d.varint()?,
                window: false,
            })
        })?;
        self.node_kills = d.list(|d| {
            let (object, index, count) = (d.varint()?, d.varint32()?, d.varint()?);
            let waits = if d.flag()? { NodeWait::Passing } else { NodeWait::Kept };
            Ok(NodeRunRef { object, index, count, waits })
        })?;
        self.maps = d.list(get_map)?;
        self.tables = d.list(|d| {
            let number = d.varint()?;
            let (epoch, writer) = d.owner()?;
            Ok(TableObject { number, epoch, writer, bytes: d.varint()? })
        })?;
        let timeline = self.timeline;
        self.dead = d.list(|d| get_dead(d, timeline))?;
        self.reclaim = d.list(|d| {
            Ok(Reclaim {
                node: get_node(d)?,
                level: d.u8()?,
                first_block: d.varint()?,
                death: d.ordinal()?,
                death_root: d.root_number()?,
            })
        })?;
        Ok(())
    }
}

impl Manifest {
    /// The window, and which runs wait for it: their places in the lists before.
    pub(super) fn encode_rewind(&self, e: &mut Encoder) {
        e.varint(self.rewind.from.0);
        e.list(&self.rewind.roots, |e, r| {
            e.varint(r.boundary.0);
            e.varint(u64::from(r.number.0));
            e.u64(r.root.raw());
            e.varint(r.size);
            e.varint(r.written_ms);
        });
        let runs = self.kills.iter().enumerate().filter(|(_, run)| run.window);
        e.list(&runs.map(|(at, _)| at as u64).collect::<Vec<_>>(), |e, at| e.varint(*at));
        let runs = self.node_kills.iter().enumerate().filter_map(|(at, run)| match run.waits {
            NodeWait::Window { last_death } => Some((at as u64, last_death)),
            NodeWait::Kept | NodeWait::Passing => None,
        });
        e.list(&runs.collect::<Vec<_>>(), |e, (at, last_death)| {
            e.varint(*at);
            e.varint(u64::from(last_death.0));
        });
    }

    pub(super) fn decode_rewind(&mut self, d: &mut Decoder<'_>) -> Result<(), FormatError> {
        self.rewind.from = d.ordinal()?;
        self.rewind.roots = d.list(|d| {
            Ok(RewindRoot {
                boundary: d.ordinal()?,
                number: d.root_number()?,
                root: get_node(d)?,
                size: d.varint()?,
                written_ms: d.varint()?,
            })
        })?;
        let beyond = |d: &Decoder<'_>| d.corrupt("a run that waits for the rewind window is none of its runs");
        for at in d.list(Decoder::varint)? {
            let run = usize::try_from(at).ok().and_then(|at| self.kills.get_mut(at));
            run.ok_or_else(|| beyond(d))?.window = true;
        }
        for (at, last_death) in d.list(|d| Ok((d.varint()?, d.root_number()?)))? {
            let run = usize::try_from(at).ok().and_then(|at| self.node_kills.get_mut(at));
            run.ok_or_else(|| beyond(d))?.waits = NodeWait::Window { last_death };
        }
        Ok(())
    }
}

fn get_snapshot(d: &mut Decoder<'_>) -> Result<SnapshotEntry, FormatError> {
    Ok(SnapshotEntry {
        id: SnapshotId::from_bytes(d.array()?),
        name: decode_name(d)?,
        created_ms: d.varint()?,
        boundary: d.ordinal()?,
        sequence: d.sequence()?,
        size: d.varint()?,
        root: d.option(|d| Ok((d.root_number()?, get_node(d)?)))?,
        hidden: d.flag()?,
    })
}

fn get_hold(d: &mut Decoder<'_>) -> Result<Hold, FormatError> {
    Ok(Hold {
        clone: d.timeline()?,
        volume: VolumeId::from_bytes(d.array()?),
        boundary: d.ordinal()?,
        base_number: d.root_number()?,
        base_root: get_node(d)?,
        base_boundary: d.ordinal()?,
        epoch: Epoch(d.varint()?),
    })
}

fn get_map(d: &mut Decoder<'_>) -> Result<MapObject, FormatError> {
    let (root, part) = (d.root_number()?, d.u8()?);
    let (epoch, writer) = d.owner()?;
    let map = MapObject { root, part, epoch, writer, records: d.varint32()?, live: d.varint32()?, bytes: d.varint()? };
    if map.live > map.records {
        return Err(d.corrupt("a map object has more live nodes than nodes"));
    }
    Ok(map)
}

fn get_dead(d: &mut Decoder<'_>, timeline: TimelineId) -> Result<DeadObject, FormatError> {
    let kind = d.u8()?;
    let kind = ObjectKind::from_raw(kind).ok_or_else(|| d.corrupt(format!("{kind} is no kind of object")))?;
    let (number, part) = (d.varint()?, d.u8()?);
    let (epoch, writer) = d.owner()?;
    Ok(DeadObject { name: ObjectName { timeline, kind, number, part, epoch, writer }, since: d.varint()? })
}
