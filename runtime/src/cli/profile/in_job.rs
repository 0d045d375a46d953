//! `agentd profile explain PATH --job JOB`: what becomes of a path in a box that was, or is.
//!
//! Refused file accesses are nobody's to see but the caller's (docs/denials.md), so they are explained afterwards, from the
//! job's plan. The layers are asked in the order in which the kernel comes to them: what is there at all, the mount, the
//! protected paths over it, Landlock.
//!
//! Invariant: nothing is looked up in a file system. The path counts as it is written, and links in it for nothing.

use std::io::Write;
use std::path::Path;

use agentd_init::plan::{Access, Addition, BoxPlan, Guard, Hold, Mount, PathAccess, PathRight};
use anyhow::Result;
use serde::Serialize;

use super::super::run_plan::describe;
use super::super::{Format, print_json, printable};
use crate::job::id::JobId;
use crate::launch::host_root::SOFTWARE;
use crate::launch::plan::{Plan, WORKSPACE};

/// What becomes of a path.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    job: &'a JobId,
    path: &'a str,
    /// What it lies in.
    place: String,
    /// To open and list it.
    read: Judged,
    /// To change what is there.
    write: Judged,
    /// To make, remove and rename something there.
    create: Judged,
}

/// What the box's walls say to one kind of access; permissions may say no all the same.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Judged {
    allowed: bool,
    /// The errnos that a refusal shows by.
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<&'static str>,
    /// Who refuses.
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    /// Flags of `agentd run`.
    #[serde(skip_serializing_if = "Option::is_none")]
    to_allow: Option<String>,
}

impl Judged {
    fn allowed() -> Self {
        Judged { allowed: true, ..Judged::default() }
    }

    fn refused(answer: &'static str, by: impl Into<String>, to_allow: Option<String>) -> Self {
        Judged { allowed: false, answer: Some(answer), by: Some(by.into()), to_allow }
    }
}

const READ_ONLY: &str = "EROFS: Read-only file system";
const HELD: &str = "EROFS, EBUSY, EXDEV, EEXIST, EISDIR: Read-only file system, Device or resource busy";
const ABSENT: &str = "ENOENT: No such file or directory";
const DENIED: &str = "EACCES: Permission denied";

/// Explains `path`, absolute and without `..`, in a job.
pub(super) fn run(id: &JobId, plan: &Plan, path: &str, format: Format) -> Result<()> {
    let answer = explain(id, plan, path);
    if format == Format::Json { print_json(&answer) } else { answer.print() }
}

fn explain<'a>(id: &'a JobId, plan: &Plan, path: &'a str) -> Answer<'a> {
    let inside = &plan.inside;
    let at = Path::new(path);
    // What is mounted later covers what is there.
    let mount = inside.mounts.iter().rfind(|mount| at.starts_with(mount.target()));
    let place = mount.map_or_else(
        || format!("the root ({})", if inside.root.writable { "writable, thrown away" } else { "read-only" }),
        describe,
    );
    let [read, write, create] =
        [PathRight::Read, PathRight::Write, PathRight::Create].map(|right| judge(plan, mount, at, right));
    Answer { job: id, path, place, read, write, create }
}

fn judge(plan: &Plan, mount: Option<&Mount>, path: &Path, right: PathRight) -> Judged {
    let inside = &plan.inside;
    if let Some(judged) = hidden(inside, mount, path, right) {
        return judged;
    }
    if right != PathRight::Read
        && let Some(judged) = mount_refuses(inside, mount, path)
    {
        return judged;
    }
    let base = mount.map_or("/", Mount::target);
    let mut guards = inside.guards.iter().rev().filter(|guard| guard.base == base);
    if let Some(judged) = guards.find_map(|guard| held(guard, path, right)) {
        return judged;
    }
    if inside.landlock.rights.iter().any(|right| right.is_about_files()) {
        let grants = inside.landlock.paths.iter().filter(|grant| path.starts_with(&grant.path));
        let access = grants.fold(PathAccess::default(), |access, grant| access.or(grant.access));
        if !access.has(right) {
            return Judged::refused(DENIED, format!("Landlock: {access} is granted here"), opened(path, right));
        }
    }
    Judged::allowed()
}

/// What a box does not show: secrets of the host's root, covers of /proc and /sys.
fn hidden(inside: &BoxPlan, mount: Option<&Mount>, path: &Path, right: PathRight) -> Option<Judged> {
    let is_below = |base: &str, name: &String| path.starts_with(Path::new(base).join(name));
    let (base, additions) = match mount {
        Some(Mount::HostTree { target, additions, .. }) => (target.as_str(), additions.as_slice()),
        None => ("/", inside.root.additions.as_slice()),
        Some(Mount::Proc { masked, .. } | Mount::Sys { masked }) => {
            let base = mount.map_or("/", Mount::target);
            let is_masked = masked.iter().any(|name| is_below(base, name));
            return is_masked.then(|| Judged::refused("nothing there", "a cover: it tells about the machine", None));
        }
        _ => return None,
    };
    let is_hidden = |addition: &Addition| matches!(addition, Addition::Hidden { path: name } if is_below(base, name));
    let by = "hidden: not everybody on the host may read it, or it is the host's own";
    additions.iter().any(is_hidden).then(|| Judged::refused(ABSENT, by, opened(path, right)))
}

