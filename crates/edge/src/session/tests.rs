// SPDX-License-Identifier: Apache-2.0
//! Rules of the session, one by one: an owner is played by hand.

use super::*;
use varve_types::SessionId;
use varve_wire::attach::{Attach, Attached, Mode, Refused};
use varve_wire::greeting::HEADER_BYTES;
use varve_wire::transmission::{Reply, Told};

const SIZE: u64 = 1 << 20;

struct Play {
    session: Session,
    now: Duration,
    connection: u64,
    attach: Option<Attach>,
    sent: Vec<Request>,
    done: Vec<(u64, Result<Answer>)>,
    events: Vec<Event>,
    hang_ups: usize,
    tried: Vec<String>,
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

impl Play {
    fn with(terms: Terms, budget: Budget) -> Self {
        let wanted = Wanted {
            volume: "disk".into(),
            token: "secret".into(),
            edge: "test".into(),
            session: SessionId::from_random([9; 16]),
            mode: Mode::Exclusive,
            steal: true,
        };
        let session = Session::new(wanted, terms, vec!["a".into(), "b".into()], budget, Duration::ZERO);
        let mut play = Self {
            session,
            now: Duration::ZERO,
            connection: 0,
            attach: None,
            sent: Vec::new(),
            done: Vec::new(),
            events: Vec::new(),
            hang_ups: 0,
            tried: Vec::new(),
        };
        play.wait(0);
        play
    }

    /// Attached, in epoch 1, with nothing safe.
    fn attached() -> Self {
        let mut play = Self::with(Terms::default(), Budget::default());
        play.attach_at(1, 0, 0, &[]);
        play
    }

    fn take(&mut self) {
        while let Some(action) = self.session.action() {
            match action {
                Action::Connect { connection, address, greeting } => {
                    self.connection = connection;
                    self.tried.push(address);
                    self.sent.clear();
                    self.attach = Some(Attach::decode(&greeting[HEADER_BYTES..]).unwrap());
                }
                Action::Send { request, payload } => {
                    assert_eq!(request.payload_crc, if payload.is_empty() { 0 } else { payload_crc(&payload) });
                    self.sent.push(request);
                }
                Action::HangUp => self.hang_ups += 1,
                Action::Done { id, result } => self.done.push((id, result)),
                Action::Event(event) => self.events.push(event),
            }
        }
    }

    fn wait(&mut self, millis: u64) {
        self.now += ms(millis);
        self.session.tick(self.now);
        self.take();
    }

    fn attached_with(epoch: u64, sequence: u64, safe: u64, cuts: &[u64]) -> Attached {
        Attached {
            version: 1,
            cluster: ClusterId::from_random([1; 16]),
            volume: VolumeId::from_random([2; 16]),
            timeline: TimelineId::from_random([3; 16]),
            epoch: Epoch(epoch),
            size: SIZE,
            read_only: false,
            window: 20,
            sequence: Sequence(sequence),
            safe: Sequence(safe),
            cuts: cuts.iter().map(|cut| Sequence(*cut)).collect(),
        }
    }

    fn answer_attach(&mut self, attached: &Attached) {
        self.session.connected(self.now, self.connection);
        self.session.attached(self.now, self.connection, attached);
        self.take();
    }

    fn attach_at(&mut self, epoch: u64, sequence: u64, safe: u64, cuts: &[u64]) {
        self.answer_attach(&Self::attached_with(epoch, sequence, safe, cuts));
    }

    fn ask(&mut self, ask: Ask, offset: u64, length: u64) -> u64 {
        let data = if ask == Ask::Write { vec![1; length as usize].into() } else { Bytes::new() };
        let id = self.session.submit(self.now, ask, 0, offset, length, data).unwrap();
        self.take();
        id
    }

    fn write(&mut self, offset: u64, length: u64) -> u64 {
        self.ask(Ask::Write, offset, length)
    }

