//! What a command costs in processor time, which other load on the machine changes little, as it does change time on a clock.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::run;

/// Processor time, user's and kernel's, of `command` run `times` times in a row, with every process that is waited for. What
/// it writes to standard output is dropped; it reads nothing.
///
/// # Panics
/// When the command fails.
#[must_use]
#[track_caller]
pub fn cpu_time(command: &Command, times: u32) -> Duration {
    let script = r#"TIMEFORMAT='%3U %3S'; time for ((n = 0; n < $0; n++)); do "$@" >/dev/null || exit; done"#;
    let mut timed = Command::new("bash");
    timed.args(["-c", script, &times.to_string()]);
    let ran = run(crate::behind(timed, command).stdin(Stdio::null())).expect_success();
    let seconds = ran.stderr.split_whitespace().map(str::parse::<f64>).sum::<Result<f64, _>>();
    Duration::from_secs_f64(seconds.unwrap_or_else(|e| panic!("{e}\n{ran}")))
}

/// Whether `one` costs less than `most` times what `other` does, by the least of each: processor time is dearer while the
/// core's other thread has work, so they take turns until it shows, three times at least.
///
/// # Errors
/// What they cost in each turn.
pub fn costs_below(
    most: f64,
    mut one: impl FnMut() -> Duration,
    mut other: impl FnMut() -> Duration,
) -> Result<(), Vec<(Duration, Duration)>> {
    const TURNS: usize = 12;
    let mut costs = Vec::new();
    while costs.len() < TURNS {
        costs.push((one(), other()));
        let least = |which: fn(&(Duration, Duration)) -> Duration| costs.iter().map(which).min().unwrap_or_default();
        if costs.len() >= 3 && least(|cost| cost.0) < least(|cost| cost.1).mul_f64(most) {
            return Ok(());
        }
    }
    Err(costs)
}
