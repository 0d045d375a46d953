//! What `agentd run --dry-run` prints.

use std::io::Write;
use std::time::Duration;

use agentd_egress::Rule;
use agentd_init::plan::{Access, Hold, Mount, Network};
use anyhow::Result;

use super::images::size;
use super::run_network;
use super::{Format, print_json, printable};
use crate::cgroup::Limits;
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
            writeln!(out, "limits     {}", limits_of(plan))?;
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

/// What was asked for by a flag and what is usual, as the flags call it.
fn limits_of(plan: &Plan) -> String {
    let time = |milliseconds| humantime::format_duration(Duration::from_millis(milliseconds));
    let mut limits = vec![format!("storage {}", size(plan.inside.root.storage))];
    limits.push(format!("max-output {} a stream", size(plan.max_output)));
    limits.extend(plan.timeout_ms.map(|timeout| format!("timeout {}", time(timeout))));
    limits.push(format!("stop-timeout {}", time(plan.grace_ms)));
    limits.extend(plan.cgroup.iter().flat_map(|cgroup| counted(&cgroup.limits)));
    let number = |limit: Option<u64>| limit.map_or_else(|| "-1".to_owned(), |limit| limit.to_string());
    limits.extend(
        plan.inside
            .ulimits
            .iter()
            .map(|limit| format!("ulimit {}={}:{}", limit.resource.names().1, number(limit.soft), number(limit.hard))),
    );
    limits.join(", ")
}

/// Those that a cgroup enforces.
fn counted(limits: &Limits) -> Vec<String> {
    let bytes = |name: &str, limit: Option<u64>| limit.map(|limit| format!("{name} {}", size(limit)));
    let number = |name: &str, limit: Option<u64>| limit.map(|limit| format!("{name} {limit}"));
    let cpus = |milli: u64| format!("cpus {}.{:03}", milli / 1000, milli % 1000);
    let limits_of_disks = limits.io.iter().map(|limit| {
        let flag = limit.what.flag().trim_start_matches('-');
        Some(format!("{flag} {}:{}", limit.disk, limit.most))
    });
    let all = [
        bytes("memory", limits.memory),
        bytes("memory-high", limits.memory_high),
        bytes("swap", limits.swap),
        limits.milli_cpus.map(|milli| cpus(milli).trim_end_matches('0').trim_end_matches('.').to_owned()),
        number("cpu-weight", limits.cpu_weight),
        limits.cpus.as_ref().map(|cpus| format!("cpuset-cpus {cpus}")),
        number("pids", limits.pids),
    ];
    all.into_iter().chain(limits_of_disks).flatten().collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::io::{IoKind, IoLimit};

    #[test]
    fn each_limit_of_a_cgroup_is_shown_and_no_other() {
        assert_eq!(counted(&Limits::default()), Vec::<String>::new());
        let limits = Limits {
            memory: Some(2_000_000_000),
            memory_high: Some(1_000_000),
            swap: Some(0),
            milli_cpus: Some(1500),
            cpu_weight: Some(50),
            cpus: Some("0-3".into()),
            pids: Some(500),
            io: vec![IoLimit { disk: "8:0".into(), what: IoKind::Rbps, most: 7 }],
        };
        let expected = "memory 2.00 GB, memory-high 1.00 MB, swap 0 B, cpus 1.5, cpu-weight 50, cpuset-cpus 0-3, pids 500, \
            device-read-bps 8:0:7";
        assert_eq!(counted(&limits).join(", "), expected);
        let whole = |milli| counted(&Limits { milli_cpus: Some(milli), ..Limits::default() }).join("");
        assert_eq!([2000, 10_000, 250].map(whole), ["cpus 2", "cpus 10", "cpus 0.25"]);
    }
}
