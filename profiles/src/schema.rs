//! Profiles as they are written: TOML with a reason for every rule, checked into the types the rest works with.
//!
//! Invariant: what is not understood is an error that names its line. A misspelt key, system call, errno or right never
//! becomes a rule that means less; and no file, whatever it holds, costs more than its bounds.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;
use std::str::FromStr;

use serde::Deserialize;
use toml::Spanned;

use crate::path::{MayMiss, PathRule};
use crate::profile::{Namespaces, Profile};
use crate::rule::{Condition, Errno, SeccompRule, SeccompRules, Syscall, Test, Verdict};

/// The version of the format this reads.
const SCHEMA: u32 = 1;
/// Bytes of a file.
pub const MAX_BYTES: usize = 256 << 10;
/// Rules of each kind in a file.
const MAX_RULES: usize = 1000;
/// Conditions of a rule; a call has six arguments.
const MAX_CONDITIONS: usize = 8;
/// Values that one condition compares with.
const MAX_VALUES: usize = 64;
/// Bytes of a name, and of a reason.
const MAX_NAME: usize = 64;
const MAX_REASON: usize = 1000;

/// Why a text is not a profile.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// Longer than a profile may be.
    #[error("a profile has at most {MAX_BYTES} bytes, and this one more")]
    TooLong,
    /// Not TOML, not of this shape, or something in it has no meaning.
    #[error("line {line}: {problem}")]
    Line {
        /// The line, from 1.
        line: usize,
        /// What is wrong there.
        problem: Problem,
    },
    /// Something is wrong that stands in no one line.
    #[error(transparent)]
    Whole(#[from] Problem),
}

