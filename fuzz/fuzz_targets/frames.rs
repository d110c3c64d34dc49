//! See `src/fuzzing.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| texto::fuzzing::run("frames", bytes));
