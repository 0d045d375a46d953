//! `agentd run`: exit codes, streams, signals, what the box looks like, what is thrown away.
#![expect(clippy::unwrap_used, reason = "these are tests, helpers included")]

mod exit;
mod identity;
mod limits;
mod mounts;
mod signals;
mod streams;

use std::path::Path;

use agentd_tests::{Feature, Home, Ran, require, run};

/// A home, or nothing where boxes cannot be made.
fn home() -> Option<Home> {
    require(Feature::Userns).then(Home::new)
}

/// A home for boxes of busybox.
fn busybox_home() -> Option<Home> {
    (require(Feature::Userns) && require(Feature::Busybox)).then(Home::new)
}

/// `agentd run FLAGS -- sh -c SCRIPT` on the host's own software.
#[track_caller]
fn sh(home: &Home, flags: &[&str], script: &str) -> Ran {
    run(home.run().args(flags).args(["--", "sh", "-c", script]))
}

/// The same in the busybox image.
#[track_caller]
fn busybox_sh(home: &Home, flags: &[&str], script: &str) -> Ran {
    run(home.run_busybox().args(flags).args(["--", "sh", "-c", script]))
}

fn write(path: &Path, contents: impl AsRef<[u8]>, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, contents).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Bytes without a pattern, the same every time (xorshift).
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
