//! What a job left behind that could run code outside: new repositories and protected names that could not be known, and
//! protected ones that somebody else changed meanwhile.
//!
//! Invariant: it only looks. It needs the plan and nothing of the job, so whoever finishes a lost job's record can ask too.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use agentd_init::plan::Hold;
use rustix::fs::{AtFlags, CWD, statat};

use super::Area;
use super::rules::Unprotect;
use super::survey::{Bounds, Names, Survey};
use crate::launch::plan::Plan;

/// How long it looks, in all: the payload chose what there is to look at.
const MAX_TIME: Duration = Duration::from_secs(2);
/// Lines that are said.
const MAX_LINES: usize = 20;

/// Looks at the writable binds of a job that has ended; a line for each thing to look at.
#[must_use]
pub fn findings(plan: &Plan) -> Vec<String> {
    let unprotect = Unprotect::new(&plan.protection.unprotect);
    // The payload may have made many directories to hide one.
    let ends = Instant::now().checked_add(MAX_TIME);
    let bounds = Bounds { directories: 20_000, repositories: 1_000, steps: 100_000, ends };
    let mut lines: Vec<String> =
        plan.protection.areas.iter().flat_map(|area| of(plan, area, &unprotect, bounds)).collect();
    let more = lines.len().saturating_sub(MAX_LINES);
    if more > 0 {
        lines.truncate(MAX_LINES);
        lines.push(format!("and {more} more"));
    }
    lines
}

fn of(plan: &Plan, area: &Area, unprotect: &Unprotect<'_>, bounds: Bounds) -> Vec<String> {
    let host = plan.host_of(&area.target);
    let name = |path: &str| host.map(|host| host.join(path).display().to_string()).unwrap_or_default();
    let Some(host) = host else { return Vec::new() };
    let looked = Survey::new(host, unprotect, plan.protection.user(), bounds).and_then(|mut survey| {
        area.look(&mut survey)?;
        Ok(survey)
    });
    let mut survey = match looked {
        Ok(survey) => survey,
        Err((path, errno)) => return vec![format!("cannot look at {} for what the job left: {errno}", path.display())],
    };
    let guards = plan.inside.guards.iter().filter(|guard| guard.base == area.target);
    let mut before: BTreeMap<&str, Hold> = guards.map(|guard| (guard.path.as_str(), guard.hold)).collect();
    let held: Vec<(Names, Hold)> = survey.outermost().into_iter().map(|(at, hold)| (at.clone(), hold)).collect();
    let is_whole = |at: &Names| {
        let above = |end| at.get(..end).and_then(|above| survey.holds.get(above));
        (1..=at.len()).filter_map(above).any(|hold| !matches!(hold, Hold::Pinned { .. }))
    };
    let is_known = |at: &Names| {
        let part = |name: &&str| at.iter().map(String::as_str).chain([*name]).collect::<Vec<_>>().join("/");
        ["config", "commondir", "gitdir"].iter().any(|name| before.contains_key(part(name).as_str()))
    };
    let new_git: BTreeSet<Names> =
        survey.git_directories.iter().filter(|at| !is_known(at) && !is_whole(at)).cloned().collect();
    let is_in_new = |at: &Names| (0..=at.len()).filter_map(|end| at.get(..end)).any(|above| new_git.contains(above));
    let mut repositories: BTreeSet<String> = new_git.iter().map(|at| at.join("/")).collect();
    let (mut new, mut changed) = (BTreeSet::new(), BTreeSet::new());
    for (at, hold) in &held {
        let path = at.join("/");
        match (before.remove(path.as_str()), *hold) {
            (None, Hold::ReadOnly { .. }) if is_in_new(at) => {}
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
            (Some(Hold::Absent { stub }), Hold::ReadOnly { .. } | Hold::Pinned { .. }) if !survey.is_stub(at, stub) => {
                new.extend([path]);
            }
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
            "{} is not what it was, or out of reach: look at it; if that was done from outside while the job ran, it was not protected from then on",
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
