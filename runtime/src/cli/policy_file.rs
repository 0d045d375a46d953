//! `agentd run --policy FILE`, and the file that holds without it: what jobs may reach and use, written down once.
//!
//! ```toml
//! allow = ["github", "registry.npmjs.org"]
//! deny = ["gist.github.com"]
//! net-limit = ["bytes=2g"]
//! memory = "4g"
//! ```
//!
//! Its rules are put before those of the line: flags add to them, and what has one value the line has the last word on.
//!
//! Invariant: who runs the job has written it. A file that lies in what a job is given to work in may be anybody's, or an
//! earlier job's, and is refused, wherever the path to it begins.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};

use super::job_file::{self, About, FileError, Words};
use super::run::absolute;
use crate::job::spec::{JobSpec, PolicyFile};

/// Its keys: what a job may reach, and how much it may use.
pub(super) const KEYS: &[&str] = &[
    "allow",
    "deny",
    "add-host",
    "net-limit",
    "timeout",
    "storage",
    "max-output",
    "memory",
    "memory-high",
    "memory-swap",
    "cpus",
    "cpu-weight",
    "cpuset-cpus",
    "pids",
    "ulimit",
    "best-effort-limits",
];

/// `--policy FILE|none`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PolicyChoice {
    /// Not even the file that holds without the flag.
    None,
    /// This one.
    File(PathBuf),
}

impl FromStr for PolicyChoice {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(if text == "none" { PolicyChoice::None } else { PolicyChoice::File(text.into()) })
    }
}

/// How many of a command line's words about the network are a policy file's; they come first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) allow: usize,
    pub(super) deny: usize,
    pub(super) add_host: usize,
    pub(super) net_limit: usize,
}

impl Counts {
    /// Of the words of a file.
    pub(super) fn of(flags: &[String]) -> Self {
        let count = |key: &str| {
            let is_it = |flag: &&String| {
                flag.strip_prefix("--").and_then(|flag| flag.split_once('=')).is_some_and(|(name, _)| name == key)
            };
            flags.iter().filter(is_it).count()
        };
        Counts {
            allow: count("allow"),
            deny: count("deny"),
            add_host: count("add-host"),
            net_limit: count("net-limit"),
        }
    }
}

/// Reads the file that was chosen, or the one at `usual` if there is one.
pub(super) fn find(chosen: Option<&PolicyChoice>, usual: Option<PathBuf>) -> Result<Option<PolicyFile>> {
    let (path, opened) = match (chosen, usual) {
        (Some(PolicyChoice::None), _) | (None, None) => return Ok(None),
        (Some(PolicyChoice::File(path)), _) => (path.clone(), File::open(path)),
        (None, Some(path)) => match File::open(&path) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            opened => (path, opened),
        },
    };
    let about = About::Bounds(KEYS);
    let opened = opened.map_err(|source| FileError::Read { about, path: path.clone(), source });
    let opened = opened.context("--policy none goes without a policy file")?;
    let Words { flags, .. } = job_file::read_opened(about, opened, &path, super::run::description())?;
    let file = absolute(&path, "policy file")?;
    tracing::info!("policy file {}: {}", file.display(), flags.join(" "));
    Ok(Some(PolicyFile { file, words: flags }))
}

/// Refuses a file that the job, or one like it, can write.
pub(super) fn keep_apart(spec: &JobSpec) -> Result<()> {
    let Some(policy) = &spec.policy else { return Ok(()) };
    let is_in = |place: &Path| policy.file.starts_with(place);
    let writable = spec.mounts.iter().filter(|mount| mount.access == agentd_init::plan::Access::ReadWrite);
    let given = spec.workspace.iter().map(|workspace| &workspace.path).chain(writable.map(|mount| &mount.source));
    if let Some(place) = given.into_iter().find(|place| is_in(place)) {
        bail!(
            "the policy file {} lies in {}, which the job is given: what jobs can write does not say what they may do; keep \
             it elsewhere, or go without it by --policy none",
            policy.file.display(),
            place.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<PolicyFile> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("policy.toml");
        std::fs::write(&path, text).unwrap();
        Ok(find(Some(&PolicyChoice::File(path)), None)?.unwrap())
    }

    #[test]
    fn its_words_are_those_of_the_flags() {
        let text =
            "allow = [\"claude\", \"a.test:80\"]\ndeny = \"b.a.test\"\nmemory = \"2g\"\nbest-effort-limits = true\n";
        let PolicyFile { words, .. } = read(text).unwrap();
        let flags = ["--allow=claude", "--allow=a.test:80", "--deny=b.a.test", "--memory=2g", "--best-effort-limits"];
        assert_eq!(words, flags);
        assert_eq!(Counts::of(&words), Counts { allow: 2, deny: 1, add_host: 0, net_limit: 0 });
        assert!(read("").unwrap().words.is_empty());
        let known = super::super::run::description();
        let longs: Vec<&str> = known.get_arguments().filter_map(clap::Arg::get_long).collect();
        assert!(KEYS.iter().all(|key| longs.contains(key)));
    }

    #[test]
    fn what_is_no_bound_of_a_job_is_refused_with_its_line() {
        for (text, parts) in [
            ("allow = []\n\nworkspace = \"/\"", &["line 3", "`workspace` is no key of a policy", "allow, deny"][..]),
            ("command = [\"true\"]", &["line 1", "`command` is no key"]),
            ("net = \"host\"", &["line 1", "`net` is no key"]),
            ("policy = \"/other\"", &["line 1", "`policy` is no key"]),
            ("secret = \"A\"", &["line 1", "`secret` is no key"]),
            ("memory = \"1g\"\nallow = [\"*\"]", &["line 2", "every name"]),
            ("[sets]\nmine = []", &["line 1", "`sets` is no key"]),
            ("deny = [", &["line 1"]),
        ] {
            let said = format!("{:#}", read(text).unwrap_err());
            assert!(parts.iter().all(|part| said.contains(part)) && !said.contains('\n'), "{text}: {said}");
        }
        let long = read(&"#".repeat(70_000)).unwrap_err();
        assert!(format!("{long:#}").contains("longer than 65536 bytes"));
    }

    #[test]
    fn the_usual_file_need_not_be_there_and_a_chosen_one_must() {
        let usual = Some(PathBuf::from("/nonexistent/policy.toml"));
        assert_eq!(find(None, usual.clone()).unwrap(), None);
        assert_eq!(find(Some(&PolicyChoice::None), Some("/dev/zero".into())).unwrap(), None);
        let missing = find(Some(&PolicyChoice::File("/nonexistent".into())), usual).unwrap_err();
        assert!(format!("{missing:#}").contains("--policy none"));
        assert_eq!("none".parse(), Ok(PolicyChoice::None));
        assert_eq!("./none".parse(), Ok(PolicyChoice::File("./none".into())));
    }

    proptest! {
        #[test]
        fn whatever_a_file_holds_it_asks_for_nothing_but_its_keys(text in "(allow|deny|net|memory|secret|[a-z-]{1,12}) = [\\PC]{0,60}|\\PC{0,200}") {
            if let Ok(PolicyFile { words, .. }) = read(&text) {
                for word in words {
                    let name = word.trim_start_matches("--").split('=').next().unwrap_or_default().to_owned();
                    prop_assert!(KEYS.contains(&name.as_str()), "{word}");
                }
            }
        }
    }
}
