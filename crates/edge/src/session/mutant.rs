// SPDX-License-Identifier: Apache-2.0
//! Bugs that the tests plant, to see that they would be found. In what ships [`Session::is`] is a constant `false`.

use super::Session;

/// A rule that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// Changes that overlap are under way at once.
    OverlapAllowed,
    /// What was acknowledged is not kept.
    KeptDroppedTooEarly,
    /// What is kept is sent again from behind.
    ReplayOutOfOrder,
    /// Requests go before what is kept.
    UnansweredBeforeKept,
    /// Replies of an older connection are believed.
    OldConnectionBelieved,
    /// What counts is forgotten, though it is not safe.
    CountedForgotten,
    /// A change that took too long is forgotten, though it was sent.
    OverdueForgotten,
    /// Reads do not wait until what is kept was answered.
    ReadsBeforeKept,
    /// Reads do not wait until changes that were sent before were answered.
    ReadsBeforeUnanswered,
}

impl Mutant {
    /// Every one.
    #[cfg(test)]
    pub(crate) const ALL: [Self; 9] = [
        Self::OverlapAllowed,
        Self::KeptDroppedTooEarly,
        Self::ReplayOutOfOrder,
        Self::UnansweredBeforeKept,
        Self::OldConnectionBelieved,
        Self::CountedForgotten,
        Self::OverdueForgotten,
        Self::ReadsBeforeKept,
        Self::ReadsBeforeUnanswered,
    ];
}

impl Session {
    /// Whether this bug is planted.
    #[cfg(not(test))]
    #[inline(always)]
    #[allow(clippy::unused_self, reason = "the tests look into it")]
    pub(crate) const fn is(&self, _mutant: Mutant) -> bool {
        false
    }

    /// Whether this bug is planted.
    #[cfg(test)]
    pub(crate) fn is(&self, mutant: Mutant) -> bool {
        self.planted == Some(mutant)
    }

    #[cfg(test)]
    pub(crate) fn plant(&mut self, mutant: Option<Mutant>) {
        self.planted = mutant;
    }
}
