//! Secrets: where each comes from, and its value, read once before anything is started.
//!
//! Invariant: a value is never part of a spec, a plan, a record or an error; only its name is.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;

use agentd_egress::{Credential, CredentialError, Key};
use agentd_init::{Secret, Secrets};
use zeroize::Zeroizing;

/// Where secrets are inside, a file each.
pub const DIRECTORY: &str = "/run/secrets";

/// Bytes of a value at most: a key, a certificate chain or a service account's document, not an archive.
pub const MAX_BYTES: usize = 64 * 1024;

/// Secrets of a job at most.
pub const MOST: usize = 32;

/// Bytes of all values of a job at most: what looks for them in the output takes some hundred times that.
pub const MAX_TOGETHER: usize = 4 * MAX_BYTES;

/// Bytes of a name at most.
const LONGEST_NAME: usize = 64;

/// `--secret NAME[=SOURCE]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskedSecret {
    /// What it is called inside.
    pub name: String,
    /// Where its value is.
    pub source: Source,
}

/// `--secret NAME[@HOST…][=SOURCE]`: a secret, and where the broker adds it to requests; nowhere for one that is a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskedKey {
    /// The secret.
    pub secret: AskedSecret,
    /// What it is for.
    pub credentials: Vec<Credential>,
}

/// The values of a job's secrets.
#[derive(Debug, Default)]
pub struct Values {
    /// Those that the box gets.
    pub inside: Secrets,
    /// Those that the broker adds to requests.
    pub keys: Vec<Key>,
}

impl Values {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.named().next().is_none()
    }

    /// Each with its name.
    pub fn named(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let inside = self.inside.files.iter().chain(&self.inside.variables);
        let inside = inside.map(|secret| (secret.name.as_str(), &secret.value[..]));
        inside.chain(self.keys.iter().map(|key| (key.name.as_str(), &key.value[..])))
    }
}

/// Where a value is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `env:NAME`: a variable of agentd's own environment.
    Variable(String),
    /// `file:PATH`: a host file, byte for byte.
    File(PathBuf),
    /// `cmd:COMMAND`: what a shell's command prints, without one newline at the end.
    Command(String),
    /// `cred:NAME`: what systemd gave the unit (`LoadCredential=`, systemd.exec(5)).
    Credential(String),
}

