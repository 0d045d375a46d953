//! What the kernel counts of a running job in its cgroup, and how far it lets it go.
//!
//! Invariant: read only; what the kernel does not tell is absent, and never taken for nothing.

use std::fs;
use std::path::Path;

use super::leaf::{OWN_PROCESSES, field};

/// One look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Microseconds of processor time.
    pub cpu_us: Option<u64>,
    /// Thousandths of a processor that it may have.
    pub milli_cpus: Option<u64>,
    /// Bytes of memory, what it keeps in memory of files included.
    pub memory: Option<u64>,
    /// The most of that.
    pub memory_peak: Option<u64>,
    /// What it may have of that.
    pub memory_limit: Option<u64>,
    /// Processes and threads that there may be.
    pub pids_limit: Option<u64>,
    /// Bytes read from disks, and written to them.
    pub io: Option<(u64, u64)>,
}

impl Counted {
    /// Of the cgroup at `directory`; nothing where it is gone.
    #[must_use]
    pub fn of(directory: &Path) -> Self {
        let text = |name: &str| fs::read_to_string(directory.join(name)).ok();
        let number = |name: &str| text(name)?.trim().parse::<u64>().ok();
        Self {
            cpu_us: text("cpu.stat").and_then(|text| field(&text, "usage_usec")),
            milli_cpus: text("cpu.max").as_deref().and_then(milli_cpus),
            memory: number("memory.current"),
            memory_peak: number("memory.peak"),
            memory_limit: number("memory.max"),
            pids_limit: number("pids.max").map(|most| most.saturating_sub(OWN_PROCESSES)),
            io: text("io.stat").as_deref().map(io),
        }
    }
}

/// Of `QUOTA PERIOD`; without a quota there is none.
fn milli_cpus(text: &str) -> Option<u64> {
    let (quota, period) = text.trim().split_once(' ')?;
    quota.parse::<u64>().ok()?.saturating_mul(1000).checked_div(period.parse().ok()?)
}

/// Of a line for each disk (cgroup-v2.rst, "io.stat").
fn io(text: &str) -> (u64, u64) {
    let sum = |name: &str| {
        let words = text.split_ascii_whitespace();
        words.filter_map(|word| word.strip_prefix(name)?.parse::<u64>().ok()).fold(0, u64::saturating_add)
    };
    (sum("rbytes="), sum("wbytes="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_read_and_what_it_does_not_is_absent() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Counted::of(directory.path()), Counted::default());
        for (name, text) in [
            ("cpu.stat", "usage_usec 1500\nuser_usec 1\n"),
            ("cpu.max", "20000 100000\n"),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("pids.max", "51\n"),
            ("io.stat", "8:0 rbytes=1 wbytes=2 rios=9\n\n8:16 rbytes=10 wbytes=20 dbytes=7\n"),
        ] {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        let counted = Counted::of(directory.path());
        let expected = Counted {
            cpu_us: Some(1500),
            milli_cpus: Some(200),
            memory: Some(4096),
            pids_limit: Some(50),
            io: Some((11, 22)),
            ..Counted::default()
        };
        assert_eq!(counted, expected);
        assert_eq!((milli_cpus("max 100000\n"), milli_cpus("5 0"), milli_cpus("")), (None, None, None));
    }
}
