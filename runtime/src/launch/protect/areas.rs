//! Which binds of a plan are protected, and the git directory that a workspace needs beside itself.

use std::path::Path;

use agentd_init::plan::{Access, Addition, BoxPlan, Kind, Mount};

use super::outside::{self, Outside};
use super::{Area, AreaKind, Protection};
use crate::job::spec::{JobSpec, ProfileChoice};
use crate::launch::PlanError;
use crate::launch::plan::{Surroundings, WORKSPACE};

/// The host path of what is bound at a place of the box.
pub(crate) fn host_of<'p>(inside: &'p BoxPlan, place: &str) -> Option<&'p Path> {
    inside.mounts.iter().find_map(|mount| match mount {
        Mount::Bind { source, target, .. } if target == place => Some(source.path.as_path()),
        _ => None,
    })
}

/// Protects what is in writable binds; gives the box the git directory of a workspace that has it elsewhere.
pub(crate) fn protect(
    spec: &JobSpec,
    surroundings: &Surroundings,
    inside: &mut BoxPlan,
    warnings: &mut Vec<String>,
) -> Result<Protection, PlanError> {
    let mut areas: Vec<Area> = Vec::new();
    if let Some(workspace) = spec.workspace.as_ref().filter(|workspace| workspace.access == Access::ReadWrite) {
        areas.push(Area { target: WORKSPACE.into(), kind: AreaKind::Workspace });
        areas.extend(git_directory(&workspace.path, surroundings, inside, warnings)?);
    }
    let is_directory = |mount: &&Mount| {
        matches!(mount, Mount::Bind { kind: Kind::Directory, access: Access::ReadWrite, target, .. }
            if !areas.iter().any(|area| area.target == *target))
    };
    let mounts = inside.mounts.iter().filter(is_directory);
    let mounts: Vec<Area> =
        mounts.map(|mount| Area { target: mount.target().to_owned(), kind: AreaKind::Mount }).collect();
    areas.extend(mounts);
    let profile = match &spec.profile {
        ProfileChoice::File(path) => Some(path.clone()),
        ProfileChoice::BuiltIn(_) => None,
    };
    let (home, git) = (surroundings.home.clone(), surroundings.git.clone());
    let (unprotect, on_exit) = (spec.unprotect.clone(), spec.on_exit_files.clone());
    let protection = Protection { unprotect, home, git, profile, on_exit, areas };
    let protected = super::find(&protection, |area| host_of(inside, &area.target))?;
    inside.guards = protected.guards;
    warnings.extend(protected.warnings);
    Ok(protection)
}

/// Binds the git directory of a worktree or submodule where git looks for it.
fn git_directory(
    workspace: &Path,
    surroundings: &Surroundings,
    inside: &mut BoxPlan,
    warnings: &mut Vec<String>,
) -> Result<Option<Area>, PlanError> {
    let found = match outside::find(workspace) {
        Outside::No => return Ok(None),
        Outside::Refused(why) => {
            warnings.push(format!("git does not work in this workspace: {why}"));
            return Ok(None);
        }
        Outside::Found(found) => found,
    };
    let shown = found.host.display();
    let own = surroundings.own.iter().chain(&surroundings.home);
    let is_private = own.clone().any(|own| own.starts_with(&found.host))
        || surroundings.own.iter().any(|own| found.host.starts_with(own));
    let is_taken = |place: &str| {
        let of_host =
            inside.mounts.iter().filter(|mount| !matches!(mount, Mount::Scratch { .. } | Mount::Writable { .. }));
        let root = ["/bin", "/sbin", "/lib", "/lib64", "/usr", "/etc", "/boot"];
        of_host.map(Mount::target).chain(root).any(|target| Path::new(place).starts_with(target))
            || Path::new(place).components().count() < 2
    };
    let taken = [Some(&found.target), found.working_tree.as_ref()].into_iter().flatten().find(|place| is_taken(place));
    if is_private || taken.is_some() {
        let why =
            taken.map_or_else(|| "it holds what boxes never see".into(), |place| format!("{place} is taken inside"));
        warnings.push(format!("git does not work in this workspace: its git directory is {shown}, and {why}"));
        return Ok(None);
    }
    if let Some(tree) = &found.working_tree {
        inside.root.additions.push(Addition::Link { path: tree.trim_start_matches('/').into(), to: WORKSPACE.into() });
    }
    let source = crate::launch::directory(&found.host, "git directory")?;
    warnings.push(format!(
        "the git directory of this workspace, {shown}, is writable inside, but for its config and hooks"
    ));
    let bind = Mount::Bind { source, target: found.target.clone(), kind: Kind::Directory, access: Access::ReadWrite };
    inside.mounts.push(bind);
    Ok(Some(Area { target: found.target, kind: AreaKind::GitDirectory }))
}
