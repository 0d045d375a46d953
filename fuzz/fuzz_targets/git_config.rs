//! A configuration of git, read for what it has git run.
#![no_main]

#[path = "../../runtime/src/launch/protect/config.rs"]
mod config;

use config::Configured;

libfuzzer_sys::fuzz_target!(|untrusted: &[u8]| {
    // As the file is read: a byte that is no text is a character all the same.
    for found in config::configured(&String::from_utf8_lossy(untrusted)) {
        let (Configured::Hooks(path) | Configured::Include(path) | Configured::Worktree(path)) = found;
        assert!(!path.is_empty() && !path.contains('\0'), "{path:?}");
    }
});
