//! The report: tables and verdicts, as Markdown, for the terminal and for docs/benchmarks.md alike.

use std::fmt::{self, Write};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::contestants::{AGENTD, BWRAP, CRUN_SECCOMP, FLOOR, PODMAN};
use super::measure::{Measured, REPETITIONS, STARTS, Series};
use super::memory::Memory;
use super::statistics::{mean, percentile, ratio};

const BEGIN: &str = "<!-- bench start: begin -->";
const END: &str = "<!-- bench start: end -->";

/// agentd's ratio to each, at most (docs/benchmarks.md, "Budgets").
const BUDGETS: [(&str, f64); 4] = [(FLOOR, 1.4), (BWRAP, 0.9), (CRUN_SECCOMP, 0.35), (PODMAN, 0.05)];
/// agentd's rate by the floor's, at least, [`WIDE`] at a time.
const WIDE_RATE: f64 = 0.75;
const WIDE: u32 = 32;
/// Supervisor and PID 1 of an idle job, KiB of Pss.
const MEMORY: u64 = 3 * 1024;

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
    pub(super) fn new(measured: &Measured, memory: Result<Memory>, rounds: u32, load: &str) -> Self {
        let mut report = Self { text: String::new(), within_budgets: true };
        // A busy machine's times are not worth comparing with another run's.
        let load = load.split(' ').next().unwrap_or("unknown");
        report.line(format_args!("{} Load before: {load}.\n", machine()));
        report.line(format_args!("`cargo xtask bench start --rounds {rounds}`, {}\n", today()));
        report.starts(measured);
        report.wide(measured);
        report.line(format_args!("| budget | measured | |\n|---|---|---|"));
        report.ratios(measured);
        report.rate(measured);
        report.memory(memory);
        report
    }

    pub(super) fn within_budgets(&self) -> bool {
        self.within_budgets
    }

    /// Replaces what stands between the two marks of the document.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let old = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let new = replace(&old, &self.text).with_context(|| format!("{} has no {BEGIN}", path.display()))?;
        std::fs::write(path, new).with_context(|| format!("write {}", path.display()))
    }

    fn line(&mut self, line: fmt::Arguments<'_>) {
        self.text.push_str(&line.to_string());
        self.text.push('\n');
    }

    fn starts(&mut self, measured: &Measured) {
        self.line(format_args!(
            "| start to exit of `true`, ms | runs | mean | min | p50 | p99 | × floor | × bwrap | × crun + seccomp |"
        ));
        self.line(format_args!("|---|---|---|---|---|---|---|---|---|"));
        for series in &measured.series {
            let times: Vec<f64> = series.samples.iter().copied().flatten().collect();
            let to = |name| find(measured, name).and_then(|by| ratio(series, by));
            let shown =
                |name| to(name).map_or("–".to_owned(), |ratio| format!("{:.2} / {:.2}", ratio.means, ratio.medians));
            let failed = if series.failures > 0 { format!(" ({} failed)", series.failures) } else { String::new() };
            let (p0, p50, p99) = (percentile(&times, 0), percentile(&times, 50), percentile(&times, 99));
            self.line(format_args!(
                "| {} | {}{failed} | {:.2} | {p0:.2} | {p50:.2} | {p99:.2} | {} | {} | {} |",
                series.name,
                times.len(),
                mean(&times),
                shown(FLOOR),
                shown(BWRAP),
                shown(CRUN_SECCOMP)
            ));
            if series.name == AGENTD && series.failures > 0 {
                self.within_budgets = false;
            }
        }
        self.line(format_args!("\nRatios are of the means / of the medians, over the rounds both ran in."));
        for (name, reason) in &measured.left_out {
            self.line(format_args!("Left out: {name}: {reason}."));
        }
        self.line(format_args!(""));
    }

    fn wide(&mut self, measured: &Measured) {
        self.line(format_args!(
            "| {STARTS} starts at once | wide | total ms, median of {REPETITIONS} | failed |\n|---|---|---|---|"
        ));
        for wide in &measured.wide {
            let total = percentile(&wide.totals, 50);
            self.line(format_args!("| {} | {} | {total:.0} | {} |", wide.name, wide.width, wide.failures));
        }
        self.line(format_args!(""));
    }

    fn ratios(&mut self, measured: &Measured) {
        for (name, limit) in BUDGETS {
            let found = find(measured, AGENTD).zip(find(measured, name)).and_then(|(agentd, by)| ratio(agentd, by));
            // Both must hold: a mean hides nothing rare, a median nothing usual.
            let held = found.map(|ratio| ratio.means.max(ratio.medians) <= limit);
            let shown = found.map(|ratio| format!("{:.3} / {:.3}", ratio.means, ratio.medians));
            self.verdict(&format!("≤ {limit} × {name}"), shown, held);
        }
    }

    fn rate(&mut self, measured: &Measured) {
        let total = |name: &str| measured.wide.iter().find(|wide| wide.name == name && wide.width == WIDE);
        let both = total(AGENTD).zip(total(FLOOR));
        let rate = both.map(|(agentd, floor)| percentile(&floor.totals, 50) / percentile(&agentd.totals, 50));
        let held = both.zip(rate).map(|((agentd, _), rate)| rate >= WIDE_RATE && agentd.failures == 0);
        let budget = format!("{WIDE} wide: no start fails, ≥ {WIDE_RATE} × the floor's rate");
        self.verdict(&budget, rate.map(|rate| format!("{rate:.2}")), held);
    }

    fn memory(&mut self, memory: Result<Memory>) {
        let budget = format!("idle job ≤ {MEMORY} KiB");
        match memory {
            Ok(memory) => {
                let held = memory.total().map(|total| total <= MEMORY);
                self.verdict(&budget, Some(memory.to_string()), held);
            }
            Err(error) => self.verdict(&budget, Some(format!("{error:#}")), None),
        }
    }

    /// What was not measured is not within its budget, except for podman, which few machines let run rootless.
    fn verdict(&mut self, budget: &str, measured: Option<String>, held: Option<bool>) {
        let verdict = match held {
            Some(true) => "ok",
            Some(false) => "**over**",
            None => "not measured",
        };
        if held == Some(false) || (held.is_none() && !budget.contains(PODMAN)) {
            self.within_budgets = false;
        }
        self.line(format_args!("| {budget} | {} | {verdict} |", measured.as_deref().unwrap_or("–")));
    }
}

