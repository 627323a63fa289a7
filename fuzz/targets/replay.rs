// SPDX-License-Identifier: Apache-2.0
//! See [`varve_fuzz::replay::check`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| varve_fuzz::replay::check(data));
