//! A report of a benchmark: lines, tables and verdicts as Markdown, for the terminal and docs/benchmarks.md alike.
//!
//! Invariant: a budget that was not measured is not within its budget, unless the report says that it may be left out.

use std::fmt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::workspace;

#[derive(Debug)]
pub(super) struct Document {
    name: &'static str,
    text: String,
    within_budgets: bool,
}

impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Document {
    /// Opens the report of `bench NAME`: the machine, the versions of the `programs` that are measured, and the load.
    /// To be called before anything is measured: a busy machine's times are not worth comparing with another run's.
    pub(super) fn begin(name: &'static str, rounds: impl fmt::Display, programs: &[&str]) -> Self {
        let load = read("/proc/loadavg");
        let versions: String = programs.iter().filter_map(|program| Some(format!(" {}.", version(program)?))).collect();
        let mut document = Self { name, text: String::new(), within_budgets: true };
        let load = load.split(' ').next().unwrap_or("unknown");
        document.line(format_args!("{}{versions} Load before: {load}.\n", machine()));
        document.line(format_args!("`cargo xtask bench {name} --rounds {rounds}`, {}\n", today()));
        document
    }

    pub(super) fn line(&mut self, line: fmt::Arguments<'_>) {
        self.text.push_str(&format!("{line}\n"));
    }

    /// Opens the table that [`Document::verdict`] fills.
    pub(super) fn budgets(&mut self) {
        self.line(format_args!("| budget | measured | |\n|---|---|---|"));
    }

    pub(super) fn verdict(&mut self, budget: &str, measured: Option<String>, held: Option<bool>) {
        self.verdict_where_measured(budget, measured, held);
        self.within_budgets &= held.is_some();
    }

    /// A verdict on what few machines can measure: no time is no failure.
    pub(super) fn verdict_where_measured(&mut self, budget: &str, measured: Option<String>, held: Option<bool>) {
        let word = match held {
            Some(true) => "ok",
            Some(false) => "**over**",
            None => "not measured",
        };
        self.within_budgets &= held != Some(false);
        self.line(format_args!("| {budget} | {} | {word} |", measured.as_deref().unwrap_or("–")));
    }

    /// Something failed that no line of the budgets tells of.
    pub(super) fn fail(&mut self) {
        self.within_budgets = false;
    }

    #[cfg(test)]
    pub(super) fn within_budgets(&self) -> bool {
        self.within_budgets
    }

    /// Prints the report, puts it into docs/benchmarks.md when asked, and says whether everything is within its budget.
    pub(super) fn finish(self, write: bool) -> Result<bool> {
        println!("{self}");
        if write {
            let path = workspace::root().join("docs/benchmarks.md");
            let old = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            let new = self.put_into(&old).with_context(|| {
                format!("{} has no section between <!-- bench {}: begin --> and end", path.display(), self.name)
            })?;
            std::fs::write(&path, new).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(self.within_budgets)
    }

    /// `old` with this report between its two marks.
    fn put_into(&self, old: &str) -> Option<String> {
        let mark = |which| format!("<!-- bench {}: {which} -->", self.name);
        let (begin, end) = (mark("begin"), mark("end"));
        let (before, rest) = old.split_once(&begin)?;
        let (_, after) = rest.split_once(&end)?;
        Some(format!("{before}{begin}\n{}{end}{after}", self.text))
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn machine() -> String {
    let cpuinfo = read("/proc/cpuinfo");
    let field = |name: &str| cpuinfo.lines().find_map(|line| line.strip_prefix(name)?.split_once(':')).map(|(_, v)| v);
    let flags = field("flags").unwrap_or_default();
    let sha = if flags.split(' ').any(|flag| flag == "sha_ni") { "with SHA-NI" } else { "without SHA-NI" };
    let model = field("model name").unwrap_or("unknown processor").trim();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("Linux {}, {model} {sha}, {cores} cores.", read("/proc/sys/kernel/osrelease").trim())
}

/// The first line of what the program says of itself, with its name; nothing of one that is not here.
fn version(program: &str) -> Option<String> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let line = said.lines().next().filter(|line| !line.starts_with("Traceback"))?;
    Some(if line.contains(char::is_alphabetic) { line.to_owned() } else { format!("{program} {line}") })
}

fn today() -> String {
    let output = Command::new("date").args(["--utc", "+%Y-%m-%d %H:%M"]).output();
    output.map_or("unknown day".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document() -> Document {
        Document { name: "it", text: "new\n".into(), within_budgets: true }
    }

    #[test]
    fn writing_replaces_what_is_between_the_marks_and_nothing_else() {
        let [begin, end] = ["<!-- bench it: begin -->", "<!-- bench it: end -->"];
        let old = format!("# Title\n{begin}\nold\n{end}\nend\n");
        assert_eq!(document().put_into(&old).unwrap(), format!("# Title\n{begin}\nnew\n{end}\nend\n"));
        assert_eq!(document().put_into("no marks"), None);
    }

    #[test]
    fn what_is_over_or_not_measured_fails_unless_it_may_be_left_out() {
        let judged = |judge: fn(&mut Document)| {
            let mut document = document();
            judge(&mut document);
            document
        };
        assert!(judged(|it| it.verdict("a", Some("1".into()), Some(true))).within_budgets());
        assert!(!judged(|it| it.verdict("a", Some("1".into()), Some(false))).within_budgets());
        assert!(!judged(|it| it.verdict("a", None, None)).within_budgets());
        assert!(judged(|it| it.verdict_where_measured("a", None, None)).within_budgets());
        assert!(!judged(|it| it.verdict_where_measured("a", Some("1".into()), Some(false))).within_budgets());
        assert!(!judged(Document::fail).within_budgets());
        let told = judged(|it| it.verdict("a", None, None)).to_string();
        assert_eq!(told, "new\n| a | – | not measured |\n");
    }
}
