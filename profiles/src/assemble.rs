//! Classic BPF with labels: places instructions, resolves jumps.
//!
//! Invariant: a jump lands on its label or there is no program. Conditional jumps reach 255 instructions; one that has further to go is widened
//! by two unconditional jumps behind it, whose offset has 32 bits.

use libc::sock_filter;

/// The most instructions the kernel takes (`BPF_MAXINSNS`).
pub(crate) const MAX_LEN: usize = 4096;

/// Why there is no program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssembleError {
    /// A jump goes to a label that was never placed, or stands before the jump; the compiler is wrong.
    #[error("a jump of the filter at instruction {at} has no target behind it")]
    NoTarget {
        /// The instruction.
        at: usize,
    },
    /// More instructions than the kernel takes.
    #[error("the filter would have {len} instructions or more; the kernel takes 4096")]
    TooLong {
        /// How many there would be.
        len: usize,
    },
}

/// A place in the program that can be jumped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Label(usize);

/// How a conditional jump compares the accumulator with its operand.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Compare {
    Equal,
    AtLeast,
    AnyBit,
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Load(u32),
    And(u32),
    Branch { compare: Compare, operand: u32, yes: Label, no: Label },
    Return(u32),
}

/// A program under construction.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    ops: Vec<Op>,
    /// For each label the index of the op it stands before.
    labels: Vec<Option<usize>>,
}

impl Assembler {
    /// A label that still has to be placed.
    pub(crate) fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Puts `label` before the next instruction.
    pub(crate) fn place(&mut self, label: Label) {
        let next = self.ops.len();
        if let Some(slot) = self.labels.get_mut(label.0) {
            *slot = Some(next);
        }
    }

    /// Loads the word at `offset` of `struct seccomp_data`.
    pub(crate) fn load(&mut self, offset: u32) {
        self.ops.push(Op::Load(offset));
    }

    /// Keeps the bits of `mask`.
    pub(crate) fn and(&mut self, mask: u32) {
        self.ops.push(Op::And(mask));
    }

    /// Goes to `yes` or `no`.
    pub(crate) fn branch(&mut self, compare: Compare, operand: u32, yes: Label, no: Label) {
        self.ops.push(Op::Branch { compare, operand, yes, no });
    }

    /// Ends the filter with `action`.
    pub(crate) fn ret(&mut self, action: u32) {
        self.ops.push(Op::Return(action));
    }

    /// The finished program.
    pub(crate) fn finish(&self) -> Result<Vec<sock_filter>, AssembleError> {
        // Widening moves everything behind it, which may put further targets out of reach; a branch once widened stays so, hence this ends.
        let mut wide = vec![false; self.ops.len()];
        loop {
            let starts = self.starts(&wide);
            let mut changed = false;
            for (at, op) in self.ops.iter().enumerate() {
                let Op::Branch { yes, no, .. } = *op else { continue };
                if wide.get(at) == Some(&false)
                    && (self.near(&starts, at, yes)?.is_none() || self.near(&starts, at, no)?.is_none())
                {
                    if let Some(flag) = wide.get_mut(at) {
                        *flag = true;
                    }
                    changed = true;
                }
            }
            if !changed {
                return self.emit(&wide, &starts);
            }
        }
    }

    /// Where each op starts in the finished program.
    fn starts(&self, wide: &[bool]) -> Vec<usize> {
        let mut next = 0;
        wide.iter()
            .map(|wide| {
                let start = next;
                next += if *wide { 3 } else { 1 };
                start
            })
            .collect()
    }

    /// Instructions to skip from behind the one at `pc` to reach `label`.
    fn distance(&self, starts: &[usize], pc: usize, label: Label) -> Result<usize, AssembleError> {
        let target = self.labels.get(label.0).copied().flatten().and_then(|op| starts.get(op));
        target.and_then(|target| target.checked_sub(pc + 1)).ok_or(AssembleError::NoTarget { at: pc })
    }

    /// The same from the op `at`, where it fits a conditional jump.
    fn near(&self, starts: &[usize], at: usize, label: Label) -> Result<Option<u8>, AssembleError> {
        let pc = starts.get(at).copied().ok_or(AssembleError::NoTarget { at })?;
        Ok(u8::try_from(self.distance(starts, pc, label)?).ok())
    }

    fn emit(&self, wide: &[bool], starts: &[usize]) -> Result<Vec<sock_filter>, AssembleError> {
        let mut program: Vec<sock_filter> = Vec::with_capacity(self.ops.len());
        for (at, op) in self.ops.iter().enumerate() {
            match *op {
                Op::Load(offset) => program.push(statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset)),
                Op::And(mask) => program.push(statement(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, mask)),
                Op::Return(action) => program.push(statement(libc::BPF_RET | libc::BPF_K, action)),
                Op::Branch { compare, operand, yes, no } => {
                    let (jt, jf) = if wide.get(at) == Some(&true) {
                        (0, 1)
                    } else {
                        let far = AssembleError::NoTarget { at: program.len() };
                        (self.near(starts, at, yes)?.ok_or(far)?, self.near(starts, at, no)?.ok_or(far)?)
                    };
                    program.push(sock_filter { code: jump_code(compare), jt, jf, k: operand });
                    if wide.get(at) == Some(&true) {
                        for label in [yes, no] {
                            let far = AssembleError::TooLong { len: program.len() };
                            let k = u32::try_from(self.distance(starts, program.len(), label)?).or(Err(far))?;
                            program.push(statement(libc::BPF_JMP | libc::BPF_JA, k));
                        }
                    }
                }
            }
        }
        if program.len() > MAX_LEN { Err(AssembleError::TooLong { len: program.len() }) } else { Ok(program) }
    }
}

/// libc has the opcode parts as `u32`; every sum of them is below 256.
#[expect(clippy::cast_possible_truncation, reason = "BPF opcodes are below 256")]
const fn code(parts: u32) -> u16 {
    parts as u16
}

const fn statement(parts: u32, k: u32) -> sock_filter {
    sock_filter { code: code(parts), jt: 0, jf: 0, k }
}

const fn jump_code(compare: Compare) -> u16 {
    let test = match compare {
        Compare::Equal => libc::BPF_JEQ,
        Compare::AtLeast => libc::BPF_JGE,
        Compare::AnyBit => libc::BPF_JSET,
    };
    code(libc::BPF_JMP | libc::BPF_K | test)
}
