//! What a client says to the proxy of a box, of HTTP or SOCKS5.
#![no_main]

libfuzzer_sys::fuzz_target!(|untrusted: &[u8]| agentd_egress::fuzzing::proxied(untrusted));
