//! A number of a job that grows while it runs.
//!
//! A record is only ever appended to, and a job may run for years: such a number stands in a file of its own beside it, always
//! as long and written in place. At the end the record has it.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Number {
    /// Starts after the first.
    Restarts,
    /// Bytes that went through the network broker, both ways.
    Moved,
}

/// As many as the largest number has.
const DIGITS: usize = 20;

impl Number {
    fn file(self) -> &'static str {
        match self {
            Self::Restarts => "restarts",
            Self::Moved => "moved",
        }
    }

    /// Notes it of the job with this directory.
    pub(crate) fn note(self, directory: &Path, number: u64) {
        let mut options = File::options();
        let file = options.write(true).create(true).truncate(false).mode(0o600).open(directory.join(self.file()));
        // A disk that takes no more costs the number while the job runs.
        file.and_then(|file| file.write_all_at(format!("{number:0DIGITS$}\n").as_bytes(), 0)).unwrap_or_default();
    }

    /// What was noted; 0 where nothing was.
    pub(crate) fn noted(self, directory: &Path) -> u64 {
        let mut text = String::new();
        let file = File::open(directory.join(self.file()));
        let read = file.and_then(|file| file.take(DIGITS as u64).read_to_string(&mut text));
        read.ok().and_then(|_| text.trim_end().parse().ok()).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_read_back_whatever_stands_there() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Number::Restarts.noted(directory.path()), 0);
        for number in [1, u64::MAX, 7] {
            Number::Restarts.note(directory.path(), number);
            assert_eq!(Number::Restarts.noted(directory.path()), number);
        }
        assert_eq!(Number::Moved.noted(directory.path()), 0, "each has its own");
        // As an agentd wrote it that had ten digits for them.
        std::fs::write(directory.path().join("restarts"), "0000000012\n").unwrap();
        assert_eq!(Number::Restarts.noted(directory.path()), 12);
        std::fs::write(directory.path().join("restarts"), [255; 40]).unwrap();
        assert_eq!(Number::Restarts.noted(directory.path()), 0);
    }
}
