//! System calls that no safe crate offers, each behind a safe function.
//!
//! Invariant: this is the only crate of the workspace that may contain `unsafe`; every block is one operation, and the
//! comment before it names the man page's precondition and why it holds. What `rustix` and `nix` already wrap is not wrapped again.
#![allow(unsafe_code, reason = "the one crate where unsafe code may stand")]

pub mod channel;
#[cfg(target_arch = "x86_64")]
pub mod copy;
pub mod descriptors;
pub mod diag;
pub mod heap;
pub mod landlock;
pub mod loopback;
pub mod memory;
pub mod mount;
pub mod names;
pub mod namespace;
pub mod notify;
pub mod process;
pub mod routes;
pub mod seccomp;
pub mod signal;
pub mod trace;

use std::io;

/// Turns a raw system call's `-1` into the errno it left behind.
fn check(ret: libc::c_long) -> io::Result<libc::c_long> {
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret) }
}
