// SPDX-License-Identifier: Apache-2.0
//! What the embedded form promises beyond the others: it is durable, it has one opener, it tells damage, and its leases end with real time.

#![allow(clippy::unwrap_used, reason = "here a failed unwrap is a failed test")]
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a test of real files and processes")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio::time::timeout;
use varve_coord::{Change, Check, Coord, CoordError, Embedded, Event, LeaseId, Outcome};
use varve_types::ErrorKind;

const DEADLINE: Duration = Duration::from_secs(60);
/// Set for the process that a test starts of itself: the file that it is to open.
const CHILD_FILE: &str = "VARVE_COORD_TEST_FILE";

async fn put(coord: &Embedded, key: &str, value: &str) -> u64 {
    match coord.transact(Vec::new(), vec![Change::put(key, value)]).await.unwrap() {
        Outcome::Applied { revision } => revision,
        Outcome::Refused => panic!("refused without a check"),
    }
}

fn leased(key: &str, lease: LeaseId) -> Change {
    Change::Put { key: key.into(), value: b"x".into(), lease: Some(lease) }
}

fn refusal(path: &Path) -> CoordError {
    Embedded::open(path).err().expect("it is refused")
}

#[tokio::test]
async fn everything_is_there_after_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("coord");
    let before = {
        let coord = Embedded::open(&path).unwrap();
        for n in 0..20 {
            put(&coord, &format!("k/{n}"), &n.to_string()).await;
        }
        coord.transact(vec![], vec![Change::Delete("k/7".into())]).await.unwrap();
        coord.list("").await.unwrap()
    };
    let coord = Embedded::open(&path).unwrap();
    assert_eq!(coord.list("").await.unwrap(), before, "revisions too");
    assert_eq!(put(&coord, "k/7", "again").await, before.revision + 1);
    let mut watch = coord.watch("", before.revision).await.unwrap();
    assert_eq!(watch.next().await.unwrap(), Event::Behind, "the events before the opening are not kept");
    assert!(!directory.path().join("coord.new").exists());
}

#[tokio::test]
async fn leases_end_by_themselves_and_with_the_opening() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("coord");
    let old = {
        let coord = Embedded::open(&path).unwrap();
        let (short, long) = (coord.lease(Duration::from_secs(1)).await.unwrap(), coord.lease(DEADLINE).await.unwrap());
        let begun = Instant::now();
        coord
            .transact(vec![], vec![leased("short", short), leased("long", long), Change::put("free", "x")])
            .await
            .unwrap();
        let mut watch = coord.watch("", 0).await.unwrap();
        let event = timeout(DEADLINE, watch.next()).await.unwrap().unwrap();
        assert_eq!(event, Event::Deleted { key: "short".into(), revision: 2 });
        assert!(begun.elapsed() >= Duration::from_millis(900), "it ended after {:?}", begun.elapsed());
        assert_eq!(coord.keep_alive(short).await.unwrap_err().kind(), ErrorKind::NotFound);
        coord.keep_alive(long).await.unwrap();
        long
    };
    let coord = Embedded::open(&path).unwrap();
    let listing = coord.list("").await.unwrap();
    assert_eq!(listing.entries.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(), ["free"]);
    assert_eq!(listing.revision, 3, "the deletion is a change");
    assert_eq!(coord.keep_alive(old).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_ne!(coord.lease(DEADLINE).await.unwrap(), old, "no lease is numbered twice");
}

#[tokio::test]
async fn a_lease_that_is_kept_alive_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let coord = Embedded::open(directory.path().join("coord")).unwrap();
    let (kept, measure) = (coord.lease(Duration::from_secs(4)).await.unwrap(), Duration::from_secs(1));
    coord.transact(vec![], vec![leased("kept", kept)]).await.unwrap();
    let begun = Instant::now();
    // Leases of a second, one after the other, measure the time without a sleep.
    while begun.elapsed() < Duration::from_secs(5) {
        let tick = coord.lease(measure).await.unwrap();
        coord.transact(vec![], vec![leased("tick", tick)]).await.unwrap();
        let mut watch = coord.watch("tick", 0).await.unwrap();
        timeout(DEADLINE, watch.next()).await.unwrap().unwrap();
        coord.keep_alive(kept).await.unwrap();
    }
    assert!(coord.get("kept").await.unwrap().is_some());
}

#[test]
fn a_second_opener_is_told_who_has_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("coord");
    let coord = Embedded::open(&path).unwrap();
    let error = refusal(&path);
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let text = error.to_string();
    assert!(text.contains(path.to_str().unwrap()), "{text}");
    assert!(matches!(error, CoordError::Locked { pid: Some(pid), .. } if pid == std::process::id()), "{text}");
    drop(coord);
    Embedded::open(&path).unwrap();
}

/// Not a test of its own: what the processes do that the tests below start. Opens the file, puts what it is told, and then holds it or dies.
#[test]
fn child() {
    let Some(path) = std::env::var_os(CHILD_FILE) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let coord = match Embedded::open(Path::new(&path)) {
        Ok(coord) => coord,
        Err(error) => {
            println!("refused: {error}");
            return;
        }
    };
    for n in 0_u32.. {
        let check = if n == 0 { Check::Absent("n".into()) } else { Check::Exists("n".into()) };
        let changes = vec![Change::put("n", n.to_string()), Change::put(format!("all/{}", n % 50), vec![7; 3000])];
        runtime.block_on(coord.transact(vec![check], changes)).unwrap();
        println!("acknowledged {n}");
    }
}

