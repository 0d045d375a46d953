//! The vocabulary of a system-call policy: rules, conditions on arguments, verdicts, architectures.
//!
//! Invariant: a condition sees the low 32 bits of an argument only. Every argument a rule may test is an `int` or a flag word of 32 bits to
//! the kernel, which ignores the upper half; a rule that looked at all 64 bits could be passed by setting one of those (CVE-2019-10063).
//!
//! Lists are `Cow`, so that built-in rules are plain statics and rules read from a file are the same type.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

/// An architecture a filter can be compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// 64-bit x86.
    X86_64,
    /// 64-bit little-endian Arm.
    Aarch64,
}

impl Arch {
    /// The `AUDIT_ARCH_*` word the kernel puts into `seccomp_data.arch` for this architecture (linux/audit.h).
    #[must_use]
    pub const fn audit_word(self) -> u32 {
        match self {
            Self::X86_64 => 0xc000_003e,
            Self::Aarch64 => 0xc000_00b7,
        }
    }
}

/// An error a refused system call reports. The numbers are those of asm-generic, which both architectures use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u16)]
#[serde(rename_all = "UPPERCASE")]
pub enum Errno {
    /// Operation not permitted.
    Eperm = 1,
    /// Function not implemented.
    Enosys = 38,
    /// Protocol not supported.
    Eprotonosupport = 93,
    /// Address family not supported.
    Eafnosupport = 97,
}

/// What becomes of a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The kernel carries it out.
    Allow,
    /// It is not carried out and reports this error.
    Refuse(Errno),
    /// It is not carried out and reports success.
    Pretend,
    /// The process dies of SIGSYS. Only for calls by another architecture's entry, whose numbers mean other things; no rule says it.
    Kill,
}

impl Verdict {
    /// The word a filter returns for this verdict (seccomp(2)).
    #[must_use]
    pub const fn action(self) -> u32 {
        match self {
            Self::Allow => libc::SECCOMP_RET_ALLOW,
            Self::Refuse(errno) => libc::SECCOMP_RET_ERRNO | errno as u32,
            Self::Pretend => libc::SECCOMP_RET_ERRNO,
            Self::Kill => libc::SECCOMP_RET_KILL_PROCESS,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Refuse(Errno::Eperm) => "EPERM",
            Self::Refuse(Errno::Enosys) => "ENOSYS",
            Self::Refuse(Errno::Eprotonosupport) => "EPROTONOSUPPORT",
            Self::Refuse(Errno::Eafnosupport) => "EAFNOSUPPORT",
            Self::Pretend => "success",
            Self::Kill => "kill",
        })
    }
}

impl Serialize for Verdict {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A system call by name, with its number where an architecture has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Syscall {
    /// The kernel's name.
    pub name: Cow<'static, str>,
    /// Its number on x86_64.
    pub x86_64: Option<u32>,
    /// Its number on aarch64.
    pub aarch64: Option<u32>,
}

impl Syscall {
    /// The number on `arch`; `None` where `arch` does not have the call.
    #[must_use]
    pub const fn number(&self, arch: Arch) -> Option<u32> {
        match arch {
            Arch::X86_64 => self.x86_64,
            Arch::Aarch64 => self.aarch64,
        }
    }
}

/// How a masked argument is compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Test {
    /// Equal to one of these.
    Is(Cow<'static, [u32]>),
    /// Equal to none of these.
    IsNot(Cow<'static, [u32]>),
}

impl Test {
    /// The values compared with.
    #[must_use]
    pub fn values(&self) -> &[u32] {
        match self {
            Self::Is(values) | Self::IsNot(values) => values,
        }
    }
}

/// A test of one argument: its low 32 bits, and-ed with `mask`, against a set of values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// Which argument, 0 to 5.
    pub arg: u8,
    /// The bits that are looked at.
    pub mask: u32,
    /// What they are compared with.
    #[serde(flatten)]
    pub test: Test,
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "arg {}", self.arg)?;
        if self.mask != u32::MAX {
            write!(f, " & {:#x}", self.mask)?;
        }
        let mut between = match self.test {
            Test::Is(_) => " is ",
            Test::IsNot(_) => " is not ",
        };
        for value in self.test.values() {
            // Small numbers are families and kinds; what is larger are bits.
            if *value < 100 {
                write!(f, "{between}{value}")?;
            } else {
                write!(f, "{between}{value:#x}")?;
            }
            between = " or ";
        }
        Ok(())
    }
}

/// One rule: these calls, if all conditions hold, get this verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SeccompRule {
    /// The heading it stands under in the documentation.
    pub group: Cow<'static, str>,
    /// The calls it names.
    pub syscalls: Cow<'static, [Syscall]>,
    /// Conditions, all of which must hold; empty for "always".
    pub when: Cow<'static, [Condition]>,
    /// What becomes of such a call.
    pub verdict: Verdict,
    /// Why.
    pub reason: Cow<'static, str>,
}

/// A whole system-call policy. For each call the first rule decides that names it and whose conditions hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SeccompRules {
    /// The rules, in order.
    #[serde(rename = "rule")]
    pub rules: Cow<'static, [SeccompRule]>,
    /// The answer to a number that no rule names. A refusal by type: allowing unnamed numbers would let the x32 aliases of refused calls by.
    pub unlisted: Errno,
    /// Why it is that.
    pub unlisted_reason: Cow<'static, str>,
}
