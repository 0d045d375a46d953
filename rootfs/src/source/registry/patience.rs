//! How long a server is waited for, and how often it is asked again.
//!
//! Invariant: every wait ends: by an answer, by its time, or because the pull was stopped; and the waits of one request
//! that makes no progress end together.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::error::RegistryError;

/// The times of one pull.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// For a connection with its TLS handshake.
    pub(super) connect: Duration,
    /// For the head of an answer.
    pub(super) answer: Duration,
    /// Between two reads.
    pub(super) read: Duration,
    /// For all of a document.
    pub(super) document: Duration,
    /// A window in which at least [`Patience::SLOWEST`] bytes a second must come.
    pub(super) window: Duration,
    /// Before the first further try; doubled for each.
    pub(super) first: Duration,
    /// Tries without progress, the first included.
    pub(super) tries: u32,
    /// The longest a server may ask us to wait.
    pub(super) longest: Duration,
    /// For all tries without progress.
    pub(super) total: Duration,
}

impl Patience {
    /// Bytes a second below which a transfer has stalled: git's and dnf's measure, a tenth of a modem's.
    pub(super) const SLOWEST: u64 = 1000;
    /// Bytes that are progress: a server that sends one and falls silent, again and again, makes none.
    pub(super) const PROGRESS: u64 = 64 << 10;

    /// Between the try that was the `failed`th to fail and the next; `chance` lies between 0 and 1.
    fn pause(&self, failed: u32, chance: f64) -> Duration {
        let backoff = self.first.saturating_mul(1 << failed.saturating_sub(1).min(16));
        // Half of it is by chance: layers that failed together are not asked for together.
        backoff / 2 + backoff.mul_f64(0.5 * chance)
    }
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            connect: Duration::from_secs(15),
            answer: Duration::from_secs(60),
            read: Duration::from_secs(30),
            document: Duration::from_secs(60),
            window: Duration::from_secs(30),
            first: Duration::from_millis(500),
            tries: 6,
            longest: Duration::from_secs(60),
            total: Duration::from_secs(180),
        }
    }
}

/// Told to stop, every wait of the pull ends.
#[derive(Debug, Default)]
pub(super) struct Stop {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    pub(super) fn stop(&self) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits; an error when it is told to stop meanwhile.
    pub(super) fn wait(&self, time: Duration) -> Result<(), RegistryError> {
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(stopped, time, |stopped| !*stopped);
        let (stopped, _timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        if *stopped { Err(RegistryError::Stopped) } else { Ok(()) }
    }
}

/// The tries of one request, or of one transfer since it last made progress.
#[derive(Debug)]
pub(super) struct Tries<'p> {
    patience: &'p Patience,
    stop: &'p Stop,
    /// Tries that are allowed.
    most: u32,
    failed: u32,
    since: Instant,
    /// Since the last failure.
    bytes: u64,
}

impl<'p> Tries<'p> {
    pub(super) fn new(patience: &'p Patience, stop: &'p Stop, most: u32) -> Tries<'p> {
        Tries { patience, stop, most, failed: 0, since: Instant::now(), bytes: 0 }
    }

    /// Bytes came: after enough of them what failed before no longer counts.
    pub(super) fn progress(&mut self, bytes: u64) {
        self.bytes += bytes;
        if self.bytes >= Patience::PROGRESS {
            self.failed = 0;
            self.since = Instant::now();
        }
    }

    /// Waits before the next try; gives `error` back when there is none.
    pub(super) fn again(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        self.failed += 1;
        self.bytes = 0;
        let asked = error.retry_after().unwrap_or(Duration::ZERO);
        let wait = asked.max(self.patience.pause(self.failed, chance()));
        let over = wait > self.patience.longest || self.since.elapsed().saturating_add(wait) > self.patience.total;
        if !error.is_passing() || self.failed >= self.most || over {
            return Err(error);
        }
        self.stop.wait(wait)
    }
}

/// Between 0 and 1; nothing depends on its quality.
fn chance() -> f64 {
    let nanoseconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    f64::from(nanoseconds.subsec_nanos() % 1_000_003) / 1_000_003.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(status: u16, retry_after: Option<Duration>) -> RegistryError {
        RegistryError::Status { host: "h".into(), status, object: "o".into(), said: String::new(), retry_after }
    }

    fn quick() -> Patience {
        Patience { first: Duration::from_millis(1), ..Patience::default() }
    }

    #[test]
    fn what_is_final_is_not_tried_again() {
        let (patience, stop) = (quick(), Stop::default());
        for (code, passing) in [
            (400, false),
            (401, false),
            (404, false),
            (418, false),
            (429, true),
            (500, true),
            (501, false),
            (503, true),
        ] {
            assert_eq!(Tries::new(&patience, &stop, 2).again(status(code, None)).is_ok(), passing, "{code}");
        }
    }

    #[test]
    fn tries_are_counted_from_the_last_progress() {
        let (patience, stop) = (quick(), Stop::default());
        let mut tries = Tries::new(&patience, &stop, 3);
        tries.again(status(503, None)).unwrap();
        tries.again(status(503, None)).unwrap();
        tries.progress(Patience::PROGRESS);
        tries.again(status(503, None)).unwrap();
        tries.again(status(503, None)).unwrap();
        tries.progress(Patience::PROGRESS - 1);
        assert!(matches!(tries.again(status(503, None)), Err(RegistryError::Status { status: 503, .. })));
    }

    #[test]
    fn the_pause_between_tries_doubles() {
        let patience = Patience::default();
        for (failed, whole) in [(1, 500), (2, 1000), (3, 2000), (4, 4000), (5, 8000)] {
            let whole = Duration::from_millis(whole);
            assert_eq!((patience.pause(failed, 0.0), patience.pause(failed, 1.0)), (whole / 2, whole));
            assert!((0..1000).all(|_| (0.0..=1.0).contains(&chance())));
        }
        // However often it failed, it is a time that can be waited.
        assert_eq!(patience.pause(1000, 1.0), patience.first * (1 << 16));
    }

    #[test]
    fn a_server_is_waited_for_as_it_asks_but_not_for_ever() {
        let (patience, stop) = (quick(), Stop::default());
        let asked = Duration::from_millis(60);
        let begin = Instant::now();
        Tries::new(&patience, &stop, 2).again(status(429, Some(asked))).unwrap();
        assert!(begin.elapsed() >= asked);
        let begin = Instant::now();
        assert!(Tries::new(&patience, &stop, 2).again(status(429, Some(Duration::from_secs(61)))).is_err());
        assert!(begin.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn stopping_ends_a_wait() {
        let stop = Stop::default();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| stop.wait(Duration::from_secs(3600)));
            stop.stop();
            assert!(matches!(waiting.join(), Ok(Err(RegistryError::Stopped))));
        });
    }
}
