//! Attacks on files: reading, writing, and the ways round a refusal of either.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::raw::{self, CWD, Word};
use crate::{Attempted, BadWord};

/// Tries attack `name`; `None` when it is not one of these.
pub(crate) fn attempt(name: &str, argument: &str) -> Attempted {
    let result = match name {
        "read" => read(argument),
        // File or directory, for reading.
        "open" => File::open(argument).map(drop),
        "list" => fs::read_dir(argument).and_then(|mut entries| entries.next().transpose()).map(drop),
        "write" => OpenOptions::new().write(true).open(argument).map(drop),
        "write-back" => write_back(argument),
        "create" => create(argument, 0),
        "create-setuid" => OpenOptions::new().write(true).create_new(true).mode(0o6755).open(argument).map(drop),
        "chmod-setuid" => fs::set_permissions(argument, Permissions::from_mode(0o6755)),
        "mkdir" => fs::create_dir(argument).and_then(|()| fs::remove_dir(argument)),
        "remove" => fs::remove_file(argument),
        "tmpfile" => create(argument, libc::O_TMPFILE),
        "reopen" => reopen(argument),
        // To the mode it has: harmless where it works, and still a change of the inode.
        "chmod" => fs::metadata(argument)
            .and_then(|found| fs::set_permissions(argument, Permissions::from_mode(found.permissions().mode()))),
        "hardlink" => pair(argument)?.try_with(|from, to| fs::hard_link(from, to).and_then(|()| fs::remove_file(to))),
        // There and back again: harmless where it works.
        "exchange" => pair(argument)?.try_with(|from, to| exchange(from, to).and_then(|()| exchange(from, to))),
        "reopen-path" => reopen_path(argument),
        "device" => device(argument),
        "descriptors" => descriptors(),
        "rename" => pair(argument)?.try_with(|from, to| fs::rename(from, to).and_then(|()| fs::rename(to, from))),
        _ => return Ok(None),
    };
    Ok(Some(result))
}

/// `FROM,TO`
struct Pair<'a>(&'a str, &'a str);

impl Pair<'_> {
    fn try_with(&self, attack: impl Fn(&Path, &Path) -> io::Result<()>) -> io::Result<()> {
        attack(Path::new(self.0), Path::new(self.1))
    }
}

fn pair(argument: &str) -> Result<Pair<'_>, BadWord> {
    let pair = argument.split_once(',').map(|(from, to)| Pair(from, to));
    pair.ok_or_else(|| BadWord::argument("FROM,TO", argument))
}

fn read(path: &str) -> io::Result<()> {
    let flags = libc::O_NONBLOCK;
    File::open(path)
        .or_else(|_| OpenOptions::new().read(true).custom_flags(flags).open(path))?
        .read(&mut [0; 16])
        .map(drop)
}

/// Writes into a file what is in it: a sysctl is as it was, and yet it was written.
fn write_back(path: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut contents = Vec::new();
    file.read_to_end(&mut contents)?;
    fs::write(path, contents)
}

fn create(path: &str, flags: i32) -> io::Result<()> {
    let anonymous = flags != 0;
    OpenOptions::new().write(true).create_new(!anonymous).custom_flags(flags).open(path)?;
    if anonymous { Ok(()) } else { fs::remove_file(path) }
}

/// A node of the machine's memory, which would be all of it.
fn device(path: &str) -> io::Result<()> {
    let name = CString::new(path)?;
    let number = libc::makedev(1, 1);
    let words = [CWD, raw::address(name.as_bytes_with_nul()), Word::from(libc::S_IFCHR | 0o600), number, 0, 0];
    raw::call(libc::SYS_mknodat, words).and_then(|_| fs::remove_file(path))
}

/// Looks for a descriptor beside the three streams and this look itself.
fn descriptors() -> io::Result<()> {
    for entry in fs::read_dir("/proc/self/fd")? {
        let path = entry?.path();
        let is_stream = ["0", "1", "2"].iter().any(|name| path.ends_with(name));
        let is_listing = fs::read_link(&path).map_or(true, |to| to.starts_with("/proc"));
        if !is_stream && !is_listing {
            return Ok(());
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBADF))
}

/// Opens for reading, then what was opened for writing, by its link in /proc.
fn reopen(path: &str) -> io::Result<()> {
    let reading = File::open(path)?;
    OpenOptions::new().write(true).open(format!("/proc/self/fd/{}", reading.as_raw_fd())).map(drop)
}

/// Swaps two names (renameat2(2)).
fn exchange(from: &Path, to: &Path) -> io::Result<()> {
    let [from, to] = [from, to].map(|path| [path.as_os_str().as_encoded_bytes(), b"\0"].concat());
    let flags = Word::from(libc::RENAME_EXCHANGE);
    raw::call(libc::SYS_renameat2, [CWD, raw::address(&from[..]), CWD, raw::address(&to[..]), flags, 0]).map(drop)
}

/// Opens the mere path, then what was opened for writing, by its link in /proc.
fn reopen_path(path: &str) -> io::Result<()> {
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)?;
    OpenOptions::new().write(true).open(format!("/proc/self/fd/{}", opened.as_raw_fd())).map(drop)
}
