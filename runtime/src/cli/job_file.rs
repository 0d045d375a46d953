//! `agentd run --job FILE`: the flags of a run, written down.
//!
//! ```toml
//! workspace = "/srv/repo"
//! memory = "2g"
//! allow = ["claude", "github"]
//! command = ["claude", "-p", "fix the failing test"]
//! ```
//!
//! A policy file (`policy_file`) is the same with fewer keys.
//!
//! Invariant: a file is no second command line. Its keys are the long flags of `agentd run`, made words again and parsed with
//! the words beside `--job` by the one description of both; nothing is asked for that a command line could not ask for.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{ArgAction, Command};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Longest file that is read, in bytes.
const MAX_FILE: u64 = 64 * 1024;

/// Flags about this one run, not about the job.
const NOT_KEYS: [&str; 6] = ["job", "detach", "dry-run", "format", "help", "verbose"];

/// The key of what stands after the flags.
const COMMAND: &str = "command";

/// What a file is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum About {
    /// One job, in all its words.
    Job,
    /// Bounds of jobs, in some.
    Bounds(&'static [&'static str]),
}

impl About {
    fn takes(self, key: &str) -> bool {
        match self {
            About::Job => !NOT_KEYS.contains(&key),
            About::Bounds(keys) => keys.contains(&key),
        }
    }

    /// Which keys there are, for messages.
    fn keys(self) -> String {
        match self {
            About::Job => "command and the long flags of `agentd run`".into(),
            About::Bounds(keys) => keys.join(", "),
        }
    }
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == About::Job { "job" } else { "policy" })
    }
}

/// A file that is none.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    #[error("cannot read the {about} file {}", path.display())]
    Read { about: About, path: PathBuf, source: std::io::Error },
    #[error("the {about} file {} is longer than {MAX_FILE} bytes", path.display())]
    Long { about: About, path: PathBuf },
    #[error("the {about} file {}, line {line}: {problem}", path.display())]
    Line { about: About, path: PathBuf, line: usize, problem: String },
}

/// A mistake at a byte of the text.
#[derive(Debug, PartialEq, Eq)]
struct Mistake {
    at: usize,
    problem: String,
}

/// A file as words.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Words {
    pub(super) flags: Vec<String>,
    pub(super) command: Vec<String>,
}

/// The words of a command line that begins with `agentd run`, with those of a file put in. The line's own come later: of a
/// flag with one value the last counts. `says_command`: whether the line has a command.
pub(super) fn put_in(line: Vec<OsString>, says_command: bool, words: &Words) -> Vec<OsString> {
    let Words { flags, command } = words;
    // What stands before the verb are flags without values.
    let is_verb = |word: &OsString| !word.as_encoded_bytes().starts_with(b"-");
    let verb = line.iter().skip(1).position(is_verb).map_or(line.len(), |at| at + 2);
    let (before, after) = line.split_at(verb.min(line.len()));
    let mut put: Vec<OsString> = before.to_vec();
    put.extend(flags.iter().map(OsString::from));
    put.extend(after.iter().cloned());
    if !says_command && !command.is_empty() {
        if after.last().map(OsString::as_os_str) != Some(OsStr::new("--")) {
            put.push("--".into());
        }
        put.extend(command.iter().map(OsString::from));
    }
    put
}

/// Reads the file at `path`; `run` describes the verb's flags.
///
/// # Errors
/// [`FileError`], with the line of the first mistake.
pub(super) fn read(about: About, path: &Path, run: Command) -> Result<Words, FileError> {
    let opened = File::open(path).map_err(|source| FileError::Read { about, path: path.to_owned(), source })?;
    read_opened(about, opened, path, run)
}

/// The same of a file that is open.
pub(super) fn read_opened(about: About, file: File, path: &Path, run: Command) -> Result<Words, FileError> {
    let path = path.to_owned();
    let mut text = String::new();
    if let Err(source) = file.take(MAX_FILE + 1).read_to_string(&mut text) {
        return Err(FileError::Read { about, path, source });
    }
    if text.len() as u64 > MAX_FILE {
        return Err(FileError::Long { about, path });
    }
    words(about, &text, run).map_err(|Mistake { at, problem }| {
        let line = text.get(..at).unwrap_or_default().matches('\n').count() + 1;
        FileError::Line { about, path, line, problem }
    })
}

fn words(about: About, untrusted_text: &str, mut run: Command) -> Result<Words, Mistake> {
    let table = DeTable::parse(untrusted_text).map_err(|error| Mistake {
        at: error.span().map_or(0, |span| span.start),
        problem: error.message().to_owned(),
    })?;
    run.build();
    let mut words = Words::default();
    // In the order of the file: the order of repeated flags is that of a list, and no flag depends on another's place.
    let mut entries: Vec<_> = table.get_ref().iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    for (key, value) in entries {
        let (at, name) = (key.span().start, key.get_ref().as_ref());
        let mistake = |problem: String| Mistake { at, problem };
        if name == COMMAND && about == About::Job {
            let DeValue::Array(list) = value.get_ref() else {
                return Err(mistake("command is a list of words: [\"make\", \"test\"]".into()));
            };
            words.command = list.iter().map(|word| scalar(name, word)).collect::<Result<_, _>>()?;
            continue;
        }
        let known = run.get_arguments().find(|argument| argument.get_long() == Some(name));
        let Some(argument) = known.filter(|_| about.takes(name)) else {
            let name = name.escape_debug();
            return Err(mistake(format!("`{name}` is no key of a {about}: keys are {}", about.keys())));
        };
        let new: Vec<String> = match (argument.get_action(), value.get_ref()) {
            (ArgAction::SetTrue, DeValue::Boolean(true)) => vec![format!("--{name}")],
            (ArgAction::SetTrue, DeValue::Boolean(false)) => Vec::new(),
            (ArgAction::SetTrue, _) => return Err(mistake(format!("{name} is true or false"))),
            (ArgAction::Append, DeValue::Array(list)) => {
                list.iter().map(|value| Ok(format!("--{name}={}", scalar(name, value)?))).collect::<Result<_, _>>()?
            }
            (_, DeValue::Array(_)) => return Err(mistake(format!("{name} has one value, not a list"))),
            _ => vec![format!("--{name}={}", scalar(name, value)?)],
        };
        for word in &new {
            // By itself, so that a mistake has a line; what flags are to each other is looked at when all are there.
            let alone = run.clone().try_get_matches_from(["agentd run", word]);
            if let Err(error) = alone
                && matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue)
            {
                return Err(mistake(super::mistake(&error)));
            }
        }
        words.flags.extend(new);
    }
    Ok(words)
}

