//! What a hostile payload tries, beyond what a shell could: one word an attack, one errno an answer.
//!
//! `agentd doctor --attack` makes these attempts in trial boxes on the user's own machine; the test suite's attack program
//! makes them in boxes, in bare namespaces and natively. [`suite`] lists those that every sandbox should stop.
//!
//! Invariant: an attack that works does no harm to the machine it works on: arguments are such that a call that
//! administers the host (reboot, modules, clock) is refused for another reason when it is not refused for its caller; what
//! is made is removed, and what is opened for writing is not written.

mod files;
mod kernel;
mod processes;
mod raw;
mod sockets;
pub mod suite;

use std::io;

/// A word that names no attack, or an argument that its attack cannot use: a mistake of the caller, not an outcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadWord {
    /// No attack has this name.
    #[error("no such attack: {0}")]
    Unknown(String),
    /// What stands behind the `=`.
    #[error("an attack wants {wants} and got `{argument}`")]
    Argument {
        /// What it wants.
        wants: &'static str,
        /// What it got.
        argument: String,
    },
}

impl BadWord {
    fn argument(wants: &'static str, argument: &str) -> Self {
        BadWord::Argument { wants, argument: argument.to_owned() }
    }
}

/// What a room of attacks gives: nothing where it does not know the name.
type Attempted = Result<Option<io::Result<()>>, BadWord>;

/// Tries `NAME[=ARGUMENT]`; gives what the kernel answered. It may change the calling process beyond repair: give it one
/// of its own, without threads.
///
/// # Errors
/// [`BadWord`], before anything was tried.
pub fn attempt(word: &str) -> Result<io::Result<()>, BadWord> {
    let (name, argument) = word.split_once('=').unwrap_or((word, ""));
    for room in [files::attempt, sockets::attempt, processes::attempt, kernel::attempt] {
        if let Some(result) = room(name, argument)? {
            return Ok(result);
        }
    }
    Err(BadWord::Unknown(word.to_owned()))
}

/// The names of what these attacks run into; other numbers stay numbers.
#[must_use]
pub fn errno_name(number: i32) -> String {
    let name = match number {
        libc::EPERM => "EPERM",
        libc::ENOENT => "ENOENT",
        libc::ESRCH => "ESRCH",
        libc::EIO => "EIO",
        libc::ENXIO => "ENXIO",
        libc::EBADF => "EBADF",
        libc::EAGAIN => "EAGAIN",
        libc::ENOMEM => "ENOMEM",
        libc::EACCES => "EACCES",
        libc::EFAULT => "EFAULT",
        libc::EBUSY => "EBUSY",
        libc::EEXIST => "EEXIST",
        libc::EXDEV => "EXDEV",
        libc::ENODEV => "ENODEV",
        libc::ENOTDIR => "ENOTDIR",
        libc::EINVAL => "EINVAL",
        libc::ENOTTY => "ENOTTY",
        libc::ETXTBSY => "ETXTBSY",
        libc::ENOSPC => "ENOSPC",
        libc::EROFS => "EROFS",
        libc::ELOOP => "ELOOP",
        libc::ENOSYS => "ENOSYS",
        libc::EPROTONOSUPPORT => "EPROTONOSUPPORT",
        libc::ESOCKTNOSUPPORT => "ESOCKTNOSUPPORT",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        libc::EAFNOSUPPORT => "EAFNOSUPPORT",
        libc::EADDRNOTAVAIL => "EADDRNOTAVAIL",
        libc::EHOSTUNREACH => "EHOSTUNREACH",
        libc::ENETUNREACH => "ENETUNREACH",
        libc::ECONNREFUSED => "ECONNREFUSED",
        libc::ETIMEDOUT => "ETIMEDOUT",
        libc::ESTALE => "ESTALE",
        other => return format!("errno {other}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_none_is_an_error_and_not_an_outcome() {
        assert!(matches!(attempt("nothing=x"), Err(BadWord::Unknown(_))));
        for word in ["socket=1,2", "socket=a,b,c", "signal=you", "tcp=nowhere", "hardlink=one", "forks=some"] {
            assert!(matches!(attempt(word), Err(BadWord::Argument { .. })), "{word}");
        }
    }

    #[test]
    fn an_outcome_is_what_the_kernel_says() {
        assert!(attempt("list=/").unwrap().is_ok());
        let refused = attempt("read=/nowhere/at/all").unwrap().unwrap_err();
        assert_eq!(refused.raw_os_error().map(errno_name).as_deref(), Some("ENOENT"));
    }
}
