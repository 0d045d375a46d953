//! The profile of a job: one of agentd's own or a file of the user's, tightened by what the workspace asks for.
//!
//! A file is read and compiled at each start, with no cache: it takes less time than a cache would take to be checked
//! (docs/profiles.md has the numbers).
//!
//! Invariant: the user's file may say anything, the workspace's may only refuse. Either one that is not understood ends the
//! start; and what of Landlock the kernel lacks does too, unless the profile gives it up.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use agentd_init::plan::{Filter, Instruction, Seccomp};
use agentd_profiles::compile::compile;
use agentd_profiles::{LandlockRight, MissingRight, NATIVE, Profile, Verdict, tighten};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::job::spec::{JobSpec, ProfileChoice};

/// Where a workspace may say what it does not need.
pub const OF_WORKSPACE: &str = ".agentd/profile.toml";

/// A profile that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The file.
    #[error("cannot read profile {}", path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What it says.
    #[error("profile {}: {cause}; `agentd profile check` tries it", path.display())]
    Profile {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        cause: agentd_profiles::ProfileError,
    },
    /// The workspace's profile is not a plain file.
    #[error(
        "the workspace's {OF_WORKSPACE} cannot be read: {cause}; make it a plain file in a plain directory, or remove it"
    )]
    WorkspaceFile {
        /// Why not.
        cause: io::Error,
    },
    /// What the workspace's profile says.
    #[error("the workspace's {OF_WORKSPACE}: {cause}; it was to tighten profile {profile}; mend or remove it")]
    Workspace {
        /// The profile under it.
        profile: String,
        /// What is wrong with it.
        cause: agentd_profiles::ProfileError,
    },
    /// Root's boxes have no /proc that could be written, and a namespace's maps lie there.
    #[error(
        "profile {0} lets the command make namespaces, and root's jobs cannot: their /proc is read-only, since its files are root's; run agentd as an ordinary user"
    )]
    OfRoot(String),
    /// Nobody would be asked about what it refuses.
    #[error(
        "nothing can be learned on profile {0}, whose refusals nobody hears of (docs/denials.md); start from default or strict"
    )]
    Untold(String),
    /// Modes with set-user-ID bits come to whoever listens to the filter.
    #[error(
        "profile {profile} goes with no {flag}: agentd would have to hear of set-user-ID modes, and under this profile it hears of no call; choose default or strict"
    )]
    SetIdUnheard {
        /// The profile.
        profile: String,
        /// What makes the command root.
        flag: &'static str,
    },
    /// With the rules of `--fake-root` before its own.
    #[error("profile {profile} with --fake-root: {cause}; leave rules out of it")]
    Pretended {
        /// The profile.
        profile: String,
        /// What is wrong.
        cause: agentd_profiles::compile::CompileError,
    },
    /// The kernel is too old for it.
    #[error(
        "profile {profile} cannot be enforced: {cause}; boot a newer kernel, or give the right up in a profile of your own ([[landlock.may-miss]])"
    )]
    Kernel {
        /// The profile.
        profile: String,
        /// The right.
        cause: MissingRight,
    },
}

/// A job's profile, ready for its plan.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) profile: Cow<'static, Profile>,
    pub(crate) seccomp: Seccomp,
    pub(crate) rights: Vec<LandlockRight>,
    /// What the user chose, where the workspace has tightened it.
    pub(crate) chosen: Option<Cow<'static, Profile>>,
    /// What the user chose and the job is to learn on, where it is.
    pub(crate) learning: Option<Cow<'static, Profile>>,
}

