// SPDX-License-Identifier: Apache-2.0
//! What every object store must do, as functions over the trait. Each uses names of its own, and all begin with nothing there.

use bytes::Bytes;
use futures_util::future::join_all;
use varve_env::{ObjectInfo, ObjectStore, Payload, PutOutcome, StoreErrorKind};

/// Runs a future on an executor that has neither time nor I/O, as a store must stand it.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// Everything.
pub fn all(store: &dyn ObjectStore) {
    a_name_is_put_once(store);
    ranges_are_exact(store);
    an_object_may_be_empty(store);
    what_is_not_there_is_not_found(store);
    of_concurrent_puts_one_wins(store);
    a_large_object_of_many_parts_comes_back(store);
    listings_are_sorted_and_paged(store);
    deleting_is_repeatable(store);
    odd_names_are_refused(store);
}

pub fn put(store: &dyn ObjectStore, name: &str, bytes: &'static [u8]) {
    let outcome = block_on(store.put(name, Payload::from(Bytes::from_static(bytes)))).unwrap();
    assert_eq!(outcome, PutOutcome::Created, "{name}");
}

fn a_name_is_put_once(store: &dyn ObjectStore) {
    put(store, "once/a", b"first");
    for other in [&b"other"[..], b"", b"a longer one"] {
        let outcome = block_on(store.put("once/a", Payload::from(Bytes::from_static(other)))).unwrap();
        assert_eq!(outcome, PutOutcome::Exists);
        assert_eq!(block_on(store.get_head("once/a", 100)).unwrap(), "first", "it is unchanged");
    }
    assert_eq!(block_on(store.head("once/a")).unwrap(), ObjectInfo { name: "once/a".into(), size: 5 });
}

fn ranges_are_exact(store: &dyn ObjectStore) {
    put(store, "range/a", b"0123456789");
    let get = |range| block_on(store.get("range/a", range));
    for (range, bytes) in [(0..10, "0123456789"), (0..1, "0"), (9..10, "9"), (3..7, "3456"), (4..4, ""), (10..10, "")] {
        assert_eq!(get(range.clone()).unwrap(), bytes, "{range:?}");
    }
    #[allow(clippy::reversed_empty_ranges, reason = "that is what is refused")]
    for range in [0..11, 9..11, 10..11, 11..11, 50..60, 7..3, 0..u64::MAX] {
        assert_eq!(get(range.clone()).unwrap_err().kind, StoreErrorKind::Invalid, "{range:?}");
    }
    for (most, bytes) in [(0, ""), (1, "0"), (10, "0123456789"), (11, "0123456789"), (1 << 40, "0123456789")] {
        assert_eq!(block_on(store.get_head("range/a", most)).unwrap(), bytes, "{most}");
    }
}

fn an_object_may_be_empty(store: &dyn ObjectStore) {
    put(store, "empty/a", b"");
    assert_eq!(block_on(store.head("empty/a")).unwrap().size, 0);
    assert_eq!(block_on(store.get("empty/a", 0..0)).unwrap(), "");
    assert_eq!(block_on(store.get_head("empty/a", 10)).unwrap(), "");
    assert_eq!(block_on(store.get_head("empty/a", 0)).unwrap(), "");
    assert_eq!(block_on(store.get("empty/a", 0..1)).unwrap_err().kind, StoreErrorKind::Invalid);
    let again = block_on(store.put("empty/a", Payload::new(vec![Bytes::new(), Bytes::new()]))).unwrap();
    assert_eq!(again, PutOutcome::Exists);
}

fn what_is_not_there_is_not_found(store: &dyn ObjectStore) {
    for name in ["none", "none/a/b", "once", "once/aa", "once/a/b"] {
        let kinds = [
            block_on(store.head(name)).unwrap_err().kind,
            block_on(store.get(name, 0..1)).unwrap_err().kind,
            block_on(store.get(name, 0..0)).unwrap_err().kind,
            block_on(store.get_head(name, 10)).unwrap_err().kind,
            block_on(store.get_head(name, 0)).unwrap_err().kind,
        ];
        assert_eq!(kinds, [StoreErrorKind::NotFound; 5], "{name}");
    }
}

fn of_concurrent_puts_one_wins(store: &dyn ObjectStore) {
    for round in 0..3 {
        let name = format!("race/{round}/deep/x");
        let body = |n: u8| Payload::new(vec![Bytes::from(vec![n; 5000]); 3]);
        let outcomes = block_on(join_all((0..8).map(|n| store.put(&name, body(n)))));
        let outcomes: Vec<_> = outcomes.into_iter().map(Result::unwrap).collect();
        let created: Vec<_> = (0..8).filter(|n| outcomes[usize::from(*n)] == PutOutcome::Created).collect();
        assert_eq!(created.len(), 1, "{outcomes:?}");
        let bytes = block_on(store.get(&name, 0..15_000)).unwrap();
        assert!(bytes.iter().all(|byte| *byte == created[0]), "the bytes are the winner's");
    }
}

