// SPDX-License-Identifier: Apache-2.0
//! Manifests and the records of a pool's owner.

use crate::{bounded, choose, put_u32};
use varve_format::crc::crc;
use varve_format::manifest::Manifest;
use varve_format::owner::OwnerRecord;
use varve_types::MAX_VOLUME;

/// See the module.
pub fn check(data: &[u8]) {
    let Some((choice, rest)) = choose(data, 4) else { return };
    match choice {
        0 => manifest(rest),
        1 => manifest(&mended_manifest(rest)),
        2 => owner(rest),
        _ => owner(&mended_owner(rest)),
    }
}

fn manifest(bytes: &[u8]) {
    let Ok(manifest) = bounded(bytes.len(), || Manifest::decode(bytes)) else { return };
    assert!(manifest.size <= MAX_VOLUME);
    assert!(manifest.ancestors.iter().any(|a| a.lineage == manifest.own && a.timeline == manifest.timeline));
    assert!(manifest.cuts.iter().chain(&manifest.inherited).all(|row| row.first <= row.end));
    assert!(manifest.maps.iter().all(|map| map.live <= map.records));
    let again = manifest.encode();
    assert!(again.len() <= bytes.len(), "the shortest form is longer than another");
    assert_eq!(Manifest::decode(&again).as_ref(), Ok(&manifest));
}

fn mended_manifest(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if bytes.len() < 16 {
        return bytes;
    }
    // The first version leaves out what stands in front of the checksum.
    put_u32(&mut bytes, 12, 0);
    let from = if bytes[8..12] == 1u32.to_le_bytes() { 16 } else { 0 };
    let sum = crc(&bytes[from..]);
    put_u32(&mut bytes, 12, sum);
    bytes
}

/// The form has no lengths, so there is one way to write a record.
fn owner(bytes: &[u8]) {
    if let Ok(record) = bounded(bytes.len(), || OwnerRecord::decode(bytes)) {
        assert_eq!(record.encode(), bytes);
    }
}

fn mended_owner(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if let Some(at) = bytes.len().checked_sub(4) {
        let sum = crc(&bytes[..at]);
        put_u32(&mut bytes, at, sum);
    }
    bytes
}
