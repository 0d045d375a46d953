//! `agentd run`.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agentd_init::plan::{Access, Ids, Limit, Network};
use agentd_init::step::{Failure, Step};
use agentd_rootfs::commit::LeftOut;
use agentd_rootfs::{ImageRef, RegistryConfig};
use agentd_sys::descriptors::open_now;
use anyhow::{Context, Result, anyhow, bail, ensure};

use super::environment::{self, Directories};
use super::job_file::{self, About, Words};
use super::on_exit;
use super::policy_file::{self, Counts, PolicyChoice};
use super::profile::Learning;
use super::progress::{Follower, INTERRUPTED};
use super::run_io::IoArgs;
use super::run_network::{self, NetworkArgs};
use super::run_plan;
use super::run_secrets::{self, SecretArgs};
use super::run_ulimit;
use super::wanted::{self, Asked, Policy, Wanted};
use super::{FAILED, Format, printable, rm, say};
use crate::cgroup::{self, Limits};
use crate::job::events::Denial;
use crate::job::id::{JobId, JobName};
use crate::job::record::Kept;
use crate::job::restart::Restart;
use crate::job::spec::{
    self, Asked as AskedWords, BindMount, JobSpec, PolicyFile, ProfileChoice, SpecError, Workspace,
};
use crate::launch::plan::Plan;
use crate::launch::secrets::Values;
use crate::launch::write_back;
use crate::real_path;
use crate::supervisor::detach::{self, Apart};
use crate::supervisor::shell::Shell;
use crate::supervisor::{self, Ending, Finished, Presence};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  agentd run -- cat /etc/os-release
  agentd run --workspace . -it -- bash
  agentd run --image oci:./img --workspace ./repo --timeout 30m -- claude -p 'fix the failing test'
  agentd run --workspace . --allow claude --allow github -- claude -p 'update the changelog'")]
