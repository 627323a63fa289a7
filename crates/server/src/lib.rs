// SPDX-License-Identifier: Apache-2.0
//! The volume server: NBD, HTTP API, shards.
