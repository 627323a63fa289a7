// SPDX-License-Identifier: Apache-2.0
//! Sizes as people write them: `512`, `64K`, `10G`, `1.5TiB`; the units are binary.

use crate::{MAX_VOLUME, SECTOR};

/// A text that is not a size, or a size that is not allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a valid size: {reason}")]
pub struct SizeError {
    text: String,
    reason: &'static str,
}

/// Bytes of a size such as `10G`. A number and a unit: none or `B` (bytes), `K`, `M`, `G`, `T`, each with `B` or `iB` behind it or not.
///
/// # Errors
/// When the text is not such a size, is not a whole number of bytes, or does not fit 64 bits.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let fail = |reason| SizeError { text: text.chars().take(80).collect(), reason };
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(fail("the unit must be one of K, M, G, T")),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: u128 = whole.parse().map_err(|_| fail("it must begin with a number"))?;
    let mut bytes = whole.checked_mul(1 << shift).ok_or_else(|| fail("it is too large"))?;
    if number.contains('.') {
        if fraction.is_empty() || fraction.len() > 15 {
            return Err(fail("it must begin with a number"));
        }
        let digits: u128 = fraction.parse().map_err(|_| fail("it must begin with a number"))?;
        let scale = 10u128.pow(u32::try_from(fraction.len()).unwrap_or(u32::MAX));
        let part = digits << shift;
        if !part.is_multiple_of(scale) {
            return Err(fail("it is not a whole number of bytes"));
        }
        bytes += part / scale;
    }
    u64::try_from(bytes).map_err(|_| fail("it is too large"))
}

/// Bytes of a volume's size: as [`parse_size`], and more than zero, a multiple of 512, and at most 64 TiB.
///
/// # Errors
/// When it is no size or breaks one of these rules.
pub fn parse_volume_size(text: &str) -> Result<u64, SizeError> {
    let bytes = parse_size(text)?;
    check_volume_size(bytes).map_err(|reason| SizeError { text: text.to_owned(), reason })?;
    Ok(bytes)
}

fn check_volume_size(bytes: u64) -> Result<(), &'static str> {
    if bytes == 0 {
        Err("a volume can not have the size zero")
    } else if !bytes.is_multiple_of(SECTOR) {
        Err("a volume's size is a multiple of 512 bytes")
    } else if bytes > MAX_VOLUME {
        Err("a volume is at most 64 TiB")
    } else {
        Ok(())
    }
}

/// The size as a person reads it: the largest binary unit, with at most one decimal (`10 GiB`, `1.5 MiB`, `512 B`).
#[must_use]
pub fn format_size(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    for (unit, shift) in UNITS {
        if bytes >> shift > 0 {
            let tenths = ((u128::from(bytes) * 10) >> shift) as u64;
            return if tenths.is_multiple_of(10) {
                format!("{} {unit}", tenths / 10)
            } else {
                format!("{}.{} {unit}", tenths / 10, tenths % 10)
            };
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_prints_sizes() {
        for (text, bytes) in
            [("0", 0), ("512", 512), ("4k", 4096), ("10G", 10 << 30), ("1.5TiB", 3 << 39), ("64T", 64 << 40)]
        {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        for bad in ["", "G", "1X", "-1", "1..2", "1.", "0.3", "99999999999T", "1 G", "1.5"] {
            assert!(parse_size(bad).is_err(), "{bad:?}");
        }
        for bad in ["0", "100", "65T", "513"] {
            assert!(parse_volume_size(bad).is_err(), "{bad:?}");
        }
        assert_eq!(format_size(10 << 30), "10 GiB");
        assert_eq!(format_size(3 << 39), "1.5 TiB");
        assert_eq!(format_size(100), "100 B");
    }
}
