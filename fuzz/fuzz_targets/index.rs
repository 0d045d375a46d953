//! A layout's `index.json`.
#![no_main]

libfuzzer_sys::fuzz_target!(|untrusted: &[u8]| agentd_rootfs::fuzzing::index(untrusted));
