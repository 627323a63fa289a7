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
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ack: Ack::Process,
            compression: Compression::Lz4,
            segment_size: 64 << 20,
            seal_age_ms: 60_000,
            undelete_window_ms: 3_600_000,
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

/// Parses a duration such as `500ms`, `10s`, `5m`, `1h`, `2d` into milliseconds.
fn parse_duration_ms(text: &str) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(split);
    let scale: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(scale)
}

fn format_duration_ms(ms: u64) -> String {
    for (unit, scale) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
        if ms > 0 && ms.is_multiple_of(scale) {
            return format!("{}{unit}", ms / scale);
        }
    }
    if ms == 0 { "0s".to_owned() } else { format!("{ms}ms") }
}

impl Overrides {
    /// Every key, in the order of display.
    pub const KEYS: [&'static str; 5] = ["ack", "compression", "segment-size", "seal-age", "undelete-window"];

    /// What is set, as pairs of key and value that [`set`](Self::set) takes.
    #[must_use]
    pub fn pairs(&self) -> Vec<(&'static str, String)> {
        let ack = self.ack.map(|ack| if ack == Ack::Process { "process" } else { "ram" }.to_owned());
        let compression = self.compression.map(|compression| {
            match compression {
                Compression::Lz4 => "lz4",
                Compression::Zstd => "zstd",
                Compression::None => "none",
            }
            .to_owned()
        });
        let values = [
            ack,
            compression,
            self.segment_size.map(|size| size.to_string()),
            self.seal_age_ms.map(format_duration_ms),
            self.undelete_window_ms.map(format_duration_ms),
        ];
        Self::KEYS.into_iter().zip(values).filter_map(|(key, value)| Some((key, value?))).collect()
    }

    /// Sets `key` from its text form; the value `default` clears it.
    ///
    /// # Errors
    /// When there is no such key, or it does not take the value.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), SettingError> {
        let clear = value == "default";
        let bad = |key, expected| SettingError::Value { key, value: value.to_owned(), expected };
        match key {
            "ack" if clear => self.ack = None,
            "ack" => {
                self.ack = Some(match value {
                    "process" => Ack::Process,
                    "ram" => Ack::Ram,
                    _ => return Err(bad("ack", "process or ram")),
                });
            }
            "compression" if clear => self.compression = None,
            "compression" => {
                self.compression = Some(match value {
                    "lz4" => Compression::Lz4,
                    "zstd" => Compression::Zstd,
                    "none" => Compression::None,
                    _ => return Err(bad("compression", "lz4, zstd or none")),
                });
            }
            "segment-size" if clear => self.segment_size = None,
            "segment-size" => {
                let expected = "4M to 128M, a multiple of 1M";
                let size = parse_size(value).map_err(|_| bad("segment-size", expected))?;
                if !(4 << 20..=128 << 20).contains(&size) || !size.is_multiple_of(1 << 20) {
                    return Err(bad("segment-size", expected));
                }
                self.segment_size = Some(size);
            }
            "seal-age" if clear => self.seal_age_ms = None,
            "seal-age" => {
                let ms = parse_duration_ms(value).filter(|ms| (1_000..=3_600_000).contains(ms));
                self.seal_age_ms = Some(ms.ok_or_else(|| bad("seal-age", "1s to 1h"))?);
            }
            "undelete-window" if clear => self.undelete_window_ms = None,
            "undelete-window" => {
                let ms = parse_duration_ms(value).filter(|ms| *ms <= 365 * 86_400_000);
                self.undelete_window_ms = Some(ms.ok_or_else(|| bad("undelete-window", "0s to 365d"))?);
            }
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
        Self {
            ack: volume.ack.or(pool.ack).unwrap_or(default.ack),
            compression: volume.compression.or(pool.compression).unwrap_or(default.compression),
            segment_size: volume.segment_size.or(pool.segment_size).unwrap_or(default.segment_size),
            seal_age_ms: volume.seal_age_ms.or(pool.seal_age_ms).unwrap_or(default.seal_age_ms),
            undelete_window_ms: volume
                .undelete_window_ms
                .or(pool.undelete_window_ms)
                .unwrap_or(default.undelete_window_ms),
        }
    }

    /// Rows of (key, value, source) for display, in the order of [`Overrides::KEYS`].
    #[must_use]
    pub fn describe(volume: &Overrides, pool: &Overrides) -> Vec<(&'static str, String, Source)> {
        fn source<T>(volume: Option<T>, pool: Option<T>) -> Source {
            match (volume, pool) {
                (Some(_), _) => Source::Volume,
                (None, Some(_)) => Source::Pool,
                (None, None) => Source::Default,
            }
        }
        let now = Self::resolve(volume, pool);
        let ack = match now.ack {
            Ack::Process => "process",
            Ack::Ram => "ram",
        };
        let compression = match now.compression {
            Compression::Lz4 => "lz4",
            Compression::Zstd => "zstd",
            Compression::None => "none",
        };
        vec![
            ("ack", ack.to_owned(), source(volume.ack, pool.ack)),
            ("compression", compression.to_owned(), source(volume.compression, pool.compression)),
            ("segment-size", format_size(now.segment_size), source(volume.segment_size, pool.segment_size)),
            ("seal-age", format_duration_ms(now.seal_age_ms), source(volume.seal_age_ms, pool.seal_age_ms)),
            (
                "undelete-window",
                format_duration_ms(now.undelete_window_ms),
                source(volume.undelete_window_ms, pool.undelete_window_ms),
            ),
        ]
    }

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
        let values = ["ram", "zstd", "8M", "1500ms", "2d"];
        Overrides::KEYS.into_iter().zip(values).for_each(|(key, value)| all.set(key, value).unwrap());
        let mut copy = Overrides::default();
        all.pairs().iter().for_each(|(key, value)| copy.set(key, value).unwrap());
        assert_eq!((copy, all.pairs().len()), (all, Overrides::KEYS.len()));
    }

    #[test]
    fn wrong_settings_are_refused_by_name() {
        let mut o = Overrides::default();
        for (key, value) in
            [("ack", "disk"), ("segment-size", "3M"), ("segment-size", "4.5M"), ("seal-age", "0s"), ("size", "1")]
        {
            let error = o.set(key, value).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
        assert_eq!(o, Overrides::default());
    }
}
