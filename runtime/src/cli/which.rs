//! Which jobs a verb is about: those that are named, or all that run; and how it goes through several.
//!
//! Invariant: one job that fails, or takes its time, keeps no other from what was asked for it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::Builder;

use anyhow::Result;

use super::{FAILED, is_closed, say};
use crate::job::id::JobId;
use crate::job::store::Jobs;

#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// Names, ids or beginnings of ids
    #[arg(required_unless_present = "all")]
    jobs: Vec<String>,
    /// Every job that runs
    #[arg(short, long, conflicts_with = "jobs")]
    all: bool,
}

impl Which {
    /// What was typed, and the job it means.
    pub(super) fn of(&self, jobs: &Jobs) -> Result<Vec<(String, JobId)>> {
        if !self.all {
            return named(jobs, &self.jobs);
        }
        Ok(jobs.running()?.into_iter().map(|id| (id.to_string(), id)).collect())
    }
}

/// What was typed, and the job it means. All are looked up before anything is done: a mistyped name changes nothing.
pub(super) fn named(jobs: &Jobs, texts: &[String]) -> Result<Vec<(String, JobId)>> {
    texts.iter().map(|text| Ok((text.clone(), jobs.find(text)?))).collect()
}

/// Does something for one after the other, and goes on where it fails: each failure is a line of its own, as podman has it.
/// Gives the exit code.
pub(super) fn each<T>(wanted: impl IntoIterator<Item = T>, mut act: impl FnMut(T) -> Result<()>) -> Result<u8> {
    let mut code = 0;
    for one in wanted {
        match act(one) {
            Ok(()) => {}
            Err(error) if is_closed(&error) => return Err(error),
            Err(error) => {
                say(&format!("{error:#}"));
                code = FAILED;
            }
        }
    }
    Ok(code)
}

/// What `act` makes of each, several at a time: a supervisor that does not answer is waited for ten seconds.
pub(super) fn at_once<W: Sync, T: Send>(wanted: &[W], act: impl Fn(&W) -> T + Sync) -> Vec<T> {
    /// Each watches a directory, and a user has 128 of what does that (inotify(7)).
    const MOST: usize = 16;
    let (next, made) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(wanted.len())));
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(one) = wanted.get(at) else { return };
            let result = act(one);
            made.lock().unwrap_or_else(PoisonError::into_inner).push((at, result));
        }
    };
    std::thread::scope(|scope| {
        // One that cannot be had is not needed: the others do its work, and a job may have taken all that there are.
        let _helpers: Vec<_> = (1..wanted.len().min(MOST)).map(|_| Builder::new().spawn_scoped(scope, work)).collect();
        work();
    });
    let mut made = made.into_inner().unwrap_or_else(PoisonError::into_inner);
    made.sort_by_key(|(at, _)| *at);
    made.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_at_once_comes_in_order_and_waits_for_nobody() {
        assert_eq!(at_once(&[0; 0], |_| 0), [0; 0]);
        let wanted: Vec<usize> = (0..100).collect();
        // The first comes to its end when all the others have.
        let (count, (tell, told)) = (AtomicUsize::new(0), std::sync::mpsc::channel());
        let told = Mutex::new(told);
        let doubled = at_once(&wanted, |number| {
            if *number == 0 {
                told.lock().unwrap().recv().unwrap();
            } else if count.fetch_add(1, Ordering::Relaxed) == 98 {
                tell.send(()).unwrap();
            }
            number * 2
        });
        assert_eq!(doubled, (0..100).map(|number| number * 2).collect::<Vec<_>>());
    }

    #[test]
    fn a_failure_keeps_no_other_from_its_turn() {
        let mut seen = Vec::new();
        let code = each([1, 2, 3], |number| {
            seen.push(number);
            if number == 2 { anyhow::bail!("two") } else { Ok(()) }
        });
        assert_eq!((code.unwrap(), seen), (FAILED, vec![1, 2, 3]));
        assert_eq!(each([1], |_| Ok(())).unwrap(), 0);
        // Nobody reads what is said: there is nothing to go on for.
        let closed = || anyhow::Error::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        let mut count = 0;
        assert!(
            each([1, 2], |_| {
                count += 1;
                Err(closed())
            })
            .is_err()
                && count == 1
        );
    }
}
