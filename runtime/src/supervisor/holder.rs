//! Which process of the box has a socket: seen in /proc, among what PID 1 has started.
//!
//! Invariant: read only, and no more of /proc is looked at than [`MOST`] says. What is found was so at that moment, and the
//! name is the process's own word.

use std::fs::{self, File};
use std::io::Read;

use agentd_egress::Program;

/// Names that are looked at for one question: descriptors, threads, children.
const MOST: usize = 4096;

/// Bytes of a comm (proc_pid_comm(5)).
const COMM: u64 = 64;

/// Bytes of a list of children, and of a status.
const TEXT: u64 = 64 << 10;

/// Looks for the process that has the socket `inode`, among `init` and its descendants; at `likely` first, which had the last.
pub(super) fn find(init: i32, likely: &mut Option<i32>, inode: u32) -> Option<Program> {
    let wanted = format!("socket:[{inode}]");
    let mut left = MOST;
    // A number that another process has by now has this socket no more than it.
    let found = likely.filter(|pid| has(*pid, &wanted, &mut left)).or_else(|| search(init, &wanted, &mut left));
    *likely = found.or(*likely);
    let pid = found?;
    let status = text(&format!("/proc/{pid}/status"), TEXT)?;
    let inside = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_whitespace().next_back()?;
    let untrusted_name = text(&format!("/proc/{pid}/comm"), COMM)?.trim_end_matches('\n').to_owned();
    Some(Program { untrusted_name, pid: inside.parse().ok()? })
}

fn search(init: i32, wanted: &str, left: &mut usize) -> Option<i32> {
    let mut next = vec![init];
    while let Some(pid) = next.pop() {
        if *left == 0 {
            return None;
        }
        if has(pid, wanted, left) {
            return Some(pid);
        }
        next.extend(children(pid, left));
    }
    None
}

/// The names in a directory of /proc, as far as they may be looked at. A process that is gone has none.
fn names(path: &str, left: &mut usize) -> Vec<std::ffi::OsString> {
    let listed = fs::read_dir(path).into_iter().flatten().flatten().take(*left).map(|entry| entry.file_name());
    let listed: Vec<_> = listed.collect();
    *left = left.saturating_sub(listed.len().max(1));
    listed
}

fn has(pid: i32, wanted: &str, left: &mut usize) -> bool {
    let place = format!("/proc/{pid}/fd");
    let is_it = |name: std::ffi::OsString| {
        fs::read_link(format!("{place}/{}", name.display())).is_ok_and(|link| link.as_os_str() == wanted)
    };
    names(&place, left).into_iter().any(is_it)
}

fn children(pid: i32, left: &mut usize) -> Vec<i32> {
    let place = format!("/proc/{pid}/task");
    let mut found = Vec::new();
    for thread in names(&place, left) {
        let listed = text(&format!("{place}/{}/children", thread.display()), TEXT).unwrap_or_default();
        found.extend(listed.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()).take(*left));
        *left = left.saturating_sub(1);
    }
    found
}

fn text(path: &str, most: u64) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(most).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn inode(socket: impl AsFd) -> u32 {
        let file = File::from(socket.as_fd().try_clone_to_owned().unwrap());
        u32::try_from(file.metadata().unwrap().ino()).unwrap()
    }

    #[test]
    fn a_socket_is_found_with_its_process_and_no_other() {
        let own = i32::try_from(std::process::id()).unwrap();
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut likely = None;
        let program = find(own, &mut likely, inode(&socket)).unwrap();
        assert_eq!((program.pid, likely), (std::process::id(), Some(own)));
        let number = inode(&socket);
        drop(socket);
        assert_eq!(find(own, &mut likely, number), None);
        assert_eq!(find(i32::MAX, &mut None, number), None);
    }

    #[test]
    fn it_is_looked_for_among_descendants_and_not_for_ever() {
        let own = i32::try_from(std::process::id()).unwrap();
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let stdin = std::process::Stdio::from(socket.as_fd().try_clone_to_owned().unwrap());
        let mut child = std::process::Command::new("sleep").arg("1000").stdin(stdin).spawn().unwrap();
        let number = inode(&socket);
        drop(socket);
        let program = find(own, &mut None, number);
        let tired = search(own, &format!("socket:[{number}]"), &mut 1);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!((program.map(|program| program.pid), tired), (Some(child.id()), None));
    }
}