/// What is wrong with a profile.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Not TOML, or not of this shape.
    #[error("{0}")]
    Form(String),
    /// Another version of the format.
    #[error("profile has schema {found}; this program reads schema {SCHEMA}")]
    Version {
        /// What it says.
        found: u32,
    },
    /// A name that is none.
    #[error("{0:?} is no name for a profile: lower-case letters, digits and hyphens, at most {MAX_NAME}")]
    Name(String),
    /// More than a file may have.
    #[error("there are more than {most} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The bound.
        most: usize,
    },
    /// `extends` something that is not there.
    #[error("`extends` names no built-in profile: {0:?}")]
    NoBase(String),
    /// Neither a base nor a rule for the numbers no rule names.
    #[error("a profile without `extends` needs [seccomp.unlisted] with a verdict and a reason")]
    NoUnlisted,
    /// A system call that no architecture has.
    #[error("system call {0:?} is not known on any architecture")]
    UnknownSyscall(String),
    /// A rule that names a call or a place twice, or nothing.
    #[error("{0:?} stands there twice, or nothing does")]
    Repeated(String),
    /// A rule without a reason, or with an endless one.
    #[error("the rule for {0:?} needs a reason of 1 to {MAX_REASON} bytes")]
    Reason(String),
    /// A condition with both `is` and `is-not`, or neither.
    #[error("a condition on argument {arg} needs either `is` or `is-not`")]
    OneTest {
        /// The argument.
        arg: u8,
    },
    /// A file right without which there is no Landlock.
    #[error("the right `files` may not be missing: every Landlock has it")]
    NeverMissing,
    /// A workspace's profile allows something.
    #[error("a workspace's profile may only refuse, and this rule of group {group:?} allows {syscall:?}")]
    Allows {
        /// The rule's group.
        group: String,
        /// Its first call.
        syscall: String,
    },
    /// A workspace's profile makes a denial one that nobody hears of.
    #[error(
        "a workspace's profile may not hide a denial: group {group:?} answers {verdict} to {syscall:?}, which the profile under it \
         denies aloud; say EPERM"
    )]
    Hides {
        /// The rule's group.
        group: String,
        /// The call.
        syscall: String,
        /// What the rule answers.
        verdict: String,
    },
    /// A workspace's profile refuses the call by which denials come to be told.
    #[error("a workspace's profile may not refuse \"sendmsg\", as group {group:?} does: no denial would be told")]
    Mutes {
        /// The rule's group.
        group: String,
    },
    /// A workspace's profile grants what the profile under it does not.
    #[error("a workspace's profile may only tighten, and {place:?} would have more than its {has}: {more}")]
    Widens {
        /// The place.
        place: String,
        /// What it has.
        has: String,
        /// What it would have besides.
        more: String,
    },
    /// A grant is taken away that another one gives as well.
    #[error("taking {rights} from {place:?} changes nothing: {by:?} grants it too")]
    NoEffect {
        /// The place.
        place: String,
        /// What was to go.
        rights: String,
        /// The rule that grants it as well.
        by: String,
    },
    /// A workspace's profile names a place that has no grant of its own.
    #[error("the profile has no grant of its own at {place:?} to tighten; it has {known}")]
    NoSuchPlace {
        /// The place.
        place: String,
        /// The places there are.
        known: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Document {
    schema: u32,
    name: String,
    #[serde(default)]
    about: String,
    extends: Option<Spanned<String>>,
    namespaces: Option<NamespacesEntry>,
    #[serde(default)]
    landlock: LandlockSection,
    #[serde(default)]
    seccomp: SeccompSection,
    #[serde(default)]
    path: Vec<Spanned<PathRule>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NamespacesEntry {
    allow: bool,
    reason: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct LandlockSection {
    #[serde(default)]
    may_miss: Option<Vec<Spanned<MayMiss>>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SeccompSection {
    unlisted: Option<Unlisted>,
    #[serde(default)]
    rule: Vec<Spanned<RuleEntry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unlisted {
    verdict: Errno,
    reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RuleEntry {
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
    #[serde(rename = "success")]
    Pretend,
    #[serde(rename = "EPERM")]
    Eperm,
    #[serde(rename = "ENOSYS")]
    Enosys,
    #[serde(rename = "EPROTONOSUPPORT")]
    Eprotonosupport,
    #[serde(rename = "EAFNOSUPPORT")]
    Eafnosupport,
}

impl From<VerdictEntry> for Verdict {
    fn from(entry: VerdictEntry) -> Self {
        Self::Refuse(match entry {
            VerdictEntry::Allow => return Self::Allow,
            VerdictEntry::Pretend => return Self::Pretend,
            VerdictEntry::Eperm => Errno::Eperm,
            VerdictEntry::Enosys => Errno::Enosys,
            VerdictEntry::Eprotonosupport => Errno::Eprotonosupport,
            VerdictEntry::Eafnosupport => Errno::Eafnosupport,
        })
    }
}

/// Reads a profile; one that extends another is completed with it.
///
/// # Errors
/// When the text is not a profile of this schema, or says something that has no meaning.
pub(crate) fn parse(text: &str, bases: &[&Profile]) -> Result<Profile, SchemaError> {
    let Document { schema, name, about, extends, namespaces, landlock, seccomp, path } = document(text)?;
    version(schema)?;
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(is_plain) {
        return Err(Problem::Name(shortened(&name)).into());
    }
    reason_or_none("about", &about)?;
    let base = match &extends {
        None => None,
        Some(extends) => Some(bases.iter().find(|base| base.name == *extends.get_ref()).ok_or_else(|| {
            let problem = Problem::NoBase(shortened(extends.get_ref()));
            SchemaError::Line { line: line(text, extends.span()), problem }
        })?),
    };
    let namespaces = match (namespaces, base) {
        (Some(NamespacesEntry { allow, reason }), _) => {
            self::reason("namespaces", &reason)?;
            Namespaces { allowed: allow, reason: reason.into() }
        }
        (None, Some(base)) => base.namespaces.clone(),
        (None, None) => Namespaces { allowed: false, reason: "the profile does not ask for them".into() },
    };
    let may_miss = match (landlock.may_miss, base) {
        (Some(listed), _) => each(text, listed, "rights", may_miss)?.into(),
        (None, Some(base)) => base.may_miss.clone(),
        (None, None) => Cow::Borrowed(&[] as &[MayMiss]),
    };
    let own = each(text, seccomp.rule, "rules", rule)?;
    let rules = match base {
        Some(base) => before(own, &base.seccomp.rules),
        None => own,
    };
    let (unlisted, unlisted_reason) = match (seccomp.unlisted, base) {
        (Some(Unlisted { verdict, reason }), _) => {
            self::reason("unlisted", &reason)?;
            (verdict, reason.into())
        }
        (None, Some(base)) => (base.seccomp.unlisted, base.seccomp.unlisted_reason.clone()),
        (None, None) => return Err(Problem::NoUnlisted.into()),
    };
    let mut paths = paths(text, path)?;
    let inherited = base.map_or(&[] as &[PathRule], |base| &base.paths);
    let replaced: Vec<_> = paths.iter().map(|rule| rule.place.clone()).collect();
    paths.extend(inherited.iter().filter(|rule| !replaced.contains(&rule.place)).cloned());
    Ok(Profile {
        name: name.into(),
        about: about.into(),
        namespaces,
        seccomp: SeccompRules { rules: rules.into(), unlisted, unlisted_reason },
        paths: paths.into(),
        may_miss,
    })
}

/// What a TOML text says; its errors in one line.
pub(crate) fn document<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, SchemaError> {
    if text.len() > MAX_BYTES {
        return Err(SchemaError::TooLong);
    }
    toml::from_str(text).map_err(|error| {
        let problem = Problem::Form(shortened(&error.message().replace('\n', ", ")));
        SchemaError::Line { line: error.span().map_or(1, |span| line(text, span)), problem }
    })
}

pub(crate) fn version(found: u32) -> Result<(), Problem> {
    if found == SCHEMA { Ok(()) } else { Err(Problem::Version { found }) }
}

/// `own` rules, asked before those of `base`. What a rule of `own` decides for good, no rule of `base` is asked about.
pub(crate) fn before(mut own: Vec<SeccompRule>, base: &[SeccompRule]) -> Vec<SeccompRule> {
    let closing = own.iter().filter(|rule| rule.when.is_empty()).flat_map(|rule| rule.syscalls.iter());
    let closed: BTreeSet<String> = closing.map(|call| call.name.to_string()).collect();
    for rule in base {
        let is_open = |call: &&Syscall| !closed.contains(call.name.as_ref());
        if rule.syscalls.iter().all(|call| is_open(&call)) {
            own.push(rule.clone());
            continue;
        }
        let syscalls: Vec<_> = rule.syscalls.iter().filter(is_open).cloned().collect();
        if !syscalls.is_empty() {
            own.push(SeccompRule { syscalls: syscalls.into(), ..rule.clone() });
        }
    }
    own
}

/// Checks each entry of a list; an error gets the entry's line.
pub(crate) fn each<E, T>(
    text: &str,
    entries: Vec<Spanned<E>>,
    what: &'static str,
    check: impl Fn(E) -> Result<T, Problem>,
) -> Result<Vec<T>, SchemaError> {
    if entries.len() > MAX_RULES {
        return Err(Problem::TooMany { what, most: MAX_RULES }.into());
    }
    let checked = entries.into_iter().map(|entry| {
        let span = entry.span();
        check(entry.into_inner()).map_err(|problem| SchemaError::Line { line: line(text, span), problem })
    });
    checked.collect()
}

/// The grants of a file.
pub(crate) fn paths(text: &str, entries: Vec<Spanned<PathRule>>) -> Result<Vec<PathRule>, SchemaError> {
    let seen = std::cell::RefCell::new(BTreeSet::new());
    each(text, entries, "paths", |rule| {
        reason(rule.place.word(), &rule.reason)?;
        if !seen.borrow_mut().insert(rule.place.word().to_owned()) {
            return Err(Problem::Repeated(shortened(rule.place.word())));
        }
        Ok(rule)
    })
}

fn may_miss(entry: MayMiss) -> Result<MayMiss, Problem> {
    reason("may-miss", &entry.reason)?;
    if entry.right == crate::path::LandlockRight::Files { Err(Problem::NeverMissing) } else { Ok(entry) }
}

fn reason(subject: &str, reason: &str) -> Result<(), Problem> {
    if reason.trim().is_empty() { Err(Problem::Reason(shortened(subject))) } else { reason_or_none(subject, reason) }
}

fn reason_or_none(subject: &str, reason: &str) -> Result<(), Problem> {
    if reason.len() > MAX_REASON { Err(Problem::Reason(shortened(subject))) } else { Ok(()) }
}

/// A rule about system calls.
pub(crate) fn rule(entry: RuleEntry) -> Result<SeccompRule, Problem> {
    let first = entry.syscalls.first().map(|name| shortened(name)).unwrap_or_default();
    reason(&first, &entry.reason)?;
    if entry.group.len() > MAX_REASON {
        return Err(Problem::Reason(first));
    }
    let mut seen = BTreeSet::new();
    if entry.syscalls.is_empty() {
        return Err(Problem::Repeated(first));
    }
    if let Some(name) = entry.syscalls.iter().find(|name| !seen.insert(name.as_str())) {
        return Err(Problem::Repeated(shortened(name)));
    }
    if entry.when.len() > MAX_CONDITIONS {
        return Err(Problem::TooMany { what: "conditions", most: MAX_CONDITIONS });
    }
    let when = entry.when.into_iter().map(condition).collect::<Result<Vec<_>, _>>()?;
    let known = |name: String| syscall(&name).ok_or_else(|| Problem::UnknownSyscall(shortened(&name)));
    let syscalls = entry.syscalls.into_iter().map(known).collect::<Result<Vec<_>, _>>()?;
    Ok(SeccompRule {
        group: entry.group.into(),
        syscalls: syscalls.into(),
        when: when.into(),
        verdict: entry.verdict.into(),
        reason: entry.reason.into(),
    })
}

fn condition(entry: ConditionEntry) -> Result<Condition, Problem> {
    let values = entry.is.iter().chain(&entry.is_not).map(Vec::len).sum::<usize>();
    if values > MAX_VALUES {
        return Err(Problem::TooMany { what: "values in a condition", most: MAX_VALUES });
    }
    let test = match (entry.is, entry.is_not) {
        (Some(values), None) => Test::Is(values.into()),
        (None, Some(values)) => Test::IsNot(values.into()),
        _ => return Err(Problem::OneTest { arg: entry.arg }),
    };
    Ok(Condition { arg: entry.arg, mask: entry.mask, test })
}

/// The call of that name. One that only the other architecture has is fine: a rule for it says nothing on this one.
pub(crate) fn syscall(name: &str) -> Option<Syscall> {
    let x86_64 = syscalls::x86_64::Sysno::from_str(name).ok().and_then(|call| u32::try_from(call.id()).ok());
    let aarch64 = syscalls::aarch64::Sysno::from_str(name).ok().and_then(|call| u32::try_from(call.id()).ok());
    (x86_64.is_some() || aarch64.is_some()).then(|| Syscall { name: name.to_owned().into(), x86_64, aarch64 })
}

/// The line, from 1, in which `span` starts.
fn line(text: &str, span: Range<usize>) -> usize {
    text.bytes().take(span.start).filter(|byte| *byte == b'\n').count() + 1
}

/// What an error quotes of a file, which may be long.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(200) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
#[path = "schema/tests.rs"]
mod tests;
