//! The command line: a file a verb. The only place that reads words and the environment.
//!
//! Invariant: standard output carries results only; what agentd itself has to say goes to standard error as `agentd: …`.

mod attach;
mod commit;
mod completion;
mod doctor;
mod environment;
mod exec;
mod generate;
mod health;
mod image;
mod images;
mod inspect;
mod interrupt;
mod job_file;
mod kill;
mod logs;
mod metrics;
mod on_exit;
mod pause;
mod policy_file;
mod profile;
mod progress;
mod prune;
mod ps;
mod pull;
mod reach;
mod rename;
mod rm;
mod rmi;
mod run;
mod run_io;
mod run_network;
mod run_plan;
mod run_secrets;
mod run_ulimit;
mod secret;
mod stats;
mod stop;
mod summary;
mod template;
mod wait;
mod wanted;
mod which;

use std::borrow::Cow;
use std::io::Write;
use std::mem::ManuallyDrop;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use crate::control::Request;
use crate::supervisor::porter;

/// Runs coding agents in a locked box, as your plain user: no daemon, no root, no setuid helper.
///
/// `agentd run -- CMD` boxes a command on this machine's own software, read-only and without your files;
/// `--image oci:DIR` gives it another root, `--workspace DIR` the one directory it may write.
#[derive(Debug, Parser)]
#[command(name = "agentd", version, max_term_width = 100, disable_help_subcommand = true)]
struct Cli {
    /// Say what agentd does, on standard error
    #[arg(short, long, global = true)]
    verbose: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a command in a box of its own
    ///
    /// The box sees a read-only root, /workspace (with --workspace), writable /tmp, /scratch, /run and home directory that
    /// are gone afterwards, no network but what --allow names, and none of your files. Its exit code is the command's; 124
    /// is a timeout, 125 a failure of agentd, 126 a program that cannot be executed, 127 one that is not there, 128+N death
    /// by signal N.
    Run(Later<Box<run::Args>>),
    /// List jobs: those that run, or all
    Ps(Later<ps::Args>),
    /// Print everything that is known of jobs, as JSON: the record and the plan
    Inspect(Later<inspect::Args>),
    /// Print what a job wrote: its standard output on standard output, its standard error on standard error
    ///
    /// On a terminal, escape sequences are left out: the output of an agent must not move your cursor or set your title.
    Logs(Later<logs::Args>),
    /// Make a running job's streams yours, until its end or the detach keys
    ///
    /// You see what it says from now on (`agentd logs` has the rest), and what you type goes to it if it was started with -i.
    /// Several can be attached to one job. One that falls a megabyte behind is told, and goes on with what is new. Its exit code
    /// is the job's.
    Attach(Later<attach::Args>),
    /// Run a command in the box of a running job
    ///
    /// It gets what the job's own command got: the same namespaces, user, environment, limits, Landlock rules and system-call
    /// filter. It ends with the job, or with this program. What was given with --secret-env it does not get. Its exit code is
    /// the command's.
    Exec(Later<Box<exec::Args>>),
    /// Let a running job reach further hosts
    ///
    /// What `agentd deny` denied in the same words is allowed again. The record keeps each change. A job that was started
    /// without --allow has no network that could be changed.
    Allow(Later<reach::AllowArgs>),
    /// Keep a running job from hosts, whatever allows them; connections to them end
    Deny(Later<reach::DenyArgs>),
    /// Show what running jobs use, and what they may: processors, memory and its peak, processes, disks, network
    ///
    /// A job with a limit has a cgroup, which counts it all. Of another the processes that are there are counted; memory that
    /// they share counts for each of them, and no peak is known. Network is what the broker has passed on, both ways.
    Stats(Later<stats::Args>),
    /// Say what jobs did, all together: how many, for how long, and what was refused
    Summary(Later<summary::Args>),
    /// Stop jobs: SIGTERM (or what the image says), and SIGKILL for one that does not end in time
    Stop(Later<stop::Args>),
    /// Stop the time of jobs that have a cgroup of their own: none of their processes runs until `agentd unpause`
    ///
    /// A job has one with --pids, --memory or another limit, on a host with cgroup v2. Its --timeout goes on; `agentd stop`
    /// and `agentd kill` end it all the same.
    Pause(Later<pause::Args>),
    /// Let paused jobs go on
    Unpause(Later<pause::Args>),
    /// Send a signal to the command of jobs; SIGKILL ends everything in the box
    Kill(Later<kill::Args>),
    /// Wait for the end of jobs; print their exit codes, and exit with the last
    Wait(Later<wait::Args>),
    /// Put a new key in the place of one that the broker adds to the requests of a running job
    ///
    /// From the next request on; what the job's logs are cleaned of is then both. Which keys a job has is said when it is
    /// started (`agentd run --secret NAME@HOST`), and cannot change.
    Secret(Later<secret::Args>),
    /// Give a job another name
    Rename(Later<rename::Args>),
    /// Forget jobs that have ended: their records, their output and their names
    Rm(Later<rm::Args>),
    /// Make an image of what a job wrote to its root, on top of the image it ran
    ///
    /// The job must have ended, and have been started with --writable --keep. Prints the image's digest. What a job wrote to
    /// /tmp, /run, /scratch, /workspace or a mount is not part of its root.
    Commit(Later<commit::Args>),
    /// Fetch images and unpack what the store does not have of them
    ///
    /// Prints the digest of each. What is broken off goes on with the next pull.
    Pull(Later<pull::Args>),
    /// List the images in the store
    Images(Later<images::Args>),
    /// Remove images: their names, and the layers that no other image and no job needs
    Rmi(Later<rmi::Args>),
    /// Remove what nothing needs: layers and documents without an image, what crashes left
    ///
    /// An image is needed as long as it has a name, a layer as long as an image or a job needs it. `agentd rm` forgets jobs.
    Prune(Later<prune::Args>),
    /// Look at one image
    Image(Later<image::Args>),
    /// Say what a job may ask of the kernel, by which rule, and why
    ///
    /// A profile is a list of rules about system calls and paths, each with its reason. `agentd run --profile NAME|FILE`
    /// chooses one. A file is TOML and mostly `extends` a built-in profile; `agentd profile check` tries it. A workspace may
    /// have a file of its own, .agentd/profile.toml, which can only refuse more.
    Profile(Later<profile::Args>),
    /// Print the systemd unit of a job: one that ran, a job file's, or the template for all job files
    ///
    /// An ordinary user's is for `systemctl --user`, root's for the machine. It starts the job again when it fails, with the
    /// machine if enabled, and keeps it in the unit's cgroup.
    Generate(Later<generate::Args>),
    /// Print a completion script for a shell, or write the manual's pages
    ///
    /// bash: agentd completion bash > ~/.local/share/bash-completion/completions/agentd;
    /// manual: agentd completion man ~/.local/share/man/man1
    Completion(Later<completion::Args>),
    /// Say whether all is well: the host, the records, the jobs that run, what others have left, room on the disks
    ///
    /// Exits with 1 when something is not; each line that is not `ok` says what to do about it.
    Health(Later<health::Args>),
    /// Print how many jobs there are, how they ended and what they use, as OpenMetrics text
    ///
    /// For Prometheus by way of node_exporter: agentd metrics > /var/lib/node_exporter/agentd.prom.new, and a rename.
    Metrics(Later<metrics::Args>),
    /// Say what this host can and cannot do, and how to mend it
    ///
    /// Exits with 1 when the main job cannot run here, or when an attack succeeded.
    Doctor(Later<doctor::Args>),
}

