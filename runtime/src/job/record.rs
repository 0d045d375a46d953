//! What is kept of a job: one JSON document, replaced as a whole.
//!
//! Invariant: the state in a record is what was true when it was written; that a job which claims to run really does is
//! told by its lock ([`super::store`]), never by the record.

use agentd_egress::Change;
use agentd_rootfs::commit::KeptLayer;
use serde::{Deserialize, Serialize};

use super::id::{JobId, JobName};
use crate::cgroup::leaf::Usage;

/// Version of the document; readers accept every older one.
pub const SCHEMA: u32 = 1;

/// A job's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`SCHEMA`] of the program that wrote it.
    pub schema: u32,
    /// The id.
    pub id: JobId,
    /// The name, if one was given.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<JobName>,
    /// The image as the user wrote it.
    pub image: String,
    /// Digest of the image's manifest, where it has one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub image_digest: Option<String>,
    /// Host path of the workspace.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub workspace: Option<String>,
    /// Program and arguments.
    pub command: Vec<String>,
    /// RFC 3339, UTC.
    pub created: String,
    /// RFC 3339, UTC; absent while the job runs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub finished: Option<String>,
    /// Milliseconds from clone to end.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub duration_ms: Option<u64>,
    /// Process id of the supervisor on the host.
    pub supervisor_pid: u32,
    /// Where the job stands.
    #[serde(flatten)]
    pub state: State,
    /// What is enforced on the payload.
    pub enforced: Enforced,
    /// What was asked for or is usual and was not done, and why.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub warnings: Vec<String>,
    /// What the job left in its workspace that could run programs outside, and protected paths that others changed.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub left: Vec<String>,
    /// What became of what the job wrote to its root, where it was to be kept.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub root: Option<Kept>,
    /// Path of the job's cgroup, where it has one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cgroup: Option<String>,
    /// What a job in a cgroup used.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub usage: Option<Usage>,
    /// Bytes of output that were not kept, above `--max-output`.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub output_dropped: u64,
    /// System calls that policy refused and that were told; `agentd logs --denials` has them.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub denials: u64,
    /// How often it was started again (`--restart`).
    #[serde(skip_serializing_if = "is_none_of", default)]
    pub restarts: u32,
    /// What went through the network broker, where the job had one; `agentd logs --net` has each request.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub network: Option<NetworkUse>,
}

/// What a job did with its network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkUse {
    /// Connections that were passed on.
    pub allowed: u64,
    /// Requests, for names and for connections, that policy refused.
    pub refused: u64,
    /// Connections that were allowed and did not get there.
    pub failed: u64,
    /// Bytes from the box.
    pub up: u64,
    /// Bytes to the box.
    pub down: u64,
    /// Requests that are counted here and written down nowhere.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub untold: u64,
    /// By name and port: the first hundred.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub names: Vec<NameUse>,
    /// What was allowed and denied while it ran, in that order.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub changes: Vec<PolicyChange>,
}

/// A change of what a running job may reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyChange {
    /// RFC 3339, UTC.
    pub time: String,
    /// By `agentd allow` and `agentd deny`.
    #[serde(flatten)]
    pub change: Change,
}

impl NetworkUse {
    /// Both; the names and changes are those of `later`, which went on from these.
    #[must_use]
    pub fn and(self, later: Self) -> Self {
        NetworkUse {
            allowed: self.allowed.saturating_add(later.allowed),
            refused: self.refused.saturating_add(later.refused),
            failed: self.failed.saturating_add(later.failed),
            up: self.up.saturating_add(later.up),
            down: self.down.saturating_add(later.down),
            untold: self.untold.saturating_add(later.untold),
            names: later.names,
            changes: later.changes,
        }
    }
}

/// What a job did with one name at one port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameUse {
    /// The name, or an address.
    pub name: String,
    /// The port.
    pub port: u16,
    /// Connections.
    pub connections: u64,
    /// Bytes from the box.
    pub up: u64,
    /// Bytes to the box.
    pub down: u64,
}

fn is_zero(bytes: &u64) -> bool {
    *bytes == 0
}

fn is_none_of(count: &u32) -> bool {
    *count == 0
}

/// What became of what a job wrote to its root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kept")]
pub enum Kept {
    /// A layer, beside the record.
    Layer(KeptLayer),
    /// Nothing.
    Nothing {
        /// Why.
        reason: String,
    },
}

/// Where a job stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum State {
    /// The supervisor is there (its lock says so).
    Running,
    /// The payload ran and ended.
    Exited {
        /// What `agentd run` exited with: the payload's status, 128 + n for a signal, 124 for a timeout.
        exit_code: u8,
        /// Why, where it was not the payload's own doing.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        reason: Option<String>,
    },
    /// The payload never ran.
    Failed {
        /// 125, 126 or 127.
        exit_code: u8,
        /// The step, object and errno.
        reason: String,
    },
    /// The supervisor went away without a word; the kernel ended the box with it.
    Lost {
        /// How that was found out.
        reason: String,
    },
}

/// The layers of confinement around the payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enforced {
    /// The kernel's Landlock ABI.
    pub landlock_abi: u32,
    /// The Landlock rights that are enforced. Records of before there were profiles do not have them.
    #[serde(default)]
    pub landlock_rights: Vec<String>,
    /// Name of the profile.
    pub seccomp: String,
    /// `sha256:…` of all that the profile has the kernel enforce.
    #[serde(default)]
    pub profile_digest: String,
    /// `none`, `broker` or `host`.
    pub network: String,
}

impl State {
    /// The word for it in a record and a filter.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            State::Running => "running",
            State::Exited { .. } => "exited",
            State::Failed { .. } => "failed",
            State::Lost { .. } => "lost",
        }
    }

    /// What `agentd run` exited with.
    #[must_use]
    pub fn exit_code(&self) -> Option<u8> {
        match self {
            State::Exited { exit_code, .. } | State::Failed { exit_code, .. } => Some(*exit_code),
            State::Running | State::Lost { .. } => None,
        }
    }

    /// One word and what matters of the rest, for a table.
    #[must_use]
    pub fn summary(&self) -> String {
        match self {
            State::Running => "running".into(),
            State::Exited { exit_code, .. } => format!("exited ({exit_code})"),
            State::Failed { exit_code, .. } => format!("failed ({exit_code})"),
            State::Lost { .. } => "lost".into(),
        }
    }
}