/// A value as a word.
fn scalar(name: &str, value: &Spanned<DeValue<'_>>) -> Result<String, Mistake> {
    let mistake = |problem: String| Err(Mistake { at: value.span().start, problem });
    match value.get_ref() {
        DeValue::String(text) if text.contains('\0') => mistake(format!("{name} holds a NUL byte")),
        DeValue::String(text) => Ok(text.clone().into_owned()),
        DeValue::Integer(number) => match number.as_str() {
            digits if number.radix() == 10 => Ok(digits.to_owned()),
            _ => mistake(format!("{name}: write the number in decimal")),
        },
        DeValue::Float(number) => Ok(number.as_str().to_owned()),
        DeValue::Boolean(_) => mistake(format!("{name} has a value: a string or a number, not true or false")),
        _ => mistake(format!("{name} is a string, a number, or a list of them")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::run::description as run;
    use super::*;

    #[test]
    fn keys_become_flags() {
        let text = "memory = \"2g\"\nrm = true\nwritable = false\ncpus = 1.5\npids = 50\nallow = [\"claude\", \"a.test:80\"]\n\
            env = \"A=b c\"\ncommand = [\"sh\", \"-c\", \"echo --x\"]\n";
        let words = words(About::Job, text, run()).unwrap();
        let flags =
            ["--memory=2g", "--rm", "--cpus=1.5", "--pids=50", "--allow=claude", "--allow=a.test:80", "--env=A=b c"];
        assert_eq!(words.flags, flags);
        assert_eq!(words.command, ["sh", "-c", "echo --x"]);
    }

    #[test]
    fn a_mistake_is_told_with_its_place() {
        for (text, place, part) in [
            ("rm = true\nmemroy = \"2g\"", "memroy", "no key of a job"),
            ("job = \"/other\"", "job", "no key of a job"),
            ("detach = true", "detach", "no key of a job"),
            ("\nmemory = \"two\"", "memory", "`two` is not a size"),
            ("pull = \"often\"", "pull", "possible values: missing, always, never"),
            ("pids = 0", "pids", "0 is not in"),
            ("name = [\"a\"]", "name", "one value"),
            ("rm = \"yes\"", "rm", "true or false"),
            ("tty = 1", "tty", "true or false"),
            ("timeout = true", "true", "not true or false"),
            ("timeout = 1979-05-27", "1979", "string"),
            ("command = \"make\"", "command", "list of words"),
            ("command = [[\"make\"]]", "\"make\"]]", "string"),
            ("[workspace]\npath = \"/\"", "workspace", "string"),
            ("hostname = \"a\\u0000b\"", "\"a", "NUL"),
            ("rm = true\nrm = true", "rm = true", "duplicate key"),
            ("rm =", "", "value"),
        ] {
            let mistake = words(About::Job, text, run()).unwrap_err();
            assert!(text[mistake.at..].trim_start_matches(['[', '\n']).starts_with(place), "{text}: {mistake:?}");
            assert!(mistake.problem.contains(part), "{text}: {mistake:?}");
        }
    }

    #[test]
    fn the_words_of_the_line_come_after_those_of_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("job.toml");
        std::fs::write(&file, "memory = \"1g\"\ncommand = [\"true\"]\n").unwrap();
        let put = |line: &[&str], says_command| {
            let line = line.iter().map(OsString::from).collect();
            put_in(line, says_command, &read(About::Job, &file, run()).unwrap()).join(OsStr::new(" "))
        };
        assert_eq!(put(&["agentd", "-v", "run", "--job", "f"], false), "agentd -v run --memory=1g --job f -- true");
        assert_eq!(put(&["agentd", "run", "--job", "f", "--"], false), "agentd run --memory=1g --job f -- true");
        assert_eq!(put(&["agentd", "run", "--job", "f", "--", "ls"], true), "agentd run --memory=1g --job f -- ls");
        std::fs::write(&file, "#".repeat(70_000)).unwrap();
        assert!(matches!(read(About::Job, &file, run()), Err(FileError::Long { .. })));
    }

    proptest! {
        #[test]
        fn whatever_a_file_holds_it_is_words_or_a_mistake(text in "\\PC{0,200}") {
            if let Err(mistake) = words(About::Job, &text, run()) {
                prop_assert!(mistake.at <= text.len());
            }
        }

        #[test]
        fn a_string_stays_one_word(value in "[^\0]{0,40}") {
            let text = format!("command = [{}]\nentrypoint = {0}", toml::Value::String(value.clone()));
            let words = words(About::Job, &text, run()).unwrap();
            prop_assert_eq!(&words.command, std::slice::from_ref(&value));
            prop_assert_eq!(&words.flags, &[format!("--entrypoint={value}")]);
        }
    }
}
