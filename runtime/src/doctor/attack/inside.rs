//! The one who tries: agentd again, as the program of a trial box.
//!
//! Invariant: on the host it tries nothing. The word comes over a channel whose maker lies outside this process's pid
//! namespace, which is the kernel's own word for it, and which nobody has at hand by chance.

use std::io::{self, Error};
use std::os::fd::AsFd;

use agentd_sys::channel;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

/// Tries the one attack that the channel on standard input names, and answers there.
///
/// # Errors
/// Outside a trial box, before anything was tried; and when the channel fails.
pub fn attempt_from_inside() -> io::Result<()> {
    let stdin = io::stdin();
    let refusal =
        || Error::new(io::ErrorKind::Unsupported, "this runs in a trial box of `agentd doctor --attack` only");
    // A maker that has a number here is no doctor outside: 0 is who cannot be seen (socket(7), pid_namespaces(7)).
    let maker = getsockopt(&stdin, PeerCredentials).map_err(|_no_socket| refusal())?;
    if maker.pid() != 0 {
        return Err(refusal());
    }
    let message = channel::receive(&stdin)?.ok_or_else(refusal)?;
    let word = String::from_utf8(message.bytes).map_err(Error::other)?;
    let result = agentd_attacks::attempt(&word).map_err(Error::other)?;
    channel::send(stdin.as_fd(), &super::place::encode(&result), None)
}
