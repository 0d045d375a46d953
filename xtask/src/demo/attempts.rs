//! What a box must refuse, tried from inside: reading the host's secrets, writing outside the workspace, gaining rights.
//!
//! The same short program runs as the agent's own tool call and as the plain payload on every kind of root.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};

use super::report::Report;
use super::site::{Site, printable};

/// The roots it is tried on, besides the agent's.
pub(super) const ROOTS: [&str; 3] = ["minimal", "debian", "host"];

/// Written when an attempt succeeded; nothing else writes it.
const SUCCEEDED: &str = "SUCCEEDED";
const REFUSED: &str = "refused";
/// Attempts in the script.
const COUNT: usize = 8;
/// Left behind by an attempt that succeeded.
pub(super) const TRACES: [&str; 3] = ["/usr/agentd-was-here", "/etc/agentd-was-here", "/var/agentd-was-here"];

/// A shell program for any of the roots; it tells a line an attempt. A program that is not there proves nothing, so that
/// is neither of the two outcomes.
pub(super) fn script(site: &Site) -> String {
    let [usr, etc, var] = TRACES;
    let canary = quoted(&site.canary_file());
    let beside = quoted(&site.run());
    format!(
        "# what a box must refuse\nPATH=$PATH:/usr/sbin:/sbin\n\
         try() {{ what=$1; shift; \"$@\" 2>/dev/null; case $? in 0) how={SUCCEEDED} ;; 126|127) how=untried ;; \
         *) how={REFUSED} ;; esac; echo \"$what: $how\"; }}\n\
         try 'read a key in the home of the user' cat {canary}\n\
         try 'read /etc/shadow' cat /etc/shadow\n\
         try 'write beside the workspace' touch {beside}/agentd-was-here\n\
         try 'write to /usr' touch {usr}\n\
         try 'write to /etc' touch {etc}\n\
         try 'write to /var' touch {var}\n\
         try 'make the node of a disk' mknod /tmp/disk b 8 0\n\
         try 'change the root' chroot / true\n"
    )
}

/// Single quotes for sh.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "'\\''"))
}

/// Judges what the script said.
pub(super) fn judge(untrusted_output: &str, site: &Site, report: &mut Report) {
    let held = all_refused(untrusted_output);
    report.check(&format!("all {COUNT} attempts on the host were refused"), held, untrusted_output);
    report.check("the host's key was not seen", !untrusted_output.contains(&site.canary), untrusted_output);
}

/// Every attempt was made, and none succeeded.
fn all_refused(untrusted_output: &str) -> bool {
    let refused = untrusted_output.lines().filter(|line| line.ends_with(REFUSED)).count();
    refused == COUNT && !untrusted_output.contains(SUCCEEDED)
}

/// A short run on one kind of root, without network.
pub(super) fn make(site: &Site, root: &str, report: &mut Report) -> Result<()> {
    report.part(&format!("plain commands, root: {root}, --net none"));
    let workspace = site.run().join(format!("work-{root}"));
    fs::create_dir_all(&workspace).with_context(|| format!("cannot make {}", workspace.display()))?;
    let script = format!(
        "{}grep -E '^(Uid|CapEff|NoNewPrivs|Seccomp):' /proc/self/status\n\
         echo \"processes in sight: $(ls -d /proc/[0-9]* | wc -l)\"\n\
         echo network interfaces: $(sed -n 's/^ *\\([^ :]*\\):.*/\\1/p' /proc/net/dev)\n\
         echo made in the box > made-here && exit 7",
        script(site)
    );
    let start = Instant::now();
    let mut command = site.agentd_run(root, &workspace);
    let output = command.args(["--net", "none", "--timeout", "60s", "--", "sh", "-c", &script]).output();
    let output = output.context("cannot start agentd")?;
    let took = start.elapsed();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    for line in said.lines() {
        println!("    {}", printable(line));
    }
    println!("    ended after {} ms", took.as_millis());
    judge(&said, site, report);
    let status = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    let locked = status("NoNewPrivs:") == "1" && status("Seccomp:") == "2" && status("CapEff:") == "0".repeat(16);
    report.check("only a loopback interface", status("network interfaces:") == "lo", &said);
    report.check("no capabilities, no new privileges, a system-call filter", locked, &said);
    let made = fs::read_to_string(workspace.join("made-here")).unwrap_or_default();
    report.check("what it made in the workspace is on the host", made == "made in the box\n", &said);
    report.check("its exit code came through", output.status.code() == Some(7), &said);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_that_was_not_made_or_succeeded_is_not_refused() {
        let lines = |last: &str| "a: refused\n".repeat(COUNT - 1) + last;
        assert!(all_refused(&lines("b: refused")));
        assert!(!all_refused(&lines("b: untried")));
        assert!(!all_refused(&lines("b: SUCCEEDED")));
        assert!(!all_refused(&(lines("b: refused\n") + "c: SUCCEEDED")));
        assert!(!all_refused(""));
    }

    #[test]
    fn a_path_stays_one_word_of_the_shell() {
        let said = super::super::images::said(
            std::process::Command::new("sh")
                .arg("-c")
                .arg(format!("printf %s {}", quoted(Path::new("/a b/it's $(x)")))),
        );
        assert_eq!(said.unwrap(), "/a b/it's $(x)");
    }
}
