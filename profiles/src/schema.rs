//! Profiles as they are written: TOML with a reason for every rule, checked into the types the rest works with.
//!
//! Invariant: what is not understood is an error. A misspelt key, system call, errno or access never becomes a rule that means less.

use std::collections::BTreeSet;
use std::str::FromStr;

use serde::Deserialize;

use crate::path::PathRule;
use crate::rule::{Condition, Errno, SeccompRule, SeccompRules, Syscall, Test, Verdict};

/// The version of the format this reads.
const SCHEMA: u32 = 1;

/// Why a text is not a profile.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SchemaError {
    /// Not TOML, or not of this shape.
    #[error("profile is not well-formed")]
    Form(#[from] toml::de::Error),
    /// Another version of the format.
    #[error("profile has schema {found}; this program reads schema {SCHEMA}")]
    Version {
        /// What it says.
        found: u32,
    },
    /// A system call that no architecture has.
    #[error("system call {name:?} is not known on any architecture")]
    UnknownSyscall {
        /// The name.
        name: String,
    },
    /// A rule that names a call twice, or none.
    #[error("a rule of group {group:?} names {name:?} twice or nothing at all")]
    Repeated {
        /// The rule's group.
        group: String,
        /// The call, empty if there is none.
        name: String,
    },
    /// A rule without a reason.
    #[error("the rule for {subject:?} gives no reason")]
    NoReason {
        /// What the rule is about.
        subject: String,
    },
    /// A condition with both `is` and `is-not`, or neither.
    #[error("a condition on argument {arg} of {syscall:?} needs either `is` or `is-not`")]
    OneTest {
        /// The first call of the rule.
        syscall: String,
        /// The argument.
        arg: u8,
    },
    /// A path that is relative.
    #[error("path {path:?} is not absolute")]
    RelativePath {
        /// The path.
        path: String,
    },
}

/// A profile, checked.
#[derive(Debug)]
pub(crate) struct Profile {
    /// Its name.
    pub(crate) name: String,
    /// What it says about system calls.
    pub(crate) seccomp: SeccompRules,
    /// What it says about paths.
    pub(crate) paths: Vec<PathRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    schema: u32,
    name: String,
    seccomp: SeccompSection,
    #[serde(default)]
    path: Vec<PathRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SeccompSection {
    unlisted: Unlisted,
    rule: Vec<RuleEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unlisted {
    verdict: Errno,
    reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleEntry {
    group: String,
    syscalls: Vec<String>,
    #[serde(default)]
    when: Vec<ConditionEntry>,
    verdict: VerdictEntry,
    reason: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct ConditionEntry {
    arg: u8,
    #[serde(default = "all_bits")]
    mask: u32,
    is: Option<Vec<u32>>,
    is_not: Option<Vec<u32>>,
}

const fn all_bits() -> u32 {
    u32::MAX
}

#[derive(Clone, Copy, Deserialize)]
enum VerdictEntry {
    #[serde(rename = "allow")]
    Allow,
    #[serde(untagged)]
    Refuse(Errno),
}

/// Reads a profile.
///
/// # Errors
/// When the text is not a profile of this schema, or says something that has no meaning.
pub(crate) fn parse(text: &str) -> Result<Profile, SchemaError> {
    let document: Document = toml::from_str(text)?;
    if document.schema != SCHEMA {
        return Err(SchemaError::Version { found: document.schema });
    }
    for entry in &document.path {
        if !entry.path.starts_with('/') {
            return Err(SchemaError::RelativePath { path: entry.path.to_string() });
        }
        reason(&entry.path, &entry.reason)?;
    }
    let Unlisted { verdict: unlisted, reason: unlisted_reason } = document.seccomp.unlisted;
    reason("unlisted", &unlisted_reason)?;
    let rules = document.seccomp.rule.into_iter().map(rule).collect::<Result<Vec<_>, _>>()?;
    let seccomp = SeccompRules { rules: rules.into(), unlisted, unlisted_reason: unlisted_reason.into() };
    Ok(Profile { name: document.name, seccomp, paths: document.path })
}

fn reason(subject: &str, reason: &str) -> Result<(), SchemaError> {
    if reason.trim().is_empty() { Err(SchemaError::NoReason { subject: subject.to_owned() }) } else { Ok(()) }
}

fn rule(entry: RuleEntry) -> Result<SeccompRule, SchemaError> {
    let first = entry.syscalls.first().cloned().unwrap_or_default();
    reason(&first, &entry.reason)?;
    let mut seen = BTreeSet::new();
    if let Some(name) = entry.syscalls.iter().find(|name| !seen.insert(name.as_str())) {
        return Err(SchemaError::Repeated { group: entry.group, name: name.clone() });
    }
    if entry.syscalls.is_empty() {
        return Err(SchemaError::Repeated { group: entry.group, name: first });
    }
    let when =
        entry.when.into_iter().map(|condition| self::condition(&first, condition)).collect::<Result<Vec<_>, _>>()?;
    let syscalls = entry.syscalls.into_iter().map(syscall).collect::<Result<Vec<_>, _>>()?;
    let verdict = match entry.verdict {
        VerdictEntry::Allow => Verdict::Allow,
        VerdictEntry::Refuse(errno) => Verdict::Refuse(errno),
    };
    Ok(SeccompRule {
        group: entry.group.into(),
        syscalls: syscalls.into(),
        when: when.into(),
        verdict,
        reason: entry.reason.into(),
    })
}

fn condition(syscall: &str, entry: ConditionEntry) -> Result<Condition, SchemaError> {
    let test = match (entry.is, entry.is_not) {
        (Some(values), None) => Test::Is(values.into()),
        (None, Some(values)) => Test::IsNot(values.into()),
        _ => return Err(SchemaError::OneTest { syscall: syscall.to_owned(), arg: entry.arg }),
    };
    Ok(Condition { arg: entry.arg, mask: entry.mask, test })
}

/// A name that only the other architecture has is fine: the rule says nothing on this one.
fn syscall(name: String) -> Result<Syscall, SchemaError> {
    let x86_64 = syscalls::x86_64::Sysno::from_str(&name).ok().and_then(|call| u32::try_from(call.id()).ok());
    let aarch64 = syscalls::aarch64::Sysno::from_str(&name).ok().and_then(|call| u32::try_from(call.id()).ok());
    if x86_64.is_none() && aarch64.is_none() {
        return Err(SchemaError::UnknownSyscall { name });
    }
    Ok(Syscall { name: name.into(), x86_64, aarch64 })
}

#[cfg(test)]
#[path = "schema/tests.rs"]
mod tests;
