//! A rule as the user writes it, a name, and a message of the broker.
#![no_main]

libfuzzer_sys::fuzz_target!(|untrusted: &[u8]| agentd_egress::fuzzing::words(untrusted));
