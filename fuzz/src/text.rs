// SPDX-License-Identifier: Apache-2.0
//! Text forms: names, ids, sizes, settings, addresses of stores, names of objects.
//!
//! What people type comes back from its shown form as the same value; a name of an object has one spelling only.

use crate::{bounded, choose};
use varve_format::ObjectName;
use varve_store::{StoreUrl, check_name};
use varve_types::{
    ErrorKind, MAX_VOLUME, Name, Overrides, SECTOR, Settings, TimelineId, WriterId, format_size, parse_size,
    parse_volume_size,
};

/// See the module.
pub fn check(data: &[u8]) {
    let Some((choice, rest)) = choose(data, 6) else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    match choice {
        0 => object_name(text),
        1 => name(text),
        2 => size(text),
        3 => settings(text),
        4 => store(text),
        _ => ids(text),
    }
}

fn object_name(text: &str) {
    if let Some(name) = bounded(text.len(), || ObjectName::parse(text)) {
        assert_eq!(name.to_string(), text);
        assert!(text.starts_with(&ObjectName::prefix(name.timeline, name.kind)));
        assert!(check_name("name", text).is_ok(), "a name of ours that no store takes");
    }
    if check_name("name", text).is_ok() {
        let mut parts = text.split('/');
        assert!(parts.all(|part| !matches!(part, "" | "." | "..")) && !text.contains('\0'), "{text:?} is a path");
    }
}

fn name(text: &str) {
    match bounded(text.len(), || text.parse::<Name>()) {
        Ok(name) => {
            assert!(name.as_str() == text && name.to_string() == text && (1..=63).contains(&text.len()));
            let json = serde_json::to_string(&name).expect("a text is JSON");
            assert_eq!(serde_json::from_str::<Name>(&json).ok(), Some(name));
        }
        Err(error) => assert!(error.to_string().len() < 4096, "an error repeats all that it was given"),
    }
}

fn size(text: &str) {
    let size = bounded(text.len(), || parse_size(text));
    if let Ok(bytes) = size {
        assert_eq!(parse_size(&bytes.to_string()), Ok(bytes));
        assert!(!format_size(bytes).is_empty());
    }
    if let Ok(bytes) = parse_volume_size(text) {
        assert!(size == Ok(bytes) && bytes > 0 && bytes.is_multiple_of(SECTOR) && bytes <= MAX_VOLUME);
    }
}

/// Lines of `key=value`.
fn settings(text: &str) {
    let mut overrides = Overrides::default();
    for line in text.lines().take(20) {
        let (key, value) = line.split_once('=').unwrap_or((line, ""));
        let before = overrides;
        if overrides.set(key, value).is_err() {
            assert_eq!(overrides, before, "a value that is refused changes nothing");
        }
    }
    let mut again = Overrides::default();
    for (key, value) in overrides.pairs() {
        assert_eq!(again.set(key, &value), Ok(()), "{key} = {value}");
    }
    assert_eq!(again, overrides);
    let now = Settings::resolve(&overrides, &Overrides::default());
    assert!((4 << 20..=128 << 20).contains(&now.segment_size) && now.seal_age_ms >= 1000);
    assert_eq!(Settings::describe(&overrides, &Overrides::default()).len(), Overrides::KEYS.len());
}

fn store(text: &str) {
    if let Ok(url) = bounded(text.len(), || StoreUrl::parse(text)) {
        let shown = url.to_string();
        assert_eq!(StoreUrl::parse(&shown).as_ref().ok(), Some(&url), "{shown}");
        assert_eq!(StoreUrl::parse(&shown).map(|url| url.to_string()).ok(), Some(shown));
    }
}

fn ids(text: &str) {
    if let Ok(id) = text.parse::<TimelineId>() {
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(TimelineId::from_bytes(id.to_bytes()), id);
    }
    if let Ok(writer) = WriterId::try_from(text.to_owned()) {
        assert_eq!(WriterId::try_from(writer.to_string()), Ok(writer));
    }
    if let Some(kind) = ErrorKind::parse(text) {
        assert_eq!(kind.as_str(), text);
    }
}
