//! What the tests of the `agentd` binary stand on: where the binary is, a private home a test, what this machine can
//! do, and stand-ins for the things around it ([`oci`] images, the [`messages_api`]).
//!
//! Invariant: nothing here uses agentd's own code, but for the attacks, which `agentd doctor --attack` makes too. Tests judge
//! the binary by its output, the disk and the kernel.

#![expect(
    clippy::panic,
    clippy::print_stderr,
    reason = "test support: a test ends by a panic, a skip is told on stderr"
)]

pub mod attack;
mod cost;
pub mod debian;
pub mod kernel;
pub mod listing;
pub mod messages_api;
pub mod oci;
mod ran;
pub mod registry;
pub mod server;
mod started;
mod terminal;
pub mod tls;
mod toolchain;
pub mod unpackers;

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub use cost::{costs_below, cpu_time};
pub use ran::{Ran, run, run_with_input};
pub use started::Started;
pub use terminal::Terminal;
pub use toolchain::toolchain;

/// `command`, with its environment, as the last words of `front`, which becomes or starts it.
pub(crate) fn behind(mut front: Command, command: &Command) -> Command {
    front.arg(command.get_program()).args(command.get_args()).env_clear();
    front.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    front
}

/// Runs `program` under strace, which follows its children; gives what it wrote. `None` where strace is missing or may not
/// trace, which is said: the caller skips.
///
/// # Panics
/// When `program` fails, or what strace wrote cannot be read, or `AGENTD_TEST_REQUIRE` names `strace` where that is no use.
#[must_use]
#[track_caller]
pub fn traced(program: &Command, options: &[&str], home: &Home) -> Option<String> {
    let trace = home.path().join("trace");
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qq"]).args(options).arg("-o").arg(&trace).arg("--");
    let Ok(output) = behind(traced, program).output() else {
        skip("strace", true, "no strace");
        return None;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("PTRACE") || said.contains("ptrace(") {
        skip("strace", true, &format!("this machine does not let strace trace: {said}"));
        return None;
    }
    assert!(output.status.success(), "{said}");
    match std::fs::read_to_string(&trace) {
        Ok(trace) => Some(trace),
        Err(error) => panic!("{}: {error}", trace.display()),
    }
}

/// Makes a program at `path`. Another process writes it: what is open for writing cannot be executed (ETXTBSY), and what one
/// thread of a test has open, a process that another thread starts has too, until it executes something.
#[track_caller]
pub fn install(path: &Path, program: &[u8]) {
    let mut command = Command::new("install");
    drop(run_with_input(command.args(["-m", "755", "/dev/stdin"]).arg(path), program).expect_success());
}

/// Runs git on the host in `directory` and gives its standard output; a panic unless it succeeds.
#[track_caller]
pub fn git(directory: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    command.current_dir(directory).env("GIT_CONFIG_NOSYSTEM", "1");
    command.args(["-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always"]);
    run(command.args(arguments)).expect_success().stdout
}

/// A private home: every path agentd keeps state under lies inside, and goes away with the value.
#[derive(Debug)]
pub struct Home {
    dir: TempDir,
    image: OnceLock<PathBuf>,
}

/// No job outlives its test: a detached one would.
impl Drop for Home {
    fn drop(&mut self) {
        if std::fs::read_dir(self.state().join("live")).is_ok_and(|mut live| live.next().is_some()) {
            // A job that ends meanwhile is as good.
            self.agentd().args(["rm", "-af"]).stdout(Stdio::null()).stderr(Stdio::null()).status().ok();
        }
        // A layer's directories may be shut to their owner; else they are left.
        Command::new("chmod").args(["-R", "u+rwX"]).arg(self.path()).stderr(Stdio::null()).status().ok();
    }
}

const PLACES: [&str; 6] = ["data", "state", "cache", "config", "run", "work"];

impl Default for Home {
    fn default() -> Self {
        Self::new()
    }
}

impl Home {
    /// Makes the directories.
    #[must_use]
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("agentd-test-").tempdir().unwrap_or_else(|e| panic!("tempdir: {e}"));
        let home = Self { dir, image: OnceLock::new() };
        for name in PLACES {
            let made = std::fs::DirBuilder::new().mode(0o700).create(home.path().join(name));
            made.unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        home
    }

    /// The directory; it is 0700 and `$HOME` of the commands made by [`Home::agentd`].
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// An empty directory to give to a box as workspace.
    #[must_use]
    pub fn workspace(&self) -> PathBuf {
        self.path().join("work")
    }

    /// Where the records of jobs are: `$XDG_STATE_HOME/agentd`.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.path().join("state/agentd")
    }

    /// `agentd` with an environment of its own: only `PATH`, `HOME` and `XDG_*` are set, stdin is /dev/null.
    #[must_use]
    pub fn agentd(&self) -> Command {
        let mut command = Command::new(agentd());
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()));
        command.env("HOME", self.path()).stdin(Stdio::null());
        for (variable, name) in [("DATA_HOME", "data"), ("STATE_HOME", "state"), ("CACHE_HOME", "cache")] {
            command.env(format!("XDG_{variable}"), self.path().join(name));
        }
        command.env("XDG_CONFIG_HOME", self.path().join("config")).env("XDG_RUNTIME_DIR", self.path().join("run"));
        command
    }

    /// `agentd run`, of the host's own software; add flags, `--` and a command.
    #[must_use]
    pub fn run(&self) -> Command {
        let mut command = self.agentd();
        command.arg("run");
        command
    }

    /// Starts `sh -c SCRIPT` with `agentd run -d FLAGS`; gives the id. The job ends with this value at the latest.
    #[track_caller]
    #[must_use]
    pub fn detached(&self, flags: &[&str], script: &str) -> String {
        let ran = run(self.run().arg("-d").args(flags).args(["--", "sh", "-c", script])).expect_silent_success();
        ran.stdout.trim_end().to_owned()
    }

    /// `agentd WORDS`, to its end.
    #[track_caller]
    pub fn say(&self, words: &[&str]) -> Ran {
        run(self.agentd().args(words))
    }

    /// The record of one job.
    #[track_caller]
    #[must_use]
    pub fn record(&self, job: &str) -> serde_json::Value {
        let shown = self.say(&["inspect", job]).expect_success();
        let shown: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap_or_else(|e| panic!("{e}\n{shown}"));
        shown[0].clone()
    }

    /// The supervisor of a job, as a process.
    #[track_caller]
    #[must_use]
    pub fn supervisor(&self, job: &str) -> kernel::Process {
        let pid = self.record(job)["supervisor_pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        pid.and_then(kernel::Process::of).unwrap_or_else(|| panic!("{job} has no supervisor"))
    }

    /// Waits until `viewer`, an `agentd attach` to that job, sees what the job says: its pipes are the supervisor's too, one
    /// a stream, and that of standard output first.
    #[track_caller]
    pub fn wait_until_attached(&self, viewer: &Started, job: &str) {
        let supervisor = self.supervisor(job);
        let viewer = kernel::Process::of(viewer.pid()).unwrap_or_else(|| panic!("nobody attaches to {job} any more"));
        let attached = wait_until(ran::LIMIT, || supervisor.pipes_in_common(&viewer) >= 2);
        assert!(attached, "{viewer:?} does not attach to {job}");
    }

    /// Waits until what was pulled is on the disk. A process of agentd's own sees to that and then takes the notes of it out of
    /// the store: until then the store changes by itself.
    #[track_caller]
    pub fn wait_until_written_back(&self) {
        let unsynced = self.path().join("data/agentd/store/unsynced");
        let notes = || std::fs::read_dir(&unsynced).unwrap_or_else(|e| panic!("{}: {e}", unsynced.display()));
        assert!(wait_until(ran::LIMIT, || notes().next().is_none()), "{}", unsynced.display());
    }

    /// `agentd run -q` of [`Home::busybox_image`].
    #[must_use]
    pub fn run_busybox(&self) -> Command {
        let mut command = self.run();
        command.args(["-q", "--image"]).arg(format!("oci:{}", self.busybox_image().display()));
        command
    }

    /// The record of every job, newest first, as `agentd ps -a` has it.
    #[track_caller]
    #[must_use]
    pub fn jobs(&self) -> Vec<serde_json::Value> {
        let listed = run(self.agentd().args(["ps", "-a", "--format", "json"])).expect_success();
        serde_json::from_str(&listed.stdout).unwrap_or_else(|e| panic!("{e}\n{listed}"))
    }

    /// Every path below this home but those that [`Home::new`] and [`Home::busybox_image`] made, relative to it.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut directories = vec![self.path().to_owned()];
        while let Some(directory) = directories.pop() {
            // What is removed meanwhile is not there.
            for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
                let path = entry.path();
                let relative = path.strip_prefix(self.path()).unwrap_or(&path).to_owned();
                if Some(path.as_path()) == self.image.get().map(PathBuf::as_path) {
                    continue;
                }
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    directories.push(path);
                }
                if !PLACES.iter().any(|name| relative == Path::new(name)) {
                    found.push(relative);
                }
            }
        }
        found.sort();
        found
    }

    /// An OCI layout in this home with busybox at `/bin/busybox` and a link for each applet; made at the first call.
    /// Give it to `--image` as `oci:PATH`. Needs [`Feature::Busybox`].
    #[must_use]
    pub fn busybox_image(&self) -> &Path {
        self.image.get_or_init(|| {
            let dir = self.path().join("busybox");
            busybox().write(&dir, "latest").unwrap_or_else(|e| panic!("busybox image: {e}"));
            dir
        })
    }
}