pub(super) struct Args {
    /// Take flags from a file: TOML, a key a long flag (`memory = "2g"`, `rm = true`, `allow = ["claude"]`), and `command`;
    /// flags and command given here come after it. It may ask for whatever you may: read one before you run it
    #[arg(long, value_name = "FILE")]
    job: Option<PathBuf>,
    /// What / is made of: host, dir:PATH, oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME:TAG], or
    /// [docker://]NAME[:TAG][@DIGEST] in a registry, or the ID of an image in the store (12 digits or more)
    #[arg(long, default_value = "host", value_name = "IMAGE", value_parser = Asked::parse)]
    image: Asked,
    /// When to fetch the image: when the store does not have it, each time, or not at all
    #[arg(long, value_enum, default_value = "missing", value_name = "WHEN")]
    pull: Policy,
    /// Set a limit on what the image may hold; `agentd pull --help` lists them
    #[arg(long, value_name = "NAME=VALUE")]
    image_limit: Vec<String>,
    /// Directory to work in, at /workspace; with :ro it cannot be written
    #[arg(long, value_name = "DIR[:bind|ro]")]
    workspace: Option<String>,
    /// Let the command change a protected path of the workspace, such as .vscode or .git/hooks; * stands for anything
    #[arg(long, value_name = "PATTERN")]
    unprotect: Vec<String>,
    /// Run in the background, print the job's id; it outlives this terminal
    #[arg(short, long, conflicts_with = "dry_run")]
    detach: bool,
    /// Pass standard input on; with -d, what `agentd attach` gives it
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// A name for the job, beside its id
    #[arg(long)]
    name: Option<JobName>,
    /// End and forget the job that has this name now, if there is one
    #[arg(long, requires = "name", conflicts_with = "dry_run")]
    replace: bool,
    /// Forget the job when it has ended
    #[arg(long, conflicts_with = "keep")]
    rm: bool,
    /// Set a variable; NAME alone passes your own on
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    #[command(flatten)]
    secrets: SecretArgs,
    /// Set the variables of a file, a NAME=VALUE a line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Show a host file or directory inside, read-only unless rw is said
    #[arg(long, value_name = "type=bind,src=HOST,dst=BOX[,rw]")]
    mount: Vec<BindMount>,
    /// Who the command is inside: root, a name of the image, or UID[:GID]; outside it is always you
    #[arg(short, long)]
    user: Option<String>,
    /// Make the command root for package managers: changes of owner, group and id that your one id cannot make are
    /// reported as done, and set-user-ID bits are left out of modes
    #[arg(long, requires = "writable")]
    fake_root: bool,
    /// Give the box several ids, your ranges of /etc/subuid and /etc/subgid, and make the command their root: it may give
    /// files of the box to them and become one of them; needs newuidmap
    #[arg(long, value_enum, value_name = "WHICH", requires = "writable", conflicts_with_all = ["fake_root", "keep"])]
    userns: Option<Userns>,
    /// Working directory inside
    #[arg(short, long, value_name = "DIR", value_parser = spec::absolute)]
    workdir: Option<String>,
    /// Run this instead of the image's entry point
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Host name inside
    #[arg(long, value_parser = spec::parse_hostname)]
    hostname: Option<String>,
    /// Stop the job after this time: 90s, 30m, 2h
    #[arg(long, value_name = "TIME", value_parser = spec::parse_duration)]
    timeout: Option<Duration>,
    /// Time between SIGTERM and SIGKILL when the job is stopped
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = spec::parse_duration)]
    stop_timeout: Duration,
    #[command(flatten)]
    network: NetworkArgs,
    /// Take rules and limits from a file, in the words of --allow, --deny, --net-limit, --memory and the like (docs/network.md);
    /// those given here are added. none: not even from the usual one
    /// [default: ~/.config/agentd/policy.toml, if it is there]
    #[arg(long, value_name = "FILE|none")]
    policy: Option<PolicyChoice>,
    /// What the command may ask of the kernel: default, strict, nested or a file (see `agentd profile`)
    #[arg(long, value_name = "NAME|FILE", default_value = "default")]
    profile: ProfileChoice,
    /// Let the command write to its root; what it writes is thrown away, unless --keep is given
    #[arg(long)]
    writable: bool,
    /// Keep what it writes to its root, for `agentd commit`
    #[arg(long, requires = "writable")]
    keep: bool,
    /// Bytes the box may hold outside the workspace, in memory [default: half of the machine's]
    #[arg(long, value_name = "SIZE", value_parser = spec::parse_size)]
    storage: Option<u64>,
    /// Bytes of each output stream that are kept for `agentd logs`
    #[arg(long, value_name = "SIZE", default_value = "64m", value_parser = spec::parse_size)]
    max_output: u64,
    /// Start the command again when it ends: no, on-failure[:N] (N times at most) or always; the pause before it grows from
    /// 0.1 s to a minute. What is stopped, or reaches --timeout, which holds for all starts together, is not started again
    #[arg(long, value_name = "POLICY", default_value = "no")]
    restart: Restart,
    /// Run a program of the host when the job has ended, words apart by spaces and no shell; it gets AGENTD_JOB,
    /// AGENTD_NAME, AGENTD_STATE and AGENTD_EXIT_CODE
    #[arg(long, value_name = "COMMAND", value_parser = on_exit::words)]
    on_exit: Option<on_exit::Words>,
    /// Memory limit, scratch places included; above it the kernel kills the largest process (needs cgroup v2)
    #[arg(long, value_name = "SIZE", value_parser = spec::parse_size)]
    memory: Option<u64>,
    /// Memory above which the job is slowed down and gives back what it can, before it reaches --memory (needs cgroup v2)
    #[arg(long, value_name = "SIZE", value_parser = spec::parse_size)]
    memory_high: Option<u64>,
    /// Memory and swap together [default: no swap]
    #[arg(long, value_name = "SIZE", value_parser = spec::parse_size)]
    memory_swap: Option<u64>,
    /// CPU time, in CPUs (needs cgroup v2)
    #[arg(long, value_name = "NUMBER", value_parser = spec::parse_cpus)]
    cpus: Option<u64>,
    /// Share of the CPU where others want it too, 1 to 10000; a job without has 100 (needs cgroup v2)
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    cpu_weight: Option<u64>,
    /// CPUs to run on: 0-3 or 0,2 (needs cgroup v2)
    #[arg(long, value_name = "LIST", value_parser = spec::parse_cpu_list)]
    cpuset_cpus: Option<String>,
    /// Limit on processes and threads (needs cgroup v2)
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    pids: Option<u64>,
    #[command(flatten)]
    io: IoArgs,
    /// Limit of each process, as in setrlimit(2): nofile, fsize (bytes of a file), core, stack, memlock, … ; -1 is none
    #[arg(long, value_name = "NAME=SOFT[:HARD]", value_parser = run_ulimit::parse)]
    ulimit: Vec<Limit>,
    /// Go without a limit that cannot be enforced here; the record says so
    #[arg(long)]
    best_effort_limits: bool,
    /// Print the plan and run nothing
    #[arg(long)]
    dry_run: bool,
    /// How --dry-run prints the plan
    #[arg(long, value_enum, default_value = "table", requires = "dry_run")]
    format: Format,
    /// Say nothing on standard error but failures
    #[arg(short, long)]
    quiet: bool,
    /// Command and arguments
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Which ids a box has.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Userns {
    /// Yours, and your ranges of subordinate ids
    Subids,
}

