//! The report of `bench filters`: a table and verdicts, as Markdown.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};

use super::work::{BUILD, START};
use super::{STARTS, Series, WAYS};
use crate::bench::start::statistics::percentile;

const BEGIN: &str = "<!-- bench filters: begin -->";
const END: &str = "<!-- bench filters: end -->";

/// A build under both layers by one without, at most.
const RATIO: f64 = 1.02;
/// Microseconds that both layers add to a start, at most.
const ADDED: f64 = 100.0;

#[derive(Debug)]
pub(super) struct Report {
    text: String,
    within_budgets: bool,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Report {
    pub(super) fn new(measured: &[Series], rounds: usize, load: &str) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let mut report = Self { text: String::new(), within_budgets: true };
        report.line(format_args!(
            "Linux {}, {}. Load before: {}.\n\n`cargo xtask bench filters --rounds {rounds}`\n",
            read("/proc/sys/kernel/osrelease").trim(),
            model.map_or("unknown processor", |(_, name)| name),
            load.split(' ').next().unwrap_or("unknown"),
        ));
        report.line(format_args!(
            "| ms, p50 (min) | neither | seccomp | Landlock | both | both × neither |\n|---|---|---|---|---|---|"
        ));
        for series in measured {
            report.row(series);
        }
        report.line(format_args!(
            "\nRatios are medians of the ratios of each round.\n\n| budget | measured | |\n|---|---|---|"
        ));
        let find = |name| measured.iter().find(|series| series.name == name && !series.seconds.is_empty());
        let ratio = find(BUILD).map(|series| percentile(&ratios(series), 50));
        let shown = ratio.map(|ratio| format!("{:+.1} %", (ratio - 1.0) * 100.0));
        report.verdict(
            &format!("{BUILD}: ≤ {:.0} % more", (RATIO - 1.0) * 100.0),
            shown,
            ratio.map(|ratio| ratio <= RATIO),
        );
        let added = find(START).map(|series| percentile(&added(series), 50));
        let shown = added.map(|added| format!("{added:+.0} µs"));
        report.verdict(&format!("a start: ≤ {ADDED:.0} µs more"), shown, added.map(|added| added <= ADDED));
        report
    }

    pub(super) fn within_budgets(&self) -> bool {
        self.within_budgets
    }

    /// Replaces what stands between the two marks of the document.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let old = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let parts = old.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
        let (before, after) = parts.with_context(|| format!("{} has no {BEGIN}", path.display()))?;
        std::fs::write(path, format!("{before}{BEGIN}\n{}{END}{after}", self.text))
            .with_context(|| format!("write {}", path.display()))
    }

    fn line(&mut self, line: fmt::Arguments<'_>) {
        self.text.push_str(&format!("{line}\n"));
    }

    fn row(&mut self, series: &Series) {
        let mut row = format!("| {} |", series.name);
        for way in 0..WAYS.len() {
            let times: Vec<f64> = series.seconds.iter().filter_map(|round| Some(round.get(way)? * 1e3)).collect();
            row.push_str(&format!(" {:.1} ({:.1}) |", percentile(&times, 50), percentile(&times, 0)));
        }
        self.line(format_args!("{row} {:.3} |", percentile(&ratios(series), 50)));
    }

    fn verdict(&mut self, budget: &str, shown: Option<String>, held: Option<bool>) {
        self.within_budgets &= held == Some(true);
        let word = match held {
            Some(true) => "ok",
            Some(false) => "**over**",
            None => "not measured",
        };
        self.line(format_args!("| {budget} | {} | {word} |", shown.as_deref().unwrap_or("–")));
    }
}

/// Both by neither, a round each.
fn ratios(series: &Series) -> Vec<f64> {
    series.seconds.iter().map(|[neither, .., both]| both / neither).collect()
}

/// Microseconds that both add to one start, a round each.
fn added(series: &Series) -> Vec<f64> {
    let starts: f64 = (0..STARTS).map(|_| 1.0).sum();
    series.seconds.iter().map(|[neither, .., both]| (both - neither) / starts * 1e6).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(build: f64, start: f64) -> Report {
        let series = |name, both| Series { name, seconds: vec![[1.0, 1.0, 1.0, both]; 3] };
        Report::new(&[series(BUILD, build), series(START, start)], 3, "0.10 0 0")
    }

    #[test]
    fn what_is_over_its_budget_is_told_and_fails() {
        let good = report(1.01, 1.001);
        assert!(good.within_budgets(), "{good}");
        assert!(good.text.contains("≤ 2 % more | +1.0 % | ok |"), "{good}");
        assert!(good.text.contains("≤ 100 µs more | +50 µs | ok |"), "{good}");
        assert!(!report(1.03, 1.001).within_budgets());
        assert!(!report(1.01, 1.01).within_budgets());
        assert!(!Report::new(&[], 3, "").within_budgets());
    }
}
