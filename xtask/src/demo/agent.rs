//! Claude Code at work in a box: starts it, shows its stream of events in short lines, keeps all of it, judges it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::Value;

use super::report::Report;
use super::site::{Site, printable};
use super::standin::{KEY, StandIn};
use super::{attempts, project};

/// Who answers as the model.
#[derive(Debug)]
pub(super) enum Api {
    /// The scripted server on this port of 127.0.0.1.
    StandIn { port: u16 },
    /// api.anthropic.com.
    Real { key: OsString },
}

/// A hostile repository's own settings and servers must not be loaded: they could redirect the API, key and all.
const CLAUDE: [&str; 9] = [
    "--output-format",
    "stream-json",
    "--verbose",
    "--permission-mode",
    "bypassPermissions",
    "--setting-sources",
    "user",
    "--strict-mcp-config",
    "-p",
];

/// Lines of a tool's result worth showing.
const SHOWN: usize = 8;

/// What is kept of the events.
#[derive(Debug, Default)]
struct Seen {
    results: Vec<String>,
    /// The last `result` event: background tasks make several.
    end: Value,
}

/// Runs the agent to its end.
pub(super) fn work(site: &Site, api: &Api, report: &mut Report) -> Result<()> {
    let start = Instant::now();
    let mut child = command(site, api).stdout(Stdio::piped()).spawn().context("cannot start agentd")?;
    let out = child.stdout.take().context("agentd has no output")?;
    let mut transcript = File::create(site.run().join("transcript.jsonl")).context("cannot keep the transcript")?;
    let mut all = String::new();
    let mut seen = Seen::default();
    for line in BufReader::new(out).split(b'\n') {
        let line = String::from_utf8_lossy(&line.context("cannot read the agent's events")?).into_owned();
        writeln!(transcript, "{line}").context("cannot keep the transcript")?;
        seen.event(&serde_json::from_str(&line).unwrap_or_default());
        all.push_str(&line);
    }
    let status = child.wait().context("wait for agentd")?;
    println!("    ended after {:.1} s, {status}", start.elapsed().as_secs_f64());

    let end = seen.end.to_string();
    report.check("Claude Code ran and ended well", status.success() && seen.end["is_error"] == false, &end);
    let passed = seen.results.iter().any(|result| result.contains(project::PASSED));
    report.check("it saw its test pass in the box", passed, &end);
    if let Api::StandIn { .. } = api {
        let tried = seen.results.last().map(String::as_str).unwrap_or_default();
        attempts::judge(tried, site, report);
    }
    let key = match api {
        Api::StandIn { .. } => site.key.clone(),
        Api::Real { key } => key.to_string_lossy().into_owned(),
    };
    let asked = std::fs::read_to_string(StandIn::record(site)).unwrap_or_default();
    if let Api::StandIn { .. } = api {
        let all_had_it = !asked.is_empty() && !asked.contains("\"has_key\":false");
        report.check("the API saw its key in every request", all_had_it, &asked);
    }
    report.check("the API's key is nowhere in the transcript", !all.contains(&key), "");
    if let Api::StandIn { .. } = api {
        let refused = seen.results.iter().any(|result| project::is_refused_soon(result));
        report.check("another host was refused within a second, and there was no key in the box", refused, &end);
    }
    report.check("the host's key is nowhere in the transcript", !all.contains(&site.canary), "");
    Ok(())
}

fn command(site: &Site, api: &Api) -> Command {
    let mut command = site.agentd_run("debian", &site.workspace());
    command.args(["--timeout", "600s", "-e", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1"]);
    match api {
        Api::StandIn { port } => {
            command.args(["--secret", &format!("{KEY}@api.test:{port}"), "--add-host", "api.test:127.0.0.1"]);
            command.arg("--upstream-ca").arg(StandIn::authority(site)).env(KEY, &site.key);
            command.args(["-e", "CLAUDE_CODE_MAX_RETRIES=2"]);
        }
        Api::Real { key } => {
            // By name: words of a command line are there for every user to read.
            command.args(["--secret", KEY, "-e", "CLAUDE_CODE_MAX_RETRIES=4"]).env(KEY, key);
        }
    }
    command.args(["--", "claude"]).args(CLAUDE).arg(project::TASK);
    command
}

impl Seen {
    fn event(&mut self, event: &Value) {
        match event["type"].as_str() {
            Some("system") if event["subtype"] == "init" => {
                let version = event["claude_code_version"].as_str().unwrap_or("?");
                println!("    Claude Code {} in {}", printable(version), printable(text(&event["cwd"])));
            }
            Some("assistant") => blocks(event).for_each(said),
            Some("user") => {
                for block in blocks(event).filter(|block| block["type"] == "tool_result") {
                    let result = result_text(&block["content"]);
                    let mut lines = result.lines().filter(|line| !line.trim().is_empty());
                    lines.by_ref().take(SHOWN).for_each(|line| println!("      | {}", printable(line)));
                    let more = lines.count();
                    if more > 0 {
                        println!("      | … {more} more lines");
                    }
                    self.results.push(result);
                }
            }
            Some("result") => self.end = event.clone(),
            _ => {}
        }
    }
}

fn blocks(event: &Value) -> impl Iterator<Item = &Value> {
    event["message"]["content"].as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn said(block: &Value) {
    let input = &block["input"];
    match block["type"].as_str() {
        Some("text") => println!("    “{}”", printable(text(&block["text"]))),
        Some("tool_use") => {
            let first = |key: &str| input[key].as_str().and_then(|text| text.lines().next());
            let what = first("command").or_else(|| first("file_path")).unwrap_or_default();
            let what: String = printable(what).chars().take(100).collect();
            println!("    {} {what}", printable(text(&block["name"])));
        }
        _ => {}
    }
}

/// The content of a result is a text or a list of blocks.
fn result_text(content: &Value) -> String {
    match content {
        Value::Array(blocks) => blocks.iter().map(|block| text(&block["text"])).collect::<Vec<_>>().join("\n"),
        other => text(other).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_last_result_counts_and_tool_results_are_kept_in_both_forms() {
        let mut seen = Seen::default();
        let result = |content: Value| json!({"type": "user", "message": {"content": [{"type": "tool_result", "content": content}]}});
        seen.event(&result(json!("plain")));
        seen.event(&result(json!([{"type": "text", "text": "in"}, {"type": "text", "text": "blocks"}])));
        seen.event(&json!({"type": "result", "is_error": true}));
        seen.event(&json!({"type": "result", "is_error": false}));
        seen.event(&Value::Null);
        assert_eq!(seen.results, ["plain", "in\nblocks"]);
        assert_eq!(seen.end["is_error"], false);
    }
}
