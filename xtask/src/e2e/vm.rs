//! The tier of tests that need a machine of their own: a Debian guest with pure cgroup v2 and systemd as PID 1, as root,
//! as a user with ranges of subordinate ids and as a user without, on each kernel.
//!
//! ```text
//! image    Debian packages → a disk, kernels       once, below the target directory
//! machine  boots it, saves it, restores it         a fresh guest a run, in two seconds
//! (here)   test programs → a second disk → what they said
//! ```
//!
//! Invariant: a guest that dies, or a program that says no result, is a failure of each program that was to run.

mod image;
mod machine;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::tally::{self, Tally};
use crate::account::succeed;
use crate::workspace::Program;
use image::{Found, KERNELS, Kernel};
use machine::{Machine, Reboot, Saved};

/// Who runs the tests, in the guest.
const USERS: [&str; 3] = ["root", "ranges", "plain"];

/// Beside the `vm_` tests: those that another kernel, another init or real subordinate ids could make fail. (The others show
/// each attack without its wall first, and a hardened distribution's kernel has walls of its own; or expect the newest Landlock.)
/// And the storm, for there each job has a cgroup to leave behind.
const ALSO: &[&str] = &["userns_mounts", "crash_storm"];

/// The program whose tests run before and after the guest is booted again, on the newest kernel.
const AROUND_REBOOTS: &str = "vm_reboot";

/// What its tests' names begin with, in their order; and how the guest goes down before them.
const PHASES: [(&str, Option<Reboot>); 3] =
    [("before_", None), ("rebooted_", Some(Reboot::InOrder)), ("cut_off_", Some(Reboot::PowerCut))];

/// One user's tests on one kernel.
const USER_WITHIN: Duration = Duration::from_secs(1500);

const TESTS: &str = include_str!("vm/tests.sh");

/// Whether `program` runs nowhere but in the guest.
pub(super) fn is_only_for_guests(program: &Program) -> bool {
    program.kind == "test" && program.target.starts_with("vm_")
}

fn is_for_guests(program: &Program) -> bool {
    is_only_for_guests(program) || (program.kind == "test" && ALSO.contains(&program.target.as_str()))
}

/// What one program, or the guest as a whole, came to as one user.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) tier: &'static str,
    /// The user and the kernel.
    pub(super) user: String,
    pub(super) tally: Tally,
    pub(super) skips: Vec<String>,
}

/// The guest, once on each kernel, ready to be restored.
#[derive(Debug)]
pub(super) struct Guest {
    saved: Vec<Saved>,
    /// Where one runs.
    directory: PathBuf,
    /// Held as long as this: two runs at once would make the same image.
    _lock: File,
}

/// Makes what is not below `target_directory` yet; or says why there can be no guest here.
pub(super) fn prepare(target_directory: &Path) -> Result<std::result::Result<Guest, String>> {
    if let Some(reason) = machine::missing() {
        return Ok(Err(reason));
    }
    let cache = target_directory.join("guest");
    fs::create_dir_all(&cache).with_context(|| format!("create {}", cache.display()))?;
    let lock = File::create(cache.join("lock")).context("make the guest's lock")?;
    lock.lock().context("wait for another run")?;
    let image = match image::ensure(&cache)? {
        Found::At(image) => image,
        Found::Unavailable(reason) => return Ok(Err(reason)),
    };
    let saved = KERNELS.into_iter().map(|kernel| Saved::ensure(&cache, &image, kernel)).collect::<Result<_>>()?;
    Ok(Ok(Guest { saved, directory: cache.join("running"), _lock: lock }))
}

/// What it is that there can be no guest.
pub(super) fn skipped(programs: &[Program], reason: &str) -> Ended {
    println!("SKIPPED: {reason}");
    let count = programs.iter().filter(|program| is_for_guests(program)).count() * USERS.len() * KERNELS.len();
    let tally = Tally { skipped: u32::try_from(count).unwrap_or(u32::MAX), ..Tally::default() };
    let skips = vec![format!("test programs in a guest: {reason}"); count];
    Ended { tier: "vm_", user: "the guest".into(), tally, skips }
}

/// Runs those of `programs` that are for guests, on every kernel and as every user. `stand_ins` are programs that tests
/// look for beside their own.
pub(super) fn run(
    Guest { saved, directory, _lock }: &Guest,
    programs: &[Program],
    stand_ins: &[&Path],
    agentd: &Path,
    filter: Option<&str>,
) -> Result<Vec<Ended>> {
    let programs: Vec<&Program> = programs.iter().filter(|program| is_for_guests(program)).collect();
    image::remove(directory)?;
    fs::create_dir(directory).with_context(|| format!("create {}", directory.display()))?;
    pack(&programs, stand_ins, agentd, directory)?;
    let (around, programs): (Vec<&Program>, Vec<&Program>) =
        programs.into_iter().partition(|program| program.target == AROUND_REBOOTS);
    let mut ended = Vec::new();
    for saved in saved {
        // One guest for all three, as long as it answers.
        let mut guest = None;
        for user in USERS {
            let mut machine = match guest.take() {
                Some(machine) => machine,
                None => saved.restore(directory)?,
            };
            // A word for a shell in the guest; test names have no quotes.
            let command = format!("bash /payload/tests.sh '{}'", filter.unwrap_or_default().replace('\'', ""));
            if one(&mut machine, (saved.kernel, user), &programs, &command, &mut ended) {
                guest = Some(machine);
            }
        }
    }
    if filter.is_none_or(|filter| AROUND_REBOOTS.contains(filter))
        && let Some(newest) = saved.last()
    {
        let mut machine = newest.restore(directory)?;
        for (phase, reboot) in PHASES {
            if let Err(error) = reboot.map_or(Ok(()), |how| machine.reboot(how)) {
                println!("{error:#}");
                let user = format!("root {}", newest.kernel.version);
                ended.push(Ended { tier: "vm_", user, tally: Tally::of(false), skips: Vec::new() });
                break;
            }
            one(
                &mut machine,
                (newest.kernel, "root"),
                &around,
                &format!("bash /payload/tests.sh '' {phase}"),
                &mut ended,
            );
        }
    }
    image::remove(directory)?;
    Ok(ended)
}

