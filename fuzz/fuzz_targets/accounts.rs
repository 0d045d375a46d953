//! A user, looked up in an image's passwd and group.
#![no_main]

libfuzzer_sys::fuzz_target!(|untrusted: &[u8]| agentd_rootfs::fuzzing::accounts(untrusted));
