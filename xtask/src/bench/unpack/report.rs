//! The report of `bench unpack`: tables and verdicts, as Markdown.

use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::contestants::AGENTD;
use super::measure::{Bound, Measured, Run, Series};
use super::stacks::Stack;
use crate::bench::start::statistics::{mean, percentile};

const BEGIN: &str = "<!-- bench unpack: begin -->";
const END: &str = "<!-- bench unpack: end -->";

/// agentd's wall time by the bound's, at most (docs/benchmarks.md, "Budgets").
const BOUND: f64 = 1.15;
/// MiB of agentd's largest process.
const MEMORY: f64 = 64.0;
/// Milliseconds that 40 layers take longer than one.
const STACK: f64 = 0.5;

#[derive(Debug)]
pub(super) struct Report {
    text: String,
    within_budgets: bool,
    cores: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Report {
    pub(super) fn new(measured: &Measured, stacks: &[Stack], cores: f64, head: &str) -> Self {
        let mut report = Self { text: format!("{head}\n"), within_budgets: true, cores };
        for (kind, bounds) in &measured.bounds {
            report.table(measured, kind, bounds);
        }
        report.line(format_args!(
            "| `agentd run` of `true`, unpacked before | runs | mean, ms | p50 |\n|---|---|---|---|"
        ));
        for Stack { layers, times } in stacks {
            let (mean, p50) = (mean(times), percentile(times, 50));
            report.line(format_args!("| {layers} layers | {} | {mean:.2} | {p50:.2} |", times.len()));
        }
        report.line(format_args!("\n| budget | measured | |\n|---|---|---|"));
        for (kind, bounds) in &measured.bounds {
            report.verdicts(measured, kind, bounds);
        }
        let p50 = |layers| stacks.iter().find(|s| s.layers == layers).map(|s| percentile(&s.times, 50));
        let more = p50(40).zip(p50(1)).map(|(many, one)| many - one);
        let shown = more.map(|more| format!("{more:.2} ms"));
        report.verdict(&format!("40 layers over 1 ≤ {STACK} ms"), shown, more.map(|more| more <= STACK));
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
        self.text.push_str(&line.to_string());
        self.text.push('\n');
    }

    fn table(&mut self, measured: &Measured, kind: &str, bounds: &[Bound]) {
        self.line(format_args!(
            "| {kind} | runs | wall s, p50 (min – max) | CPU s | MiB, largest process | × agentd | × bound |"
        ));
        self.line(format_args!("|---|---|---|---|---|---|---|"));
        let p50 = |part: fn(&Bound) -> f64| percentile(&bounds.iter().map(part).collect::<Vec<_>>(), 50);
        let [hash, inflate, create] = [p50(|b| b.hash), p50(|b| b.inflate), p50(|b| b.create)];
        let seconds: Vec<f64> = bounds.iter().map(|bound| bound.seconds(self.cores)).collect();
        let (all, cores) = (hash + inflate + create, self.cores);
        self.line(format_args!(
            "| bound: hashing {hash:.2} + inflating {inflate:.2} + creating {create:.2}, on {cores} cores | {} | {} | {all:.2} | | | 1 |",
            bounds.len(),
            spread(&seconds)
        ));
        for series in measured.series.iter().filter(|series| series.kind == kind) {
            if let Some(failure) = &series.failure {
                self.line(format_args!("| {} | 0 | {} | | | | |", series.name, failure.replace('|', "\\|")));
                continue;
            }
            let runs: Vec<Run> = series.runs.iter().copied().flatten().collect();
            let walls: Vec<f64> = runs.iter().map(|run| run.wall).collect();
            let cpu = percentile(&runs.iter().map(|run| run.cpu).collect::<Vec<_>>(), 50);
            let to_agentd = agentd(measured, kind).and_then(|agentd| ratio(series, agentd));
            let to_bound = bound_ratio(series, bounds, self.cores);
            let shown = |ratio: Option<f64>| ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}"));
            self.line(format_args!(
                "| {} | {} | {} | {cpu:.2} | {:.0} | {} | {} |",
                series.name,
                runs.len(),
                spread(&walls),
                most_memory(series),
                shown(to_agentd),
                shown(to_bound)
            ));
        }
        self.line(format_args!(""));
    }

