//! Protected paths: what in a writable bind would run code outside later (docs/protected-paths.md, ADR 0007).
//!
//! The plan says how each path is held ([`find`]); PID 1 holds them; the supervisor makes and removes the stubs of those
//! that do not exist ([`stubs`]), and says in the end what the job left that could not be known ([`after`]).
//!
//! Invariant: a protected path is held, or opened by `--unprotect`, or the start is refused; what was not looked at is said.

pub mod after;
pub(crate) mod areas;
mod config;
mod git;
mod outside;
mod reach;
mod rules;
pub mod stubs;
mod survey;
mod walk;

use std::path::Path;

use agentd_init::plan::{Guard, Hold};
use serde::{Deserialize, Serialize};

use super::PlanError;
use super::plan::Plan;
use rules::Unprotect;
use survey::{Bounds, Survey, User};

/// What a start looks through. 1,000 directories are about 5 ms.
const BOUNDS: Bounds = Bounds { directories: 1_000, repositories: 64, steps: 50_000, ends: None };
/// What one `--unprotect` is said to have opened, by name.
const MAX_NAMED: usize = 8;

/// Where protected paths are, and what opens them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protection {
    /// The patterns of `--unprotect`.
    pub unprotect: Vec<String>,
    /// What `~` in a configuration of git stands for, on the host.
    #[serde(default)]
    pub home: Option<std::path::PathBuf>,
    /// The configurations of git that hold in every repository.
    #[serde(default)]
    pub git: Vec<std::path::PathBuf>,
    /// The user's file that the job has its profile from.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub profile: Option<std::path::PathBuf>,
    /// Files that `--on-exit` runs on the host when the job is over.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub on_exit: Vec<std::path::PathBuf>,
    /// The writable binds.
    pub areas: Vec<Area>,
}

impl Protection {
    fn user(&self) -> User<'_> {
        User { home: self.home.as_deref(), git: &self.git, profile: self.profile.as_deref(), on_exit: &self.on_exit }
    }
}

/// A writable bind of a host directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Area {
    /// Absolute box path of the bind.
    pub target: String,
    /// What it is.
    pub kind: AreaKind,
}

/// What is looked for in a writable bind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AreaKind {
    /// The workspace: names at its top are protected whether they exist or not.
    Workspace,
    /// Given by `--mount`: what exists is protected, and in repositories what does not.
    Mount,
    /// The git directory of the workspace.
    GitDirectory,
}

impl Area {
    fn look(&self, survey: &mut Survey<'_>) -> Result<(), (std::path::PathBuf, rustix::io::Errno)> {
        match self.kind {
            AreaKind::Workspace => survey.workspace(),
            AreaKind::Mount => survey.below(),
            AreaKind::GitDirectory => survey.as_git_directory(),
        }
    }
}

/// How every protected path is to be held.
struct Protected {
    guards: Vec<Guard>,
    /// What is not protected, and why.
    warnings: Vec<String>,
}

/// Finds the protected paths of the areas; `place` says where one is on the host.
fn find<'p>(protection: &Protection, place: impl Fn(&Area) -> Option<&'p Path>) -> Result<Protected, PlanError> {
    let (patterns, user) = (&protection.unprotect, protection.user());
    let unprotect = Unprotect::new(patterns);
    let mut protected = Protected { guards: Vec::new(), warnings: Vec::new() };
    let mut opened: Vec<(String, String)> = Vec::new();
    for (area, host) in protection.areas.iter().filter_map(|area| Some((area, place(area)?))) {
        let error = |(path, errno): (std::path::PathBuf, rustix::io::Errno)| PlanError::HostPath {
            what: "protected path",
            path,
            cause: errno.into(),
            hint: None,
        };
        let mut survey = Survey::new(host, &unprotect, user, BOUNDS).map_err(error)?;
        area.look(&mut survey).map_err(error)?;
        if let Some(linked) = survey.linked.first() {
            return Err(PlanError::Linked { path: host.join(linked.join("/")), relative: linked.join("/") });
        }
        let guards = survey.outermost().into_iter().map(|(at, hold)| Guard {
            base: area.target.clone(),
            path: at.join("/"),
            hold,
        });
        protected.guards.extend(guards);
        let unseen = survey.unseen.iter().map(|why| {
            format!(
                "{} is not protected as a whole: {why}; what is new there is looked for when the job ends",
                host.display()
            )
        });
        protected.warnings.extend(unseen);
        for (pattern, paths) in survey.opened {
            opened.extend(paths.into_iter().map(|path| (pattern.clone(), path)));
        }
    }
    for pattern in patterns {
        let paths: Vec<&str> =
            opened.iter().filter(|(by, _)| by == pattern).map(|(_, path)| path.as_str()).take(MAX_NAMED + 1).collect();
        protected.warnings.push(match paths.as_slice() {
            [] => format!("--unprotect {pattern}: nothing protected is called that"),
            [paths @ .., _] if paths.len() == MAX_NAMED => {
                format!("--unprotect {pattern}: the job may change {} and more", paths.join(", "))
            }
            paths => format!("--unprotect {pattern}: the job may change {}", paths.join(", ")),
        });
    }
    Ok(protected)
}

/// What is protected by its name, to show to people: in repositories and at the top of a workspace.
pub(super) fn names() -> Vec<&'static str> {
    let of_git = [".git/hooks", ".git/config"];
    of_git.into_iter().chain(rules::NAMES.iter().map(|(name, _)| *name)).collect()
}

impl Plan {
    /// The stubs that have to stand on the host while the job runs.
    #[must_use]
    pub fn stubs(&self) -> Vec<(agentd_init::plan::Stub, std::path::PathBuf)> {
        let stub = |guard: &Guard| match guard.hold {
            Hold::Absent { stub } => Some((stub, self.host_of(&guard.base)?.join(&guard.path))),
            Hold::Pinned { .. } | Hold::ReadOnly { .. } => None,
        };
        self.inside.guards.iter().filter_map(stub).collect()
    }
}
