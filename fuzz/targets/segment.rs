// SPDX-License-Identifier: Apache-2.0
//! See [`varve_fuzz::segment::check`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| varve_fuzz::segment::check(data));
