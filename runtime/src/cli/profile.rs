//! `agentd profile`.

mod explain;
mod in_job;
mod learn;
mod place;

use std::borrow::Cow;
use std::io::Write;
use std::path::{Path, PathBuf};

use agentd_init::plan::Filter;
use agentd_profiles::compile::compile;
use agentd_profiles::{BuiltIn, NATIVE, Profile, SeccompRule, Verdict, tighten};
use anyhow::{Context, Result};
use serde::Serialize;

pub(super) use explain::allowing;
pub(super) use learn::Learning;

use super::{Format, print_json, printable};
use crate::job::spec::ProfileChoice;
use crate::launch::profile::{self, OF_WORKSPACE};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  agentd profile list
  agentd profile explain io_uring_setup
  agentd profile explain /etc/passwd --profile strict
  agentd profile explain /workspace/.git/config --job JOB
  agentd profile check ./my.toml && agentd run --profile ./my.toml -- CMD")]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List the built-in profiles
    List {
        /// How to print them
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
    },
    /// Print every rule of a profile, with its reason
    Show {
        /// Which: default, strict, nested, or a file
        #[arg(value_name = "NAME|FILE", default_value = "default")]
        profile: ProfileChoice,
        /// How to print it
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
    },
    /// Try a file: say the line of the first mistake, or what it comes to
    ///
    /// Exits with 125 when the file is no profile. With --tightens it is read as a workspace's own, which may only refuse.
    Check {
        /// The file
        file: PathBuf,
        /// Read it as a workspace's .agentd/profile.toml on top of this profile
        #[arg(long, value_name = "NAME|FILE")]
        tightens: Option<ProfileChoice>,
        /// How to print what it comes to
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
    },
    /// Say what becomes of a system call, or of access to a path
    ///
    /// Says which rule decides, why it is there, and which flag or built-in profile would decide otherwise. With --job it is a
    /// path of that job's box: which mount, protected path or rule of Landlock refuses it, by which error, and what would not.
    Explain(explain::Args),
    /// Run a command, let through most of what its profile refuses, and write the profile under which it needs no more
    ///
    /// Takes the flags of `agentd run`. What is learned are system calls: those that `default` allows, and a few harmless
    /// ones. Namespaces, mounts, paths, Landlock, capabilities, and calls that lead out of a box (bpf, io_uring, keyctl, odd
    /// sockets, set-user-ID bits) stay refused, and stand in the profile as comments with the reason. Each rule says which
    /// program used it how often, and why it was refused. Read it before you use it; learn with a command you trust.
    #[command(after_help = "Examples:
  agentd profile learn --profile strict -o ~/.config/agentd/tests.toml --workspace . -- make test
  agentd run --profile ~/.config/agentd/tests.toml --workspace . -- make test")]
    Learn(Box<learn::Args>),
}

/// Runs the verb; gives the exit code.
pub(super) fn run(args: Args) -> Result<u8> {
    match args.verb {
        Verb::List { format } => list(format),
        Verb::Show { profile, format } => {
            let (profile, filter) = profile::load(&profile)?;
            match format {
                Format::Json => print_json(&Document { summary: Summary::of(&profile, &filter), profile: &profile }),
                Format::Table => show(&profile, &filter),
            }
        }
        Verb::Check { file, tightens, format } => check(&file, tightens.as_ref(), format),
        Verb::Explain(args) => explain::run(&args),
        Verb::Learn(args) => return learn::run(*args),
    }?;
    Ok(0)
}

/// What there is to say about a profile in a line.
#[derive(Serialize)]
struct Summary<'a> {
    name: &'a str,
    about: &'a str,
    digest: String,
    /// Rules about system calls.
    rules: usize,
    /// Length of the filter.
    instructions: usize,
    namespaces: bool,
}

#[derive(Serialize)]
struct Document<'a> {
    summary: Summary<'a>,
    profile: &'a Profile,
}

