//! Learning a profile from a run: which refused calls may be carried out meanwhile, and the rules that would have let
//! them.
//!
//! A call is judged by its number and by the low halves of its argument registers, which nobody can change while it waits.
//! What pointers lead to is not looked at: so no call is learned whose meaning lies there (clone3, openat2, bpf, io_uring),
//! as no rule could tell a good one from a bad one either.
//!
//! Invariant: what can be learned is what `default` lets through, and the short list of [`FURTHER`]. The profile that
//! comes of it allows what its base allows and calls that look to every rule like those that were carried out; nothing else.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use crate::evaluate::{Call, deciding, verdict};
use crate::profile::Profile;
use crate::rule::{Condition, SeccompRule, SeccompRules, Syscall, Test, Verdict};
use crate::{BuiltIn, NATIVE, ProfileError, load, profile, schema, write};

/// Kinds of calls that are told apart, of those that are learned and of those that are not.
const MOST: usize = 100;
/// Programs that are named in a rule's reason.
const NAMED: usize = 3;
/// Values of a condition (the bound of a file).
const VALUES: usize = 64;
/// Bytes of a command that is named, and of a reason in a comment, about.
const LINE: usize = 200;
/// Bytes of a reason (the bound of a file).
const REASON: usize = 1000;

/// What may be learned though `default` refuses it.
struct Further {
    name: &'static str,
    /// Arguments and the values they have to have.
    when: &'static [(u8, u32)],
    /// What a rule for it opens.
    opens: &'static str,
}

const FURTHER: &[Further] = &[
    Further {
        name: "personality",
        when: &[],
        opens: "changes the layout of the caller's own memory, and what uname tells it",
    },
    Further {
        name: "name_to_handle_at",
        when: &[],
        opens: "names a file by a handle; what opens by handle stays refused",
    },
    Further { name: "fanotify_init", when: &[], opens: "watches files that the caller can read anyway" },
    Further { name: "fanotify_mark", when: &[], opens: "watches files that the caller can read anyway" },
    Further {
        name: "socket",
        when: &[(0, 16), (2, 4)],
        opens: "lists the sockets of the box's network (NETLINK_SOCK_DIAG)",
    },
    Further {
        name: "socket",
        when: &[(0, 16), (2, 15)],
        opens: "hears of devices that come and go (NETLINK_KOBJECT_UEVENT)",
    },
];

/// Calls that look alike to every rule: the bits that some rule looks at, by argument.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    syscall: String,
    /// Argument, mask, value.
    bits: Vec<(u8, u32, u32)>,
}

/// A kind of calls that was carried out.
#[derive(Clone, Debug)]
struct Lesson {
    call: Syscall,
    count: u64,
    programs: BTreeSet<String>,
    /// What the rule opens.
    opens: &'static str,
    /// Why the base refuses it.
    refused: String,
}

/// A call that stays refused.
#[derive(Clone, Debug)]
struct Kept {
    count: u64,
    why: String,
    /// Whether programs take the answer for a denial.
    is_denial: bool,
}

/// What a run under a profile asked for and the profile refuses.
#[derive(Debug)]
pub struct Lessons {
    base: Cow<'static, Profile>,
    learned: BTreeMap<Kind, Lesson>,
    /// What stays refused, by name and answer.
    kept: BTreeMap<(String, String), Kept>,
    /// Calls of kinds beyond the bound.
    missed: u64,
}

impl Lessons {
    /// Nothing is learned yet.
    #[must_use]
    pub fn new(base: Cow<'static, Profile>) -> Self {
        Self { base, learned: BTreeMap::new(), kept: BTreeMap::new(), missed: 0 }
    }

    /// Whether a call that `enforced` refuses may be carried out; either way it is noted. `enforced` is the base, or the base
    /// tightened by a workspace, whose refusals stand.
    pub fn judge(&mut self, enforced: &SeccompRules, call: &Call, untrusted_program: &str) -> bool {
        match self.lesson(enforced, call) {
            Ok((kind, lesson)) => {
                if self.learned.len() >= MOST && !self.learned.contains_key(&kind) {
                    self.missed = self.missed.saturating_add(1);
                    return false;
                }
                let known = self.learned.entry(kind).or_insert(lesson);
                known.count = known.count.saturating_add(1);
                if known.programs.len() < NAMED {
                    known.programs.insert(plain(untrusted_program));
                }
                true
            }
            Err(why) => {
                let name = named(call.nr).map_or_else(|| format!("number {}", call.nr), |call| call.name.into_owned());
                let answer = verdict(enforced, NATIVE, call);
                let key = (name, answer.to_string());
                if self.kept.len() < MOST || self.kept.contains_key(&key) {
                    let kept = Kept { count: 0, why, is_denial: answer.is_denial() };
                    let kept = self.kept.entry(key).or_insert(kept);
                    kept.count = kept.count.saturating_add(1);
                } else {
                    self.missed = self.missed.saturating_add(1);
                }
                false
            }
        }
    }

