//! Addresses and routes of `lo` in a network namespace of one's own, by netlink (rtnetlink(7)).
//!
//! Invariant: a request is answered before the next is made; what the kernel refused is the errno.

use std::io;
use std::net::IpAddr;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};

/// `lo` is the first interface of every network namespace.
const LOOPBACK: u32 = 1;

/// Bytes of a `struct nlmsghdr`.
const HEADER: usize = 16;

/// Gives `lo` an address.
///
/// # Errors
/// The errno of the request: `EOPNOTSUPP`, `EAFNOSUPPORT` or `EACCES` where the namespace has no such protocol.
pub fn add_address(address: IpAddr, prefix: u8) -> io::Result<()> {
    // struct ifaddrmsg: family, prefix, flags, scope, index.
    let flags = if address.is_ipv6() { libc::IFA_F_NODAD.to_ne_bytes()[0] } else { 0 };
    let mut body = vec![family(address), prefix, flags, libc::RT_SCOPE_UNIVERSE];
    body.extend(LOOPBACK.to_ne_bytes());
    attribute(&mut body, libc::IFA_LOCAL, &octets(address));
    attribute(&mut body, libc::IFA_ADDRESS, &octets(address));
    request(libc::RTM_NEWADDR, &body)
}

/// Makes every address of a network one of this host's own.
///
/// # Errors
/// The errno of the request.
pub fn add_local(network: IpAddr, prefix: u8) -> io::Result<()> {
    // struct rtmsg: family, lengths of destination and source, TOS, table, protocol, scope, type, flags.
    let scope = if network.is_ipv4() { libc::RT_SCOPE_HOST } else { libc::RT_SCOPE_UNIVERSE };
    let mut body = vec![family(network), prefix, 0, 0, libc::RT_TABLE_LOCAL, libc::RTPROT_BOOT, scope, libc::RTN_LOCAL];
    body.extend(0_u32.to_ne_bytes());
    attribute(&mut body, libc::RTA_DST, &octets(network));
    attribute(&mut body, libc::RTA_OIF, &LOOPBACK.to_ne_bytes());
    request(libc::RTM_NEWROUTE, &body)
}

fn family(address: IpAddr) -> u8 {
    // Both are small numbers of a C type that is too large for them.
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    u8::try_from(family).unwrap_or_default()
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// A `struct rtattr`; every value here has a length that is a multiple of four.
fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
}

fn request(kind: u16, body: &[u8]) -> io::Result<()> {
    // NETLINK_ROUTE is protocol 0, the default.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE).unwrap_or_default();
    let length = u32::try_from(HEADER + body.len()).map_err(io::Error::other)?;
    // struct nlmsghdr: length, type, flags, sequence, port; the kernel's own port is 0.
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    sendto(&socket, &message, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut answer = [0; 1024];
    let (received, _) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
    // A struct nlmsgerr behind a header: a negative errno, or 0.
    let error = answer.get(..received).and_then(|answer| answer.get(HEADER..)?.first_chunk::<4>());
    match error.map(|bytes| i32::from_ne_bytes(*bytes)) {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(error.saturating_neg())),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}
