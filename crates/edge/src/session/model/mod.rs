// SPDX-License-Identifier: Apache-2.0
//! The session against an owner that does its worst: it applies requests in any order, dies with everything that is not safe, loses answers; the network delays, breaks,
//! and brings late what an older connection has said; the guest does not wait, and its requests time out.
//!
//! What the guest sees has to be what one register a sector may give ([`judge`]), and when all calms down everything has to be answered. Thousands of short histories,
//! each from a number; and planted bugs that have to be found by the same.

mod judge;
mod owner;

use super::mutant::Mutant;
use super::{Action, Answer, Budget, Session, Terms, Wanted};
use bytes::Bytes;
use judge::Sector;
use owner::{Owner, ZERO, bytes_of};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use varve_types::{ErrorKind, SessionId};
use varve_wire::attach::{Attach, Attached, Mode, Refused};
use varve_wire::greeting::HEADER_BYTES;
use varve_wire::transmission::{Ask, FLAG_FUA, Reply, Request, UNIT};

const SECTOR: u64 = UNIT;
const SECTORS: usize = 12;
/// Steps of a history before it calms down.
const STEPS: u64 = 250;
/// Requests that the guest has out at once.
const DEPTH: usize = 8;

/// Random numbers from a seed (G. Steele, D. Lea, C. Flood, "SplitMix").
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
    fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

/// What is on its way to the edge.
enum Message {
    Attached(u64, Attached),
    Refused(u64),
    Reply(u64, Reply, Bytes, Vec<u64>),
    Lost(u64),
}

/// What is on its way to the owner.
enum Asked {
    Attach(u64, Attach),
    Request(u64, Request, Bytes),
}

struct Out {
    ask: Ask,
    first: usize,
    values: Vec<u64>,
    begin: u64,
}

struct World {
    random: Random,
    session: Session,
    owner: Owner,
    now: Duration,
    step: u64,
    to_owner: VecDeque<Asked>,
    to_edge: VecDeque<Message>,
    connection: u64,
    out: BTreeMap<u64, Out>,
    sectors: Vec<Sector>,
    next_value: u64,
    /// Sectors that the guest uses: few, so that its requests meet.
    used: usize,
    is_calm: bool,
}

impl World {
    fn new(seed: u64, mutant: Option<Mutant>) -> Self {
        let mut random = Random(seed);
        let terms = Terms {
            io_timeout: (random.one_in(3) || mutant == Some(Mutant::OverdueForgotten))
                .then(|| Duration::from_millis(50 + random.below(600))),
            attach_timeout: None,
            // Most of a history is to be spent with an owner.
            pause_least: Duration::from_micros(random.below(20_000)),
            pause_most: Duration::from_millis(20),
            ..Terms::default()
        };
        let wanted = Wanted {
            volume: "disk".into(),
            token: String::new(),
            edge: "test".into(),
            session: SessionId::from_random([9; 16]),
            mode: Mode::Exclusive,
            steal: false,
        };
        let budget = Budget::new(if random.one_in(2) { 6000 } else { 1 << 20 });
        let mut session = Session::new(wanted, terms, vec!["a".into(), "b".into()], budget, Duration::ZERO);
        session.plant(mutant);
        let used = 2 + random.below(SECTORS as u64 - 1) as usize;
        Self {
            random,
            session,
            owner: Owner::new(),
            now: Duration::ZERO,
            step: 1,
            to_owner: VecDeque::new(),
            to_edge: VecDeque::new(),
            connection: 0,
            out: BTreeMap::new(),
            sectors: (0..SECTORS).map(|_| Sector::default()).collect(),
            next_value: 0,
            used,
            is_calm: false,
        }
    }

    fn run(mut self) -> Result<(), String> {
        self.session.tick(self.now);
        self.take_actions(&[])?;
        while self.step < STEPS {
            self.chance()?;
        }
        self.is_calm = true;
        for round in 0.. {
            if self.out.is_empty() && self.session.standing_is_up() {
                break;
            }
            if round > 5000 {
                return Err(format!("stuck, with {} requests out: {:?}", self.out.len(), self.session));
            }
            self.calm()?;
        }
        for sector in 0..SECTORS {
            self.submit(Ask::Read, sector, 1)?;
        }
        for _ in 0..5000 {
            if self.out.is_empty() {
                break;
            }
            self.calm()?;
        }
        if !self.out.is_empty() {
            return Err("the last reads are not answered".into());
        }
        self.sectors
            .iter()
            .enumerate()
            .try_for_each(|(at, sector)| sector.judge().map_err(|why| format!("sector {at}: {why}")))
    }

