//! The ways from a client to the server, and the command line of each.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::client::{MANY, Measured};
use super::server::Server;
use crate::account::Account;
use crate::bench::start::memory::{child_of, pss};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Direct,
    /// By a hop that does nothing but hop.
    Relay,
    Agentd,
    Pasta,
    Slirp,
}

pub(super) const WAYS: [Way; 5] = [Way::Direct, Way::Relay, Way::Agentd, Way::Pasta, Way::Slirp];

impl Way {
    pub(super) fn name(self) -> &'static str {
        match self {
            Way::Direct => "direct",
            Way::Relay => "bare relay",
            Way::Agentd => "agentd",
            Way::Pasta => "pasta",
            Way::Slirp => "slirp4netns",
        }
    }
}

/// Where the programs are, and who runs them.
#[derive(Debug)]
pub(super) struct Place<'p> {
    pub(super) directory: &'p Path,
    pub(super) account: Option<&'p Account>,
}

/// A run that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// /dev/net/tun is everybody's where udev made it. Where it is root's alone, the two that need it get one of their own.
const WITH_TUN: &str = r#"
mount -t tmpfs none /dev/net && mknod -m 666 /dev/net/tun c 10 200
exec "$@""#;

impl Place<'_> {
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = self.account.map_or_else(|| Command::new(program), |account| account.command(program));
        let directory = |name: &str| self.directory.join(name);
        command.env("XDG_DATA_HOME", directory("data")).env("XDG_STATE_HOME", directory("state"));
        command.current_dir(self.directory);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(super) fn agentd(&self) -> Command {
        let mut command = self.command(&self.directory.join("agentd"));
        command.args(["run", "-q"]);
        command
    }

    fn with_tun(&self, program: &str) -> Command {
        let plain = self.command(Path::new(program));
        if self.account.is_none() {
            return plain;
        }
        let mut apart = Command::new("unshare");
        apart.args(["--mount", "--propagation", "private", "sh", "-c", WITH_TUN, "sh"]);
        apart.arg(plain.get_program()).args(plain.get_args()).env_clear();
        apart.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        apart.current_dir(self.directory).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        apart
    }

    /// One run over one way; for agentd also the memory of its broker while [`MANY`] connections are open, in KiB.
    pub(super) fn measure(&self, way: Way, server: &Server, relay: u16) -> Result<(Measured, Option<u64>)> {
        let myself = self.directory.join("xtask");
        let port = if way == Way::Relay { relay } else { server.port };
        let client = |host: &str| [String::from("bench"), "measure-egress".into(), format!("{host}:{port}")];
        let mut command = match way {
            Way::Direct | Way::Relay => self.command(&myself),
            Way::Agentd => self.boxed(port),
            Way::Pasta => {
                let mut command = self.with_tun("pasta");
                command.args(["-q", "-f", "--config-net", "-a", "10.0.2.15", "-n", "24", "-g", "10.0.2.2", "--"]);
                command.arg(&myself);
                command
            }
            Way::Slirp => {
                let mut command = self.command(Path::new("unshare"));
                command.args(["--user", "--map-root-user", "--net", "--"]).arg(&myself);
                command
            }
        };
        command.args(match way {
            Way::Direct | Way::Relay => client("127.0.0.1"),
            Way::Agentd => client("bench.test"),
            // What both call this host's loopback.
            Way::Pasta | Way::Slirp => client("10.0.2.2"),
        });
        // A group of its own, which is ended as a whole: pasta outlives a client that failed.
        let mut child = command.process_group(0).spawn().with_context(|| format!("start {}", way.name()))?;
        let mut slirp = None;
        if way == Way::Slirp {
            slirp = Some(self.attach(&mut child)?);
        }
        let seen = watch(&mut child, server, way);
        if seen.is_err() {
            let group = format!("-{}", child.id());
            Command::new("kill").args(["-KILL", &group]).stderr(Stdio::null()).status().context("start kill")?;
        }
        // Before slirp4netns, which brings it the ends of its connections.
        let output = child.wait_with_output().context("wait for the client")?;
        if let Some(mut slirp) = slirp {
            slirp.kill().context("end slirp4netns")?;
            slirp.wait().context("wait for slirp4netns")?;
        }
        server.release();
        let said = String::from_utf8_lossy(&output.stderr);
        let memory = seen.with_context(|| said.lines().last().unwrap_or("it says nothing").to_owned())?;
        ensure!(output.status.success(), "{}: {}", way.name(), output.status);
        Ok((serde_json::from_slice(&output.stdout).context("read what was measured")?, memory))
    }

    /// This program in a box that may reach the server.
    fn boxed(&self, port: u16) -> Command {
        let myself = self.directory.join("xtask");
        let mut command = self.agentd();
        command.args(["--add-host", "bench.test:127.0.0.1", "--allow"]).arg(format!("bench.test:{port}"));
        command.arg("--mount").arg(format!("type=bind,src={},dst=/mnt/xtask", myself.display()));
        command.args(["--", "/mnt/xtask"]);
        command
    }

    fn attach(&self, child: &mut Child) -> Result<Child> {
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).context("look at a namespace");
        let (own, pid) = (namespace("self")?, child.id().to_string());
        let begun = Instant::now();
        while namespace(&pid)? == own {
            if begun.elapsed() > PATIENCE || child.try_wait()?.is_some() {
                bail!("unshare made no network namespace");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut slirp = self.with_tun("slirp4netns");
        slirp.args(["--configure", "--mtu=65520", &pid, "tap0"]).stdout(Stdio::null()).stderr(Stdio::null());
        slirp.spawn().context("start slirp4netns")
    }
}

