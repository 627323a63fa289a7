// SPDX-License-Identifier: Apache-2.0
//! Coordination: small facts, compare-and-swap; embedded (redb) and in memory.
