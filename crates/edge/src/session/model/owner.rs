// SPDX-License-Identifier: Apache-2.0
//! An owner in memory: it applies what it has in any order, makes safe what it likes, and dies with all that is not.
//!
//! It keeps to the protocol, at its edges: what older connections have begun ends, one way or the other, before a new one is answered; a cut is any change from the last that
//! was told to be safe on; what was taken over counts without being safe; the sequence of a reply is that of the volume's last change. Values are told apart by what the guest
//! writes; that of a range that was made zero, by the range, which is used once in a history.

use super::{Message, Random, SECTOR, SECTORS};
use bytes::Bytes;
use std::collections::BTreeMap;
use varve_types::{ClusterId, Epoch, Sequence, TimelineId, VolumeId};
use varve_wire::attach::{Attach, Attached};
use varve_wire::transmission::{Ask, Reply, Request, Told, payload_crc};

/// Marks the value of a range that was made zero.
pub(super) const ZERO: u64 = 1 << 63;

/// What a write of a value writes into a sector.
pub(super) fn bytes_of(value: u64) -> Vec<u8> {
    let word = if value & ZERO == 0 { value } else { 0 };
    word.to_le_bytes().repeat(SECTOR as usize / 8)
}

pub(super) struct Owner {
    epoch: u64,
    /// Every change that counts: its sequence, and what it writes where.
    log: Vec<(u64, Vec<(usize, u64)>)>,
    last: u64,
    safe: u64,
    cuts: BTreeMap<u64, u64>,
    /// The connection of the session that it listens to.
    connection: u64,
    /// Requests that were received and not begun.
    pending: Vec<(u64, Request, Bytes)>,
    /// The value of each range that was made zero.
    pub(super) zeroed: BTreeMap<(u64, u64), u64>,
}

impl Owner {
    pub(super) fn new() -> Self {
        Self {
            epoch: 1,
            log: Vec::new(),
            last: 0,
            safe: 0,
            cuts: BTreeMap::new(),
            connection: 0,
            pending: Vec::new(),
            zeroed: BTreeMap::new(),
        }
    }

    pub(super) fn receive(&mut self, connection: u64, request: Request, payload: Bytes) {
        if connection == self.connection {
            self.pending.push((connection, request, payload));
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Ends what older connections have begun, and answers.
    pub(super) fn attach(&mut self, random: &mut Random, connection: u64, attach: &Attach) -> Message {
        self.end_pending(random);
        self.connection = connection;
        let cut = |epoch: &Epoch| Sequence(if epoch.0 == self.epoch { self.last } else { self.cuts[&epoch.0] });
        Message::Attached(
            connection,
            Attached {
                version: 1,
                cluster: ClusterId::from_random([1; 16]),
                volume: VolumeId::from_random([2; 16]),
                timeline: TimelineId::from_random([3; 16]),
                epoch: Epoch(self.epoch),
                size: SECTORS as u64 * SECTOR,
                read_only: false,
                window: 1 + random.below(20) as u32,
                sequence: Sequence(self.last),
                safe: Sequence(self.safe),
                cuts: attach.promises.iter().map(|promise| cut(&promise.epoch)).collect(),
            },
        )
    }

    fn end_pending(&mut self, random: &mut Random) {
        while !self.pending.is_empty() {
            let at = random.below(self.pending.len() as u64) as usize;
            let (_, request, payload) = self.pending.swap_remove(at);
            if random.one_in(2) {
                self.apply(&request, &payload);
            }
        }
    }

    /// Dies, and comes back as the next epoch with what was safe and perhaps some more.
    pub(super) fn die(&mut self, random: &mut Random) {
        self.end_pending(random);
        let cut = self.safe + random.below(self.last - self.safe + 1);
        self.log.retain(|(sequence, _)| *sequence <= cut);
        self.cuts.insert(self.epoch, cut);
        for of in self.cuts.values_mut() {
            *of = (*of).min(cut);
        }
        self.last = cut;
        self.epoch += 1;
        self.connection = 0;
    }

    pub(super) fn raise_safe(&mut self, random: &mut Random) {
        self.safe += random.below(self.last - self.safe + 1);
    }

    fn apply(&mut self, request: &Request, payload: &Bytes) {
        if !request.ask.is_change() {
            return;
        }
        let first = (request.offset / SECTOR) as usize;
        let values = (0..(request.length / SECTOR) as usize).map(|at| {
            let value = match request.ask {
                Ask::Write => u64::from_le_bytes(*payload[at * SECTOR as usize..].first_chunk().unwrap()),
                _ => self.zeroed[&(request.offset, request.length)],
            };
            (first + at, value)
        });
        let values = values.collect();
        self.last += 1;
        self.log.push((self.last, values));
    }

    fn value(&self, sector: usize) -> u64 {
        let find =
            |(_, values): &(u64, Vec<(usize, u64)>)| values.iter().find(|(at, _)| *at == sector).map(|(_, v)| *v);
        self.log.iter().rev().find_map(find).unwrap_or(0)
    }

    /// Does one of the requests that it has, any, and answers it.
    pub(super) fn act(&mut self, random: &mut Random) -> Option<Message> {
        if self.pending.is_empty() {
            return None;
        }
        let at = random.below(self.pending.len() as u64) as usize;
        let (connection, request, payload) = self.pending.swap_remove(at);
        self.apply(&request, &payload);
        let (mut data, mut values) = (Vec::new(), Vec::new());
        match request.ask {
            Ask::Read => {
                let first = (request.offset / SECTOR) as usize;
                values = (first..first + (request.length / SECTOR) as usize).map(|at| self.value(at)).collect();
                data = values.iter().flat_map(|value| bytes_of(*value)).collect();
            }
            Ask::Flush => self.safe = self.last,
            Ask::Write if request.flags != 0 => self.safe = self.last,
            _ => {}
        }
        let reply = Reply {
            told: Told::Done,
            id: request.id,
            sequence: Sequence(self.last),
            safe: Sequence(self.safe),
            length: data.len() as u32,
            payload_crc: payload_crc(&data),
        };
        Some(Message::Reply(connection, reply, data.into(), values))
    }
}
