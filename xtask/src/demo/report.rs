//! What the demo says while it runs, and the table at its end.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// The checks so far.
#[derive(Debug)]
pub(super) struct Report {
    part: String,
    checks: Vec<Check>,
}

#[derive(Debug)]
struct Check {
    part: String,
    what: String,
    held: bool,
}

impl Report {
    pub(super) fn new() -> Self {
        Self { part: String::new(), checks: Vec::new() }
    }

    /// What the next checks are about.
    pub(super) fn part(&mut self, name: &str) {
        println!("\n{name}");
        self.part = name.to_owned();
    }

    /// Notes a check; one that does not hold is said at once, with what was seen instead.
    pub(super) fn check(&mut self, what: &str, held: bool, seen: &str) {
        if !held {
            println!("  DOES NOT HOLD: {what}");
            for line in seen.lines().take(20) {
                println!("    {}", super::site::printable(line));
            }
        }
        self.checks.push(Check { part: self.part.clone(), what: what.to_owned(), held });
    }

    /// The table; an error unless every check held.
    pub(super) fn end(self, start: Instant) -> Result<()> {
        println!("summary");
        let mut part = "";
        for check in &self.checks {
            if check.part != part {
                part = &check.part;
                println!("  {part}");
            }
            println!("    {}  {}", if check.held { "held  " } else { "FAILED" }, check.what);
        }
        let failed = self.checks.iter().filter(|check| !check.held).count();
        let all = self.checks.len();
        println!("{} of {all} checks held, {} since the build", all - failed, seconds(start.elapsed()));
        if failed > 0 {
            bail!("{failed} checks did not hold");
        }
        Ok(())
    }
}

/// One line of progress.
pub(super) fn step(start: Instant, what: &str) {
    println!("{:>8}  {what}", seconds(start.elapsed()));
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
