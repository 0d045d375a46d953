//! A message to the name service of a box.
#![no_main]

libfuzzer_sys::fuzz_target!(|untrusted: &[u8]| agentd_egress::fuzzing::question(untrusted));
