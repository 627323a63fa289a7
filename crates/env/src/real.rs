// SPDX-License-Identifier: Apache-2.0
//! The real world: the system's clock and random source, files as disks, tokio's current-thread executor, a small pool of threads.
