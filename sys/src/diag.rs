//! Which socket is at the other end of a connection within one network namespace: its inode, by which `/proc/PID/fd` names
//! it. Asked of the kernel by tuple (sock_diag(7)), so the number of sockets does not matter. One question of 72 bytes and
//! one field of its answer: `netlink-packet-sock-diag` would bring five crates for them.
//!
//! Invariant: an answer is to the question that was asked, about exactly these two ends.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::netlink::{SOCK_DIAG, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};

/// `SOCK_DIAG_BY_FAMILY` (linux/sock_diag.h).
const BY_FAMILY: u16 = 20;

/// Bytes of a `struct nlmsghdr`.
const HEADER: usize = 16;

/// In a `struct inet_diag_msg` (linux/inet_diag.h): where its `sockid` begins, and its inode.
const SOCKID: usize = 4;
const INODE: usize = 68;

/// What a connection is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A socket to ask by, about the network namespace that it is made in, from wherever it is used. It can ask and no more.
///
/// # Errors
/// The errno of `socket(2)`: a kernel without sock_diag has none.
pub fn open() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(SOCK_DIAG))?)
}

/// The inode of the socket at `from` that is connected to `to`.
///
/// # Errors
/// `ENOENT` where there is none (any more); else the errno of asking.
pub fn inode(socket: impl AsFd, transport: Transport, from: SocketAddr, to: SocketAddr) -> io::Result<u32> {
    let message = question(transport, from, to)?;
    sendto(&socket, &message, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut answer = [0; 512];
    let (received, _) = recv(&socket, &mut answer[..], RecvFlags::DONTWAIT)?;
    read(answer.get(..received).unwrap_or_default(), from)
}

fn question(transport: Transport, from: SocketAddr, to: SocketAddr) -> io::Result<Vec<u8>> {
    let (protocol, source, destination) = match transport {
        Transport::Tcp => (libc::IPPROTO_TCP, from, to),
        // The kernel has them the other way round here, "for historical reasons" (udp_dump_one).
        Transport::Udp => (libc::IPPROTO_UDP, to, from),
    };
    let family = if from.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let small = |number: i32| u8::try_from(number).map_err(io::Error::other);
    // struct inet_diag_req_v2: family, protocol, extensions, padding, states; then a struct inet_diag_sockid: ports,
    // addresses, interface, cookie. No cookie is all ones.
    let mut body = vec![small(family)?, small(protocol)?, 0, 0];
    body.extend([0xff; 4]);
    body.extend(source.port().to_be_bytes());
    body.extend(destination.port().to_be_bytes());
    body.extend(octets(source.ip()));
    body.extend(octets(destination.ip()));
    body.extend([0; 4]);
    body.extend([0xff; 8]);
    let length = u32::try_from(HEADER + body.len()).map_err(io::Error::other)?;
    let flags = u16::try_from(libc::NLM_F_REQUEST).map_err(io::Error::other)?;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(BY_FAMILY.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    Ok(message)
}

fn octets(address: IpAddr) -> [u8; 16] {
    let mut octets = [0; 16];
    match address {
        IpAddr::V4(v4) => octets[..4].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => octets = v6.octets(),
    }
    octets
}

/// The inode that an answer has, if it is about a socket at `from`.
fn read(answer: &[u8], from: SocketAddr) -> io::Result<u32> {
    let nonsense = || io::Error::from(io::ErrorKind::InvalidData);
    let kind = answer.get(4..6).and_then(|bytes| bytes.first_chunk()).map(|kind| u16::from_ne_bytes(*kind));
    let body = answer.get(HEADER..).ok_or_else(nonsense)?;
    let word = |at: usize| body.get(at..)?.first_chunk::<4>();
    if kind != Some(BY_FAMILY) {
        // A struct nlmsgerr: a negative errno.
        let error = word(0).map(|bytes| i32::from_ne_bytes(*bytes)).ok_or_else(nonsense)?;
        return Err(io::Error::from_raw_os_error(error.saturating_neg()));
    }
    // One that only listens is found where nobody is connected (any more).
    let port = body.get(SOCKID..).and_then(|id| id.first_chunk()).map(|port| u16::from_be_bytes(*port));
    let inode = word(INODE).map(|bytes| u32::from_ne_bytes(*bytes)).ok_or_else(nonsense)?;
    if port == Some(from.port()) && inode != 0 { Ok(inode) } else { Err(io::ErrorKind::NotFound.into()) }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn of(socket: impl AsFd) -> u64 {
        std::fs::File::from(socket.as_fd().try_clone_to_owned().unwrap()).metadata().unwrap().ino()
    }

    #[test]
    fn a_connection_is_known_by_its_two_ends() {
        let diag = open().unwrap();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (accepted, from) = listener.accept().unwrap();
            let to = accepted.local_addr().unwrap();
            assert_eq!(u64::from(inode(&diag, Transport::Tcp, from, to).unwrap()), of(&client));
            assert_eq!(u64::from(inode(&diag, Transport::Tcp, to, from).unwrap()), of(&accepted));
        }
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(server.local_addr().unwrap()).unwrap();
        let (from, to) = (client.local_addr().unwrap(), server.local_addr().unwrap());
        assert_eq!(u64::from(inode(&diag, Transport::Udp, from, to).unwrap()), of(&client));
        drop(client);
        assert!(inode(&diag, Transport::Udp, from, to).is_err());
    }

    #[test]
    fn an_answer_that_is_none_is_an_error() {
        let from = "127.0.0.1:80".parse().unwrap();
        for length in 0..120 {
            assert!(read(&vec![0; length], from).is_err() && read(&vec![0xff; length], from).is_err());
        }
    }
}
