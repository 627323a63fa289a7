// SPDX-License-Identifier: Apache-2.0
//! The real world: the system's clock and random source, files as disks, tokio's current-thread executor, a small
//! pool of threads.
//!
//! A shard is one thread that runs a tokio current-thread runtime and in it a `LocalSet`; [`RealEnv`] is its
//! [`Env`](crate::Env). A hop to another thread and back costs a shard 35 to 80 µs each way, as much as a small
//! write to a good disk, so what is cheap is done on the shard's own thread: [`FileDisk`] writes there, and syncs
//! there while syncs are quick, and [`CacheFile`] reads through an io_uring. What may take long goes elsewhere: slow syncs to a thread of the disk, its reads to
//! two, computation to the [`ComputePool`] that all shards share.
//!
//! Nothing here keeps state that a crash could hurt: what is durable is what a sync covered, no more.

mod cache_file;
mod clock;
mod create;
mod file_disk;
mod policy;
mod pool;
mod settle;
mod syncer;

pub use cache_file::CacheFile;
pub use clock::RealEnv;
pub use file_disk::{FileDisk, SyncCounts};
pub use policy::SyncTuning;
pub use pool::{ComputePool, JobLost, PoolOptions};
