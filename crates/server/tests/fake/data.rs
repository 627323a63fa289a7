// SPDX-License-Identifier: Apache-2.0
//! What is in the volumes of the node in memory.

use super::{Blocks, State};
use bytes::{Bytes, BytesMut};
use varve_server::api::ControlError;
use varve_server::api::model::{Extent, ExtentMap, Target};
use varve_types::{BLOCK, ErrorKind, Name};

/// Fewer than the API allows, so that clients have to ask again.
const MOST_EXTENTS: usize = 5;

fn inside(size: u64, offset: u64, len: u64) -> Result<(), ControlError> {
    if offset + len <= size { Ok(()) } else { Err(ControlError::invalid("the range lies beyond the end")) }
}

impl State {
    pub(super) fn contents(&mut self, target: &Target) -> Result<(u64, &Blocks), ControlError> {
        let volume = self.live(&target.volume)?;
        let Some(snapshot) = &target.snapshot else { return Ok((volume.size, &volume.blocks)) };
        let found = volume.snapshots.iter().find(|(at, _)| at.name == *snapshot);
        let (at, blocks) = found.ok_or_else(|| ControlError::not_found("snapshot", snapshot))?;
        Ok((at.size_bytes, blocks))
    }

    pub(super) fn read(&mut self, target: &Target, offset: u64, len: u32) -> Result<Bytes, ControlError> {
        let (size, blocks) = self.contents(target)?;
        inside(size, offset, u64::from(len))?;
        let mut out = BytesMut::zeroed(len as usize);
        let first = offset / BLOCK;
        for (index, block) in blocks.range(first..(offset + u64::from(len)).div_ceil(BLOCK)) {
            let start = (index * BLOCK).max(offset);
            let end = ((index + 1) * BLOCK).min(offset + u64::from(len));
            out[(start - offset) as usize..(end - offset) as usize]
                .copy_from_slice(&block[(start - index * BLOCK) as usize..(end - index * BLOCK) as usize]);
        }
        Ok(out.freeze())
    }

    pub(super) fn write(&mut self, volume: &Name, offset: u64, data: &[u8]) -> Result<(), ControlError> {
        let full = volume.as_str() == "full";
        let volume = self.live(volume)?;
        inside(volume.size, offset, data.len() as u64)?;
        if full && volume.written > 1 << 20 {
            return Err(ControlError::new(ErrorKind::NoSpace, "the store is full"));
        }
        volume.writes += 1;
        volume.written += data.len() as u64;
        let mut at = 0;
        while at < data.len() {
            let (block, start) = ((offset + at as u64) / BLOCK, ((offset + at as u64) % BLOCK) as usize);
            let len = (BLOCK as usize - start).min(data.len() - at);
            let into = volume.blocks.entry(block).or_insert_with(|| vec![0; BLOCK as usize]);
            into[start..start + len].copy_from_slice(&data[at..at + len]);
            at += len;
        }
        Ok(())
    }

    pub(super) fn zero(&mut self, volume: &Name, offset: u64, len: u64) -> Result<(), ControlError> {
        let volume = self.live(volume)?;
        inside(volume.size, offset, len)?;
        volume.blocks.retain(|block, _| block * BLOCK < offset || (block + 1) * BLOCK > offset + len);
        Ok(())
    }

    pub(super) fn extents(&mut self, target: &Target, offset: u64, len: u64) -> Result<ExtentMap, ControlError> {
        let (size_bytes, blocks) = self.contents(target)?;
        inside(size_bytes, offset, len)?;
        let mut map = ExtentMap { size_bytes, offset_bytes: offset, extents: Vec::new() };
        let (mut at, end) = (offset, offset + len);
        while at < end && map.extents.len() < MOST_EXTENTS {
            let hole = !blocks.contains_key(&(at / BLOCK));
            let mut next = (at / BLOCK + 1) * BLOCK;
            if hole {
                next = blocks.range(at / BLOCK..).next().map_or(end, |(block, _)| block * BLOCK);
            } else {
                while next < end && blocks.contains_key(&(next / BLOCK)) {
                    next += BLOCK;
                }
            }
            map.extents.push(Extent { len_bytes: next.min(end) - at, hole });
            at = next.min(end);
        }
        Ok(map)
    }
}
