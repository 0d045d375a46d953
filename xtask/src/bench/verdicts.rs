//! A report of a measurement: lines and verdicts, as Markdown, for the terminal and for docs/benchmarks.md alike.
//!
//! Invariant: what was not measured is not within its budget.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};

/// The report of one command.
#[derive(Debug)]
pub(super) struct Verdicts {
    command: &'static str,
    text: String,
    within_budgets: bool,
}

impl fmt::Display for Verdicts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Verdicts {
    /// Of `cargo xtask bench COMMAND`, on this machine, which has had this load before.
    pub(super) fn new(command: &'static str, arguments: &str, load: &str) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
        let mut report = Self { command, text: String::new(), within_budgets: true };
        report.line(format_args!(
            "Linux {}, {}, {cores} cores. Load before: {}.\n\n`cargo xtask bench {command}{arguments}`\n",
            read("/proc/sys/kernel/osrelease").trim(),
            model.map_or("unknown processor", |(_, name)| name),
            load.split(' ').next().unwrap_or("unknown"),
        ));
        report
    }

    pub(super) fn within_budgets(&self) -> bool {
        self.within_budgets
    }

    pub(super) fn line(&mut self, line: fmt::Arguments<'_>) {
        self.text.push_str(&format!("{line}\n"));
    }

    /// Before the first [`Verdicts::verdict`].
    pub(super) fn budgets(&mut self) {
        self.line(format_args!("\n| budget | measured | |\n|---|---|---|"));
    }

    pub(super) fn verdict(&mut self, budget: &str, shown: Option<String>, held: Option<bool>) {
        self.within_budgets &= held == Some(true);
        let word = match held {
            Some(true) => "ok",
            Some(false) => "**over**",
            None => "not measured",
        };
        self.line(format_args!("| {budget} | {} | {word} |", shown.as_deref().unwrap_or("–")));
    }

    /// Replaces what stands between the two marks of the document.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let [begin, end] = ["begin", "end"].map(|side| format!("<!-- bench {}: {side} -->", self.command));
        let old = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let parts = old.split_once(&begin).and_then(|(before, rest)| Some((before, rest.split_once(&end)?.1)));
        let (before, after) = parts.with_context(|| format!("{} has no {begin}", path.display()))?;
        std::fs::write(path, format!("{before}{begin}\n{}{end}{after}", self.text))
            .with_context(|| format!("write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_its_budget_or_not_measured_fails() {
        let verdict = |held| {
            let mut report = Verdicts::new("x", "", "0.10 0 0");
            report.verdict("≤ 1", Some("2".into()), held);
            (report.within_budgets(), report.text)
        };
        assert!(verdict(Some(true)).0);
        assert!(!verdict(None).0);
        let (within, text) = verdict(Some(false));
        assert!(!within && text.contains("| ≤ 1 | 2 | **over** |"), "{text}");
    }
}
