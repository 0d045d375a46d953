//! Running one test program as one user.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};

use super::tally::{self, Tally};
use crate::account::Account;
use crate::workspace::Program;

/// A test program that runs longer is stopped, and that is a failure.
const LIMIT_SECONDS: &str = "600";

/// Who runs a test.
#[derive(Debug)]
pub(super) struct User {
    pub(super) name: &'static str,
    account: Option<Account>,
    /// What the tests find programs by.
    path: OsString,
}

impl User {
    pub(super) fn root(path: OsString) -> Self {
        Self { name: "root", account: None, path }
    }

    pub(super) fn ordinary(account: Account, path: OsString) -> Self {
        Self { name: "a user", account: Some(account), path }
    }

    /// The ordinary user who started this.
    pub(super) fn invoking(path: OsString) -> Self {
        Self { name: "a user", account: None, path }
    }

    /// His uid, when every process of his is known to be a test's.
    pub(super) fn uid(&self) -> Option<u32> {
        self.account.as_ref().map(|account| account.uid)
    }

    fn command(&self, program: &str) -> Command {
        let Some(account) = &self.account else {
            let mut command = Command::new(program);
            command.env_clear();
            for name in ["HOME", "USER", "LOGNAME", "XDG_RUNTIME_DIR"] {
                command.envs(std::env::var_os(name).map(|value| (name, value)));
            }
            command.env("PATH", &self.path);
            return command;
        };
        let mut command = account.command(program);
        command.env("PATH", &self.path);
        command
    }
}

/// What came of a test program.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) tally: Tally,
    /// Why tests were skipped, one entry a test.
    pub(super) skips: Vec<String>,
}

/// Runs `program` and tells how it went; `None` when it has no test to run.
pub(super) fn run(user: &User, program: &Program, agentd: &Path, filter: Option<&str>) -> Result<Option<Ended>> {
    let mut command = user.command("timeout");
    command.args(["--kill-after=10", LIMIT_SECONDS]).arg(&program.path).arg("--show-output");
    if let Some(filter) = filter.filter(|filter| !program.target.contains(filter)) {
        command.arg(filter);
    }
    command.env("AGENTD_BIN", agentd).env("RUST_BACKTRACE", "1").env("CARGO_MANIFEST_DIR", &program.package_directory);
    command.envs(std::env::var_os("AGENTD_TEST_REQUIRE").map(|value| ("AGENTD_TEST_REQUIRE", value)));
    // Where cargo would start it, when that user can be there; else his home.
    if user.account.as_ref().map_or(Ok(true), |account| account.can_enter(&program.package_directory))? {
        command.current_dir(&program.package_directory);
    }
    let start = Instant::now();
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    let seconds = start.elapsed().as_secs_f64();
    let said = String::from_utf8_lossy(&output.stdout);
    let name = format!("{:<7} {:<28}", user.name, label(program));
    let Some((tally, skips)) = tally::read(&said, output.status.success()) else {
        println!("{name} CRASHED: {}, no result that adds up", output.status);
        println!("{said}{}", String::from_utf8_lossy(&output.stderr));
        return Ok(Some(Ended { tally: Tally::of(false), skips: Vec::new() }));
    };
    if tally == Tally::default() {
        return Ok(None);
    }
    let Tally { passed, failed, skipped } = tally;
    println!("{name} {passed:>4} passed, {failed} failed, {skipped} skipped  {seconds:.1} s");
    if failed > 0 {
        println!("{said}{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(Some(Ended { tally, skips }))
}

/// Binaries and libraries of two packages may share a name's stem; the package's directory tells them apart.
fn label(program: &Program) -> String {
    let package = program.package_directory.file_name().unwrap_or_default().to_string_lossy();
    format!("{package}/{} {}", program.target, program.kind)
}
