//! The program around `agentd_tests::messages_api`: a scripted stand-in for api.anthropic.com on loopback.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use agentd_tests::messages_api::{Lock, SAID_OPENLY, Script, Server};
use agentd_tests::tls::Authority;
use anyhow::{Context, Result, ensure};
use clap::Parser;

/// A scripted stand-in for api.anthropic.com
///
/// There is no model behind it: it answers POST /v1/messages on 127.0.0.1 from a script, for demos and tests of agents.
/// It prints its port and runs until its standard input ends.
#[derive(Parser)]
struct Args {
    /// JSON script: {"turns": [{"text": "…", "tools": [{"name": "Bash", "input": {"command": "…"}}]}]}
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,
    /// File that gets a JSON line a request: method, path, header names, model
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Speak TLS as api.test, and put the certificate of the authority behind that into this file
    #[arg(long, value_name = "FILE", requires = "key")]
    authority: Option<PathBuf>,
    /// The variable with the key that requests must have as x-api-key
    #[arg(long, value_name = "VARIABLE", requires = "authority")]
    key: Option<String>,
}

#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the port is this program's output, the rest is for people"
)]
fn main() -> Result<()> {
    let args = Args::parse();
    let script = match &args.script {
        None => Script::builtin(),
        Some(path) => {
            let text = std::fs::read(path).with_context(|| format!("cannot read the script {}", path.display()))?;
            serde_json::from_slice(&text).with_context(|| format!("{} is not a script", path.display()))?
        }
    };
    ensure!(!script.turns.is_empty(), "the script has no turns");
    let record =
        args.record.map(|path| File::create(&path).with_context(|| format!("cannot write {}", path.display())));
    let record = record.transpose()?;
    let server = match args.authority.zip(args.key) {
        None => Server::start(script, record),
        Some((file, key)) => {
            let key = std::env::var(&key).with_context(|| format!("{key} is not set"))?;
            let authority = Authority::new();
            authority.write(&file);
            Server::locked(script, record, Lock { tls: authority.vouch_for("api.test"), key })
        }
    };
    let server = server.context("cannot listen on 127.0.0.1")?;
    eprintln!("messages-api: {SAID_OPENLY}, on {}", server.url());
    println!("{}", server.port());
    // The one who started it holds the other end: however that process dies, this one ends too.
    io::stdin().take(u64::MAX).read_to_end(&mut Vec::new()).context("cannot wait for the end of standard input")?;
    Ok(())
}
