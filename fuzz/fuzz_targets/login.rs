//! A registry's challenges, a file of credentials.
#![no_main]

libfuzzer_sys::fuzz_target!(|untrusted: &[u8]| agentd_rootfs::fuzzing::login(untrusted));
