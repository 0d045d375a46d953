//! A workspace's profile, which opens nothing and hides no denial.
#![no_main]

libfuzzer_sys::fuzz_target!(|untrusted: &[u8]| agentd_profiles::fuzzing::workspace_text(untrusted));
