//! What `agentd run --dry-run` prints.

use std::io::Write;

use agentd_egress::Rule;
use agentd_init::plan::{Access, Hold, Mount, Network};
use anyhow::Result;

use super::run_network;
use super::{Format, print_json, printable};
use crate::job::spec::PolicyFile;
use crate::launch::plan::Plan;

/// Prints the plan, or a summary of it.
pub(super) fn print(plan: &Plan, format: Format) -> Result<()> {
    match format {
        Format::Json => print_json(plan)?,
        Format::Table => {
            let mut out = std::io::stdout().lock();
            let inside = &plan.inside;
            writeln!(out, "image      {}", printable(&plan.image))?;
            writeln!(out, "command    {}", printable(&inside.process.argv.join(" ")))?;
            writeln!(out, "directory  {}", printable(&inside.process.cwd))?;
            let ids = &inside.identity;
            writeln!(
                out,
                "user       {}:{} inside{}, {}:{} outside",
                ids.box_uid,
                ids.box_gid,
                match (plan.fake_root, &plan.id_helpers) {
                    (true, _) => " (fake root)",
                    (_, Some(_)) => " (root of several ids)",
                    _ => "",
                },
                ids.host_uid,
                ids.host_gid
            )?;
            writeln!(out, "network    {}", network_of(plan))?;
            if let Some(PolicyFile { file, words }) = &plan.policy {
                let (file, words) = (file.display().to_string(), words.join(" "));
                writeln!(out, "policy     {}: {}", printable(&file), printable(&words))?;
            }
            writeln!(out, "root       {}", root_of(plan))?;
            for mount in &inside.mounts {
                writeln!(out, "mount      {}", printable(&describe(mount)))?;
            }
            let rights: Vec<String> = inside.landlock.rights.iter().map(ToString::to_string).collect();
            writeln!(out, "landlock   ABI {}: {}", inside.landlock.abi, rights.join(", "))?;
            writeln!(out, "seccomp    profile {}, {}", printable(&inside.seccomp.profile), inside.seccomp.digest)?;
            for guard in &inside.guards {
                let how = match guard.hold {
                    Hold::Pinned { .. } => continue,
                    Hold::ReadOnly { .. } => "stays as it is",
                    Hold::Absent { .. } => "stays absent",
                };
                writeln!(out, "protected  {}/{} ({how})", printable(&guard.base), printable(&guard.path))?;
            }
            for warning in &plan.warnings {
                writeln!(out, "warning    {}", printable(warning))?;
            }
        }
    }
    Ok(())
}

fn network_of(plan: &Plan) -> String {
    match (plan.inside.network, &plan.reach) {
        (Network::Host, _) => "host".into(),
        (Network::None, None) => "none".into(),
        (Network::None, Some(policy)) => {
            let list = |rules: &[Rule]| rules.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let denied =
                if policy.denied().is_empty() { String::new() } else { format!("; not {}", list(policy.denied())) };
            let read = run_network::inspected(policy.inspected());
            let learned = if policy.learns() { "everything of the internet, to learn" } else { "" };
            let allowed = [learned.to_owned(), list(policy.allowed()), read];
            let allowed: Vec<String> = allowed.into_iter().filter(|text| !text.is_empty()).collect();
            format!("through the broker: {}{denied}", allowed.join(", "))
        }
    }
}

fn root_of(plan: &Plan) -> &'static str {
    match (plan.inside.root.writable, plan.inside.root.keep) {
        (true, true) => "writable, kept",
        (true, false) => "writable, thrown away",
        (false, _) => "read-only",
    }
}

/// A mount of the box, in a line.
pub(super) fn describe(mount: &Mount) -> String {
    let target = mount.target();
    match mount {
        Mount::Proc { .. } | Mount::Dev { .. } => format!("{target} (fresh)"),
        Mount::Sys { .. } => format!("{target} (read-only)"),
        Mount::Trust { .. } => format!("{target} (read-only, certificates)"),
        Mount::Secrets { names, .. } => format!("{target} (read-only, never swapped: {})", names.join(", ")),
        Mount::Scratch { .. } | Mount::Writable { .. } => format!("{target} (writable, thrown away)"),
        Mount::HostTree { source, .. } => {
            format!("{target} (read-only, {} without its secrets)", source.path.display())
        }
        Mount::Bind { source, access: Access::ReadOnly, .. } => {
            format!("{target} (read-only, {})", source.path.display())
        }
        Mount::Bind { source, access: Access::ReadWrite, .. } => {
            format!("{target} (writable, {})", source.path.display())
        }
    }
}
