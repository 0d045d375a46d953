//! What the user asked for, validated once.
//!
//! Invariant: a spec that exists is well-formed: names are names, bounds are bounds, paths are absolute. Whether the host
//! and the image can give what it asks for is found out when the plan is made.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use agentd_init::plan::{Access, Limit, Network};
use agentd_profiles::BuiltIn;
use agentd_rootfs::ImageRef;
use serde::{Deserialize, Serialize};

use super::id::JobName;
use super::restart::Restart;
use crate::cgroup::Limits;
use crate::launch::network::AskedNetwork;

/// A job as asked for.
#[derive(Debug, Clone)]
pub struct JobSpec {
    /// What `/` is made of.
    pub image: ImageRef,
    /// The directory the agent works in.
    pub workspace: Option<Workspace>,
    /// Program and arguments; empty: the image's own command.
    pub command: Vec<String>,
    /// Replaces the image's entry point.
    pub entrypoint: Option<String>,
    /// Variables on top of the image's, in order.
    pub env: Vec<(String, String)>,
    /// Patterns of protected paths that the job may change.
    pub unprotect: Vec<String>,
    /// Further host files and directories.
    pub mounts: Vec<BindMount>,
    /// `root`, a name or numbers; as the image resolves them.
    pub user: Option<String>,
    /// Whether changes of owners and ids that one id cannot make are reported as done; the user is root then.
    pub fake_root: bool,
    /// Whether the box has the user's ranges of subordinate ids beside his own; the user is root then.
    pub subids: bool,
    /// Absolute box path of the working directory.
    pub workdir: Option<String>,
    /// A name beside the id.
    pub name: Option<JobName>,
    /// UTS host name; default: the name or the id.
    pub hostname: Option<String>,
    /// Wall-clock time after which the job is stopped.
    pub timeout: Option<Duration>,
    /// Time between SIGTERM and SIGKILL when the job is stopped.
    pub grace: Duration,
    /// Which network the box sees.
    pub network: Network,
    /// What it may reach through the broker; only where the network is none.
    pub reach: AskedNetwork,
    /// Whether the root may be written (and is thrown away).
    pub writable: bool,
    /// Whether what is written to the root is kept for `agentd commit`.
    pub keep: bool,
    /// Bytes of everything the box may write that is not the workspace.
    pub storage: Option<u64>,
    /// Bytes of each output stream that are kept on disk.
    pub max_output: u64,
    /// Whether it is started again when its command ends.
    pub restart: Restart,
    /// Program and arguments that the supervisor runs on the host when the job has ended; none where empty.
    pub on_exit: Vec<String>,
    /// The files among its words.
    pub on_exit_files: Vec<PathBuf>,
    /// A terminal of the box's own.
    pub terminal: bool,
    /// Whether standard input is passed on.
    pub interactive: bool,
    /// Limits that each process has for itself.
    pub ulimits: Vec<Limit>,
    /// Limits that need a cgroup.
    pub limits: Limits,
    /// Whether such a limit that cannot be enforced is a warning instead of an error.
    pub best_effort_limits: bool,
    /// What the payload may ask of the kernel.
    pub profile: ProfileChoice,
    /// Whether calls that the profile refuses may be carried out, to learn which it should not.
    pub learn: bool,
    /// Names of the secrets that become files.
    pub secrets: Vec<String>,
    /// Names of the secrets that become variables.
    pub secret_env: Vec<String>,
    /// The words that asked for all this, where they are text.
    pub asked: Option<Asked>,
    /// The policy file, whose words are in all this, too.
    pub policy: Option<PolicyFile>,
}

/// The policy file that a job was started with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyFile {
    /// Absolute host path.
    pub file: PathBuf,
    /// Its words, as flags.
    pub words: Vec<String>,
}

/// How a job was asked for, to ask for it again (`agentd generate`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// The words after `agentd run`.
    pub words: Vec<String>,
    /// Where relative paths among them began, if there are any.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub directory: Option<PathBuf>,
}

