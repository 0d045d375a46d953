//! The report of `bench unpack`: tables and verdicts.

use super::contestants::{AGENTD, UNKNOWN};
use super::measure::{Bound, Measured, Run, Series};
use super::stacks::Stack;
use crate::bench::document::Document;
use crate::bench::statistics::{mean, percentile, ratio};

/// agentd's wall time by the bound's, at most (docs/benchmarks.md, "Budgets").
const BOUND: f64 = 1.15;
/// MiB of agentd's largest process.
const MEMORY: f64 = 64.0;
/// Milliseconds that 40 layers take longer than one.
const STACK: f64 = 0.5;

pub(super) fn fill(mut report: Document, measured: &Measured, stacks: &[Stack], cores: f64) -> Document {
    for (kind, bounds) in &measured.bounds {
        table(&mut report, measured, (kind, bounds), cores);
    }
    report.line(format_args!("| `agentd run` of `true`, unpacked before | runs | mean, ms | p50 |\n|---|---|---|---|"));
    for Stack { layers, times } in stacks {
        let (mean, p50) = (mean(times), percentile(times, 50));
        report.line(format_args!("| {layers} layers | {} | {mean:.2} | {p50:.2} |", times.len()));
    }
    report.line(format_args!(""));
    report.budgets();
    for (kind, bounds) in &measured.bounds {
        verdicts(&mut report, measured, (kind, bounds), cores);
    }
    let p50 = |layers| stacks.iter().find(|s| s.layers == layers).map(|s| percentile(&s.times, 50));
    let more = p50(40).zip(p50(1)).map(|(many, one)| many - one);
    let shown = more.map(|more| format!("{more:.2} ms"));
    report.verdict(&format!("40 layers over 1 ≤ {STACK} ms"), shown, more.map(|more| more <= STACK));
    report
}

fn table(report: &mut Document, measured: &Measured, (kind, bounds): (&str, &[Bound]), cores: f64) {
    report.line(format_args!(
        "| {kind} | runs | wall s, p50 (min – max) | CPU s | MiB, largest process | × agentd | × bound |"
    ));
    report.line(format_args!("|---|---|---|---|---|---|---|"));
    let p50 = |part: fn(&Bound) -> f64| percentile(&bounds.iter().map(part).collect::<Vec<_>>(), 50);
    let [hash, inflate, create] = [p50(|b| b.hash), p50(|b| b.inflate), p50(|b| b.create)];
    let seconds: Vec<f64> = bounds.iter().map(|bound| bound.seconds(cores)).collect();
    let all = hash + inflate + create;
    report.line(format_args!(
        "| bound: hashing {hash:.2} + inflating {inflate:.2} + creating {create:.2}, on {cores} cores | {} | {} | {all:.2} | | | 1 |",
        bounds.len(),
        spread(&seconds)
    ));
    for series in measured.series.iter().filter(|series| series.kind == kind) {
        if let Some(failure) = &series.failure {
            report.line(format_args!("| {} | 0 | {} | | | | |", series.name, failure.replace('|', "\\|")));
            continue;
        }
        let runs: Vec<Run> = series.runs.iter().copied().flatten().collect();
        let walls: Vec<f64> = runs.iter().map(|run| run.wall).collect();
        let cpu = percentile(&runs.iter().map(|run| run.cpu).collect::<Vec<_>>(), 50);
        let to_agentd = agentd(measured, kind).and_then(|agentd| medians(series, agentd));
        let to_bound = bound_ratio(series, bounds, cores);
        let shown = |ratio: Option<f64>| ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}"));
        report.line(format_args!(
            "| {} | {} | {} | {cpu:.2} | {:.0} | {} | {} |",
            series.name,
            runs.len(),
            spread(&walls),
            most_memory(series),
            shown(to_agentd),
            shown(to_bound)
        ));
    }
    report.line(format_args!(""));
}

fn verdicts(report: &mut Document, measured: &Measured, (kind, bounds): (&str, &[Bound]), cores: f64) {
    let Some(agentd) = agentd(measured, kind) else { return };
    let to_bound = bound_ratio(agentd, bounds, cores);
    let shown = to_bound.map(|ratio| format!("{ratio:.2}"));
    report.verdict(&format!("{kind}: ≤ {BOUND} × bound"), shown, to_bound.map(|ratio| ratio <= BOUND));
    let memory = most_memory(agentd);
    let held = (memory > 0.0).then_some(memory <= MEMORY);
    report.verdict(&format!("{kind}: ≤ {MEMORY} MiB"), Some(format!("{memory:.0} MiB")), held);
    let peers = || measured.series.iter().filter(move |peer| peer.kind == kind && peer.is_peer && peer.name != AGENTD);
    let ratios = peers().filter_map(|peer| Some((peer.name, medians(peer, agentd)?)));
    let fastest = ratios.min_by(|(_, one), (_, other)| one.total_cmp(other));
    let shown = fastest.map(|(name, ratio)| format!("{name} takes {ratio:.2} × as long"));
    let held = fastest.map(|(_, ratio)| ratio > 1.0);
    let failed = peers().find(|peer| peer.failure.is_some() && !UNKNOWN.contains(&(peer.name, peer.kind)));
    let (shown, held) = match failed {
        // How fast it would have been nobody knows; one that was faster decides all the same.
        Some(peer) if held != Some(false) => (Some(format!("{} failed", peer.name)), None),
        _ => (shown, held),
    };
    report.verdict(&format!("{kind}: faster than every peer"), shown, held);
}

