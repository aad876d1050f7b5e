#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pushring::internals::push_api::properties::holds(data));
