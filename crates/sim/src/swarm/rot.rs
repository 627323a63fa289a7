// SPDX-License-Identifier: Apache-2.0
//! The journal's disk goes bad: a write that was told as done never reaches it or lands elsewhere, or a bit of a record or of a superblock turns over.
//!
//! One thing goes wrong a run. What was flushed and then followed by two more flushes is either there, or the volume is refused as damaged: every record
//! says how far its timeline had been flushed, so one that is still whole gives the loss away. (Of what was flushed last nothing that is newer may speak, so a loss
//! there looks like the end of the journal. A superblock that goes bad takes nothing with it.) A volume that opens shows one cut of its history, as after any power cut; what no damage has touched goes on.

use super::run::{REGION, Run};
use super::stamp::BLOCK;
use crate::{CrashMode, InFlight, Rng, WriteFault};
use varve_format::journal::{ALIGN, Body, MAX_HEADER, RECORD_MAGIC, RING_START, Record, SUPERBLOCK, Superblock};
use varve_types::ErrorKind;

/// Flushes of each volume, of which all but the last two are sure.
const LEAST_ROUNDS: u64 = 4;
/// Where a record's header has the low bytes of its numbers: epoch, sequence, flushed through, first block, blocks.
const NUMBERS: [u64; 6] = [40, 48, 56, 64, 65, 72];
/// Writes of the journal's disk, from the beginning of a round, of which one goes wrong.
const WRITES: u64 = 24;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    /// A bit of a record.
    Record,
    /// A bit of a superblock.
    Superblock,
    /// A write that never reaches the platters.
    Lost,
    /// A write that reaches them elsewhere.
    Misdirected,
}

/// Every kind; records often, for most of their bits say little.
const DAMAGES: [Damage; 6] =
    [Damage::Record, Damage::Record, Damage::Record, Damage::Superblock, Damage::Lost, Damage::Misdirected];

impl Run {
    /// See the module. Ends with a shard that serves what can be served.
    pub(super) fn rot(&mut self, rng: &mut Rng) {
        let damage = DAMAGES[rng.below(DAMAGES.len() as u64) as usize];
        let jumps = damage == Damage::Superblock && rng.chance(600);
        if damage == Damage::Superblock && !jumps {
            self.go_round(rng);
        }
        let usual = self.begin_losing();
        let rounds = LEAST_ROUNDS + rng.below(4);
        let wrong = rng.below(rounds);
        // How much of each volume's log there was at the end of each round.
        let mut ends: Vec<Vec<usize>> = Vec::new();
        for round in 0..rounds {
            if round == wrong {
                self.let_a_write_go_wrong(damage, rng);
            }
            for _ in 0..rng.below(6) {
                let done = self.batch(rng);
                self.alive(|_| done);
            }
            for vol in 0..self.vols.len() {
                self.write_and_flush(vol, rng);
            }
            ends.push(self.vols.iter().map(|vol| vol.line.batches()).collect());
        }
        self.plan.weights = usual;
        // One superblock tells what the other told, or where that is found.
        let sure = if damage == Damage::Superblock { ends.len() - 1 } else { ends.len() - 3 };
        for (vol, sure) in self.vols.iter_mut().zip(&ends[sure]) {
            vol.line.make_sure(*sure);
        }
        if jumps {
            self.jump_trim(rng);
        }
        self.views.clear();
        self.devices.clear();
        self.crashes += 1;
        let mode = CrashMode::ALL[1 + rng.below(CrashMode::ALL.len() as u64 - 1) as usize];
        self.node.world.note(&format!("crash {mode:?}, and then {damage:?}"));
        self.node.crash(mode, InFlight::Landed);
        self.set_faults(false);
        match damage {
            Damage::Record => self.spoil_record(rng),
            Damage::Superblock => self.spoil_superblock(rng),
            Damage::Lost | Damage::Misdirected => {}
        }
        self.open_what_is_left(damage);
    }

    /// A write of the journal is lost or misdirected: seen once the power is gone.
    fn let_a_write_go_wrong(&mut self, damage: Damage, rng: &mut Rng) {
        let (fault, name) = match damage {
            Damage::Lost => (WriteFault::Dropped, "fault: a write of the journal is lost"),
            Damage::Misdirected => {
                // Over one superblock at most: they lie side by side, and what has none is refused whole.
                let to = SUPERBLOCK + rng.below(self.plan.journal - SUPERBLOCK);
                (WriteFault::Misdirected(to), "fault: a write of the journal is misdirected")
            }
            Damage::Record | Damage::Superblock => return,
        };
        self.cover.count(name);
        self.node.disk.fail_write(rng.below(WRITES), fault);
    }

