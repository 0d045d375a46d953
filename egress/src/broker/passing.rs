//! Moving bytes from one socket to another without looking at them: by splice(2), through a pipe, in the kernel.
//!
//! A pipe is taken from a pool when there are bytes to move, and goes back when it is empty: a thousand connections that are
//! idle have none.
//!
//! Invariant: a pipe in the pool is empty, so no byte of one connection reaches another.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;

use rustix::net::Shutdown as Ends;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::connection::Stop;
use super::meter::Meter;

/// Bytes of a pipe: enough that a fast connection is not slowed down by the turns it takes, and what an ordinary user may
/// have (pipe(7)).
const PIPE: usize = 256 << 10;

/// Empty pipes that are kept.
const MOST_IDLE: usize = 8;

#[derive(Debug)]
struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
}

#[derive(Debug, Default)]
pub(super) struct Pipes(RefCell<Vec<Pipe>>);

impl Pipes {
    fn take(&self) -> io::Result<Pipe> {
        if let Some(pipe) = self.0.borrow_mut().pop() {
            return Ok(pipe);
        }
        let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Above the user's share of pipes it stays as small as it is, and works.
        fcntl_setpipe_size(&into, PIPE).unwrap_or_default();
        Ok(Pipe { out, into })
    }

    fn give(&self, empty: Pipe) {
        let mut idle = self.0.borrow_mut();
        if idle.len() < MOST_IDLE {
            idle.push(empty);
        }
    }

    /// Moves everything that comes from `from` to `to`, and then its end; counts the bytes.
    pub(super) async fn pass(
        &self,
        from: &TcpStream,
        to: &TcpStream,
        bytes: &Cell<u64>,
        meter: &Meter,
    ) -> Result<(), Stop> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        loop {
            from.readable().await?;
            let most = meter.room(PIPE).await.map_err(Stop::Refused)?;
            let pipe = self.take()?;
            // The pipe is empty: what would block is the socket.
            let fill = || Ok(splice(from, None, &pipe.into, None, most, flags)?);
            let mut left = match from.try_io(Interest::READABLE, fill) {
                Ok(0) => {
                    self.give(pipe);
                    break;
                }
                Ok(filled) => filled,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.give(pipe);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            meter.moved(left);
            while left > 0 {
                let drain = || Ok(splice(&pipe.out, None, to, None, left, flags)?);
                match to.try_io(Interest::WRITABLE, drain) {
                    Ok(drained) => {
                        left -= drained;
                        bytes.set(bytes.get().saturating_add(u64::try_from(drained).unwrap_or(u64::MAX)));
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => to.writable().await?,
                    Err(error) => return Err(error.into()),
                }
            }
            self.give(pipe);
        }
        rustix::net::shutdown(to, Ends::Write).map_err(io::Error::from)?;
        Ok(())
    }
}

/// Writes all of it.
pub(super) async fn write(to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads what is there, up to `most` bytes in all; `false` at the end.
pub(super) async fn read(from: &TcpStream, bytes: &mut Vec<u8>, most: usize) -> io::Result<bool> {
    loop {
        from.readable().await?;
        match read_now(from, bytes, most) {
            Ok(read) => return Ok(read > 0),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Not a part of what waits: a thousand connections would have a thousand of these buffers.
fn read_now(from: &TcpStream, bytes: &mut Vec<u8>, most: usize) -> io::Result<usize> {
    let mut part = [0; 4096];
    let room = part.len().min(most.saturating_sub(bytes.len()));
    let read = from.try_read(&mut part[..room])?;
    bytes.extend_from_slice(&part[..read]);
    Ok(read)
}

/// Says these last words and waits for the other side to have them: to close at once would take them back.
pub(super) async fn last_words(to: &TcpStream, words: &[u8]) -> io::Result<()> {
    write(to, words).await?;
    rustix::net::shutdown(to, Ends::Write)?;
    let mut ignored = Vec::new();
    // Whoever keeps talking has been told.
    while ignored.len() < 256 << 10 && read(to, &mut ignored, 256 << 10).await? {}
    Ok(())
}
