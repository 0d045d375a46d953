//! Limits that each process has for itself (getrlimit(2)): agentd's own, and those of `--ulimit`.
//!
//! Invariant: what is asked for is what the payload has, or the job is refused: PID 1 cannot raise a limit of its supervisor's.

use agentd_init::plan::{Limit, LimitedResource};
use rustix::process::{Resource, geteuid, getrlimit};

use super::plan::PROCESSES;

/// Open descriptors of a process, soft and at most.
const OPEN_FILES: (u64, u64) = (65_536, 1_048_576);

/// Why a limit cannot be.
#[derive(Debug, thiserror::Error)]
pub enum UlimitError {
    /// More than this user may.
    #[error(
        "--ulimit {name}: your hard limit is {most} (`ulimit -H`), and only root can raise it: limits.conf(5); ask for no more"
    )]
    AboveHard {
        /// Of the limit.
        name: &'static str,
        /// The hard limit.
        most: u64,
    },
    /// One that the kernel does not hold root to.
    #[error(
        "--ulimit nproc cannot be enforced: the kernel exempts root's processes; give --pids, which a cgroup enforces"
    )]
    Exempt,
}

/// What every process of a box has, but for what is `asked` for.
pub(super) fn usual(asked: &[Limit]) -> Vec<Limit> {
    let most = |resource, bound: u64| getrlimit(resource).maximum.map_or(bound, |maximum| maximum.min(bound));
    let (soft, hard) = OPEN_FILES;
    let open_files = most(Resource::Nofile, hard);
    let processes = most(Resource::Nproc, PROCESSES);
    let mut limits = vec![
        Limit { resource: LimitedResource::Core, soft: Some(0), hard: Some(0) },
        Limit { resource: LimitedResource::OpenFiles, soft: Some(soft.min(open_files)), hard: Some(open_files) },
        Limit { resource: LimitedResource::Processes, soft: Some(processes), hard: Some(processes) },
    ];
    // The payload could not go above PID 1's.
    limits.retain(|limit| !asked.iter().any(|asked| asked.resource == limit.resource));
    limits
}

/// Refuses what cannot be.
pub(super) fn check(asked: &[Limit]) -> Result<(), UlimitError> {
    for limit in asked {
        let (resource, name) = limit.resource.names();
        if limit.resource == LimitedResource::Processes && geteuid().is_root() {
            return Err(UlimitError::Exempt);
        }
        if let Some(most) = getrlimit(resource).maximum
            && limit.hard.is_none_or(|hard| hard > most)
        {
            return Err(UlimitError::AboveHard { name, most });
        }
    }
    Ok(())
}
