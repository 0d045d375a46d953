//! `--change`: what a committed image says about running it, in the words of a Dockerfile.
//!
//! Invariant: what parses has no NUL and no empty name, so that the config it makes can be read back.

use std::str::FromStr;

use serde_json::{Map, Value, json};

use crate::printable::printable;

/// One instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// `CMD [words]`, or a line for `/bin/sh -c`.
    Cmd(Vec<String>),
    /// `ENTRYPOINT [words]`, or a line for `/bin/sh -c`. The base's `Cmd` was for another program, and goes.
    Entrypoint(Vec<String>),
    /// `ENV NAME=VALUE`.
    Env(String, String),
    /// `WORKDIR PATH`; a relative one begins where the base's ends.
    WorkingDir(String),
    /// `USER NAME`.
    User(String),
}

/// Text that is not a [`Change`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no change: {reason}; write CMD, ENTRYPOINT, ENV NAME=VALUE, WORKDIR or USER as in a Dockerfile")]
pub struct ChangeError {
    text: String,
    reason: &'static str,
}

impl FromStr for Change {
    type Err = ChangeError;

    fn from_str(text: &str) -> Result<Change, ChangeError> {
        let refuse = |reason| ChangeError { text: printable(text.as_bytes()), reason };
        if text.contains('\0') {
            return Err(refuse("it holds a NUL byte"));
        }
        // podman takes `CMD=…` as well.
        let (word, rest) =
            text.trim().split_once([' ', '=']).ok_or_else(|| refuse("nothing follows the instruction"))?;
        let rest = rest.trim();
        if rest.is_empty() {
            return Err(refuse("nothing follows the instruction"));
        }
        match word.to_ascii_uppercase().as_str() {
            "CMD" => words(rest).map(Change::Cmd).ok_or_else(|| refuse("its words are no JSON array of strings")),
            "ENTRYPOINT" => {
                words(rest).map(Change::Entrypoint).ok_or_else(|| refuse("its words are no JSON array of strings"))
            }
            "ENV" => match rest.split_once('=') {
                Some((name, value)) if !name.is_empty() && !name.contains(char::is_whitespace) => {
                    Ok(Change::Env(name.to_owned(), value.to_owned()))
                }
                _ => Err(refuse("a variable is NAME=VALUE")),
            },
            "WORKDIR" => Ok(Change::WorkingDir(rest.to_owned())),
            "USER" => Ok(Change::User(rest.to_owned())),
            _ => Err(refuse("the instruction is not known")),
        }
    }
}

/// A JSON array is the words themselves; any other text is the shell's.
fn words(text: &str) -> Option<Vec<String>> {
    if !text.starts_with('[') {
        return Some(["/bin/sh", "-c", text].map(str::to_owned).into());
    }
    serde_json::from_str::<Vec<String>>(text).ok().filter(|words| words.iter().all(|word| !word.contains('\0')))
}

/// Applies `changes` to the `config` object of an image's config.
pub(super) fn apply(changes: &[Change], config: &mut Map<String, Value>) {
    let has_cmd = changes.iter().any(|change| matches!(change, Change::Cmd(_)));
    for change in changes {
        match change {
            Change::Cmd(words) => _ = config.insert("Cmd".into(), json!(words)),
            Change::Entrypoint(words) => {
                config.insert("Entrypoint".into(), json!(words));
                if !has_cmd {
                    config.remove("Cmd");
                }
            }
            Change::Env(name, value) => {
                let entry = json!(format!("{name}={value}"));
                let env = config.entry("Env").or_insert_with(|| json!([]));
                if !env.is_array() {
                    *env = json!([]);
                }
                let Some(env) = env.as_array_mut() else { continue };
                let same = |known: &&mut Value| {
                    known.as_str().and_then(|known| known.split_once('=')).is_some_and(|(known, _)| known == name)
                };
                match env.iter_mut().find(same) {
                    Some(known) => *known = entry,
                    None => env.push(entry),
                }
            }
            Change::WorkingDir(path) => {
                let before = config.get("WorkingDir").and_then(Value::as_str).filter(|before| !before.is_empty());
                let path = match before {
                    _ if path.starts_with('/') => path.clone(),
                    Some(before) => format!("{}/{path}", before.trim_end_matches('/')),
                    None => format!("/{path}"),
                };
                config.insert("WorkingDir".into(), json!(path));
            }
            Change::User(user) => _ = config.insert("User".into(), json!(user)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn applied(changes: &[&str], config: Value) -> Value {
        let changes: Vec<Change> = changes.iter().map(|text| text.parse().unwrap()).collect();
        let Value::Object(mut config) = config else { panic!("an object") };
        apply(&changes, &mut config);
        Value::Object(config)
    }

    #[test]
    fn changes_are_those_of_a_dockerfile() {
        let base = || json!({"Cmd": ["sh"], "Env": ["A=1", "B=2"], "WorkingDir": "/w/"});
        for (changes, want) in [
            (vec!["CMD [\"a\", \"b c\"]"], json!({"Cmd": ["a", "b c"]})),
            (vec!["cmd a b"], json!({"Cmd": ["/bin/sh", "-c", "a b"]})),
            (vec!["CMD=/bin/a"], json!({"Cmd": ["/bin/sh", "-c", "/bin/a"]})),
            (vec!["ENTRYPOINT [\"e\"]"], json!({"Entrypoint": ["e"], "Cmd": null})),
            (vec!["CMD [\"c\"]", "ENTRYPOINT [\"e\"]"], json!({"Entrypoint": ["e"], "Cmd": ["c"]})),
            (vec!["ENV B=x=y z", "ENV C="], json!({"Env": ["A=1", "B=x=y z", "C="]})),
            (vec!["WORKDIR sub"], json!({"WorkingDir": "/w/sub"})),
            (vec!["WORKDIR /abs"], json!({"WorkingDir": "/abs"})),
            (vec!["USER 5:6"], json!({"User": "5:6"})),
        ] {
            let applied = applied(&changes, base());
            for (key, value) in want.as_object().unwrap() {
                assert_eq!(applied.get(key).unwrap_or(&Value::Null), value, "{changes:?}");
            }
        }
        assert_eq!(applied(&["ENV A=1"], json!({"Env": null})), json!({"Env": ["A=1"]}));
        assert_eq!(applied(&["WORKDIR x"], json!({})), json!({"WorkingDir": "/x"}));
    }

    #[test]
    fn other_words_are_refused() {
        for bad in [
            "",
            "CMD",
            "CMD ",
            "RUN x",
            "ENV A",
            "ENV =x",
            "ENV A B=1",
            "CMD [1]",
            "CMD [",
            "CMD [\"\\u0000\"]",
            "USER a\0",
        ] {
            assert!(bad.parse::<Change>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_parses_makes_a_config_that_is_read(text in "(CMD|ENTRYPOINT|ENV|WORKDIR|USER)[ =]\\PC{0,20}|\\PC*") {
            if let Ok(change) = text.parse::<Change>() {
                let mut config = Map::new();
                apply(&[change], &mut config);
                let whole = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}, "config": config});
                let read = serde_json::from_value(whole).unwrap();
                prop_assert!(crate::config::ImageConfig::from_oci(&read).is_ok());
            }
        }
    }
}