/// Words that make the box another than a shell can be, or that ask for none.
const NOT_PLAIN: &[&str] = &[
    "-d",
    "-h",
    "--detach",
    "--help",
    "--dry-run",
    "--userns",
    "--memory",
    "--cpu",
    "--pids",
    "--device",
    "--secret",
    "--job",
    "--policy",
    "host",
];

/// The shell of the box that the command line seems to ask for. Reading it takes a tenth of a start, and planning another; PID 1
/// makes its network meanwhile. A guess that was wrong costs a process that ends at once.
pub(super) fn guess(mut words: impl Iterator<Item = OsString>) -> Option<io::Result<Shell>> {
    let is_run = words.nth(1).is_some_and(|verb| verb == "run");
    let is_plain = |word: OsString| !NOT_PLAIN.iter().any(|other| word.as_bytes().starts_with(other.as_bytes()));
    (is_run && words.all(is_plain) && !cgroup::bounds_every_job())
        .then(|| Shell::new(Network::None, Ids::One, None, &mut Values::default()))
}

impl Args {
    pub(super) fn names_job_file(&self) -> bool {
        self.job.is_some()
    }
}

/// What the verb's flags are.
pub(super) fn description() -> clap::Command {
    <Args as clap::Args>::augment_args(clap::Command::new("agentd run"))
}

/// Runs the verb, in `shell` if it fits; gives the exit code.
pub(super) fn run(mut args: Args, shell: Option<io::Result<Shell>>) -> Result<u8> {
    let directories = Directories::find()?;
    let mut line = None;
    if let Some(file) = &args.job {
        let words = job_file::read(About::Job, file, description())?;
        let put = job_file::put_in(env::args_os().collect(), !args.command.is_empty(), &words);
        let Ok(again) = super::again(put.clone()).inspect_err(super::tell) else { return Ok(FAILED) };
        (args, line) = (again, Some(put));
    }
    let policy = policy_file::find(args.policy.as_ref(), directories.policy_file())?;
    if let Some(policy) = &policy {
        let words = Words { flags: policy.words.clone(), command: Vec::new() };
        let put = job_file::put_in(line.unwrap_or_else(|| env::args_os().collect()), true, &words);
        let Ok(again) = super::again(put).inspect_err(super::tell) else { return Ok(FAILED) };
        args = again;
        args.network.of_policy = Counts::of(&policy.words);
    }
    perform(args, &directories, shell, None, policy)
}

/// The same for `agentd profile learn`.
pub(super) fn learn(args: Args, learning: &Learning) -> Result<u8> {
    ensure!(args.restart.is_no(), "what is learned is of one run; leave --restart out");
    ensure!(args.job.is_none(), "flags of a job file are not for learning; write them out");
    ensure!(!args.detach, "what is learned is written when the command ends; leave --detach out");
    let directories = Directories::find()?;
    if let Some(policy) = policy_file::find(args.policy.as_ref(), directories.policy_file())? {
        bail!("rules of {} are not for learning; write them out, and say --policy none", policy.file.display());
    }
    perform(args, &directories, None, Some(learning), None)
}

