//! `agentd profile explain`: what becomes of one call or one path.
//!
//! Invariant: the answer is read from the rules that are enforced, not from a description of them.

use std::io::Write;

use agentd_profiles::evaluate::{self, Call};
use agentd_profiles::{
    BuiltIn, NATIVE, PathAccess, PathRight, Place, Profile, SeccompRule, Syscall, Verdict, profile as built_in,
};
use anyhow::{Result, bail};
use serde::Serialize;

use super::super::environment::Directories;
use super::super::{Format, print_json, printable};
use super::{in_job, when};
use crate::job::events::Denial;
use crate::job::spec::{ProfileChoice, absolute};
use crate::launch::plan::WORKSPACE;
use crate::launch::profile;

/// What to explain.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Name of a system call, or an absolute path inside the box
    #[arg(value_name = "SYSCALL|PATH")]
    subject: String,
    /// By which profile
    #[arg(long, value_name = "NAME|FILE", default_value = "default", conflicts_with = "job")]
    profile: ProfileChoice,
    /// In the box of this job, running or over: a path
    #[arg(long)]
    job: Option<String>,
    /// How to print it
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

pub(super) fn run(args: &Args) -> Result<()> {
    if let Some(job) = &args.job {
        let path = absolute(&args.subject)?;
        let jobs = Directories::find()?.jobs();
        let id = jobs.find(job)?;
        return in_job::run(&id, &jobs.plan(&id)?, &path, args.format);
    }
    let (profile, _) = profile::load(&args.profile)?;
    if args.subject.starts_with('/') {
        let path = absolute(&args.subject)?;
        let answer = explain_path(&profile, &path);
        return if args.format == Format::Json { print_json(&answer) } else { answer.print(&profile) };
    }
    let Some(call) = agentd_profiles::syscall(&args.subject) else {
        bail!("`{}` is no system call, and no absolute path", args.subject.escape_debug());
    };
    let answer = explain_call(&profile, &call);
    if args.format == Format::Json { print_json(&answer) } else { answer.print() }
}

#[derive(Serialize)]
struct CallAnswer<'a> {
    profile: &'a str,
    syscall: &'a str,
    /// Its number on this machine; none: another architecture's.
    number: Option<u32>,
    /// `allow` or an errno where no argument has a say, else `depends`.
    verdict: String,
    /// In the order in which they are asked.
    rules: Vec<&'a SeccompRule>,
    /// Why, where no rule names the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    unlisted_reason: Option<&'a str>,
    /// What the built-in profiles say.
    profiles: Vec<Other>,
}

#[derive(Serialize)]
struct Other {
    profile: &'static str,
    verdict: String,
}

fn explain_call<'a>(profile: &'a Profile, call: &'a Syscall) -> CallAnswer<'a> {
    let rules: Vec<_> = profile.rules_of(&call.name).collect();
    let others = BuiltIn::FOR_PAYLOADS.map(built_in);
    CallAnswer {
        profile: &profile.name,
        syscall: &call.name,
        number: call.number(NATIVE),
        verdict: verdict(profile, &call.name),
        unlisted_reason: rules.is_empty().then_some(&*profile.seccomp.unlisted_reason),
        rules,
        profiles: others.map(|other| Other { profile: &other.name, verdict: verdict(other, &call.name) }).into(),
    }
}

/// The verdict on a call with any arguments, if it is one.
fn verdict(profile: &Profile, call: &str) -> String {
    let mut verdicts: Vec<Verdict> = profile.rules_of(call).map(|rule| rule.verdict).collect();
    verdicts.dedup();
    match verdicts[..] {
        [] => Verdict::Refuse(profile.seccomp.unlisted).to_string(),
        [only] => only.to_string(),
        _ => "depends".into(),
    }
}

/// The built-in profile that would let through what `denied` tells of. None where that is not certain: the rule that
/// refused it is a workspace's or a file's, which another profile need not undo, or arguments have a say that are not
/// known.
pub(in crate::cli) fn allowing(denied: &Denial) -> Option<&'static str> {
    let syscall = agentd_profiles::syscall(&denied.syscall)?;
    let mut call = Call { arch: NATIVE.audit_word(), nr: syscall.number(NATIVE)?, args: [0; 6] };
    for argument in &denied.arguments {
        *call.args.get_mut(usize::from(argument.number))? = u64::from(argument.value);
    }
    let is_known = |arg: u8| denied.arguments.iter().any(|argument| argument.number == arg);
    let deciding = |which: BuiltIn| evaluate::deciding(&built_in(which).seccomp, NATIVE, &call);
    let own = deciding(BuiltIn::for_payloads(&denied.profile)?)?;
    if own.group != denied.rule || own.reason != denied.reason {
        return None;
    }
    let lets_through = |which: &BuiltIn| {
        let mut tested = built_in(*which).rules_of(&syscall.name).flat_map(|rule| rule.when.iter());
        tested.all(|condition| is_known(condition.arg))
            && deciding(*which).is_some_and(|rule| rule.verdict == Verdict::Allow)
    };
    BuiltIn::FOR_PAYLOADS.into_iter().find(lets_through).map(|other| &*built_in(other).name)
}