/// A process that does not outlive its test.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may be dead already, which is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_child(path: &Path) -> Killed {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture", "--test-threads=1"]).env(CHILD_FILE, path);
    Killed(command.stdout(Stdio::piped()).spawn().unwrap())
}

/// The child's next line that is ours; the test harness prints some of its own.
fn next_line(lines: &mut impl Iterator<Item = std::io::Result<String>>) -> Option<String> {
    lines.map_while(Result::ok).find(|line| line.contains("acknowledged ") || line.contains("refused: "))
}

#[tokio::test]
async fn another_process_is_refused_and_after_its_kill_everything_acknowledged_is_there() {
    use std::io::BufRead;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("coord");
    let mut child = start_child(&path);
    let mut lines = std::io::BufReader::new(child.0.stdout.take().unwrap()).lines();
    let first = next_line(&mut lines).expect("the child acknowledges");
    assert!(first.ends_with("acknowledged 0"), "{first}");

    let error = refusal(&path);
    assert!(matches!(error, CoordError::Locked { pid: Some(pid), .. } if pid == child.0.id()), "{error}");
    let number = |line: String| line.rsplit(' ').next().unwrap().parse::<u32>().unwrap();
    let mut last = 0;
    for _ in 0..30 {
        last = number(next_line(&mut lines).expect("the child goes on"));
    }
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    while let Some(line) = next_line(&mut lines) {
        last = number(line);
    }
    assert!(last >= 30);
    let coord = Embedded::open(&path).unwrap();
    let entry = coord.get("n").await.unwrap().unwrap();
    let found: u32 = std::str::from_utf8(&entry.value).unwrap().parse().unwrap();
    assert!(found == last || found == last + 1, "acknowledged {last}, found {found}");
    let listing = coord.list("").await.unwrap();
    assert_eq!(listing.revision, u64::from(found) + 1);
    let beside = coord.get(&format!("all/{}", found % 50)).await.unwrap().unwrap();
    assert_eq!(
        (beside.revision, entry.revision),
        (listing.revision, listing.revision),
        "one transaction, one revision"
    );

    // And the other way about: we have it, the child is refused.
    let mut child = start_child(&path);
    let mut lines = std::io::BufReader::new(child.0.stdout.take().unwrap()).lines();
    let line = next_line(&mut lines).expect("the child says something");
    assert!(line.ends_with(&format!("in use by process {}", std::process::id())), "{line}");
    child.0.wait().unwrap();
}

#[test]
fn garbage_is_corrupt_and_named_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("coord");
    for bytes in [&b""[..], b"x", b"garbage\n", &[0; 70_000], &[0xa5; 1 << 20], b"redb\x1a\x0a\xa9\x0d\x0a and no more"]
    {
        std::fs::write(&path, bytes).unwrap();
        let error = refusal(&path);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }
}

#[test]
fn places_that_can_not_be_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let error = refusal(directory.path());
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    let error = refusal(&directory.path().join("none").join("coord"));
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(error.to_string().contains("none"), "{error}");
}

#[test]
fn a_draft_that_a_crash_left_is_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("coord");
    let draft = directory.path().join("coord.new");
    std::fs::write(&draft, vec![7; 100_000]).unwrap();
    drop(Embedded::open(&path).unwrap());
    assert!(!draft.exists());
    // A crash between the two steps of giving it its name leaves both names.
    std::fs::hard_link(&path, &draft).unwrap();
    drop(Embedded::open(&path).unwrap());
    assert!(!draft.exists());
    // Somebody else is making it right now.
    let other = std::fs::File::create(&draft).unwrap();
    other.lock().unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(refusal(&path).kind(), ErrorKind::Conflict);
}

#[tokio::test]
async fn a_flipped_bit_gives_corrupt_or_the_whole_truth() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("coord");
    let truth = {
        let coord = Embedded::open(&path).unwrap();
        for n in 0..40 {
            put(&coord, &format!("volume/{n}"), &"v".repeat(200 + n)).await;
        }
        coord.list("").await.unwrap()
    };
    let whole = std::fs::read(&path).unwrap();
    let (mut corrupt, twin) = (0, directory.path().join("twin"));
    // The header bit by bit, then places all over the file where something is written.
    let written = (512..whole.len()).filter(|place| whole[*place] != 0).step_by(211);
    for (place, bit) in (0..320).map(|place| (place, place % 8)).chain(written.map(|place| (place, place % 8))) {
        let mut bytes = whole.clone();
        bytes[place] ^= 1 << bit;
        std::fs::write(&twin, &bytes).unwrap();
        match Embedded::open(&twin) {
            Ok(coord) => assert_eq!(coord.list("").await.unwrap(), truth, "bit {bit} of byte {place}"),
            Err(error) => {
                let told = matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Invalid);
                assert!(told && error.to_string().contains("twin"), "bit {bit} of byte {place}: {error}");
                corrupt += 1;
            }
        }
    }
    assert!(corrupt > 50, "only {corrupt} flips were told");
}
