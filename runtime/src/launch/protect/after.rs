//! What a job left behind that could run code outside: new repositories and protected names that could not be known, and
//! protected ones that somebody else changed meanwhile.
//!
//! Invariant: it only looks. It needs the plan and nothing of the job, so whoever finishes a lost job's record can ask too.

use std::collections::{BTreeMap, BTreeSet};

use agentd_init::plan::Hold;
use rustix::fs::{AtFlags, CWD, statat};

use super::rules::Unprotect;
use super::survey::{Bounds, Names, Survey};
use super::{Area, Protection};
use crate::launch::plan::Plan;

/// The payload may have made many directories to hide one.
const BOUNDS: Bounds = Bounds { directories: 20_000, repositories: 1_000 };
/// Lines that are said.
const MAX_LINES: usize = 20;

/// Looks at the writable binds of a job that has ended; a line for each thing to look at.
#[must_use]
pub fn findings(plan: &Plan) -> Vec<String> {
    let Protection { unprotect, areas } = &plan.protection;
    let unprotect = Unprotect::new(unprotect);
    let mut lines: Vec<String> = areas.iter().flat_map(|area| of(plan, area, &unprotect)).collect();
    let more = lines.len().saturating_sub(MAX_LINES);
    if more > 0 {
        lines.truncate(MAX_LINES);
        lines.push(format!("and {more} more"));
    }
    lines
}

fn of(plan: &Plan, area: &Area, unprotect: &Unprotect<'_>) -> Vec<String> {
    let host = plan.host_of(&area.target);
    let name = |path: &str| host.map(|host| host.join(path).display().to_string()).unwrap_or_default();
    let Some(host) = host else { return Vec::new() };
    let looked = Survey::new(host, unprotect).and_then(|mut survey| {
        area.look(&mut survey, BOUNDS)?;
        Ok(survey)
    });
    let survey = match looked {
        Ok(survey) => survey,
        Err((path, errno)) => return vec![format!("cannot look at {} for what the job left: {errno}", path.display())],
    };
    let guards = plan.inside.guards.iter().filter(|guard| guard.base == area.target);
    let mut before: BTreeMap<&str, Hold> = guards.map(|guard| (guard.path.as_str(), guard.hold)).collect();
    let held = survey.outermost();
    let is_whole =
        |at: &Names| held.iter().any(|(above, hold)| at.starts_with(above) && !matches!(hold, Hold::Pinned { .. }));
    let is_known = |at: &Names| {
        let part = |name: &&str| at.iter().map(String::as_str).chain([*name]).collect::<Vec<_>>().join("/");
        ["config", "commondir", "gitdir"].iter().any(|name| before.contains_key(part(name).as_str()))
    };
    let new_git: Vec<&Names> = survey.git_directories.iter().filter(|at| !is_known(at) && !is_whole(at)).collect();
    let mut repositories: BTreeSet<String> = new_git.iter().map(|at| at.join("/")).collect();
    let (mut new, mut changed) = (BTreeSet::new(), BTreeSet::new());
    for (at, hold) in &held {
        let path = at.join("/");
        match (before.remove(path.as_str()), *hold) {
            (None, Hold::ReadOnly { .. }) if new_git.iter().any(|git| at.starts_with(git)) => {}
            (None, Hold::ReadOnly { .. }) if at.last().is_some_and(|name| name == ".git") => {
                repositories.extend([path])
            }
            (None, Hold::ReadOnly { .. }) => new.extend([path]),
            (Some(Hold::ReadOnly { object: was }), Hold::ReadOnly { object: is }) if was != is => {
                changed.extend([path])
            }
            (Some(Hold::Pinned { object: was }), Hold::Pinned { object: is }) if was.inode != is.inode => {
                changed.insert(path);
            }
            (Some(Hold::Absent { .. }), Hold::ReadOnly { .. } | Hold::Pinned { .. }) => new.extend([path]),
            _ => {}
        }
    }
    // What was held and is not there: nobody inside could remove it.
    let gone = before.into_iter().filter(|(_, hold)| !matches!(hold, Hold::Absent { .. }));
    changed.extend(gone.map(|(path, _)| path.to_owned()));
    let mut lines = Vec::new();
    lines.extend(
        repositories.iter().map(|path| {
            format!("new repository {}: look at its config and hooks before you run git there", name(path))
        }),
    );
    lines.extend(new.iter().map(|path| format!("new {}: it can run programs outside; look at it first", name(path))));
    lines.extend(changed.iter().map(|path| {
        format!(
            "{} was changed from outside while the job ran, and was not protected from then on: look at it",
            name(path)
        )
    }));
    for directory in &survey.git_directories {
        let path = [directory.join("/"), "rebase-merge".into()].join("/");
        if statat(CWD, host.join(path.trim_start_matches('/')), AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            let todo = name(path.trim_start_matches('/'));
            lines.push(format!(
                "unfinished rebase {todo}: its todo list can hold commands; read it, or git rebase --abort"
            ));
        }
    }
    lines.extend(survey.unseen.iter().map(|why| format!("not all of {} was looked at: {why}", name(""))));
    lines
}
