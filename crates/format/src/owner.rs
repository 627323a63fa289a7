// SPDX-License-Identifier: Apache-2.0
//! The pool's chain of owners: objects `owner/N`, each put
//! once, conditionally. The highest N that exists says
//! which cluster the pool belongs to.

use crate::FormatError;
use crate::codec::{Decoder, Encoder};
use crate::crc::crc;
use varve_types::ClusterId;

const MAGIC: &[u8; 8] = b"VARVEOWN";
const VERSION: u32 = 1;

/// One link of the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerRecord {
    /// Its number; the first is 1.
    pub number: u64,
    /// The cluster that the pool belongs to from here on.
    pub cluster: ClusterId,
    /// When it was put, in milliseconds since 1970.
    pub created_ms: u64,
}

impl OwnerRecord {
    /// The name of the object with this number.
    #[must_use]
    pub fn name(number: u64) -> String {
        format!("owner/{number}")
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::new();
        e.raw(MAGIC);
        e.u32(VERSION);
        e.u64(self.number);
        e.raw(&self.cluster.to_bytes());
        e.u64(self.created_ms);
        let mut bytes = e.finish();
        let sum = crc(&bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads one.
    ///
    /// # Errors
    /// When it is damaged or of a version that is not known.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut d = Decoder::new("pool owner record", bytes);
        if &d.array::<8>()? != MAGIC {
            return Err(d.corrupt("it does not begin with VARVEOWN"));
        }
        let found = d.u32()?;
        if found != VERSION {
            let mut ours = bytes.to_vec();
            ours[8..12].copy_from_slice(&VERSION.to_le_bytes());
            return Err(FormatError::version("the pool's owner record", found, VERSION, Self::decode(&ours).is_ok()));
        }
        let this = Self { number: d.u64()?, cluster: ClusterId::from_bytes(d.array()?), created_ms: d.u64()? };
        let sum = d.u32()?;
        d.end()?;
        if crc(&bytes[..bytes.len() - 4]) != sum {
            return Err(FormatError::new("pool owner record", "its checksum does not match"));
        }
        Ok(this)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_and_any_flipped_bit_is_seen() {
        let record = OwnerRecord { number: 2, cluster: ClusterId::from_bytes([5; 16]), created_ms: 6 };
        let bytes = record.encode();
        assert_eq!(OwnerRecord::decode(&bytes).unwrap(), record);
        for bit in 0..bytes.len() * 8 {
            let mut copy = bytes.clone();
            copy[bit / 8] ^= 1 << (bit % 8);
            assert!(OwnerRecord::decode(&copy).is_err());
        }
    }
}
