// SPDX-License-Identifier: Apache-2.0
//! More than one edge: who asks for a volume that another one has, who takes it, and who only reads beside others.

use super::edge::Edge;
use super::run::{Client, Run};
use std::rc::Rc;
use std::time::Duration;
use varve_types::ErrorKind;
use varve_wire::attach::Mode;
use varve_wire::transmission::Ask;

impl Run {
    /// Another edge, which asks for the volume from now on.
    pub(super) fn edge(&mut self, mode: Mode, steal: bool) -> Rc<Edge> {
        self.edges += 1;
        let ports = [0, 1].map(|at: usize| Rc::clone(&self.pair.members[at].port));
        Edge::start(&self.pair.members[0].node.world, ports, self.pair.volume, self.edges, mode, steal)
    }

    /// Another edge wants the volume that one has: it is told that, or takes the volume, with all that was acknowledged.
    pub(super) fn another_edge(&mut self) {
        let Client::Edge(first) = &self.client else { return };
        let (first, steal) = (Rc::clone(first), self.rng.below(2) == 0);
        let second = self.edge(Mode::Exclusive, steal);
        let (asked, world) = (Rc::clone(&second), self.pair.members[0].node.world.clone());
        self.until("another edge", move |this| {
            this.pair.pass(Duration::from_millis(5));
            asked.is_served() || asked.failure().is_some()
        });
        if !steal {
            let why = second.failure().map(|error| error.kind());
            assert_eq!(why, Some(ErrorKind::Conflict), "two edges have the volume");
            self.pair.count("pair: a second edge was refused");
            return second.end(&world);
        }
        assert!(second.failure().is_none(), "{:?}", second.failure());
        self.client = Client::Edge(second);
        self.replayed += first.replayed();
        // What the first one kept for the case of a loss nobody has any more.
        self.ask(Ask::Flush, 0);
        self.settle("a flush of who has taken the volume");
        self.pair.count("pair: an edge has taken the volume from another");
        let answer = super::guest::Answer::default();
        first.ask(Ask::Write, 0, vec![250; 4096].into(), Rc::clone(&answer));
        let asked = Rc::clone(&first);
        self.until("the edge that was robbed", move |this| {
            this.pair.pass(Duration::from_millis(5));
            asked.failure().is_some()
        });
        assert_eq!(first.failure().map(|error| error.kind()), Some(ErrorKind::Fenced));
        first.end(&world);
        self.read_all("after a theft");
    }

    /// The edge gives the volume up; others read it beside each other, also when its owner stalls.
    pub(super) fn read_shared(&mut self) {
        let Client::Edge(edge) = &self.client else { return };
        let (edge, world) = (Rc::clone(edge), self.pair.members[0].node.world.clone());
        edge.detach();
        let asked = Rc::clone(&edge);
        self.until("a detach", move |this| {
            this.pair.pass(Duration::from_millis(5));
            asked.is_detached()
        });
        edge.end(&world);
        self.replayed += edge.replayed();
        let beside = self.edge(Mode::Shared, false);
        self.client = Client::Edge(self.edge(Mode::Shared, false));
        self.settle("a reader");
        self.read_all("read by one of two");
        self.pair.stall_owner();
        self.read_all("read where the owner stalls");
        self.pair.mend_all();
        self.client = Client::Edge(beside);
        self.settle("the other reader");
        self.read_all("read by the other");
        self.pair.count("pair: two edges have read");
    }
}
