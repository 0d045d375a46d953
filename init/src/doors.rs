//! The way to the broker: addresses that stand for names, and the sockets behind them, which the supervisor gets.
//!
//! The sockets are made here because only a process of the box's network can make them; they are accepted from by the broker,
//! outside. Invariant: no process of the box keeps one, and the box has no route out: without the broker nobody answers.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use agentd_sys::routes;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};

use crate::plan::{Doors, Net};
use crate::report::{self, Report};
use crate::step::{At, Failure, Step};

const AT: Step = Step::OpenDoors;

/// Connections that wait until the broker accepts them.
const BACKLOG: i32 = 1024;

/// Makes the addresses and the sockets of `doors`, and sends these to the supervisor.
pub(crate) fn open(doors: &Doors, channel: &OwnedFd) -> Result<(), Failure> {
    let mut has_v6 = false;
    for Net { address, prefix } in &doors.addresses {
        match routes::add_address(*address, *prefix) {
            Ok(()) => has_v6 |= address.is_ipv6(),
            // A kernel, or a machine, that goes without IPv6: so does the box.
            Err(error) if address.is_ipv6() && is_absence(&error) => {}
            Err(error) => return Err(error).at(AT, address),
        }
    }
    for Net { address, prefix } in doors.local.iter().filter(|net| has_v6 || net.address.is_ipv4()) {
        match routes::add_local(*address, *prefix) {
            Ok(()) => {}
            // The box's own already, as 127.0.0.0/8 is.
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) => return Err(error).at(AT, format_args!("{address}/{prefix}")),
        }
    }
    let any: IpAddr = if has_v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    for port in &doors.ports {
        send(SocketAddr::new(any, *port), SocketType::STREAM, channel)?;
    }
    for kind in [SocketType::DGRAM, SocketType::STREAM] {
        send(SocketAddr::from(doors.names), kind, channel)?;
    }
    if let Some(proxy) = doors.proxy {
        send(SocketAddr::from(proxy), SocketType::STREAM, channel)?;
    }
    // By it the broker learns whose connections these are; a kernel without it leaves that untold.
    if let Ok(diag) = agentd_sys::diag::open() {
        report::send(channel, &Report::Door, Some(diag.as_fd())).at(AT, "the supervisor")?;
    }
    Ok(())
}

fn is_absence(error: &io::Error) -> bool {
    [libc::EOPNOTSUPP, libc::EAFNOSUPPORT, libc::EACCES, libc::EPERM]
        .iter()
        .any(|errno| error.raw_os_error() == Some(*errno))
}

fn send(address: SocketAddr, kind: SocketType, channel: &OwnedFd) -> Result<(), Failure> {
    let socket = make(address, kind).at(AT, address)?;
    report::send(channel, &Report::Door, Some(socket.as_fd())).at(AT, "the supervisor")
}

/// A socket like those that [`open`] makes, in a box that runs already.
pub(crate) fn late(port: u16) -> Result<OwnedFd, Errno> {
    match make(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port), SocketType::STREAM) {
        // Without IPv6.
        Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) => {
            make(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port), SocketType::STREAM)
        }
        made => made,
    }
}

fn make(address: SocketAddr, kind: SocketType) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if address.is_ipv6() {
        // One socket hears both: IPv4 comes as ::ffff:….
        sockopt::set_ipv6_v6only(&socket, false)?;
    }
    bind(&socket, &address)?;
    if kind == SocketType::STREAM {
        listen(&socket, BACKLOG)?;
    }
    Ok(socket)
}
