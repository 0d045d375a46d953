//! From where a box stopped, and what the host says about itself, to what was found and what to do about it.
//!
//! Nothing is tried here: the kernel has few errnos for many reasons, and the reason is picked by what is known to be
//! switched on. Certain causes come before likely ones.

use std::io;
use std::path::Path;

use agentd_init::step::{Failure, Step};

use super::Finding;
use super::host::{Enclosure, Host};
use super::trial::Reached;

/// The oldest kernel that has all a box uses; the newest piece is Landlock.
const OLDEST: (u32, u32) = (5, 13);

const MOUNT_PROC: &str = "mount /proc: sudo mount -t proc proc /proc";

/// A subject that did not get past its step.
pub(super) fn finding(subject: &'static str, reached: &Reached, host: &Host) -> Finding {
    let (found, remedy) = match reached {
        Reached::Refused(error) => {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            (format!("cannot create namespaces: {error}"), of_clone(errno, host))
        }
        Reached::Stopped(failure) => (failure.to_string(), of_step(failure, host)),
        Reached::Ran(status) => (format!("a box's program ended with wait status {status:#x}"), None),
        Reached::Silent => ("PID 1 of a box was killed, or hung, before it could report".into(), None),
    };
    Finding::broken(subject, found, remedy)
}

/// `clone3` itself failed.
fn of_clone(errno: i32, host: &Host) -> Option<String> {
    match errno {
        libc::ENOSPC if !host.no_namespaces.is_empty() => {
            let settings: Vec<_> = host.no_namespaces.iter().map(|name| format!("user.{name}=15000")).collect();
            Some(persistent(&settings.join(" "), "60-namespaces.conf"))
        }
        libc::ENOSPC => Some(
            "raise user.max_user_namespaces and its like outside of the container or namespace that this runs in, or \
             wait until fewer boxes run; 32 namespaces deep is the kernel's own limit"
                .into(),
        ),
        // Asked for its own threads before the clone.
        libc::ENOENT if host.mounts.is_empty() => Some(MOUNT_PROC.into()),
        libc::EAGAIN => {
            Some("raise the limit on this user's processes (`ulimit -u`, limits.conf(5), TasksMax=)".into())
        }
        libc::EINVAL if !host.missing_namespaces.is_empty() => {
            let missing = host.missing_namespaces.join(", ");
            Some(format!("boot a kernel that has the namespaces {missing} (CONFIG_USER_NS=y and its like)"))
        }
        libc::ENOSYS if host.filtered => Some(loosen(host)),
        libc::ENOSYS => newer_kernel(host),
        libc::EPERM | libc::EACCES => denied(true, host),
        _ => None,
    }
}

/// PID 1 failed at a step.
fn of_step(failure: &Failure, host: &Host) -> Option<String> {
    let Failure { step, errno, object } = failure;
    match (*step, *errno) {
        (_, libc::ENOSYS) if host.filtered => Some(loosen(host)),
        (_, libc::ENOSYS) => newer_kernel(host),
        (_, libc::ENODEV) => Some(format!("load the kernel's module, or build it in: sudo modprobe {object}")),
        (Step::MakeNetwork, libc::ENOSPC) => of_clone(*errno, host),
        (_, libc::ENOSPC) => {
            Some("raise fs.mount-max, or look for what made so many mounts in /proc/self/mountinfo".into())
        }
        (Step::WriteIdMaps, libc::ENOENT) => Some(MOUNT_PROC.into()),
        (Step::WriteIdMaps, libc::EROFS) => Some("mount /proc writable: sudo mount -o remount,rw /proc".into()),
        (Step::MountProc, libc::EPERM) => uncover("/proc", host).or_else(|| denied(false, host)),
        (Step::MakeNetwork, libc::EPERM) if object == "sysfs" => uncover("/sys", host).or_else(|| denied(false, host)),
        (Step::MountDev, libc::ENOENT) => Some("give this machine or container a complete /dev".into()),
        (Step::AssembleRoot | Step::MountHostTree, libc::EINVAL | libc::EPERM) => {
            newer_kernel(host).or_else(|| denied(false, host))
        }
        (Step::Seccomp, libc::EINVAL) => Some("boot a kernel with CONFIG_SECCOMP_FILTER=y".into()),
        (_, libc::EPERM | libc::EACCES) => denied(false, host),
        _ => None,
    }
}

/// The kernel's Landlock could not be asked for its ABI.
pub(super) fn of_landlock(error: &io::Error, host: &Host) -> Option<String> {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => Some(
            "put `landlock` first in the list of the kernel's boot parameter lsm= (/sys/kernel/security/lsm has the list)"
                .into(),
        ),
        Some(libc::ENOSYS | libc::EPERM) if host.filtered => Some(loosen(host)),
        Some(libc::ENOSYS) => Some(format!("boot Linux 5.13 or later with CONFIG_SECURITY_LANDLOCK=y (this is {})", host.release)),
        _ => None,
    }
}

