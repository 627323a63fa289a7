// SPDX-License-Identifier: Apache-2.0
//! A pair of nodes, each the mirror of the other, and an edge whose volume goes from one to the other.
//!
//! [`run`] is a scenario for seeds, beside the [`swarm`](crate::swarm): nodes die, lose power, stall and are cut off, and the edge has to read what it was
//! answered. [`pair`] and [`Member`] are for tests that know what they want.

mod member;
mod run;

pub use member::{JOINED, Member, SIZE, pair};
pub use run::run;