    fn tell(&mut self, connection: u64, told: Told, id: u64, (sequence, safe): (u64, u64), payload: &[u8]) {
        let reply = Reply {
            told,
            id,
            sequence: Sequence(sequence),
            safe: Sequence(safe),
            length: payload.len() as u32,
            payload_crc: payload_crc(payload),
        };
        self.session.heard(self.now, connection);
        self.session.reply(self.now, connection, &reply, payload.to_vec().into());
        self.take();
    }

    fn done(&mut self, id: u64, sequence: u64, safe: u64) {
        self.tell(self.connection, Told::Done, id, (sequence, safe), &[]);
    }

    fn lose(&mut self) {
        self.session.lost(self.now, self.connection, "it broke");
        self.take();
    }

    /// What was sent since the last look.
    fn asks(&mut self) -> Vec<(Ask, u64)> {
        self.sent.drain(..).map(|request| (request.ask, request.offset)).collect()
    }

    fn failed(&self) -> ErrorKind {
        self.session.failure().expect("it has failed").kind()
    }
}

#[test]
fn changes_that_overlap_wait_for_each_other_in_order_and_nothing_else_does() {
    let mut play = Play::attached();
    let first = play.write(0, 4096);
    let second = play.write(3584, 1024);
    play.write(4608, 512);
    let third = play.ask(Ask::Discard, 4096, 512);
    play.ask(Ask::Read, 0, 4096);
    play.ask(Ask::Flush, 0, 0);
    assert_eq!(play.asks(), [(Ask::Write, 0), (Ask::Write, 4608), (Ask::Read, 0), (Ask::Flush, 0)]);
    play.done(first, 1, 0);
    assert_eq!(play.asks(), [(Ask::Write, 3584)], "the third overlaps the second, which was asked before it");
    play.done(second, 2, 0);
    assert_eq!(play.asks(), [(Ask::Discard, 4096)]);
    play.done(third, 3, 0);
    assert_eq!(play.done.len(), 3);
}

#[test]
fn what_does_not_count_is_sent_again_first_then_what_was_not_answered_then_the_rest() {
    let mut play = Play::attached();
    for at in 0..4 {
        let id = play.write(at * 4096, 4096);
        play.done(id, at + 1, 1);
    }
    play.write(65_536, 4096);
    play.ask(Ask::Read, 0, 512);
    play.lose();
    assert_eq!(play.attach.as_ref().unwrap().promises, [Promise { epoch: Epoch(1), safe: Sequence(1) }]);
    play.write(131_072, 4096);
    play.attach_at(2, 2, 2, &[2]);
    assert_eq!(play.asks(), [(Ask::Write, 8192), (Ask::Write, 12_288)]);
    let ids = play.session.table.ids();
    play.done(ids[0], 3, 2);
    assert_eq!(play.asks(), []);
    play.done(ids[1], 4, 2);
    assert_eq!(play.asks(), [(Ask::Write, 65_536)]);
    let unanswered = play.session.table.ids()[0];
    play.done(unanswered, 5, 2);
    assert_eq!(play.asks(), [(Ask::Read, 0), (Ask::Write, 131_072)]);
    assert!(matches!(play.events.last(), Some(Event::Back(_))));
}

#[test]
fn what_counts_stays_until_it_is_safe() {
    let mut play = Play::attached();
    let id = play.write(0, 4096);
    play.done(id, 5, 0);
    play.lose();
    play.attach_at(1, 9, 3, &[9]);
    assert_eq!(play.asks(), [], "it counts");
    assert!(play.session.kept_bytes() > 0, "it is not safe");
    play.lose();
    play.wait(1000);
    play.attach_at(2, 7, 6, &[7]);
    assert_eq!(
        (play.asks(), play.session.kept_bytes() > 0),
        (vec![], true),
        "the new owner has it, perhaps above its 6"
    );
    let id = play.ask(Ask::Flush, 0, 0);
    play.done(id, 7, 7);
    assert_eq!(play.session.kept_bytes(), 0);
}

#[test]
fn a_change_that_was_acknowledged_is_sent_until_an_owner_takes_it() {
    let mut play = Play::attached();
    let id = play.write(0, 4096);
    play.done(id, 1, 0);
    play.lose();
    play.attach_at(2, 0, 0, &[0]);
    assert_eq!(play.asks().len(), 1);
    let again = play.session.table.ids()[0];
    play.tell(play.connection, Told::Failed(ErrorKind::NoSpace), again, (0, 0), b"full");
    assert!(play.session.trouble().contains("full"));
    play.wait(60);
    play.attach_at(2, 0, 0, &[0, 0]);
    assert_eq!(play.asks(), [(Ask::Write, 0)]);
}

#[test]
fn whoever_breaks_the_protocol_is_left_and_asked_again() {
    type Breach = fn(&mut Play, u64);
    let all: [Breach; 7] = [
        |play, _| play.done(99, 1, 0),
        |play, id| play.tell(play.connection, Told::Done, id, (1, 1), &[0; 256]),
        |play, id| play.tell(play.connection, Told::Done, id, (1, 0), &[0; 512]),
        |play, _| play.tell(play.connection, Told::Size, 0, (1, 1), &[1; 4]),
        |play, id| {
            let reply =
                Reply { told: Told::Done, id, sequence: Sequence(1), safe: Sequence(1), length: 512, payload_crc: 1 };
            play.session.reply(play.now, play.connection, &reply, vec![0; 512].into());
            play.take();
        },
        |play, id| play.tell(play.connection, Told::Failed(ErrorKind::Fenced), id, (1, 1), b"fenced"),
        |play, _| play.tell(play.connection, Told::Leave, 0, (0, 0), b"c:1"),
    ];
    for (number, breach) in all.into_iter().enumerate() {
        let mut play = Play::attached();
        let write = play.write(0, 512);
        play.done(write, 1, 1);
        let read = play.ask(Ask::Read, 0, 512);
        breach(&mut play, read);
        assert_eq!((play.hang_ups, play.done.len(), play.connection), (1, 1, 2), "{number}");
        let named = play.attach.as_ref().unwrap();
        assert_eq!((named.generation, named.steal), (2, false));
        assert_eq!(play.tried[1] == "c:1", number == 6);
        play.attach_at(1, 1, 1, &[1]);
        assert_eq!(play.asks(), [(Ask::Read, 0)]);
        play.tell(1, Told::Done, read, (1, 1), &[0; 512]);
        assert_eq!(play.done.len(), 1, "an older connection is not believed");
        play.tell(2, Told::Done, read, (1, 1), &[0; 512]);
        assert_eq!(play.done.len(), 2);
    }
}

#[test]
fn an_owner_that_was_fenced_or_takes_back_its_word_is_left() {
    let mut play = Play::attached();
    let id = play.write(0, 512);
    play.done(id, 2, 2);
    play.lose();
    play.attach_at(2, 2, 2, &[2]);
    for (epoch, safe, cuts) in [(1, 2, &[2][..]), (2, 1, &[2]), (2, 2, &[2, 2])] {
        play.lose();
        play.wait(1000);
        let before = play.hang_ups;
        play.attach_at(epoch, 2, safe, cuts);
        assert_eq!((play.hang_ups, play.session.failure().is_none()), (before + 1, true), "{epoch} {safe}");
        play.wait(1000);
        play.attach_at(2, 2, 2, &[2]);
        assert!(matches!(play.session.standing(), Standing::Connected(..)));
    }
}

#[test]
fn a_lost_promise_and_another_timeline_end_the_device() {
    let mut play = Play::attached();
    let id = play.write(0, 512);
    play.done(id, 5, 5);
    let waits = play.ask(Ask::Read, 0, 512);
    play.lose();
    play.attach_at(2, 4, 4, &[4]);
    assert_eq!(play.failed(), ErrorKind::Corrupt);
    assert!(play.done.iter().any(|(id, result)| *id == waits && result.is_err()));
    assert!(play.session.submit(play.now, Ask::Flush, 0, 0, 0, Bytes::new()).is_err());
    assert_eq!(play.session.deadline(), None);

    let mut play = Play::attached();
    play.lose();
    let other = Attached { timeline: TimelineId::from_random([4; 16]), ..Play::attached_with(2, 0, 0, &[0]) };
    play.answer_attach(&other);
    assert_eq!(play.failed(), ErrorKind::Fenced);
}

#[test]
fn refusals_end_the_device_or_are_tried_on() {
    let refuse = |play: &mut Play, kind| {
        play.session.connected(play.now, play.connection);
        play.session.refused(play.now, play.connection, Refused::new(kind, "because"));
        play.take();
    };
    for kind in varve_types::ALL_KINDS {
        let mut first = Play::with(Terms::default(), Budget::default());
        refuse(&mut first, kind);
        let tried_on = matches!(kind, ErrorKind::Unavailable | ErrorKind::Busy);
        assert_eq!(first.session.failure().is_none(), tried_on, "{kind} at first");
        let mut later = Play::attached();
        later.lose();
        refuse(&mut later, kind);
        let ends = matches!(kind, ErrorKind::Conflict | ErrorKind::Fenced | ErrorKind::Corrupt);
        assert_eq!(later.session.failure().is_some(), ends, "{kind} later");
    }
    let mut play = Play::with(Terms::default(), Budget::default());
    play.wait(29_000);
    assert!(play.session.failure().is_none());
    play.wait(1_000);
    assert_eq!(play.failed(), ErrorKind::Unavailable);
}

#[test]
fn attempts_are_made_at_once_then_with_pauses_at_each_address_in_turn() {
    let mut play = Play::attached();
    play.lose();
    assert_eq!(play.tried, ["a", "a"], "at once");
    play.attach_at(1, 0, 0, &[0]);
    play.lose();
    assert_eq!(play.tried.len(), 2, "one that breaks as soon as it is there is no success");
    play.wait(50);
    play.attach_at(1, 0, 0, &[0]);
    play.wait(1000);
    play.lose();
    assert_eq!(play.tried, ["a", "a", "a", "a"], "but this was one");
    for pause in [50, 100, 200, 400, 800, 1000, 1000] {
        play.lose();
        let tried = play.tried.len();
        play.wait(pause - 1);
        assert_eq!(play.tried.len(), tried, "{pause}");
        play.wait(1);
        assert_eq!(play.tried.len(), tried + 1, "{pause}");
    }
    assert_eq!(play.tried[4..8], ["b", "a", "b", "a"]);
    play.wait(1000);
    assert!(play.session.trouble().contains("can not be reached"));
}

#[test]
fn a_connection_is_lost_after_a_second_and_three_pings() {
    let mut play = Play::attached();
    play.ask(Ask::Read, 0, 512);
    play.asks();
    for _ in 0..3 {
        play.wait(299);
        assert_eq!(play.asks(), []);
        play.wait(1);
        assert_eq!(play.asks(), [(Ask::Ping, 0)]);
    }
    play.wait(99);
    assert_eq!(play.connection, 1);
    play.wait(1);
    assert_eq!((play.connection, play.tried[1].as_str()), (2, "b"), "another node may know more");

    let mut idle = Play::attached();
    idle.wait(4999);
    assert_eq!(idle.asks(), []);
    idle.wait(1);
    assert_eq!(idle.sent.len(), 1);
    let ping = idle.sent[0].id;
    idle.done(ping, 0, 0);
    idle.wait(1000);
    assert_eq!((idle.connection, idle.sent.len()), (1, 1), "it answers");
}

#[test]
fn an_idle_volume_has_what_it_keeps_made_safe() {
    let mut play = Play::attached();
    let id = play.write(0, 512);
    play.done(id, 1, 0);
    play.asks();
    play.wait(5000);
    assert_eq!(play.asks(), [(Ask::Flush, 0), (Ask::Ping, 0)]);
}

#[test]
fn an_overdue_change_is_answered_once_and_still_holds_back_what_overlaps_it() {
    let terms = Terms { io_timeout: Some(ms(500)), silence: ms(60_000), ..Terms::default() };
    let mut play = Play::with(terms, Budget::default());
    play.attach_at(1, 0, 0, &[]);
    let overdue = play.write(0, 4096);
    play.wait(300);
    let behind = play.write(0, 512);
    play.wait(200);
    assert!(matches!(&play.done[..], [(id, Err(error))] if *id == overdue && error.kind() == ErrorKind::Unavailable));
    play.wait(300);
    assert_eq!(play.done.len(), 2, "the one behind it was never sent: it is gone");
    assert!(play.session.table.get(behind).is_none());
    play.asks();
    play.write(0, 512);
    assert_eq!(play.asks(), [], "the first may still happen");
    play.lose();
    play.attach_at(1, 0, 0, &[0]);
    assert_eq!(play.asks(), [(Ask::Write, 0)], "and happens before anything newer");
    let id = play.session.table.ids()[0];
    assert_eq!(id, overdue);
    play.done(overdue, 1, 0);
    assert_eq!((play.asks(), play.done.len()), (vec![(Ask::Write, 0)], 2));
    assert!(play.session.kept_bytes() > 4096, "it is kept like any other");
}

#[test]
fn no_more_is_under_way_than_the_window() {
    let mut play = Play::attached();
    let ids: Vec<u64> = (0..30).map(|at| play.ask(Ask::Read, at * 512, 512)).collect();
    assert_eq!(play.asks().len(), 14, "of 20, some are left for pings");
    play.tell(1, Told::Done, ids[3], (0, 0), &[0; 512]);
    assert_eq!(play.asks(), [(Ask::Read, 14 * 512)]);
}

#[test]
fn at_the_bound_of_the_budget_changes_wait_for_a_flush_and_reads_do_not() {
    let mut play = Play::with(Terms::default(), Budget::new(10_000));
    play.attach_at(1, 0, 0, &[]);
    let first = play.write(0, 4096);
    let second = play.write(4096, 4096);
    play.write(8192, 4096);
    play.ask(Ask::Read, 0, 512);
    assert_eq!(play.asks(), [(Ask::Write, 0), (Ask::Write, 4096), (Ask::Read, 0)]);
    play.done(first, 1, 0);
    play.done(second, 2, 0);
    let flush = play.sent[0];
    assert_eq!((play.asks(), flush.ask), (vec![(Ask::Flush, 0)], Ask::Flush));
    play.done(flush.id, 2, 2);
    assert_eq!(play.asks(), [(Ask::Write, 8192)]);
    assert_eq!(play.session.kept_bytes(), 0);
}

#[test]
fn a_detach_is_the_last_request_behind_a_flush_and_outlives_a_loss() {
    let mut play = Play::attached();
    let id = play.write(0, 512);
    play.session.detach(play.now);
    play.take();
    assert!(play.session.submit(play.now, Ask::Flush, 0, 0, 0, Bytes::new()).is_err());
    play.asks();
    play.done(id, 1, 0);
    let flush = play.sent[0].id;
    assert_eq!(play.asks(), [(Ask::Flush, 0)]);
    play.done(flush, 1, 1);
    let detach = play.sent[0].id;
    assert_eq!(play.asks(), [(Ask::Detach, 0)]);
    play.tell(1, Told::Failed(ErrorKind::Unavailable), detach, (1, 1), b"later");
    play.attach_at(1, 1, 1, &[1]);
    let flush = play.sent[0].id;
    play.done(flush, 1, 1);
    assert!(matches!(play.asks()[..], [(Ask::Flush, 0), (Ask::Detach, 0)]), "it is owed until it is done");
    play.lose();
    play.wait(1000);
    play.session.connected(play.now, play.connection);
    play.session.refused(play.now, play.connection, Refused::new(ErrorKind::Fenced, "no such session"));
    play.take();
    assert!(matches!(play.session.standing(), Standing::Detached(_)), "its answer was lost");
    assert!(play.session.table.is_empty());
}
