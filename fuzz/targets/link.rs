#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pushring::link::properties::holds(data));
