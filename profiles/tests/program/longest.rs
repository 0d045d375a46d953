//! How long a call can take.

use libc::sock_filter;

use crate::interpret::{ALWAYS, AND, LOAD, RETURN};

/// The most instructions one call can run through; without `arguments`, among calls decided by their number alone.
pub(crate) fn longest_path(program: &[sock_filter], arguments: bool) -> usize {
    // Jumps only go forward, so the paths from behind an instruction are known when it is reached from the end.
    let mut longest = vec![None; program.len()];
    for (pc, instruction) in program.iter().enumerate().rev() {
        let after = |skip: usize| longest[pc + 1 + skip].map(|steps: usize| steps + 1);
        longest[pc] = match u32::from(instruction.code) {
            RETURN => Some(1),
            LOAD if instruction.k >= 16 && !arguments => None,
            LOAD | AND => after(0),
            ALWAYS => usize::try_from(instruction.k).ok().and_then(after),
            _ => after(usize::from(instruction.jt)).max(after(usize::from(instruction.jf))),
        };
    }
    longest[0].unwrap_or(0)
}