/// A secret that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The name.
    #[error("`{}` is no name for a secret: up to 64 letters, digits, `_`, `-` and `.`, a letter or `_` first", .0.escape_debug())]
    Name(String),
    /// The name of a variable.
    #[error("`{}` is no name for a variable: letters, digits and `_`; --secret gives a file instead", .0.escape_debug())]
    VariableName(String),
    /// The source.
    #[error("the source of secret {0} is not known: write env:VARIABLE, file:PATH, cmd:COMMAND or cred:NAME")]
    Source(String),
    /// What a key is for.
    #[error("secret {name}: {problem}")]
    Credential {
        /// The secret.
        name: String,
        /// What is wrong.
        problem: CredentialError,
    },
    /// Two keys in one header.
    #[error("secrets {0} and {1} would be the same header of the same requests; give one of them")]
    InTheWay(String, String),
    /// Two of one name.
    #[error("secret {0} is given twice")]
    Twice(String),
    /// More than [`MOST`].
    #[error("a job has at most {MOST} secrets")]
    TooMany,
    /// More than [`MAX_TOGETHER`].
    #[error("the secrets of a job have at most 256 KiB together")]
    TooLong,
    /// Nothing there.
    #[error("secret {name}: {what}")]
    Missing {
        /// The secret.
        name: String,
        /// What is missing.
        what: String,
    },
    /// The operating system.
    #[error("secret {name}: cannot {what}")]
    Read {
        /// The secret.
        name: String,
        /// What was tried.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// The command.
    #[error("secret {name}: its command failed ({status})")]
    Command {
        /// The secret.
        name: String,
        /// How it ended.
        status: std::process::ExitStatus,
    },
    /// The value.
    #[error("secret {name}: its value {problem}")]
    Value {
        /// The secret.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl FromStr for AskedSecret {
    type Err = SecretError;

    fn from_str(text: &str) -> Result<Self, SecretError> {
        let (name, source) = match text.split_once('=') {
            Some((name, source)) => (name, Some(source)),
            None => (text, None),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            || !name.chars().all(plain)
            || name.len() > LONGEST_NAME
        {
            return Err(SecretError::Name(name.to_owned()));
        }
        let source = match source.map(|source| source.split_once(':').unwrap_or((source, ""))) {
            None => Source::Variable(name.to_owned()),
            Some(("env", variable)) if !variable.is_empty() => Source::Variable(variable.to_owned()),
            Some(("file", path)) if !path.is_empty() => Source::File(path.into()),
            Some(("cmd", command)) if !command.is_empty() => Source::Command(command.to_owned()),
            Some(("cred", credential)) if is_file_name(credential) => Source::Credential(credential.to_owned()),
            Some(_) => return Err(SecretError::Source(name.to_owned())),
        };
        Ok(AskedSecret { name: name.to_owned(), source })
    }
}

impl FromStr for AskedKey {
    type Err = SecretError;

    fn from_str(text: &str) -> Result<Self, SecretError> {
        let (name, source) = text.split_once('=').map_or((text, None), |(name, source)| (name, Some(source)));
        let (name, bound) = name.split_once('@').map_or((name, None), |(name, bound)| (name, Some(bound)));
        let secret = match source {
            Some(source) => format!("{name}={source}").parse::<AskedSecret>()?,
            None => name.parse()?,
        };
        let credentials = match bound {
            None => Credential::known(name),
            Some(bound) => {
                let wrong = |problem| SecretError::Credential { name: name.to_owned(), problem };
                vec![Credential::bound(name, bound).map_err(wrong)?]
            }
        };
        Ok(AskedKey { secret, credentials })
    }
}

fn is_file_name(name: &str) -> bool {
    !name.is_empty() && !name.contains('/') && name != "." && name != ".."
}

impl AskedSecret {
    /// The value as a file's contents; `environment` looks a variable up.
    ///
    /// # Errors
    /// [`SecretError`].
    pub fn read(&self, environment: &dyn Fn(&OsStr) -> Option<OsString>) -> Result<Secret, SecretError> {
        let value = match &self.source {
            Source::Variable(variable) => {
                let missing = || self.missing(format!("the variable {} is not set here", variable.escape_debug()));
                Zeroizing::new(environment(variable.as_ref()).ok_or_else(missing)?.into_vec())
            }
            Source::File(path) => self.file(path)?,
            Source::Command(command) => self.command(command)?,
            Source::Credential(credential) => {
                let directory = environment("CREDENTIALS_DIRECTORY".as_ref());
                let missing = || {
                    self.missing(
                        "CREDENTIALS_DIRECTORY is not set: systemd sets it for a unit with LoadCredential=".into(),
                    )
                };
                self.file(&PathBuf::from(directory.ok_or_else(missing)?).join(credential))?
            }
        };
        if value.is_empty() {
            return Err(self.wrong("is empty"));
        }
        if value.len() > MAX_BYTES {
            return Err(self.wrong("is longer than 64 KiB"));
        }
        Ok(Secret { name: self.name.clone(), value })
    }

    /// The same as a variable's value: without the newlines at the end, which no shell would leave there either.
    ///
    /// # Errors
    /// [`SecretError`].
    pub fn read_for_variable(&self, environment: &dyn Fn(&OsStr) -> Option<OsString>) -> Result<Secret, SecretError> {
        if self.name.contains(['-', '.']) {
            return Err(SecretError::VariableName(self.name.clone()));
        }
        let mut secret = self.read(environment)?;
        let end = secret.value.iter().rposition(|byte| *byte != b'\n').map_or(0, |last| last + 1);
        secret.value.truncate(end);
        match &secret.value[..] {
            [] => Err(self.wrong("is empty")),
            value if value.contains(&0) => Err(self.wrong("holds a NUL byte, which no variable can")),
            _ => Ok(secret),
        }
    }

    /// The same as the broker's.
    ///
    /// # Errors
    /// [`SecretError`].
    pub fn read_for_broker(&self, environment: &dyn Fn(&OsStr) -> Option<OsString>) -> Result<Key, SecretError> {
        let mut secret = self.read(environment)?;
        let length = agentd_egress::key(&secret.value).map_err(|problem| self.wrong(problem))?.len();
        secret.value.truncate(length);
        Ok(Key { name: secret.name, value: secret.value })
    }

    fn file(&self, path: &Path) -> Result<Zeroizing<Vec<u8>>, SecretError> {
        let bytes = File::open(path).and_then(bounded);
        bytes.map_err(|source| self.unread(format!("read {}", path.display()), source))
    }

    fn command(&self, command: &str) -> Result<Zeroizing<Vec<u8>>, SecretError> {
        let error = |source| self.unread("run its command".into(), source);
        let mut shell = Command::new("/bin/sh");
        let mut child =
            shell.arg("-c").arg(command).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(error)?;
        // The pipe is closed with the reader: a command that says too much ends by SIGPIPE.
        let mut value = child.stdout.take().map_or_else(|| Ok(Zeroizing::default()), bounded).map_err(error)?;
        let status = child.wait().map_err(error)?;
        if value.len() > MAX_BYTES {
            return Ok(value);
        }
        if !status.success() {
            return Err(SecretError::Command { name: self.name.clone(), status });
        }
        if value.ends_with(b"\n") {
            value.pop();
        }
        Ok(value)
    }

    fn missing(&self, what: String) -> SecretError {
        SecretError::Missing { name: self.name.clone(), what }
    }

    fn unread(&self, what: String, source: io::Error) -> SecretError {
        SecretError::Read { name: self.name.clone(), what, source }
    }

    fn wrong(&self, problem: &'static str) -> SecretError {
        SecretError::Value { name: self.name.clone(), problem }
    }
}

/// Everything, or a byte more than a value may have. One allocation: a vector that grows leaves copies behind.
fn bounded(from: impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut value = Zeroizing::new(Vec::with_capacity(MAX_BYTES + 64));
    from.take(MAX_BYTES as u64 + 1).read_to_end(&mut value)?;
    Ok(value)
}

/// Checks how long all secrets of a job are together.
///
/// # Errors
/// [`SecretError::TooLong`].
pub fn check_lengths(secrets: &Values) -> Result<(), SecretError> {
    let together: usize = secrets.named().map(|(_, value)| value.len()).sum();
    if together > MAX_TOGETHER { Err(SecretError::TooLong) } else { Ok(()) }
}

/// Checks that no key is where another one would be.
///
/// # Errors
/// [`SecretError::InTheWay`].
pub fn check_credentials(credentials: &[Credential]) -> Result<(), SecretError> {
    for (at, one) in credentials.iter().enumerate() {
        if let Some(other) = credentials[..at].iter().find(|other| one.is_in_the_way_of(other)) {
            return Err(SecretError::InTheWay(other.secret.clone(), one.secret.clone()));
        }
    }
    Ok(())
}

/// Checks the names of all secrets of a job.
///
/// # Errors
/// [`SecretError::Twice`], [`SecretError::TooMany`].
pub fn check_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<(), SecretError> {
    let mut seen: Vec<&str> = Vec::new();
    for name in names {
        if seen.contains(&name) {
            return Err(SecretError::Twice(name.to_owned()));
        }
        seen.push(name);
        if seen.len() > MOST {
            return Err(SecretError::TooMany);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str) -> AskedSecret {
        text.parse().unwrap()
    }

    fn read(text: &str) -> Result<Vec<u8>, String> {
        let environment = |name: &OsStr| (name == "TOKEN").then(|| "sesame".into());
        asked(text).read(&environment).map(|secret| secret.value.to_vec()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_secret_is_a_name_and_perhaps_a_source() {
        assert_eq!(asked("TOKEN").source, Source::Variable("TOKEN".into()));
        assert_eq!(asked("a-b.c=env:X").source, Source::Variable("X".into()));
        assert_eq!(asked("a=file:/x=y:z").source, Source::File("/x=y:z".into()));
        assert_eq!(asked("a=cmd:pass a=b").source, Source::Command("pass a=b".into()));
        assert_eq!(asked("a=cred:b").source, Source::Credential("b".into()));
        for bad in
            ["", "=env:A", "../a", ".a", "a/b", "a b", "a=", "a=sesame", "a=env:", "a=cred:../b", "a=cred:..", "a\n"]
        {
            assert!(bad.parse::<AskedSecret>().is_err(), "{bad:?}");
        }
        assert!("a".repeat(65).parse::<AskedSecret>().is_err());
    }

    #[test]
    fn a_value_that_was_typed_by_mistake_is_not_repeated() {
        let error = "TOKEN=sesame".parse::<AskedSecret>().unwrap_err().to_string();
        assert!(!error.contains("sesame"), "{error}");
    }

    #[test]
    fn values_come_from_where_they_are_and_have_a_bound() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        std::fs::write(&path, "a\n\nb\n\n").unwrap();
        let file = format!("a=file:{}", path.display());
        assert_eq!(read("TOKEN").unwrap(), b"sesame");
        assert_eq!(read(&file).unwrap(), b"a\n\nb\n\n");
        assert_eq!(read("a=cmd:printf 'a\\n\\n'").unwrap(), b"a\n");
        assert!(read("OTHER").unwrap_err().contains("not set"));
        assert!(read("a=cred:b").unwrap_err().contains("CREDENTIALS_DIRECTORY"));
        assert!(read("a=cmd:echo value; exit 3").unwrap_err().contains('3'));
        assert!(read("a=file:/dev/null").unwrap_err().contains("empty"));
        assert!(read("a=file:/dev/zero").unwrap_err().contains("64 KiB"));
        assert!(read("a=cmd:cat /dev/zero").unwrap_err().contains("64 KiB"));
        std::fs::write(&path, vec![b'x'; MAX_BYTES]).unwrap();
        assert_eq!(read(&file).unwrap().len(), MAX_BYTES);
        let environment = |_: &OsStr| Some(directory.path().into());
        assert_eq!(asked("a=cred:key").read(&environment).unwrap().value.len(), MAX_BYTES);
    }

    #[test]
    fn a_variable_has_no_newline_at_its_end_and_no_nul() {
        let variable = |text: &str| {
            let value = asked(text).read_for_variable(&|_| None).map(|secret| secret.value.to_vec());
            value.map_err(|error| error.to_string())
        };
        assert_eq!(variable("a=cmd:printf 'x\\ny\\n\\n\\n'").unwrap(), b"x\ny");
        assert!(variable("a=cmd:printf '\\n\\n'").unwrap_err().contains("empty"));
        assert!(variable("a=cmd:printf 'x\\0y'").unwrap_err().contains("NUL"));
        assert!(variable("a.b=cmd:printf x").unwrap_err().contains("a.b"));
    }

    #[test]
    fn a_key_is_for_a_host_and_any_other_secret_is_a_file() {
        let key = |text: &str| text.parse::<AskedKey>().unwrap();
        assert!(key("TOKEN=cmd:a@b.org").credentials.is_empty());
        assert_eq!(key("GH_TOKEN=env:X").credentials.len(), 2);
        let bound = key("T@a.org:basic:me=file:/x@y");
        assert_eq!(bound.secret, asked("T=file:/x@y"));
        assert_eq!(bound.credentials[0].to_string(), "a.org");
        for bad in ["@a.org", "T@", "T@a.org:x", "T@*.org", "a b@a.org", "T@a.org="] {
            assert!(bad.parse::<AskedKey>().is_err(), "{bad:?}");
        }
        let both = [key("GH_TOKEN").credentials, key("GITHUB_TOKEN").credentials].concat();
        assert!(matches!(check_credentials(&both), Err(SecretError::InTheWay(..))));
        check_credentials(&key("GH_TOKEN").credentials).unwrap();
        let read = |text: &str| asked(text).read_for_broker(&|_| None).map(|key| key.value.to_vec());
        assert_eq!(read("a=cmd:printf 'sk-1\n\n'").unwrap(), b"sk-1");
        assert!(read("a=cmd:printf 'a b'").unwrap_err().to_string().contains("one line"));
    }

    #[test]
    fn names_are_unique_and_few() {
        assert!(matches!(check_names(["a", "b", "a"]), Err(SecretError::Twice(name)) if name == "a"));
        let names: Vec<String> = (0..=MOST).map(|n| format!("n{n}")).collect();
        assert!(matches!(check_names(names.iter().map(String::as_str)), Err(SecretError::TooMany)));
        check_names(names[1..].iter().map(String::as_str)).unwrap();
    }
}
