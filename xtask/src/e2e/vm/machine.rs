//! A guest under qemu: started cold and saved once it has booted, or restored from that.
//!
//! The processor is emulated, always: a nested KVM may open and stop the guest at its first vector instruction (seen).
//!
//! Invariant: a guest ends with its [`Machine`], and what it wrote is gone with it, but where it is booted to be saved.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};

use super::image::{self, Kernel};

pub(super) const PROGRAM: &str = "qemu-system-x86_64";

/// Bytes of the payload's disk: the guest has seen how many before it is saved.
pub(super) const PAYLOAD: u64 = 1 << 30;

/// bookworm's own qemu, 7.2, stops the guest at a `cmpxchg16b` that it gets wrong.
const OLDEST: (u32, u32) = (8, 1);

const HARDWARE: [&str; 23] = [
    "-nodefaults",
    "-no-user-config",
    "-no-reboot",
    "-display",
    "none",
    "-machine",
    "pc,usb=off,vmport=off",
    "-accel",
    "tcg,thread=multi,tb-size=512",
    "-cpu",
    "max",
    "-smp",
    "2",
    "-m",
    "2G",
    "-device",
    "virtio-rng-pci",
    "-device",
    "virtio-serial-pci",
    "-chardev",
    "socket,id=agent,path=agent,server=on,wait=off",
    "-device",
    "virtserialport,chardev=agent,name=agentd.e2e",
];

const KERNEL_WORDS: &str = "console=ttyS0 quiet rw panic=-1 mitigations=off nokaslr net.ifnames=0 audit=0 \
    systemd.show_status=0 module_blacklist=kvm,kvm_intel,kvm_amd,ata_piix,libata,floppy,pcspkr,psmouse,i2c_piix4,evdev";

/// Emulated on a busy machine: ten times what it takes on a quiet one.
const BOOTS_WITHIN: Duration = Duration::from_secs(300);

/// Why no guest can run here.
pub(super) fn missing() -> Option<String> {
    if !cfg!(target_arch = "x86_64") {
        return Some("the guest is an x86-64 machine".to_owned());
    }
    let Some((major, minor)) = version() else { return Some(format!("{PROGRAM} is not installed")) };
    ((major, minor) < OLDEST)
        .then(|| format!("{PROGRAM} {major}.{minor} is older than {}.{} (Debian: backports)", OLDEST.0, OLDEST.1))
}

fn version() -> Option<(u32, u32)> {
    let output = Command::new(PROGRAM).arg("--version").output().ok()?;
    parse_version(&String::from_utf8_lossy(&output.stdout))
}

