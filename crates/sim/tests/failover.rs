// SPDX-License-Identifier: Apache-2.0
//! A volume that goes from node to node: some seeds of the scenario, each run.

#[test]
fn an_edge_reads_what_it_was_answered_wherever_its_volume_goes() {
    let replayed: u64 = (0..4).map(varve_sim::pair::run).sum();
    assert!(replayed > 0, "some of what was acknowledged had to be sent again");
}