/// Makes the second disk, `payload` in `directory`, of what the guest is to run.
fn pack(programs: &[&Program], stand_ins: &[&Path], agentd: &Path, directory: &Path) -> Result<()> {
    let tree = directory.join("tree");
    let deps = tree.join("programs/deps");
    fs::create_dir_all(&deps).with_context(|| format!("create {}", deps.display()))?;
    let put = |from: &Path, to: &Path| {
        fs::copy(from, to).with_context(|| format!("copy {} for the guest", from.display())).map(drop)
    };
    put(agentd, &tree.join("agentd"))?;
    for program in programs {
        put(&program.path, &deps.join(&program.target))?;
    }
    for stand_in in stand_ins {
        put(stand_in, &tree.join("programs").join(stand_in.file_name().context("a program without a name")?))?;
    }
    fs::write(tree.join("tests.sh"), TESTS).context("write the guest's list of tests")?;
    let payload = directory.join("payload");
    File::create(&payload).and_then(|file| file.set_len(machine::PAYLOAD)).context("make the payload")?;
    let mut format = Command::new("mke2fs");
    format.env("PATH", image::search_path()).args(["-q", "-t", "ext4", "-O", "^has_journal"]);
    format.args(["-E", "root_owner=0:0", "-d"]).arg(&tree).arg(&payload);
    succeed(&mut format)?;
    image::remove(&tree)
}

/// All of `programs` as a user, by `command`, and whether the guest is fit for the next.
fn one(
    machine: &mut Machine,
    (kernel, user): (Kernel, &str),
    programs: &[&Program],
    command: &str,
    ended: &mut Vec<Ended>,
) -> bool {
    let name = format!("{user} {}", kernel.version);
    let mut heard = Heard::default();
    let orderly = machine.run(user, command, Instant::now() + USER_WITHIN, &mut |line| heard.line(line));
    let mut tell = |tier, tally: Tally, skips| ended.push(Ended { tier, user: name.clone(), tally, skips });
    for program in programs {
        let said = heard.programs.iter().find(|one| one.name == program.target);
        let text = said.map_or("", |one| &one.text);
        let Some((tally, skips)) = said.and_then(|one| tally::read(text, one.status? == 0)) else {
            println!("{name:<12} {:<28} CRASHED: no result that adds up\n{text}", program.target);
            tell(tally::tier(program), Tally::of(false), Vec::new());
            continue;
        };
        if tally == Tally::default() {
            continue;
        }
        let Tally { passed, failed, skipped } = tally;
        let seconds = said.map_or(0.0, |one| one.took.as_secs_f64());
        let target = &program.target;
        println!("{name:<12} {target:<28} {passed:>4} passed, {failed} failed, {skipped} skipped  {seconds:.1} s");
        if failed > 0 {
            println!("{text}");
        }
        tell(tally::tier(program), tally, skips);
    }
    for what in &heard.left {
        println!("left behind: {what}");
    }
    match &orderly {
        Ok(0) => {}
        Ok(code) => println!("{name}: tests.sh exited with {code}\n{}", heard.outside),
        Err(error) => println!("{name}: {error:#}\n{}", heard.outside),
    }
    let is_orderly = orderly.is_ok_and(|code| code == 0);
    tell("nothing left behind", Tally::of(is_orderly && heard.left.is_empty()), Vec::new());
    is_orderly
}

/// What tests.sh said, taken apart at its marks.
#[derive(Debug, Default)]
struct Heard {
    programs: Vec<Said>,
    left: Vec<String>,
    /// What came before the first program.
    outside: String,
}

#[derive(Debug)]
struct Said {
    name: String,
    text: String,
    begun: Instant,
    took: Duration,
    status: Option<i32>,
}

impl Heard {
    fn line(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix("@@program ") {
            let (begun, took) = (Instant::now(), Duration::ZERO);
            self.programs.push(Said { name: name.to_owned(), text: String::new(), begun, took, status: None });
            return;
        }
        if let Some(what) = line.strip_prefix("@@left ") {
            self.left.push(what.to_owned());
            return;
        }
        let Some(program) = self.programs.last_mut().filter(|program| program.status.is_none()) else {
            self.outside.push_str(line);
            self.outside.push('\n');
            return;
        };
        if let Some(status) = line.strip_prefix("@@status ") {
            program.status = status.parse().ok();
            program.took = program.begun.elapsed();
            return;
        }
        program.text.push_str(line);
        program.text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_says_is_taken_apart_at_its_marks() {
        let mut heard = Heard::default();
        for line in ["early", "@@program a", "one", "two", "@@status 0", "@@program b", "three", "@@left process 7"] {
            heard.line(line);
        }
        let told: Vec<_> = heard.programs.iter().map(|one| (&one.name[..], &one.text[..], one.status)).collect();
        assert_eq!(told, [("a", "one\ntwo\n", Some(0)), ("b", "three\n", None)]);
        assert_eq!((&heard.outside[..], &heard.left[..]), ("early\n", &["process 7".to_owned()][..]));
    }
}
