//! A profile's text: parsed, compiled for both architectures, and the filter compared with the rules.
#![no_main]

libfuzzer_sys::fuzz_target!(|untrusted: &[u8]| agentd_profiles::fuzzing::profile_text(untrusted));
