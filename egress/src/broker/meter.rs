//! What a job has used of its limits.
//!
//! Invariant: no connection begins above them, and no more than one byte moves beyond those allowed in all.

use std::cell::Cell;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::sleep;

use crate::limits::Limits;
use crate::policy::Refusal;

/// Bytes that may come at once above the rate: as much as a tenth of a second's, and enough for a packet.
const BURST: u64 = 10;
const LEAST_BURST: u64 = 16 << 10;

/// Between two times that it is told how much has moved.
const BETWEEN_NEWS: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Meter {
    limits: Limits,
    connections: Cell<u64>,
    moved: Cell<u64>,
    news: Notify,
    /// Bytes that may move now, and when that was so.
    tokens: Cell<(u64, Instant)>,
}

impl Meter {
    pub(super) fn new(limits: Limits) -> Self {
        let tokens = Cell::new((0, Instant::now()));
        Meter { limits, connections: Cell::new(0), moved: Cell::new(0), news: Notify::new(), tokens }
    }

    /// Counts a connection, if there may be one more.
    pub(super) fn admit(&self) -> Result<(), Refusal> {
        self.bytes_left()?;
        let begun = self.connections.get();
        if let Some(most) = self.limits.total.filter(|most| begun >= *most) {
            return Err(Refusal::because(format!("more than {most} connections in all (--net-limit total={most})")));
        }
        self.connections.set(begun + 1);
        Ok(())
    }

    fn bytes_left(&self) -> Result<u64, Refusal> {
        let Some(most) = self.limits.bytes else { return Ok(u64::MAX) };
        let why = || Refusal::because(format!("more than {most} bytes in all (--net-limit bytes={most})"));
        // One more than may be: that one shows that there are more, where an end may come as well.
        most.saturating_add(1).checked_sub(self.moved.get()).filter(|left| *left > 0).ok_or_else(why)
    }

    /// How many of `most` bytes may move now; waits until there are some.
    pub(super) async fn room(&self, most: usize) -> Result<usize, Refusal> {
        loop {
            let left = usize::try_from(self.bytes_left()?).unwrap_or(usize::MAX);
            let Some(rate) = self.limits.rate else { return Ok(most.min(left)) };
            let (tokens, at) = self.tokens.get();
            let elapsed = u64::try_from(at.elapsed().as_micros()).unwrap_or(u64::MAX);
            let earned = rate.saturating_mul(elapsed) / 1_000_000;
            let tokens = if earned > 0 {
                let tokens = tokens.saturating_add(earned).min(LEAST_BURST.max(rate / BURST));
                self.tokens.set((tokens, Instant::now()));
                tokens
            } else {
                tokens
            };
            if tokens > 0 {
                return Ok(most.min(left).min(usize::try_from(tokens).unwrap_or(usize::MAX)));
            }
            // Not for every byte.
            let packet = rate.min(1500).saturating_mul(1_000_000) / rate;
            sleep(Duration::from_micros(packet.max(1000))).await;
        }
    }

    /// Waits until `bytes` that are here may move on, and counts them.
    pub(super) async fn pay(&self, mut bytes: usize) -> Result<(), Refusal> {
        while bytes > 0 {
            let room = self.room(bytes).await?;
            self.moved(room);
            bytes -= room;
        }
        Ok(())
    }

    /// Whether bytes have a limit.
    pub(super) fn bounds_bytes(&self) -> bool {
        self.limits.bytes.is_some() || self.limits.rate.is_some()
    }

    /// Counts bytes that have moved.
    pub(super) fn moved(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.moved.set(self.moved.get().saturating_add(bytes));
        let (tokens, at) = self.tokens.get();
        self.tokens.set((tokens.saturating_sub(bytes), at));
        self.news.notify_one();
    }

    /// How many bytes have moved in all: a second after some did. Who waits for it is not woken where none do.
    pub(super) async fn news(&self) -> u64 {
        self.news.notified().await;
        sleep(BETWEEN_NEWS).await;
        self.moved.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_up_is_refused() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let meter = Meter::new(Limits { total: Some(2), bytes: Some(100), ..Limits::default() });
        assert!(meter.admit().is_ok());
        assert_eq!(runtime.block_on(meter.room(1000)), Ok(101));
        meter.moved(100);
        assert_eq!(runtime.block_on(meter.room(1000)), Ok(1));
        assert!(meter.admit().is_ok());
        assert!(meter.admit().unwrap_err().why.contains("--net-limit total=2"));
        meter.moved(1);
        assert!(runtime.block_on(meter.room(1000)).unwrap_err().why.contains("--net-limit bytes=100"));
        let meter = Meter::new(Limits { bytes: Some(100), ..Limits::default() });
        assert_eq!(runtime.block_on(meter.pay(100)), Ok(()));
        assert!(runtime.block_on(meter.pay(2)).is_err() && meter.admit().is_err());
        let free = Meter::new(Limits::default());
        assert_eq!(runtime.block_on(free.room(1000)), Ok(1000));
    }

    #[test]
    fn a_rate_is_held_over_time() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let rate = 1 << 20;
        let meter = Meter::new(Limits { rate: Some(rate), ..Limits::default() });
        let begun = Instant::now();
        let mut moved = 0;
        while moved < rate / 4 {
            let room = runtime.block_on(meter.room(1 << 16)).unwrap();
            meter.moved(room);
            moved += u64::try_from(room).unwrap();
        }
        // A quarter of a second's bytes, of which a tenth's may have come at once.
        assert!(begun.elapsed() >= Duration::from_millis(100), "{:?}", begun.elapsed());
    }
}
