// SPDX-License-Identifier: Apache-2.0
//! See [`varve_fuzz::edge::check`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| varve_fuzz::edge::check(data));