/// `--profile NAME|FILE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProfileChoice {
    /// A part of agentd.
    BuiltIn(BuiltIn),
    /// Host path of a file.
    File(PathBuf),
}

impl FromStr for ProfileChoice {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        match BuiltIn::for_payloads(text) {
            Some(built_in) => Ok(Self::BuiltIn(built_in)),
            None if text.contains('/') || text.ends_with(".toml") => Ok(Self::File(text.into())),
            None => Err(SpecError::Profile(text.to_owned())),
        }
    }
}

/// A directory of the host at `/workspace`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workspace {
    /// Absolute host path.
    pub path: PathBuf,
    /// `bind` or `ro`.
    pub access: Access,
}

/// `--mount type=bind,src=…,dst=…[,ro]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindMount {
    /// Absolute host path.
    pub source: PathBuf,
    /// Absolute box path.
    pub target: String,
    /// Read-only unless `rw` was said.
    pub access: Access,
}

/// Words of the command line that do not make a job.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// `--workspace DIR:MODE` with a mode of a later version.
    #[error("workspace mode `cow` is not there yet: use `bind` (the default) or `ro`")]
    Cow,
    /// `--mount` that is not understood.
    #[error("`--mount {}`: {problem}; write type=bind,src=HOST,dst=BOX[,ro|rw]", text.escape_debug())]
    Mount {
        /// The words.
        text: String,
        /// What is wrong.
        problem: String,
    },
    /// A path that has to be absolute.
    #[error("`{}` must be an absolute path inside the box", .0.escape_debug())]
    NotAbsolute(String),
    /// A variable's name.
    #[error("`{}` is not a variable: write NAME=VALUE, or NAME to pass on your own", .0.escape_debug())]
    Variable(String),
    /// A size.
    #[error("`{}` is not a size: write bytes, or a number with k, m, g or t", .0.escape_debug())]
    Size(String),
    /// A duration.
    #[error("`{}` is not a duration: write 90s, 30m, 2h or 1h30m", .0.escape_debug())]
    Duration(String),
    /// A number of CPUs.
    #[error("`{}` is not a number of CPUs: write 2 or 0.5", .0.escape_debug())]
    Cpus(String),
    /// A list of CPUs.
    #[error("`{}` is not a list of CPUs: write 0-3 or 0,2", .0.escape_debug())]
    CpuList(String),
    /// Memory with swap.
    #[error("--memory-swap is memory and swap together: give --memory too, and no more than this")]
    Swap,
    /// A threshold that is none.
    #[error("--memory-high is where a job is slowed down before it reaches --memory: give less than that")]
    High,
    /// A profile.
    #[error("`{}` is no profile: built in are default, strict and nested; a file is written with a slash, or ends in .toml", .0.escape_debug())]
    Profile(String),
    /// A host name.
    #[error("`{}` is not a host name: up to 63 letters, digits and hyphens", .0.escape_debug())]
    Hostname(String),
}

/// Splits `DIR[:bind|ro|cow]`; `rw`, as docker has it, is `bind`.
///
/// # Errors
/// [`SpecError::Cow`] for the mode of a later version. A colon that no mode follows belongs to the path.
pub fn parse_workspace(text: &str) -> Result<(PathBuf, Access), SpecError> {
    match text.rsplit_once(':') {
        Some((path, "bind" | "rw")) => Ok((path.into(), Access::ReadWrite)),
        Some((path, "ro")) => Ok((path.into(), Access::ReadOnly)),
        Some((_, "cow")) => Err(SpecError::Cow),
        _ => Ok((text.into(), Access::ReadWrite)),
    }
}

