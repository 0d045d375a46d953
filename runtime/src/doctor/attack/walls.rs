//! What stands between an attack and the host, and boxes in which one of them is missing.
//!
//! Invariant: a wall is only ever taken from a plan, never from a job: what is left out here cannot be left out by a word of
//! the command line. With a wall gone nothing of the host can be changed: what becomes writable is the box's own tmpfs.

use std::mem;

use agentd_init::plan::{Access, BoxPlan, Filter, Instruction, Kind, Mount, Network};
use serde::Serialize;

/// One layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wall {
    /// The system-call filter.
    Seccomp,
    /// The Landlock ruleset.
    Landlock,
    /// A mount namespace with a root that holds only what was given.
    OwnRoot,
    /// Read-only mounts.
    ReadOnly,
    /// A network namespace with nothing but `lo`.
    Network,
    /// Resource limits.
    Limits,
    /// Every capability is given up.
    NoCapabilities,
    /// PID 1 cannot be looked into: it is not dumpable.
    NotDumpable,
    /// A pid namespace, whose end is the end of every process in it.
    PidNamespace,
}

impl Wall {
    /// In words, as after "stopped by".
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Wall::Seccomp => "seccomp",
            Wall::Landlock => "Landlock",
            Wall::OwnRoot => "a root of its own",
            Wall::ReadOnly => "read-only mounts",
            Wall::Network => "the network namespace",
            Wall::Limits => "resource limits",
            Wall::NoCapabilities => "no capability",
            Wall::NotDumpable => "PID 1 not dumpable",
            Wall::PidNamespace => "the pid namespace",
        }
    }

    /// Takes the wall out of `plan`; `private` is what its root does not show. Walls that no plan can be without stay: see
    /// [`super::place::Place::walls`].
    pub(super) fn remove(self, plan: &mut BoxPlan, private: Option<&Mount>) {
        match self {
            // BPF_RET | BPF_K, SECCOMP_RET_ALLOW
            Wall::Seccomp => plan.seccomp.filter = Filter::Compiled(vec![Instruction(0x06, 0, 0, 0x7fff_0000)]),
            Wall::Landlock => {
                plan.landlock.rights.clear();
                plan.landlock.paths.clear();
            }
            Wall::OwnRoot => show_host(plan, private),
            Wall::ReadOnly => open_mounts(plan),
            Wall::Network => plan.network = Network::Host,
            Wall::Limits => plan.limits.clear(),
            Wall::NoCapabilities | Wall::NotDumpable | Wall::PidNamespace => {}
        }
    }
}

/// Nothing hidden, nothing covered, and something private given. (The host's whole root cannot be a layer: the mounts in it
/// are locked.)
fn show_host(plan: &mut BoxPlan, private: Option<&Mount>) {
    for mount in &mut plan.mounts {
        match mount {
            Mount::Proc { masked, .. } | Mount::Sys { masked } => masked.clear(),
            Mount::HostTree { source, target, .. } => {
                let (source, target) = (source.clone(), mem::take(target));
                *mount = Mount::Bind { source, target, kind: Kind::Directory, access: Access::ReadOnly };
            }
            _ => {}
        }
    }
    plan.mounts.extend(private.cloned());
}

/// Whatever is the box's own becomes writable; binds of the host's directories stay read-only.
fn open_mounts(plan: &mut BoxPlan) {
    plan.root.writable = true;
    for mount in &mut plan.mounts {
        match mount {
            Mount::HostTree { writable, .. } => *writable = true,
            Mount::Proc { access, read_only, .. } => {
                *access = Access::ReadWrite;
                read_only.clear();
            }
            _ => {}
        }
    }
}
