//! The measuring half, on the other side of the way: moves bytes, asks, waits, and prints what it took as JSON.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::server::{ECHO, HOLD, PART, SEND, TAKE};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name or address, and port
    server: String,
    /// Only connect, again and again
    #[arg(long)]
    in_a_row: bool,
}

/// One run over one way.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Measured {
    /// MiB a second from the server, one connection.
    pub(super) down: f64,
    /// The same to the server.
    pub(super) up: f64,
    /// The same from the server, eight connections together.
    pub(super) down_8: f64,
    /// Connections a second that each ask one thing.
    pub(super) requests: f64,
    /// Microseconds of a round trip, median.
    pub(super) round_trip: f64,
    /// Milliseconds until [`MANY`] connections are open at once and answered.
    pub(super) many: f64,
}

/// Connections that are open at once.
pub(super) const MANY: usize = 1000;

/// Connections one after the other.
pub(super) const IN_A_ROW: u32 = 100_000;

const BYTES: u64 = 256 << 20;
const REQUESTS: u32 = 1000;
const ROUND_TRIPS: usize = 3000;
const MESSAGE: [u8; 64] = [b'x'; 64];

/// For a way that opens while the client starts already.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn run(arguments: &Args) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE && TcpStream::connect(&arguments.server).is_err() {
        std::thread::sleep(Duration::from_millis(20));
    }
    // Once: the others are told an address, and what is measured is the way there.
    let server = arguments.server.to_socket_addrs()?.next().context("the server's name leads nowhere")?;
    if arguments.in_a_row {
        return (0..IN_A_ROW).try_for_each(|_| {
            let mut stream = open(server, ECHO)?;
            exchange(&mut stream)?;
            // Ended by a reset: 28,000 that wait their minute out are all there can be between two addresses.
            Ok(rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?)
        });
    }
    let mut measured = Measured { down: rate(1, || down(server, BYTES))?, ..Measured::default() };
    measured.up = rate(1, || up(server, BYTES))?;
    measured.down_8 = rate(8, || down(server, BYTES / 4))? / 4.0 * 8.0;
    let begun = Instant::now();
    for _ in 0..REQUESTS {
        exchange(&mut open(server, ECHO)?)?;
    }
    measured.requests = f64::from(REQUESTS) / begun.elapsed().as_secs_f64();
    measured.round_trip = round_trip(server)?;
    // Last: they are held until the server lets them go.
    let begun = Instant::now();
    let many: Vec<TcpStream> = (0..MANY).map(|_| open(server, HOLD)).collect::<Result<_>>()?;
    for mut stream in &many {
        stream.read_exact(&mut [0]).context("wait for an answer")?;
    }
    measured.many = begun.elapsed().as_secs_f64() * 1e3;
    for mut stream in &many {
        // Its end, or its reset; a way that brings neither is not waited for.
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.read(&mut [0]).unwrap_or_default();
    }
    serde_json::to_writer(std::io::stdout(), &measured).context("write what was measured")
}

fn open(server: SocketAddr, what: u8) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(server).with_context(|| format!("connect to {server}"))?;
    stream.set_nodelay(true)?;
    stream.write_all(&[what])?;
    Ok(stream)
}

/// MiB a second of [`BYTES`] over so many connections at once.
fn rate(connections: u32, move_bytes: impl Fn() -> Result<()> + Sync) -> Result<f64> {
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..connections).map(|_| scope.spawn(&move_bytes)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| anyhow::bail!("a thread died")))
    })?;
    Ok(256.0 / begun.elapsed().as_secs_f64())
}

fn down(server: SocketAddr, bytes: u64) -> Result<()> {
    let mut stream = open(server, SEND)?;
    stream.write_all(&bytes.to_be_bytes())?;
    let mut part = vec![0; PART];
    let mut heard = 0;
    loop {
        match stream.read(&mut part)? {
            0 => break,
            read => heard += u64::try_from(read)?,
        }
    }
    anyhow::ensure!(heard == bytes, "{heard} bytes of {bytes} came");
    Ok(())
}

fn up(server: SocketAddr, bytes: u64) -> Result<()> {
    let mut stream = open(server, TAKE)?;
    let part = vec![7; PART];
    for _ in 0..bytes / u64::try_from(PART)? {
        stream.write_all(&part)?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.read_exact(&mut [0]).context("wait for the end")
}

fn exchange(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(&MESSAGE)?;
    stream.read_exact(&mut [0; MESSAGE.len()]).context("wait for an echo")
}

fn round_trip(server: SocketAddr) -> Result<f64> {
    let mut stream = open(server, ECHO)?;
    let mut times = Vec::new();
    for _ in 0..ROUND_TRIPS {
        let begun = Instant::now();
        exchange(&mut stream)?;
        times.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    Ok(crate::bench::statistics::percentile(&times, 50))
}