/// Lets the held connections go when all are there.
fn watch(child: &mut Child, server: &Server, way: Way) -> Result<Option<u64>> {
    let begun = Instant::now();
    while child.try_wait()?.is_none() {
        if server.holds() >= MANY {
            let broker = child_of(child.id(), |name| name == "agentd-net")?;
            let memory = broker.filter(|_| way == Way::Agentd).map(pss);
            server.release();
            // A user may not look into the broker; root may.
            return Ok(memory.and_then(Result::ok));
        }
        ensure!(begun.elapsed() < PATIENCE, "{} took longer than {PATIENCE:?}", way.name());
        std::thread::sleep(Duration::from_millis(5));
    }
    bail!("{}: the client ended before it was through", way.name())
}

/// A hundred thousand connections, one after the other: seconds, and the largest size of the broker meanwhile, in KiB.
pub(super) fn in_a_row(place: &Place<'_>, server: &Server) -> Result<(f64, Option<u64>)> {
    let mut command = place.boxed(server.port);
    command.args(["bench", "measure-egress", "--in-a-row", &format!("bench.test:{}", server.port)]);
    let mut child = command.stdout(Stdio::null()).spawn().context("start agentd")?;
    let begun = Instant::now();
    let mut most = None;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if let Some(broker) = child_of(child.id(), |name| name == "agentd-net")? {
            // A user may not look into the broker; root may.
            most = most.max(pss(broker).ok());
        }
        if begun.elapsed() > PATIENCE * 5 {
            child.kill().context("end agentd")?;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    ensure!(status.success(), "agentd run: {status}");
    Ok((begun.elapsed().as_secs_f64(), most))
}

/// KiB of an idle job: supervisor, PID 1 and broker. Only root sees the last two.
pub(super) fn idle(place: &Place<'_>) -> Result<[u64; 3]> {
    let mut command = place.agentd();
    let mut child = command
        .args(["--allow", "bench.test", "--", "/bin/sleep", "60"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let looked = look(&mut child);
    Command::new("kill").arg(child.id().to_string()).status().context("start kill")?;
    child.wait().context("wait for the idle job")?;
    looked
}

fn look(child: &mut Child) -> Result<[u64; 3]> {
    let begun = Instant::now();
    let find = |parent, name: &str| child_of(parent, |own| own == name);
    let (init, broker) = loop {
        ensure!(begun.elapsed() < PATIENCE && child.try_wait()?.is_none(), "the idle job did not start its payload");
        let broker = find(child.id(), "agentd-net")?;
        let init = child_of(child.id(), |name| name != "agentd-net")?;
        if let (Some(init), Some(broker)) = (init, broker)
            && find(init, "sleep")?.is_some()
        {
            break (init, broker);
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    // A process that waits gives code back after a while.
    std::thread::sleep(Duration::from_secs(2));
    Ok([pss(child.id())?, pss(init)?, pss(broker)?])
}

/// Milliseconds from start to exit of `true`, without and with a broker.
pub(super) fn start(place: &Place<'_>, allow: bool) -> Result<f64> {
    let mut command = place.agentd();
    if allow {
        command.args(["--allow", "bench.test"]);
    }
    command.args(["--", "/bin/true"]).stdout(Stdio::null()).stderr(Stdio::null());
    let begun = Instant::now();
    let status = command.spawn().context("start agentd")?.wait()?;
    ensure!(status.success(), "agentd run: {status}");
    Ok(begun.elapsed().as_secs_f64() * 1e3)
}

/// The programs that are copied to where the measuring user can run them.
pub(super) fn programs(agentd: PathBuf) -> Result<[(PathBuf, &'static str); 2]> {
    Ok([(agentd, "agentd"), (std::env::current_exe().context("find this program")?, "xtask")])
}