fn perform(
    mut args: Args,
    directories: &Directories,
    shell: Option<io::Result<Shell>>,
    learning: Option<&Learning>,
    policy: Option<PolicyFile>,
) -> Result<u8> {
    // Before anything of agentd's own is open.
    let callers = if args.detach { Some(open_now().context("cannot look at the open descriptors")?) } else { None };
    let (quiet, remove, replace, dry_run, format) = (args.quiet, args.rm, args.replace, args.dry_run, args.format);
    let short_name = args.image.short_name();
    let (image, pull) = args.image.clone().find(&directories.stores(), args.pull.into())?;
    let registries = RegistryConfig { short_name, ..directories.registries() };
    let wanted = Wanted::new(pull, registries, &args.image_limit)?;
    let image = wanted::located(image, pull)?;
    args.secrets.check(args.network.network())?;
    let asked = args.secrets.clone();
    let program = args.entrypoint.as_ref().or(args.command.first()).cloned();
    let is_led_elsewhere = args.env.iter().any(|word| word.starts_with("ANTHROPIC_BASE_URL="));
    let allowed = args.network.allow_for(program.as_deref(), asked.has_one_for_claude() || is_led_elsewhere);
    let mut spec = JobSpec { learn: learning.is_some(), policy, ..spec_of(args, image)? };
    policy_file::keep_apart(&spec)?;
    // Those of another verb are not asked for again.
    spec.asked.take_if(|_| learning.is_some());
    // A dry run needs none of their values, and prints none.
    let secrets = if dry_run { Values::default() } else { asked.read()? };
    if !quiet {
        asked.said().iter().chain(&allowed).for_each(|said| say(said));
    }
    if spec.network == Network::Host && !quiet {
        say("--net host: the job reaches everything this host reaches, its own loopback services included");
    }
    if spec.reach.learn && !quiet {
        say("--net-learn: the job reaches every host of the internet that is not denied");
    }
    let id = JobId::random().context("cannot make a job id")?;
    // A shell is a child of this process, and has no secret and no certificate.
    let is_plain = secrets.is_empty() && spec.reach.inspected.is_empty();
    let shell = shell.filter(|_| callers.is_none() && is_plain);
    let mut follower = Follower::new(quiet);
    let planned = follower.follow(&wanted, |fetch| Plan::new(id, spec, &directories.surroundings(), fetch))?;
    let Some((mut plan, in_store)) = planned else { return Ok(INTERRUPTED) };
    let mut hold = None;
    if let Some(image) = in_store {
        image.write_back.map(write_back::apart).transpose()?;
        hold = Some(image.hold);
    }
    plan.warnings.extend(run_secrets::not_redacted(&secrets));
    learning.map_or(Ok(()), |learning| learning.check(&plan))?;
    if dry_run {
        return run_plan::print(&plan, format).map(|()| 0);
    }
    if !quiet {
        for warning in &plan.warnings {
            say(&format!("warning: {warning}"));
        }
    }
    let jobs = match (replace, &plan.name) {
        (true, Some(name)) => {
            // A job that a crash or the machine's end left is finished first.
            let jobs = directories.swept_jobs();
            rm::replace(&jobs, name)?;
            jobs
        }
        _ => directories.jobs(),
    };
    let service = environment::service();
    let presence = match callers.map(|callers| detach::apart(&callers)).transpose().context("cannot detach")? {
        None => Presence::Foreground,
        Some(Apart::Supervisor(notice)) => Presence::Detached(notice),
        Some(Apart::Ended(code)) => return Ok(code),
        Some(Apart::Started) => {
            writeln!(std::io::stdout().lock(), "{}", plan.id)?;
            return Ok(0);
        }
    };
    let finished = supervisor::run(&plan, &jobs, hold, secrets, presence, shell, &service);
    on_exit::run(&plan, finished.as_ref().ok().map(|finished| &finished.record.state));
    let finished = finished?;
    if !quiet {
        for left in finished.record.left.iter().chain(&finished.late_warning) {
            say(&format!("warning: {left}"));
        }
    }
    if !quiet && finished.record.output_dropped > 0 {
        let bytes = finished.record.output_dropped;
        say(&format!("{bytes} bytes of output are not in the log (--max-output, or a full disk)"));
    }
    if !quiet && finished.record.denials > 0 {
        say(&denied(&finished, &plan, remove));
    }
    if let Some(learned) = run_network::learned(&finished, &plan) {
        say(&learned);
    }
    if !quiet && let Some(refused) = run_network::refused(&finished, plan.id.as_str(), remove) {
        say(&refused);
    }
    match &finished.record.root {
        Some(Kept::Nothing { reason }) => say(&format!("nothing of what it wrote to its root is kept: {reason}")),
        Some(Kept::Layer(layer)) if !quiet => {
            let LeftOut { sockets, reserved, attributes } = layer.left_out;
            if sockets + reserved + attributes > 0 {
                say(&format!(
                    "warning: an image cannot hold, and left out are: {sockets} sockets, {reserved} names that begin with .wh., \
                     {attributes} extended attributes"
                ));
            }
        }
        _ => {}
    }
    match &finished.ending {
        Ending::Exited { reason: Some(reason), .. } if !quiet => say(reason),
        Ending::Exited { .. } => {}
        Ending::Failed { failure, code } => say(&format!("{failure}{}", remedy(*code, failure, &plan))),
    }
    if remove {
        jobs.remove(&plan.id)?;
    }
    if let (Some(learning), Some(lessons), Ending::Exited { .. }) = (learning, &finished.lessons, &finished.ending) {
        learning.write(lessons, &finished, quiet)?;
    }
    Ok(finished.ending.code())
}

