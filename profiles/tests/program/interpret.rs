//! The subset of classic BPF that seccomp filters here use, as seccomp_check_filter() and the kernel's interpreter define it.

use agentd_profiles::evaluate::Call;
use libc::sock_filter;

pub(crate) const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
pub(crate) const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
pub(crate) const ALWAYS: u32 = libc::BPF_JMP | libc::BPF_JA;
const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const GREATER: u32 = libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K;
const ANY_BIT: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
pub(crate) const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

/// The action the program returns, or what the kernel would have refused to load.
pub(crate) fn run(program: &[sock_filter], call: &Call) -> Result<u32, String> {
    let (mut pc, mut accumulator) = (0, 0);
    loop {
        let Some(&sock_filter { code, jt, jf, k }) = program.get(pc) else {
            return Err(format!("left the program at {pc}"));
        };
        pc += 1;
        let mut branch = |holds: bool| pc += usize::from(if holds { jt } else { jf });
        match u32::from(code) {
            LOAD => accumulator = word(call, k).ok_or(format!("load from {k}"))?,
            AND => accumulator &= k,
            ALWAYS => pc += usize::try_from(k).map_err(|error| error.to_string())?,
            EQUAL => branch(accumulator == k),
            AT_LEAST => branch(accumulator >= k),
            GREATER => branch(accumulator > k),
            ANY_BIT => branch(accumulator & k != 0),
            RETURN => return Ok(k),
            other => return Err(format!("opcode {other:#x}")),
        }
    }
}

/// A word of `struct seccomp_data`, little-endian.
fn word(call: &Call, offset: u32) -> Option<u32> {
    let half = |value: u64, high: bool| u32::try_from(if high { value >> 32 } else { value & 0xffff_ffff }).ok();
    match offset {
        0 => Some(call.nr),
        4 => Some(call.arch),
        8 | 12 => Some(0),
        16..64 if offset.is_multiple_of(4) => {
            half(*call.args.get(usize::try_from(offset - 16).ok()? / 8)?, offset % 8 == 4)
        }
        _ => None,
    }
}
