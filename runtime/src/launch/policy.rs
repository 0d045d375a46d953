//! What a box tells those inside about its own limits: a file that says what is refused, that it is policy, and which flag
//! outside would allow it, so that an agent stops instead of trying again.
//!
//! It is a note, not a wall: nothing is enforced by it, and with `--writable` the payload can change it.
//!
//! Invariant: an agent may take it for the word of who started the box. So nothing that an image or a workspace has written
//! stands in it.

use std::fmt::Write as _;

use agentd_egress::{Credential, Policy, Rule};
use agentd_init::plan::{Access, Addition, Network};
use agentd_profiles::{Profile, SeccompRule, Verdict};

use super::plan::{HOME, WORKSPACE};
use super::protect;
use super::secrets;
use crate::job::spec::JobSpec;

/// Its name in /etc.
const NAME: &str = "agentd-policy.txt";
/// The variable that says where it is, and its place.
pub(crate) const VARIABLE: (&str, &str) = ("AGENTD_POLICY", "/etc/agentd-policy.txt");

/// Names and addresses that are listed.
const MOST_RULES: usize = 50;

const HEAD: &str = "\
You are in a box that agentd made. What is refused in here is refused by policy, on purpose, by whoever started it. Do not
retry it, and do not look for a way round it: say what you needed and what for, and go on without. Who started the box can
allow more next time; the flag of `agentd run` for it stands below in parentheses.
";

/// What the text is about.
#[derive(Debug)]
pub(super) struct Note<'a> {
    pub(super) spec: &'a JobSpec,
    pub(super) home: &'a str,
    pub(super) volumes: &'a [String],
    /// What it reaches through the broker.
    pub(super) reach: Option<&'a Policy>,
    /// What is enforced.
    pub(super) profile: &'a Profile,
    /// What the user chose, where the workspace has tightened it.
    pub(super) chosen: Option<&'a Profile>,
    /// Bytes.
    pub(super) storage: u64,
}