fn a_large_object_of_many_parts_comes_back(store: &dyn ObjectStore) {
    let mut state = 1_u64;
    let mut word = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 24
    };
    // Parts of all lengths, empty ones too, 20 MiB and something in all.
    let mut parts = vec![Bytes::new()];
    let mut whole = Vec::new();
    while whole.len() < 20 << 20 {
        let length = [1, 16, 4096, 4112, 70_000][usize::try_from(word() % 5).unwrap()];
        let byte = word().to_le_bytes()[0];
        let part: Vec<u8> = (0..length).map(|n: u32| byte.wrapping_add(n.to_le_bytes()[0])).collect();
        whole.extend_from_slice(&part);
        parts.extend([Bytes::from(part), Bytes::new()]);
    }
    let size = whole.len() as u64;
    assert_eq!(block_on(store.put("large/a", Payload::new(parts))).unwrap(), PutOutcome::Created);
    assert_eq!(block_on(store.head("large/a")).unwrap().size, size);
    assert!(block_on(store.get("large/a", 0..size)).unwrap() == whole);
    let ranges: Vec<_> = (0..40)
        .map(|_| {
            let start = word() % size;
            start..(start + word() % 300_000).min(size)
        })
        .collect();
    let got = block_on(join_all(ranges.iter().map(|range| store.get("large/a", range.clone()))));
    for (range, bytes) in ranges.iter().zip(got) {
        let (start, end) = (usize::try_from(range.start).unwrap(), usize::try_from(range.end).unwrap());
        assert!(bytes.unwrap() == whole[start..end], "{range:?}");
    }
}

fn names(store: &dyn ObjectStore, prefix: &str, after: Option<&str>) -> Vec<String> {
    let listed = block_on(store.list(prefix, after)).unwrap();
    listed.into_iter().map(|object| object.name).collect()
}

fn listings_are_sorted_and_paged(store: &dyn ObjectStore) {
    let mut expected: Vec<String> = (0..1105).map(|n| format!("list/{}/{n:04}", ["x", "y"][n % 2])).collect();
    expected.push("list/z".into());
    for chunk in expected.chunks(64) {
        let puts = chunk.iter().map(|name| store.put(name, Payload::from(Bytes::from_static(b"1"))));
        block_on(join_all(puts)).into_iter().for_each(|put| assert_eq!(put.unwrap(), PutOutcome::Created));
    }
    put(store, "lisu", b"");
    expected.sort();
    let first = block_on(store.list("list/", None)).unwrap();
    assert_eq!(first.len(), 1000);
    assert!(first.iter().all(|object| object.size == 1));
    let mut all: Vec<String> = first.into_iter().map(|object| object.name).collect();
    while let Some(last) = all.last().cloned() {
        let page = names(store, "list/", Some(&last));
        if page.is_empty() {
            break;
        }
        all.extend(page);
    }
    assert_eq!(all, expected);
    // A prefix may end within a part, `after` need not exist, and what is not there is empty.
    assert_eq!(
        names(store, "list/x/000", None),
        ["list/x/0000", "list/x/0002", "list/x/0004", "list/x/0006", "list/x/0008"]
    );
    assert_eq!(names(store, "list/x/000", Some("list/x/0003")), ["list/x/0004", "list/x/0006", "list/x/0008"]);
    assert_eq!(names(store, "list/", Some("list/y/1103")), ["list/z"]);
    assert_eq!(names(store, "lis", Some("list/z")), ["lisu"]);
    assert_eq!(names(store, "list/z", None), ["list/z"]);
    assert_eq!(names(store, "list/z/", None), [""; 0]);
    assert_eq!(names(store, "list/none/", None), [""; 0]);
    assert_eq!(names(store, "", Some("zzz")), [""; 0]);
}

fn deleting_is_repeatable(store: &dyn ObjectStore) {
    put(store, "delete/a", b"1");
    put(store, "delete/b", b"2");
    assert_eq!(block_on(store.get("delete/a", 0..1)).unwrap(), "1");
    block_on(store.delete("delete/a")).unwrap();
    block_on(store.delete("delete/a")).unwrap();
    block_on(store.delete("delete/never/was")).unwrap();
    assert_eq!(block_on(store.get("delete/a", 0..1)).unwrap_err().kind, StoreErrorKind::NotFound);
    assert_eq!(block_on(store.head("delete/a")).unwrap_err().kind, StoreErrorKind::NotFound);
    assert_eq!(names(store, "delete/", None), ["delete/b"]);
    put(store, "delete/a", b"3");
    assert_eq!(block_on(store.get("delete/a", 0..1)).unwrap(), "3");
}

fn odd_names_are_refused(store: &dyn ObjectStore) {
    for name in ["", "/a", "a/", "a//b", "../a", "a/..", "A", "_tmp/x", "a\0b", "a?b", "ä"] {
        let kinds = [
            block_on(store.put(name, Payload::default())).unwrap_err().kind,
            block_on(store.get(name, 0..0)).unwrap_err().kind,
            block_on(store.get_head(name, 1)).unwrap_err().kind,
            block_on(store.head(name)).unwrap_err().kind,
            block_on(store.delete(name)).unwrap_err().kind,
        ];
        assert_eq!(kinds, [StoreErrorKind::Invalid; 5], "{name}");
    }
    assert_eq!(block_on(store.list("../", None)).unwrap_err().kind, StoreErrorKind::Invalid);
}

/// Deletes everything.
pub fn clear(store: &dyn ObjectStore) {
    loop {
        let page = names(store, "", None);
        if page.is_empty() {
            break;
        }
        block_on(join_all(page.iter().map(|name| store.delete(name)))).into_iter().for_each(Result::unwrap);
    }
}

/// What is put into a part of a store is seen in the whole, below the part's prefix, and nothing else of the whole is in the part.
pub fn prefixes_are_apart(whole: &dyn ObjectStore, part: &dyn ObjectStore, prefix: &str) {
    put(whole, "apart/whole", b"w");
    put(part, "apart/part", b"p");
    assert_eq!(names(part, "apart/", None), ["apart/part"]);
    assert_eq!(names(whole, "apart/", None), ["apart/whole"]);
    assert_eq!(names(whole, &format!("{prefix}/apart/"), None), [format!("{prefix}/apart/part")]);
}
