//! `cargo xtask fuzz`: builds the fuzz targets of `fuzz/` and runs each for some seconds, as many at once as there are
//! cores.
//!
//! Invariant: the list of targets is `fuzz/Cargo.toml`'s. A crash, an input that takes ten seconds and one that takes
//! two gibibytes all fail, and the input is kept; what was interesting is kept too, and is where the next run starts.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::account::succeed;
use crate::checks::{self, Outcome};
use crate::workspace;

/// Pinned, so that a check does not change its mind between two machines.
const CARGO_FUZZ: &str = "0.13.2";
/// Seconds a target in `cargo xtask e2e`. A build from nothing takes four minutes of processor time (fuzz/Cargo.toml).
const SMOKE: u32 = 5;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run only this target
    target: Option<String>,
    /// How long each target runs
    #[arg(long, default_value_t = 10)]
    seconds: u32,
}

#[derive(Deserialize)]
struct Manifest {
    bin: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

pub(crate) fn run(arguments: &Args) -> Result<bool> {
    let text = std::fs::read_to_string(directory().join("Cargo.toml")).context("read fuzz/Cargo.toml")?;
    let manifest: Manifest = toml::from_str(&text).context("read fuzz/Cargo.toml")?;
    let mut targets: Vec<String> = manifest.bin.into_iter().map(|target| target.name).collect();
    if let Some(one) = &arguments.target {
        ensure!(targets.contains(one), "there is no fuzz target {one}; there are {}", targets.join(", "));
        targets = vec![one.clone()];
    }
    let place = Place::build()?;
    let (queue, passed) = (Mutex::new(targets.into_iter()), AtomicBool::new(true));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(target) = queue.lock().ok().and_then(|mut queue| queue.next()) {
                    match place.fuzz(&target, arguments.seconds) {
                        Ok(said) => println!("{target}: {said}"),
                        Err(error) => {
                            println!("{target}: FAILED: {error:#}");
                            passed.store(false, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    Ok(passed.into_inner())
}

/// Every target for [`SMOKE`] seconds; a skip where libFuzzer, which is C++, cannot be built.
pub(crate) fn smoke() -> Result<Outcome> {
    let compiler = Command::new("c++").arg("--version").stdout(Stdio::null()).status();
    if !compiler.is_ok_and(|status| status.success()) {
        return Ok(Outcome::Skipped("libFuzzer needs a C++ compiler (Debian: g++)".into()));
    }
    Ok(run(&Args { target: None, seconds: SMOKE })?.into())
}

fn directory() -> PathBuf {
    workspace::root().join("fuzz")
}

/// Where the programs, the corpora and the inputs that crashed are.
struct Place {
    target: PathBuf,
}

impl Place {
    fn build() -> Result<Place> {
        let target = workspace::metadata()?.target_directory.join("fuzz");
        let cargo_fuzz = checks::installed("cargo-fuzz", CARGO_FUZZ)?;
        let mut build = Command::new(cargo_fuzz);
        build.current_dir(directory()).args(["build", "--sanitizer", "none", "--target-dir"]).arg(&target);
        // The toolchain is a stable one, and cargo-fuzz asks for the coverage counters of a nightly one.
        succeed(build.env("RUSTC_BOOTSTRAP", "1").env_remove("CARGO_TARGET_DIR"))?;
        let mut seeds = workspace::cargo();
        seeds.args(["run", "--quiet", "--package", "agentd-tests", "--bin", "fuzz-seeds", "--"]);
        succeed(seeds.arg(target.join("seeds")))?;
        Ok(Place { target })
    }

    fn fuzz(&self, target: &str, seconds: u32) -> Result<String> {
        let made = |name: &str| {
            let path = self.target.join(name).join(target);
            std::fs::create_dir_all(&path).with_context(|| format!("make {}", path.display())).map(|()| path)
        };
        let (corpus, crashes) = (made("corpus")?, made("crashes")?);
        let mut fuzz = Command::new(self.program(target)?);
        fuzz.arg(format!("-max_total_time={seconds}")).args(["-max_len=65536", "-timeout=10", "-rss_limit_mb=2048"]);
        fuzz.arg(format!("-artifact_prefix={}/", crashes.display())).arg(&corpus);
        let seeds = [self.target.join("seeds").join(target), directory().join("seeds").join(target)];
        fuzz.args(seeds.iter().filter(|path| path.metadata().is_ok()));
        // What a target writes is small and gone in a moment.
        let output = fuzz.env("TMPDIR", "/dev/shm").output().with_context(|| format!("start {fuzz:?}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        let tail: Vec<&str> = said.lines().rev().take(40).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        ensure!(
            output.status.success(),
            "{}; its input lies in {}\n{}",
            output.status,
            crashes.display(),
            tail.join("\n")
        );
        let done = said.lines().rev().find_map(|line| line.strip_prefix("Done "));
        Ok(done.context("libFuzzer did not say that it was done")?.to_owned())
    }

    fn program(&self, target: &str) -> Result<PathBuf> {
        let entries = std::fs::read_dir(&self.target).with_context(|| format!("list {}", self.target.display()))?;
        let programs = entries.flatten().map(|entry| entry.path().join("release").join(target));
        let found = programs.into_iter().find(|path: &PathBuf| path.metadata().is_ok_and(|found| found.is_file()));
        found.with_context(|| format!("cargo-fuzz built no {target} below {}", self.target.display()))
    }
}