    fn verdicts(&mut self, measured: &Measured, kind: &str, bounds: &[Bound]) {
        let Some(agentd) = agentd(measured, kind) else { return };
        let to_bound = bound_ratio(agentd, bounds, self.cores);
        let shown = to_bound.map(|ratio| format!("{ratio:.2}"));
        self.verdict(&format!("{kind}: ≤ {BOUND} × bound"), shown, to_bound.map(|ratio| ratio <= BOUND));
        let memory = most_memory(agentd);
        let held = (memory > 0.0).then_some(memory <= MEMORY);
        self.verdict(&format!("{kind}: ≤ {MEMORY} MiB"), Some(format!("{memory:.0} MiB")), held);
        let peers = measured.series.iter().filter(|peer| peer.kind == kind && peer.name != AGENTD);
        let ratios = peers.filter_map(|peer| Some((peer.name, ratio(peer, agentd)?)));
        let fastest = ratios.min_by(|(_, one), (_, other)| one.total_cmp(other));
        let shown = fastest.map(|(name, ratio)| format!("{name} takes {ratio:.2} × as long"));
        self.verdict(&format!("{kind}: faster than every peer"), shown, fastest.map(|(_, ratio)| ratio > 1.0));
    }

    fn verdict(&mut self, budget: &str, measured: Option<String>, held: Option<bool>) {
        let verdict = match held {
            Some(true) => "ok",
            Some(false) => "**over**",
            None => "not measured",
        };
        self.within_budgets &= held == Some(true);
        self.line(format_args!("| {budget} | {} | {verdict} |", measured.as_deref().unwrap_or("–")));
    }
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
fn ratio(of: &Series, by: &Series) -> Option<f64> {
    let both = of.runs.iter().zip(&by.runs).filter_map(|(of, by)| Some(((*of)?.wall, (*by)?.wall)));
    let (of, by): (Vec<f64>, Vec<f64>) = both.unzip();
    (!of.is_empty()).then(|| percentile(&of, 50) / percentile(&by, 50))
}

fn bound_ratio(of: &Series, bounds: &[Bound], cores: f64) -> Option<f64> {
    let both = of.runs.iter().zip(bounds).filter_map(|(of, by)| Some(((*of)?.wall, by.seconds(cores))));
    let (of, by): (Vec<f64>, Vec<f64>) = both.unzip();
    (!of.is_empty()).then(|| percentile(&of, 50) / percentile(&by, 50))
}

/// The machine, and the versions of the programs that are measured.
pub(super) fn head(rounds: u32, load: &str) -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let field = |name: &str| cpuinfo.lines().find_map(|line| line.strip_prefix(name)?.split_once(": ")).map(|(_, v)| v);
    let flags = field("flags").unwrap_or_default();
    let sha = if flags.split(' ').any(|flag| flag == "sha_ni") { "with SHA-NI" } else { "without SHA-NI" };
    let first_line = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).output().ok()?;
        let said = [output.stdout, output.stderr].concat();
        Some(String::from_utf8_lossy(&said).lines().next()?.to_owned())
    };
    let mut versions = Vec::new();
    for program in ["pigz", "tar", "umoci", "skopeo", "podman", "ch-image"] {
        let said = first_line(program, "--version").filter(|said| !said.starts_with("Traceback")).unwrap_or_default();
        versions.push(if said.contains(char::is_alphabetic) { said } else { format!("{program} {said}") });
    }
    let date = first_line("date", "--utc").unwrap_or_default();
    format!(
        "Linux {}, {} {sha}. {}. Load before: {}.\n\n`cargo xtask bench unpack --rounds {rounds}`, {date}\n",
        read("/proc/sys/kernel/osrelease").trim(),
        field("model name").unwrap_or("unknown processor"),
        versions.join(", "),
        load.split(' ').next().unwrap_or("unknown"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(name: &'static str, walls: &[Option<f64>]) -> Series {
        let run = |wall: &Option<f64>| wall.map(|wall| Run { wall, cpu: 1.0, memory: 20.0 });
        Series { name, kind: "gzip", runs: walls.iter().map(run).collect(), failure: None }
    }

    fn report(agentd: f64, many: f64) -> Report {
        let bound = Bound { hash: 1.0, inflate: 1.5, create: 0.5 };
        let measured = Measured {
            series: vec![series(AGENTD, &[Some(agentd); 3]), series("tar", &[None, Some(3.0), None])],
            bounds: vec![("gzip", vec![bound; 3])],
        };
        let stack = |layers, time| Stack { layers, times: vec![time; 5] };
        Report::new(&measured, &[stack(1, 4.0), stack(40, many)], 2.0, "head")
    }

    #[test]
    fn budgets_are_of_the_same_rounds() {
        let good = report(1.6, 4.4);
        assert!(good.within_budgets(), "{good}");
        assert!(good.text.contains("| gzip: ≤ 1.15 × bound | 1.07 | ok |"), "{good}");
        assert!(good.text.contains("tar takes 1.88 × as long | ok |"), "{good}");
        assert!(!report(1.8, 4.4).within_budgets());
        assert!(!report(1.6, 4.6).within_budgets());
        assert!(!report(3.1, 4.4).within_budgets());
    }
}
