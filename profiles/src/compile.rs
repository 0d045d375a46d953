//! Compiles a rule list to a small classic-BPF program: one check of the architecture, a search tree over *spans* of numbers that are decided
//! alike but for a few, argument tests where a span needs them, and one return instruction for each verdict.
//!
//! Loading is paid at every start of a job. Each instruction costs about 0.2 µs, and the kernel runs the program once for every number it
//! knows, to learn which calls it need not ask about: hence few instructions, and short ways to what most numbers have.
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

/// How a call is decided: by the first that holds. The last always does.
type Branches<'a> = Vec<Branch<'a>>;

/// Numbers from `start` up to the next range's, which all are decided alike.
#[derive(Debug)]
struct Range<'a> {
    start: u32,
    branches: Branches<'a>,
}

/// Numbers from `start` up to the next span's, which are decided by `branches` but for the few in `except`.
#[derive(Debug)]
struct Span<'a> {
    start: u32,
    branches: &'a [Branch<'a>],
    except: Vec<(u32, &'a [Branch<'a>])>,
}

/// Most exceptions of a span. An exception is one instruction, where two more spans would be two; but all other numbers of
/// its span come by it.
const EXCEPTIONS: usize = 2;

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
    let spans = spans(&ranges);
    // Behind the last number that a rule names are few that the kernel has.
    compiler.search(&spans, spans.last().map_or(0, |last| last.start));
    compiler.leaves();
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

/// Joins ranges that differ by single numbers only.
fn spans<'a>(ranges: &'a [Range<'a>]) -> Vec<Span<'a>> {
    let mut spans: Vec<Span<'a>> = Vec::new();
    let mut rest = ranges;
    while let Some((first, mut behind)) = rest.split_first() {
        let mut span = Span { start: first.start, branches: &first.branches, except: Vec::new() };
        while let Some(again) = behind.iter().position(|range| range.branches == first.branches) {
            let (between, from) = behind.split_at(again);
            let numbers = from.first().zip(between.first()).map(|(next, odd)| next.start - odd.start);
            // As many ranges as numbers: each is a single one.
            if numbers.is_none_or(|numbers| numbers as usize != again) || span.except.len() + again > EXCEPTIONS {
                break;
            }
            span.except.extend(between.iter().map(|range| (range.start, &range.branches[..])));
            behind = from.get(1..).unwrap_or_default();
        }
        spans.push(span);
        rest = behind;
    }
    spans
}

/// Where to divide `spans`, more than one, so that about as many of the numbers below `end` lie before as behind.
fn middle(spans: &[Span<'_>], end: u32) -> usize {
    let half = spans.first().map_or(0, |first| first.start.midpoint(end));
    let starts = spans.iter().map(|span| span.start).enumerate().skip(1);
    starts.min_by_key(|(_, start)| start.abs_diff(half)).map_or(0, |(index, _)| index)
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
struct Compiler<'a> {
    asm: Assembler,
    /// The code that decides by the arguments, behind the search.
    leaves: Vec<(&'a [Branch<'a>], Label)>,
    /// The return instruction of each verdict in use; they stand at the end.
    returns: Vec<(Verdict, Label)>,
}

impl<'a> Compiler<'a> {
    /// The label of the instruction that returns `verdict`.
    fn verdict(&mut self, verdict: Verdict) -> Label {
        labelled(&mut self.returns, &mut self.asm, verdict)
    }

    fn returns(&mut self) {
        for (verdict, label) in std::mem::take(&mut self.returns) {
            self.asm.place(label);
            self.asm.ret(verdict.action());
        }
    }

    /// The label of the code that decides by `branches`.
    fn decision(&mut self, branches: &'a [Branch<'a>]) -> Label {
        match branches {
            [always, ..] if always.when.is_empty() => self.verdict(always.verdict),
            _ => labelled(&mut self.leaves, &mut self.asm, branches),
        }
    }

    /// Code that decides by the number, which is in the accumulator and most often below `end`.
    fn search(&mut self, spans: &[Span<'a>], end: u32) {
        if let [only] = spans {
            return self.span(only);
        }
        let (low, high) = spans.split_at(middle(spans, end));
        let Some(pivot) = high.first() else { return };
        let entries = [(low, pivot.start), (high, end)].map(|half| match half.0 {
            [whole] if whole.except.is_empty() => (self.decision(whole.branches), None),
            _ => (self.asm.label(), Some(half)),
        });
        let [(low, _), (high, _)] = entries;
        self.asm.branch(Compare::AtLeast, pivot.start, high, low);
        for (label, half) in entries {
            if let Some((half, end)) = half {
                self.asm.place(label);
                self.search(half, end);
            }
        }
    }

    /// Code that decides by the number within one span.
    fn span(&mut self, span: &Span<'a>) {
        let mut except = span.except.iter().peekable();
        if except.peek().is_none() {
            // All numbers there are: no jump leads to what decides them.
            if let Some(always) = span.branches.first().filter(|branch| branch.when.is_empty()) {
                return self.asm.ret(always.verdict.action());
            }
            // The one leaf stands next.
            self.decision(span.branches);
        }
        while let Some((number, branches)) = except.next() {
            let odd = self.decision(branches);
            let last = except.peek().is_none();
            let other = if last { self.decision(span.branches) } else { self.asm.label() };
            self.asm.branch(Compare::Equal, *number, odd, other);
            if !last {
                self.asm.place(other);
            }
        }
    }

    /// Code that decides by the arguments.
    fn leaves(&mut self) {
        for (branches, label) in std::mem::take(&mut self.leaves) {
            self.asm.place(label);
            let mut branches = branches.iter().peekable();
            let mut accumulator = None;
            while let Some(branch) = branches.next() {
                let Some(next) = branches.peek() else { break };
                let (otherwise, pending) =
                    if next.when.is_empty() { (self.verdict(next.verdict), false) } else { (self.asm.label(), true) };
                let then = self.verdict(branch.verdict);
                self.conditions(branch.when, then, otherwise, &mut accumulator);
                if pending {
                    self.asm.place(otherwise);
                }
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

/// The label of `key`, a new one if it has none.
fn labelled<K: PartialEq>(labels: &mut Vec<(K, Label)>, asm: &mut Assembler, key: K) -> Label {
    if let Some((_, label)) = labels.iter().find(|(known, _)| *known == key) {
        return *label;
    }
    let label = asm.label();
    labels.push((key, label));
    label
}

/// What the accumulator holds: the low 32 bits of an argument under a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Loaded {
    arg: u8,
    mask: u32,
}
