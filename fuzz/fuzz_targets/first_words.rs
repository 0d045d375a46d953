//! What a client of a box says first, of TLS or HTTP.
#![no_main]

libfuzzer_sys::fuzz_target!(|untrusted: &[u8]| agentd_egress::fuzzing::first_words(untrusted));
