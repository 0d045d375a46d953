//! Compiles a rule list to a small classic-BPF program: one check of the architecture, a balanced search over *ranges* of numbers that share a
//! verdict, argument tests where a range needs them, and one return instruction for each verdict.
//!
//! Loading costs about 0.6 µs an instruction, at every start of a job; a program that compares each number in turn has ten times as many.
//!
//! Invariant: for every call the program returns what [`crate::evaluate`] says, or there is no program.

use std::collections::BTreeMap;

use libc::sock_filter;

use crate::assemble::{AssembleError, Assembler, Compare, Label, MAX_LEN};
use crate::rule::{Arch, Condition, SeccompRules, Test, Verdict};

/// Offsets in `struct seccomp_data` (linux/seccomp.h).
const NR_OFFSET: u32 = 0;
const ARCH_OFFSET: u32 = 4;
const ARGS_OFFSET: u32 = 16;
/// Arguments a system call has.
const ARGS: u8 = 6;

/// Why a rule list has no program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// A rule stands behind one that already decides every such call.
    #[error("system call {syscall}: a rule after the one without conditions can never apply")]
    Unreachable {
        /// The call's name.
        syscall: String,
    },
    /// The last rule of a call has conditions, so what follows from their failing is not said.
    #[error("system call {syscall}: the last rule must have no conditions")]
    OpenEnded {
        /// The call's name.
        syscall: String,
    },
    /// A condition names an argument that does not exist.
    #[error("system call {syscall}: there is no argument {arg}; they are 0 to 5")]
    NoSuchArgument {
        /// The call's name.
        syscall: String,
        /// The argument asked for.
        arg: u8,
    },
    /// A condition compares with nothing, or with a value the mask can never leave.
    #[error("system call {syscall}: a condition on argument {arg} does not depend on it")]
    IdleCondition {
        /// The call's name.
        syscall: String,
        /// The argument tested.
        arg: u8,
    },
    /// The jumps could not be resolved, or the program is longer than the kernel takes.
    #[error(transparent)]
    Assemble(#[from] AssembleError),
}

/// What one rule contributes to the decision about one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Branch<'a> {
    when: &'a [Condition],
    verdict: Verdict,
}

/// Numbers from `start` up to the next range's, which all are decided alike: by the first of `branches` that holds. The last always does.
#[derive(Debug)]
struct Range<'a> {
    start: u32,
    branches: Vec<Branch<'a>>,
}

impl Range<'_> {
    /// The verdict, where no argument has a say.
    fn plain(&self) -> Option<Verdict> {
        self.branches.first().filter(|branch| branch.when.is_empty()).map(|branch| branch.verdict)
    }
}

/// The program for `rules` on `arch`.
///
/// # Errors
/// When the rules contradict themselves or need more than 4,096 instructions.
pub fn compile(rules: &SeccompRules, arch: Arch) -> Result<Vec<sock_filter>, CompileError> {
    let ranges = ranges(rules, arch)?;
    // Each value compared with is an instruction at least: a file that asks for millions is refused before they are made.
    let conditions = ranges.iter().flat_map(|range| &range.branches).flat_map(|branch| branch.when);
    let len = conditions.map(|condition| condition.test.values().len()).sum();
    if len > MAX_LEN {
        return Err(AssembleError::TooLong { len }.into());
    }
    let mut compiler = Compiler::default();
    let (native, foreign) = (compiler.asm.label(), compiler.verdict(Verdict::Kill));
    compiler.asm.load(ARCH_OFFSET);
    compiler.asm.branch(Compare::Equal, arch.audit_word(), native, foreign);
    compiler.asm.place(native);
    compiler.asm.load(NR_OFFSET);
    compiler.search(&ranges);
    compiler.returns();
    Ok(compiler.asm.finish()?)
}

/// Sorts the rules by number and joins neighbours that are decided alike. Covers every number: the first range starts at 0.
fn ranges(rules: &SeccompRules, arch: Arch) -> Result<Vec<Range<'_>>, CompileError> {
    let mut by_number: BTreeMap<u32, (&str, Vec<Branch<'_>>)> = BTreeMap::new();
    for rule in rules.rules.iter() {
        for syscall in rule.syscalls.iter() {
            let Some(number) = syscall.number(arch) else { continue };
            check_conditions(&syscall.name, &rule.when)?;
            let (_, branches) = by_number.entry(number).or_insert((&syscall.name, Vec::new()));
            if branches.last().is_some_and(|last| last.when.is_empty()) {
                return Err(CompileError::Unreachable { syscall: syscall.name.to_string() });
            }
            branches.push(Branch { when: &rule.when, verdict: rule.verdict });
        }
    }

    let unlisted = || vec![Branch { when: &[], verdict: Verdict::Refuse(rules.unlisted) }];
    let mut ranges: Vec<Range<'_>> = Vec::new();
    let mut append = |start, branches| {
        if ranges.last().is_none_or(|last: &Range<'_>| last.branches != branches) {
            ranges.push(Range { start, branches });
        }
    };
    let mut next = Some(0);
    for (number, (name, branches)) in by_number {
        if branches.last().is_none_or(|last| !last.when.is_empty()) {
            return Err(CompileError::OpenEnded { syscall: name.to_owned() });
        }
        if let Some(gap) = next.filter(|next| *next < number) {
            append(gap, unlisted());
        }
        append(number, branches);
        next = number.checked_add(1);
    }
    if let Some(gap) = next {
        append(gap, unlisted());
    }
    Ok(ranges)
}

