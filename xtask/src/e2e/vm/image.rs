//! The guest's disk and kernels, made once of Debian packages and kept below the target directory.
//!
//! Invariant: an image is whole or is not there: it is made under another name, and its name says what it was made of.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// The userland, and the kernels that it is started with: Debian's releases. Together they are one image, for systemd is
/// not what differs between the two.
const USERLAND: &str = "trixie";

/// A kernel of the image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernel {
    pub(super) release: &'static str,
    pub(super) version: &'static str,
}

pub(super) const KERNELS: [Kernel; 2] =
    [Kernel { release: "bookworm", version: "6.1" }, Kernel { release: "trixie", version: "6.12" }];

/// git, strace and busybox are what tests use.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,dbus-user-session,libpam-systemd,udev,kmod,login,passwd,uidmap,\
    iproute2,procps,busybox-static,git,strace";

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

const CUSTOMIZE: &str = include_str!("image.sh");
const AGENT: &str = include_str!("agent.sh");

/// What came of looking for the image.
#[derive(Debug)]
pub(super) enum Found {
    At(PathBuf),
    /// It could not be made here, and why.
    Unavailable(String),
}

/// The directory with `disk`, `vmlinuz-RELEASE` and `initrd-RELEASE`; makes it where it is not in `cache`.
pub(super) fn ensure(cache: &Path) -> Result<Found> {
    let mut hasher = DefaultHasher::new();
    (USERLAND, KERNELS.map(|kernel| kernel.release), PACKAGES, CUSTOMIZE, AGENT).hash(&mut hasher);
    let image = cache.join(format!("image-{:016x}", hasher.finish()));
    if image.metadata().is_ok() {
        return Ok(Found::At(image));
    }
    if let Some(missing) = ["mmdebstrap", "mke2fs"].iter().find(|program| !is_installed(program)) {
        return Ok(Found::Unavailable(format!("{missing} is not installed")));
    }
    if fs::metadata(KEYRING).is_err() {
        return Ok(Found::Unavailable(format!("{KEYRING} is not there (Debian: debian-archive-keyring)")));
    }
    println!("building the guest's image");
    let begun = Instant::now();
    let making = image.with_extension("making");
    remove(&making)?;
    let tree = making.join("tmp");
    fs::create_dir_all(&tree).with_context(|| format!("create {}", tree.display()))?;
    // For an ordinary user mmdebstrap works as root of a user namespace, which is another id of his here.
    for directory in [&making, &tree] {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o777)).context("open the image to mmdebstrap")?;
    }
    let (customize, agent) = (making.join("image.sh"), making.join("agent.sh"));
    fs::write(&customize, CUSTOMIZE).context("write the image's script")?;
    fs::write(&agent, AGENT).context("write the guest's script")?;
    let mirror = mirror();
    let mut build = Command::new("mmdebstrap");
    build.args(["--quiet", "--variant=minbase", "--format=null", "--aptopt=Acquire::Languages \"none\""]);
    build.arg(format!("--include={PACKAGES}"));
    build.args(["man", "doc", "locale"].map(|what| format!("--dpkgopt=path-exclude=/usr/share/{what}/*")));
    build.arg("--customize-hook=sh \"$CUSTOMIZE\" \"$1\"").args([USERLAND, "/dev/null"]);
    build.args(KERNELS.map(|kernel| format!("deb [signed-by={KEYRING}] {mirror} {} main", kernel.release)));
    build.env("TMPDIR", &tree).env("OUT", &making).env("AGENT", &agent).env("CUSTOMIZE", &customize);
    build.env("KERNELS", KERNELS.map(|kernel| kernel.release).join(" "));
    let output = build.stdin(Stdio::null()).output().with_context(|| format!("start {build:?}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        remove(&making)?;
        if ["Failed to fetch", "Could not resolve", "Unable to connect"].iter().any(|words| said.contains(words)) {
            return Ok(Found::Unavailable(format!("no packages come from {mirror}")));
        }
        bail!("mmdebstrap: {}\n{said}", output.status);
    }
    remove(&tree)?;
    fs::set_permissions(&making, fs::Permissions::from_mode(0o755)).context("close the image")?;
    fs::rename(&making, &image).with_context(|| format!("name {}", image.display()))?;
    println!("built in {:.0} s", begun.elapsed().as_secs_f64());
    Ok(Found::At(image))
}

/// Where this machine's own apt gets Debian from.
fn mirror() -> String {
    let mut ask = Command::new("apt-get");
    ask.args(["indextargets", "--format", "$(LABEL) $(SITE)", "Created-By: Packages"]);
    let said = ask.output().map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let site = said.lines().find_map(|line| line.strip_prefix("Debian "));
    site.unwrap_or("http://deb.debian.org/debian").to_owned()
}

pub(super) fn is_installed(program: &str) -> bool {
    // As an ordinary user's PATH has no /usr/sbin, and Debian has mke2fs there.
    Command::new(program).arg("--version").env("PATH", search_path()).output().is_ok()
}

/// PATH with the administrator's programs.
pub(super) fn search_path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

/// Removes a directory that may not be there.
pub(super) fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}
