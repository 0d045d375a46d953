//! The memory of one idle job: proportional set sizes of the supervisor and of PID 1 of its box.

use std::fmt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::files::Files;
use crate::account::Account;

const PATIENCE: Duration = Duration::from_secs(5);
/// How long nothing has to change.
const SETTLED: Duration = Duration::from_millis(400);

/// In KiB.
#[derive(Debug)]
pub(super) struct Memory {
    supervisor: u64,
    init: Result<u64>,
}

impl Memory {
    /// Both together; `None` when PID 1 could not be looked at.
    pub(super) fn total(&self) -> Option<u64> {
        self.init.as_ref().ok().map(|init| self.supervisor + init)
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "supervisor {} KiB, ", self.supervisor)?;
        match &self.init {
            Ok(init) => write!(f, "PID 1 {init} KiB (Pss of /proc/PID/smaps_rollup, read by the user who may)"),
            // PID 1 is not dumpable: its own user may not look into it.
            Err(error) => write!(f, "PID 1 unknown ({error:#}; run as root to see it)"),
        }
    }
}

/// Starts a job that sleeps and looks at its processes.
pub(super) fn idle_job(account: Option<&Account>, directory: &Path) -> Result<Memory> {
    let files = Files::at(directory);
    let agentd = directory.join("agentd");
    let mut command = account.map_or_else(|| Command::new(&agentd), |account| account.command(&agentd));
    command.arg("run").arg("--image").arg(format!("oci:{}", files.image.display())).arg("--workspace");
    command.arg(&files.workspace).args(["--", "/bin/sleep", "60"]).envs(super::contestants::environment(directory));
    // Its words are not ours to print, and nobody would read a pipe.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut supervisor = command.spawn().context("start the idle job")?;
    let memory = look(&mut supervisor);
    let stopped = Command::new("kill").arg(supervisor.id().to_string()).status().context("start kill");
    supervisor.wait().context("wait for the idle job")?;
    stopped?;
    memory
}

fn look(supervisor: &mut Child) -> Result<Memory> {
    let deadline = Instant::now() + PATIENCE;
    let init = loop {
        if let Some(status) = supervisor.try_wait()? {
            bail!("the idle job ended at once: {status}");
        }
        let init = child_of(supervisor.id(), |_| true)?;
        // Idle means that the payload runs: before, PID 1 is still at work.
        if let Some(init) = init
            && child_of(init, |name| name == "sleep")?.is_some()
        {
            break init;
        }
        if Instant::now() >= deadline {
            bail!("the idle job did not start its payload");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    // A process that waits gives its code back after a while: idle is when nothing changes any more.
    let mut before = None;
    loop {
        let now = pss(supervisor.id())?;
        if before.replace(now) == Some(now) || Instant::now() >= deadline {
            return Ok(Memory { supervisor: now, init: pss(init) });
        }
        std::thread::sleep(SETTLED);
    }
}

/// The first process with this parent and an accepted name.
pub(in crate::bench) fn child_of(parent: u32, accepts: impl Fn(&str) -> bool) -> Result<Option<u32>> {
    for entry in std::fs::read_dir("/proc").context("list /proc")? {
        let entry = entry.context("list /proc")?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // It may have ended since it was listed.
        let Ok(status) = std::fs::read_to_string(entry.path().join("status")) else { continue };
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        if field("PPid:") == Some(&parent.to_string()) && field("Name:").is_some_and(&accepts) {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

pub(in crate::bench) fn pss(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let kib = text.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.parse().ok());
    kib.with_context(|| format!("no Pss in {path}"))
}
