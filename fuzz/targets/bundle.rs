// SPDX-License-Identifier: Apache-2.0
//! See [`varve_fuzz::bundle::check`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| varve_fuzz::bundle::check(data));
