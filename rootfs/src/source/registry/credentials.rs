//! Credentials: the auth files of podman and docker (containers-auth.json(5)) and their helpers.
//!
//! Invariant: a secret is shown by no `Debug`, stands in no error, and is found only for the registry, or the part of
//! it, under whose name the user stored it.

mod helper;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;

use super::error::RegistryError;
use super::files;

/// What a registry, or its token service, is shown.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Credential {
    Password {
        user: String,
        password: String,
    },
    /// A refresh token of OAuth 2.
    IdentityToken(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Credential::Password { .. } => "Password",
            Credential::IdentityToken(_) => "IdentityToken",
        })
    }
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct File {
    auths: BTreeMap<String, Entry>,
    creds_store: String,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

/// Who keeps credentials.
#[derive(Clone, Debug, Default)]
pub(super) struct Keepers {
    pub(super) auth_files: Vec<PathBuf>,
    /// `credential-helpers` of registries.conf, and the file that has it.
    pub(super) helpers: Option<(Vec<String>, PathBuf)>,
}

/// What registries.conf calls the auth files.
const AUTH_FILES: &str = "containers-auth.json";

impl Keepers {
    /// The credential for `repository` of `registry` of the first that has one.
    pub(super) fn find(&self, registry: &str, repository: &str) -> Result<Option<Credential>, RegistryError> {
        let Some((helpers, path)) = &self.helpers else { return find(&self.auth_files, registry, repository) };
        for helper in helpers {
            let found = match helper.as_str() {
                AUTH_FILES => find(&self.auth_files, registry, repository)?,
                helper => helper::ask(helper, registry, path)?,
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }
}

/// The credential for `repository` of `registry` in the first of `paths` that has one.
fn find(paths: &[PathBuf], registry: &str, repository: &str) -> Result<Option<Credential>, RegistryError> {
    for path in paths {
        let Some(bytes) = files::bytes(path)? else { continue };
        let bad = |reason: &str| RegistryError::File { path: files::shown(path), reason: reason.to_owned() };
        let file = parse(&bytes).map_err(|reason| bad(&reason))?;
        if let Some(helper) = longest(&file.cred_helpers, registry, repository, |helper| !helper.is_empty())
            && let Some(credential) = helper::ask(helper, registry, path)?
        {
            return Ok(Some(credential));
        }
        if let Some(entry) = longest(&file.auths, registry, repository, |entry| !entry.is_empty()) {
            let bad = || bad(&format!("`auth` of {registry} is not the base64 of USER:PASSWORD"));
            return Ok(Some(entry.credential().ok_or_else(bad)?));
        }
        if !file.creds_store.is_empty()
            && let Some(credential) = helper::ask(&file.creds_store, registry, path)?
        {
            return Ok(Some(credential));
        }
    }
    Ok(None)
}

/// Decodes every credential of a file with these bytes.
#[cfg(feature = "fuzzing")]
pub(super) fn decode_all(untrusted: &[u8]) -> usize {
    parse(untrusted).map_or(0, |file| file.auths.values().filter_map(Entry::credential).count())
}

/// Says where it is not JSON, but not what stands there, as serde would: that may be a password.
fn parse(bytes: &[u8]) -> Result<File, String> {
    if bytes.trim_ascii().is_empty() {
        return Ok(File::default());
    }
    serde_json::from_slice(bytes).map_err(|error| {
        format!("it is not what podman or docker write (line {}, column {})", error.line(), error.column())
    })
}

impl Entry {
    /// docker leaves such where a helper has the rest.
    fn is_empty(&self) -> bool {
        self.auth.is_empty() && self.username.is_empty() && self.identitytoken.is_empty()
    }

    fn credential(&self) -> Option<Credential> {
        if !self.identitytoken.is_empty() {
            return Some(Credential::IdentityToken(self.identitytoken.clone()));
        }
        if self.auth.is_empty() && !self.username.is_empty() {
            return Some(Credential::Password { user: self.username.clone(), password: self.password.clone() });
        }
        let auth = self.auth.trim().trim_end_matches('=');
        let decoded = STANDARD_NO_PAD.decode(auth).ok().and_then(|bytes| String::from_utf8(bytes).ok())?;
        let (user, password) = decoded.split_once(':')?;
        // docker once padded with NULs.
        Some(Credential::Password { user: user.to_owned(), password: password.trim_matches('\0').to_owned() })
    }
}

/// The entry under the longest key that names the repository, a part of its path, or the registry.
fn longest<'m, T>(
    map: &'m BTreeMap<String, T>,
    registry: &str,
    repository: &str,
    usable: impl Fn(&T) -> bool,
) -> Option<&'m T> {
    let whole = format!("{registry}/{repository}");
    let mut name = whole.as_str();
    loop {
        let exact = map.get(name).filter(|entry| usable(entry));
        let found = exact.or_else(|| {
            let mut same = map.iter().filter(|(key, entry)| normal(key) == name && usable(entry));
            same.next().map(|(_, entry)| entry)
        });
        if found.is_some() {
            return found;
        }
        name = name.rsplit_once('/')?.0;
    }
}

/// A key as podman writes them: docker writes addresses.
fn normal(key: &str) -> &str {
    let address = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
    match address.map(|rest| rest.split('/').next().unwrap_or(rest)).unwrap_or(key) {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        key => key,
    }
}

/// `Basic …`.
pub(super) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;

    fn password(user: &str, password: &str) -> Option<Credential> {
        Some(Credential::Password { user: user.into(), password: password.into() })
    }

    fn ask(texts: &[&str], registry: &str, repository: &str) -> Result<Option<Credential>, RegistryError> {
        let dir = tempfile::tempdir().unwrap();
        let mut paths = vec![dir.path().join("absent.json")];
        for (number, text) in texts.iter().enumerate() {
            paths.push(dir.path().join(format!("{number}.json")));
            fs::write(&paths[number + 1], text).unwrap();
        }
        find(&paths, registry, repository)
    }

    #[test]
    fn the_longest_key_counts() {
        let auth = |user: &str| format!(r#"{{"auth":"{}"}}"#, STANDARD.encode(format!("{user}:p:w")));
        let text = format!(
            r#"{{"auths":{{"r.example":{},"r.example/a":{},"r.example/a/b":{},"r.example:5000":{},
                "https://index.docker.io/v1/":{},"https://old.example/v1/":{},"empty.example":{{}}}},"HttpHeaders":{{}}}}"#,
            auth("host"),
            auth("a"),
            auth("ab"),
            auth("port"),
            auth("hub"),
            auth("old")
        );
        for (registry, repository, user) in [
            ("r.example", "x", Some("host")),
            ("r.example", "ab", Some("host")),
            ("r.example", "a", Some("a")),
            ("r.example", "a/c", Some("a")),
            ("r.example", "a/b", Some("ab")),
            ("r.example", "a/b/c", Some("ab")),
            ("r.example:5000", "a/b", Some("port")),
            ("docker.io", "library/debian", Some("hub")),
            ("old.example", "v1/x", Some("old")),
            ("example", "x", None),
            ("empty.example", "x", None),
            ("r.example.evil.example", "x", None),
        ] {
            let want = user.and_then(|user| password(user, "p:w"));
            assert_eq!(ask(&[&text], registry, repository).unwrap(), want, "{registry}/{repository}");
        }
    }

    #[test]
    fn the_first_file_that_knows_it_counts() {
        let first = r#"{"auths":{"a.example":{"auth":"YTpi"}}}"#;
        let second = r#"{"auths":{"a.example":{"auth":"eDp5"},"b.example":{"username":"u","password":"p"},
                         "c.example":{"auth":"eDp5","identitytoken":"t"}}}"#;
        let texts = ["", "{}", first, second];
        assert_eq!(ask(&texts, "a.example", "x").unwrap(), password("a", "b"));
        assert_eq!(ask(&texts, "b.example", "x").unwrap(), password("u", "p"));
        assert_eq!(ask(&texts, "c.example", "x").unwrap(), Some(Credential::IdentityToken("t".into())));
        assert_eq!(ask(&texts, "d.example", "x").unwrap(), None);
    }

    #[test]
    fn damage_is_told_without_the_secret() {
        for text in [
            r#"{"auths":{"a.example":{"auth":"c2VjcmV0"}}}"#,
            r#"{"auths":{"a.example":{"auth":"%%c2VjcmV0"}}}"#,
            r#"{"auths":{"a.example":"c2VjcmV0"}}"#,
            r#"{"auths":{"a.example":{"password":"c2VjcmV0""#,
        ] {
            let message = ask(&[text], "a.example", "x").unwrap_err().to_string();
            assert!(message.contains("0.json` cannot be used") && !message.contains("c2Vj"), "{message}");
        }
        let shown = format!("{:?}", [password("user", "secret"), Some(Credential::IdentityToken("secret".into()))]);
        assert!(!shown.contains("secret"));
    }

    #[test]
    fn what_is_no_file_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        assert!(find(&[dir.path().to_owned()], "a.example", "x").is_err());
        let secret = dir.path().join("secret");
        fs::write(&secret, "{}").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).unwrap();
        if fs::read(&secret).is_err() {
            assert!(find(&[secret], "a.example", "x").is_err());
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(
            text in r#"(\{|\}|"auths":|"credHelpers":|"auth":|"a":|"[a-z=+/]{0,9}"|,|\PC){0,24}"#,
            registry in "[a-z.:]{1,8}",
            repository in "[a-z/]{1,8}",
        ) {
            let file = parse(text.as_bytes()).unwrap_or_default();
            let entry = longest(&file.auths, &registry, &repository, |_| true);
            prop_assert!(entry.is_none_or(|entry| entry.credential().is_none() || !entry.is_empty()));
        }
    }
}
