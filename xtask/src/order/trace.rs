//! Which functions a program and its children enter, in the order of their first time: by a breakpoint at the start of each.
//!
//! Invariant: a breakpoint is gone before its function goes on, so the program does what it does without; nothing of it is
//! left when the tracer ends.

use std::collections::HashSet;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::ptrace::{self, AddressType, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::map::Functions;
use crate::elf;

/// `int3`.
const BREAKPOINT: u8 = 0xcc;

/// Runs `start`, which must lead to `program`, and gives the addresses of the functions that it entered before its payload.
pub(super) fn run(start: Command, program: &Path, functions: &Functions) -> Result<Vec<u64>> {
    let code = Code::read(program)?;
    // It waits until it is traced.
    let mut waiting = Command::new("sh");
    waiting.args(["-c", "read -r go && exec \"$@\"", "sh"]).arg(start.get_program()).args(start.get_args());
    waiting.env_clear().envs(start.get_envs().filter_map(|(name, value)| Some((name, value?))));
    waiting.current_dir(start.get_current_dir().unwrap_or(Path::new("/")));
    let mut child = waiting.stdin(Stdio::piped()).spawn().context("start sh")?;
    let first = Pid::from_raw(child.id().cast_signed());
    let options = Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_EXITKILL;
    ptrace::seize(first, options).context("trace sh")?;
    child.stdin.take().context("no pipe to sh")?.write_all(b"\n").context("wake sh")?;

    let (mut met, mut seen) = (Vec::new(), HashSet::new());
    let mut ended_well = false;
    loop {
        let status = match waitpid(None, Some(WaitPidFlag::__WALL)) {
            Err(Errno::ECHILD) => break,
            status => status.context("wait for what is traced")?,
        };
        let (pid, signal) = match status {
            WaitStatus::Exited(pid, code) => {
                ended_well |= pid == first && code == 0;
                continue;
            }
            WaitStatus::PtraceEvent(pid, _, event) => {
                let is_exec = event == Options::PTRACE_O_TRACEEXEC.bits().trailing_zeros().cast_signed();
                if is_exec && std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program) {
                    functions.addresses().try_for_each(|address| put(pid, address, BREAKPOINT))?;
                }
                (pid, None)
            }
            WaitStatus::Stopped(pid, Signal::SIGTRAP) => {
                let mut registers = ptrace::getregs(pid).context("read registers")?;
                let address = registers.rip - 1;
                if functions.is_start(address) {
                    put(pid, address, code.byte(address)?)?;
                    registers.rip = address;
                    ptrace::setregs(pid, registers).context("set registers")?;
                    if seen.insert(address) {
                        met.push(address);
                    }
                    (pid, None)
                } else {
                    (pid, Some(Signal::SIGTRAP))
                }
            }
            WaitStatus::Stopped(pid, signal) => (pid, Some(signal)),
            _ => continue,
        };
        match ptrace::cont(pid, signal) {
            // Killed meanwhile.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => bail!("let {pid} go on: {error}"),
        }
    }
    ensure!(ended_well && !met.is_empty(), "what was traced did not end well, or was not {}", program.display());
    Ok(met)
}

/// Puts one byte into the memory of `pid`.
fn put(pid: Pid, address: u64, byte: u8) -> Result<()> {
    let place = address as AddressType;
    let mut word = ptrace::read(pid, place).context("read code")?.to_ne_bytes();
    word[0] = byte;
    ptrace::write(pid, place, i64::from_ne_bytes(word)).context("write code")
}

/// The code of a program as its file has it.
struct Code {
    file: File,
    /// What to take from an address for its place in the file.
    offset: u64,
}

impl Code {
    /// Finds the segment that is executed.
    fn read(program: &Path) -> Result<Self> {
        let file = File::open(program).with_context(|| format!("open {}", program.display()))?;
        let number = |at: u64, length: usize| {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes[..length], at).ok()?;
            Some(u64::from_le_bytes(bytes))
        };
        let segments = elf::segments(number).context("read the program's headers")?;
        let executed = segments.into_iter().find(|segment| segment.kind == elf::LOAD && segment.is_executed);
        let executed = executed.with_context(|| format!("{} has nothing to execute", program.display()))?;
        Ok(Self { file, offset: executed.above_file })
    }

    fn byte(&self, address: u64) -> Result<u8> {
        let mut byte = [0];
        self.file.read_exact_at(&mut byte, address.wrapping_sub(self.offset)).context("read the program's code")?;
        Ok(byte[0])
    }
}
