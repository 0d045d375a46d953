//! Tells the linker in which order a start meets the functions of `agentd`, so that they lie side by side: a start reads
//! each of them once, and pays for each stretch of the file that it touches (docs/benchmarks.md, "Where the time goes").
//!
//! `startup.order` is made by `cargo xtask order`, which finds the addresses in the map that is asked for here.
//!
//! Invariant: the order makes a start faster or does nothing. It is given to the toolchain's own lld alone, since other
//! linkers refuse the option; names that are not in the program are passed over.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The one target whose default linker the toolchain brings along.
const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() {
    println!("cargo::rerun-if-changed=startup.order");
    let is = |name, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    if !is("TARGET", TARGET) || !is("PROFILE", "release") || another_linker_is_asked_for() || !has_lld() {
        return;
    }
    let directory = |name| std::env::var_os(name).map(PathBuf::from);
    let (Some(package), Some(out)) = (directory("CARGO_MANIFEST_DIR"), directory("OUT_DIR")) else { return };
    for option in [
        format!("--symbol-ordering-file={}", package.join("startup.order").display()),
        "--no-warn-symbol-ordering".to_owned(),
        "--no-demangle".to_owned(),
        format!("-Map={}", out.join("agentd.map").display()),
    ] {
        // Not by -Wl, which takes a comma in a path for its own.
        println!("cargo::rustc-link-arg-bins=-Xlinker");
        println!("cargo::rustc-link-arg-bins={option}");
    }
}

fn another_linker_is_asked_for() -> bool {
    let flags = std::env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    std::env::var_os("RUSTC_LINKER").is_some() || flags.contains("linker") || flags.contains("fuse-ld")
}

/// Whether this toolchain has the linker that it takes by default (Rust 1.90).
fn has_lld() -> bool {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let Ok(output) = Command::new(rustc).args(["--print", "sysroot"]).output() else { return false };
    let sysroot = String::from_utf8_lossy(&output.stdout);
    Path::new(sysroot.trim()).join("lib/rustlib").join(TARGET).join("bin/gcc-ld/ld.lld").metadata().is_ok()
}
