//! Rules about packages: who may use whom, the lints, the reasons for dependencies.

use std::collections::{BTreeMap, BTreeSet};

use super::Finding;
use super::tree::Tree;
use crate::workspace::Package;

/// Which of our packages each of them may use, for building and testing too. Dependencies run downwards only.
const EDGES: &[(&str, &[&str])] = &[
    ("agentd", &["agentd-attacks", "agentd-egress", "agentd-rootfs", "agentd-init", "agentd-profiles", "agentd-sys"]),
    ("agentd-attacks", &[]),
    ("agentd-egress", &["agentd-sys"]),
    ("agentd-rootfs", &["agentd-sys"]),
    ("agentd-init", &["agentd-sys", "agentd-profiles"]),
    ("agentd-profiles", &[]),
    ("agentd-sys", &[]),
    ("agentd-tests", &["agentd-attacks"]),
    ("agentd-floor", &[]),
    ("xtask", &[]),
];

/// What the workspace's lints have on at the least; a warning is an error in `e2e`.
pub(super) const LINTS: &str = "unsafe_code unsafe_op_in_unsafe_fn unused_must_use missing_docs \
    missing_debug_implementations unreachable_pub undocumented_unsafe_blocks unnecessary_safety_comment \
    multiple_unsafe_ops_per_block let_underscore_must_use map_err_ignore unwrap_used expect_used panic \
    cast_possible_truncation cast_possible_wrap cast_sign_loss exit print_stdout print_stderr dbg_macro todo \
    unimplemented mem_forget allow_attributes_without_reason disallowed_methods";

pub(super) const REASONS: &str = "docs/dependencies.md";

pub(super) fn edges(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in &tree.metadata.packages {
        let Some((_, allowed)) = EDGES.iter().find(|(name, _)| *name == package.name) else {
            findings.push(Finding::error(&package.name, "not in the table of crates"));
            continue;
        };
        for used in package.dependencies.iter().filter(|dependency| dependency.path.is_some()) {
            if !allowed.contains(&used.name.as_str()) {
                findings.push(Finding::error(&package.name, format!("may not use {}", used.name)));
            }
        }
    }
    findings
}

pub(super) fn lints(tree: &Tree) -> Vec<Finding> {
    let taken = |package: &&Package| {
        let path = package.manifest_path.strip_prefix(&tree.metadata.workspace_root).ok();
        let manifest = path.and_then(|path| tree.text(path.to_str()?));
        let parsed = manifest.and_then(|text| text.parse::<toml::Table>().ok());
        parsed.is_some_and(|table| {
            table.get("lints").and_then(|lints| lints.get("workspace")).and_then(toml::Value::as_bool) == Some(true)
        })
    };
    let without = tree.metadata.packages.iter().filter(|package| !taken(package));
    let without =
        without.map(|package| Finding::error(&package.name, "its Cargo.toml has no [lints] workspace = true"));
    let workspace = tree.text("Cargo.toml").and_then(|text| text.parse::<toml::Table>().ok()).unwrap_or_default();
    let of = |tool: &str| workspace.get("workspace")?.get("lints")?.get(tool)?.as_table();
    let tables = [of("rust"), of("clippy")];
    let is_on = |lint: &str| {
        let mut levels = tables.iter().flatten().filter_map(|table| table.get(lint)?.as_str());
        levels.any(|level| level != "allow")
    };
    let off = LINTS.split(' ').filter(|lint| !is_on(lint));
    let off = off.map(|lint| Finding::error("Cargo.toml", format!("the workspace's lints have {lint} off")));
    without.chain(off).collect()
}

/// A row of [`REASONS`] is `| dependency | users, with commas | reason |`.
pub(super) fn dependencies(tree: &Tree) -> Vec<Finding> {
    let mut used: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in &tree.metadata.packages {
        for dependency in package.dependencies.iter().filter(|dependency| dependency.path.is_none()) {
            used.entry(&dependency.name).or_default().insert(&package.name);
        }
    }
    let Some(text) = tree.text(REASONS) else { return vec![Finding::error(REASONS, "does not exist")] };
    let mut findings = Vec::new();
    let mut told: BTreeSet<&str> = BTreeSet::new();
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, name, users, reason, _] = cells[..] else {
            findings.push(Finding::error(REASONS, format!("not a row of three cells: {line}")));
            continue;
        };
        let name = name.trim_matches('`');
        if !told.insert(name) {
            findings.push(Finding::error(REASONS, format!("{name} has two rows")));
        }
        if reason.is_empty() {
            findings.push(Finding::error(REASONS, format!("{name} has no reason")));
        }
        let users: BTreeSet<&str> = users.split(',').map(str::trim).collect();
        match used.get(name) {
            None => findings.push(Finding::error(REASONS, format!("{name} is no dependency"))),
            Some(real) if *real != users => {
                let real: Vec<&str> = real.iter().copied().collect();
                findings.push(Finding::error(REASONS, format!("{name} is used by {}", real.join(", "))));
            }
            Some(_) => {}
        }
    }
    let untold = used.iter().filter(|(name, _)| !told.contains(*name));
    findings.extend(untold.map(|(name, users)| {
        let users: Vec<&str> = users.iter().copied().collect();
        Finding::error(REASONS, format!("no row for {name}, used by {}", users.join(", ")))
    }));
    findings
}
