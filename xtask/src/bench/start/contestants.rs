//! Who is measured, and the command line of each.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::files::{self, Files};
use crate::bench::prepare::has_program;

pub(super) const FLOOR: &str = "floor";
pub(super) const MUSL_FLOOR: &str = "floor, with musl";
pub(super) const AGENTD: &str = "agentd, 3-layer image";
pub(super) const BWRAP: &str = "bwrap";
pub(super) const CRUN_SECCOMP: &str = "crun + seccomp";
pub(super) const PODMAN: &str = "podman";

/// What runs inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Payload {
    True,
    /// Leaves `/workspace/proof`: what ran nothing must not be measured.
    Prove,
}

#[derive(Debug)]
pub(super) struct Contestant {
    pub(super) name: &'static str,
    program: PathBuf,
    /// `{id}` stands for a name no other run has.
    arguments: Vec<String>,
    stdin: Option<PathBuf>,
    /// Runs in every n-th round only.
    pub(super) every: u32,
}

impl Contestant {
    fn new(name: &'static str, program: impl Into<PathBuf>, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|word| (*word).to_owned()).collect();
        Self { name, program: program.into(), arguments, stdin: None, every: 1 }
    }

    /// The command of one run.
    pub(super) fn command(&self, id: u32) -> Result<Command> {
        let mut command = Command::new(&self.program);
        command.args(self.arguments.iter().map(|word| word.replace("{id}", &format!("bench-{id}"))));
        match &self.stdin {
            Some(path) => command.stdin(std::fs::File::open(path).with_context(|| format!("open {}", path.display()))?),
            None => command.stdin(Stdio::null()),
        };
        Ok(command)
    }
}

