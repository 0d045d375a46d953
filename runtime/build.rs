//! Tells the linker in which order a start meets the functions of `agentd`, so that they lie side by side: a start reads
//! each of them once, and pays for each stretch of the file that it touches (docs/benchmarks.md, "Where the time goes").
//!
//! `startup.order` is made by `cargo xtask order`, which finds the addresses in the map that is asked for here.
//!
//! Invariant: the order makes a start faster or does nothing. It is given to the toolchain's own lld alone, since other
//! linkers refuse the option; names that are not in the program are passed over.

use std::path::PathBuf;

/// The one target that has an order, and the linker that .cargo/config.toml names for it.
const TARGET: &str = "x86_64-unknown-linux-musl";
const LINKER: &str = "rust-lld";

fn main() {
    println!("cargo::rerun-if-changed=startup.order");
    let is = |name, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    let another_is_asked_for = std::env::var("CARGO_ENCODED_RUSTFLAGS").is_ok_and(|flags| flags.contains("linker"));
    if !is("TARGET", TARGET) || !is("PROFILE", "release") || !is("RUSTC_LINKER", LINKER) || another_is_asked_for {
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
        println!("cargo::rustc-link-arg-bins={option}");
    }
}
