//! Notes on layers whose bytes may not be on the disk yet: a pull does not wait for the disk (docs/adr/0006).
//!
//! ```text
//! STORE/unsynced/KEY.PID.MACHINE.BOOT   made before `layers/KEY` is: who published it without waiting
//! ```
//! A process that opens the store removes the layers that this machine noted before it last started: their files may be
//! empty. Whoever uses an image while there are notes gets a [`WriteBack`] to finish where nobody waits for it. Invariant: a
//! layer without a note is on the disk; one whose note is of an earlier start of this machine is not used.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags, flock, mkdirat, openat, syncfs, unlinkat};
use rustix::io::Errno;

use super::{Store, StoreError};
use crate::removal::remove_all;

const DIRECTORY: &str = "unsynced";

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
        let names = self.list(&self.root, DIRECTORY)?;
        if names.is_empty() {
            return Ok(());
        }
        let Some((machine, boot)) = this_start() else { return Ok(()) };
        let lost = |note: &Note<'_>| note.machine == machine && note.boot != boot;
        let remove = |note: &Note<'_>| match unlinkat(&directory, note.name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(io(e)),
        };
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
        Ok(())
    }

    /// What this start of the machine still has to write back, unless another process is at it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn write_back(&self) -> Result<Option<WriteBack>, StoreError> {
        let io = StoreError::io("look for what is not written back of", &self.path);
        let notes = match self.notes() {
            Err(Errno::NOENT) => return Ok(None),
            other => other.map_err(&io)?,
        };
        if self.list(&self.root, DIRECTORY)?.is_empty() {
            return Ok(None);
        }
        let Some(start) = this_start() else { return Ok(None) };
        let mut write_back = WriteBack { notes, start, names: Vec::new() };
        Ok(if write_back.take().map_err(io)? { Some(write_back) } else { None })
    }

    fn notes(&self) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&self.root, DIRECTORY, flags, Mode::empty())
    }
}

/// Layers that are to be written back: it takes as long as the disk takes, and nothing depends on it.
#[derive(Debug)]
pub struct WriteBack {
    /// Locked while there are `names`, so that one process does it.
    notes: OwnedFd,
    /// The machine, and this start of it.
    start: (String, String),
    names: Vec<String>,
}

impl WriteBack {
    /// The one descriptor it needs.
    #[must_use]
    pub fn descriptor(&self) -> RawFd {
        self.notes.as_raw_fd()
    }

    /// Takes on what is noted, unless another process is at it, which will look again; says whether there is something.
    fn take(&mut self) -> rustix::io::Result<bool> {
        let (machine, boot) = &self.start;
        let is_ours =
            |name: &&str| Note::parse(name).is_some_and(|note| note.machine == *machine && note.boot == *boot);
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.notes)? {
            let entry = entry?;
            names.extend(entry.file_name().to_str().ok().filter(is_ours).map(str::to_owned));
        }
        self.names = names;
        match flock(&self.notes, FlockOperation::NonBlockingLockExclusive) {
            _ if self.names.is_empty() => Ok(false),
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Waits for the disk and removes the notes, those too that are made meanwhile: who makes one finds the lock taken.
    ///
    /// # Errors
    /// The errno of `syncfs(2)`, `unlinkat(2)` and what looks for notes: what is left is tried again with the next use of an
    /// image.
    pub fn finish(mut self) -> std::io::Result<()> {
        loop {
            syncfs(&self.notes)?;
            for name in &self.names {
                match unlinkat(&self.notes, name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            // Before it looks again: a note that it does not see is made by who will find no lock.
            flock(&self.notes, FlockOperation::Unlock)?;
            if !self.take()? {
                return Ok(());
            }
        }
    }
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