/// Finds the profile of `spec` and what of it this kernel, with Landlock's `abi`, enforces.
pub(crate) fn find(spec: &JobSpec, abi: u32, warnings: &mut Vec<String>) -> Result<Chosen, ProfileError> {
    let workspace = spec.workspace.as_ref().map(|workspace| workspace.path.as_path());
    let (mut profile, mut filter) = load(&spec.profile)?;
    let learning = spec.learn.then(|| profile.clone());
    let mut chosen = None;
    if spec.fake_root {
        let faked = agentd_profiles::fake_root(&profile);
        filter = match &spec.profile {
            ProfileChoice::BuiltIn(built_in) => compiled(agentd_profiles::fake_root_seccomp(*built_in)),
            ProfileChoice::File(_) => compiled(
                &compile(&faked.seccomp, NATIVE)
                    .map_err(|cause| ProfileError::Pretended { profile: profile.name.to_string(), cause })?,
            ),
        };
        profile = Cow::Owned(faked);
    }
    if let Some(text) = workspace.map(of_workspace).transpose()?.flatten() {
        let error = |cause| ProfileError::Workspace { profile: profile.name.to_string(), cause };
        let tightened = tighten(&profile, &text).map_err(|cause| error(cause.into()))?;
        let program = compile(&tightened.seccomp, NATIVE).map_err(|cause| error(cause.into()))?;
        warnings.push(format!("the workspace's {OF_WORKSPACE} tightens profile {}", profile.name));
        chosen = Some(std::mem::replace(&mut profile, Cow::Owned(tightened)));
        filter = compiled(&program);
    }
    let name = profile.name.to_string();
    let rights = profile.landlock(abi).map_err(|cause| ProfileError::Kernel { profile: name.clone(), cause })?;
    if profile.namespaces.allowed {
        if geteuid().is_root() {
            return Err(ProfileError::OfRoot(name));
        }
        warnings.push(format!(
            "profile {name}: the command may make namespaces and mounts of its own; Landlock guards no file (it would \
             forbid them), and far more of the kernel is in reach"
        ));
    }
    // A sandbox made inside may want a listener of its own, and there is one a process. And what tells needs `sendmsg`.
    let may_send = profile.rules_of("sendmsg").all(|rule| rule.verdict == Verdict::Allow);
    let told = !profile.namespaces.allowed && may_send && profile.rules_of("sendmsg").next().is_some();
    if (spec.fake_root || spec.subids) && !told {
        let flag = if spec.fake_root { "--fake-root" } else { "--userns subids" };
        return Err(ProfileError::SetIdUnheard { profile: name, flag });
    }
    if !may_send {
        // Said aloud: the file that does it may be the workspace's.
        warnings.push(format!("profile {name} refuses sendmsg: what the command is denied is not told"));
    }
    if spec.learn {
        if !told {
            return Err(ProfileError::Untold(name));
        }
        warnings.push(format!("learning: calls that profile {name} refuses may be carried out in this job"));
    }
    let seccomp = Seccomp { digest: digest(&profile, &filter), profile: name, filter, told, learning: spec.learn };
    Ok(Chosen { profile, seccomp, rights, chosen, learning })
}

/// The profile that was chosen, and its filter.
///
/// # Errors
/// When a file cannot be read or is no profile.
pub(crate) fn load(choice: &ProfileChoice) -> Result<(Cow<'static, Profile>, Filter), ProfileError> {
    match choice {
        ProfileChoice::BuiltIn(built_in) => {
            Ok((Cow::Borrowed(agentd_profiles::profile(*built_in)), Filter::BuiltIn(*built_in)))
        }
        ProfileChoice::File(path) => {
            let text = read(path)?;
            let (profile, program) = agentd_profiles::load(&text, NATIVE)
                .map_err(|cause| ProfileError::Profile { path: path.clone(), cause })?;
            Ok((Cow::Owned(profile), compiled(&program)))
        }
    }
}

/// A file of the user's, as text.
pub(crate) fn read(path: &Path) -> Result<String, ProfileError> {
    let read = File::open(path).and_then(bounded);
    read.map_err(|source| ProfileError::Read { path: path.to_owned(), source })
}

/// The workspace's own profile, if it has one.
fn of_workspace(workspace: &Path) -> Result<Option<String>, ProfileError> {
    let error = |cause: io::Error| ProfileError::WorkspaceFile { cause };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat2(CWD, workspace, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS);
    // A workspace that is not there any more is an error of the mounts, which say more about it.
    let Ok(directory) = directory else { return Ok(None) };
    // Not blocking: whoever made the workspace may have put a FIFO there.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let file = match openat2(&directory, OF_WORKSPACE, flags, Mode::empty(), resolve) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(errno) => return Err(error(errno.into())),
    };
    let stat = fstat(&file).map_err(|errno| error(errno.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(error(io::Error::other("it is no regular file")));
    }
    bounded(File::from(file)).map(Some).map_err(error)
}

/// The whole of a file that is no longer than a profile may be, and a byte of one that is: it is refused when it is parsed.
fn bounded(file: File) -> io::Result<String> {
    let mut text = String::new();
    file.take(u64::try_from(agentd_profiles::MAX_BYTES).unwrap_or(u64::MAX) + 1).read_to_string(&mut text)?;
    Ok(text)
}

/// A filter that is not agentd's own.
pub(crate) fn compiled(program: &[libc::sock_filter]) -> Filter {
    Filter::Compiled(
        program.iter().map(|&libc::sock_filter { code, jt, jf, k }| Instruction(code, jt, jf, k)).collect(),
    )
}

/// A digest of what is enforced: the filter, the grants, whether namespaces are allowed. Names and reasons may change.
pub(crate) fn digest(profile: &Profile, filter: &Filter) -> String {
    match filter {
        Filter::BuiltIn(built_in) => agentd_profiles::built_in_digest(*built_in).to_owned(),
        Filter::Compiled(program) => {
            let program = program.iter().map(|&Instruction(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k });
            agentd_profiles::digest(profile, program)
        }
    }
}
