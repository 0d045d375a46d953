//! An uncompressed layer, unpacked.
#![no_main]

libfuzzer_sys::fuzz_target!(|untrusted: &[u8]| agentd_rootfs::fuzzing::layer(untrusted));