/// The arguments of a verb, described to clap only when the verb is used: the description of all verbs is the larger part
/// of what a start would allocate.
#[derive(Debug)]
struct Later<A>(A);

impl<A: clap::Args> clap::Args for Later<A> {
    fn augment_args(command: clap::Command) -> clap::Command {
        command.defer(A::augment_args)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        command.defer(A::augment_args_for_update)
    }
}

impl<A: FromArgMatches> FromArgMatches for Later<A> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        A::from_arg_matches(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.update_from_arg_matches(matches)
    }
}

/// How a list or a report is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    Table,
    /// For programs: the same fields in every version.
    Json,
}

/// Exit code for agentd's own failures, as docker's and podman's.
const FAILED: u8 = 125;

/// Exit code for an image that is not there, or is in use.
const NOT_FOUND: u8 = 1;

/// The program: parses, runs the verb, turns what it says into an exit code.
#[must_use]
pub fn main() -> ExitCode {
    if std::env::args_os().next().is_some_and(|name| name == porter::NAME) {
        return ExitCode::from(porter::run());
    }
    let shell = run::guess(std::env::args_os());
    let cli = match parse() {
        Ok(cli) => cli,
        Err(error) => {
            tell(&error);
            return ExitCode::from(if error.use_stderr() { FAILED } else { 0 });
        }
    };
    if cli.verbose {
        tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::DEBUG).init();
    }
    let done = match cli.verb {
        Verb::Run(Later(args)) => run::run(*args, shell),
        Verb::Ps(Later(args)) => ps::run(&args).map(|()| 0),
        Verb::Inspect(Later(args)) => inspect::run(&args),
        Verb::Logs(Later(args)) => logs::run(&args).map(|()| 0),
        Verb::Attach(Later(args)) => attach::run(args),
        Verb::Exec(Later(args)) => exec::run(*args),
        Verb::Allow(Later(args)) => reach::allow(args).map(|()| 0),
        Verb::Deny(Later(args)) => reach::deny(args).map(|()| 0),
        Verb::Stats(Later(args)) => stats::run(&args).map(|()| 0),
        Verb::Summary(Later(args)) => summary::run(&args).map(|()| 0),
        Verb::Health(Later(args)) => health::run(&args),
        Verb::Metrics(Later(args)) => metrics::run(&args).map(|()| 0),
        Verb::Stop(Later(args)) => stop::run(&args),
        Verb::Pause(Later(args)) => pause::run(&args, &Request::Pause),
        Verb::Unpause(Later(args)) => pause::run(&args, &Request::Unpause),
        Verb::Kill(Later(args)) => kill::run(&args),
        Verb::Wait(Later(args)) => wait::run(&args),
        Verb::Secret(Later(args)) => secret::run(&args).map(|()| 0),
        Verb::Rename(Later(args)) => rename::run(&args).map(|()| 0),
        Verb::Rm(Later(args)) => rm::run(&args),
        Verb::Commit(Later(args)) => commit::run(args),
        Verb::Pull(Later(args)) => pull::run(args),
        Verb::Images(Later(args)) => images::run(&args).map(|()| 0),
        Verb::Rmi(Later(args)) => rmi::run(&args),
        Verb::Prune(Later(args)) => prune::run(&args).map(|()| 0),
        Verb::Image(Later(args)) => image::run(&args),
        Verb::Profile(Later(args)) => profile::run(args),
        Verb::Generate(Later(args)) => generate::run(args).map(|()| 0),
        Verb::Completion(Later(args)) => completion::run(&args, Cli::command()).map(|()| 0),
        Verb::Doctor(Later(args)) => doctor::run(&args),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            if !is_closed(&error) {
                say(&format!("{error:#}"));
            }
            ExitCode::from(FAILED)
        }
    }
}