    /// What a call teaches, or why it teaches nothing.
    fn lesson(&self, enforced: &SeccompRules, call: &Call) -> Result<(Kind, Lesson), String> {
        if !verdict(enforced, NATIVE, call).is_denial() {
            return Err("programs take this answer for an older kernel, and go on".into());
        }
        let own = deciding(&self.base.seccomp, NATIVE, call);
        let is_own = match (deciding(enforced, NATIVE, call), own) {
            (Some(rule), Some(own)) => is_part(rule, own),
            (rule, own) => rule.is_none() && own.is_none(),
        };
        if !is_own {
            return Err("the workspace's own profile refuses it, and no profile of its user's undoes that".into());
        }
        let Some(syscall) = named(call.nr) else { return Err("no rule names it".into()) };
        let default = &profile(BuiltIn::Default).seccomp;
        let opens = match deciding(default, NATIVE, call) {
            Some(rule) if rule.verdict == Verdict::Allow => "profile default lets it through",
            rule => match FURTHER.iter().find(|further| further.name == syscall.name && hold(further.when, call)) {
                Some(further) => further.opens,
                None => return Err(rule.map_or_else(String::new, |rule| rule.reason.to_string())),
            },
        };
        let mut masks: BTreeMap<u8, u32> = BTreeMap::new();
        let further = FURTHER.iter().filter(|further| further.name == syscall.name).flat_map(|further| further.when);
        let tested = conditions(&self.base.seccomp, call.nr).chain(conditions(default, call.nr));
        let tested =
            tested.map(|condition| (condition.arg, condition.mask)).chain(further.map(|(arg, _)| (*arg, u32::MAX)));
        for (arg, mask) in tested {
            *masks.entry(arg).or_default() |= mask;
        }
        let bits = masks.into_iter().map(|(arg, mask)| (arg, mask, low(call, arg) & mask)).collect();
        let refused = own.map_or(&self.base.seccomp.unlisted_reason, |rule| &rule.reason).to_string();
        let kind = Kind { syscall: syscall.name.to_string(), bits };
        Ok((kind, Lesson { call: syscall.clone(), count: 0, programs: BTreeSet::new(), opens, refused }))
    }

    /// How many kinds of calls were learned.
    #[must_use]
    pub fn learned(&self) -> usize {
        self.learned.len()
    }

    /// The name of each call that programs were denied all the same.
    pub fn denied(&self) -> impl Iterator<Item = &str> {
        self.kept.iter().filter(|(_, kept)| kept.is_denial).map(|((name, _), _)| name.as_str())
    }

    /// The profile called `name` that would have let the learned calls pass, as a file; `command` is what was run.
    ///
    /// # Errors
    /// When what came of it is no profile: its filter would be too long, or `name` is no name.
    pub fn text(&self, name: &str, command: &str) -> Result<String, ProfileError> {
        let own = self.rules();
        let command = &line(command);
        let built_in = BuiltIn::FOR_PAYLOADS.into_iter().find(|built_in| *profile(*built_in) == *self.base);
        let mut text = self.preface(command);
        text.push_str(&write::head(name, &format!("learned from {command}")));
        if let Some(built_in) = built_in {
            text.push_str(&format!("extends = {}\n", write::string(&profile(built_in).name)));
            own.iter().for_each(|rule| text.push_str(&write::rule(rule)));
        } else {
            // A file extends agentd's own profiles only: this one says all of what it was made from.
            let rules = schema::before(own, &self.base.seccomp.rules).into();
            let seccomp = SeccompRules { rules, ..self.base.seccomp.clone() };
            text.push_str(&write::whole(&Profile { seccomp, ..self.base.clone().into_owned() }));
        }
        load(&text, NATIVE)?;
        Ok(text)
    }

    fn preface(&self, command: &str) -> String {
        let mut text = format!("# Learned by `agentd profile learn` from: {command}\n");
        let (base, kinds) = (&self.base.name, self.learned.len());
        text.push_str(&format!("# Kinds of calls that profile {base} refuses and this run was let through: {kinds}. "));
        text.push_str("Read each rule before you use it.\n");
        if self.missed > 0 {
            text.push_str(&format!(
                "# NOT WHOLE: {} calls of further kinds were refused and are not in here.\n",
                self.missed
            ));
        }
        if !self.kept.is_empty() {
            text.push_str("# Asked for and refused all the same; what is learned never opens these:\n");
        }
        for ((name, answer), Kept { count, why, .. }) in &self.kept {
            text.push_str(&format!("#   {} {answer} {count}x: {}\n", line(name), line(why)));
        }
        text
    }

