// SPDX-License-Identifier: Apache-2.0
//! The executor: virtual time, order, jobs, deaths, and that a seed fixes everything.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use varve_env::{Env, ObjectStore, compute};
use varve_sim::{Chaos, DiskMedium, RunError, SimEnv, SimOptions, SimWorld, StoreServer};

const SECOND: Duration = Duration::from_secs(1);

fn world(seed: u64) -> (SimWorld, Rc<SimEnv>) {
    let world = SimWorld::new(SimOptions::seed(seed));
    let process = world.process("node");
    (world, process)
}

#[test]
fn time_jumps_when_nothing_can_run() {
    let (world, env) = world(1);
    let inner = Rc::clone(&env);
    let wall = env.wall_ms();
    let took = world.block_on(&env, async move {
        let start = inner.now();
        inner.sleep(3600 * SECOND).await;
        inner.now() - start
    });
    assert_eq!(took.unwrap(), 3600 * SECOND);
    assert_eq!(env.wall_ms() - wall, 3_600_000);
    world.jump_wall(-7_200_000);
    assert_eq!(wall - env.wall_ms(), 3_600_000);
    assert_eq!(world.now(), 3600 * SECOND);
}

#[test]
fn a_sleep_that_is_dropped_moves_no_time() {
    let (world, env) = world(1);
    let inner = Rc::clone(&env);
    world
        .block_on(&env, async move {
            let mut long = inner.sleep(1000 * SECOND);
            let mut short = inner.sleep(SECOND);
            futures_util::future::select(&mut long, &mut short).await;
        })
        .unwrap();
    world.run_until_idle().unwrap();
    assert_eq!(world.now(), SECOND);
}

#[test]
fn a_job_runs_later_and_whole() {
    let (world, env) = world(1);
    let ran = Arc::new(AtomicBool::new(false));
    let (flag, inner) = (Arc::clone(&ran), Rc::clone(&env));
    let result = world.block_on(&env, async move {
        let seen = Arc::clone(&flag);
        let job = compute(&*inner, move || {
            seen.store(true, Ordering::Relaxed);
            42
        });
        (flag.load(Ordering::Relaxed), job.await)
    });
    assert_eq!(result.unwrap(), (false, 42));
    assert!(ran.load(Ordering::Relaxed));
    assert!(world.now() > Duration::ZERO);
}

#[test]
fn a_wait_without_end_is_stuck_and_a_spin_is_too_long() {
    let (stuck, env) = world(1);
    let error = stuck.block_on(&env, std::future::pending::<()>()).unwrap_err();
    assert_eq!(error, RunError::Stuck { pending: vec!["node task 0".to_owned()] });

    let spinning = SimWorld::new(SimOptions { most_steps: 1000, ..SimOptions::seed(1) });
    let env = spinning.process("node");
    let inner = Rc::clone(&env);
    let error = spinning.block_on(&env, async move {
        loop {
            inner.sleep(SECOND).await;
        }
    });
    let error: Result<(), RunError> = error;
    assert!(matches!(error, Err(RunError::TooLong { steps: 1000, .. })), "{error:?}");
}

/// Says that it was dropped.
struct Mark(Rc<RefCell<Vec<&'static str>>>, &'static str);
impl Drop for Mark {
    fn drop(&mut self) {
        self.0.borrow_mut().push(self.1);
    }
}

#[test]
fn a_death_drops_the_tasks_of_that_process_alone() {
    let world = SimWorld::new(SimOptions::seed(1));
    let (first, second) = (world.process("first"), world.process("second"));
    let dropped = Rc::new(RefCell::new(Vec::new()));
    for (env, name) in [(&first, "first"), (&second, "second")] {
        let mark = Mark(Rc::clone(&dropped), name);
        let inner = Rc::clone(env);
        env.spawn(Box::pin(async move {
            let _mark = mark;
            loop {
                inner.sleep(SECOND).await;
            }
        }));
    }
    first.points().after_polls(5);
    world.run_for(60 * SECOND).unwrap();
    assert_eq!((first.is_dead(), second.is_dead()), (true, false));
    assert_eq!(*dropped.borrow(), ["first"]);
    first.spawn(Box::pin(async {}));
    assert_eq!(world.tasks(), 1, "the dead spawn nothing");
    world.kill(&second);
    assert_eq!((world.tasks(), dropped.borrow().len()), (0, 2));
}

#[test]
fn a_world_that_is_let_go_drops_everything() {
    let dropped = Rc::new(RefCell::new(Vec::new()));
    let (world, env) = world(1);
    let (mark, inner) = (Mark(Rc::clone(&dropped), "task"), Rc::clone(&env));
    env.spawn(Box::pin(async move {
        let _mark = mark;
        inner.sleep(SECOND).await;
    }));
    world.run_for(Duration::ZERO).unwrap();
    drop((world, env));
    assert_eq!(*dropped.borrow(), ["task"]);
}

/// Several tasks that write, sync, compute and put under faults; gives the trace and what was drawn.
fn busy(seed: u64) -> (u64, u64, Vec<String>) {
    let (world, env) = world(seed);
    let medium = DiskMedium::new(&world, "disk", 1 << 20);
    let server = StoreServer::new(&world, "pool");
    server.set_chaos(Chaos {
        error_per_mille: 100,
        lost_answer_per_mille: 100,
        late_put_per_mille: 100,
        late_by: SECOND,
        crossed_per_mille: 0,
        wrong_per_mille: 0,
    });
    let drawn = Rc::new(RefCell::new(0u64));
    for task in 0..8u64 {
        let (inner, disk, store, drawn) = (Rc::clone(&env), medium.open(&env), server.client(&env), Rc::clone(&drawn));
        env.spawn(Box::pin(async move {
            use varve_env::Disk;
            for round in 0..20u64 {
                let mut bytes = [0; 8];
                inner.random(&mut bytes);
                *drawn.borrow_mut() ^= u64::from_le_bytes(bytes).rotate_left(task as u32 * 8);
                disk.write_at(task * 512, &[std::io::IoSlice::new(&bytes)]).expect("a disk without faults");
                disk.sync().await.expect("a disk without faults");
                let sum = compute(&*inner, move || bytes.iter().map(|b| u64::from(*b)).sum::<u64>()).await;
                let name = format!("t/seg/{task}-{round}");
                let _ = store.put(&name, bytes::Bytes::from(sum.to_le_bytes().to_vec()).into()).await;
            }
        }));
    }
    world.run_until_idle().expect("the tasks end");
    assert_eq!(world.tasks(), 0);
    let drawn = *drawn.borrow();
    (world.trace(), drawn, server.names())
}

#[test]
fn a_seed_fixes_everything() {
    for seed in 0..5 {
        assert_eq!(busy(seed), busy(seed));
    }
    assert_ne!(busy(1).0, busy(2).0);
}
