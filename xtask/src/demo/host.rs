//! Whether the host is as it was: files that no box was given, mounts, processes, records.
//!
//! The account's real home is not compared: other programs write there meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::attempts::TRACES;
use super::report::Report;
use super::site::Site;

/// How long the kernel may take to bury the processes of an ended box.
const SETTLING: Duration = Duration::from_secs(3);

/// What was seen at one time.
#[derive(Debug)]
pub(super) struct State {
    home: BTreeMap<PathBuf, File>,
    mounts: String,
    processes: BTreeSet<Process>,
}

/// A file of that home: everything that shows a change, the small contents instead of a hash of them.
#[derive(Debug, PartialEq, Eq)]
struct File {
    mode: u32,
    owner: (u32, u32),
    modified: (i64, i64),
    contents: Vec<u8>,
}

/// Process ids come again; with the start time they do not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Process {
    pid: u32,
    started: String,
    name: String,
}

impl State {
    pub(super) fn look(site: &Site) -> Result<Self> {
        let mut home = BTreeMap::new();
        list(&site.home(), &mut home)?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
        Ok(Self { home, mounts, processes: boxed_processes()? })
    }

    /// Checks that now is as then.
    pub(super) fn compare(&self, site: &Site, report: &mut Report) -> Result<()> {
        let end = Instant::now() + SETTLING;
        let left = loop {
            let left: BTreeSet<_> = boxed_processes()?.difference(&self.processes).cloned().collect();
            if left.is_empty() || Instant::now() > end {
                break left;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let now = Self::look(site)?;
        let changed: Vec<_> = now.home.iter().filter(|(path, file)| self.home.get(*path) != Some(file)).collect();
        let same = changed.is_empty() && now.home.len() == self.home.len();
        let what = "the demo's own home, given to agentd as the user's, is as it was: names, modes, times, contents";
        report.check(what, same, &format!("{changed:?}"));
        let traces: Vec<_> = TRACES.iter().map(PathBuf::from).chain([site.run().join("agentd-was-here")]).collect();
        let found: Vec<_> = traces.iter().filter(|path| path.symlink_metadata().is_ok()).collect();
        report.check("no attempt left a file on the host", found.is_empty(), &format!("{found:?}"));
        report.check("no mount is left", now.mounts == self.mounts, &now.mounts);
        report.check("no process of a box is left", left.is_empty(), &format!("{left:#?}"));
        let records: Vec<_> = fs::read_dir(site.jobs()).map(|dir| dir.flatten().collect()).unwrap_or_default();
        report.check("no record is left (all ran with --rm)", records.is_empty(), &format!("{records:?}"));
        Ok(())
    }
}

fn list(dir: &Path, files: &mut BTreeMap<PathBuf, File>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        let meta = path.symlink_metadata().with_context(|| format!("cannot look at {}", path.display()))?;
        if meta.is_dir() {
            list(&path, files)?;
        }
        let contents = if meta.is_file() { fs::read(&path)? } else { Vec::new() };
        let modified = (meta.mtime(), meta.mtime_nsec());
        files.insert(path, File { mode: meta.mode(), owner: (meta.uid(), meta.gid()), modified, contents });
    }
    Ok(())
}

/// The processes of this user that may belong to a box: in another pid namespace, or hiding which one they are in.
fn boxed_processes() -> Result<BTreeSet<Process>> {
    let me = fs::metadata("/proc/self").context("cannot look at /proc/self")?.uid();
    let mine = fs::read_link("/proc/self/ns/pid").context("cannot look at the pid namespace")?;
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").context("cannot read /proc")? {
        let dir = entry?.path();
        let Some(pid) = dir.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok()) else { continue };
        // A process that ends meanwhile is not left.
        let Ok(status) = fs::read_to_string(dir.join("status")) else { continue };
        let Ok(stat) = fs::read_to_string(dir.join("stat")) else { continue };
        // A non-dumpable process belongs to root in the eyes of stat(2); its status tells the user.
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        let owner = field("Uid:").split_whitespace().next().and_then(|uid| uid.parse::<u32>().ok());
        let name = field("Name:").trim().to_owned();
        let elsewhere = fs::read_link(dir.join("ns/pid")).map_or(true, |namespace| namespace != mine);
        if owner == Some(me) && (elsewhere || name == "agentd") {
            // The command's name may hold spaces and parentheses: count from behind it. Field 22 is the start time.
            let behind = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
            let started = behind.split(' ').nth(19).unwrap_or_default().to_owned();
            found.insert(Process { pid, started, name });
        }
    }
    Ok(found)
}