/// The image of [`Home::busybox_image`] before it is written, to add layers or configuration to.
#[must_use]
pub fn busybox() -> oci::Image {
    let program = std::fs::read(BUSYBOX).unwrap_or_else(|e| panic!("{BUSYBOX}: {e}; install busybox-static"));
    let mut entries: Vec<_> = ["bin", "etc", "usr", "home", "tmp"].map(oci::Entry::dir).into();
    entries
        .push(oci::Entry::file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"));
    entries.push(oci::Entry::file("etc/group", "root:x:0:\nuser:x:1000:\n"));
    entries.push(oci::Entry::file("bin/busybox", program).mode(0o755));
    let applets = run(Command::new(BUSYBOX).arg("--list"));
    for applet in applets.stdout.lines().filter(|a| *a != "busybox") {
        entries.push(oci::Entry::symlink(&format!("bin/{applet}"), "busybox"));
    }
    oci::Image::new().layer(oci::Layer::Entries(entries), oci::Compression::Plain).env("PATH=/bin").cmd(&["sh"])
}

const BUSYBOX: &str = "/bin/busybox";

/// The `agentd` under test: `$AGENTD_BIN`, else the one built beside this test, else the release build.
#[must_use]
pub fn agentd() -> PathBuf {
    if let Some(path) = std::env::var_os("AGENTD_BIN") {
        return path.into();
    }
    // …/PROFILE/deps/TEST
    let test = std::env::current_exe().unwrap_or_else(|e| panic!("current_exe: {e}"));
    let profile = test.ancestors().nth(2).unwrap_or(Path::new("/"));
    let beside = [profile.join("agentd"), profile.with_file_name("release").join("agentd")];
    let found = beside.iter().find(|path| path.metadata().is_ok());
    found.unwrap_or_else(|| panic!("{} is not there: cargo build -p agentd", beside[0].display())).clone()
}

/// Something a test needs of the machine it runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// User namespaces in which a file system can be mounted, for the user who runs the test.
    Userns,
    /// The test runs as an ordinary user.
    OrdinaryUser,
    /// The test runs as root.
    Root,
    /// Ranges of subordinate ids for the ordinary user who runs the test, and the programs that map them.
    Ranges,
    /// A static /bin/busybox.
    Busybox,
    /// The guest of `cargo xtask e2e --vm`: pure cgroup v2, systemd as PID 1, nobody else on the machine.
    Guest,
}