impl FromStr for BindMount {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let problem = |problem: String| SpecError::Mount { text: text.to_owned(), problem };
        let (mut source, mut target, mut access) = (None, None, Access::ReadOnly);
        for word in text.split(',') {
            match word.split_once('=').unwrap_or((word, "")) {
                ("type", "bind") => {}
                ("type", other) => return Err(problem(format!("type `{}` is not known", other.escape_debug()))),
                ("src" | "source", path) if !path.is_empty() => source = Some(PathBuf::from(path)),
                ("dst" | "destination" | "target", path) if !path.is_empty() => target = Some(path.to_owned()),
                ("ro" | "readonly", "" | "true") | ("rw", "false") => access = Access::ReadOnly,
                ("rw", "" | "true") | ("ro" | "readonly", "false") => access = Access::ReadWrite,
                _ => return Err(problem(format!("`{}` is not known", word.escape_debug()))),
            }
        }
        let source = source.ok_or_else(|| problem("src is missing".into()))?;
        let target = absolute(&target.ok_or_else(|| problem("dst is missing".into()))?)?;
        if target == "/" {
            return Err(problem("dst is the root itself, which --image chooses".into()));
        }
        Ok(BindMount { source, target, access })
    }
}

/// An absolute box path without `.`, `..` and doubled slashes.
///
/// # Errors
/// [`SpecError::NotAbsolute`].
pub fn absolute(text: &str) -> Result<String, SpecError> {
    if !text.starts_with('/') || text.contains('\0') || text.split('/').any(|part| part == "..") {
        return Err(SpecError::NotAbsolute(text.to_owned()));
    }
    let parts = text.split('/').filter(|part| !part.is_empty() && *part != ".");
    let path = parts.fold(String::new(), |path, part| path + "/" + part);
    Ok(if path.is_empty() { "/".into() } else { path })
}

/// A size in bytes; `k`, `m`, `g`, `t` are powers of 1024, as podman's are.
///
/// # Errors
/// [`SpecError::Size`].
pub fn parse_size(text: &str) -> Result<u64, SpecError> {
    match parse_size::Config::new().with_binary().parse_size(text) {
        Ok(size) if size > 0 => Ok(size),
        _ => Err(SpecError::Size(text.to_owned())),
    }
}

/// A duration above zero; a bare number is seconds.
///
/// # Errors
/// [`SpecError::Duration`].
pub fn parse_duration(text: &str) -> Result<Duration, SpecError> {
    let seconds = text.parse().map(Duration::from_secs).ok();
    match seconds.or_else(|| humantime::parse_duration(text).ok()) {
        // Above this, adding to the clock could overflow; nobody waits 1,000 years.
        Some(duration) if !duration.is_zero() && duration.as_secs() < 31_557_600_000 => Ok(duration),
        _ => Err(SpecError::Duration(text.to_owned())),
    }
}

/// A number of CPUs, in thousandths.
///
/// # Errors
/// [`SpecError::Cpus`].
pub fn parse_cpus(text: &str) -> Result<u64, SpecError> {
    let error = || SpecError::Cpus(text.to_owned());
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.len() > 3 || whole.len() > 6 {
        return Err(error());
    }
    let milli = format!("{whole}{part:0<3}").parse().map_err(|_not_a_number| error())?;
    if milli == 0 { Err(error()) } else { Ok(milli) }
}

/// CPUs as `cpuset.cpus` has them: numbers and ranges, with commas between.
///
/// # Errors
/// [`SpecError::CpuList`].
pub fn parse_cpu_list(text: &str) -> Result<String, SpecError> {
    let number =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u16>().ok()).flatten();
    let range = |part: &str| match part.split_once('-') {
        Some((first, last)) => number(first).zip(number(last)).is_some_and(|(first, last)| first <= last),
        None => number(part).is_some(),
    };
    if text.split(',').all(range) { Ok(text.to_owned()) } else { Err(SpecError::CpuList(text.to_owned())) }
}

/// Bytes of swap beside `memory`, of docker's sum of the two.
///
/// # Errors
/// [`SpecError::Swap`].
pub fn swap(memory: Option<u64>, sum: Option<u64>) -> Result<Option<u64>, SpecError> {
    let Some(sum) = sum else { return Ok(None) };
    memory.and_then(|memory| sum.checked_sub(memory)).map(Some).ok_or(SpecError::Swap)
}