/// agentd keeps its layers and records in the scratch directory, for every run and for no longer.
pub(super) fn environment(directory: &Path) -> [(&'static str, PathBuf); 2] {
    [("XDG_DATA_HOME", directory.join("data")), ("XDG_STATE_HOME", directory.join("state"))]
}

/// bwrap's flags that cover what agentd covers in /proc, as far as this machine has it.
fn masks() -> Vec<String> {
    let there = |name: &&&str| Path::new("/proc").join(name).metadata().is_ok();
    let files = ["keys", "key-users", "sched_debug", "interrupts"];
    let directories = ["acpi", "scsi", "asound"];
    let file = |name: &&str| ["--ro-bind".to_owned(), "/dev/null".to_owned(), format!("/proc/{name}")];
    let directory = |name: &&str| ["--tmpfs".to_owned(), format!("/proc/{name}")];
    let files = files.iter().filter(there).flat_map(file);
    files.chain(directories.iter().filter(there).flat_map(directory)).collect()
}

/// Everybody, with `payload`. Missing programs are found out by running them.
pub(super) fn all(files: &Files, payload: Payload) -> Result<Vec<Contestant>> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let words: &[&str] = match payload {
        Payload::True => &["/bin/true"],
        Payload::Prove => &["/bin/touch", "/workspace/proof"],
    };
    let (workspace, root) = (text(&files.workspace), text(&files.root));
    let with_payload =
        |front: &[&str]| -> Vec<String> { front.iter().chain(words).map(|word| (*word).to_owned()).collect() };
    let contestant = |name, program: PathBuf, front: &[&str]| Contestant {
        arguments: with_payload(front),
        ..Contestant::new(name, program, &[])
    };

    let proof = text(&files.workspace.join("proof"));
    let spawn = match payload {
        Payload::True => Contestant::new("spawn only", files.root.join("bin/true"), &[]),
        Payload::Prove => Contestant::new("spawn only", files.root.join("bin/touch"), &[&proof]),
    };
    let layers: Vec<String> = files.layers.iter().map(|layer| text(layer)).collect();
    let [low, middle, top] = [&layers[0], &layers[1], &layers[2]];
    let floor = |name, program| contestant(name, files.directory.join(program), &[&workspace, low, middle, top, "--"]);
    let (musl_floor, floor) = (floor(MUSL_FLOOR, "agentd-floor-musl"), floor(FLOOR, "agentd-floor"));
    let image = format!("oci:{}", text(&files.image));
    let agentd = files.directory.join("agentd");
    let in_image = contestant(AGENTD, agentd.clone(), &["run", "--image", &image, "--workspace", &workspace, "--"]);
    // What holding the names of a workspace costs; no other contestant does.
    let flags = ["run", "--image", &image, "--workspace", &workspace, "--unprotect", "*", "--"];
    let unprotected = contestant("agentd, nothing protected", agentd.clone(), &flags);
    let on_host = contestant("agentd, host root", agentd, &["run", "--workspace", &workspace, "--"]);

    let flags = [
        "--unshare-all",
        "--die-with-parent",
        "--new-session",
        "--uid",
        "1000",
        "--gid",
        "1000",
        "--hostname",
        "box",
        "--cap-drop",
        "ALL",
        "--clearenv",
    ];
    let over_root = [
        "--ro-bind",
        &root,
        "/",
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--tmpfs",
        "/tmp",
        "--tmpfs",
        "/run",
        "--tmpfs",
        "/scratch",
        "--tmpfs",
        "/home",
        "--bind",
        &workspace,
        "/workspace",
        "--chdir",
        "/workspace",
    ];
    let masks = masks();
    let masks: Vec<&str> = masks.iter().map(String::as_str).collect();
    let same = [&flags[..], &over_root, &["--ro-bind", "/sys", "/sys"], &masks].concat();
    let bare = contestant(BWRAP, "bwrap".into(), &same);
    let mut filtered = contestant("bwrap + seccomp", "bwrap".into(), &[&["--seccomp", "0"], &same[..]].concat());
    filtered.stdin = Some(files.filter.clone());
    let fewer = contestant("bwrap, no /sys, no masks", "bwrap".into(), &[&flags[..], &over_root].concat());
    let host = [
        "--ro-bind",
        "/",
        "/",
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--tmpfs",
        "/tmp",
        "--tmpfs",
        "/run",
        "--tmpfs",
        "/home",
        "--bind",
        &workspace,
        "/tmp/workspace",
        "--chdir",
        "/tmp/workspace",
    ];
    let mut on_bwraps_host = contestant("bwrap, host root", "bwrap".into(), &[&flags[..], &host].concat());
    // A read-only root has no /workspace to mount on.
    if let Some(last) = on_bwraps_host.arguments.last_mut() {
        *last = last.replace("/workspace", "/tmp/workspace");
    }

    let mut everybody =
        vec![spawn, floor, musl_floor, in_image, unprotected, on_host, bare, filtered, fewer, on_bwraps_host];
    for (runtime, flags, plain, with_filter) in [
        ("crun", "--cgroup-manager=disabled", "crun", CRUN_SECCOMP),
        ("runc", "--rootless=true", "runc", "runc + seccomp"),
    ] {
        let state = text(&files.directory.join(format!("{runtime}-state")));
        let filter = files::seccomp();
        for (name, filter) in [(plain, None), (with_filter, filter.as_ref())] {
            if name == with_filter && filter.is_none() {
                continue;
            }
            let bundle = files.bundle(&format!("{name} {payload:?}"), words, filter)?;
            let bundle = text(&bundle);
            let program = if has_program(runtime) && runtime == "runc" { "/usr/sbin/runc" } else { runtime };
            everybody.push(Contestant::new(
                name,
                program,
                &[flags, "--root", &state, "run", "--bundle", &bundle, "{id}"],
            ));
        }
    }
    // The one combination that runs rootless on cgroup v1 and v2 alike; 60 times slower than the rest, so seldom.
    let volume = format!("{workspace}:/workspace");
    let front = [
        "--runtime",
        "runc",
        "--cgroup-manager",
        "cgroupfs",
        "run",
        "--rm",
        "--network",
        "none",
        "--read-only",
        "--volume",
        &volume,
        "--rootfs",
        &root,
    ];
    everybody.push(Contestant { every: 10, ..contestant(PODMAN, "podman".into(), &front) });
    Ok(everybody)
}