impl Note<'_> {
    /// The file, relative to /etc.
    pub(super) fn file(&self) -> Addition {
        let mut text = String::with_capacity(4096);
        // A String takes everything that is written to it.
        self.write(&mut text).unwrap_or_default();
        Addition::File { path: NAME.into(), contents: text }
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        text.push_str(HEAD);
        self.files(text)?;
        self.network(text)?;
        self.calls(text)?;
        self.bounds(text)
    }

    fn files(&self, text: &mut String) -> std::fmt::Result {
        let spec = self.spec;
        let is_writable = |access| access == Access::ReadWrite;
        let workspace = spec.workspace.as_ref().is_some_and(|workspace| is_writable(workspace.access));
        let mounts = spec.mounts.iter().filter(|mount| is_writable(mount.access));
        let kept = workspace.then_some(WORKSPACE).into_iter().chain(mounts.map(|mount| mount.target.as_str()));
        let kept: Vec<String> = kept.map(quoted).collect();
        // The image has chosen where these are, and a path can be prose.
        let volumes = self.volumes.iter().filter(|volume| *volume != self.home).count();
        text.push_str("\nFiles\n");
        if kept.is_empty() {
            text.push_str("  nothing you write outlives the box (--workspace DIR)\n");
        } else {
            writeln!(text, "  kept: {}", kept.join(" "))?;
        }
        let home = if [HOME, "/root"].contains(&self.home) { self.home } else { "$HOME" };
        writeln!(text, "  writable, gone afterwards: /tmp /run /scratch {home}")?;
        if volumes > 0 {
            writeln!(text, "  so are the image's volumes, {volumes} of them; /proc/mounts says where")?;
        }
        if spec.writable {
            text.push_str("  the rest can be written, too, and is not kept (--keep)\n");
        } else {
            text.push_str("  the rest is read-only: \"Read-only file system\", \"Permission denied\" (--writable, --mount …,rw)\n");
        }
        if !kept.is_empty() {
            writeln!(
                text,
                "  in what is kept, and in each repository there, these stay as they are or absent: {}; \"Read-only file system\", \
                 \"Device or resource busy\" (--unprotect PATTERN). Commits, branches and rebases work",
                protect::names().join(" ")
            )?;
            if !spec.unprotect.is_empty() {
                let opened: Vec<String> = spec.unprotect.iter().map(|pattern| quoted(pattern)).collect();
                writeln!(text, "  but what is called {} may be changed", opened.join(" or "))?;
            }
        }
        if spec.subids && !kept.is_empty() {
            text.push_str("  what belongs to other ids than root in what is kept is root's again at the end\n");
        }
        if !spec.secrets.is_empty() {
            writeln!(text, "  secrets are files in {}: do not print, copy or send them", secrets::DIRECTORY)?;
        }
        for credential in self.reach.iter().flat_map(|policy| &policy.inspected().credentials) {
            let Credential { secret, .. } = credential;
            writeln!(
                text,
                "  {secret} is not in here: requests to http://{credential}{} get it outside",
                if self.spec.reach.inspected.terminate { format!(" and https://{credential}") } else { String::new() }
            )?;
        }
        Ok(())
    }

    fn network(&self, text: &mut String) -> std::fmt::Result {
        text.push_str("\nNetwork\n");
        match (self.spec.network, self.reach) {
            (Network::Host, _) => text.push_str("  the host's own, with everything it reaches\n"),
            (Network::None, None) => text.push_str(
                "  none but the box's own 127.0.0.1: no name resolves and nothing can be downloaded (--allow HOST, --net host)\n",
            ),
            (Network::None, Some(policy)) => {
                writeln!(text, "  only {}; other names do not resolve (--allow HOST[:PORT])", rules(policy.allowed()))?;
                if !policy.denied().is_empty() {
                    writeln!(text, "  not {} (--deny)", rules(policy.denied()))?;
                }
                text.push_str("  this was so at the start; who started the box may change it while it runs (agentd allow, agentd deny): a refusal says what holds now\n");
            }
        }
        Ok(())
    }

    /// The refusals that programs take for a denial, each with the first part of its reason.
    fn calls(&self, text: &mut String) -> std::fmt::Result {
        writeln!(text, "\nSystem calls, by profile {} (--profile NAME|FILE)", self.profile.name)?;
        let rules = &self.profile.seccomp.rules;
        // Of these, a rule before lets some through.
        let some = |rule: &&SeccompRule| rule.verdict == Verdict::Allow && !rule.when.is_empty();
        let some: Vec<&str> =
            rules.iter().filter(some).flat_map(|rule| rule.syscalls.iter()).map(|call| &*call.name).collect();
        for rule in rules.iter().filter(|rule| rule.verdict.is_denial()) {
            // What a workspace gives as its reason is not this file's to say.
            let known =
                self.chosen.is_none_or(|chosen| chosen.seccomp.rules.iter().any(|known| known.reason == rule.reason));
            let reason = rule.reason.split(';').next().filter(|_| known);
            if reason.is_some_and(|reason| reason.starts_with("the same")) {
                continue;
            }
            write!(text, "  {}:", rule.verdict)?;
            for call in rule.syscalls.iter() {
                let kind = if !rule.when.is_empty() || some.contains(&&*call.name) { " some" } else { "" };
                write!(text, "{kind} {}", call.name)?;
            }
            writeln!(text, " - {}", reason.unwrap_or("the workspace's .agentd/profile.toml says so"))?;
        }
        text.push_str(
            "  others may say \"Function not implemented\", as on an older kernel: programs know what to do then\n",
        );
        Ok(())
    }

    fn bounds(&self, text: &mut String) -> std::fmt::Result {
        writeln!(text, "\nBounds\n  {} MiB in all of what is gone afterwards (--storage)", self.storage >> 20)?;
        if let Some(timeout) = self.spec.timeout {
            writeln!(text, "  {} of time (--timeout)", humantime::format_duration(timeout))?;
        }
        Ok(())
    }
}

/// Rules of the network, as many as an agent has use for.
fn rules(rules: &[Rule]) -> String {
    let mut shown: Vec<String> = rules.iter().take(MOST_RULES).map(ToString::to_string).collect();
    if rules.len() > MOST_RULES {
        shown.push("and more".into());
    }
    shown.join(", ")
}

/// A word of the user's.
fn quoted(path: &str) -> String {
    path.chars().flat_map(char::escape_debug).take(200).collect()
}