impl Feature {
    /// The word for it in `AGENTD_TEST_REQUIRE`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Userns => "userns",
            Self::OrdinaryUser => "user",
            Self::Root => "root",
            Self::Ranges => "ranges",
            Self::Busybox => "busybox",
            Self::Guest => "guest",
        }
    }

    fn missing(self) -> Option<&'static str> {
        let there = match self {
            Self::Userns => succeeds("unshare", &["-Urm", "mount", "-t", "tmpfs", "none", "/tmp"]),
            Self::OrdinaryUser => !is_root(),
            Self::Root => is_root(),
            Self::Ranges => {
                !is_root() && succeeds("unshare", &["--map-auto", "--map-root-user", "--setuid", "5", "true"])
            }
            Self::Busybox => static_busybox(),
            // Only who starts the guest's tests sets it: no machine is taken for one by its looks.
            Self::Guest => is_guest(),
        };
        let reason = match self {
            Self::Userns => "this user cannot mount in a user namespace (see `agentd doctor`)",
            Self::OrdinaryUser => "root runs this test",
            Self::Root => "an ordinary user runs this test",
            Self::Ranges => {
                "root, or a user without rows in /etc/subuid and /etc/subgid (or newuidmap), runs this test"
            }
            Self::Busybox => "no static /bin/busybox (Debian: busybox-static)",
            Self::Guest => "not in the guest of `cargo xtask e2e --vm`",
        };
        (!there).then_some(reason)
    }
}

