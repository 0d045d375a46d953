//! Claude Code as one layer: the native program out of the npm package of this architecture.
//!
//! Invariant: nothing is unpacked whose digest is not the one below. npm has checked the bytes against the registry's
//! word already; the pin makes a changed word of the registry an error, as a lock file would.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::images::{quiet, remove, said};
use super::report::step;

/// A new version brings its two digests: `npm view @anthropic-ai/claude-code-linux-{x64,arm64}@VERSION dist.integrity`.
pub(crate) const VERSION: &str = "2.1.329";
const X64: &str = "sha512-+n4lu1ubYAp02Y0X/MAUnxw9yY6SHHZ77F+IoW+V0wVoFuiI9opdH6gofjf14gXJCEYMTNpks7Gn1i8XZTKAWA==";
const ARM64: &str = "sha512-IiG5umFToSCVWqB1lEsxxwIxKgxPXyZ3DRU915v8J4Bz5Q3JpslM0ew1m5yaT+lFXBPvYxmsEgi0XI68XHND0A==";

/// What `npm pack --json` says of a tarball; it computes `integrity` from the bytes it wrote.
#[derive(Debug, Deserialize)]
struct Packed {
    filename: String,
    integrity: String,
}

/// Lays the program out below `layer`; gives the time that npm took.
pub(crate) fn unpack(cache: &Path, layer: &Path) -> Result<Duration> {
    let start = Instant::now();
    let (arch, integrity) = match std::env::consts::ARCH {
        "x86_64" => ("x64", X64),
        "aarch64" => ("arm64", ARM64),
        other => bail!("Claude Code has no package for {other}"),
    };
    let package = format!("@anthropic-ai/claude-code-linux-{arch}@{VERSION}");
    let mut npm = Command::new("npm");
    npm.args(["pack", "--json", "--loglevel=error", "--no-update-notifier", "--prefer-offline", &package])
        .current_dir(cache);
    // npm's own cache is where a second download would come from, and the demo leaves nothing outside its directory.
    npm.env("npm_config_cache", cache.join("npm"));
    let told = said(&mut npm).with_context(|| format!("cannot get {package} from npm"))?;
    let downloading = start.elapsed();
    let packed: Vec<Packed> = serde_json::from_str(&told).context("cannot read what npm pack says")?;
    let [packed] = &packed[..] else { bail!("npm pack made {} packages", packed.len()) };
    let tarball = cache.join(&packed.filename);
    ensure!(packed.integrity == integrity, "{package} is {} and not {integrity}", packed.integrity);
    remove(layer)?;
    let bin = layer.join("usr/local/bin");
    fs::create_dir_all(&bin).with_context(|| format!("cannot make {}", bin.display()))?;
    quiet(
        Command::new("tar")
            .args(["--strip-components=1", "-xzf"])
            .arg(&tarball)
            .arg("-C")
            .arg(&bin)
            .arg("package/claude"),
    )?;
    fs::set_permissions(bin.join("claude"), fs::Permissions::from_mode(0o755))
        .context("cannot make claude a program")?;
    // npm's cache has it as well.
    fs::remove_file(tarball).context("cannot remove the tarball")?;
    step(start, &format!("Claude Code {VERSION} is here from npm, its sha512 as pinned"));
    Ok(downloading)
}
