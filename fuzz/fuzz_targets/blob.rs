//! A compressed layer, hashed and inflated.
#![no_main]

libfuzzer_sys::fuzz_target!(|untrusted: &[u8]| agentd_rootfs::fuzzing::blob(untrusted));
