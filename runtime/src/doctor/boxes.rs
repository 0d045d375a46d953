//! The parts of a box, each tried in a box that is cut down to it, and then a whole one.

use std::io;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use agentd_egress::Policy;
use agentd_init::plan::{Access, BoxPlan, Mount, Network, Source};
use agentd_init::step::{Failure, Step};
use agentd_profiles::BuiltIn;
use agentd_rootfs::{Fetch, ImageRef, Limits, Pull, RegistryConfig};
use rustix::fs::{CWD, Mode, OFlags, fstat, openat};

use super::host::Host;
use super::trial::{Reached, reach};
use super::{Finding, refusal, trial};
use crate::job::id::JobId;
use crate::job::restart::Restart;
use crate::job::spec::{JobSpec, ProfileChoice};
use crate::launch::network::{self, AskedNetwork};
use crate::launch::plan::{NEWEST_ABI, Plan, Surroundings};

/// Whether boxes can be used to try further things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Boxes {
    /// As far as their tmpfs.
    Work,
    /// Not even that.
    Fail,
}

/// Tries every part.
pub(super) fn examine(host: &Host, findings: &mut Vec<Finding>) -> Boxes {
    let abi = agentd_sys::landlock::abi();
    let (boxes, complete) = parts(host, abi.as_ref().map_or(0, |abi| (*abi).min(NEWEST_ABI)), findings);
    findings.push(landlock(abi, complete.as_ref(), host));
    if let Some(complete) = complete.filter(|complete| complete.past(Step::Landlock)) {
        findings.push(judge("seccomp", "filters load in a box", &complete, Step::Seccomp, host));
    }
    boxes
}

/// The namespaces and the mounts; gives the box that goes on to the last steps, if there is one.
fn parts(host: &Host, abi: u32, findings: &mut Vec<Finding>) -> (Boxes, Option<Reached>) {
    let mut judge = |subject, found, reached: &Reached, step| {
        findings.push(judge(subject, found, reached, step, host));
        reached.past(step)
    };
    let least = reach(&trial::least());
    if !judge("user-namespaces", "this user may make what a box is made of", &least, Step::MakePrivate)
        || !judge("tmpfs", "mounts in a box", &least, Step::Stage)
    {
        return (Boxes::Fail, None);
    }
    // With what `--allow` needs; the sockets come back and are closed.
    let doors = Policy::new(Vec::new(), Vec::new(), Vec::new()).ok().map(|policy| network::doors(&policy, false));
    let network = reach(&BoxPlan { network: Network::None, doors, ..trial::least() });
    judge(
        "network",
        "a box has a loopback interface, a /sys and a way to a broker of its own",
        &network,
        Step::MountSys,
    );
    if let Some(etc) = source("/etc") {
        judge("overlay", "mounts in a box", &reach(&trial::overlay(etc)), Step::AssembleRoot);
    }
    let dev = Mount::Dev { nodes: vec!["null".into()] };
    let mut terminal = BoxPlan { mounts: vec![dev.clone()], ..trial::least() };
    terminal.process.terminal = true;
    judge("dev", "a box has a /dev and a terminal of its own", &reach(&terminal), Step::OpenTerminal);
    // With a /proc a box passes its own checks: this one goes on to the execution of a program that is not there.
    let proc = Mount::Proc { access: Access::ReadWrite, read_only: Vec::new(), masked: Vec::new() };
    let mut complete = BoxPlan { mounts: vec![proc, dev], ..trial::least() };
    complete.landlock.abi = abi;
    let complete = reach(&complete);
    let good = judge("proc", "a box has a /proc of its own", &complete, Step::MountProc);
    (Boxes::Work, good.then_some(complete))
}

fn judge(subject: &'static str, found: &str, reached: &Reached, step: Step, host: &Host) -> Finding {
    if reached.past(step) { Finding::ok(subject, found) } else { refusal::finding(subject, reached, host) }
}

/// A host directory, as a plan names it.
pub(super) fn source(path: impl AsRef<Path>) -> Option<Source> {
    object(path.as_ref(), OFlags::DIRECTORY)
}

/// A file or directory of the host, as a plan names it, opened with `flags` too.
pub(super) fn object(path: &Path, flags: OFlags) -> Option<Source> {
    let opened = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC | flags, Mode::empty()).ok()?;
    let stat = fstat(&opened).ok()?;
    Some(Source { path: path.to_owned(), device: stat.st_dev, inode: stat.st_ino })
}

