// SPDX-License-Identifier: Apache-2.0
//! The library: what is read is what was written, whatever happens to the owner in between.

use super::owner::{Mood, Owner, SIZE};
use bytes::Bytes;
use std::future::Future;
use std::time::{Duration, Instant};
use varve_block::BlockError;
use varve_edge::session::{Standing, Terms};
use varve_edge::{Edge, Operation, Options, Volume};
use varve_types::ErrorKind;
use varve_wire::attach::{Holder, Refused};
use varve_wire::transmission::Ask;

const DEADLINE: Duration = Duration::from_secs(30);

fn local<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let within = async { tokio::time::timeout(DEADLINE, future).await.expect("it takes too long") };
    tokio::task::LocalSet::new().block_on(&runtime, within)
}

fn options(owner: &Owner) -> Options {
    Options::new("disk", vec![owner.node()])
}

async fn open(options: Options) -> Result<Volume, BlockError> {
    Edge::default().open(options).await
}

fn block(value: u8) -> Bytes {
    vec![value; 4096].into()
}

/// Waits for what a volume is.
async fn until(volume: &Volume, what: impl Fn(&Standing) -> bool) {
    while !what(&volume.stat().standing) {
        volume.changed().await;
    }
}

#[test]
fn what_is_written_is_read_and_given_up_in_good_order() {
    let owner = Owner::start();
    local(async {
        let volume = open(options(&owner)).await.unwrap();
        assert_eq!(volume.device().size(), SIZE as u64);
        volume.write(4096, block(7)).await.unwrap();
        volume.writev(8192, [block(8), block(9), Bytes::new()]).await.unwrap();
        assert!(volume.stat().kept_bytes > 3 * 4096);
        volume.flush().await.unwrap();
        assert_eq!(volume.stat().kept_bytes, 0);
        volume.discard(4096, 512).await.unwrap();
        let read = volume.read(4096, 3 * 4096).await.unwrap();
        assert!(read[..512] == [0; 512] && read[512..4096] == [7; 3584] && read[8192..] == [9; 4096]);
        assert_eq!(volume.extents(0, 65_536).await.unwrap()[0].len, 65_536);
        for wrong in [volume.read(1, 512).await.err(), volume.read(SIZE as u64, 512).await.err()] {
            assert_eq!(wrong.unwrap().kind(), ErrorKind::Invalid);
        }
        let stats = volume.stat().stats;
        assert_eq!((stats.of(Operation::Write).requests, stats.of(Operation::Write).bytes), (3, 3 * 4096));
        assert_eq!(stats.of(Operation::Read).latency.count(), 1);
        volume.write(0, block(1)).await.unwrap();
        volume.close().await.unwrap();
        assert!(matches!(volume.stat().standing, Standing::Detached(_)));
        assert!(volume.read(0, 512).await.unwrap_err().to_string().contains("detached"));
    });
    let state = owner.state();
    assert_eq!(state.asked[state.asked.len() - 2..], [Ask::Flush, Ask::Detach]);
    assert_eq!(state.safe_data[..4096], [1; 4096]);
}

#[test]
fn nothing_that_was_acknowledged_dies_with_the_owner() {
    let mut owner = Owner::start();
    local(async {
        let volume = open(options(&owner)).await.unwrap();
        for round in 0..3u8 {
            for at in 0..40u64 {
                volume.write(at * 2048, block(round * 40 + at as u8 + 1)).await.unwrap();
            }
            if round == 1 {
                volume.flush().await.unwrap();
            }
            owner.kill();
            until(&volume, |standing| matches!(standing, Standing::Looking(_))).await;
            owner.revive();
            let read = volume.read(0, 41 * 2048).await.unwrap();
            for at in 0..40usize {
                assert_eq!(read[at * 2048], round * 40 + at as u8 + 1, "block {at} of round {round}");
            }
        }
        let stat = volume.stat();
        assert_eq!(stat.stalls.reconnects, 3);
        assert!(stat.stalls.longest > Duration::ZERO && stat.trouble.is_empty());
        volume.close().await.unwrap();
    });
    let state = owner.state();
    let generations: Vec<u64> = state.attaches.iter().map(|attach| attach.generation).collect();
    assert!(generations.windows(2).all(|two| two[0] < two[1]), "{generations:?}");
    assert!(state.attaches[1].timeline.is_some() && !state.attaches[1].promises.is_empty());
}