    /// One thing that can happen.
    fn chance(&mut self) -> Result<(), String> {
        self.step += 1;
        match self.random.below(100) {
            0..30 if self.session.is_attached() && self.out.len() < DEPTH => self.ask(),
            0..50 => self.owner_receives(),
            50..65 => {
                let told = self.owner.act(&mut self.random);
                self.to_edge.extend(told);
                Ok(())
            }
            65..82 => self.edge_receives(),
            82..85 => {
                self.owner.raise_safe(&mut self.random);
                Ok(())
            }
            85..88 => self.break_connection(),
            88..90 => {
                self.owner.die(&mut self.random);
                self.break_connection()
            }
            _ => {
                self.now += Duration::from_millis(self.random.below(80));
                self.session.tick(self.now);
                self.take_actions(&[])
            }
        }
    }

    /// The network and the owner do what they should.
    fn calm(&mut self) -> Result<(), String> {
        self.step += 1;
        while !self.to_owner.is_empty() {
            self.owner_receives()?;
        }
        while self.owner.is_busy() {
            let told = self.owner.act(&mut self.random);
            self.to_edge.extend(told);
        }
        while !self.to_edge.is_empty() {
            self.edge_receives()?;
        }
        if self.to_owner.is_empty()
            && let Some(deadline) = self.session.deadline()
        {
            self.now = self.now.max(deadline);
            self.session.tick(self.now);
            self.take_actions(&[])?;
        }
        Ok(())
    }

    /// The guest asks for something.
    fn ask(&mut self) -> Result<(), String> {
        let ask = match self.random.below(10) {
            0..4 => Ask::Write,
            4..8 => Ask::Read,
            8 if self.random.one_in(2) => Ask::Discard,
            8 => Ask::WriteZeroes,
            _ => Ask::Flush,
        };
        let first = self.random.below(self.used as u64) as usize;
        let count = (1 + self.random.below(4) as usize).min(self.used - first);
        self.submit(ask, first, count)
    }

    fn submit(&mut self, ask: Ask, first: usize, count: usize) -> Result<(), String> {
        let (offset, length) = (first as u64 * SECTOR, count as u64 * SECTOR);
        let is_zero = matches!(ask, Ask::Discard | Ask::WriteZeroes);
        if is_zero && self.owner.zeroed.contains_key(&(offset, length)) {
            // What is there could not be told from what was.
            return Ok(());
        }
        self.next_value += 1;
        let mark = if is_zero { ZERO } else { 0 };
        let values: Vec<u64> = (0..count as u64).map(|at| mark | self.next_value << 8 | at).collect();
        let values: Vec<u64> = if is_zero { vec![values[0]; count] } else { values };
        if is_zero {
            self.owner.zeroed.insert((offset, length), values[0]);
        }
        let data = if ask == Ask::Write { values.iter().flat_map(|v| bytes_of(*v)).collect() } else { Vec::new() };
        let flags = if ask == Ask::Write && self.random.one_in(8) { FLAG_FUA } else { 0 };
        let (offset, length) = if ask == Ask::Flush { (0, 0) } else { (offset, length) };
        let id = self.session.submit(self.now, ask, flags, offset, length, data.into());
        let id = id.map_err(|error| error.to_string())?;
        if ask.is_change() {
            for (at, value) in values.iter().enumerate() {
                self.sectors[first + at].begun(*value, self.step);
            }
        }
        let count = if ask == Ask::Flush { 0 } else { count };
        self.out.insert(id, Out { ask, first, values: values[..count].to_vec(), begin: self.step });
        self.take_actions(&[])
    }

    fn owner_receives(&mut self) -> Result<(), String> {
        match self.to_owner.pop_front() {
            Some(Asked::Attach(connection, _)) if !self.is_calm && self.random.one_in(8) => {
                self.to_edge.push_back(Message::Refused(connection));
            }
            Some(Asked::Attach(connection, attach)) => {
                let told = self.owner.attach(&mut self.random, connection, &attach);
                self.to_edge.push_back(told);
            }
            Some(Asked::Request(connection, request, payload)) => self.owner.receive(connection, request, payload),
            None => {}
        }
        Ok(())
    }

