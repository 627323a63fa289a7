// SPDX-License-Identifier: Apache-2.0
//! Where the owner may be, and when to try there next.
//!
//! The addresses are tried in turn: the first attempt after a loss at once, the next after a pause that doubles with each one, until a connection has been of use for as
//! long as the longest pause: one that comes about and breaks at once is no success. An address that a node named goes first,
//! at once too, but only [`HOPS`] times in a row: nodes that send an edge in a circle are tried with pauses like any other. Addresses that were named are remembered,
//! [`MOST`] in all, so that the volume is found again when every node that the person knew of is gone.

use super::terms::Terms;
use std::time::Duration;

/// Most addresses that are remembered.
const MOST: usize = 64;
/// How often in a row an address that was named is tried without a pause.
const HOPS: u32 = 4;

/// See the module.
#[derive(Debug)]
pub(crate) struct Reach {
    addresses: Vec<String>,
    /// The one that is tried, or connected.
    at: usize,
    /// Where a node said that the owner is.
    named: Option<String>,
    hops: u32,
    pause: Duration,
    /// Nothing has failed since all was well.
    is_fresh: bool,
}

impl Reach {
    /// None of `addresses` is no use: nothing can ever be reached.
    pub(crate) fn new(mut addresses: Vec<String>) -> Self {
        addresses.truncate(MOST);
        Self { addresses, at: 0, named: None, hops: 0, pause: Duration::ZERO, is_fresh: true }
    }

    /// The address to try now.
    pub(crate) fn address(&mut self) -> String {
        if let Some(named) = self.named.take() {
            self.at = self.addresses.iter().position(|known| *known == named).unwrap_or_else(|| {
                if self.addresses.len() == MOST {
                    self.addresses.pop();
                }
                self.addresses.push(named);
                self.addresses.len() - 1
            });
        }
        self.addresses.get(self.at).cloned().unwrap_or_default()
    }

    /// A node said where the owner is. Whether to try there at once.
    pub(crate) fn name(&mut self, address: String) -> bool {
        if address.is_empty() {
            return false;
        }
        self.named = Some(address);
        self.hops += 1;
        self.hops <= HOPS
    }

    /// The next address is the next one's turn.
    pub(crate) fn turn(&mut self) {
        if self.named.is_none() && !self.addresses.is_empty() {
            self.at = (self.at + 1) % self.addresses.len();
        }
    }

    /// The pause before the next attempt.
    pub(crate) fn pause(&mut self, terms: &Terms) -> Duration {
        self.pause = (self.pause * 2).clamp(terms.pause_least.min(terms.pause_most), terms.pause_most);
        (self.hops, self.is_fresh) = (0, false);
        self.pause
    }

    /// Whether the next attempt may be made at once: only the first since all was well.
    pub(crate) fn take_fresh(&mut self) -> bool {
        std::mem::take(&mut self.is_fresh)
    }

    /// All is well, and has been for a while: the next loss begins anew.
    pub(crate) fn settled(&mut self) {
        (self.pause, self.hops, self.is_fresh) = (Duration::ZERO, 0, true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_begin_anew() {
        let (terms, mut reach) = (Terms::default(), Reach::new(vec!["a".into()]));
        let pauses: Vec<u128> = (0..7).map(|_| reach.pause(&terms).as_millis()).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1000, 1000]);
        assert!(!reach.take_fresh());
        reach.settled();
        assert!(reach.take_fresh() && !reach.take_fresh());
        assert_eq!(reach.pause(&terms).as_millis(), 50);
    }

    #[test]
    fn a_named_address_goes_first_and_is_remembered() {
        let mut reach = Reach::new(vec!["a".into(), "b".into()]);
        assert_eq!(reach.address(), "a");
        reach.turn();
        assert_eq!(reach.address(), "b");
        assert!(reach.name("c".into()));
        reach.turn();
        assert_eq!(reach.address(), "c");
        reach.turn();
        assert_eq!(reach.address(), "a");
        assert!(!reach.name(String::new()));
    }

    #[test]
    fn a_circle_is_walked_with_pauses_and_what_is_remembered_is_bounded() {
        let mut reach = Reach::new(vec!["a".into()]);
        let at_once = (0..10).filter(|at| reach.name(format!("node-{at}"))).count();
        assert_eq!(at_once, HOPS as usize);
        for at in 0..3 * MOST {
            reach.name(format!("node-{at}"));
            assert_eq!(reach.address(), format!("node-{at}"));
        }
        assert_eq!(reach.addresses.len(), MOST);
    }
}