/// The line about refused calls, at the end of a run.
fn denied(finished: &Finished, plan: &Plan, is_removed: bool) -> String {
    let of = |denial: &Denial| format!("{} {}", denial.untrusted_program, denial.call());
    let shown: Vec<String> = finished.denials.iter().take(3).map(of).collect();
    let more = if finished.denials.len() > shown.len() { ", …" } else { "" };
    let calls = if finished.record.denials == 1 { "call" } else { "calls" };
    let hint = if is_removed { String::new() } else { format!("; `agentd logs --denials {}` says why", plan.id) };
    let profile = &plan.inside.seccomp.profile;
    format!("{} {calls} refused by profile {profile}: {}{more}{hint}", finished.record.denials, shown.join(", "))
}

/// What to do about a payload that never ran.
fn remedy(code: u8, failure: &Failure, plan: &Plan) -> String {
    let path = plan.inside.process.search_path();
    let no_place = [libc::EACCES, libc::EROFS, libc::EOVERFLOW, libc::ENOTDIR].contains(&failure.errno);
    match (code, failure.step) {
        (127, _) if plan.inside.process.argv.first().is_some_and(|program| !program.contains('/')) => {
            format!("; it is in no directory of the box's PATH ({path})")
        }
        (127, _) => "; the box has no such file, or not the interpreter or loader that it names".into(),
        (126, _) => "; it is not executable there: look at its mode and its first line".into(),
        (_, Step::EnterWorkdir) => "; --workdir chooses another".into(),
        (_, Step::Bind | Step::MountScratch) if no_place => {
            "; the root has no such place and none can be made there: choose one below /mnt, or one that exists".into()
        }
        _ => "; `agentd doctor` says what this host allows".into(),
    }
}

fn spec_of(args: Args, image: ImageRef) -> Result<JobSpec> {
    let asked = asked(&args)?;
    let mut env = Vec::new();
    for file in &args.env_file {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read --env-file {}", file.display()))?;
        let lines = text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'));
        for line in lines {
            env.extend(variable(line)?);
        }
    }
    for word in &args.env {
        env.extend(variable(word)?);
    }
    if args.tty && !env.iter().any(|(name, _)| name == "TERM") {
        env.push(("TERM".into(), env::var("TERM").unwrap_or_else(|_unset| "xterm".into())));
    }
    if args.command.iter().any(|word| word.contains('\0')) {
        bail!("the command holds a NUL byte");
    }
    let workspace = args.workspace.as_deref().map(workspace).transpose()?;
    let mounts =
        args.mount.into_iter().map(|mount| Ok(BindMount { source: absolute(&mount.source, "mount source")?, ..mount }));
    let profile = match args.profile {
        ProfileChoice::File(path) => ProfileChoice::File(std::path::absolute(&path)?),
        built_in => built_in,
    };
    if args.keep && matches!(image, ImageRef::Host | ImageRef::Dir(_)) {
        bail!("--keep is for images of layers, and {image} is none: nothing could be made of what is kept");
    }
    if !args.restart.is_no() {
        let others = [
            ("--rm", args.rm, "what is to be forgotten at its end has none"),
            ("--keep", args.keep, "each start has a root of its own, and of several none is the one to keep"),
            (
                "--fake-root",
                args.fake_root,
                "its tracer is a thread, and a box is cloned from a process that has one only",
            ),
            (
                "a key that the broker adds",
                !args.secrets.credentials().is_empty(),
                "a later box would begin as a copy of a process that holds it",
            ),
        ];
        if let Some((other, _, why)) = others.into_iter().find(|(_, is_given, _)| *is_given) {
            bail!(
                "{other} conflicts with --restart {}: {why}; leave one of them out, or let systemd start the job again \
                 (agentd generate systemd)",
                args.restart
            );
        }
    }
    let (network, reach) = args.network.asked(args.secrets.credentials())?;
    let (on_exit, on_exit_files) = args.on_exit.map(on_exit::located).transpose()?.unwrap_or_default();
    let root_by = if args.fake_root { Some("--fake-root") } else { args.userns.map(|_| "--userns subids") };
    Ok(JobSpec {
        image,
        workspace,
        unprotect: args.unprotect,
        command: args.command,
        entrypoint: args.entrypoint,
        env,
        mounts: mounts.collect::<Result<_>>()?,
        user: user(args.user, root_by)?,
        fake_root: args.fake_root,
        subids: args.userns.is_some(),
        workdir: args.workdir,
        name: args.name,
        hostname: args.hostname,
        timeout: args.timeout,
        grace: args.stop_timeout,
        network,
        reach,
        writable: args.writable,
        keep: args.keep,
        storage: args.storage,
        max_output: args.max_output,
        restart: args.restart,
        on_exit,
        on_exit_files,
        terminal: args.tty,
        interactive: args.interactive,
        limits: Limits {
            memory: args.memory,
            memory_high: spec::high(args.memory, args.memory_high)?,
            swap: spec::swap(args.memory, args.memory_swap)?,
            milli_cpus: args.cpus,
            cpu_weight: args.cpu_weight,
            cpus: args.cpuset_cpus,
            pids: args.pids,
            io: args.io.limits()?,
        },
        ulimits: run_ulimit::last(args.ulimit),
        best_effort_limits: args.best_effort_limits,
        profile,
        learn: false,
        secrets: args.secrets.files(),
        secret_env: args.secrets.variables(),
        asked,
        policy: None,
    })
}

