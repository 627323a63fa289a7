// SPDX-License-Identifier: Apache-2.0
//! What the program is told on its command line, and the sizes that are fixed.

use crate::rig::Outcome;
use varve_types::parse_size;

/// The volume that is there to be compared with.
pub const SMALL: u64 = 1 << 30;
/// The volume whose map has a bound.
pub const LARGE: u64 = 64 << 40;
/// That bound.
pub const MAP_RAM: u64 = 1 << 30;

/// See the module.
pub struct Arguments {
    /// Bytes of the large volume of the map.
    pub size: u64,
    /// Snapshots and clones that are taken by the clock.
    pub rounds: u64,
    /// It is overwritten by one part of so many.
    pub part: u64,
    /// If that is all that is measured: bytes that are mapped of a volume with a bound.
    pub mapped: Option<u64>,
    /// If that is all that is measured: bytes of the volume that is deleted.
    pub delete: Option<u64>,
}

impl Arguments {
    /// Reads them.
    pub fn parse(mut from: impl Iterator<Item = String>) -> Outcome<Self> {
        let mut this = Self { size: 64 << 30, rounds: 20, part: 1, mapped: None, delete: None };
        while let Some(argument) = from.next() {
            let mut value = || from.next().ok_or_else(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--size" => this.size = parse_size(&value()?)?,
                "--part" => this.part = value()?.parse()?,
                "--mapped" => this.mapped = Some(parse_size(&value()?)?),
                "--delete" => this.delete = Some(parse_size(&value()?)?),
                "--rounds" => this.rounds = value()?.parse()?,
                _ => {
                    return Err(format!(
                        "what is {argument:?}? There are --size SIZE, --rounds N, --part N, --mapped SIZE and --delete SIZE"
                    )
                    .into());
                }
            }
        }
        if !this.size.is_power_of_two() || this.size < SMALL || this.rounds == 0 || this.part == 0 {
            return Err("the size is a power of two, at least 1G; there is a round and a part".into());
        }
        if this.mapped.is_some_and(|size| !size.is_power_of_two() || !(SMALL..=LARGE).contains(&size)) {
            return Err("what is mapped is a power of two, from 1G to 64T".into());
        }
        if this.delete.is_some_and(|size| !size.is_power_of_two() || !(64 * SMALL..=LARGE).contains(&size)) {
            return Err("what is deleted is a power of two, from 64G to 64T".into());
        }
        Ok(this)
    }
}
