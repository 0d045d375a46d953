//! A bare relay: the least that another hop costs, whoever makes it. It accepts, connects and splices; it decides nothing,
//! looks at nothing, counts nothing and has a thread for each direction.
//!
//! Invariant: it moves bytes as the broker does, by splice(2) through a pipe of the same size.

use std::io;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};

use anyhow::{Context, Result};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

/// As the broker's.
const PIPE: usize = 256 << 10;

/// Starts one, whose threads end with the program; gives the port that leads to `port`.
pub(super) fn start(port: u16) -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen on the loopback")?;
    let own = listener.local_addr().context("ask for the port")?.port();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            // A connection that breaks is its client's loss, and told there.
            serve(client, port).unwrap_or_default();
        }
    });
    Ok(own)
}

fn serve(client: TcpStream, port: u16) -> io::Result<()> {
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
    }
    let (from_client, from_server) = (client.try_clone()?, server.try_clone()?);
    std::thread::spawn(move || pass(&from_client, &server).unwrap_or_default());
    std::thread::spawn(move || pass(&from_server, &client).unwrap_or_default());
    Ok(())
}

fn pass(from: &TcpStream, to: &TcpStream) -> io::Result<()> {
    let (out, into) = pipe_with(PipeFlags::CLOEXEC)?;
    fcntl_setpipe_size(&into, PIPE)?;
    loop {
        let mut left = splice(from, None, &into, None, PIPE, SpliceFlags::MOVE)?;
        if left == 0 {
            return to.shutdown(Shutdown::Write);
        }
        while left > 0 {
            left -= splice(&out, None, to, None, left, SpliceFlags::MOVE)?;
        }
    }
}
