//! `agentd doctor --attack`: what a hostile program would try, tried on this host, its kernel and its configuration.
//!
//! ```text
//! targets     what of the host is aimed at
//! place       a real box, or bare namespaces, and in it a process that tries one attack
//! walls       the layers, and boxes without one of them
//! inside      that process
//! judge       from answers to what stopped the attack
//! ```
//!
//! Invariant: every attempt is a process of its own in namespaces of its own, killed when it takes too long; the host has
//! nothing more or less afterwards.

mod inside;
mod judge;
mod namespaces;
mod place;
mod targets;
mod walls;

use std::fmt;
use std::time::{Duration, Instant};

use agentd_attacks::suite::{Attack, attacks};
use serde::Serialize;

pub use inside::attempt_from_inside;
pub use walls::Wall;

use judge::judge;
use place::Place;

use crate::launch::plan::Surroundings;

/// All attacks together; each attempt has a bound of its own.
const PATIENCE: Duration = Duration::from_secs(30);

/// What came of one attack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Attempted {
    /// Its name, in kebab-case.
    pub attack: &'static str,
    /// What a program inside would do by it.
    pub says: &'static str,
    /// The system call it stands or falls with.
    pub call: Option<&'static str>,
    /// How it ended.
    pub verdict: Verdict,
    /// What the kernel answered in a box: an errno's name, or a signal.
    pub answer: Option<String>,
    /// The layers that stop it, each of them alone. None where only the kernel's own check does, or all together.
    pub stopped_by: Vec<Stop>,
    /// How it ends where none of the layers is; none when there was no time to see.
    pub without: Option<String>,
    /// Whether that means that it works there; else the kernel itself refuses it.
    pub works_without: bool,
    /// Why it was not tried, or what kept it from ending.
    pub reason: Option<String>,
}

/// How an attack ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Something refused it.
    Stopped,
    /// It worked in a box.
    Succeeded,
    /// It gave no answer: nothing is known.
    Unknown,
    /// There is nothing here that it could be tried on.
    NotTried,
}

/// A layer that stops an attack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stop {
    /// Which.
    pub layer: Wall,
    /// What it answers when it stands alone.
    pub answer: String,
}

impl Verdict {
    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Stopped => "STOPPED",
            Verdict::Succeeded => "SUCCEEDED",
            Verdict::Unknown => "UNKNOWN",
            Verdict::NotTried => "NOT TRIED",
        }
    }
}

/// `makes a user namespace of its own: EPERM by seccomp`
impl fmt::Display for Attempted {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.says)?;
        if let Some(answer) = &self.answer {
            write!(out, ": {answer}")?;
        }
        if self.verdict == Verdict::Stopped {
            for (at, stop) in self.stopped_by.iter().enumerate() {
                write!(out, "{}{}", if at == 0 { " by " } else { ", by " }, stop.layer.words())?;
                // Another layer answers before it.
                if Some(&stop.answer) != self.answer.as_ref() {
                    write!(out, " ({})", stop.answer)?;
                }
            }
            match (&self.without, self.stopped_by.is_empty()) {
                (Some(_), true) if self.works_without => write!(out, " by the layers together")?,
                (Some(errno), true) if self.answer.as_ref() == Some(errno) => write!(out, " with or without layers")?,
                (Some(errno), _) if !self.works_without => write!(out, "; without layers {errno}")?,
                _ => {}
            }
        }
        self.reason.iter().try_for_each(|reason| write!(out, ": {reason}"))
    }
}

impl Attempted {
    fn new(attack: &'static str, says: &'static str, verdict: Verdict) -> Self {
        Attempted {
            attack,
            says,
            call: None,
            verdict,
            answer: None,
            stopped_by: Vec::new(),
            without: None,
            works_without: false,
            reason: None,
        }
    }
}

/// Whether the box held: nothing got through, and of nothing is it unknown.
#[must_use]
pub fn held(attempted: &[Attempted]) -> bool {
    attempted.iter().all(|attempted| matches!(attempted.verdict, Verdict::Stopped | Verdict::NotTried))
}

/// Tries every attack from the box of `agentd run`. The calling process must have one thread.
///
/// # Errors
/// When there is no box, or nothing to aim at.
pub fn attack(surroundings: &Surroundings) -> Result<Vec<Attempted>, String> {
    let begun = Instant::now();
    let mut boxes = place::Boxes::new(surroundings)?;
    let aim = targets::Aim::take(boxes.plan(), surroundings.home.as_deref())
        .map_err(|error| format!("cannot listen on loopback: {error}"))?;
    if let Some(private) = &aim.targets.private {
        boxes.show(private);
    }
    let attempt = |place, standing: &[Wall], attack: &Attack| {
        if begun.elapsed() > PATIENCE {
            return Err(format!("all attacks together took more than {} s", PATIENCE.as_secs()));
        }
        boxes.attempt(place, standing, &attack.word)
    };
    let all = attacks(&aim.targets);
    // What a box does comes first: on a slow machine there may be no time to find out by what.
    let answers: Vec<_> = all.iter().map(|attack| attempt(Place::Box, Place::Box.walls(), attack)).collect();
    let judged = all.iter().zip(answers);
    let judged = judged.map(|(attack, answer)| judge(attack, answer, |place, walls| attempt(place, walls, attack)));
    let mut attempted: Vec<Attempted> = judged.collect();
    attempted.extend(aim.left_out.iter().cloned());
    Ok(attempted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_that_one_attack_leaves_has_not_held() {
        let all = |verdicts: &[Verdict]| -> Vec<Attempted> {
            verdicts.iter().map(|verdict| Attempted::new("mount", "mounts a file system", *verdict)).collect()
        };
        assert!(held(&all(&[Verdict::Stopped, Verdict::NotTried, Verdict::Stopped])));
        assert!(!held(&all(&[Verdict::Stopped, Verdict::Succeeded, Verdict::Stopped])));
        assert!(!held(&all(&[Verdict::Stopped, Verdict::Unknown])));
    }
}
