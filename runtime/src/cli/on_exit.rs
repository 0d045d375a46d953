//! `--on-exit`: a program of the host that hears of a job's end.
//!
//! Invariant: its words are the user's, split at spaces and given to no shell; of the job it gets the id, the name, one word
//! for the state and the exit code, in variables: nothing that a payload has said.

use std::process::{Command, Stdio};

use super::say;
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

/// Runs what the plan names, if anything, and waits for it; `None` is a job that could not be supervised.
pub(super) fn run(plan: &Plan, state: Option<&State>) {
    let Some((program, arguments)) = plan.on_exit.split_first() else { return };
    let code = state.and_then(State::exit_code).unwrap_or(FAILED);
    let mut command = Command::new(program);
    // Standard output is the job's alone.
    command.args(arguments).stdin(Stdio::null()).stdout(std::io::stderr());
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
