//! Removing a tree that an image shaped.
//!
//! Invariant: nothing here follows a symlink; every step is relative to the descriptor of the directory above.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, chmodat, openat, statat, unlinkat};
use rustix::io::Errno;

/// Removes `name` in `dir` with everything below it. A name that is not there is no error.
///
/// The caller bounds the depth (one descriptor and one stack frame a level): unpacked trees are no deeper than
/// `Limits::depth`.
pub(crate) fn remove_all(dir: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // POSIX lets unlink of a directory say EPERM; Linux says EISDIR.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = match openat(dir, name, flags, Mode::empty()) {
        Err(Errno::ACCESS) => {
            open_up(dir, name)?;
            openat(dir, name, flags, Mode::empty())?
        }
        other => other?,
    };
    if let Err(Errno::ACCESS) = empty(&fd) {
        // Readable but not writable or searchable: an image's 0555 or 0444 directory.
        rustix::fs::fchmod(&fd, Mode::RWXU)?;
    }
    // A file system may skip entries while others vanish under its directory stream: look again, within reason.
    for _ in 0..3 {
        empty(&fd)?;
        match unlinkat(dir, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY) => {}
            other => return other,
        }
    }
    Err(Errno::NOTEMPTY)
}

fn empty(fd: &rustix::fd::OwnedFd) -> rustix::io::Result<()> {
    use std::os::fd::AsFd;
    for entry in Dir::read_from(fd)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            remove_all(fd.as_fd(), name)?;
        }
    }
    Ok(())
}

/// Gives the owner back the directory `name`, an image's 0000 directory.
fn open_up(dir: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()> {
    // chmodat follows symlinks; that this is a directory was just seen, and the store has one writer (its lock).
    let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(Errno::ACCESS);
    }
    chmodat(dir, name, Mode::RWXU, AtFlags::empty())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn removes_what_the_owner_cannot_enter_and_nothing_outside() {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| dir.path().join(p);
        fs::create_dir_all(at("t/a/b/c")).unwrap();
        fs::create_dir(at("kept")).unwrap();
        fs::write(at("kept/f"), "x").unwrap();
        fs::write(at("t/a/b/f"), "x").unwrap();
        symlink("../../kept", at("t/a/link")).unwrap();
        for (path, mode) in [("t/a/b/c", 0o000), ("t/a/b", 0o555), ("t/a", 0o444), ("t", 0o311)] {
            fs::set_permissions(at(path), fs::Permissions::from_mode(mode)).unwrap();
        }
        let fd = fs::File::open(dir.path()).unwrap();
        remove_all(fd.as_fd(), c"t").unwrap();
        remove_all(fd.as_fd(), c"t").unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(at("kept/f")).unwrap(), "x");
    }
}
