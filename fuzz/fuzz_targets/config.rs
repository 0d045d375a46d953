//! An image's config.
#![no_main]

libfuzzer_sys::fuzz_target!(|untrusted: &[u8]| agentd_rootfs::fuzzing::config(untrusted));
