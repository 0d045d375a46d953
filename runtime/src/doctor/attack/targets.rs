//! What of this host the attacks are aimed at: things that are there already, and two listeners of the doctor's own.

use std::fs::{self, OpenOptions};
use std::io;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};

use agentd_attacks::suite::Targets;
use agentd_init::plan::{BoxPlan, LimitedResource};
use rustix::process::geteuid;

use super::{Attempted, Verdict};

/// Above the numbers that a trial box's own processes have.
const LOW_PIDS: u32 = 16;

/// How many entries of the home directory are looked at.
const ENTRIES: usize = 1000;

/// The targets, for as long as this lives.
#[derive(Debug)]
pub(super) struct Aim {
    pub(super) targets: Targets,
    /// What has no target here, and why.
    pub(super) left_out: Vec<Attempted>,
    /// Nobody is accepted; a connection is made by the kernel.
    _listeners: Vec<TcpListener>,
    _abstract: Option<UnixListener>,
}

impl Aim {
    /// Looks for targets of attacks from the box of `plan`.
    pub(super) fn take(plan: &BoxPlan, home: Option<&Path>) -> io::Result<Self> {
        let mut left_out = Vec::new();
        let mut leave_out = |name, says, reason: &str| {
            let mut attempted = Attempted::new(name, says, Verdict::NotTried);
            attempted.reason = Some(reason.to_owned());
            left_out.push(attempted);
        };
        let private = home.and_then(something_private);
        if private.is_none() {
            leave_out(
                "private-file",
                "opens something of yours that was not given",
                "your home directory holds nothing",
            );
        }
        // ::1 is not on every host.
        let listeners: Vec<TcpListener> =
            ["127.0.0.1:0", "[::1]:0"].iter().filter_map(|address| TcpListener::bind(address).ok()).collect();
        let name = format!("agentd-doctor-{}", crate::job::id::JobId::random()?);
        let abstract_socket =
            SocketAddr::from_abstract_name(&name).and_then(|name| UnixListener::bind_addr(&name)).ok();
        let own = std::process::id();
        if own <= LOW_PIDS {
            leave_out(
                "signal-host",
                "sends a signal to a process of the host",
                "the doctor's pid is one a box has too",
            );
        }
        let is_bounded = |limit: &&agentd_init::plan::Limit| limit.resource == LimitedResource::Processes;
        let bound = plan.limits.iter().find(is_bounded).and_then(|limit| limit.soft);
        let processes = bound.and_then(|bound| u32::try_from(bound).ok()).filter(|_| !geteuid().is_root());
        if processes.is_none() {
            leave_out(
                "fork-bomb",
                "makes processes without end",
                "as root the number of processes is not bounded (see docs/threat-model.md)",
            );
        }
        let targets = Targets {
            private,
            listeners: listeners.iter().map(TcpListener::local_addr).collect::<io::Result<_>>()?,
            abstract_socket: abstract_socket.is_some().then_some(name),
            process: (own > LOW_PIDS).then_some(own),
            processes: processes.map(|bound| bound.saturating_add(1)),
        };
        Ok(Aim { targets, left_out, _listeners: listeners, _abstract: abstract_socket })
    }
}

/// The first entry of the home directory that opens for reading.
fn something_private(home: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(home).ok()?.take(ENTRIES).filter_map(Result::ok);
    let plain = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file() || kind.is_dir()));
    plain.map(|entry| entry.path()).find(|path| {
        // A file that became a FIFO meanwhile is not waited for.
        path.to_str().is_some() && OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).is_ok()
    })
}
