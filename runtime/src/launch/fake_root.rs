//! `--fake-root`: what the box has of its own beside the filter's rules (docs/adr/0012).
//!
//! Invariant: the image is looked at through no link of its.

use std::os::fd::OwnedFd;

use agentd_init::plan::{Addition, Source};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

use super::PlanError;

/// What a program has to be told: where it looks for settings, which both read in the order of names, and the setting.
const SETTINGS: [(&str, &str); 2] = [
    // Downloads are done by a user of apt's own, and it looks afterwards whether it has become that user.
    ("etc/apt/apt.conf.d", "APT::Sandbox::User \"root\";\n"),
    // To sync a file that nobody may write dpkg opens it again for writing, which takes root's capabilities; the box is on a
    // tmpfs, where there is nothing to sync to.
    ("etc/dpkg/dpkg.cfg.d", "force-unsafe-io\n"),
];
const FILE: &str = "zz-agentd";

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// The settings of those programs that the image has.
pub(super) fn settings(layers: &[Source]) -> Result<Vec<Addition>, PlanError> {
    let mut opened = Vec::with_capacity(layers.len());
    for layer in layers {
        let directory = openat(CWD, &layer.path, DIRECTORY, Mode::empty());
        opened.push((layer, directory.map_err(|errno| unusable(layer, errno))?));
    }
    let mut additions = Vec::new();
    for (directory, setting) in SETTINGS {
        for (layer, opened) in &opened {
            if has(opened, directory).map_err(|errno| unusable(layer, errno))? {
                let (path, contents) = (format!("{directory}/{FILE}"), setting.to_owned());
                additions.push(Addition::File { path, contents });
                break;
            }
        }
    }
    Ok(additions)
}

fn unusable(layer: &Source, errno: Errno) -> PlanError {
    PlanError::HostPath { what: "layer", path: layer.path.clone(), cause: errno.into(), hint: None }
}

/// Whether a layer has that directory. By way of a link it is none: what is laid over a link covers it.
fn has(layer: &OwnedFd, directory: &str) -> Result<bool, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match openat2(layer, directory, DIRECTORY, Mode::empty(), resolve) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(false),
        Err(errno) => Err(errno),
    }
}
