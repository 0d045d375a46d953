//! What the broker gives up before it reads a byte of the box.
//!
//! Invariant: afterwards it opens no file but those that looking up a name needs, runs no program, has no capability and
//! binds no port; it keeps what its work is: connections to the ports of its policy.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use agentd_sys::process::exit_now;
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, NetPort, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, Signal, getrlimit, set_dumpable_behavior, set_parent_process_death_signal,
    setrlimit,
};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_name, set_no_new_privs};

use crate::policy::{NAME_SERVICE, Policy};

/// Files that a look-up reads (getaddrinfo(3), resolv.conf(5), gai.conf(5), host.conf(5)).
const FILES: &[&str] = &["/etc/hosts", "/etc/resolv.conf", "/etc/gai.conf", "/etc/host.conf", "/etc/nsswitch.conf"];

/// Descriptors that a job with all its connections needs.
const DESCRIPTORS: u64 = 8192;

/// Gives everything up; says how many descriptors there may be.
pub(super) fn confine(policy: &Policy, channel: &OwnedFd, filter: &[libc::sock_filter]) -> io::Result<usize> {
    end_with_supervisor(channel)?;
    // Neither the user's terminal nor the streams of the job, whose readers wait for their end.
    let null = openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    drop(null);
    agentd_sys::descriptors::close_all_but(&mut [channel.as_raw_fd()])?;
    rustix::io::ioctl_fionbio(channel, true)?;
    set_name(c"agentd-net")?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let descriptors = limits()?;
    agentd_sys::names::use_builtin()?;
    set_no_new_privs(true)?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    landlock(policy)?;
    agentd_sys::seccomp::load(filter)?;
    Ok(descriptors)
}

fn end_with_supervisor(channel: &OwnedFd) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have died before that; its end of the channel tells.
    let mut ready = [PollFd::from_borrowed_fd(channel.as_fd(), PollFlags::empty())];
    poll(&mut ready, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    if ready.iter().any(|fd| fd.revents().contains(PollFlags::HUP)) {
        exit_now(1);
    }
    Ok(())
}

fn limits() -> io::Result<usize> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    let allowed = getrlimit(Resource::Nofile).maximum.unwrap_or(DESCRIPTORS).min(DESCRIPTORS);
    setrlimit(Resource::Nofile, Rlimit { current: Some(allowed), maximum: Some(allowed) })?;
    Ok(usize::try_from(allowed).unwrap_or(usize::MAX))
}

/// Files since Linux 5.13, which every box needs anyway; what newer kernels can refuse too is refused where they can.
fn landlock(policy: &Policy) -> io::Result<()> {
    let error = |error: landlock::RulesetError| io::Error::other(error);
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))
        .map_err(error)?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V5))
        .map_err(error)?
        .handle_access(AccessNet::from_all(ABI::V4))
        .map_err(error)?
        .scope(Scope::from_all(ABI::V6))
        .map_err(error)?
        .create()
        .map_err(error)?;
    for path in FILES {
        let resolved = match fs::read_link(path) {
            // Its directory: such a file is replaced when the network changes, and must still be found.
            Ok(_) => fs::File::open(path).and_then(|_is_there| directory_of_target(path)).ok(),
            Err(_) => openat(CWD, *path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok().map(|file| (file, false)),
        };
        // What is not there is not needed.
        let Some((object, is_directory)) = resolved else { continue };
        let rights = if is_directory { AccessFs::ReadFile | AccessFs::ReadDir } else { AccessFs::ReadFile.into() };
        ruleset = ruleset.add_rule(PathBeneath::new(object, rights)).map_err(error)?;
    }
    // Questions that no datagram can answer are asked by TCP.
    for port in policy.ports().into_iter().chain([NAME_SERVICE.1]) {
        ruleset = ruleset.add_rule(NetPort::new(port, AccessNet::ConnectTcp)).map_err(error)?;
    }
    let status = ruleset.restrict_self().map_err(error)?;
    if status.ruleset == RulesetStatus::NotEnforced { Err(Errno::OPNOTSUPP.into()) } else { Ok(()) }
}

/// The directory of what a link leads to, unless that is /etc itself: then the file.
fn directory_of_target(path: &str) -> io::Result<(OwnedFd, bool)> {
    #[expect(clippy::disallowed_methods, reason = "a file of the host's root, for a grant to read it")]
    let target = fs::canonicalize(path)?;
    let parent = target.parent().filter(|parent| *parent != Path::new("/etc") && *parent != Path::new("/"));
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let object = openat(CWD, parent.unwrap_or(&target), flags, Mode::empty())?;
    Ok((object, parent.is_some()))
}
