//! What this host can and cannot do for agentd, and how to mend what it cannot.
//!
//! ```text
//! attack ─ what a hostile program would try, in such boxes
//! trial ── starts real boxes, as PID 1 of a job would, and sees how far each gets
//! jobs ─── how the jobs are that ran or run here
//! host ─── what the host says about itself: only to explain a refusal, never to predict one
//! refusal  from where a box stopped, and what the host says, to a remedy
//! ```
//!
//! Invariant: a verdict on the box comes from a box. Trials happen in clones of this process, in namespaces of their own;
//! nothing on the host is made, changed or left behind, this process included.

pub mod attack;
mod boxes;
mod cgroup;
mod disk;
pub(crate) mod host;
pub mod jobs;
mod refusal;
pub(crate) mod trial;
mod user;

use std::path::PathBuf;

use serde::Serialize;

use crate::launch::plan::Surroundings;

/// What there is to say about one subject.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at: a stable name in kebab-case. A subject that could not be tried, because one that it rests on
    /// is broken, is left out.
    pub subject: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was found, in words.
    pub found: String,
    /// What to do about it, where something can be done.
    pub remedy: Option<String>,
}

/// How a subject is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As agentd wants it.
    Ok,
    /// `agentd run` works, with less strength or less function.
    Limited,
    /// `agentd run -- CMD` cannot work.
    Broken,
}

impl Verdict {
    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Limited => "limited",
            Verdict::Broken => "broken",
        }
    }
}

/// What the edge knows and a check needs.
#[derive(Debug, Clone)]
pub struct Places {
    /// What a plan has to know; the store is one of it.
    pub surroundings: Surroundings,
    /// The directory that jobs have their directories in.
    pub records: PathBuf,
}

/// Looks at everything. The calling process must have one thread.
#[must_use]
pub fn examine(places: &Places) -> Vec<Finding> {
    let host = host::Host::look();
    let mut findings = vec![user::kernel(&host), user::user(&host)];
    let boxes = boxes::examine(&host, &mut findings);
    findings.push(disk::store(&places.surroundings.store, &host, boxes));
    findings.extend(disk::room(&places.surroundings.store, &host));
    findings.push(disk::records(&places.records, &host));
    findings.push(cgroup::examine());
    findings.extend([user::processes(), user::open_files(), user::id_ranges()]);
    // Last: what none of the above saw. Where one of them did, it would only say the same again.
    if findings.iter().all(|finding| finding.verdict != Verdict::Broken) {
        findings.push(boxes::whole(&places.surroundings, &host));
    }
    findings
}

/// That nothing keeps `agentd run` from working here.
#[must_use]
pub fn sound() -> Finding {
    Finding::ok("host", "agentd run works here; `agentd doctor` says what it can do")
}

impl Finding {
    fn ok(subject: &'static str, found: impl Into<String>) -> Self {
        Finding { subject, verdict: Verdict::Ok, found: found.into(), remedy: None }
    }

    fn limited(subject: &'static str, found: impl Into<String>, remedy: impl Into<Option<String>>) -> Self {
        Finding { subject, verdict: Verdict::Limited, found: found.into(), remedy: remedy.into() }
    }

    fn broken(subject: &'static str, found: impl Into<String>, remedy: impl Into<Option<String>>) -> Self {
        Finding { subject, verdict: Verdict::Broken, found: found.into(), remedy: remedy.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_form_is_what_programs_read() {
        let finding = Finding::limited("cgroups", "none", "do this".to_owned());
        assert_eq!(
            serde_json::to_string(&finding).unwrap(),
            r#"{"subject":"cgroups","verdict":"limited","found":"none","remedy":"do this"}"#
        );
        for verdict in [Verdict::Ok, Verdict::Limited, Verdict::Broken] {
            assert_eq!(serde_json::to_value(verdict).unwrap(), verdict.word());
        }
    }
}
