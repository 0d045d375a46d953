//! The program around `agentd_tests::messages_api`: a scripted stand-in for api.anthropic.com on loopback.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use agentd_tests::messages_api::{SAID_OPENLY, Script, Server};
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
    let server = Server::start(script, record.transpose()?).context("cannot listen on 127.0.0.1")?;
    eprintln!("messages-api: {SAID_OPENLY}, on {}", server.url());
    println!("{}", server.port());
    // The one who started it holds the other end: however that process dies, this one ends too.
    io::stdin().take(u64::MAX).read_to_end(&mut Vec::new()).context("cannot wait for the end of standard input")?;
    Ok(())
}