fn parse_version(said: &str) -> Option<(u32, u32)> {
    let mut numbers = said.split_once("version ")?.1.split(['.', ' ']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// A booted guest that was saved.
#[derive(Debug)]
pub(super) struct Saved {
    directory: PathBuf,
    image: PathBuf,
    pub(super) kernel: Kernel,
}

impl Saved {
    /// The saved guest of `image` with `kernel`; boots and saves one where `cache` has none.
    pub(super) fn ensure(cache: &Path, image: &Path, kernel: Kernel) -> Result<Self> {
        let mut hasher = DefaultHasher::new();
        (version(), HARDWARE, KERNEL_WORDS, PAYLOAD, image).hash(&mut hasher);
        let directory = cache.join(format!("booted-{}-{:016x}", kernel.version, hasher.finish()));
        let saved = Self { directory, image: image.to_owned(), kernel };
        if saved.directory.join("state").metadata().is_err() {
            saved.boot()?;
        }
        Ok(saved)
    }

    fn boot(&self) -> Result<()> {
        image::remove(&self.directory)?;
        fs::create_dir_all(&self.directory).with_context(|| format!("create {}", self.directory.display()))?;
        let disk = self.directory.join("disk");
        let mut copy = Command::new("cp");
        copy.args(["--sparse=always", "--reflink=auto"]).arg(self.image.join("disk")).arg(&disk);
        crate::account::succeed(&mut copy)?;
        let payload = self.directory.join("payload");
        File::create(&payload).and_then(|file| file.set_len(PAYLOAD)).context("make an empty payload")?;
        let begun = Instant::now();
        let mut machine = Machine::start(self, &self.directory, &format!("file={},cache=unsafe", text(&disk)?), &[])?;
        let deadline = begun + BOOTS_WITHIN;
        let mut said = String::new();
        machine.until(deadline, "@@ready", &mut |_| ())?;
        println!("{} booted in {:.0} s", self.kernel.version, begun.elapsed().as_secs_f64());
        // A session of each user, once: what it takes is read from the disk and stays in memory.
        for (user, command) in [
            ("root", "systemctl is-system-running --wait || { systemctl --failed; false; }"),
            ("ranges", "systemctl --user is-system-running --wait"),
            ("plain", "systemctl --user is-system-running --wait"),
            ("root", "sync; echo 3 >/proc/sys/vm/drop_caches; journalctl -q --rotate --vacuum-size=1"),
        ] {
            let mut hear = |line: &str| {
                said.push_str(line);
                said.push('\n');
            };
            let code = machine.run(user, command, deadline, &mut hear)?;
            ensure!(code == 0, "the guest with kernel {} did not come up: {command}\n{said}", self.kernel.version);
        }
        machine.save(&self.directory.join("state"))
    }

    /// A guest as it was when it was saved, with the file `payload` as its second disk; `directory` is the guest's own.
    pub(super) fn restore(&self, directory: &Path) -> Result<Machine> {
        let disk = format!("file={},snapshot=on", text(&self.directory.join("disk"))?);
        let state = format!("exec:cat '{}'", text(&self.directory.join("state"))?);
        Machine::start(self, directory, &disk, &["-incoming", &state])
    }
}

fn text(path: &Path) -> Result<&str> {
    // qemu's commas separate, and a quote would end the shell's.
    let text = path.to_str().filter(|text| !text.contains([',', '\'']));
    text.with_context(|| format!("qemu cannot be given the path {}", path.display()))
}

/// How a guest goes down.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reboot {
    /// Everything is asked to end.
    InOrder,
    /// Nothing is.
    PowerCut,
}

/// A running guest.
#[derive(Debug)]
pub(super) struct Machine {
    process: Child,
    directory: PathBuf,
    agent: BufReader<UnixStream>,
}

impl Machine {
    /// In `directory`, which holds the file `payload`.
    fn start(saved: &Saved, directory: &Path, disk: &str, more: &[&str]) -> Result<Self> {
        let at = |name: &str| saved.image.join(format!("{name}-{}", saved.kernel.release));
        let log = File::create(directory.join("qemu.log")).context("make the log of qemu")?;
        let mut command = Command::new(PROGRAM);
        command.current_dir(directory).args(HARDWARE).args(more);
        command.arg("-kernel").arg(at("vmlinuz")).arg("-initrd").arg(at("initrd")).args(["-append", KERNEL_WORDS]);
        command.arg("-drive").arg(format!("if=none,id=root,format=raw,{disk}"));
        command.args(["-device", "virtio-blk-pci,drive=root"]);
        command.args(["-drive", "if=none,id=payload,format=raw,readonly=on,file=payload"]);
        command.args(["-device", "virtio-blk-pci,drive=payload", "-serial", "file:console"]);
        command.args(["-qmp", "unix:qmp,server=on,wait=off"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut process = command.spawn().with_context(|| format!("start {PROGRAM}"))?;
        match connect(&mut process, directory, "agent") {
            Ok(agent) => Ok(Self { process, directory: directory.to_owned(), agent: BufReader::new(agent) }),
            Err(error) => {
                end(&mut process);
                Err(error)
            }
        }
    }

    /// Runs `command`, a line for a shell, as `user` and gives its exit code; `hear` gets each line it says.
    pub(super) fn run(
        &mut self,
        user: &str,
        command: &str,
        deadline: Instant,
        hear: &mut dyn FnMut(&str),
    ) -> Result<i32> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("the clock is before 1970")?;
        let line = format!("{}.{:09} {user} {command}\n", now.as_secs(), now.subsec_nanos());
        self.agent.get_mut().write_all(line.as_bytes()).context("speak to the guest")?;
        let code = self.until(deadline, "@@ended ", hear)?;
        code.parse().with_context(|| format!("the guest said that a command ended with {code:?}"))
    }

    /// Lets the guest go down and boot again, with its disk as that leaves it.
    pub(super) fn reboot(&mut self, how: Reboot) -> Result<()> {
        let begun = Instant::now();
        let mut monitor = self.monitor()?;
        // `-no-reboot` is there to make a panic the end of the guest.
        monitor.ask("set-action", &serde_json::json!({"reboot": "reset"}))?;
        match how {
            Reboot::InOrder => {
                self.agent.get_mut().write_all(b"0 root systemctl reboot\n").context("speak to the guest")?
            }
            Reboot::PowerCut => drop(monitor.ask("system_reset", &serde_json::json!({}))?),
        }
        self.until(begun + BOOTS_WITHIN, "@@ready", &mut |_| ())?;
        monitor.ask("set-action", &serde_json::json!({"reboot": "shutdown"}))?;
        println!("{how:?}: up again after {:.0} s", begun.elapsed().as_secs_f64());
        Ok(())
    }

    /// What follows `mark` in the line that begins with it; `hear` gets the lines before.
    fn until(&mut self, deadline: Instant, mark: &str, hear: &mut dyn FnMut(&str)) -> Result<String> {
        let mut line = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "the guest took too long\n{}", self.last_words());
            self.agent.get_ref().set_read_timeout(Some(left)).context("set a time for the guest")?;
            match self.agent.read_until(b'\n', &mut line) {
                Ok(0) => bail!("the guest died\n{}", self.last_words()),
                Ok(_) if line.ends_with(b"\n") => {}
                Ok(_) => continue,
                Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock) => continue,
                Err(error) => return Err(error).context("hear from the guest"),
            }
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end_matches('\n');
            if let Some(rest) = text.strip_prefix(mark) {
                return Ok(rest.to_owned());
            }
            hear(text);
            line.clear();
        }
    }

    /// Saves the running guest to `path` and ends it.
    fn save(mut self, path: &Path) -> Result<()> {
        let mut monitor = self.monitor()?;
        // The guest is stopped for it anyway.
        let limits = serde_json::json!({"max-bandwidth": 1_000_000_000_000_u64, "downtime-limit": 30_000});
        monitor.ask("migrate-set-parameters", &limits)?;
        monitor.ask("migrate", &serde_json::json!({"uri": "exec:cat >state.part"}))?;
        loop {
            let answer = monitor.ask("query-migrate", &serde_json::json!({}))?;
            match answer.get("status").and_then(serde_json::Value::as_str) {
                Some("completed") => break,
                Some("failed" | "cancelled") => bail!("qemu could not save the guest: {answer}"),
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        }
        // Ended before its disk is anybody else's.
        monitor.ask("quit", &serde_json::json!({}))?;
        self.process.wait().context("wait for qemu")?;
        fs::rename(self.directory.join("state.part"), path).context("name the saved guest")
    }

    fn monitor(&mut self) -> Result<Monitor> {
        let stream = connect(&mut self.process, &self.directory, "qmp")?;
        stream.set_read_timeout(Some(Duration::from_secs(60))).context("set a time for qemu")?;
        let mut monitor = Monitor { stream: BufReader::new(stream) };
        monitor.ask("qmp_capabilities", &serde_json::json!({}))?;
        Ok(monitor)
    }

    fn last_words(&self) -> String {
        let read = |name| fs::read(self.directory.join(name)).unwrap_or_default();
        let said = [read("qemu.log"), read("console")].concat();
        String::from_utf8_lossy(said.get(said.len().saturating_sub(4000)..).unwrap_or_default()).into_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        end(&mut self.process);
    }
}

