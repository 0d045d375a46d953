//! Counting: what libtest says about a run, and which tier a test program belongs to.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use crate::workspace::Program;

/// File name prefixes of tiers (docs/architecture.md); every other test program is of the tier `unit`.
const TIERS: [&str; 7] = ["cli_", "userns_", "vm_", "escape_", "race_", "crash_", "peer_"];

pub(super) fn tier(program: &Program) -> &'static str {
    let prefix = TIERS.iter().find(|prefix| program.kind == "test" && program.target.starts_with(**prefix));
    prefix.copied().unwrap_or("unit")
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) passed: u32,
    pub(super) failed: u32,
    pub(super) skipped: u32,
}

impl Tally {
    /// One check that passed or failed.
    pub(super) fn of(passed: bool) -> Self {
        Self { passed: passed.into(), failed: (!passed).into(), skipped: 0 }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// What a test program said, `--show-output` given: the counts, and the reasons of the tests that said `skipped: …` and
/// returned, which libtest takes for passed. `None` when it ended without a result, or with one that does not add up.
pub(super) fn read(output: &str, success: bool) -> Option<(Tally, Vec<String>)> {
    let announced: u32 = output
        .lines()
        .find_map(|line| line.strip_prefix("running ")?.split_once(' ').and_then(|(count, _)| count.parse().ok()))?;
    let result = output.lines().rev().find_map(|line| line.strip_prefix("test result: "))?;
    let count = |word: &str| {
        let part = result.split(['.', ';']).find(|part| part.trim_end().ends_with(word))?;
        part.trim().split(' ').next()?.parse::<u32>().ok()
    };
    let (passed, failed, ignored) = (count("passed")?, count("failed")?, count("ignored")?);
    if passed + failed + ignored != announced || success != (failed == 0) {
        return None;
    }
    let skips = skips(output);
    let skipped = u32::try_from(skips.len()).ok()?;
    let mut reasons: Vec<String> = skips.into_values().map(String::from).collect();
    reasons.extend((0..ignored).map(|_| "marked #[ignore]".to_owned()));
    Some((Tally { passed: passed.checked_sub(skipped)?, failed, skipped: skipped + ignored }, reasons))
}

/// Test name to reason, from the sections of successful tests.
fn skips(output: &str) -> BTreeMap<&str, &str> {
    let mut skips = BTreeMap::new();
    let mut successes = false;
    let mut test = None;
    for line in output.lines() {
        match line {
            "successes:" => successes = true,
            "failures:" => successes = false,
            _ => {}
        }
        if let Some(name) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
            test = successes.then_some(name);
        } else if let (Some(test), Some(reason)) = (test, line.strip_prefix("skipped: ")) {
            skips.entry(test).or_insert(reason);
        }
    }
    skips
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "\nrunning 4 tests\ntest a ... ok\ntest b ... ok\ntest c ... FAILED\ntest d ... ignored\n\nsuccesses:\n\n\
        ---- a stdout ----\nskipped: no userns\nskipped: no userns\n\n\nsuccesses:\n    a\n    b\n\nfailures:\n\n\
        ---- c stdout ----\nskipped: not this one\npanicked\n\n\nfailures:\n    c\n\n\
        test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\n";

    #[test]
    fn a_test_that_says_skipped_is_not_counted_as_passed() {
        let (tally, reasons) = read(RUN, false).unwrap();
        assert_eq!(tally, Tally { passed: 1, failed: 1, skipped: 2 });
        assert_eq!(reasons, ["no userns", "marked #[ignore]"]);
    }

    #[test]
    fn a_program_that_ends_without_a_result_has_none() {
        assert_eq!(read("running 3 tests\ntest a ... ok\n", false), None);
        assert_eq!(read("", true), None);
        assert_eq!(read(&RUN.replace("running 4", "running 5"), false), None);
    }

    #[test]
    fn a_good_result_with_a_bad_status_is_no_result() {
        assert_eq!(read("running 0 tests\n\ntest result: ok. 0 passed; 0 failed; 0 ignored;\n", false), None);
        assert_eq!(read(RUN, true), None);
    }

    #[test]
    fn only_integration_tests_have_a_tier_by_prefix() {
        let program = |kind: &str, target: &str| Program {
            package_directory: "/".into(),
            target: target.into(),
            kind: kind.into(),
            path: "/x".into(),
        };
        assert_eq!(tier(&program("test", "cli_run")), "cli_");
        assert_eq!(tier(&program("bin", "cli_tool")), "unit");
        assert_eq!(tier(&program("test", "other")), "unit");
    }
}