    /// One more write, and a flush behind it.
    pub(super) fn write_and_flush(&mut self, vol: usize, rng: &mut Rng) {
        let size = self.vols[vol].line.now.size;
        let offset = rng.below((size.min(REGION) / BLOCK).max(1)) * BLOCK;
        if !self.vols[vol].template {
            self.write_one(vol, offset, BLOCK.min(size - offset));
        }
        self.alive(|this| this.flush(vol));
    }

    /// Turns a bit of a record over that a reader would begin with, or pass.
    fn spoil_record(&mut self, rng: &mut Rng) {
        let Some((superblock, _)) = self.superblocks() else { return };
        let records = self.records(&superblock);
        if records.is_empty() {
            return;
        }
        // The newest often: the others may be in the store already. And the numbers in the header: they are few, and say the most.
        let count = records.len() as u64;
        let nth = if rng.chance(700) { count - 1 - rng.below(count.min(24)) } else { rng.below(count) };
        let (position, len) = records[nth as usize];
        let number = NUMBERS[rng.below(NUMBERS.len() as u64) as usize];
        let within = if rng.chance(600) { number } else { rng.below(len) };
        self.cover.count("fault: a bit of a journal record flips");
        self.node.world.note(&format!("byte {within} of the record at {position} goes bad"));
        let offset = RING_START + position % superblock.ring + within;
        self.node.disk.flip_bit(offset, rng.below(8) as u8);
    }

    /// Turns a bit of the newer superblock over, or of the older.
    fn spoil_superblock(&mut self, rng: &mut Rng) {
        let Some((_, newer)) = self.superblocks() else { return };
        let place = if rng.chance(700) { newer } else { 1 - newer };
        self.cover.count("fault: a bit of a superblock flips");
        self.node.disk.flip_bit(place * SUPERBLOCK + rng.below(48), rng.below(8) as u8);
    }

    /// The newer superblock of the journal, and its place.
    fn superblocks(&self) -> Option<(Superblock, u64)> {
        let read = |place: u64| self.node.disk.contents(place * SUPERBLOCK..(place + 1) * SUPERBLOCK);
        let both = (0..2).filter_map(|place| Superblock::decode(&read(place)).ok().map(|block| (block, place)));
        both.max_by_key(|(block, _)| block.generation)
    }

    /// Position and length of every record of the lap that begins with the trim.
    fn records(&self, superblock: &Superblock) -> Vec<(u64, u64)> {
        let ring = self.node.disk.contents(RING_START..RING_START + superblock.ring);
        let mut found = Vec::new();
        for position in (superblock.trim..superblock.trim + superblock.ring).step_by(ALIGN as usize) {
            let at = (position % superblock.ring) as usize;
            let bytes = &ring[at..(at + MAX_HEADER).min(ring.len())];
            if bytes.starts_with(&RECORD_MAGIC)
                && let Ok((record, header)) = Record::decode(superblock.journal, position, bytes)
                && record.body != Body::Pad
            {
                found.push((position, header as u64 + record.payload_len()));
            }
        }
        found
    }

    /// Opens the shard: a volume is there, or said to be damaged.
    fn open_what_is_left(&mut self, damage: Damage) {
        let failed = match self.node.open() {
            Ok(Ok(failed)) => failed,
            other => self.fail(&format!("with one thing wrong in the journal the shard does not open: {other:?}")),
        };
        for (volume, error) in &failed {
            self.node.world.note(&format!("{volume}: {error}"));
            if error.kind() != ErrorKind::Corrupt || damage == Damage::Superblock {
                self.fail(&format!("with a damaged journal {volume} does not open: {error} ({:?})", error.kind()));
            }
            let gone = self.vols.iter().position(|vol| vol.name == volume.as_str());
            gone.map(|gone| self.vols.remove(gone));
            self.damaged.insert(volume.to_string());
        }
        self.cover.add("proof: a loss in the journal is noticed", failed.len() as u64);
        self.recover(true);
        self.vols.iter_mut().for_each(|vol| vol.line.frozen_base = false);
    }
}
