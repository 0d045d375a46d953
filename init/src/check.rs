//! Looking back before the payload exists: what does the kernel say this process can see?
//!
//! These are checks of our own work, not layers: a mistake in the set-up ends the start instead of becoming an escape.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;

use crate::step::{At, Failure, Step};

/// Every mount of this namespace is the root, one of `targets`, or lies below one.
pub(crate) fn mounts(targets: &[String]) -> Result<(), Failure> {
    let at = Step::CheckMounts;
    // Room for the whole table of a usual box in one read: the kernel walks it anew for each.
    let mut table = String::with_capacity(16 * 1024);
    let mut file = File::open("/proc/self/mountinfo").at(at, "/proc/self/mountinfo")?;
    file.read_to_string(&mut table).at(at, "/proc/self/mountinfo")?;
    let mut roots = 0;
    for line in table.lines() {
        // proc_pid_mountinfo(5): id, parent, major:minor, root, mount point, …
        let Some(point) = line.split(' ').nth(4) else {
            return Err(Failure::new(at, "/proc/self/mountinfo", libc::EINVAL));
        };
        let point = unescaped(point);
        if point == "/" {
            roots += 1;
        } else if !targets.iter().any(|target| Path::new(&point).starts_with(target)) {
            return Err(Failure::new(at, point, libc::EXDEV));
        }
    }
    // Two would mean that the host's root is still there, under ours.
    if roots == 1 { Ok(()) } else { Err(Failure::new(at, "/", libc::EXDEV)) }
}

/// The table writes space, tab, newline and backslash as three octal digits.
fn unescaped(point: &str) -> String {
    let characters = [(r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", r"\")];
    characters.iter().fold(point.to_owned(), |point, (code, character)| point.replace(code, character))
}

/// Nothing is open but 0, 1, 2 and `expected` (CVE-2024-21626).
pub(crate) fn descriptors(expected: impl IntoIterator<Item = RawFd>) -> Result<(), Failure> {
    let at = Step::CheckDescriptors;
    let listing = rustix::fs::open(
        "/proc/self/fd",
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .at(at, "/proc/self/fd")?;
    let mut expected: Vec<RawFd> = expected.into_iter().collect();
    expected.push(listing.as_raw_fd());
    for entry in rustix::fs::Dir::new(listing).at(at, "/proc/self/fd")? {
        let entry = entry.at(at, "/proc/self/fd")?;
        let Some(fd) = entry.file_name().to_str().ok().and_then(|name| name.parse::<RawFd>().ok()) else { continue };
        if fd > 2 && !expected.contains(&fd) {
            return Err(Failure::new(at, format!("descriptor {fd} is open"), libc::EBADF));
        }
    }
    Ok(())
}