fn end(process: &mut Child) {
    // Both fail where it has ended, as it should.
    process.kill().ok();
    process.wait().ok();
}

/// Connects to the socket `name` of a qemu that was just started.
fn connect(process: &mut Child, directory: &Path, name: &str) -> Result<UnixStream> {
    // A socket's path has 108 bytes at most; this one is short wherever the directory is.
    let directory = File::open(directory).with_context(|| format!("open {}", directory.display()))?;
    let path = format!("/proc/self/fd/{}/{name}", directory.as_raw_fd());
    loop {
        if let Ok(stream) = UnixStream::connect(&path) {
            return Ok(stream);
        }
        if let Some(status) = process.try_wait().context("look at qemu")? {
            let log = fs::read_to_string(format!("/proc/self/fd/{}/qemu.log", directory.as_raw_fd()));
            bail!("{PROGRAM}: {status}\n{}", log.unwrap_or_default());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// qemu's own protocol (QMP): a JSON document a line.
struct Monitor {
    stream: BufReader<UnixStream>,
}

impl Monitor {
    fn ask(&mut self, execute: &str, arguments: &serde_json::Value) -> Result<serde_json::Value> {
        let mut request = serde_json::json!({"execute": execute, "arguments": arguments}).to_string();
        request.push('\n');
        self.stream.get_mut().write_all(request.as_bytes()).context("ask qemu")?;
        loop {
            let mut line = String::new();
            ensure!(self.stream.read_line(&mut line).context("hear from qemu")? > 0, "qemu ended at {execute}");
            let mut answer: serde_json::Value = serde_json::from_str(&line).context("read what qemu says")?;
            if let Some(error) = answer.get("error") {
                bail!("qemu refuses {execute}: {error}");
            }
            // What is no answer is the greeting, or an event.
            if let Some(answer) = answer.get_mut("return") {
                return Ok(answer.take());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_qemu_is_read() {
        assert_eq!(parse_version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\n"), Some((10, 0)));
        assert_eq!(parse_version("QEMU emulator version 7.2.22\n"), Some((7, 2)));
        assert_eq!(parse_version("no such thing"), None);
    }

    #[test]
    fn a_path_that_qemu_would_take_apart_is_refused() {
        assert!(text(Path::new("/a b/c")).is_ok());
        assert!(text(Path::new("/a,readonly=off")).is_err());
        assert!(text(Path::new("/a'b")).is_err());
    }
}
