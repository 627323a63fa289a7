// SPDX-License-Identifier: Apache-2.0
//! What is done to a cluster: a role is killed, stopped, or cut off one way or both.
//!
//! Every fault has an undoing, after which all is as it was. The edge is not killed: what it shows dies with it, as a guest's RAM does with the guest.

use crate::fleet::{Fleet, Way, Who};
use anyhow::Result;
use std::fmt;

/// Who it is done to: by what it is to the volume when it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The node that runs the volume.
    Owner,
    /// The node that has the copy of its tail.
    Mirror,
    /// Coordination.
    Etcd,
    /// What shows the volume to its guest.
    Edge,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// SIGKILL.
    Kill,
    /// SIGSTOP.
    Stop,
    /// Nothing goes that way.
    Cut(Way),
}

const ROLES: [Role; 4] = [Role::Owner, Role::Mirror, Role::Etcd, Role::Edge];
const HARMS: [Harm; 5] = [Harm::Kill, Harm::Stop, Harm::Cut(Way::Both), Harm::Cut(Way::In), Harm::Cut(Way::Out)];

/// Something that is done to somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub role: Role,
    pub harm: Harm,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = match self.role {
            Role::Owner => "owner",
            Role::Mirror => "mirror",
            Role::Etcd => "etcd",
            Role::Edge => "edge",
        };
        let harm = match self.harm {
            Harm::Kill => "kill",
            Harm::Stop => "stop",
            Harm::Cut(Way::Both) => "cut",
            Harm::Cut(Way::In) => "cut-in",
            Harm::Cut(Way::Out) => "cut-out",
        };
        f.pad(&format!("{role}-{harm}"))
    }
}

/// Each fault there is.
fn all() -> Vec<Fault> {
    let of = |role| HARMS.into_iter().map(move |harm| Fault { role, harm });
    let possible = |fault: &Fault| (fault.role, fault.harm) != (Role::Edge, Harm::Kill);
    ROLES.into_iter().flat_map(of).filter(possible).collect()
}

/// Each fault alone, and each pair of faults of two roles.
pub fn combinations() -> Vec<Vec<Fault>> {
    let all = all();
    let alone = all.iter().map(|fault| vec![*fault]);
    let pairs = all.iter().enumerate().flat_map(|(at, one)| {
        let others = all[at + 1..].iter().filter(|other| other.role != one.role);
        others.map(|other| vec![*one, *other])
    });
    alone.chain(pairs).collect()
}

impl Fault {
    /// Does it to somebody.
    pub fn strike(self, fleet: &mut Fleet, who: Who) -> Result<()> {
        match self.harm {
            Harm::Kill => fleet.kill(who),
            Harm::Stop => fleet.stop(who),
            Harm::Cut(way) => fleet.cut(who, way),
        }
    }

    /// Undoes it. Who was killed is started again, for which all others have to be well.
    pub fn undo(self, fleet: &mut Fleet, who: Who) -> Result<()> {
        match (self.harm, who) {
            (Harm::Kill, Who::Node(number)) => fleet.start_node(number),
            (Harm::Kill, _) => fleet.start_etcd(),
            (Harm::Stop, _) => fleet.go_on(who),
            (Harm::Cut(way), _) => fleet.heal(who, way),
        }
    }

    /// What is undone first.
    pub const fn order(self) -> u8 {
        match (self.harm, self.role) {
            (Harm::Stop | Harm::Cut(_), _) => 0,
            (Harm::Kill, Role::Etcd) => 1,
            (Harm::Kill, _) => 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_there_alone_and_beside_those_of_the_others() {
        let all = combinations();
        assert_eq!((all.len(), all.iter().filter(|faults| faults.len() == 1).count()), (154, 19));
        assert!(all.iter().filter(|faults| faults.len() == 2).all(|faults| faults[0].role != faults[1].role));
        let mut names: Vec<String> = all.iter().map(|faults| faults.iter().map(Fault::to_string).collect()).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all.len());
    }
}