/// Whether whoever reads the output went away (`agentd ps | head`): no failure worth words.
fn is_closed(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// The command line. What a flag of it needs may stand in the job file it names, which is looked at later.
fn parse() -> Result<Cli, clap::Error> {
    // Never taken apart: it holds all that can be said, and this program says it once.
    let mut command = ManuallyDrop::new(Cli::command());
    let matches = command.try_get_matches_from_mut(std::env::args_os());
    let parsed = matches
        .and_then(|mut matches| Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command)));
    parsed.or_else(|error| {
        if error.kind() != ErrorKind::MissingRequiredArgument {
            return Err(error);
        }
        let matches = Cli::command().ignore_errors(true).try_get_matches()?;
        match Cli::from_arg_matches(&matches) {
            Ok(cli) if matches!(&cli.verb, Verb::Run(Later(args)) if args.names_job_file()) => Ok(cli),
            _ => Err(error),
        }
    })
}

/// The arguments of `agentd run`, of a command line that has other words now (`--job`). Of what is said twice the last counts.
fn again(words: Vec<std::ffi::OsString>) -> Result<run::Args, clap::Error> {
    let command = Cli::command().args_override_self(true);
    match Cli::from_arg_matches(&command.try_get_matches_from(words)?)?.verb {
        Verb::Run(Later(args)) => Ok(*args),
        _ => Err(clap::Error::new(ErrorKind::InvalidSubcommand)),
    }
}