#[test]
fn an_owner_that_breaks_the_protocol_is_left_and_asked_again() {
    for mood in [Mood::Garbage, Mood::Short, Mood::Damaged, Mood::Silent] {
        let owner = Owner::start();
        local(async {
            let volume = open(options(&owner)).await.unwrap();
            volume.write(0, block(5)).await.unwrap();
            owner.state().mood = mood;
            assert_eq!(volume.read(0, 4096).await.unwrap(), block(5), "{mood:?}");
            assert_eq!(volume.stat().stalls.reconnects, 1, "{mood:?}");
            owner.state().mood = mood;
            volume.write(0, block(6)).await.unwrap();
            assert_eq!(volume.read(0, 4096).await.unwrap(), block(6), "{mood:?}");
            volume.close().await.unwrap();
        });
    }
}

#[test]
fn an_owner_that_says_nothing_is_lost_and_one_that_is_only_slow_is_not() {
    let owner = Owner::start();
    local(async {
        let mut quick = options(&owner);
        quick.terms = Terms {
            ping_busy: Duration::from_millis(30),
            silence: Duration::from_millis(100),
            greeting: Duration::from_millis(200),
            ..Terms::default()
        };
        let volume = open(quick).await.unwrap();
        // It answers pings: that the read waits is its affair.
        owner.state().mood = Mood::Stuck;
        let begun = Instant::now();
        let read = volume.read(0, 512);
        let mut read = std::pin::pin!(read);
        assert!(tokio::time::timeout(Duration::from_millis(600), &mut read).await.is_err());
        assert!(begun.elapsed() >= Duration::from_millis(600) && owner.state().count(Ask::Ping) > 5);
        assert_eq!((owner.state().attaches.len(), volume.stat().stalls.reconnects), (1, 0));
        owner.state().mood = Mood::Mute;
        until(&volume, |standing| matches!(standing, Standing::Looking(_))).await;
        assert!(volume.stat().trouble.contains("nothing was heard"), "{}", volume.stat().trouble);
        owner.state().mood = Mood::Well;
        assert_eq!(read.await.unwrap()[..], [0; 512]);
        assert_eq!(volume.stat().stalls.reconnects, 1);
        volume.close().await.unwrap();
    });
}

#[test]
fn a_request_that_takes_too_long_is_answered_with_an_error_and_the_device_lives_on() {
    let mut owner = Owner::start();
    local(async {
        let mut impatient = options(&owner);
        impatient.terms.io_timeout = Some(Duration::from_millis(200));
        let volume = open(impatient).await.unwrap();
        volume.write(0, block(1)).await.unwrap();
        owner.kill();
        let error = volume.read(0, 512).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("read within its I/O timeout"), "{error}");
        owner.revive();
        until(&volume, |standing| matches!(standing, Standing::Connected(..))).await;
        assert_eq!(volume.read(0, 4096).await.unwrap(), block(1));
        volume.close().await.unwrap();
    });
}

