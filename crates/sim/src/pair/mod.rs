// SPDX-License-Identifier: Apache-2.0
//! A pair of nodes, each the mirror of the other, and a client whose volume goes from one to the other.
//!
//! [`run()`] is a scenario for seeds, beside the [`swarm`](crate::swarm): whatever happens to the nodes and between them, the client has to read what it was
//! answered. [`pair`] and [`Member`] are for tests that know what they want.
//!
//! | file | holds |
//! |---|---|
//! | `member` | a node, its processes, its ends of the network |
//! | `serve` | a node as its clients see it |
//! | `edge`, `plain` | the two kinds of clients |
//! | `guest` | what is asked, and what may be answered |
//! | `fault` | what happens |
//! | `others` | more than one edge |
//! | `run` | a seed |

mod edge;
mod fault;
mod guest;
mod member;
mod others;
mod plain;
mod run;
mod serve;

pub use member::{JOINED, Member, SIZE, pair};
pub(crate) use run::run_logged;
pub use run::{PairReport, run};
