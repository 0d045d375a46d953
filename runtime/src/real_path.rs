//! A host path without links.
//!
//! Invariant: it is the kernel that resolves; what comes back is a name for later, and who opens it looks again.

use std::io;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

/// The absolute path of `path` without links, `.` and `..`, as realpath(3) has it. That asks about one component after the
/// other; of most paths the kernel says in one call that there is nothing to resolve.
///
/// # Errors
/// The errno of the lookup.
pub(crate) fn real(path: &Path) -> io::Result<PathBuf> {
    let is_plain = path.is_absolute() && !path.components().any(|part| part == Component::ParentDir);
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    if is_plain && openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS).is_ok() {
        return Ok(path.components().collect());
    }
    #[expect(clippy::disallowed_methods, reason = "a name for later: it is opened through no link, and compared")]
    std::fs::canonicalize(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "what it is compared with")]
    fn it_is_what_realpath_says() {
        let directory = tempfile::tempdir().unwrap();
        let top = std::fs::canonicalize(directory.path()).unwrap();
        std::fs::create_dir(top.join("there")).unwrap();
        std::fs::write(top.join("file"), "").unwrap();
        std::os::unix::fs::symlink("there", top.join("link")).unwrap();
        std::os::unix::fs::symlink("loop", top.join("loop")).unwrap();
        for name in
            ["", "/", "there", "there/", "./there//", "there/..", "link", "link/..", "file", "file/", "loop", "no", "."]
        {
            let path = PathBuf::from(format!("{}/{name}", top.display()));
            let (real, expected) = (real(&path), std::fs::canonicalize(&path));
            match (real, expected) {
                (Ok(real), Ok(expected)) => assert_eq!(real.as_os_str(), expected.as_os_str(), "{name}"),
                (Err(real), Err(expected)) => assert_eq!(real.raw_os_error(), expected.raw_os_error(), "{name}"),
                other => panic!("{name}: {other:?}"),
            }
        }
        let here = std::fs::canonicalize(".").unwrap();
        assert_eq!(real(Path::new(".")).unwrap(), here);
        assert!(real(Path::new("")).is_err());
        let magic = Path::new("/proc/self/cwd");
        assert_eq!(real(magic).unwrap(), here);
    }
}
