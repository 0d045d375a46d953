//! The report of `bench egress`: a table and verdicts, as Markdown.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};

use super::Round;
use super::client::{IN_A_ROW, MANY, Measured};
use super::ways::{WAYS, Way};
use crate::bench::statistics::percentile;

const BEGIN: &str = "<!-- bench egress: begin -->";
const END: &str = "<!-- bench egress: end -->";

/// Throughput by that of a bare relay, at least (docs/adr/0023).
const OF_A_RELAY: f64 = 0.85;
/// Microseconds that a round trip takes longer, at most.
const ADDED: f64 = 100.0;
/// KiB of Pss of an idle job with a broker, at most; of a broker with [`IN_A_ROW`] connections behind it, too.
const MEMORY: u64 = 6 * 1024;
/// Milliseconds that the broker adds to a start, at most.
const START: f64 = 1.0;

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

/// What was measured beside the ways.
#[derive(Debug, Default)]
pub(super) struct Beside {
    /// Why a way was left out.
    pub(super) left_out: Vec<(Way, String)>,
    /// Without and with a broker, a pair a round.
    pub(super) starts: Vec<(f64, f64)>,
    /// Supervisor, PID 1, broker.
    pub(super) idle: Option<[u64; 3]>,
    /// The broker with [`MANY`] connections, the most of all rounds.
    pub(super) crowded: Option<u64>,
    /// Seconds of [`IN_A_ROW`] connections, and the broker's size meanwhile.
    pub(super) row: Option<(f64, Option<u64>)>,
}

impl Report {
    pub(super) fn new(rounds: &[Round], beside: &Beside, load: &str) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let mut report = Self { text: String::new(), within_budgets: true };
        report.line(format_args!(
            "Linux {}. Load before: {}.\n\n`cargo xtask bench egress --rounds {}`\n",
            read("/proc/sys/kernel/osrelease").trim(),
            load.split(' ').next().unwrap_or("unknown"),
            rounds.len(),
        ));
        report.line(format_args!(
            "| p50 | from the server, MiB/s | to it | from it, 8 connections | requests/s | round trip, µs | {MANY} connections, ms |\n\
             |---|---|---|---|---|---|---|"
        ));
        for way in WAYS {
            report.row(rounds, way);
        }
        for (way, reason) in &beside.left_out {
            report.line(format_args!("\nLeft out: {}: {reason}.", way.name()));
        }
        report.line(format_args!(
            "\nRatios are medians of the ratios of each round.\n\n| budget | measured | |\n|---|---|---|"
        ));
        for (what, of) in BYTES {
            for (by, limit) in [(Way::Relay, OF_A_RELAY), (Way::Pasta, 1.0), (Way::Slirp, 1.0)] {
                let ratio = median(rounds, |agentd, other| of(agentd) / of(other), by);
                report.verdict(
                    &format!("{what} ≥ {limit} × {}", by.name()),
                    ratio.map(|ratio| format!("{ratio:.2}")),
                    ratio.map(|ratio| ratio >= limit),
                );
            }
        }
        for way in [Way::Agentd, Way::Relay] {
            let of = |(_, field): (_, Field)| {
                let ratio = between(rounds, |way, direct| field(way) / field(direct), (way, Way::Direct));
                ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}"))
            };
            let shown = BYTES.map(of).join(", ");
            report.line(format_args!("| {} × direct, for the same three | {shown} | |", way.name()));
        }
        let added = median(rounds, |agentd, direct| agentd.round_trip - direct.round_trip, Way::Direct);
        report.verdict(
            &format!("a round trip: ≤ {ADDED:.0} µs more"),
            added.map(|added| format!("{added:+.0} µs")),
            added.map(|added| added <= ADDED),
        );
        let more: Vec<f64> = beside.starts.iter().map(|(without, with)| with - without).collect();
        let more = (!more.is_empty()).then(|| percentile(&more, 50));
        report.verdict(
            &format!("a start: ≤ {START:.1} ms more"),
            more.map(|more| format!("{more:+.2} ms")),
            more.map(|more| more <= START),
        );
        let row = beside.row.and_then(|(seconds, size)| Some((seconds, size?)));
        report.verdict(
            &format!("{IN_A_ROW} connections one after the other: the broker ≤ {MEMORY} KiB"),
            row.map(|(seconds, most)| format!("{seconds:.1} s; {most} KiB at most")),
            row.map(|(_, most)| most <= MEMORY),
        );
        let crowded = beside.crowded.map(|kib| format!("; the broker with {MANY} connections {kib} KiB"));
        report.verdict(
            &format!("an idle job: ≤ {MEMORY} KiB"),
            beside.idle.map(|[supervisor, init, broker]| {
                format!("supervisor {supervisor}, PID 1 {init}, broker {broker} KiB{}", crowded.unwrap_or_default())
            }),
            beside.idle.map(|parts| parts.iter().sum::<u64>() <= MEMORY),
        );
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

    fn row(&mut self, rounds: &[Round], way: Way) {
        let of = |field: Field| {
            let values: Vec<f64> = rounds.iter().filter_map(|round| round.of(way)).map(field).collect();
            if values.is_empty() { "–".to_owned() } else { format!("{:.0}", percentile(&values, 50)) }
        };
        self.line(format_args!(
            "| {} | {} | {} | {} | {} | {} | {} |",
            way.name(),
            of(|m| m.down),
            of(|m| m.up),
            of(|m| m.down_8),
            of(|m| m.requests),
            of(|m| m.round_trip),
            of(|m| m.many)
        ));
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

/// One number of a run.
type Field = fn(&Measured) -> f64;

/// What has a budget for throughput.
const BYTES: [(&str, Field); 3] =
    [("from the server", |m| m.down), ("to the server", |m| m.up), ("8 connections", |m| m.down_8)];

/// The median over the rounds of what agentd and another way make together.
fn median(rounds: &[Round], of: impl Fn(&Measured, &Measured) -> f64, by: Way) -> Option<f64> {
    between(rounds, of, (Way::Agentd, by))
}

/// The same of any two.
fn between(rounds: &[Round], of: impl Fn(&Measured, &Measured) -> f64, (one, other): (Way, Way)) -> Option<f64> {
    let values: Vec<f64> = rounds.iter().filter_map(|round| Some(of(round.of(one)?, round.of(other)?))).collect();
    (!values.is_empty()).then(|| percentile(&values, 50))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(throughput: f64, starts: f64, row: u64) -> Report {
        let of =
            |down: f64| Some(Measured { down, up: down, down_8: down, requests: 1.0, round_trip: down, many: 1.0 });
        let rounds = vec![Round([of(1000.0), of(750.0), of(throughput), of(500.0), of(300.0)]); 3];
        let beside = Beside {
            starts: vec![(4.0, 4.0 + starts)],
            idle: Some([1000, 500, 1700]),
            row: Some((20.0, Some(row))),
            ..Beside::default()
        };
        Report::new(&rounds, &beside, "0.10 0 0")
    }

    #[test]
    fn what_is_over_its_budget_is_told_and_fails() {
        let good = report(720.0, 0.6, 2357);
        assert!(good.within_budgets(), "{good}");
        assert!(good.text.contains("| from the server ≥ 0.85 × bare relay | 0.96 | ok |"), "{good}");
        assert!(!report(600.0, 0.6, 2357).within_budgets());
        assert!(!report(800.0, 1.2, 2357).within_budgets());
        assert!(!report(720.0, 0.6, 7000).within_budgets());
        assert!(!Report::new(&[], &Beside::default(), "").within_budgets());
    }
}