fn landlock(abi: io::Result<u32>, complete: Option<&Reached>, host: &Host) -> Finding {
    let subject = "landlock";
    let abi = match abi {
        Ok(abi) => abi,
        Err(error) => return Finding::broken(subject, error.to_string(), refusal::of_landlock(&error, host)),
    };
    if let Some(stopped @ Reached::Stopped(Failure { step: Step::Landlock, .. })) = complete {
        return refusal::finding(subject, stopped, host);
    }
    let lost = landlock_lacks(abi);
    if lost.is_empty() {
        return Finding::ok(subject, format!("ABI {abi}"));
    }
    let remedy = format!("boot Linux 6.12 or later (this is {})", host.release);
    Finding::limited(subject, format!("ABI {abi}: {}", lost.join("; ")), remedy)
}

/// What a box goes without under an ABI (landlock(7), HISTORY). ABI 4 and 7 are about TCP ports and logs: agentd uses
/// neither.
fn landlock_lacks(abi: u32) -> Vec<&'static str> {
    [
        (2, "no file can be renamed into another directory, not even in the workspace (before Linux 5.19)"),
        (3, "truncation is held back by mounts alone (before Linux 6.2)"),
        (5, "device ioctls are not confined (before Linux 6.10)"),
        (6, "with --net host, abstract unix sockets of the host are within reach (before Linux 6.12)"),
    ]
    .into_iter()
    .filter_map(|(since, lost)| (abi < since).then_some(lost))
    .collect()
}

/// `agentd run -- true`, but for the record.
pub(super) fn whole(surroundings: &Surroundings, host: &Host) -> Finding {
    let subject = "box";
    let plan = match host_box(surroundings, vec!["true".into()]) {
        Ok(plan) => plan,
        Err(error) => return Finding::broken(subject, error, None),
    };
    match reach(&plan) {
        Reached::Ran(0) => Finding::ok(subject, "`true` ran in a whole one, on this host's own root"),
        // A host without `true` on the usual path (NixOS): everything before its execution went well.
        Reached::Stopped(Failure { step: Step::Exec, errno: libc::ENOENT, .. }) => {
            Finding::ok(subject, "a whole one starts, on this host's own root")
        }
        reached => refusal::finding(subject, &reached, host),
    }
}

/// The box of `agentd run -- COMMAND`.
pub(super) fn host_box(surroundings: &Surroundings, command: Vec<String>) -> Result<BoxPlan, String> {
    let (limits, registries, stop) = (Limits::default(), RegistryConfig::default(), AtomicBool::new(false));
    let tell = &mut |_event| {};
    let mut fetch = Fetch { pull: Pull::Never, limits: &limits, registries: &registries, tell, stop: &stop };
    let id = JobId::random().map_err(|error| format!("cannot make a job id: {error}"))?;
    let (mut planned, _hold) =
        Plan::new(id, spec(command), surroundings, &mut fetch).map_err(|error| error.to_string())?;
    // Nobody would answer.
    planned.inside.seccomp.told = false;
    Ok(planned.inside)
}

fn spec(command: Vec<String>) -> JobSpec {
    JobSpec {
        image: ImageRef::Host,
        workspace: None,
        command,
        entrypoint: None,
        env: Vec::new(),
        unprotect: Vec::new(),
        mounts: Vec::new(),
        user: None,
        fake_root: false,
        subids: false,
        workdir: None,
        name: None,
        hostname: None,
        timeout: None,
        grace: Duration::ZERO,
        network: Network::None,
        reach: AskedNetwork::default(),
        writable: false,
        keep: false,
        storage: None,
        max_output: 0,
        restart: Restart::No,
        on_exit: Vec::new(),
        on_exit_files: Vec::new(),
        terminal: false,
        interactive: false,
        limits: crate::cgroup::Limits::default(),
        ulimits: Vec::new(),
        best_effort_limits: false,
        profile: ProfileChoice::BuiltIn(BuiltIn::Default),
        learn: false,
        secrets: Vec::new(),
        secret_env: Vec::new(),
        asked: None,
        policy: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_landlock_abi_before_the_sixth_costs_something() {
        for (abi, lost) in [(1, 4), (2, 3), (3, 2), (4, 2), (5, 1), (6, 0), (7, 0), (9, 0)] {
            assert_eq!(landlock_lacks(abi).len(), lost, "ABI {abi}");
        }
    }
}
