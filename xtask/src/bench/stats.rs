// SPDX-License-Identifier: Apache-2.0
//! Samples by row, target and round; medians and spreads of them; ratios taken round by round.
//!
//! A ratio is taken between two samples of the same round, for those were measured close together, and only then is the
//! median taken: a drift of the machine between rounds cancels out.

use serde::Serialize;
use std::collections::BTreeMap;

/// Median and spread of some samples.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The one in the middle, or the mean of the two.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// All, in the order of the rounds.
    pub samples: Vec<f64>,
}

impl Spread {
    /// Of at least one sample.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Some(Self { median, min, max, samples: samples.to_vec() })
    }
}

/// All that was measured: (row, target) → round → value.
#[derive(Default)]
pub struct Samples {
    values: BTreeMap<(&'static str, &'static str), BTreeMap<u32, f64>>,
}

impl Samples {
    /// Adds one; a second of the same row, target and round replaces it.
    pub fn add(&mut self, row: &'static str, target: &'static str, round: u32, value: f64) {
        self.values.entry((row, target)).or_default().insert(round, value);
    }

    /// The spread of one row of one target, if it was measured.
    pub fn spread(&self, row: &str, target: &str) -> Option<Spread> {
        let rounds = self.rounds(row, target)?;
        Spread::of(&rounds.values().copied().collect::<Vec<_>>())
    }

    /// The spread of the ratios of two rows, round by round.
    pub fn ratio(&self, (row, target): (&str, &str), (by_row, by_target): (&str, &str)) -> Option<Spread> {
        let by = self.rounds(by_row, by_target)?;
        let ratios: Vec<f64> = self
            .rounds(row, target)?
            .iter()
            .filter_map(|(round, value)| by.get(round).filter(|by| **by > 0.0).map(|by| value / by))
            .collect();
        Spread::of(&ratios)
    }

    fn rounds(&self, row: &str, target: &str) -> Option<&BTreeMap<u32, f64>> {
        self.values.iter().find(|((r, t), _)| *r == row && *t == target).map(|(_, rounds)| rounds)
    }
}

/// A number as people read it: three digits that count, thousands as `k`.
pub fn short(value: f64) -> String {
    let (scaled, unit) = if value.abs() >= 1e6 {
        (value / 1e6, "M")
    } else if value.abs() >= 1e4 {
        (value / 1e3, "k")
    } else {
        (value, "")
    };
    let digits = match scaled.abs() {
        s if s >= 100.0 => 0,
        s if s >= 10.0 => 1,
        s if s >= 0.1 || s == 0.0 => 2,
        _ => 4,
    };
    format!("{scaled:.digits$}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(Spread::of(&[]), None);
        let odd = Spread::of(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!((odd.median, odd.min, odd.max), (2.0, 1.0, 3.0));
        assert_eq!(odd.samples, [3.0, 1.0, 2.0]);
        assert!((Spread::of(&[1.0, 2.0, 4.0, 9.0]).unwrap().median - 3.0).abs() < 1e-9);
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        let mut samples = Samples::default();
        for (round, speed) in [(0, 1.0), (1, 10.0), (2, 100.0)] {
            samples.add("w", "a", round, 2.0 * speed);
            samples.add("w", "b", round, speed);
        }
        samples.add("w", "a", 3, 1000.0);
        let ratio = samples.ratio(("w", "a"), ("w", "b")).unwrap();
        assert_eq!((ratio.median, ratio.min, ratio.max, ratio.samples.len()), (2.0, 2.0, 2.0, 3));
        assert!(samples.ratio(("w", "a"), ("w", "c")).is_none());
    }

    #[test]
    fn numbers_are_short() {
        let cases =
            [(0.0, "0.00"), (0.0123, "0.0123"), (1.5, "1.50"), (15.25, "15.2"), (9999.0, "9999"), (12345.0, "12.3k")];
        for (value, text) in cases {
            assert_eq!(short(value), text);
        }
        assert_eq!(short(2_500_000.0), "2.50M");
    }
}
