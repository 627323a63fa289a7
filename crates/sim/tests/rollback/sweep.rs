// SPDX-License-Identifier: Apache-2.0
//! What a history keeps for the trees of its own volume is found by a walk, and what the walk does not reach is given back.

use super::*;

#[test]
fn what_no_tree_reaches_is_swept() {
    for seed in 0..3 {
        let (mut node, mut rng, mut model, _) = rolled_back(seed);
        let old = timelines(&node, "v").1[0].0;
        snapshot(&node, "v", "c");
        let at_c = model.clone();
        pass(&node, 120);
        forget(&node, "v", "a");
        pass(&node, 60);
        let all = bytes_of(&node, old);
        assert!(all > 60 * BLOCK, "the volume and its snapshot show all of it");
        shows(&node, &node.device("v"), &model, "all of it inherited");
        check(&node, "v");
        write(&node, "v", &mut model, &mut rng, 0..40);
        merge(&node, "v");
        pass(&node, 700);
        assert_eq!(bytes_of(&node, old), all, "the snapshot shows it still");
        shows(&node, &view(&node, "v", "c"), &at_c, "the snapshot");
        forget(&node, "v", "c");
        pass(&node, 1400);
        let some = bytes_of(&node, old);
        assert!(some < all / 2 + BLOCK && some > 20 * BLOCK, "{some} of {all} bytes are kept, of 20 blocks");
        assert_eq!(newest(&node, old).state, TimelineState::Held { swept: true });
        check(&node, "v");
        nothing_is_left_over(&node, &["v"], "swept");
        node.crash(CrashMode::Lost, InFlight::Lost);
        node.reopen();
        shows(&node, &node.device("v"), &model, "found again");
        write(&node, "v", &mut model, &mut rng, 40..60);
        merge(&node, "v");
        pass(&node, 1400);
        assert_eq!(bytes_of(&node, old), 0, "all of it was overwritten");
        check(&node, "v");
        nothing_is_left_over(&node, &["v"], "swept again");
        shows(&node, &node.device("v"), &model, "all its own");
    }
}

/// A history that is swept, and a younger one whose tree leads through one that was flattened in between: nothing of the old one is below that.
#[test]
fn a_sweep_walks_through_what_was_flattened() {
    let (node, mut rng) = start(9);
    let mut model = vec![0; SIZE];
    write(&node, "v", &mut model, &mut rng, 0..300);
    snapshot(&node, "v", "s");
    let then = model.clone();
    write(&node, "v", &mut model, &mut rng, 100..400);
    snapshot(&node, "v", "u");
    merge(&node, "v");
    clone(&node, "v", Some("u"), "w");
    rollback(&node, "v", "s");
    model = then;
    let old = timelines(&node, "v").1[0].0;
    assert!(!flatten(&node, "v").independent, "it lists a snapshot of the old history");
    write(&node, "v", &mut model, &mut rng, 0..20);
    snapshot(&node, "v", "t");
    merge(&node, "v");
    pass(&node, 45);
    rollback(&node, "v", "t");
    write(&node, "v", &mut model.clone(), &mut rng, 5..10);
    merge(&node, "v");
    undo(&node, "v");
    forget(&node, "v", "s");
    pass(&node, 35);
    assert_eq!(newest(&node, old).state, TimelineState::Held { swept: true });
    assert!(flatten(&node, "v").independent, "nothing leads to the old history any more");
    assert_eq!(timelines(&node, "v").1.len(), 2, "the clone holds the old one, the window the young one");
    check(&node, "v");
    pass(&node, 700);
    check(&node, "v");
    shows(&node, &node.device("v"), &model, "swept");
}

/// A history that is being ended is in the record until all of it is deleted. One that it was born from is swept meanwhile: what the hold names may be gone then.
#[test]
fn a_sweep_passes_over_what_is_being_ended() {
    let (node, mut rng) = start(11);
    let mut model = vec![0; SIZE];
    write(&node, "v", &mut model, &mut rng, 0..300);
    snapshot(&node, "v", "s");
    write(&node, "v", &mut model, &mut rng, 100..200);
    merge(&node, "v");
    rollback(&node, "v", "s");
    write(&node, "v", &mut model, &mut rng, 0..200);
    snapshot(&node, "v", "t");
    write(&node, "v", &mut model, &mut rng, 50..150);
    merge(&node, "v");
    let old = timelines(&node, "v").0;
    rollback(&node, "v", "t");
    write(&node, "v", &mut model, &mut rng, 0..10);
    merge(&node, "v");
    let ending = timelines(&node, "v").0;
    rollback(&node, "v", "t");
    write(&node, "v", &mut model, &mut rng, 0..SIZE / BLOCK);
    merge(&node, "v");
    forget(&node, "v", "t");
    forget(&node, "v", "s");
    for nth in 0..2000 {
        node.server.fail(
            StoreOp::Delete,
            &format!("{ending}/map/"),
            nth,
            StoreFault::Error(StoreErrorKind::Unavailable),
        );
    }
    pass(&node, 1400);
    assert_eq!(newest(&node, ending).state, TimelineState::Tombstone);
    assert_eq!(newest(&node, old).state, TimelineState::Held { swept: true });
    check(&node, "v");
    node.server.forget_faults();
    pass(&node, 1400);
    assert!(timelines(&node, "v").1.iter().all(|(id, _)| *id != ending), "it has ended");
    assert_eq!(bytes_of(&node, old), 0, "all of it was overwritten");
    check(&node, "v");
    nothing_is_left_over(&node, &["v"], "swept");
    shows(&node, &node.device("v"), &model, "swept");
}