impl<'a> Summary<'a> {
    fn of(profile: &'a Profile, filter: &Filter) -> Self {
        let instructions = match filter {
            Filter::BuiltIn(built_in) => agentd_profiles::seccomp(*built_in).len(),
            Filter::Compiled(program) => program.len(),
        };
        Summary {
            name: &profile.name,
            about: &profile.about,
            digest: profile::digest(profile, filter),
            rules: profile.seccomp.rules.len(),
            instructions,
            namespaces: profile.namespaces.allowed,
        }
    }
}

fn list(format: Format) -> Result<()> {
    let all = BuiltIn::FOR_PAYLOADS
        .map(|built_in| Summary::of(agentd_profiles::profile(built_in), &Filter::BuiltIn(built_in)));
    if format == Format::Json {
        return print_json(&all);
    }
    let mut out = std::io::stdout().lock();
    for Summary { name, about, .. } in all {
        writeln!(out, "{name:8} {about}")?;
    }
    Ok(())
}

fn check(file: &Path, tightens: Option<&ProfileChoice>, format: Format) -> Result<()> {
    let (profile, filter) = match tightens {
        None => profile::load(&ProfileChoice::File(file.to_owned()))?,
        Some(base) => {
            let (base, _) = profile::load(base)?;
            let context = || format!("{} as a workspace's {OF_WORKSPACE} on profile {}", file.display(), base.name);
            let profile = tighten(&base, &profile::read(file)?).with_context(context)?;
            let program = compile(&profile.seccomp, NATIVE).with_context(context)?;
            (Cow::Owned(profile), profile::compiled(&program))
        }
    };
    let summary = Summary::of(&profile, &filter);
    match format {
        Format::Json => print_json(&summary),
        Format::Table => {
            let Summary { rules, instructions, digest, .. } = summary;
            let name = printable(&profile.name);
            writeln!(
                std::io::stdout().lock(),
                "profile {name} is sound: {rules} rules, {instructions} instructions, {digest}"
            )?;
            Ok(())
        }
    }
}

fn show(profile: &Profile, filter: &Filter) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let Summary { name, about, digest, instructions, .. } = Summary::of(profile, filter);
    writeln!(out, "{}: {}", printable(name), printable(about))?;
    writeln!(out, "{digest}, {instructions} instructions")?;
    let word = if profile.namespaces.allowed { "allowed" } else { "refused" };
    writeln!(out, "\nnamespaces of its own: {word}\n    {}", printable(&profile.namespaces.reason))?;
    writeln!(out, "\npaths")?;
    for rule in profile.paths.iter() {
        writeln!(out, "  {}: {}\n    {}", printable(rule.place.word()), rule.access, printable(&rule.reason))?;
    }
    if !profile.may_miss.is_empty() {
        writeln!(out, "\nLandlock rights that an old kernel may lack")?;
    }
    for missing in profile.may_miss.iter() {
        writeln!(out, "  {}\n    {}", missing.right, printable(&missing.reason))?;
    }
    writeln!(out, "\nsystem calls; the first rule that names a call and whose condition holds decides")?;
    for rule in profile.seccomp.rules.iter() {
        let names: Vec<&str> = rule.syscalls.iter().map(|call| call.name.as_ref()).collect();
        writeln!(out, "  {}{}: {}\n    {}", names.join(" "), when(rule), rule.verdict, printable(&rule.reason))?;
    }
    let unlisted = Verdict::Refuse(profile.seccomp.unlisted);
    writeln!(out, "  every other number: {unlisted}\n    {}", printable(&profile.seccomp.unlisted_reason))?;
    Ok(())
}

/// The conditions of a rule, in words.
fn when(rule: &SeccompRule) -> String {
    let conditions: Vec<String> = rule.when.iter().map(ToString::to_string).collect();
    if conditions.is_empty() { String::new() } else { format!(" when {}", conditions.join(" and ")) }
}
