//! Where an image's name leads: `registries.conf` (containers-registries.conf(5), version 2) and what goes without saying.
//!
//! `unqualified-search-registries` is not used: a bare name is Docker Hub's here, so that one name means one image on
//! every machine. One that an alias leads elsewhere is refused: podman's users mean another image by it. Invariant: a file
//! that cannot be read stops the pull: it might block the image.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::error::RegistryError;
use super::files;
use crate::printable::printable;
use crate::reference::Name;

/// A place that may have the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Location {
    /// `HOST[:PORT]`.
    pub(super) host: String,
    pub(super) repository: String,
    /// Whether HTTP, and certificates nobody vouches for, are good enough.
    pub(super) insecure: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct File {
    registry: Vec<Registry>,
    credential_helpers: Vec<String>,
    aliases: BTreeMap<String, String>,
}

/// What all the files together say.
#[derive(Debug, Default)]
pub(super) struct Settings {
    entries: Vec<Registry>,
    /// Who is asked for credentials, in order, and the file that says so; the auth files alone where none does.
    pub(super) helpers: Option<(Vec<String>, PathBuf)>,
    /// By name without a registry: what it leads to, and the file that says so.
    aliases: BTreeMap<String, (String, PathBuf)>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Registry {
    prefix: String,
    location: String,
    insecure: bool,
    blocked: bool,
    mirror_by_digest_only: bool,
    mirror: Vec<Mirror>,
    #[serde(skip)]
    path: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Mirror {
    location: String,
    insecure: bool,
    pull_from_mirror: PullFrom,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum PullFrom {
    #[default]
    All,
    DigestOnly,
    TagOnly,
}

impl Registry {
    fn prefix(&self) -> &str {
        if self.prefix.is_empty() { &self.location } else { &self.prefix }
    }

    /// What of `name` (`HOST/REPOSITORY`) this is about: that many bytes of it.
    fn matches(&self, name: &str) -> Option<usize> {
        let prefix = self.prefix();
        let length = match prefix.strip_prefix("*.") {
            // A subdomain of any depth, the whole host and no more.
            Some(domain) => {
                let host = name.split(['/', ':']).next()?;
                host.strip_suffix(domain)?.strip_suffix('.').filter(|sub| !sub.is_empty())?;
                host.len()
            }
            None => name.starts_with(prefix).then_some(prefix.len())?,
        };
        let ends = matches!(name.as_bytes().get(length), None | Some(b'/' | b':'));
        (!prefix.is_empty() && ends).then_some(length)
    }
}

impl Settings {
    /// Refuses `short`, a name that was given without a registry and is taken for `name`, if podman takes it for another.
    pub(super) fn check_alias(&self, short: &str, name: &Name) -> Result<(), RegistryError> {
        let Some((leads, path)) = self.aliases.get(short).filter(|(leads, _)| !leads.is_empty()) else { return Ok(()) };
        let here = format!("{}/{}", name.registry(), name.repository());
        let same =
            leads.parse::<Name>().is_ok_and(|leads| format!("{}/{}", leads.registry(), leads.repository()) == here);
        if same {
            return Ok(());
        }
        let (short, leads) = (printable(short.as_bytes()), printable(leads.as_bytes()));
        Err(RegistryError::Alias { short, here, leads, path: files::shown(path) })
    }
}

/// The places to ask, in order; the last is the origin.
pub(super) fn locations(
    settings: &Settings,
    registry: &str,
    repository: &str,
    by_digest: bool,
) -> Result<Vec<Location>, RegistryError> {
    let name = format!("{registry}/{repository}");
    // The longest prefix decides; of equal ones the file read last.
    let found = settings.entries.iter().filter_map(|entry| Some((entry, entry.matches(&name)?)));
    let Some((entry, length)) = found.max_by_key(|(entry, _)| entry.prefix().len()) else {
        return Ok(vec![location(&name, false, Path::new(""))?]);
    };
    if entry.blocked {
        return Err(RegistryError::Blocked { name, path: files::shown(&entry.path) });
    }
    let rest = &name[length..];
    let mut locations = Vec::new();
    for mirror in &entry.mirror {
        let wanted = match mirror.pull_from_mirror {
            PullFrom::All => by_digest || !entry.mirror_by_digest_only,
            PullFrom::DigestOnly => by_digest,
            PullFrom::TagOnly => !by_digest,
        };
        if wanted {
            locations.push(location(&format!("{}{rest}", mirror.location), mirror.insecure, &entry.path)?);
        }
    }
    let origin = if entry.location.is_empty() { name.clone() } else { format!("{}{rest}", entry.location) };
    locations.push(location(&origin, entry.insecure, &entry.path)?);
    Ok(locations)
}

fn location(name: &str, insecure: bool, path: &Path) -> Result<Location, RegistryError> {
    let parts = name.split_once('/').filter(|(host, repository)| {
        let of_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
        let of_path = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '/');
        let dots = repository.split('/').any(|part| matches!(part, "" | "." | ".."));
        !host.is_empty() && host.chars().all(of_host) && repository.chars().all(of_path) && !dots
    });
    let Some((host, repository)) = parts else {
        let reason = "a location in it is not HOST[:PORT][/PATH]".to_owned();
        return Err(RegistryError::File { path: files::shown(path), reason });
    };
    Ok(Location { host: host.to_owned(), repository: repository.to_owned(), insecure })
}

/// What the first file that is there says, then those of `FILE.d/*.conf` beside each.
pub(super) fn read(configured: &[PathBuf]) -> Result<Settings, RegistryError> {
    let mut texts = Vec::new();
    for path in configured {
        if let Some(text) = files::text(path)? {
            texts.push((path.clone(), text));
            break;
        }
    }
    // The last one listed is the machine's own: what a user says comes after it, and counts.
    for path in configured.iter().rev() {
        for path in files::listing(&path.with_added_extension("d"), "conf")? {
            if let Some(text) = files::text(&path)? {
                texts.push((path, text));
            }
        }
    }
    let mut settings = Settings::default();
    for (path, text) in texts {
        let file: File = toml::from_str(&text)
            .map_err(|error| RegistryError::File { path: files::shown(&path), reason: error.message().to_owned() })?;
        settings.entries.extend(file.registry.into_iter().map(|entry| Registry { path: path.clone(), ..entry }));
        settings.aliases.extend(file.aliases.into_iter().map(|(short, leads)| (short, (leads, path.clone()))));
        if !file.credential_helpers.is_empty() {
            settings.helpers = Some((file.credential_helpers, path));
        }
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    fn ask(text: &str, registry: &str, repository: &str, by_digest: bool) -> Result<Vec<String>, RegistryError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registries.conf");
        fs::write(&path, text).unwrap();
        let settings = read(&[dir.path().join("absent"), path])?;
        let locations = locations(&settings, registry, repository, by_digest)?;
        let shown = |l: Location| format!("{}/{}{}", l.host, l.repository, if l.insecure { "!" } else { "" });
        Ok(locations.into_iter().map(shown).collect())
    }

    const EXAMPLE: &str = r#"
        unqualified-search-registries = ["example.com"]
        short-name-mode = "permissive"
        [[registry]]
        prefix = "example.com/foo"
        location = "internal.example:5000/bar"
        [[registry.mirror]]
        location = "one.example/mirror"
        insecure = true
        [[registry.mirror]]
        location = "two.example"
        pull-from-mirror = "digest-only"
        [[registry.mirror]]
        location = "three.example/three"
        pull-from-mirror = "tag-only"
        [[registry]]
        location = "lab.example:5000"
        insecure = true
        [[registry]]
        prefix = "bad.example/evil"
        blocked = true
        [[registry]]
        prefix = "*.corp.example"
        [[registry.mirror]]
        location = "cache.example/corp"
        [[registry]]
        location = "docker.io"
        mirror-by-digest-only = true
        [[registry.mirror]]
        location = "hub.example"
    "#;

    #[test]
    fn names_lead_where_the_file_says() {
        for (registry, repository, by_digest, want) in [
            ("quay.io", "a/b", false, &["quay.io/a/b"][..]),
            (
                "example.com",
                "foo/img",
                false,
                &["one.example/mirror/img!", "three.example/three/img", "internal.example:5000/bar/img"],
            ),
            (
                "example.com",
                "foo/img",
                true,
                &["one.example/mirror/img!", "two.example/img", "internal.example:5000/bar/img"],
            ),
            ("example.com", "food", false, &["example.com/food"]),
            ("lab.example:5000", "x", false, &["lab.example:5000/x!"]),
            ("lab.example", "x", false, &["lab.example/x"]),
            ("bad.example", "evilest", false, &["bad.example/evilest"]),
            ("a.b.corp.example", "x", false, &["cache.example/corp/x", "a.b.corp.example/x"]),
            ("corp.example", "x", false, &["corp.example/x"]),
            ("notcorp.example", "x", false, &["notcorp.example/x"]),
            ("docker.io", "library/debian", false, &["docker.io/library/debian"]),
            ("docker.io", "library/debian", true, &["hub.example/library/debian", "docker.io/library/debian"]),
        ] {
            assert_eq!(ask(EXAMPLE, registry, repository, by_digest).unwrap(), want, "{registry}/{repository}");
        }
    }

    #[test]
    fn blocked_and_unreadable_stop_the_pull() {
        let message = |text: &str, name: &str| ask(text, "bad.example", name, false).unwrap_err().to_string();
        let blocked = message(EXAMPLE, "evil/x");
        assert!(blocked.starts_with("`bad.example/evil/x` is blocked by `/"), "{blocked}");
        for text in ["[[registry", "registry = 1", "[[registry]]\nlocation='bad.example'\nblocked = 'no'"] {
            let message = message(text, "x");
            assert!(message.contains("registries.conf` cannot be used"), "{message}");
        }
        let message = message("[[registry]]\nprefix='bad.example'\nlocation='http://x y'", "x");
        assert!(message.contains("not HOST[:PORT][/PATH]"), "{message}");
    }

    #[test]
    fn the_first_file_counts_and_what_lies_beside_each() {
        let dir = tempfile::tempdir().unwrap();
        let [user, machine] = ["user", "machine"].map(|name| dir.path().join(name).join("registries.conf"));
        let write = |path: &Path, text: &str| {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(&user, "[[registry]]\nprefix='a.example'\nlocation='user.example'");
        write(&machine, "[[registry]]\nprefix='b.example'\nlocation='machine.example'");
        let entry = |to: &str| format!("[[registry]]\nprefix='c.example'\nlocation='{to}'");
        write(&dir.path().join("user/registries.conf.d/1.conf"), &entry("user-1.example"));
        write(&dir.path().join("machine/registries.conf.d/1.conf"), &entry("machine-1.example"));
        write(&dir.path().join("machine/registries.conf.d/2.not"), "not read");
        let files = [user.clone(), machine];
        let host = |registry: &str| locations(&read(&files).unwrap(), registry, "x", false).unwrap()[0].host.clone();
        assert_eq!(host("a.example"), "user.example");
        assert_eq!(host("b.example"), "b.example");
        assert_eq!(host("c.example"), "user-1.example");
        fs::remove_file(user).unwrap();
        assert_eq!(host("b.example"), "machine.example");
    }

    #[test]
    fn an_alias_that_leads_elsewhere_is_refused_and_the_last_one_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registries.conf");
        let more = dir.path().join("registries.conf.d");
        fs::create_dir(&more).unwrap();
        let aliases = "[aliases]\n'debian' = 'docker.io/library/debian'\nfedora = 'registry.example/fedora'\ngone = 'a.example/x'";
        fs::write(more.join("1.conf"), aliases).unwrap();
        fs::write(more.join("2.conf"), "[aliases]\ngone = ''\n'fo\u{202e}o/bar' = 'no name'").unwrap();
        fs::write(&path, "credential-helpers = ['containers-auth.json', 'ring']").unwrap();
        let settings = read(std::slice::from_ref(&path)).unwrap();
        let check = |short: &str| settings.check_alias(short, &"docker.io/library/debian".parse().unwrap());
        for fine in ["debian", "gone", "other"] {
            check(fine).unwrap();
        }
        let refused = check("fedora").unwrap_err().to_string();
        assert!(
            refused.contains("`docker.io/library/debian`") && refused.contains("`registry.example/fedora`"),
            "{refused}"
        );
        assert!(refused.contains("1.conf"), "{refused}");
        let odd = check("fo\u{202e}o/bar").unwrap_err().to_string();
        assert!(odd.contains("`fo\\u{202e}o/bar`"), "{odd}");
        assert_eq!(settings.helpers, Some((vec!["containers-auth.json".into(), "ring".into()], path)));
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(
            text in r#"(\[aliases\]\n|"?[a-z/]{1,4}"? ?= ?"[a-z./:é]{0,9}"\n|credential-helpers = \["[a-z]{0,3}"\]\n|\[\[registry(\.mirror)?\]\]\n|(prefix|location) ?= ?"[*a-z./:é]{0,12}"\n|blocked = true\n|\PC{0,3}\n){0,8}"#,
            registry in "[a-z.:]{1,12}",
            repository in "[a-z/]{1,8}",
        ) {
            if let Ok(locations) = ask(&text, &registry, &repository, false) {
                prop_assert!(!locations.is_empty());
            }
        }
    }
}
