//! The plan: a box ([`BoxPlan`]) and what its supervisor does around it, printable as JSON.

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};

use agentd_egress::Policy;
use agentd_init::plan::{Access, Addition, BoxPlan, Identity, Landlock, Mount, Network, PathGrant, Process, Root};
use agentd_profiles::{Place, Profile, SeccompRules};
use agentd_rootfs::{Fetch, ImageRef, Places};
use rustix::process::{getegid, geteuid};
use serde::{Deserialize, Serialize};

use super::image_root::{ImageRoot, InStore};
use super::protect::{self, Protection};
use super::{
    PlanError, fake_root, host_root, image_config, image_root, keys, mounts, network, policy, profile, subids, ulimit,
};
use crate::cgroup::{self, Cgroup, Limits};
use crate::job::id::{JobId, JobName};
use crate::job::record::SCHEMA;
use crate::job::restart::Restart;
use crate::job::spec::{Asked, JobSpec, PolicyFile};

/// Where the workspace is inside.
pub const WORKSPACE: &str = "/workspace";

/// The search path of a box whose image sets none.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The home directory of a user that the image does not know.
pub(super) const HOME: &str = "/home/agent";

/// The newest Landlock ABI whose rights agentd handles (Linux 6.15); a newer kernel's further rights are left alone.
pub const NEWEST_ABI: u32 = 7;

/// Processes and threads of a box, where nothing else bounds them.
pub(super) const PROCESSES: u64 = 4096;

/// A job, fully resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Version of this document.
    pub schema: u32,
    /// The job's id.
    pub id: JobId,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<JobName>,
    /// The image as the user wrote it.
    pub image: String,
    /// Digest of the image's manifest.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub image_digest: Option<String>,
    /// Milliseconds of wall-clock time after which the job is stopped.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub timeout_ms: Option<u64>,
    /// Milliseconds between SIGTERM and SIGKILL.
    pub grace_ms: u64,
    /// Bytes of each output stream that are kept.
    pub max_output: u64,
    /// Whether it is started again when its command ends.
    #[serde(skip_serializing_if = "Restart::is_no", default)]
    pub restart: Restart,
    /// Program and arguments that are run on the host when the job has ended.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub on_exit: Vec<String>,
    /// What was asked for and is not done, and why: said, and recorded.
    pub warnings: Vec<String>,
    /// What is usual and cannot be done here, and why: recorded.
    pub notes: Vec<String>,
    /// Where protected paths are, and what opens them.
    #[serde(default)]
    pub protection: Protection,
    /// What the filter was compiled from. Not part of the document: its digest and its profile's name are.
    #[serde(skip)]
    pub rules: Option<Cow<'static, SeccompRules>>,
    /// What is limited by a cgroup, and where that is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cgroup: Option<Cgroup>,
    /// The profile to learn on, where the job is for learning. Not part of the document: `seccomp.learning` is.
    #[serde(skip)]
    pub learning: Option<Cow<'static, Profile>>,
    /// Whether the filter pretends changes of owners and ids, and the supervisor clears set-user-ID bits.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub fake_root: bool,
    /// What maps further ids, where the box has some.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub id_helpers: Option<subids::Helpers>,
    /// Names of the secrets that become variables of the payload.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub secret_env: Vec<String>,
    /// What the box may reach, through the broker.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reach: Option<Policy>,
    /// The words that asked for all this.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub asked: Option<Asked>,
    /// The policy file whose words were put before these.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub policy: Option<PolicyFile>,
    /// The box.
    #[serde(rename = "box")]
    pub inside: BoxPlan,
}

/// What of the host the plan needs beside the spec; read at the edge.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// Where the store of images is or may be made.
    pub store: Places,
    /// The user's home directory: never visible inside unless it is given.
    pub home: Option<PathBuf>,
    /// What the user database calls that, which `HOME` may contradict: never visible with the host's software, and looked
    /// up only there.
    pub account_home: fn() -> Option<PathBuf>,
    /// agentd's own directories: never visible inside.
    pub own: Vec<PathBuf>,
    /// The configurations of git that hold in every repository: the machine's and the user's.
    pub git: Vec<PathBuf>,
}

