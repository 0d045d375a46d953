//! `cargo xtask e2e`: every check and every test, as root and as an ordinary user.
//!
//! Invariant: the closing line counts each (test, user) pair once; a check that could not be made, a pass that was not
//! run and a test binary that ended without a result are told, never dropped.

mod execute;
mod leftovers;
mod lent;
mod program;
mod tally;
mod vm;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::account::{self, Account};
use crate::checks::{self, Outcome};
use crate::{fuzz, order, tidy, workspace};
use execute::{Ended, User};
use leftovers::Snapshot;
use tally::Tally;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run only tests whose name, or whose file's name, contains this; checks are left out
    filter: Option<String>,
    /// Run only what runs in a guest: pure cgroup v2, systemd as PID 1, several kernels
    #[arg(long)]
    vm: bool,
}

/// Tier and user to what came of it.
type Table = BTreeMap<(&'static str, String), Tally>;

pub(crate) fn run(arguments: &Args) -> Result<bool> {
    let begun = Instant::now();
    let say = |what: &str| println!("== {what} (after {:.0} s)", begun.elapsed().as_secs_f64());
    let account = if account::am_root()? { Some(Account::ensure()?) } else { None };
    let target_directory = target_directory(account.as_ref())?;
    // Only tests on this machine have a use for it.
    let lent = if arguments.vm {
        Vec::new()
    } else {
        lent::directories(&target_directory, account.as_ref(), arguments.filter.as_deref())?
    };
    let path = lent::path(&lent)?;
    let users = match account {
        Some(account) => vec![User::root(path.clone()), User::ordinary(account, path)],
        None => vec![User::invoking(path)],
    };
    let mut table = Table::new();
    let filter = arguments.filter.as_deref();
    let is_whole = filter.is_none() && !arguments.vm;
    // A filter is for a quick look, and a guest is not quick.
    let has_guests = arguments.vm || filter.is_none();
    let (Beside { agentd, map, guest }, programs) = std::thread::scope(|scope| {
        let beside = scope.spawn(|| Beside::make(&target_directory, has_guests));
        if is_whole {
            say("checks");
            record_checks(&mut table, users[0].name, &target_directory)?;
        }
        say("building agentd and the tests");
        let mut build = workspace::cargo();
        build.args(["test", "--workspace", "--no-run"]).arg("--target-dir").arg(&target_directory);
        let programs = workspace::programs(&mut build)?;
        let beside = beside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        anyhow::Ok((beside, programs))
    })?;
    // Who asks for the guest alone, or by the tests' own variable, is not to take a skip for a pass.
    let required = std::env::var("AGENTD_TEST_REQUIRE").unwrap_or_default();
    if let Some(Err(reason)) = &guest {
        ensure!(!arguments.vm && required.split(',').all(|word| word != "guest"), "no guest: {reason}");
    }
    if is_whole {
        let is_current = order::is_current(map.as_deref())?;
        println!("order of functions: {}", if is_current { "ok" } else { "FAILED" });
        let is_as_promised = program::is_as_promised(&agentd)?;
        println!("static, and small: {}", if is_as_promised { "ok" } else { "FAILED" });
        let checks = table.entry(("checks", users[0].name.to_owned())).or_default();
        *checks += Tally::of(is_current);
        *checks += Tally::of(is_as_promised);
    }
    let (mut programs, stand_ins): (Vec<_>, Vec<_>) = programs
        .into_iter()
        .partition(|program| program.path.parent().is_some_and(|directory| directory.ends_with("deps")));
    programs.sort_by(|a, b| (tally::tier(a), &a.target, &a.path).cmp(&(tally::tier(b), &b.target, &b.path)));
    programs.dedup_by(|a, b| a.path == b.path);

    let mut reasons: BTreeMap<String, u32> = BTreeMap::new();
    for user in users.iter().filter(|_| !arguments.vm) {
        say(&format!("tests as {}", user.name));
        let before = Snapshot::take(user)?;
        for program in programs.iter().filter(|program| !vm::is_only_for_guests(program)) {
            let ended = execute::run(user, program, &agentd, filter)?;
            let Some(Ended { tally, skips }) = ended else { continue };
            *table.entry((tally::tier(program), user.name.to_owned())).or_default() += tally;
            for reason in skips {
                *reasons.entry(reason).or_default() += 1;
            }
        }
        let left = before.left_behind(user)?;
        for what in &left {
            println!("left behind: {what}");
        }
        *table.entry(("nothing left behind", user.name.to_owned())).or_default() += Tally::of(left.is_empty());
    }
    if let Some(guest) = guest {
        say("tests in a guest");
        let stand_ins = stand_ins.iter().filter(|program| program.package_directory.ends_with("tests"));
        let stand_ins: Vec<&Path> = stand_ins.map(|program| program.path.as_path()).collect();
        let ended = match guest {
            Ok(guest) => vm::run(&guest, &programs, &stand_ins, &agentd, filter)?,
            Err(reason) => vec![vm::skipped(&programs, &reason)],
        };
        for ended in ended {
            *table.entry((ended.tier, ended.user)).or_default() += ended.tally;
            for reason in ended.skips {
                *reasons.entry(reason).or_default() += 1;
            }
        }
    }
    ensure!(table.keys().any(|(tier, _)| *tier != "nothing left behind"), "no test has such a name");
    Ok(conclude(&table, &reasons, users.len() == 1 && !arguments.vm))
}

/// What one core makes while the other is at the checks: agentd, most of which is one long link, and the guest.
struct Beside {
    agentd: PathBuf,
    map: Option<PathBuf>,
    guest: Option<std::result::Result<vm::Guest, String>>,
}

impl Beside {
    fn make(target_directory: &Path, with_guest: bool) -> Result<Beside> {
        let (agentd, map) = workspace::release_program_with_map("agentd", "agentd", target_directory)?;
        let guest = with_guest.then(|| vm::prepare(target_directory)).transpose()?;
        Ok(Beside { agentd, map, guest })
    }
}

fn conclude(table: &Table, reasons: &BTreeMap<String, u32>, not_as_root: bool) -> bool {
    println!("\n{:<20} {:<12} {:>7} {:>7} {:>7}", "tier", "as", "passed", "failed", "skipped");
    let mut sum = Tally::default();
    for ((tier, user), tally) in table {
        println!("{tier:<20} {user:<12} {:>7} {:>7} {:>7}", tally.passed, tally.failed, tally.skipped);
        sum += *tally;
    }
    for (reason, count) in reasons {
        println!("skipped {count}: {reason}");
    }
    if not_as_root {
        println!("The pass as root was NOT run: an ordinary user started this.");
    }
    println!("{} passed, {} failed, {} skipped", sum.passed, sum.failed, sum.skipped);
    sum.failed == 0
}

fn record_checks(table: &mut Table, user: &'static str, target_directory: &Path) -> Result<()> {
    let mut outcomes = vec![("tidy", tidy::check()?.into())];
    outcomes.extend(checks::run(target_directory)?);
    outcomes.push(("fuzz", fuzz::smoke()?));
    for (name, outcome) in outcomes {
        let tally = table.entry(("checks", user.to_owned())).or_default();
        match outcome {
            Outcome::Passed => {
                *tally += Tally::of(true);
                println!("{name}: ok");
            }
            Outcome::Failed => {
                *tally += Tally::of(false);
                println!("{name}: FAILED");
            }
            Outcome::Skipped(why) => {
                tally.skipped += 1;
                println!("{name}: SKIPPED: {why}");
            }
        }
    }
    Ok(())
}

/// Where to build: cargo's own target directory, unless the ordinary user cannot get there (a checkout in /root). Test
/// programs know the paths of their stand-ins from the compiler, so a copy of them elsewhere would not do.
fn target_directory(account: Option<&Account>) -> Result<PathBuf> {
    let usual = workspace::metadata()?.target_directory;
    let Some(account) = account else { return Ok(usual) };
    let there = usual.ancestors().find(|ancestor| ancestor.metadata().is_ok()).context("no target directory")?;
    if account.can_enter(there)? {
        return Ok(usual);
    }
    let reachable = PathBuf::from("/var/tmp/agentd-e2e-target");
    println!("{} is out of reach for the ordinary user: building in {}", there.display(), reachable.display());
    Ok(reachable)
}
