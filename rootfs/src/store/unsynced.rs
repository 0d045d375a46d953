//! Notes on layers whose bytes may not be on the disk yet: a pull does not wait for the disk (docs/adr/0006).
//!
//! ```text
//! STORE/unsynced/KEY.PID.MACHINE.BOOT   made before `layers/KEY` is: who published it without waiting
//! ```
//! A process that opens the store removes the layers that this machine noted before it last started: their files may be
//! empty. It removes notes that are older than write-back takes, once it waited for what may be left. Invariant: a layer
//! without a note is on the disk; one whose note is of an earlier start of this machine is not used.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, statat, syncfs, unlinkat};
use rustix::io::Errno;

use super::{Store, StoreError};
use crate::removal::remove_all;

const DIRECTORY: &str = "unsynced";

/// The kernel writes back what is dirty for 30 s, and looks every 5 s (`vm.dirty_expire_centisecs`,
/// `vm.dirty_writeback_centisecs`).
const WRITTEN_BACK: Duration = Duration::from_secs(60);

/// `MACHINE.BOOT`; `None` where this machine cannot be told from others that may share the store.
fn this_start() -> Option<(String, String)> {
    let read = |path| {
        let text = std::fs::read_to_string(path).ok()?;
        let word = text.trim();
        let plain = !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        (plain && word.len() <= 36).then(|| word.to_owned())
    };
    Some((read("/etc/machine-id")?, read("/proc/sys/kernel/random/boot_id")?))
}

/// A note's name in its parts; what has others is no note.
struct Note<'n> {
    name: &'n str,
    key: &'n str,
    machine: &'n str,
    boot: &'n str,
}

impl Note<'_> {
    fn parse(name: &str) -> Option<Note<'_>> {
        let parts: Vec<&str> = name.split('.').collect();
        let [key, _pid, machine, boot] = parts[..] else { return None };
        Some(Note { name, key, machine, boot })
    }
}

impl Store {
    /// To be called before the layers `keys` are published: they are on the disk afterwards, or noted.
    pub(super) fn note_or_sync(&self, keys: &[String]) -> Result<(), StoreError> {
        let Some((machine, boot)) = this_start() else {
            return syncfs(&self.tmp).map_err(StoreError::io("write back", &self.path));
        };
        let io = StoreError::io("note what is not written back of", &self.path);
        match mkdirat(&self.root, DIRECTORY, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(io(e)),
        }
        let directory = self.notes().map_err(&io)?;
        for key in keys {
            // Names, and nothing inside: file systems write names back in order, so that a layer cannot be there after a
            // crash without its note. Another process that publishes the same layer has a note of its own.
            let name = format!("{key}.{}.{machine}.{boot}", std::process::id());
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(&directory, name, flags, Mode::RUSR | Mode::WUSR).map_err(&io)?;
        }
        Ok(())
    }

    /// Removes the layers that a crash of this machine may have damaged, and the notes that are no longer needed.
    pub(super) fn look_at_notes(&self) -> Result<(), StoreError> {
        let io = StoreError::io("look for what is not written back of", &self.path);
        let directory = match self.notes() {
            Err(Errno::NOENT) => return Ok(()),
            other => other.map_err(&io)?,
        };
        let Some((machine, boot)) = this_start() else { return Ok(()) };
        let lost = |note: &Note<'_>| note.machine == machine && note.boot != boot;
        let remove = |note: &Note<'_>| match unlinkat(&directory, note.name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(io(e)),
        };
        let names = self.list(&self.root, DIRECTORY)?;
        if names.iter().filter_map(|name| Note::parse(name)).any(|note| lost(&note)) {
            // Listed again: by now another process may have removed them, and unpacked the layers anew.
            let _alone = self.alone(&mut || {})?;
            for name in self.list(&self.root, DIRECTORY)? {
                let Some(note) = Note::parse(&name).filter(lost) else { continue };
                let key = CString::new(note.key).map_err(|_nul| io(Errno::INVAL))?;
                remove_all(self.layers.as_fd(), &key).map_err(&io)?;
                remove(&note)?;
            }
        }
        let old = |note: &Note<'_>| note.boot == boot && age(&directory, note.name) > WRITTEN_BACK;
        let old: Vec<Note<'_>> = names.iter().filter_map(|name| Note::parse(name)).filter(old).collect();
        if !old.is_empty() {
            syncfs(&self.layers).map_err(StoreError::io("write back", &self.path))?;
            old.iter().try_for_each(remove)?;
        }
        Ok(())
    }

    fn notes(&self) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&self.root, DIRECTORY, flags, Mode::empty())
    }
}

/// Time since a note was made. A clock that was set back makes it young, which only keeps it longer.
fn age(directory: &OwnedFd, name: &str) -> Duration {
    let made = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).ok();
    let made = made.and_then(|stat| u64::try_from(stat.st_mtime).ok()).unwrap_or(u64::MAX);
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    now.saturating_sub(Duration::from_secs(made))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_names_are_notes() {
        let note = Note::parse("sha256-00-squash.7.machine.boot-1").unwrap();
        assert_eq!((note.key, note.machine, note.boot), ("sha256-00-squash", "machine", "boot-1"));
        for bad in ["", "sha256-00-squash", "a.b.c", "a.1.b.c.d"] {
            assert!(Note::parse(bad).is_none(), "{bad}");
        }
    }
}
