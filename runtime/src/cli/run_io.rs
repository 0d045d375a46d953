//! The words of `agentd run` about disks, which are docker's: DEVICE:RATE.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::cgroup::io::{IoKind, IoLimit, disk_of};
use crate::job::spec;

// Not a doc comment: clap would take it for what the verb does.
#[derive(Debug, clap::Args)]
pub(super) struct IoArgs {
    /// Bytes a second to read from a disk: a block device, or a path that lies on it (needs cgroup v2)
    #[arg(long, value_name = "PATH:SIZE", value_parser = bytes)]
    device_read_bps: Vec<Rate>,
    /// Bytes a second to write to a disk (needs cgroup v2)
    #[arg(long, value_name = "PATH:SIZE", value_parser = bytes)]
    device_write_bps: Vec<Rate>,
    /// Reads a second from a disk (needs cgroup v2)
    #[arg(long, value_name = "PATH:NUMBER", value_parser = number)]
    device_read_iops: Vec<Rate>,
    /// Writes a second to a disk (needs cgroup v2)
    #[arg(long, value_name = "PATH:NUMBER", value_parser = number)]
    device_write_iops: Vec<Rate>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rate {
    path: PathBuf,
    most: u64,
}

fn rate(text: &str, most: impl Fn(&str) -> Option<u64>, example: &str) -> Result<Rate, String> {
    let parsed = text.rsplit_once(':').filter(|(path, _)| !path.is_empty());
    let parsed = parsed.and_then(|(path, rate)| Some(Rate { path: path.into(), most: most(rate)? }));
    parsed.ok_or_else(|| format!("write a device or path, a colon and what a second: {example}"))
}

fn bytes(text: &str) -> Result<Rate, String> {
    rate(text, |rate| spec::parse_size(rate).ok(), "/dev/sda:10m")
}

fn number(text: &str) -> Result<Rate, String> {
    rate(text, |rate| rate.parse().ok().filter(|rate| *rate > 0), "/dev/sda:500")
}

impl IoArgs {
    /// The limits, by disk.
    pub(super) fn limits(self) -> Result<Vec<IoLimit>> {
        let kinds = [
            (IoKind::Rbps, self.device_read_bps),
            (IoKind::Wbps, self.device_write_bps),
            (IoKind::Riops, self.device_read_iops),
            (IoKind::Wiops, self.device_write_iops),
        ];
        let mut limits = Vec::new();
        for (what, rates) in kinds {
            for Rate { path, most } in rates {
                let disk = disk_of(&path).with_context(|| format!("{} has no disk to limit", what.flag()))?;
                limits.push(IoLimit { disk, what, most });
            }
        }
        Ok(limits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_stands_behind_the_last_colon() {
        assert_eq!(bytes("/a:b:2k").unwrap(), Rate { path: "/a:b".into(), most: 2048 });
        assert_eq!(number("/dev/sda:5").unwrap(), Rate { path: "/dev/sda".into(), most: 5 });
        for bad in ["", "/dev/sda", "/dev/sda:", ":5", "/dev/sda:0", "/dev/sda:-1", "/dev/sda:x"] {
            assert!(bytes(bad).is_err() && number(bad).is_err(), "{bad}");
        }
    }
}
