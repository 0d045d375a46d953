//! The report of `bench start`: tables and verdicts.

use anyhow::Result;

use super::contestants::{AGENTD, BWRAP, CRUN_SECCOMP, FLOOR, PODMAN};
use super::measure::{Measured, REPETITIONS, STARTS, Series};
use super::memory::Memory;
use crate::bench::document::Document;
use crate::bench::statistics::{Ratio, mean, percentile, ratio};

/// agentd's ratio to each, at most (docs/benchmarks.md, "Budgets"; docs/adr/0024).
const BUDGETS: [(&str, f64); 4] = [(FLOOR, 1.4), (BWRAP, 1.1), (CRUN_SECCOMP, 0.35), (PODMAN, 0.05)];
/// agentd's rate by the floor's and by bwrap's, at least, [`WIDE`] at a time.
const WIDE_RATES: [(&str, f64); 2] = [(FLOOR, 0.6), (BWRAP, 1.0)];
const WIDE: u32 = 32;
/// Supervisor and PID 1 of an idle job, KiB of Pss.
const MEMORY: u64 = 3 * 1024;

pub(super) fn fill(mut report: Document, measured: &Measured, memory: Result<Memory>) -> Document {
    starts(&mut report, measured);
    wide(&mut report, measured);
    report.budgets();
    ratios(&mut report, measured);
    rates(&mut report, measured);
    idle(&mut report, memory);
    report
}

fn starts(report: &mut Document, measured: &Measured) {
    report.line(format_args!(
        "| start to exit of `true`, ms | runs | mean | min | p50 | p99 | × floor | × bwrap | × crun + seccomp |"
    ));
    report.line(format_args!("|---|---|---|---|---|---|---|---|---|"));
    for series in &measured.series {
        let times: Vec<f64> = series.samples.iter().copied().flatten().collect();
        let to = |name| find(measured, name).and_then(|by| ratio(&series.samples, &by.samples));
        let shown =
            |name| to(name).map_or("–".to_owned(), |ratio| format!("{:.2} / {:.2}", ratio.means, ratio.medians));
        let failed = if series.failures > 0 { format!(" ({} failed)", series.failures) } else { String::new() };
        let (p0, p50, p99) = (percentile(&times, 0), percentile(&times, 50), percentile(&times, 99));
        report.line(format_args!(
            "| {} | {}{failed} | {:.2} | {p0:.2} | {p50:.2} | {p99:.2} | {} | {} | {} |",
            series.name,
            times.len(),
            mean(&times),
            shown(FLOOR),
            shown(BWRAP),
            shown(CRUN_SECCOMP)
        ));
        if series.name == AGENTD && series.failures > 0 {
            report.fail();
        }
    }
    report.line(format_args!("\nRatios are of the means / of the medians, over the rounds both ran in."));
    for (name, reason) in &measured.left_out {
        report.line(format_args!("Left out: {name}: {reason}."));
    }
    report.line(format_args!(""));
}

fn wide(report: &mut Document, measured: &Measured) {
    report.line(format_args!(
        "| {STARTS} starts at once | wide | total ms, median of {REPETITIONS} | failed |\n|---|---|---|---|"
    ));
    for wide in &measured.wide {
        let total = percentile(&wide.totals, 50);
        report.line(format_args!("| {} | {} | {total:.0} | {} |", wide.name, wide.width, wide.failures));
    }
    report.line(format_args!(""));
}

fn ratios(report: &mut Document, measured: &Measured) {
    for (name, limit) in BUDGETS {
        let both = find(measured, AGENTD).zip(find(measured, name));
        let found: Option<Ratio> = both.and_then(|(agentd, by)| ratio(&agentd.samples, &by.samples));
        // Both must hold: a mean hides nothing rare, a median nothing usual.
        let held = found.map(|ratio| ratio.means.max(ratio.medians) <= limit);
        let shown = found.map(|ratio| format!("{:.3} / {:.3}", ratio.means, ratio.medians));
        let budget = format!("≤ {limit} × {name}");
        // Few machines let podman run rootless.
        if name == PODMAN {
            report.verdict_where_measured(&budget, shown, held);
        } else {
            report.verdict(&budget, shown, held);
        }
    }
}

fn rates(report: &mut Document, measured: &Measured) {
    let total = |name: &str| measured.wide.iter().find(|wide| wide.name == name && wide.width == WIDE);
    for (name, least) in WIDE_RATES {
        let both = total(AGENTD).zip(total(name));
        let rate = both.map(|(agentd, by)| percentile(&by.totals, 50) / percentile(&agentd.totals, 50));
        let held = both.zip(rate).map(|((agentd, _), rate)| rate >= least && agentd.failures == 0);
        let budget = format!("{WIDE} wide: no start fails, ≥ {least} × the rate of {name}");
        report.verdict(&budget, rate.map(|rate| format!("{rate:.2}")), held);
    }
}

fn idle(report: &mut Document, memory: Result<Memory>) {
    let budget = format!("idle job ≤ {MEMORY} KiB");
    match memory {
        Ok(memory) => {
            let held = memory.total().map(|total| total <= MEMORY);
            report.verdict(&budget, Some(memory.to_string()), held);
        }
        Err(error) => report.verdict(&budget, Some(format!("{error:#}")), None),
    }
}

fn find<'a>(measured: &'a Measured, name: &str) -> Option<&'a Series> {
    measured.series.iter().find(|series| series.name == name)
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
            wide: vec![wide(FLOOR, 300.0), wide(AGENTD, 310.0), wide(BWRAP, 305.0)],
        }
    }

    #[test]
    fn a_ratio_above_its_budget_is_told_and_fails() {
        let report = |agentd| fill(Document::begin("start", 4, &[]), &measured(agentd), Err(anyhow::anyhow!("no job")));
        assert!(report(4.0).to_string().contains("| ≤ 1.4 × floor | 1.333 / 1.333 | ok |"));
        assert!(report(4.6).to_string().contains("| ≤ 1.4 × floor | 1.533 / 1.533 | **over** |"));
        assert!(report(4.0).to_string().contains("| ≤ 0.05 × podman | – | not measured |"));
        assert!(report(4.0).to_string().contains("≥ 0.6 × the rate of floor | 0.97 | ok |"));
        assert!(report(4.0).to_string().contains("≥ 1 × the rate of bwrap | 0.98 | **over** |"));
        assert!(!report(4.0).within_budgets());
    }
}