/// Help and version are answers, printed as clap has them; a mistake is said in one line, with where to read on.
fn tell(error: &clap::Error) {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        // A terminal that is gone cannot be told anything.
        return error.print().unwrap_or_default();
    }
    // What stands before the verb are flags without values.
    let verb = std::env::args_os().skip(1).find(|word| !word.as_encoded_bytes().starts_with(b"-"));
    let verb = verb.filter(|verb| Cli::command().find_subcommand(verb).is_some());
    let verb = verb.map_or_else(String::new, |verb| format!("{} ", verb.to_string_lossy()));
    say(&format!("{}; see `agentd {verb}--help`", mistake(error)));
}

/// What clap says of a mistake, and what it suggests, without its frame.
fn mistake(error: &clap::Error) -> String {
    let text = error.to_string();
    let is_frame = |line: &&str| line.starts_with("Usage:") || line.starts_with("For more information");
    let mut said = String::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()).take_while(|line| !is_frame(line)) {
        let (separator, part) = match line.strip_prefix("tip: ") {
            Some(tip) => ("; ", tip),
            None if said.is_empty() => ("", line.strip_prefix("error: ").unwrap_or(line)),
            None => (" ", line),
        };
        said.push_str(separator);
        said.push_str(part);
    }
    said
}

/// What clap makes of the words of an `agentd run` that ran; as far as it can, for there are older agentds.
fn understood(words: &[String]) -> Option<ArgMatches> {
    let line = ["agentd", "run"].into_iter().chain(words.iter().map(String::as_str));
    let mut matches = Cli::command().ignore_errors(true).try_get_matches_from(line).ok()?;
    matches.remove_subcommand().map(|(_run, matches)| matches)
}

/// Says something of agentd's own on standard error; what it quotes may come from anywhere. A terminal that takes no
/// output for a second is not waited for: the job is over, and so is this program.
fn say(text: &str) {
    let mut stderr = [PollFd::from_borrowed_fd(rustix::stdio::stderr(), PollFlags::OUT)];
    if poll(&mut stderr, Some(&Timespec { tv_sec: 1, tv_nsec: 0 })).is_ok_and(|ready| ready == 0) {
        return;
    }
    // One that is gone cannot be told anything, and the exit code says enough.
    writeln!(std::io::stderr(), "agentd: {}", printable(text)).unwrap_or_default();
}

/// Writes a document to standard output. JSON escapes C0 controls; what else some terminals obey is escaped here.
fn print_json(document: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(document)?;
    let mut escaped = String::with_capacity(text.len() + 1);
    for c in text.chars() {
        if agentd_rootfs::is_unprintable(c) && c != '\n' {
            escaped.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            escaped.push(c);
        }
    }
    escaped.push('\n');
    std::io::stdout().lock().write_all(escaped.as_bytes())?;
    Ok(())
}

/// Text from a job or an image, safe for a terminal.
fn printable(text: &str) -> Cow<'_, str> {
    if text.chars().any(agentd_rootfs::is_unprintable) {
        agentd_rootfs::shown(text.chars()).into()
    } else {
        text.into()
    }
}
