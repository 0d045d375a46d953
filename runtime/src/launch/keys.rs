//! Keys that the broker adds, as the box sees them: variables that lead its programs to the broker, and no key.
//!
//! Plain HTTP leads there: it stays on the box's own loopback, and TLS begins at the broker. Where TLS is ended there instead,
//! programs ask as always and believe the job's own authority, whose certificate stands beside those of the image.
//!
//! Invariant: what is here is made of names; no value of a secret passes.

use std::os::fd::AsFd;
use std::path::Path;

use agentd_egress::{Credential, How, Inspected};
use agentd_init::plan::{BoxPlan, Mount, Source};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

/// What a variable holds whose key is with the broker: programs look whether it is set.
pub const PLACEHOLDER: &str = "agentd-adds-the-key-outside";

/// Where the certificates are inside.
pub const TRUST: &str = "/run/agentd/trust";

/// Of them, the job's own authority's.
pub const CERTIFICATE: &str = "authority.pem";

/// The same behind those that the image believes.
pub const BUNDLE: &str = "bundle.pem";

/// Where distributions keep the authorities they believe, all in one file: Debian, Fedora, openSUSE, Alpine.
const BUNDLES: [&str; 4] = [
    "etc/ssl/certs/ca-certificates.crt",
    "etc/pki/tls/certs/ca-bundle.crt",
    "etc/ssl/ca-bundle.pem",
    "etc/ssl/cert.pem",
];

/// Bytes of such a file.
const LONGEST_BUNDLE: u64 = 4 << 20;

/// Variables that programs look for authorities in, instead of their own: OpenSSL and curl, git, Python, pip, cargo.
const INSTEAD: [&str; 6] =
    ["SSL_CERT_FILE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "REQUESTS_CA_BUNDLE", "PIP_CERT", "CARGO_HTTP_CAINFO"];

/// The same beside their own: node, and Claude Code.
const BESIDE: &str = "NODE_EXTRA_CA_CERTS";

/// The variables of a box whose requests are read. Those of the user come after them.
pub(super) fn environment(inspected: &Inspected) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = Vec::new();
    let is_variable = |name: &str| !name.contains(['-', '.']);
    for credential in &inspected.credentials {
        if is_variable(&credential.secret) && !env.iter().any(|(name, _)| *name == credential.secret) {
            env.push((credential.secret.clone(), PLACEHOLDER.to_owned()));
        }
    }
    if !inspected.terminated().is_empty() {
        let bundle = format!("{TRUST}/{BUNDLE}");
        env.extend(INSTEAD.map(|name| (name.to_owned(), bundle.clone())));
        env.push((BESIDE.to_owned(), format!("{TRUST}/{CERTIFICATE}")));
    }
    if inspected.terminate {
        return env;
    }
    if let Some(credential) = inspected.credentials.iter().find(|credential| is_of_claude(&credential.secret)) {
        env.push(("ANTHROPIC_BASE_URL".to_owned(), format!("http://{credential}")));
    }
    let is_basic = |credential: &&Credential| matches!(credential.how, How::Basic { .. });
    let repositories: Vec<&Credential> = inspected.credentials.iter().filter(is_basic).collect();
    for (number, credential) in repositories.iter().enumerate() {
        // As `git -c` would, and in every git that the box starts (git-config(1), GIT_CONFIG_COUNT).
        env.push((format!("GIT_CONFIG_KEY_{number}"), format!("url.http://{credential}/.insteadOf")));
        env.push((format!("GIT_CONFIG_VALUE_{number}"), format!("https://{credential}/")));
    }
    if !repositories.is_empty() {
        env.push(("GIT_CONFIG_COUNT".to_owned(), repositories.len().to_string()));
    }
    env
}

/// Whether a secret is what Claude Code tells its model who it is with.
#[must_use]
pub fn is_of_claude(secret: &str) -> bool {
    ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"].contains(&secret)
}

/// The authorities that the image believes, in PEM form; empty where it has no such file.
#[must_use]
pub fn image_authorities(inside: &BoxPlan) -> Vec<u8> {
    let host = [Source { path: "/".into(), device: 0, inode: 0 }];
    let layers = if inside.root.layers.is_empty() { &host[..] } else { &inside.root.layers };
    // As the box will see it: the uppermost layer that has it.
    let found = BUNDLES.iter().find_map(|name| layers.iter().rev().find_map(|layer| authorities_in(&layer.path, name)));
    found.unwrap_or_default()
}

fn authorities_in(root: &Path, name: &str) -> Option<Vec<u8>> {
    let root = openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    // What is no file is not waited for.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat2(root.as_fd(), name, flags, Mode::empty(), ResolveFlags::IN_ROOT).ok()?;
    let file = std::fs::File::from(file);
    if !file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() <= LONGEST_BUNDLE) {
        return None;
    }
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(file, LONGEST_BUNDLE), &mut bytes).ok()?;
    (!bytes.is_empty()).then_some(bytes)
}

/// The mount of the certificates, where the box has to believe the job's authority.
pub(super) fn mount(inspected: &Inspected) -> Option<Mount> {
    let names = [CERTIFICATE, BUNDLE].map(str::to_owned).to_vec();
    (!inspected.terminated().is_empty()).then(|| Mount::Trust { target: TRUST.into(), names })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inspected(keys: &[(&str, &str)]) -> Inspected {
        let credentials = keys.iter().map(|(name, text)| Credential::bound(name, text).unwrap()).collect();
        Inspected { credentials, ..Inspected::default() }
    }

    fn of(inspected: &Inspected, name: &str) -> Option<String> {
        let env = environment(inspected);
        env.into_iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    #[test]
    fn a_box_is_led_to_the_broker() {
        let mut some = inspected(&[("ANTHROPIC_API_KEY", "api.anthropic.com"), ("my-key", "a.org:8443:basic:me")]);
        some.credentials.extend(Credential::known("GITHUB_TOKEN"));
        assert_eq!(of(&some, "ANTHROPIC_API_KEY").as_deref(), Some(PLACEHOLDER));
        assert_eq!(of(&some, "GITHUB_TOKEN").as_deref(), Some(PLACEHOLDER));
        assert_eq!(of(&some, "my-key"), None);
        assert_eq!(of(&some, "ANTHROPIC_BASE_URL").as_deref(), Some("http://api.anthropic.com"));
        assert_eq!(of(&some, "GIT_CONFIG_COUNT").as_deref(), Some("2"));
        assert_eq!(of(&some, "GIT_CONFIG_KEY_0").as_deref(), Some("url.http://a.org:8443/.insteadOf"));
        assert_eq!(of(&some, "GIT_CONFIG_VALUE_1").as_deref(), Some("https://github.com/"));
        assert_eq!(of(&some, "SSL_CERT_FILE"), None);
        some.terminate = true;
        assert_eq!(of(&some, "ANTHROPIC_BASE_URL"), None);
        assert_eq!(of(&some, "GIT_CONFIG_COUNT"), None);
        assert_eq!(of(&some, "SSL_CERT_FILE").as_deref(), Some("/run/agentd/trust/bundle.pem"));
        assert_eq!(of(&some, BESIDE).as_deref(), Some("/run/agentd/trust/authority.pem"));
        assert!(environment(&Inspected::default()).is_empty() && mount(&Inspected::default()).is_none());
    }
}
