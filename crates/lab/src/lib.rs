// SPDX-License-Identifier: Apache-2.0
//! Real programs for the tests: servers, clients, guests; their ports, directories and lives.

mod accepting;
pub mod certificates;
pub mod etcd;
pub mod fault_proxy;
pub mod guest;
pub mod nbd;
pub mod process;
pub mod random;
pub mod seaweedfs;
pub mod tcp_proxy;