/// The words of this run. Where it was started is looked at only if some of them may be relative to that.
fn asked(args: &Args) -> Result<Option<AskedWords>> {
    let is_relative = args.workspace.as_ref().is_some_and(|path| !path.starts_with('/'))
        || args.image.is_relative()
        || args.mount.iter().any(|mount| mount.source.is_relative())
        || args.env_file.iter().chain(&args.job).any(|path| path.is_relative())
        || matches!(&args.profile, ProfileChoice::File(path) if path.is_relative())
        || matches!(&args.policy, Some(PolicyChoice::File(path)) if path.is_relative())
        || !args.secrets.is_empty()
        || args.on_exit.is_some();
    let directory = is_relative.then(env::current_dir).transpose().context("cannot tell the working directory")?;
    let words = env::args_os().skip(1).skip_while(|word| word.as_encoded_bytes().starts_with(b"-")).skip(1);
    let words = words.map(|word| word.into_string().ok()).collect::<Option<Vec<String>>>();
    Ok(words.map(|words| AskedWords { words, directory }))
}

/// Who the command is, as asked.
fn user(asked: Option<String>, root_by: Option<&str>) -> Result<Option<String>> {
    match (asked.as_deref(), root_by) {
        (Some("root" | "0" | "0:0") | None, Some(_)) => Ok(Some("root".into())),
        (Some(other), Some(flag)) => {
            bail!("{flag} makes the command root, and --user {} somebody else: leave one of them out", printable(other))
        }
        (_, None) => Ok(asked),
    }
}

/// `NAME=VALUE`, or `NAME` with this process's own value; nothing when that is not set.
pub(super) fn variable(word: &str) -> Result<Option<(String, String)>> {
    let (name, value) = match word.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => match env::var(word) {
            Ok(value) => (word, Some(value)),
            Err(_unset) => {
                say(&format!("{word} is not set here, so it is not in the box"));
                (word, None)
            }
        },
    };
    if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control()) || word.contains('\0') {
        return Err(SpecError::Variable(word.to_owned()).into());
    }
    Ok(value.map(|value| (name.to_owned(), value)))
}

fn workspace(text: &str) -> Result<Workspace> {
    let (path, access): (PathBuf, Access) = spec::parse_workspace(text)?;
    Ok(Workspace { path: absolute(&path, "workspace")?, access })
}

/// The path without links and `..`, as the kernel resolves it now; the plan then pins the object itself.
pub(super) fn absolute(path: &Path, what: &str) -> Result<PathBuf> {
    real_path::real(path).map_err(|error| {
        let remedy = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => "; give one that exists",
            io::ErrorKind::PermissionDenied => "; give one that you may reach",
            _ => "",
        };
        anyhow!("{what} {} cannot be used: {error}{remedy}", path.display())
    })
}
