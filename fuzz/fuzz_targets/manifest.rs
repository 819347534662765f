#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| hindsight_fuzz::run("manifest", input));