#[test]
fn refusals_at_the_first_attach_are_told_and_busy_ones_are_tried_on() {
    let owner = Owner::start();
    let mut held = Refused::new(ErrorKind::Conflict, "somebody else has it");
    held.holder = Some(Holder { edge: "host-9".into(), since_ms: 1 });
    for (refused, texts) in [
        (held, ["somebody else has it", "host-9"]),
        (Refused::new(ErrorKind::NotFound, "there is no such volume"), ["volume disk", "no such volume"]),
    ] {
        owner.state().refusals = [refused.clone()].into();
        let error = local(open(options(&owner))).unwrap_err();
        assert_eq!(error.kind(), refused.kind);
        assert!(texts.iter().all(|text| error.to_string().contains(text)), "{error}");
    }
    owner.state().refusals = [Refused::new(ErrorKind::Busy, "just starting")].into();
    let mut short = options(&owner);
    short.terms.attach_timeout = Some(Duration::from_millis(300));
    let error = local(open(short)).unwrap_err();
    assert!(error.kind() == ErrorKind::Unavailable && error.to_string().contains("just starting"), "{error}");
    owner.state().refusals.clear();
    owner.state().mood = Mood::Mute;
    let mut short = options(&owner);
    short.terms = Terms {
        attach_timeout: Some(Duration::from_millis(500)),
        greeting: Duration::from_millis(100),
        ..Terms::default()
    };
    let error = local(open(short)).unwrap_err();
    assert!(error.to_string().contains("does not answer"), "{error}");
    let error = local(open(Options::new("disk", vec!["http://node".into()]))).unwrap_err();
    assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains("HOST:PORT"), "{error}");
}

#[test]
fn a_node_that_knows_better_is_listened_to() {
    let (first, owner) = (Owner::start(), Owner::start());
    let mut elsewhere = Refused::new(ErrorKind::Conflict, "it is on another node");
    elsewhere.elsewhere = Some(owner.node());
    first.state().refusals = [elsewhere].into();
    local(async {
        let volume = open(options(&first)).await.unwrap();
        until(&volume, |standing| matches!(standing, Standing::Connected(node, _) if *node == owner.node())).await;
        volume.close().await.unwrap();
    });
}

#[test]
fn what_was_taken_away_or_rolled_back_or_lost_fails_for_good() {
    type Change = fn(&Owner);
    let all: [(Change, ErrorKind, &str); 3] = [
        (
            |owner| owner.state().refusals = [Refused::new(ErrorKind::Conflict, "host-2 has it")].into(),
            ErrorKind::Fenced,
            "taken away: host-2 has it",
        ),
        (|owner| owner.state().timeline = 4, ErrorKind::Fenced, "another history"),
        (
            |owner| {
                let mut state = owner.state();
                (state.cuts, state.epoch, state.sequence, state.safe) = (vec![(1, 0)], 2, 0, 0);
            },
            ErrorKind::Corrupt,
            "promised safe is lost",
        ),
    ];
    for (change, kind, text) in all {
        let owner = Owner::start();
        local(async {
            let volume = open(options(&owner)).await.unwrap();
            volume.write(0, block(1)).await.unwrap();
            volume.flush().await.unwrap();
            change(&owner);
            owner.hang_up();
            until(&volume, |standing| matches!(standing, Standing::Failed(_))).await;
            let error = volume.read(0, 512).await.unwrap_err();
            assert!(error.kind() == kind && error.to_string().contains(text), "{error}");
            assert!(volume.close().await.is_err());
        });
    }
}

#[test]
fn another_size_is_told_to_whoever_looks() {
    let owner = Owner::start();
    local(async {
        let volume = open(options(&owner)).await.unwrap();
        owner.state().resize(2 * SIZE);
        while volume.device().size() != 2 * SIZE as u64 {
            volume.changed().await;
        }
        volume.write(2 * SIZE as u64 - 4096, block(3)).await.unwrap();
        volume.close().await.unwrap();
    });
}

#[test]
fn at_the_bound_of_what_is_kept_it_flushes_by_itself() {
    let owner = Owner::start();
    local(async {
        let edge = Edge::new(1 << 20);
        let volume = edge.open(options(&owner)).await.unwrap();
        for at in 0..300u64 {
            volume.write(at * 16_384, vec![at as u8; 16_384].into()).await.unwrap();
            assert!(edge.kept_bytes() <= 1 << 20);
        }
        assert!(owner.state().count(Ask::Flush) >= 4);
        volume.close().await.unwrap();
        assert_eq!(edge.kept_bytes(), 0);
    });
}
