//! The workspace as cargo sees it: where it is, its packages, the programs a build made.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// The directory of the workspace's Cargo.toml.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// What `cargo metadata --no-deps` says.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) packages: Vec<Package>,
    #[serde(default)]
    pub(crate) target_directory: PathBuf,
    #[serde(default)]
    pub(crate) workspace_root: PathBuf,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) manifest_path: PathBuf,
    pub(crate) dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// Set for packages of this workspace.
    pub(crate) path: Option<PathBuf>,
}

pub(crate) fn metadata() -> Result<Metadata> {
    let output = cargo().args(["metadata", "--no-deps", "--format-version", "1"]).output().context("start cargo")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("read what cargo metadata says")
}

/// Cargo itself, in the workspace.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// A program made by a build.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) package_directory: PathBuf,
    pub(crate) target: String,
    pub(crate) kind: String,
    pub(crate) path: PathBuf,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    executable: Option<PathBuf>,
    /// Of a build script that was run, now or before.
    #[serde(default)]
    out_dir: Option<PathBuf>,
    #[serde(default)]
    manifest_path: PathBuf,
    #[serde(default)]
    target: Target,
}

#[derive(Default, Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// Runs `build`, a cargo command that builds, and lists the programs it made or found fresh.
pub(crate) fn programs(build: &mut Command) -> Result<Vec<Program>> {
    Ok(outcome(build)?.0)
}

/// Runs `build`, and lists the programs and the directories of build scripts.
fn outcome(build: &mut Command) -> Result<(Vec<Program>, Vec<PathBuf>)> {
    let output = build
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("start cargo")?;
    if !output.status.success() {
        bail!("{build:?} failed");
    }
    let (mut programs, mut out_directories) = (Vec::new(), Vec::new());
    for line in output.stdout.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"{")) {
        let message: Message = serde_json::from_slice(line).context("read a message of cargo")?;
        out_directories.extend(message.out_dir);
        let Some(path) = message.executable else { continue };
        let package_directory = message.manifest_path.parent().unwrap_or(Path::new("/")).to_path_buf();
        let kind = message.target.kind.first().cloned().unwrap_or_default();
        programs.push(Program { package_directory, target: message.target.name, kind, path });
    }
    Ok((programs, out_directories))
}

/// The target that agentd is shipped for (docs/adr/0026), where this machine can build for it; else what is missing.
fn musl_target() -> Result<String> {
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output =
        Command::new(rustc).args(["--print", "target-libdir", "--target", &target]).output().context("start rustc")?;
    let libraries = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim_end());
    ensure!(output.status.success() && libraries.metadata().is_ok(), "`rustup target add {target}` is missing");
    let compiler = Command::new("musl-gcc").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    ensure!(compiler.is_ok_and(|status| status.success()), "musl-gcc is missing (Debian: musl-tools)");
    Ok(target)
}

/// Builds the program `name` of `package` in release and returns where it is.
pub(crate) fn release_program(package: &str, name: &str, target_directory: &Path) -> Result<PathBuf> {
    Ok(release(package, "--bin", name, target_directory)?.0)
}

/// The same for the target that cargo takes by itself, the host's.
pub(crate) fn release_program_of_host(package: &str, name: &str, target_directory: &Path) -> Result<PathBuf> {
    Ok(release_for(None, (package, "--bin", name), target_directory)?.0)
}

/// The same with the map that the linker made of it, where it is one that makes maps.
pub(crate) fn release_program_with_map(
    package: &str,
    name: &str,
    target_directory: &Path,
) -> Result<(PathBuf, Option<PathBuf>)> {
    let (program, out_directories) = release(package, "--bin", name, target_directory)?;
    let mut maps = out_directories.iter().map(|directory| directory.join(format!("{name}.map")));
    Ok((program, maps.find(|map| map.metadata().is_ok())))
}

/// Builds the example `name` of `package` in release and returns where it is.
pub(crate) fn release_example(package: &str, name: &str, target_directory: &Path) -> Result<PathBuf> {
    Ok(release(package, "--example", name, target_directory)?.0)
}

fn release(package: &str, kind: &str, name: &str, target_directory: &Path) -> Result<(PathBuf, Vec<PathBuf>)> {
    let target = musl_target();
    if let Err(missing) = &target {
        println!("{name} is built for the host's own target: {missing}");
    }
    release_for(target.ok(), (package, kind, name), target_directory)
}

fn release_for(
    target: Option<String>,
    (package, kind, name): (&str, &str, &str),
    target_directory: &Path,
) -> Result<(PathBuf, Vec<PathBuf>)> {
    let mut build = cargo();
    build.args(["build", "--release", "--package", package, kind, name]).arg("--target-dir").arg(target_directory);
    if let Some(target) = target {
        build.arg("--target").arg(target);
    }
    let (programs, out_directories) = outcome(&mut build)?;
    let built = programs.into_iter().find(|program| program.target == name);
    Ok((built.with_context(|| format!("cargo built no program {name}"))?.path, out_directories))
}
