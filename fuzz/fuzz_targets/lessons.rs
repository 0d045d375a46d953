//! Refused calls and the names of who makes them, as a payload chooses them, in a job that learns.
#![no_main]

libfuzzer_sys::fuzz_target!(|untrusted: &[u8]| agentd_profiles::fuzzing::lessons(untrusted));