fn check_conditions(syscall: &str, when: &[Condition]) -> Result<(), CompileError> {
    for condition in when {
        let (syscall, arg) = (syscall.to_owned(), condition.arg);
        if arg >= ARGS {
            return Err(CompileError::NoSuchArgument { syscall, arg });
        }
        let values = condition.test.values();
        if condition.mask == 0 || values.is_empty() || values.iter().any(|value| value & !condition.mask != 0) {
            return Err(CompileError::IdleCondition { syscall, arg });
        }
    }
    Ok(())
}

#[derive(Debug, Default)]
struct Compiler {
    asm: Assembler,
    /// The return instruction of each verdict in use; they stand at the end.
    returns: Vec<(Verdict, Label)>,
}

impl Compiler {
    /// The label of the instruction that returns `verdict`.
    fn verdict(&mut self, verdict: Verdict) -> Label {
        if let Some((_, label)) = self.returns.iter().find(|(known, _)| *known == verdict) {
            return *label;
        }
        let label = self.asm.label();
        self.returns.push((verdict, label));
        label
    }

    fn returns(&mut self) {
        for (verdict, label) in std::mem::take(&mut self.returns) {
            self.asm.place(label);
            self.asm.ret(verdict.action());
        }
    }

    /// Where to jump to have `ranges` decide, and whether code for that still has to be written.
    fn entry(&mut self, ranges: &[Range<'_>]) -> (Label, bool) {
        let plain = if let [only] = ranges { only.plain() } else { None };
        match plain {
            Some(verdict) => (self.verdict(verdict), false),
            None => (self.asm.label(), true),
        }
    }

    /// Code that decides by the number, which is in the accumulator.
    fn search(&mut self, ranges: &[Range<'_>]) {
        let (low, high) = ranges.split_at(ranges.len() / 2);
        let (Some(pivot), false) = (high.first(), low.is_empty()) else {
            return self.leaf(ranges);
        };
        let (low_entry, low_pending) = self.entry(low);
        let (high_entry, high_pending) = self.entry(high);
        self.asm.branch(Compare::AtLeast, pivot.start, high_entry, low_entry);
        for (half, label, pending) in [(low, low_entry, low_pending), (high, high_entry, high_pending)] {
            if pending {
                self.asm.place(label);
                self.search(half);
            }
        }
    }

    /// Code that decides by the arguments.
    fn leaf(&mut self, ranges: &[Range<'_>]) {
        let mut branches = ranges.iter().flat_map(|range| &range.branches).peekable();
        // A program of one range has no jump that could go to the return instruction itself.
        if let Some(always) = branches.peek().filter(|branch| branch.when.is_empty()) {
            return self.asm.ret(always.verdict.action());
        }
        let mut accumulator = None;
        while let Some(branch) = branches.next() {
            let Some(next) = branches.peek() else { return };
            let (otherwise, pending) =
                if next.when.is_empty() { (self.verdict(next.verdict), false) } else { (self.asm.label(), true) };
            let then = self.verdict(branch.verdict);
            self.conditions(branch.when, then, otherwise, &mut accumulator);
            if pending {
                self.asm.place(otherwise);
            }
        }
    }

    /// Code that goes to `then` if all of `when` hold. `accumulator` says what it holds before and, at `otherwise`, afterwards.
    fn conditions(&mut self, when: &[Condition], then: Label, otherwise: Label, accumulator: &mut Option<Loaded>) {
        let mut failed_with = Vec::new();
        for (index, condition) in when.iter().enumerate() {
            let last = index + 1 == when.len();
            let holds = if last { then } else { self.asm.label() };
            self.condition(condition, holds, otherwise, accumulator);
            failed_with.push(*accumulator);
            if !last {
                self.asm.place(holds);
            }
        }
        // Each condition can be the one that failed; unless they all leave the same behind, it is not known what is there.
        if failed_with.iter().any(|left| left != accumulator) {
            *accumulator = None;
        }
    }

    fn condition(&mut self, condition: &Condition, holds: Label, fails: Label, accumulator: &mut Option<Loaded>) {
        let (found, missing) = match condition.test {
            Test::Is(_) => (holds, fails),
            Test::IsNot(_) => (fails, holds),
        };
        let whole = Loaded { arg: condition.arg, mask: u32::MAX };
        let masked = Loaded { arg: condition.arg, mask: condition.mask };
        if masked != whole && condition.test.values() == [0] {
            if *accumulator != Some(whole) && *accumulator != Some(masked) {
                self.load(whole, accumulator);
            }
            return self.asm.branch(Compare::AnyBit, condition.mask, missing, found);
        }
        if *accumulator != Some(masked) {
            if *accumulator != Some(whole) {
                self.load(whole, accumulator);
            }
            if masked != whole {
                self.asm.and(masked.mask);
                *accumulator = Some(masked);
            }
        }
        let mut values = condition.test.values().iter().peekable();
        while let Some(value) = values.next() {
            let last = values.peek().is_none();
            let next = if last { missing } else { self.asm.label() };
            self.asm.branch(Compare::Equal, *value, found, next);
            if !last {
                self.asm.place(next);
            }
        }
    }

    /// The low half of an argument: the first word of it, since both architectures are little-endian.
    fn load(&mut self, whole: Loaded, accumulator: &mut Option<Loaded>) {
        self.asm.load(ARGS_OFFSET + 8 * u32::from(whole.arg));
        *accumulator = Some(whole);
    }
}

/// What the accumulator holds: the low 32 bits of an argument under a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Loaded {
    arg: u8,
    mask: u32,
}