impl Plan {
    /// Resolves `spec` on this host, and gives what the image's layers still need in the store.
    ///
    /// # Errors
    /// [`PlanError`], before anything was started; unpacked layers stay in the store.
    pub fn new(
        id: JobId,
        spec: JobSpec,
        surroundings: &Surroundings,
        fetch: &mut Fetch<'_>,
    ) -> Result<(Self, Option<InStore>), PlanError> {
        let abi = agentd_sys::landlock::abi().map_err(|cause| PlanError::NoLandlock { cause })?.min(NEWEST_ABI);
        let mut warnings = Vec::new();
        keep_apart(&spec, &surroundings.own)?;
        let cgroup = cgroup(&spec, &mut warnings)?;
        ulimit::check(&spec.ulimits)?;
        let chosen = profile::find(&spec, abi, &mut warnings)?;
        let image = image_root::find(&spec.image, &surroundings.store, fetch)?;
        if let Some(dropped) = image.as_ref().map(|image| image.config.dropped_env).filter(|dropped| *dropped > 0) {
            warnings.push(format!("{dropped} entries of the image's Env are no NAME=VALUE and were left out"));
        }
        let user = image_root::user(image.as_ref(), spec.user.as_deref())?;
        let identity = Identity {
            host_uid: geteuid().as_raw(),
            host_gid: getegid().as_raw(),
            box_uid: user.uid,
            box_gid: user.gid,
        };
        let (subids, id_helpers) = spec.subids.then(subids::find).transpose()?.unzip();
        let reach = network::policy(spec.reach.clone())?;
        let mut notes = Vec::new();
        if !chosen.seccomp.told {
            let profile = &chosen.seccomp.profile;
            notes.push(format!("calls that profile {profile} refuses are not told: see docs/denials.md"));
        }
        if geteuid().is_root() && cgroup.as_ref().is_none_or(|cgroup| cgroup.limits.pids.is_none()) {
            let why = "the kernel exempts root's, and no cgroup with a limit can be made here";
            notes.push(format!("as root the number of processes is not bounded: {why}"));
        }
        if subids.is_some() && spec.limits.pids.is_none() {
            notes.push("with several ids each has its own bound on processes; --pids bounds the job's".into());
        }
        if spec.network == Network::Host && abi < 6 {
            warnings.push(
                "with --net host and a kernel before 6.12 the box can reach abstract unix sockets of the host".into(),
            );
        }
        if !spec.secret_env.is_empty() {
            warnings.push(format!(
                "--secret-env {}: every program of the box can read it, and whatever one of them starts or logs may carry it on; \
                 --secret-file gives a file",
                spec.secret_env.join(", ")
            ));
        }
        let hostname = spec.hostname.clone().unwrap_or_else(|| id.to_string());
        let home = home(&spec, image.as_ref(), user.home.as_deref());
        let for_keys = reach.as_ref().map(|policy| keys::environment(policy.inspected())).unwrap_or_default();
        let mut process = process(&spec, image.as_ref(), &home, for_keys)?;
        let mut volumes = Vec::new();
        if let Some(image) = &image {
            process.stop_signal = image_config::stop_signal(&image.config, &mut notes);
            volumes = image_config::volumes(&image.config, &spec, &mut notes);
        }
        let mut replacements = own_files(&hostname, &identity, &home, (spec.network, reach.as_ref()), image.as_ref())?;
        if spec.keep {
            // What is installed may add users, and they are to be kept: these two stay the image's own.
            replacements
                .retain(|file| !matches!(file, Addition::File { path, .. } if path == "passwd" || path == "group"));
        }
        let storage = spec.storage.map_or_else(half_of_memory, Ok)?;
        let note = policy::Note {
            spec: &spec,
            home: &home,
            volumes: &volumes,
            reach: reach.as_ref(),
            profile: &chosen.profile,
            chosen: chosen.chosen.as_deref(),
            storage,
        };
        replacements.push(note.file());
        let root = Root {
            layers: image.as_ref().map_or_else(Vec::new, |image| image.layers.clone()),
            writable: spec.writable,
            keep: spec.keep,
            storage,
            additions: Vec::new(),
            ensure: ensure(&spec, &process.cwd),
        };
        let mut inside = BoxPlan {
            hostname,
            identity,
            subids,
            network: spec.network,
            doors: reach.as_ref().map(|policy| network::doors(policy, spec.reach.proxy)),
            root,
            mounts: Vec::new(),
            guards: Vec::new(),
            own_cgroup: cgroup.is_some(),
            limits: ulimit::usual(&spec.ulimits),
            ulimits: spec.ulimits.clone(),
            landlock: Landlock { abi, rights: chosen.rights, paths: Vec::new() },
            seccomp: chosen.seccomp,
            process,
        };
        if image.is_some() {
            let in_etc = replacements.into_iter().map(|file| below("etc", file));
            inside.root.additions.extend(in_etc);
            if spec.fake_root {
                inside.root.additions.extend(fake_root::settings(&inside.root.layers)?);
            }
        } else {
            let mut private: Vec<PathBuf> = surroundings.own.iter().chain(&surroundings.home).cloned().collect();
            private.extend((surroundings.account_home)());
            private.dedup();
            let host = host_root::plan(geteuid().is_root(), spec.writable, &private, replacements)?;
            inside.root.additions.extend(host.additions);
            inside.mounts.extend(host.mounts);
        }
        mounts::plan(&spec, &home, volumes, &chosen.profile, &mut inside)?;
        inside.mounts.extend(reach.as_ref().and_then(|policy| keys::mount(policy.inspected())));
        let protection = protect::areas::protect(&spec, surroundings, &mut inside, &mut warnings)?;
        grants(&chosen.profile, &mut inside);
        let (image_digest, in_store) = image.map_or((None, None), |image| (image.digest, image.in_store));
        let plan = Plan {
            schema: SCHEMA,
            id,
            name: spec.name,
            image: spec.image.to_string(),
            image_digest,
            timeout_ms: spec.timeout.map(milliseconds),
            grace_ms: milliseconds(spec.grace),
            max_output: spec.max_output,
            restart: spec.restart,
            on_exit: spec.on_exit,
            warnings,
            notes,
            protection,
            rules: Some(match chosen.profile {
                Cow::Borrowed(profile) => Cow::Borrowed(&profile.seccomp),
                Cow::Owned(profile) => Cow::Owned(profile.seccomp),
            }),
            cgroup,
            learning: chosen.learning,
            fake_root: spec.fake_root,
            id_helpers,
            secret_env: spec.secret_env,
            reach,
            asked: spec.asked,
            policy: spec.policy,
            inside,
        };
        Ok((plan, in_store))
    }