/// `high` where it lies below `memory`.
///
/// # Errors
/// [`SpecError::High`].
pub fn high(memory: Option<u64>, high: Option<u64>) -> Result<Option<u64>, SpecError> {
    let is_below = |high: &u64| memory.is_none_or(|memory| *high < memory);
    if high.as_ref().is_none_or(is_below) { Ok(high) } else { Err(SpecError::High) }
}

/// A host name of one label.
///
/// # Errors
/// [`SpecError::Hostname`].
pub fn parse_hostname(text: &str) -> Result<String, SpecError> {
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if plain && (1..=63).contains(&text.len()) && !text.starts_with('-') {
        Ok(text.to_owned())
    } else {
        Err(SpecError::Hostname(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workspace_is_a_path_and_perhaps_a_mode() {
        assert_eq!(parse_workspace("repo").unwrap(), ("repo".into(), Access::ReadWrite));
        assert_eq!(parse_workspace("/a:b/repo:ro").unwrap(), ("/a:b/repo".into(), Access::ReadOnly));
        assert_eq!(parse_workspace("/a:b").unwrap(), ("/a:b".into(), Access::ReadWrite));
        assert_eq!(parse_workspace("repo:cow").unwrap_err(), SpecError::Cow);
    }

    #[test]
    fn a_mount_is_read_only_unless_it_says_otherwise() {
        let mount: BindMount = "type=bind,src=/a,dst=/b".parse().unwrap();
        assert_eq!((mount.target.as_str(), mount.access), ("/b", Access::ReadOnly));
        assert_eq!("source=/a,target=/b,rw".parse::<BindMount>().unwrap().access, Access::ReadWrite);
        for bad in [
            "",
            "src=/a",
            "dst=/b",
            "src=/a,dst=b",
            "src=/a,dst=/",
            "src=/a,dst=/b,shared",
            "type=tmpfs,dst=/b",
            "src=,dst=/b",
        ] {
            assert!(bad.parse::<BindMount>().is_err(), "{bad}");
        }
    }

    #[test]
    fn box_paths_are_absolute_and_have_no_way_up() {
        assert_eq!(absolute("//a/./b/").unwrap(), "/a/b");
        assert_eq!(absolute("/.").unwrap(), "/");
        for bad in ["", "a", "../a", "/a/../..", "/\0"] {
            assert!(absolute(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sizes_durations_and_cpus_have_bounds() {
        for (text, size) in [("1", 1), ("2k", 2048), ("1.5g", 1_610_612_736), ("3m", 3 << 20)] {
            assert_eq!(parse_size(text).unwrap(), size);
        }
        for bad in ["", "0", "-1", "x", "1q", "99999999999999999999t"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_duration("90").unwrap().as_secs(), 90);
        assert_eq!(parse_duration("1h30m").unwrap().as_secs(), 5400);
        for bad in ["", "0", "-1s", "1 fortnight", "99999999999999999999s", "10000y"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        assert_eq!((parse_cpus("2").unwrap(), parse_cpus("0.5").unwrap()), (2000, 500));
        for bad in ["", "0", "0.0", "-1", "1e3", "0.0001", "inf", "NaN"] {
            assert!(parse_cpus(bad).is_err(), "{bad}");
        }
        for good in ["0", "0-3", "1,3-5,7"] {
            assert_eq!(parse_cpu_list(good).unwrap(), good);
        }
        for bad in ["", ",", "-", "3-1", "a", "1-", "0-3/2", "99999", "1\n2", "+1"] {
            assert!(parse_cpu_list(bad).is_err(), "{bad}");
        }
        assert_eq!((swap(Some(5), Some(8)).unwrap(), swap(Some(5), None).unwrap()), (Some(3), None));
        assert!(swap(None, Some(8)).is_err() && swap(Some(9), Some(8)).is_err());
        assert_eq!((high(Some(5), Some(4)).unwrap(), high(None, Some(4)).unwrap()), (Some(4), Some(4)));
        assert!(high(Some(5), None).unwrap().is_none() && high(Some(5), Some(5)).is_err());
    }
}
