//! The secrets of `agentd run`: which there are, which of them the broker adds to requests, and their values.

use std::env;
use std::ffi::OsStr;

use agentd_egress::Credential;
use agentd_init::Secrets;
use agentd_init::plan::Network;
use anyhow::{Result, bail};

use crate::launch::keys;
use crate::launch::secrets::{self, AskedKey, AskedSecret, Values};
use crate::supervisor::LEAST_BYTES;

// Not a doc comment: clap would take it for what the verb does.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct SecretArgs {
    /// Give a secret: for a HOST, or with a name that says one (ANTHROPIC_API_KEY, ANTHROPIC_AUTH_TOKEN,
    /// CLAUDE_CODE_OAUTH_TOKEN, GITHUB_TOKEN, GH_TOKEN), it stays outside, and requests to that host get it there, as
    /// bearer (the default), basic:USER or header:NAME; the host is allowed by it. Any other is the file
    /// /run/secrets/NAME. SOURCE is env:VARIABLE, file:PATH, cmd:COMMAND or cred:NAME (systemd) [default: env:NAME]
    #[arg(long, value_name = "NAME[@HOST[:PORT][:HOW]][=SOURCE]")]
    secret: Vec<AskedKey>,
    /// Give a secret as file /run/secrets/NAME, whatever it is called
    #[arg(long, value_name = "NAME[=SOURCE]")]
    secret_file: Vec<AskedSecret>,
    /// Give a secret as a variable: every program of the box can read it and pass it on
    #[arg(long, value_name = "NAME[=SOURCE]")]
    secret_env: Vec<AskedSecret>,
}

impl SecretArgs {
    /// Checks what can be checked without a value.
    pub(super) fn check(&self, network: Network) -> Result<()> {
        let all = self.secret.iter().map(|key| &key.secret).chain(&self.secret_file).chain(&self.secret_env);
        secrets::check_names(all.map(|secret| secret.name.as_str()))?;
        secrets::check_credentials(&self.credentials())?;
        let with_broker = self.secret.iter().find(|key| !key.credentials.is_empty());
        if let (Network::Host, Some(AskedKey { secret, .. })) = (network, with_broker) {
            let name = &secret.name;
            bail!(
                "secret {name} is for the network broker, which --net host goes without; --secret-file gives it to the box"
            );
        }
        Ok(())
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.secret.is_empty() && self.secret_file.is_empty() && self.secret_env.is_empty()
    }

    /// What the broker adds, and to what.
    pub(super) fn credentials(&self) -> Vec<Credential> {
        self.secret.iter().flat_map(|key| key.credentials.iter().cloned()).collect()
    }

    /// Whether the broker adds the key of Claude Code.
    pub(super) fn has_one_for_claude(&self) -> bool {
        self.credentials().iter().any(|credential| keys::is_of_claude(&credential.secret))
    }

    /// Names of those that become files.
    pub(super) fn files(&self) -> Vec<String> {
        self.as_files().map(|secret| secret.name.clone()).collect()
    }

    /// Names of those that become variables.
    pub(super) fn variables(&self) -> Vec<String> {
        self.secret_env.iter().map(|secret| secret.name.clone()).collect()
    }

    fn as_files(&self) -> impl Iterator<Item = &AskedSecret> {
        let unbound = self.secret.iter().filter(|key| key.credentials.is_empty());
        unbound.map(|key| &key.secret).chain(&self.secret_file)
    }

    /// The values.
    pub(super) fn read(&self) -> Result<Values> {
        let environment = |name: &OsStr| env::var_os(name);
        let bound = self.secret.iter().filter(|key| !key.credentials.is_empty());
        let values = Values {
            inside: Secrets {
                files: self.as_files().map(|secret| secret.read(&environment)).collect::<Result<_, _>>()?,
                variables: self
                    .secret_env
                    .iter()
                    .map(|secret| secret.read_for_variable(&environment))
                    .collect::<Result<_, _>>()?,
                certificates: Vec::new(),
            },
            keys: bound.map(|key| key.secret.read_for_broker(&environment)).collect::<Result<_, _>>()?,
        };
        secrets::check_lengths(&values)?;
        Ok(values)
    }

    /// What is to be said of secrets that stay outside because of their names alone.
    pub(super) fn said(&self) -> Vec<String> {
        let is_known = |key: &&AskedKey| key.credentials == Credential::known(&key.secret.name);
        let known = self.secret.iter().filter(|key| !key.credentials.is_empty()).filter(is_known);
        let say = |key: &AskedKey| {
            let hosts: Vec<String> = key.credentials.iter().map(ToString::to_string).collect();
            let (name, hosts) = (&key.secret.name, hosts.join(" and "));
            format!(
                "secret {name} stays outside: requests to {hosts} get it, which so is allowed (--secret-file gives a file)"
            )
        };
        known.map(say).collect()
    }
}

/// The warning about values that are too short to be looked for.
pub(super) fn not_redacted(values: &Values) -> Option<String> {
    let short: Vec<&str> =
        values.named().filter(|(_, value)| value.len() < LEAST_BYTES).map(|(name, _)| name).collect();
    (!short.is_empty()).then(|| {
        format!(
            "secret {} is shorter than {LEAST_BYTES} bytes: it is not taken out of logs and records",
            short.join(", ")
        )
    })
}