/// Whether the test can run here. If not it says `skipped: …`, or fails where `AGENTD_TEST_REQUIRE` (words with commas
/// between, or `all`) names the feature; `all` leaves out who runs the test.
#[must_use]
pub fn require(feature: Feature) -> bool {
    let Some(reason) = feature.missing() else { return true };
    skip(feature.name(), !matches!(feature, Feature::OrdinaryUser | Feature::Root | Feature::Ranges), reason);
    false
}

/// Says that a test is skipped, and why; fails where that is not to be.
pub(crate) fn skip(name: &str, all_covers: bool, reason: &str) {
    let required = std::env::var("AGENTD_TEST_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|word| word == name || (word == "all" && all_covers)),
        "required by AGENTD_TEST_REQUIRE: {reason}"
    );
    eprintln!("skipped: {reason}");
}

/// What `.ci/run` does not install: it is of little use without a network.
const FOR_DOWNLOADS: [&str; 4] = ["apt-get", "dpkg-deb", "node", "npm"];

/// Says that a test is skipped for want of `programs`, and why; fails where `AGENTD_TEST_REQUIRE` has the word `peers`,
/// or `downloads` where all of them are for those.
pub fn skip_without(programs: &[&str], reason: &str) {
    let word = if programs.iter().all(|name| FOR_DOWNLOADS.contains(name)) { "downloads" } else { "peers" };
    skip(word, true, reason);
}

fn succeeds(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
}

/// Whether the test runs in the guest, which is emulated: what takes long is done less often there.
#[must_use]
pub fn is_guest() -> bool {
    std::env::var_os("AGENTD_TEST_GUEST").is_some()
}

/// Whether the test runs as root.
#[must_use]
pub fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line.strip_prefix("Uid:").is_some_and(|ids| ids.split_whitespace().nth(1) == Some("0")))
}

/// A dynamic busybox would need libraries the image has not.
fn static_busybox() -> bool {
    const INTERPRETER: &[u8] = b"/lib64/ld-linux";
    const INTERPRETER_ARM: &[u8] = b"/lib/ld-linux";
    std::fs::read(BUSYBOX).is_ok_and(|program| {
        let head = &program[..program.len().min(4096)];
        ![INTERPRETER, INTERPRETER_ARM].iter().any(|path| head.windows(path.len()).any(|window| window == *path))
    })
}

/// Waits until `condition` holds; for what other processes do. False when `timeout` passed first.
pub fn wait_until(timeout: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busybox_image_has_a_shell_and_runs_as_its_config_says() {
        if !require(Feature::Busybox) {
            return;
        }
        let home = Home::new();
        let index = std::fs::read_to_string(home.busybox_image().join("index.json")).unwrap();
        assert!(index.contains("latest"));
    }

    #[test]
    fn waiting_ends_with_the_condition_or_with_the_time() {
        let mut calls = 0;
        assert!(wait_until(Duration::from_secs(5), || {
            calls += 1;
            calls == 3
        }));
        assert!(!wait_until(Duration::ZERO, || false));
    }
}
