//! What a running job may reach, changed from outside: `agentd allow` and `agentd deny` (docs/adr/0020).
//!
//! Invariant: a change that cannot be had in full changes nothing, and none is made that the job's events do not hold.
//! Nothing here waits: a connection that the broker cannot dial itself is only begun.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use agentd_egress::{Change, Order, Policy};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, getsockname, socket_with, sockopt};

use super::Supervisor;
use super::network::Broker;
use crate::job::events::Event;
use crate::job::record::PolicyChange;
use crate::job::store::now;

/// Changes of one job.
const MOST_CHANGES: usize = 1000;

impl Supervisor<'_> {
    /// Changes the policy; or gives the ports at which the box has to be listened to before.
    pub(super) fn change_reach(&mut self, change: Change) -> Result<Vec<u16>, String> {
        if self.rests() {
            return Err("it waits to be started again; say it when its command runs".into());
        }
        let without = "it was started without --allow and has no network to change; start it again with --allow";
        let network = self.network.as_mut().filter(|_| self.alive).ok_or(without)?;
        if network.changes.len() >= MOST_CHANGES {
            return Err(format!("what it may reach was changed {MOST_CHANGES} times, which is enough"));
        }
        let changed: Policy = network.policy.changed(&change).map_err(|error| error.to_string())?;
        for rule in &change.allow {
            if let Some(denial) = changed.denial_of(rule) {
                return Err(format!(
                    "{rule} stays denied, by {denial}; a denial is taken back in its own words: allow {denial}"
                ));
            }
        }
        let missing = changed.ports_beyond(&network.open);
        if !missing.is_empty() {
            return Ok(missing);
        }
        if !network.order(&Order::Change(change.clone()), None) {
            return Err("its network broker is gone".into());
        }
        network.policy = changed;
        let entry = PolicyChange { time: now(), change };
        network.changes.push(entry.clone());
        self.denials.keep(&Event::Policy(entry));
        Ok(Vec::new())
    }

    /// Passes on a socket that was made while the job ran.
    pub(super) fn open_late(&mut self, door: &OwnedFd) -> Result<(), &'static str> {
        let network = self.network.as_mut().ok_or("it has no network broker")?;
        let listens = sockopt::socket_acceptconn(door).is_ok_and(|listens| listens)
            && sockopt::socket_type(door).is_ok_and(|kind| kind == SocketType::STREAM);
        let port = getsockname(door).ok().and_then(|address| SocketAddr::try_from(address).ok()).map(|at| at.port());
        let port = port.filter(|_| listens).ok_or("what came along is no socket that listens")?;
        if !network.order(&Order::Door, Some(door.as_fd())) {
            return Err("its network broker is gone");
        }
        network.open.insert(port);
        Ok(())
    }
}

impl Broker {
    /// Begins a connection at a port that a rule allows by now; `None` for any other, and where the kernel says no.
    pub(super) fn dial(&self, at: SocketAddr) -> Option<OwnedFd> {
        if !self.policy.ports().contains(&at.port()) {
            return None;
        }
        let family = if at.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(family, SocketType::STREAM, flags, None).ok()?;
        match connect(&socket, &at) {
            Ok(()) | Err(Errno::INPROGRESS) => Some(socket),
            Err(_) => None,
        }
    }
}
