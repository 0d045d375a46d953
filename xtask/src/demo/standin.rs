//! The scripted Messages API as a child process, for as long as the value lives.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;

use super::site::Site;

/// How the demo names it.
pub(super) const SAID_OPENLY: &str = "a scripted stand-in for api.anthropic.com; the agent and all it does are real";

/// The variable that agentd and the stand-in have the key from.
pub(super) const KEY: &str = "ANTHROPIC_API_KEY";

/// The running stand-in.
#[derive(Debug)]
pub(super) struct StandIn {
    child: Child,
    port: u16,
}

impl StandIn {
    /// Starts it with this script.
    pub(super) fn start(site: &Site, script: &Value) -> Result<Self> {
        let path = site.run().join("script.json");
        std::fs::write(&path, script.to_string()).context("cannot write the script")?;
        let mut command = Command::new(site.tool("messages-api"));
        command.arg("--script").arg(path).arg("--record").arg(Self::record(site));
        command.arg("--authority").arg(Self::authority(site)).args(["--key", KEY]).env(KEY, &site.key);
        // It ends with the pipe, so also when this process is killed.
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("the stand-in has no output")?).read_line(&mut line)?;
        let port = line.trim().parse().context("the stand-in of the API did not start")?;
        Ok(Self { child, port })
    }

    /// Where its requests are noted.
    pub(super) fn record(site: &Site) -> std::path::PathBuf {
        site.run().join("requests.jsonl")
    }

    /// Where the certificate is of who vouches for it.
    pub(super) fn authority(site: &Site) -> std::path::PathBuf {
        site.run().join("authority.pem")
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // It ends by itself now; there is no one to tell if it does not.
        self.child.wait().ok();
    }
}
