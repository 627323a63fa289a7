// SPDX-License-Identifier: Apache-2.0
//! Settings of a volume and where each comes from: the volume itself, its pool, or the
//! default.
//!
//! A volume and a pool keep [`Overrides`]; what is in force is [`Settings`], resolved
//! volume → pool → default.

use crate::{format_size, parse_size};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// When a write is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ack {
    /// Once the journal record is handed to the kernel: it survives the death of the process.
    Process,
    /// Once it is in the layer in RAM: it may be lost with the process, as from a disk's own cache, until a flush.
    Ram,
}

/// How sealed layers are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// LZ4 block format.
    Lz4,
    /// Zstandard.
    Zstd,
    /// Not at all.
    None,
}

/// What of a volume goes into the read cache. What is there already is used in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// What is read from the store.
    Read,
    /// That, and what is written, on the cache's devices, as it goes to the store.
    Write,
    /// Nothing.
    None,
}

/// What another node has to have before something is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MirrorMode {
    /// Nothing: there is no mirror.
    None,
    /// What was flushed.
    Async,
    /// Every change.
    Sync,
}

/// Where a mirror keeps what it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MirrorMedium {
    /// In RAM: it is gone with the mirror's process.
    #[default]
    Ram,
    /// In its journal: a flush waits for that, and it outlives the mirror's process.
    Disk,
}

/// What is in force for a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Settings {
    /// When a write is answered.
    pub ack: Ack,
    /// How sealed layers are compressed.
    pub compression: Compression,
    /// Bytes of data at which a layer is sealed: 4–128 MiB, a multiple of 1 MiB.
    pub segment_size: u64,
    /// Milliseconds after which a layer is sealed whatever its size.
    pub seal_age_ms: u64,
    /// Milliseconds for which a deleted volume, or the history that a rollback hid, can be brought back.
    pub undelete_window_ms: u64,
    /// Milliseconds of its past of which any moment can be brought back; 0: none.
    pub rewind_window_ms: u64,
    /// Most of its size, in percent, that what only this past needs may take: the window is shorter where it would take more.
    pub rewind_space: u64,
    /// Requests a second that it answers, reads, writes and discards together; 0: no bound.
    pub iops_limit: u64,
    /// Bytes a second that it reads and writes, together; 0: no bound.
    pub bandwidth_limit: u64,
    /// Milliseconds of its limits that it may have at once after it used nothing for as long.
    pub limit_burst_ms: u64,
    /// What of it goes into the read cache.
    pub cache: CacheMode,
    /// Most bytes of its own data on cache devices; 0: no bound.
    pub cache_quota: u64,
    /// Most bytes of RAM for nodes of its map; 0: no bound but the node's.
    pub map_ram: u64,
    /// What another node has to have before something is answered.
    pub mirror: MirrorMode,
    /// Where the mirror keeps it.
    pub mirror_medium: MirrorMedium,
    /// Whether changes wait while there is no mirror.
    pub mirror_strict: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ack: Ack::Process,
            compression: Compression::Lz4,
            segment_size: 64 << 20,
            seal_age_ms: 60_000,
            undelete_window_ms: 3_600_000,
            rewind_window_ms: 3_600_000,
            rewind_space: 20,
            iops_limit: 0,
            bandwidth_limit: 0,
            limit_burst_ms: 1000,
            cache: CacheMode::Read,
            cache_quota: 0,
            map_ram: 0,
            mirror: MirrorMode::None,
            mirror_medium: MirrorMedium::Ram,
            mirror_strict: false,
        }
    }
}

/// Settings given for one volume or one pool; what is `None` comes from the level above.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Overrides {
    /// See [`Settings::ack`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ack: Option<Ack>,
    /// See [`Settings::compression`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    /// See [`Settings::segment_size`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segment_size: Option<u64>,
    /// See [`Settings::seal_age_ms`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seal_age_ms: Option<u64>,
    /// See [`Settings::undelete_window_ms`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undelete_window_ms: Option<u64>,
    /// See [`Settings::rewind_window_ms`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rewind_window_ms: Option<u64>,
    /// See [`Settings::rewind_space`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rewind_space: Option<u64>,
    /// See [`Settings::iops_limit`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops_limit: Option<u64>,
    /// See [`Settings::bandwidth_limit`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth_limit: Option<u64>,
    /// See [`Settings::limit_burst_ms`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_burst_ms: Option<u64>,
    /// See [`Settings::cache`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheMode>,
    /// See [`Settings::cache_quota`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_quota: Option<u64>,
    /// See [`Settings::map_ram`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub map_ram: Option<u64>,
    /// See [`Settings::mirror`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mirror: Option<MirrorMode>,
    /// See [`Settings::mirror_medium`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mirror_medium: Option<MirrorMedium>,
    /// See [`Settings::mirror_strict`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mirror_strict: Option<bool>,
}