    fn rules(&self) -> Vec<SeccompRule> {
        let mut joined: Vec<(Vec<Condition>, Lesson)> = Vec::new();
        for (Kind { bits, .. }, lesson) in &self.learned {
            if let Some((when, known)) = joined.last_mut()
                && join(when, bits, known.call == lesson.call)
            {
                known.count = known.count.saturating_add(lesson.count);
                known.programs.extend(lesson.programs.iter().cloned());
                continue;
            }
            let is = |value| Test::Is(vec![value].into());
            let when = bits.iter().map(|(arg, mask, value)| Condition { arg: *arg, mask: *mask, test: is(*value) });
            joined.push((when.collect(), lesson.clone()));
        }
        let rule = |(when, lesson): (Vec<Condition>, Lesson)| {
            let reason = format!("{}; {}; without this rule: {}", lesson.usage(), lesson.opens, lesson.refused);
            lesson.rule(when, Verdict::Allow, &reason)
        };
        self.close(joined.into_iter().map(rule).collect())
    }

    /// Where the base does not name a call, what becomes of it when no condition holds has to be said.
    fn close(&self, mut rules: Vec<SeccompRule>) -> Vec<SeccompRule> {
        let mut closed = BTreeSet::new();
        for (Kind { syscall, bits }, lesson) in &self.learned {
            if !bits.is_empty() && self.base.rules_of(syscall).next().is_none() && closed.insert(syscall) {
                let seccomp = &self.base.seccomp;
                rules.push(lesson.rule(Vec::new(), Verdict::Refuse(seccomp.unlisted), &seccomp.unlisted_reason));
            }
        }
        rules
    }
}

impl Lesson {
    fn usage(&self) -> String {
        let programs: Vec<&str> = self.programs.iter().take(NAMED).map(String::as_str).collect();
        let times = if self.count == 1 { "once".into() } else { format!("{} times", self.count) };
        format!("learned: {} used it {times}", programs.join(", "))
    }

    fn rule(&self, when: Vec<Condition>, verdict: Verdict, reason: &str) -> SeccompRule {
        let (syscalls, when) = (vec![self.call.clone()].into(), when.into());
        SeccompRule { group: "learned".into(), syscalls, when, verdict, reason: shortened(reason).into() }
    }
}

/// Adds the value of one more call to the condition, where that is the only one and the same but for the value.
fn join(when: &mut [Condition], bits: &[(u8, u32, u32)], is_same_call: bool) -> bool {
    let ([Condition { arg, mask, test: Test::Is(values) }], [(other_arg, other_mask, value)]) = (when, bits) else {
        return false;
    };
    let joins = is_same_call && (*arg, *mask) == (*other_arg, *other_mask) && values.len() < VALUES;
    if joins {
        values.to_mut().push(*value);
    }
    joins
}

/// Whether `rule` is `known`, or what is left of it where another rule decides some of its calls.
fn is_part(rule: &SeccompRule, known: &SeccompRule) -> bool {
    (&rule.group, &rule.when, rule.verdict, &rule.reason) == (&known.group, &known.when, known.verdict, &known.reason)
}

/// The call of a number; `default` names them all.
fn named(nr: u32) -> Option<Syscall> {
    let rules = profile(BuiltIn::Default).seccomp.rules.iter();
    rules.flat_map(|rule| rule.syscalls.iter()).find(|call| call.number(NATIVE) == Some(nr)).cloned()
}

fn conditions(rules: &SeccompRules, nr: u32) -> impl Iterator<Item = &Condition> {
    let about = rules.rules.iter().filter(move |rule| rule.syscalls.iter().any(|call| call.number(NATIVE) == Some(nr)));
    about.flat_map(|rule| rule.when.iter())
}

fn hold(when: &[(u8, u32)], call: &Call) -> bool {
    when.iter().all(|(arg, value)| low(call, *arg) == *value)
}

/// The low half of an argument.
fn low(call: &Call, arg: u8) -> u32 {
    let low = call.args.get(usize::from(arg)).map_or(0, |arg| arg & u64::from(u32::MAX));
    u32::try_from(low).unwrap_or_default()
}

/// The name a thread has given itself, as far as it is one: no quotes and no `#`. Where the profile goes to standard output
/// the command's own output stands before it, and could have opened a string for the name to close.
fn plain(untrusted: &str) -> String {
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || "-_.+:/".contains(*c);
    untrusted.chars().take(16).map(|c| if is_plain(&c) { c } else { '?' }).collect()
}

/// What fits a line, and a comment: those end with it.
fn line(text: &str) -> String {
    let mut line = String::new();
    for c in text.chars() {
        if line.len() >= LINE {
            line.push('…');
            break;
        }
        match c {
            '"' | '\'' | '\\' => line.push(c),
            other => line.extend(other.escape_debug()),
        }
    }
    line
}

/// What fits a reason.
fn shortened(text: &str) -> String {
    let fits = text.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= REASON).last();
    text.get(..fits.unwrap_or_default()).unwrap_or_default().to_owned()
}

#[cfg(test)]
#[path = "learn/tests.rs"]
mod tests;
