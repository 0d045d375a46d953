//! A private channel between two related processes: whole messages of bounded size, each with at most one descriptor.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// Longest message in bytes; a longer one is an error for the sender and for the receiver.
pub const MAX_MESSAGE: usize = 8192;

/// One message.
#[derive(Debug)]
pub struct Message {
    /// What was sent.
    pub bytes: Vec<u8>,
    /// The descriptor that came with it.
    pub descriptor: Option<OwnedFd>,
}

/// A connected pair of message sockets (`SOCK_SEQPACKET`: boundaries kept, end-of-file when the peer is gone).
///
/// # Errors
/// The errno of `socketpair(2)`.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends one message, with a descriptor when one is given.
///
/// # Errors
/// `EMSGSIZE` above [`MAX_MESSAGE`]; else the errno of `sendmsg(2)` (`EPIPE` when the peer is gone; no signal).
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    if bytes.len() > MAX_MESSAGE {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one message and its descriptor; `None` at end-of-file.
///
/// # Errors
/// `EMSGSIZE` for a message that was cut; else the errno of `recvmsg(2)`.
pub fn receive(socket: impl AsFd) -> io::Result<Option<Message>> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut next = || recvmsg(&socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC);
    let message = match next() {
        // The peer went with a message of ours unread. That is told once, before what it had sent.
        Err(Errno::CONNRESET) => next()?,
        received => received?,
    };
    let mut descriptor = None;
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut received) = ancillary {
            descriptor = received.next();
        }
    }
    if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    if message.bytes == 0 && descriptor.is_none() {
        return Ok(None);
    }
    bytes.truncate(message.bytes);
    Ok(Some(Message { bytes, descriptor }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_message_keeps_its_bounds_and_its_descriptor() {
        let (ours, theirs) = pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        send(ours.as_fd(), b"one", Some(writer.as_fd())).unwrap();
        send(ours.as_fd(), b"two", None).unwrap();
        drop(writer);
        let Message { bytes, descriptor } = receive(&theirs).unwrap().unwrap();
        assert_eq!(bytes, b"one");
        std::fs::File::from(descriptor.unwrap()).write_all(b"through").unwrap();
        let mut through = String::new();
        reader.read_to_string(&mut through).unwrap();
        assert_eq!(through, "through");
        assert_eq!(receive(&theirs).unwrap().unwrap().bytes, b"two");
        drop(ours);
        assert!(receive(&theirs).unwrap().is_none());
    }

    #[test]
    fn what_a_peer_sent_before_it_went_is_heard() {
        let (ours, theirs) = pair().unwrap();
        send(ours.as_fd(), b"never read", None).unwrap();
        send(theirs.as_fd(), b"last words", None).unwrap();
        drop(theirs);
        assert_eq!(receive(&ours).unwrap().unwrap().bytes, b"last words");
        assert!(receive(&ours).unwrap().is_none());
    }

    #[test]
    fn a_message_above_the_bound_is_refused() {
        let (ours, _theirs) = pair().unwrap();
        let error = send(ours.as_fd(), &vec![0; MAX_MESSAGE + 1], None).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
    }
}
