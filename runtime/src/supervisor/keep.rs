//! `--keep`: what a job wrote to its root, as a layer beside its record.
//!
//! The box is gone, and its tmpfs lives on by the descriptor that PID 1 sent while it was built. Invariant: a job's end is
//! told whatever happens here: what could not be kept is told with it.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use agentd_rootfs::commit::{KeepError, KeptLayer, Upper};
use nix::sys::signal::{SigSet, Signal};

use crate::job::record::Kept;
use crate::job::store::LAYER;

/// Writes the layer into the job's directory.
pub(super) fn keep(upper: Upper, directory: &Path) -> Kept {
    match write(upper, directory) {
        Ok(layer) => Kept::Layer(layer),
        Err(error) => {
            let reason = match std::error::Error::source(&error) {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            };
            Kept::Nothing { reason }
        }
    }
}

fn write(upper: Upper, directory: &Path) -> Result<KeptLayer, KeepError> {
    // What stops a job stops this too; the job itself has heard what came before.
    let stopping: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT].into_iter().collect();
    let signals = agentd_sys::signal::descriptor(&stopping).map_err(KeepError::Write)?;
    let partial = directory.join(format!("{LAYER}.partial"));
    let kept = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&partial)
        .map_err(KeepError::Write)
        .and_then(|file| upper.keep(file, &mut || signals.read_signal().is_ok_and(|signal| signal.is_some())));
    let kept = kept.and_then(|layer| {
        fs::rename(&partial, directory.join(LAYER)).map_err(KeepError::Write)?;
        Ok(layer)
    });
    if kept.is_err() {
        // The error that is returned says more than this one could; `agentd rm` takes what is left.
        fs::remove_file(&partial).unwrap_or_default();
    }
    kept
}
