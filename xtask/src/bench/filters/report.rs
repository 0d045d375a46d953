//! The report of `bench filters`: a table and verdicts.

use super::work::{BUILD, FAKE_ROOT, START};
use super::{STARTS, Series, WAYS};
use crate::bench::document::Document;
use crate::bench::statistics::percentile;

/// A build under both layers by one without, at most.
const RATIO: f64 = 1.02;
/// Microseconds that both layers add to a start, at most (docs/adr/0030).
const ADDED: f64 = 180.0;
/// The same in the design; told, and no budget.
const DESIGNED: f64 = 100.0;

pub(super) fn fill(mut report: Document, measured: &[Series]) -> Document {
    report.line(format_args!(
        "| ms, p50 (min) | neither | seccomp | Landlock | both | both × neither |\n|---|---|---|---|---|---|"
    ));
    for series in measured {
        row(&mut report, series);
    }
    report.line(format_args!("\nRatios are medians of the ratios of each round.\n"));
    report.budgets();
    let find = |name| measured.iter().find(|series| series.name == name && !series.seconds.is_empty());
    let ratio = find(BUILD).map(|series| percentile(&ratios(series), 50));
    let shown = ratio.map(|ratio| format!("{:+.1} %", (ratio - 1.0) * 100.0));
    report.verdict(
        &format!("{BUILD}: ≤ {:.0} % more", (RATIO - 1.0) * 100.0),
        shown,
        ratio.map(|ratio| ratio <= RATIO),
    );
    for (name, what) in [(START, "a start"), (FAKE_ROOT, "a start with --fake-root")] {
        let of = |way: Way| find(name).map(|series| percentile(&added(series, way), 50));
        let both = of(|[.., both]| both);
        let shown = both.map(|added| format!("{added:+.0} µs"));
        let budget = format!("{what}: ≤ {ADDED:.0} µs more ({DESIGNED:.0} in the design)");
        report.verdict(&budget, shown, both.map(|added| added <= ADDED));
        if let Some(filter) = of(|[_, filter, ..]| filter) {
            report.line(format_args!("| {what}, by the filter alone | {filter:+.0} µs | |"));
        }
    }
    report
}

fn row(report: &mut Document, series: &Series) {
    let mut row = format!("| {} |", series.name);
    for way in 0..WAYS.len() {
        let times: Vec<f64> = series.seconds.iter().filter_map(|round| Some(round.get(way)? * 1e3)).collect();
        row.push_str(&format!(" {:.1} ({:.1}) |", percentile(&times, 50), percentile(&times, 0)));
    }
    report.line(format_args!("{row} {:.3} |", percentile(&ratios(series), 50)));
}

/// Both by neither, a round each.
fn ratios(series: &Series) -> Vec<f64> {
    series.seconds.iter().map(|[neither, .., both]| both / neither).collect()
}

/// The seconds of one way of a round.
type Way = fn([f64; WAYS.len()]) -> f64;

/// Microseconds that a way adds to one start, a round each.
fn added(series: &Series, way: Way) -> Vec<f64> {
    let starts: f64 = (0..STARTS).map(|_| 1.0).sum();
    series.seconds.iter().map(|round| (way(*round) - round[0]) / starts * 1e6).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(build: f64, start: f64) -> Document {
        let series = |name, under: f64| Series { name, seconds: vec![[1.0, under, 1.0, under]; 3] };
        fill(
            Document::begin("filters", 3, &[]),
            &[series(BUILD, build), series(START, start), series(FAKE_ROOT, start)],
        )
    }

    #[test]
    fn what_is_over_its_budget_is_told_and_fails() {
        let good = report(1.01, 1.001);
        assert!(good.within_budgets(), "{good}");
        assert!(good.to_string().contains("≤ 2 % more | +1.0 % | ok |"), "{good}");
        assert!(good.to_string().contains("| a start: ≤ 180 µs more (100 in the design) | +50 µs | ok |"), "{good}");
        assert!(good.to_string().contains("| a start, by the filter alone | +50 µs | |"), "{good}");
        assert!(!report(1.03, 1.001).within_budgets());
        assert!(report(1.01, 1.003).within_budgets() && !report(1.01, 1.004).within_budgets());
        assert!(!fill(Document::begin("filters", 3, &[]), &[]).within_budgets());
    }
}
