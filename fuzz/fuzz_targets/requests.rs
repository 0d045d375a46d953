//! A rule for requests, a path that it decides on, what a key is for, and a key on its way to the broker.
#![no_main]

libfuzzer_sys::fuzz_target!(|untrusted: &[u8]| agentd_egress::fuzzing::requests(untrusted));