/// EPERM or EACCES: who said no? `at_clone` is whether the namespaces themselves were refused.
fn denied(at_clone: bool, host: &Host) -> Option<String> {
    if host.unmapped {
        return Some(
            "map this user in the user namespace that agentd is started in (unshare -U --map-current-user)".into(),
        );
    }
    if at_clone && host.clone_forbidden && host.uid != 0 {
        return Some(persistent("kernel.unprivileged_userns_clone=1", "60-userns.conf"));
    }
    let in_container = !matches!(host.enclosure, Enclosure::None | Enclosure::Service(_));
    if host.filtered && (at_clone || in_container) {
        return Some(loosen(host));
    }
    if host.apparmor_restricts && !in_container {
        return Some(apparmor_profile(host.program.as_deref()));
    }
    if at_clone && host.is_chroot() {
        return Some("start agentd outside of the chroot, or enter the tree with pivot_root(8) in its place".into());
    }
    if in_container {
        return Some(loosen(host));
    }
    if let Some(label) = &host.apparmor {
        return Some(format!(
            "let the AppArmor profile `{label}` that confines this process allow `userns,` and `mount,`, or start agentd \
             outside of it"
        ));
    }
    if host.selinux {
        return Some(
            "see what SELinux refused (`sudo ausearch -m avc -ts recent`), and allow it to agentd's domain".into(),
        );
    }
    None
}

/// The way out of Ubuntu's restriction that opens it for agentd alone.
fn apparmor_profile(program: Option<&Path>) -> String {
    let sysctl = persistent("kernel.apparmor_restrict_unprivileged_userns=0", "60-userns.conf");
    // Only a path that neither the shell nor AppArmor could take for something else.
    let plain = |path: &&str| path.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+".contains(c));
    let Some(path) = program.and_then(Path::to_str).filter(plain) else { return sysctl };
    format!(
        "allow agentd user namespaces: printf 'abi <abi/4.0>,\\nprofile agentd {path} flags=(unconfined) {{ userns, }}\\n' \
         | sudo tee /etc/apparmor.d/agentd && sudo apparmor_parser -r /etc/apparmor.d/agentd (or everybody: {sysctl})"
    )
}

/// A fresh /proc or /sys is refused where the one that is there is not wholly visible (user_namespaces(7)).
fn uncover(tree: &str, host: &Host) -> Option<String> {
    let covered = host.covered(tree);
    if covered.is_empty() && host.enclosure == Enclosure::None {
        return None;
    }
    let which = if covered.is_empty() { format!("all of {tree}") } else { shorten(&covered) };
    Some(match &host.enclosure {
        Enclosure::None => format!("uncover {which}: a fresh {tree} may not show more than the one that is there"),
        Enclosure::Service(unit) => format!(
            "uncover {which}: in `systemctl edit {unit}` set ProtectKernelTunables=no ProtectKernelLogs=no ProcSubset=all \
             ProtectProc=default InaccessiblePaths="
        ),
        Enclosure::Docker => format!("uncover {which}: start the container with --security-opt systempaths=unconfined"),
        Enclosure::Podman => format!("uncover {which}: start the container with --security-opt unmask=ALL"),
        Enclosure::Pod => format!("uncover {which}: set securityContext.procMount to Unmasked, with hostUsers: false"),
    })
}

fn shorten(paths: &[&str]) -> String {
    match paths {
        [one, two, three, rest @ ..] if !rest.is_empty() => format!("{one}, {two}, {three} and {} more", rest.len()),
        paths => paths.join(", "),
    }
}

/// What to tell whatever this process is shut in.
fn loosen(host: &Host) -> String {
    match &host.enclosure {
        Enclosure::Docker => "start the container with --security-opt seccomp=unconfined --security-opt \
                              apparmor=unconfined --security-opt systempaths=unconfined"
            .into(),
        Enclosure::Podman => "start the container with --security-opt seccomp=unconfined --security-opt unmask=ALL \
                              --security-opt label=disable"
            .into(),
        Enclosure::Pod => {
            "give the pod hostUsers: false, and its securityContext seccompProfile and appArmorProfile of \
                           type Unconfined and procMount: Unmasked"
                .into()
        }
        Enclosure::Service(unit) => format!(
            "in `systemctl edit {unit}` set RestrictNamespaces=no, and take out a SystemCallFilter= without @mount and clone3"
        ),
        Enclosure::None => "start agentd outside of the sandbox whose seccomp filter is on this process".into(),
    }
}

fn newer_kernel(host: &Host) -> Option<String> {
    let (major, minor) = OLDEST;
    let is_old = host.version().is_none_or(|version| version < OLDEST);
    is_old.then(|| format!("boot Linux {major}.{minor} or later (this is {})", host.release))
}

/// A setting, for now and for the next boot.
fn persistent(settings: &str, file: &str) -> String {
    let lines = settings.replace(' ', "\\n");
    format!("sudo sysctl -w {settings} (to keep it: printf '{lines}\\n' | sudo tee /etc/sysctl.d/{file})")
}

#[cfg(test)]
mod tests;