/// Where the value of a setting comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Set for the volume.
    Volume,
    /// Set for its pool.
    Pool,
    /// Nobody set it.
    Default,
}

/// A setting that does not exist, or a value that it does not take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// There is no such key.
    #[error("there is no setting {key:?}; the settings are: {}", Overrides::KEYS.join(", "))]
    Unknown {
        /// The key as it was given.
        key: String,
    },
    /// The value is not one that the key takes.
    #[error("{value:?} is not a value of {key}: {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// The value as it was given.
        value: String,
        /// What the key takes.
        expected: &'static str,
    },
}

/// What can be set, once: field, key, how its text is parsed and written, how it is shown to people, what it takes, and what it does.
macro_rules! settings {
    ($($field:ident, $key:literal, $parse:expr, $write:expr, $show:expr, $takes:literal, $about:literal;)*) => {
        impl Overrides {
            /// Every key, in the order of display.
            pub const KEYS: [&'static str; [$($key),*].len()] = [$($key),*];

            /// What each key takes, and what it does, for people.
            pub const ABOUT: [(&'static str, &'static str); Self::KEYS.len()] = [$(($takes, $about)),*];

            /// What is set, as pairs of key and value that [`set`](Self::set) takes.
            #[must_use]
            pub fn pairs(&self) -> Vec<(&'static str, String)> {
                let values: [Option<String>; Self::KEYS.len()] = [$(self.$field.map($write)),*];
                Self::KEYS.into_iter().zip(values).filter_map(|(key, value)| Some((key, value?))).collect()
            }

            /// Sets `key` from its text form; the value `default` clears it.
            ///
            /// # Errors
            /// When there is no such key, or it does not take the value.
            pub fn set(&mut self, key: &str, value: &str) -> Result<(), SettingError> {
                let bad = |key, expected| SettingError::Value { key, value: value.to_owned(), expected };
                match key {
                    $(
                        $key if value == "default" => self.$field = None,
                        $key => self.$field = Some($parse(value).ok_or_else(|| bad($key, $takes))?),
                    )*
                    _ => return Err(SettingError::Unknown { key: key.to_owned() }),
                }
                Ok(())
            }
        }

        impl Settings {
            /// What is in force for a volume with `volume` in a pool with `pool`.
            #[must_use]
            pub fn resolve(volume: &Overrides, pool: &Overrides) -> Self {
                let default = Self::default();
                Self { $($field: volume.$field.or(pool.$field).unwrap_or(default.$field)),* }
            }

            /// Rows of (key, value, source) for display, in the order of [`Overrides::KEYS`].
            #[must_use]
            pub fn describe(volume: &Overrides, pool: &Overrides) -> Vec<(&'static str, String, Source)> {
                let now = Self::resolve(volume, pool);
                let source = |volume, pool| match (volume, pool) {
                    (true, _) => Source::Volume,
                    (false, true) => Source::Pool,
                    (false, false) => Source::Default,
                };
                vec![$(($key, $show(now.$field), source(volume.$field.is_some(), pool.$field.is_some()))),*]
            }
        }
    };
}

settings! {
    ack, "ack", parse_ack, write_ack, write_ack, "process or ram",
    "When a write is answered: once the kernel has its journal record, so that it survives the server's process, or once it is in RAM, as from a disk's own cache.";
    compression, "compression", parse_compression, write_compression, write_compression, "lz4, zstd or none",
    "How data are compressed that go to the store from now on.";
    segment_size, "segment-size", parse_segment_size, number, format_size, "4M to 128M, a multiple of 1M",
    "Bytes of data that go to the store as one object.";
    seal_age_ms, "seal-age", |text| parse_duration_ms(text, 1_000, HOUR_MS), format_duration_ms, format_duration_ms, "1s to 1h",
    "After so long data go to the store though they do not fill a segment.";
    undelete_window_ms, "undelete-window", |text| parse_duration_ms(text, 0, 365 * 24 * HOUR_MS), format_duration_ms, format_duration_ms, "0s to 365d",
    "For how long a deleted volume, or what a rollback hid, can be brought back.";
    rewind_window_ms, "rewind-window", |text| parse_duration_ms(text, 0, 30 * 24 * HOUR_MS), format_duration_ms, format_duration_ms, "0s to 30d",
    "Of how much of its past any moment can be brought back.";
    rewind_space, "rewind-space", parse_percent, format_percent, format_percent, "1% to 100%",
    "How much of the volume's size the past that only the rewind window keeps may take: the window is shorter where it would take more.";
    iops_limit, "iops-limit", parse_iops, format_bound, format_bound, "1 to 100000000, or none",
    "Reads, writes and discards that are answered in a second, of all who are attached together.";
    bandwidth_limit, "bandwidth-limit", parse_bandwidth, format_bound, show_bandwidth, "bytes a second, 64K to 1T, or none",
    "Bytes that are read and written in a second, of all who are attached together.";
    limit_burst_ms, "limit-burst", |text| parse_duration_ms(text, 0, HOUR_MS), format_duration_ms, format_duration_ms, "0s to 1h",
    "What the limits allow in so long can be had at once, after as long without requests.";
    cache, "cache", parse_cache, write_cache, write_cache, "read, write or none",
    "What of the volume goes into the node's read cache: what is read from the store; that, and what is written; nothing.";
    cache_quota, "cache-quota", parse_quota, format_bound, show_quota, "1M to 1024T, or none",
    "Bytes of its own data, without what it was cloned from, that the volume may have on the node's cache devices.";
    map_ram, "map-ram", parse_quota, format_bound, show_quota, "1M to 1024T, or none",
    "RAM that nodes of the volume's map may take, within what the node has for maps.";
    mirror, "mirror", parse_mirror, write_mirror, write_mirror, "none, async or sync",
    "What another node of the cluster has to have before something is answered: nothing; what was flushed; every change.";
    mirror_medium, "mirror-medium", parse_medium, write_medium, write_medium, "ram or disk",
    "Where that node keeps it: in RAM; or in its journal, where a flush waits until it is on stable media there too, and where it outlives that node's process.";
    mirror_strict, "mirror-strict", parse_yes, write_yes, write_yes, "yes or no",
    "Whether changes wait while no other node can be the mirror, instead of going on without one.";
}

const HOUR_MS: u64 = 3_600_000;

fn parse_percent(text: &str) -> Option<u64> {
    text.strip_suffix('%')?.parse().ok().filter(|percent| (1..=100).contains(percent))
}

fn format_percent(percent: u64) -> String {
    format!("{percent}%")
}

fn parse_ack(text: &str) -> Option<Ack> {
    match text {
        "process" => Some(Ack::Process),
        "ram" => Some(Ack::Ram),
        _ => None,
    }
}

fn write_ack(ack: Ack) -> String {
    if ack == Ack::Process { "process" } else { "ram" }.to_owned()
}

fn parse_compression(text: &str) -> Option<Compression> {
    match text {
        "lz4" => Some(Compression::Lz4),
        "zstd" => Some(Compression::Zstd),
        "none" => Some(Compression::None),
        _ => None,
    }
}

fn write_compression(compression: Compression) -> String {
    match compression {
        Compression::Lz4 => "lz4",
        Compression::Zstd => "zstd",
        Compression::None => "none",
    }
    .to_owned()
}

fn parse_cache(text: &str) -> Option<CacheMode> {
    match text {
        "read" => Some(CacheMode::Read),
        "write" => Some(CacheMode::Write),
        "none" => Some(CacheMode::None),
        _ => None,
    }
}

fn write_cache(mode: CacheMode) -> String {
    match mode {
        CacheMode::Read => "read",
        CacheMode::Write => "write",
        CacheMode::None => "none",
    }
    .to_owned()
}

fn parse_mirror(text: &str) -> Option<MirrorMode> {
    match text {
        "none" => Some(MirrorMode::None),
        "async" => Some(MirrorMode::Async),
        "sync" => Some(MirrorMode::Sync),
        _ => None,
    }
}

fn write_mirror(mode: MirrorMode) -> String {
    match mode {
        MirrorMode::None => "none",
        MirrorMode::Async => "async",
        MirrorMode::Sync => "sync",
    }
    .to_owned()
}

fn parse_medium(text: &str) -> Option<MirrorMedium> {
    match text {
        "ram" => Some(MirrorMedium::Ram),
        "disk" => Some(MirrorMedium::Disk),
        _ => None,
    }
}

fn write_medium(medium: MirrorMedium) -> String {
    match medium {
        MirrorMedium::Ram => "ram",
        MirrorMedium::Disk => "disk",
    }
    .to_owned()
}

fn parse_yes(text: &str) -> Option<bool> {
    match text {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}

fn write_yes(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}

fn parse_segment_size(text: &str) -> Option<u64> {
    let is_one = |size: &u64| (4 << 20..=128 << 20).contains(size) && size.is_multiple_of(1 << 20);
    parse_size(text).ok().filter(is_one)
}

fn number(number: u64) -> String {
    number.to_string()
}

/// A duration as people write it (`90s`, `5m`, `2h`, `1d`), in milliseconds, where it lies between two bounds.
#[must_use]
pub fn parse_duration_ms(text: &str, least_ms: u64, most_ms: u64) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(split);
    let scale: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => HOUR_MS,
        "d" => 24 * HOUR_MS,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(scale).filter(|ms| (least_ms..=most_ms).contains(ms))
}

fn format_duration_ms(ms: u64) -> String {
    for (unit, scale) in [("d", 24 * HOUR_MS), ("h", HOUR_MS), ("m", 60_000), ("s", 1_000)] {
        if ms > 0 && ms.is_multiple_of(scale) {
            return format!("{}{unit}", ms / scale);
        }
    }
    if ms == 0 { "0s".to_owned() } else { format!("{ms}ms") }
}

fn parse_iops(text: &str) -> Option<u64> {
    if text == "none" { Some(0) } else { text.parse().ok().filter(|limit| (1..=100_000_000).contains(limit)) }
}

fn parse_bandwidth(text: &str) -> Option<u64> {
    let is_one = |limit: &u64| (64 << 10..=1 << 40).contains(limit);
    if text == "none" { Some(0) } else { parse_size(text).ok().filter(is_one) }
}

fn format_bound(bound: u64) -> String {
    if bound == 0 { "none".to_owned() } else { bound.to_string() }
}

fn parse_quota(text: &str) -> Option<u64> {
    let is_one = |quota: &u64| (1 << 20..=1 << 50).contains(quota);
    if text == "none" { Some(0) } else { parse_size(text).ok().filter(is_one) }
}

fn show_quota(quota: u64) -> String {
    if quota == 0 { "none".to_owned() } else { format_size(quota) }
}

fn show_bandwidth(bound: u64) -> String {
    if bound == 0 { "none".to_owned() } else { format!("{}/s", format_size(bound)) }
}

impl Settings {
    /// The age at which a layer is sealed.
    #[must_use]
    pub const fn seal_age(&self) -> Duration {
        Duration::from_millis(self.seal_age_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volume_goes_before_pool_before_default() {
        let (mut volume, mut pool) = (Overrides::default(), Overrides::default());
        pool.set("compression", "zstd").unwrap();
        pool.set("segment-size", "8M").unwrap();
        volume.set("segment-size", "16M").unwrap();
        volume.set("undelete-window", "0s").unwrap();
        let now = Settings::resolve(&volume, &pool);
        assert_eq!((now.compression, now.segment_size, now.ack), (Compression::Zstd, 16 << 20, Ack::Process));
        let rows = Settings::describe(&volume, &pool);
        assert_eq!(rows.iter().map(|r| r.0).collect::<Vec<_>>(), Overrides::KEYS);
        assert_eq!(rows[2], ("segment-size", "16 MiB".to_owned(), Source::Volume));
        assert_eq!(rows[4], ("undelete-window", "0s".to_owned(), Source::Volume));
        volume.set("segment-size", "default").unwrap();
        assert_eq!(Settings::resolve(&volume, &pool).segment_size, 8 << 20);
    }

    #[test]
    fn pairs_are_what_set_takes() {
        let mut all = Overrides::default();
        let values = [
            "ram", "zstd", "8M", "1500ms", "2d", "3h", "35%", "500", "none", "0s", "write", "1G", "2G", "sync", "disk",
            "yes",
        ];
        assert_eq!(values.len(), Overrides::KEYS.len());
        Overrides::KEYS.into_iter().zip(values).for_each(|(key, value)| all.set(key, value).unwrap());
        let mut copy = Overrides::default();
        all.pairs().iter().for_each(|(key, value)| copy.set(key, value).unwrap());
        assert_eq!((copy, all.pairs().len()), (all, Overrides::KEYS.len()));
    }

    #[test]
    fn wrong_settings_are_refused_by_name() {
        let mut o = Overrides::default();
        for (key, value) in [
            ("ack", "disk"),
            ("segment-size", "3M"),
            ("segment-size", "4.5M"),
            ("seal-age", "0s"),
            ("size", "1"),
            ("rewind-window", "31d"),
            ("rewind-space", "20"),
            ("rewind-space", "0%"),
            ("rewind-space", "101%"),
            ("iops-limit", "0"),
            ("iops-limit", "1k"),
            ("bandwidth-limit", "1K"),
            ("limit-burst", "2h"),
            ("cache", "always"),
            ("cache-quota", "4K"),
            ("map-ram", "1K"),
        ] {
            let error = o.set(key, value).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
        assert_eq!(o, Overrides::default());
    }
}
