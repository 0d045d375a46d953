//! The machine's clock is set while jobs run: forward by days, and back by more. Only a guest's clock is a test's to set.
#![expect(clippy::unwrap_used, reason = "a test, and what it stands on, ends by a panic")]

use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use agentd_tests::{Feature, Home, Started, require, run, wait_until};

/// Emulated, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

const DAY: i64 = 24 * 3600;

fn set(seconds: i64) {
    let _ran = run(Command::new("date").arg("--set").arg(format!("@{seconds}"))).expect_success();
}

/// Puts the clock right again, however the test ends.
struct Clock {
    began: i64,
    since: Instant,
}

impl Clock {
    fn new() -> Self {
        let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        Self { began: began.try_into().unwrap(), since: Instant::now() }
    }

    fn jump(&self, days: i64) {
        let elapsed = i64::try_from(self.since.elapsed().as_secs()).unwrap();
        set(self.began + elapsed + days * DAY);
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.jump(0);
    }
}

#[test]
fn a_clock_that_is_set_moves_no_deadline_and_makes_no_record_wrong() {
    if !require(Feature::Guest) || !require(Feature::Root) {
        return;
    }
    let home = Home::new();
    let clock = Clock::new();
    // Longer than a jump: what goes by the clock would end it.
    let patient = home.detached(&["--timeout", "1h"], "echo began; exec sleep 1000");
    // It ends while the clock is back: what goes by the clock would wait for days.
    let hasty = home.detached(&["--timeout", "15s"], "exec sleep 1000");
    let mut follower = Started::new(home.agentd().args(["logs", "-f", &patient]));
    follower.wait_for("began\n");
    clock.jump(2);
    let _ran = home.say(&["exec", &patient, "true"]).expect_silent_success();
    assert!(home.say(&["ps", "-q"]).expect_silent_success().stdout.contains(&patient), "no deadline came by a jump");
    clock.jump(-3);
    assert_eq!(home.say(&["wait", &hasty]).expect_code(124).stdout, "124\n");
    let record = home.record(&hasty);
    assert_eq!((record["state"].as_str(), record["exit_code"].as_i64()), (Some("exited"), Some(124)), "{record}");
    assert!(record["duration_ms"].as_u64().is_some_and(|took| (15_000..600_000).contains(&took)), "{record}");
    // A pause between two starts is a pause.
    let ran = run(home.run().args(["-q", "--restart", "on-failure:2", "--", "sh", "-c", "echo x; exit 3"]));
    assert_eq!(ran.expect_code(3).stdout, "x\nx\nx\n");
    // Started before and ended after, by the clock the other way round.
    let _ran = home.say(&["stop", &patient]).expect_silent_success();
    assert_eq!(follower.finish().expect_success().stdout, "began\n");
    assert_eq!(home.record(&patient)["exit_code"], 143);
    let listed = home.say(&["ps", "-a"]).expect_silent_success().stdout;
    assert!(listed.contains(&patient) && listed.contains(&hasty), "{listed}");
    assert!(wait_until(PATIENCE, || home.say(&["ps", "-q"]).expect_silent_success().stdout.is_empty()));
    let _ran = home.say(&["rm", "-a"]).expect_success();
    assert!(home.jobs().is_empty());
}