impl CallAnswer<'_> {
    fn print(&self) -> Result<()> {
        let mut out = std::io::stdout().lock();
        let number = self.number.map_or_else(|| "not on this machine".into(), |number| format!("number {number} here"));
        writeln!(out, "{} ({number}), profile {}: {}", self.syscall, printable(self.profile), self.verdict)?;
        for rule in &self.rules {
            let when = if rule.when.is_empty() && self.rules.len() > 1 { " otherwise".into() } else { when(rule) };
            writeln!(out, "  {}{when}\n    {}", rule.verdict, printable(&rule.reason))?;
        }
        if let Some(reason) = self.unlisted_reason {
            writeln!(out, "  no rule names it\n    {}", printable(reason))?;
        }
        let others: Vec<String> =
            self.profiles.iter().map(|other| format!("{} {}", other.profile, other.verdict)).collect();
        writeln!(out, "by profile: {}", others.join(", "))?;
        if self.verdict != "allow" {
            let with = self.profiles.iter().find(|other| other.verdict == "allow" && other.profile != self.profile);
            match with {
                Some(other) => writeln!(out, "to allow it: agentd run --profile {}", other.profile)?,
                None => writeln!(
                    out,
                    "to allow more of it: a file with `extends = \"default\"` and a rule for {} (docs/profiles.md)",
                    self.syscall
                )?,
            }
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct PathAnswer<'a> {
    profile: &'a str,
    path: String,
    /// What Landlock lets a payload do there; permissions and mounts may say no all the same.
    access: PathAccess,
    /// The grants that reach it.
    grants: Vec<Grant<'a>>,
    /// Whether Landlock's file rules are on.
    enforced: bool,
    /// What would give more.
    hints: Vec<&'static str>,
}

#[derive(Serialize)]
struct Grant<'a> {
    place: &'a str,
    access: PathAccess,
    reason: &'a str,
    /// The flag that brings it, where it is not always there.
    #[serde(skip_serializing_if = "Option::is_none")]
    with: Option<&'static str>,
}

/// Where the classes of places lie, as a plan has them, and the flag that one takes.
const CLASSES: &[(&str, Place, Option<&str>)] = &[
    (WORKSPACE, Place::Workspace, Some("--workspace DIR")),
    ("/tmp", Place::Scratch, None),
    ("/run", Place::Scratch, None),
    ("/scratch", Place::Scratch, None),
    ("/home/agent", Place::Scratch, None),
    ("/", Place::WritableRoot, Some("--writable")),
];

fn explain_path<'a>(profile: &'a Profile, path: &str) -> PathAnswer<'a> {
    let target = Place::Path(path.to_owned().into());
    let mut grants = Vec::new();
    for rule in profile.paths.iter() {
        let mut add = |with| {
            grants.push(Grant { place: rule.place.word(), access: rule.access, reason: &rule.reason, with });
        };
        match &rule.place {
            Place::Path(above) if target.lies_below(above) => add(None),
            class => {
                if let Some((_, _, with)) =
                    CLASSES.iter().find(|(at, known, _)| known == class && target.lies_below(at))
                {
                    add(*with);
                }
            }
        }
    }
    let always = grants.iter().filter(|grant| grant.with.is_none());
    let access = always.fold(PathAccess::default(), |access, grant| access.or(grant.access));
    let mut hints: Vec<&str> = grants.iter().filter_map(|grant| grant.with).collect();
    if !access.has(PathRight::Write) {
        hints.push("--mount type=bind,src=HOST,dst=BOX,rw");
    }
    PathAnswer {
        profile: &profile.name,
        path: path.to_owned(),
        access,
        grants,
        enforced: !profile.namespaces.allowed,
        hints,
    }
}

impl PathAnswer<'_> {
    fn print(&self, profile: &Profile) -> Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}, profile {}: {}", printable(&self.path), printable(self.profile), self.access)?;
        for grant in &self.grants {
            let with = grant.with.map_or_else(String::new, |flag| format!(", with {flag}"));
            writeln!(out, "  {}: {}{with}\n    {}", printable(grant.place), grant.access, printable(grant.reason))?;
        }
        if self.enforced {
            writeln!(
                out,
                "enforced by Landlock, by read-only mounts, and by permissions; each may say no (EACCES, EROFS)"
            )?;
        } else {
            writeln!(
                out,
                "enforced by read-only mounts and by permissions; not by Landlock: {}",
                printable(&profile.namespaces.reason)
            )?;
        }
        for hint in &self.hints {
            writeln!(out, "to write there: agentd run {hint}")?;
        }
        Ok(())
    }
}