    /// The host path of the workspace.
    #[must_use]
    pub fn workspace(&self) -> Option<&Path> {
        self.host_of(WORKSPACE)
    }

    /// The host path of what is bound at `target`.
    #[must_use]
    pub fn host_of(&self, target: &str) -> Option<&Path> {
        protect::areas::host_of(&self.inside, target)
    }
}

fn milliseconds(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Refuses to show agentd's own directories: whoever writes a record or a layer there has every later job, and renaming
/// a directory above them would be enough.
fn keep_apart(spec: &JobSpec, own: &[PathBuf]) -> Result<(), PlanError> {
    let image = match &spec.image {
        ImageRef::Dir(path) => Some(path),
        _ => None,
    };
    let given = spec.workspace.iter().map(|workspace| &workspace.path);
    for path in given.chain(spec.mounts.iter().map(|mount| &mount.source)).chain(image) {
        if let Some(own) = own.iter().find(|own| own.starts_with(path) || path.starts_with(own)) {
            return Err(PlanError::OwnDirectory { path: path.clone(), own: own.clone() });
        }
    }
    Ok(())
}

/// The working directory, unless it lies in something of the host: there nothing is made.
fn ensure(spec: &JobSpec, cwd: &str) -> Vec<String> {
    let workspace = spec.workspace.as_ref().map(|_| WORKSPACE);
    let mut binds = spec.mounts.iter().map(|mount| mount.target.as_str()).chain(workspace);
    if cwd == "/" || binds.any(|bind| Path::new(cwd).starts_with(bind)) { Vec::new() } else { vec![cwd.to_owned()] }
}

/// Where the limits that need a cgroup will be enforced; without such a place refuses them, or notes that they are not.
fn cgroup(spec: &JobSpec, warnings: &mut Vec<String>) -> Result<Option<Cgroup>, PlanError> {
    let limits = &spec.limits;
    if cgroup::bounds_every_job() && limits.pids.is_none() {
        let bounded = Limits { pids: Some(PROCESSES), ..limits.clone() };
        match cgroup::find(&bounded) {
            Ok(place @ cgroup::Place::Below { .. }) => return Ok(Some(Cgroup { limits: bounded, place })),
            // To go somewhere else for what nobody asked for is more than is meant.
            Ok(place) if !limits.is_none() => return Ok(Some(Cgroup { limits: bounded, place })),
            _ => {}
        }
    }
    if limits.is_none() {
        return Ok(None);
    }
    match cgroup::find(limits) {
        Ok(place) => Ok(Some(Cgroup { limits: limits.clone(), place })),
        Err(why) if spec.best_effort_limits => {
            warnings.push(format!("{} not enforced: {why}", limits.flags()));
            Ok(None)
        }
        Err(why) => Err(PlanError::Limits { flags: limits.flags(), why }),
    }
}

/// HOME: what was asked for, what the image says, what its passwd says, or one of agentd's own.
fn home(spec: &JobSpec, image: Option<&ImageRoot>, of_user: Option<&str>) -> String {
    let named =
        |env: &[(String, String)]| env.iter().rev().find(|(name, _)| name == "HOME").map(|(_, value)| value.clone());
    let said = named(&spec.env)
        .or_else(|| image.and_then(|image| named(&image.config.env)))
        .or_else(|| of_user.filter(|home| *home != "/nonexistent").map(str::to_owned));
    let said = said.and_then(|home| crate::job::spec::absolute(&home).ok()).filter(|home| home != "/");
    said.unwrap_or_else(|| HOME.to_owned())
}

fn process(
    spec: &JobSpec,
    image: Option<&ImageRoot>,
    home: &str,
    for_keys: Vec<(String, String)>,
) -> Result<Process, PlanError> {
    let empty = agentd_rootfs::ImageConfig::default();
    let config = image.map_or(&empty, |image| &image.config);
    let mut argv = match &spec.entrypoint {
        Some(program) => vec![program.clone()],
        None => config.entrypoint.clone(),
    };
    if spec.command.is_empty() && spec.entrypoint.is_none() {
        argv.extend(config.cmd.iter().cloned());
    } else {
        argv.extend(spec.command.iter().cloned());
    }
    if argv.is_empty() {
        return Err(PlanError::NoCommand { image: spec.image.to_string() });
    }
    let mut env: Vec<(String, String)> = vec![("PATH".into(), PATH.into())];
    let mut own = vec![(policy::VARIABLE.0.to_owned(), policy::VARIABLE.1.to_owned())];
    if spec.reach.proxy {
        own.extend(network::proxy_variables(&spec.reach));
    }
    let layers = [config.env.as_slice(), &own, for_keys.as_slice(), spec.env.as_slice()];
    let layered = layers.into_iter().flatten().cloned().chain([("HOME".to_owned(), home.to_owned())]);
    // The value of such a name comes another way.
    for (name, value) in layered.filter(|(name, _)| !spec.secret_env.contains(name)) {
        match env.iter_mut().find(|(known, _)| *known == name) {
            Some(known) => known.1 = value,
            None => env.push((name, value)),
        }
    }
    let cwd = spec
        .workdir
        .clone()
        .or_else(|| spec.workspace.as_ref().map(|_| WORKSPACE.to_owned()))
        .or_else(|| config.working_dir.as_deref().and_then(|path| crate::job::spec::absolute(path).ok()))
        .unwrap_or_else(|| "/".to_owned());
    let env = env.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    Ok(Process { argv, env, cwd, terminal: spec.terminal, input: spec.interactive, stop_signal: libc::SIGTERM })
}

/// Files of /etc that the box has of its own, relative to /etc.
fn own_files(
    hostname: &str,
    ids: &Identity,
    home: &str,
    reachable: (Network, Option<&Policy>),
    image: Option<&ImageRoot>,
) -> Result<Vec<Addition>, PlanError> {
    let file = |path: &str, contents: String| Addition::File { path: path.to_owned(), contents };
    let accounts = image.map(|image| image.accounts.clone()).unwrap_or_default();
    let or = |table: String, default: &str| if table.is_empty() { default.to_owned() } else { table };
    let passwd = or(
        accounts.passwd,
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    );
    let group = or(accounts.group, "root:x:0:\nnogroup:x:65534:\n");
    let shell = "/bin/sh";
    let passwd =
        with_entry(passwd, ids.box_uid, &format!("agent:x:{}:{}:agent:{home}:{shell}", ids.box_uid, ids.box_gid));
    let group = with_entry(group, ids.box_gid, &format!("agent:x:{}:", ids.box_gid));
    let (hosts, resolv) = match reachable {
        (Network::None, reach) => (
            format!("127.0.0.1 localhost {hostname}\n::1 localhost ip6-localhost ip6-loopback\n"),
            match reach {
                Some(_) => network::resolv_conf(),
                None => "# this box has no network: agentd run --net none\n".to_owned(),
            },
        ),
        (Network::Host, _) => (host_file("/etc/hosts")?, host_file("/etc/resolv.conf")?),
    };
    Ok(vec![
        file("passwd", passwd),
        file("group", group),
        file("hostname", format!("{hostname}\n")),
        file("hosts", hosts),
        file("resolv.conf", resolv),
    ])
}

/// `table` (passwd or group) with `entry` at its end, unless it knows `id`.
fn with_entry(mut table: String, id: u32, entry: &str) -> String {
    let id = id.to_string();
    if !table.lines().any(|line| line.split(':').nth(2) == Some(id.as_str())) {
        if !table.is_empty() && !table.ends_with('\n') {
            table.push('\n');
        }
        table.push_str(entry);
        table.push('\n');
    }
    table
}

/// A small text file of the host, or nothing where there is none.
fn host_file(path: &str) -> Result<String, PlanError> {
    let read = || -> io::Result<String> {
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(std::fs::File::open(path)?, 1 << 20), &mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match read() {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(PlanError::HostPath { what: "the host's", path: path.into(), cause: error, hint: None })
        }
        read => Ok(read.unwrap_or_default()),
    }
}

fn below(directory: &str, addition: Addition) -> Addition {
    match addition {
        Addition::File { path, contents } => Addition::File { path: format!("{directory}/{path}"), contents },
        other => other,
    }
}

/// What Landlock grants: the profile's paths, and every mount as far as it may be used.
fn grants(profile: &Profile, inside: &mut BoxPlan) {
    if !inside.landlock.rights.iter().any(|right| right.is_about_files()) {
        return;
    }
    let mut grant = |path: &str, access| inside.landlock.paths.push(PathGrant { path: path.to_owned(), access });
    for rule in profile.paths.iter() {
        match &rule.place {
            Place::Path(path) => grant(path, rule.access),
            Place::WritableRoot if inside.root.writable => grant("/", rule.access),
            _ => {}
        }
    }
    for mount in &inside.mounts {
        let place = match mount {
            Mount::Scratch { .. } | Mount::Writable { .. } => Place::Scratch,
            Mount::Bind { target, access: Access::ReadWrite, .. } if target == WORKSPACE => Place::Workspace,
            Mount::Bind { access: Access::ReadWrite, .. } => Place::Mounts,
            _ => continue,
        };
        grant(mount.target(), profile.access(&place));
    }
}

/// The default bound of the box's tmpfs: half of the machine's memory, as tmpfs(5) has it.
fn half_of_memory() -> Result<u64, PlanError> {
    let info = rustix::system::sysinfo();
    Ok(u64::from(info.mem_unit).saturating_mul(info.totalram) / 2)
}