    fn edge_receives(&mut self) -> Result<(), String> {
        let now = self.now;
        let is_old = |message: &Message| matches!(message, Message::Reply(of, ..) if *of != self.connection);
        if self.to_edge.front().is_some_and(is_old) && !self.random.one_in(8) {
            // What an older connection said may come at any time, also long after the next one has come about.
            self.to_edge.rotate_left(1);
            if self.to_edge.front().is_some_and(is_old) {
                return Ok(());
            }
        }
        match self.to_edge.pop_front() {
            Some(Message::Attached(connection, attached)) => self.session.attached(now, connection, &attached),
            Some(Message::Refused(connection)) => {
                self.session.refused(now, connection, Refused::new(ErrorKind::Busy, "later"));
            }
            Some(Message::Lost(connection)) => self.session.lost(now, connection, "it broke"),
            Some(Message::Reply(connection, reply, data, values)) => {
                self.session.heard(now, connection);
                self.session.reply(now, connection, &reply, data);
                return self.take_actions(&values);
            }
            None => {}
        }
        self.take_actions(&[])
    }

    fn break_connection(&mut self) -> Result<(), String> {
        let connection = self.connection;
        if self.random.one_in(2) {
            self.to_edge.push_back(Message::Lost(connection));
            return Ok(());
        }
        // What is on its way is lost, or comes later than the news.
        if self.random.one_in(2) {
            self.to_edge.retain(|message| !matches!(message, Message::Reply(of, ..) if *of == connection));
        }
        if self.random.one_in(2) {
            self.to_owner.retain(|asked| !matches!(asked, Asked::Request(of, ..) if *of == connection));
        }
        self.session.lost(self.now, connection, "it broke");
        self.take_actions(&[])
    }

    fn take_actions(&mut self, values: &[u64]) -> Result<(), String> {
        while let Some(action) = self.session.action() {
            match action {
                Action::Connect { connection, greeting, .. } => {
                    self.connection = connection;
                    let attach = Attach::decode(&greeting[HEADER_BYTES..]).map_err(|error| error.to_string())?;
                    self.to_owner.push_back(Asked::Attach(connection, attach));
                    self.session.connected(self.now, connection);
                }
                Action::Send { request, payload } => {
                    self.to_owner.push_back(Asked::Request(self.connection, request, payload));
                }
                Action::Done { id, result } => {
                    let out = self.out.remove(&id).ok_or("an answer to what was not asked")?;
                    self.done(&out, result.ok(), values)?;
                }
                Action::Event(super::Event::Failed(error)) => return Err(format!("it has failed: {error}")),
                Action::HangUp | Action::Event(_) => {}
            }
        }
        Ok(())
    }

    fn done(&mut self, out: &Out, answer: Option<Answer>, values: &[u64]) -> Result<(), String> {
        let Some(answer) = answer else { return Ok(()) };
        for at in 0..out.values.len() {
            let sector = &mut self.sectors[out.first + at];
            match (&answer, out.ask) {
                (Answer::Data(data), Ask::Read) => {
                    let value = *values.get(at).ok_or("a read was answered by another reply")?;
                    let from = at * SECTOR as usize;
                    if data[from..from + SECTOR as usize] != bytes_of(value) {
                        return Err(format!("the bytes are not those of {value:x}"));
                    }
                    sector.read(value, out.begin, self.step);
                }
                (Answer::Done, ask) if ask.is_change() => sector.ended(out.values[at], self.step),
                _ => return Err("an answer of the wrong kind".into()),
            }
        }
        Ok(())
    }
}

impl Session {
    fn standing_is_up(&self) -> bool {
        matches!(self.standing(), super::Standing::Connected(..))
    }
}

#[test]
fn a_guest_sees_one_register_a_sector_whatever_happens() {
    for seed in 0..3000 {
        if let Err(why) = World::new(seed, None).run() {
            panic!("seed {seed}: {why}");
        }
    }
}

#[test]
fn planted_bugs_are_found() {
    for mutant in Mutant::ALL {
        let found = (0..20_000).find_map(|seed| World::new(seed, Some(mutant)).run().err().map(|why| (seed, why)));
        let (seed, why) = found.unwrap_or_else(|| panic!("{mutant:?} is not found"));
        println!("{mutant:?}: seed {seed}: {why:.160}");
    }
}
