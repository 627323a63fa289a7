// SPDX-License-Identifier: Apache-2.0
//! The light client on a compute host: volumes of a cluster as block devices.

pub mod session;