fn find<'a>(measured: &'a Measured, name: &str) -> Option<&'a Series> {
    measured.series.iter().find(|series| series.name == name)
}

fn replace(document: &str, section: &str) -> Option<String> {
    let (before, rest) = document.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{section}{END}{after}"))
}

fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let mut line = format!(
        "Linux {}, {}, {cores} cores.",
        read("/proc/sys/kernel/osrelease").trim(),
        model.map_or("unknown processor", |(_, name)| name.trim())
    );
    for peer in ["bwrap", "crun", "runc", "podman"] {
        let output = Command::new(peer).arg("--version").output();
        let said = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        if let Some(version) = said.lines().next() {
            // A String takes everything that is written to it.
            write!(line, " {version}.").unwrap_or_default();
        }
    }
    line
}

fn today() -> String {
    let output = Command::new("date").args(["--utc", "+%Y-%m-%d"]).output();
    output.map_or("unknown day".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::measure::Wide;
    use super::*;

    fn measured(agentd: f64) -> Measured {
        let series = |name: &str, time: f64| Series { name: name.into(), samples: vec![Some(time); 4], failures: 0 };
        let wide = |name: &str, total: f64| Wide { name: name.into(), width: 32, totals: vec![total; 3], failures: 0 };
        Measured {
            series: vec![series(FLOOR, 3.0), series(AGENTD, agentd), series(BWRAP, 5.0), series(CRUN_SECCOMP, 15.0)],
            left_out: vec![(PODMAN.into(), "not here".into())],
            wide: vec![wide(FLOOR, 300.0), wide(AGENTD, 310.0)],
        }
    }

    #[test]
    fn a_ratio_above_its_budget_is_told_and_fails() {
        let report = |agentd| Report::new(&measured(agentd), Err(anyhow::anyhow!("no job")), 4, "0.10 0 0");
        assert!(report(4.0).text.contains("| ≤ 1.4 × floor | 1.333 / 1.333 | ok |"));
        assert!(report(4.6).text.contains("| ≤ 1.4 × floor | 1.533 / 1.533 | **over** |"));
        assert!(report(4.0).text.contains("| ≤ 0.05 × podman | – | not measured |"));
        assert!(!report(4.0).within_budgets());
    }

    #[test]
    fn writing_replaces_what_is_between_the_marks_and_nothing_else() {
        let document = format!("# Title\n{BEGIN}\nold\n{END}\nend\n");
        assert_eq!(replace(&document, "new\n").unwrap(), format!("# Title\n{BEGIN}\nnew\n{END}\nend\n"));
        assert!(replace("no marks", "new").is_none());
    }
}
