//! `--on-exit`: a program of the host that hears of a job's end.
//!
//! Invariant: its words are the user's, split at spaces and given to no shell; of the job it gets the id, the name, one word
//! for the state and the exit code, in variables: nothing that a payload has said. Which program that is, is settled before
//! the job begins, and its file is held where the job can write: else the payload would write what the host runs.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use rustix::fs::{Access, AtFlags, CWD, FileType, access, statat};

use super::environment::NOTIFY_SOCKET;
use super::{printable, say};
use crate::job::record::State;
use crate::launch::plan::Plan;
use crate::supervisor::FAILED;

/// A command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Words(pub(super) Vec<String>);

/// Splits at spaces.
pub(super) fn words(text: &str) -> Result<Words, String> {
    let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    if words.is_empty() || text.contains('\0') { Err("name a program".into()) } else { Ok(Words(words)) }
}

/// The words, with the program's as the path it has now, and the files among them. One that is not there yet would be the
/// payload's to make.
pub(super) fn located(Words(mut words): Words) -> Result<(Vec<String>, Vec<PathBuf>)> {
    let file = |word: &str| std::path::absolute(word).map(|path| is_file(&path).then_some(path));
    let mut files = Vec::new();
    for word in words.iter().skip(1) {
        files.extend(file(word)?);
    }
    if let Some(program) = words.first_mut() {
        let found = if program.contains('/') { file(program)? } else { searched(program, env::var_os("PATH")) };
        let found = found.with_context(|| format!("--on-exit: there is no program {}", printable(program)))?;
        *program = found.to_str().context("--on-exit: the program's path is not UTF-8")?.to_owned();
        files.push(found);
    }
    Ok((words, files))
}

fn is_file(path: &Path) -> bool {
    statat(CWD, path, AtFlags::empty()).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
}

/// Where execvp(3) would find `program`, but in no directory that is relative: another one when the job ends.
fn searched(program: &str, path: Option<OsString>) -> Option<PathBuf> {
    let places: Vec<PathBuf> = env::split_paths(&path?).collect();
    let is_program = |path: &Path| is_file(path) && access(path, Access::EXEC_OK).is_ok();
    places
        .into_iter()
        .filter(|place| place.is_absolute())
        .map(|place| place.join(program))
        .find(|path| is_program(path))
}

/// Runs what the plan names, if anything, and waits for it; `None` is a job that could not be supervised.
pub(super) fn run(plan: &Plan, state: Option<&State>) {
    let Some((program, arguments)) = plan.on_exit.split_first() else { return };
    let code = state.and_then(State::exit_code).unwrap_or(FAILED);
    let mut command = Command::new(program);
    // Standard output is the job's alone.
    command.args(arguments).stdin(Stdio::null()).stdout(std::io::stderr()).env_remove(NOTIFY_SOCKET);
    command.env("AGENTD_JOB", plan.id.as_str()).env("AGENTD_EXIT_CODE", code.to_string());
    command.env("AGENTD_STATE", state.map_or("failed", State::word));
    command.env("AGENTD_NAME", plan.name.as_ref().map_or("", |name| name.as_str()));
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => say(&format!("--on-exit {program}: {status}")),
        Err(error) => say(&format!("--on-exit {program} cannot be run: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_at_spaces_and_nothing_else_is_special() {
        assert_eq!(words(" a  $b \"c d\" ").unwrap().0, ["a", "$b", "\"c", "d\""]);
        assert!(words("  ").is_err() && words("a\0b").is_err());
    }
}