fn agentd<'a>(measured: &'a Measured, kind: &str) -> Option<&'a Series> {
    measured.series.iter().find(|series| series.name == AGENTD && series.kind == kind)
}

fn spread(values: &[f64]) -> String {
    format!("{:.2} ({:.2} – {:.2})", percentile(values, 50), percentile(values, 0), percentile(values, 100))
}

fn most_memory(series: &Series) -> f64 {
    series.runs.iter().flatten().map(|run| run.memory).fold(0.0, f64::max)
}

/// Ratio of the medians of the wall times, over the rounds both ran in.
fn medians(of: &Series, by: &Series) -> Option<f64> {
    Some(ratio(&walls(of), &walls(by))?.medians)
}

fn bound_ratio(of: &Series, bounds: &[Bound], cores: f64) -> Option<f64> {
    let bounds: Vec<_> = bounds.iter().map(|bound| Some(bound.seconds(cores))).collect();
    Some(ratio(&walls(of), &bounds)?.medians)
}

fn walls(of: &Series) -> Vec<Option<f64>> {
    of.runs.iter().map(|run| Some((*run)?.wall)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(name: &'static str, walls: &[Option<f64>]) -> Series {
        let run = |wall: &Option<f64>| wall.map(|wall| Run { wall, cpu: 1.0, memory: 20.0 });
        Series { name, kind: "gzip", is_peer: name != "cat", runs: walls.iter().map(run).collect(), failure: None }
    }

    fn rounds(agentd: f64) -> Measured {
        let bound = Bound { hash: 1.0, inflate: 1.5, create: 0.5 };
        Measured {
            series: vec![
                series(AGENTD, &[Some(agentd); 3]),
                series("tar", &[None, Some(3.0), None]),
                series("cat", &[Some(0.1); 3]),
            ],
            bounds: vec![("gzip", vec![bound; 3])],
        }
    }

    fn filled(measured: &Measured, many: f64) -> Document {
        let stack = |layers, time| Stack { layers, times: vec![time; 5] };
        fill(Document::begin("unpack", 3, &[]), measured, &[stack(1, 4.0), stack(40, many)], 2.0)
    }

    fn report(agentd: f64, many: f64) -> Document {
        filled(&rounds(agentd), many)
    }

    #[test]
    fn budgets_are_of_the_same_rounds() {
        let good = report(1.6, 4.4);
        assert!(good.within_budgets(), "{good}");
        assert!(good.to_string().contains("| gzip: ≤ 1.15 × bound | 1.07 | ok |"), "{good}");
        assert!(good.to_string().contains("tar takes 1.88 × as long | ok |"), "{good}");
        assert!(!report(1.8, 4.4).within_budgets());
        assert!(!report(1.6, 4.6).within_budgets());
        assert!(!report(3.1, 4.4).within_budgets());
    }

    #[test]
    fn a_peer_that_failed_is_not_outrun() {
        let failing = |kind, agentd| {
            let mut measured = rounds(agentd);
            let failure = Some("exit status: 1".to_owned());
            // Of one that ran before it failed, the times say nothing either.
            measured.series.push(Series { failure, ..series("umoci unpack --rootless", &[Some(9.0), None, None]) });
            measured.series.iter_mut().for_each(|series| series.kind = kind);
            measured.bounds[0].0 = kind;
            filled(&measured, 4.4)
        };
        let failed = failing("gzip", 1.6);
        let verdict = "| gzip: faster than every peer | umoci unpack --rootless failed | not measured |";
        assert!(failed.to_string().contains(verdict) && !failed.within_budgets(), "{failed}");
        let slower = failing("gzip", 3.1).to_string();
        assert!(slower.contains("| gzip: faster than every peer | tar takes 0.97 × as long | **over** |"), "{slower}");
        let unknown = failing("zstd", 1.6);
        assert!(unknown.within_budgets() && unknown.to_string().contains("tar takes 1.88 × as long"), "{unknown}");
    }
}
