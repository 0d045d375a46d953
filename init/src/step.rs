//! The lock-down order, step by step: this enum is the only list, and `docs/architecture.md` shows it
//! (a test compares the two).
//!
//! Why this order: what needs no plan goes first, while the supervisor makes one (docs/adr/0017), and of that what can only be
//! lost; the payload's process comes when the box is ready, and has lost all that; Landlock comes after the last path was
//! opened; capabilities go when nothing needs them any more;
//! seccomp is last, so that it need not allow what only the set-up needs.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

macro_rules! steps {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal,)+) => {
        /// A step of the lock-down, in the order in which they happen.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum Step { $($(#[doc = $doc])+ $name,)+ }

        impl Step {
            /// Every step, in order.
            pub const ALL: &[Step] = &[$(Step::$name,)+];

            /// What the step does, as an error message says it: "cannot …".
            #[must_use]
            pub fn describe(self) -> &'static str {
                match self { $(Step::$name => $text,)+ }
            }

            /// The step's documentation.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self { $(Step::$name => concat!($($doc),+).trim_ascii_start(),)+ }
            }
        }
    };
}

steps! {
    /// PDEATHSIG, the supervisor's presence checked again, descriptors closed, out of the user's directory.
    TieToSupervisor = "tie the box to its supervisor",
    /// A session of its own, away from the user's terminal.
    NewSession = "start a session",
    /// Bounding, inheritable and ambient capabilities; of the bounding set six stay where the box has several ids.
    DropBoundingSet = "drop capabilities",
    /// `no_new_privs`, read back.
    NoNewPrivileges = "set no_new_privs",
    /// No mount event travels between host and box.
    MakePrivate = "cut the mounts off from the host's",
    /// While the supervisor makes the plan: a network namespace, `lo` up, a /sys that shows it.
    MakeNetwork = "make the box's network",
    /// The plan, and the payload's standard streams.
    HearPlan = "hear the plan",
    /// `setgroups` denied, one uid and one gid mapped, or several by the host's helpers; from here on PID 1 is not dumpable.
    WriteIdMaps = "map the user id",
    /// A job with limits: a cgroup namespace whose root is the cgroup it is in.
    CgroupNamespace = "make a cgroup namespace",
    /// The box's own UTS name.
    SetHostname = "set the host name",
    /// Resource limits.
    SetLimits = "set resource limits",
    /// The tmpfs that holds everything the box may write that is not the workspace.
    Stage = "make the box's tmpfs",
    /// The root: overlay of the image's layers, or an empty tree for the host's own directories.
    AssembleRoot = "assemble the root",
    /// A directory of the host through an overlay that hides its secrets.
    MountHostTree = "mount a part of the host's root",
    /// A fresh /proc, its switches read-only, its leaks covered.
    MountProc = "mount /proc",
    /// A fresh /dev with six devices and a devpts of its own.
    MountDev = "mount /dev",
    /// The pty, from the box's own devpts.
    OpenTerminal = "open a terminal",
    /// /tmp, /run, /scratch, the home directory.
    MountScratch = "mount scratch space",
    /// The workspace and what `--mount` names.
    Bind = "bind",
    /// The secrets, as files in memory that is never swapped; PID 1 forgets them.
    DeliverSecrets = "deliver the secret",
    /// Where something is allowed: addresses that stand for names, listening sockets, sent to the supervisor.
    OpenDoors = "open the box's way to the network",
    /// /sys, read-only; for a job with limits its cgroup is in it, read-only too.
    MountSys = "mount /sys",
    /// The new root becomes `/`, for both processes; the host's is gone.
    PivotRoot = "enter the root",
    /// The root becomes read-only (unless it is to be writable).
    SealRoot = "make the root read-only",
    /// The supervisor has written the record.
    WaitForRecord = "hear from the supervisor",
    /// The protected paths of the workspace are mounted over themselves.
    Protect = "protect",
    /// Looks at the mount table: nothing of the host but what the plan gave.
    CheckMounts = "check the mounts",
    /// Looks at the descriptors: 0, 1, 2, the channels, the terminal.
    CheckDescriptors = "check the descriptors",
    /// The payload's process comes into being; it has no descriptor but 0, 1, 2, its channel and the terminal.
    ForkPayload = "fork the payload",
    /// Not in a start: `agentd exec` enters the namespaces of a box that runs.
    JoinBox = "enter the box",
    /// In the payload: a session, the controlling terminal.
    PayloadSession = "start the payload's session",
    /// In the payload: the working directory.
    EnterWorkdir = "enter the working directory",
    /// In the payload: Landlock, every right the kernel's ABI has.
    Landlock = "restrict with Landlock",
    /// In the payload (and in PID 1): no capability in any set; where the box has several ids, its root keeps six and PID 1 one.
    ClearCapabilities = "clear capabilities",
    /// In the payload: default signal actions, nothing blocked.
    ResetSignals = "reset signals",
    /// In the payload (and, a smaller one, in PID 1): the system-call filter.
    Seccomp = "load the seccomp program",
    /// In the payload: the program itself.
    Exec = "execute",
}

/// A step that failed: what, on which object, and the kernel's reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot {} ({object}): {}", step.describe(), io::Error::from_raw_os_error(*errno))]
pub struct Failure {
    /// The step.
    pub step: Step,
    /// The path, name or call that it failed on.
    pub object: String,
    /// errno of the call that failed.
    pub errno: i32,
}

impl Failure {
    pub(crate) fn new(step: Step, object: impl Into<String>, errno: i32) -> Self {
        Failure { step, object: object.into(), errno }
    }
}

/// Names the step and object of an error on its way up.
pub(crate) trait At<T> {
    /// Turns the error into a [`Failure`] of `step` on `object`, which is put into words only then.
    fn at(self, step: Step, object: impl fmt::Display) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, step: Step, object: impl fmt::Display) -> Result<T, Failure> {
        self.map_err(|error| {
            let errno = error.into().raw_os_error().unwrap_or(libc::EIO);
            Failure::new(step, object.to_string(), errno)
        })
    }
}