/// A mount that nothing is written to.
fn mount_refuses(inside: &BoxPlan, mount: Option<&Mount>, path: &Path) -> Option<Judged> {
    let writable = Some("--writable".to_owned());
    let (by, to_allow) = match mount {
        None if inside.root.writable => return None,
        None => ("the root is read-only", opened(path, PathRight::Write)),
        Some(Mount::Scratch { .. } | Mount::Writable { .. } | Mount::Dev { .. }) => return None,
        Some(Mount::Bind { access: Access::ReadWrite, .. } | Mount::HostTree { writable: true, .. }) => return None,
        Some(Mount::HostTree { .. }) => ("the host's software is read-only", writable),
        Some(Mount::Bind { target, .. }) if target == WORKSPACE => {
            ("the workspace is read-only", Some("--workspace DIR, without :ro".into()))
        }
        // With `--image host`; a mount of the user's would have hidden it.
        Some(Mount::Bind { source, target, .. }) if source.path == Path::new(target) && is_of_host(inside, target) => {
            ("the host's software is read-only", Some("--image IMAGE --writable".into()))
        }
        Some(Mount::Bind { source, target, .. }) => {
            let flag = format!("--mount type=bind,src={},dst={target},rw", source.path.display());
            ("what is mounted there is read-only", Some(flag))
        }
        Some(Mount::Proc { access: Access::ReadOnly, .. }) => ("/proc is read-only as a whole for root's jobs", None),
        Some(Mount::Proc { read_only, .. }) => {
            if !read_only.iter().any(|name| path.starts_with(Path::new("/proc").join(name))) {
                return None;
            }
            ("the kernel's switches are read-only", None)
        }
        Some(Mount::Sys { .. }) => ("/sys is read-only", None),
        Some(Mount::Secrets { .. }) => ("secrets cannot be changed", None),
        Some(Mount::Trust { .. }) => ("the certificates of the job are read-only", None),
    };
    Some(Judged::refused(READ_ONLY, by, to_allow))
}

fn is_of_host(inside: &BoxPlan, target: &str) -> bool {
    inside.root.layers.is_empty() && target.strip_prefix('/').is_some_and(|name| SOFTWARE.contains(&name))
}

/// What a protected path answers.
fn held(guard: &Guard, path: &Path, right: PathRight) -> Option<Judged> {
    let full = Path::new(&guard.base).join(&guard.path);
    let (answer, by) = match guard.hold {
        Hold::ReadOnly { .. } if path.starts_with(&full) && right != PathRight::Read => {
            (HELD, format!("protected: {} stays as it is", full.display()))
        }
        // Something empty is there.
        Hold::Absent { .. } if path == full && right == PathRight::Read => return Some(Judged::allowed()),
        Hold::Absent { .. } if path.starts_with(&full) => {
            let answer = if right == PathRight::Read { ABSENT } else { HELD };
            (answer, format!("protected: {} stays absent", full.display()))
        }
        Hold::Pinned { .. } if path == full && right == PathRight::Create => {
            (HELD, format!("{} stays where it is, since something below it is protected", full.display()))
        }
        _ => return None,
    };
    Some(Judged::refused(answer, by, Some(format!("--unprotect '{}'", guard.path))))
}

/// The flags that would show a path, or let it be written.
fn opened(path: &Path, right: PathRight) -> Option<String> {
    let mount = format!("--mount type=bind,src=HOST,dst={}", path.display());
    Some(if right == PathRight::Read { mount } else { format!("--writable, or {mount},rw") })
}

impl Answer<'_> {
    fn print(&self) -> Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{} in job {}: {}", printable(self.path), self.job, printable(&self.place))?;
        for (what, judged) in [("read", &self.read), ("write", &self.write), ("make, remove, rename", &self.create)] {
            match (&judged.by, judged.answer) {
                (Some(by), Some(answer)) => writeln!(out, "  {what}: refused, {} ({answer})", printable(by))?,
                _ => writeln!(out, "  {what}: no wall of the box is in the way")?,
            }
            if let Some(flag) = &judged.to_allow {
                writeln!(out, "    to allow it: agentd run {}", printable(flag))?;
            }
        }
        writeln!(out, "modes and owners of the file may say no all the same; links on the way are not followed here")?;
        Ok(())
    }
}
