//! The machine's own Rust, for a box to use.

use std::path::PathBuf;
use std::process::Command;

/// Flags of `agentd run` with which a box has the toolchain that cargo would use here, before `path`; `None` where who runs
/// the test may not read it.
#[must_use]
pub fn toolchain(path: &str) -> Option<Vec<String>> {
    let said = Command::new("rustc").args(["--print", "sysroot"]).output().ok()?;
    let sysroot = PathBuf::from(String::from_utf8(said.stdout).ok()?.trim());
    sysroot.join("bin/cargo").metadata().ok()?;
    // What a box of the host's own software sees anyway.
    let is_shown = ["/usr", "/opt", "/nix"].iter().any(|shown| sysroot.starts_with(shown));
    let bin = if is_shown { sysroot.join("bin") } else { "/mnt/rust/bin".into() };
    let mut flags = vec!["-e".to_owned(), format!("PATH={}:{path}", bin.display())];
    if !is_shown {
        flags.extend(["--mount".to_owned(), format!("type=bind,src={},dst=/mnt/rust", sysroot.display())]);
    }
    Some(flags)
}
