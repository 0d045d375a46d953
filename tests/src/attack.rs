//! One attack in several places: in a box, natively, and in bare namespaces, which is a box with no layer but those.
//!
//! Invariant: a test that shows a denial also shows where the same words of the same program work, so that it cannot
//! pass because the attack is broken.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use crate::{Home, Ran, run};

/// Where [`Home::boxed`] shows the attack program.
pub const INSIDE: &str = "/attack";

/// What an attack that worked says.
pub const WORKS: &str = "ok";

/// Which attack ended how.
pub type Outcomes = BTreeMap<String, String>;

/// The attack program, built beside this test.
#[must_use]
pub fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap_or_else(|e| panic!("current_exe: {e}"));
    // …/PROFILE/deps/TEST
    let found = test.ancestors().nth(2).map(|profile| profile.join("attack"));
    found.unwrap_or_else(|| panic!("{} lies nowhere", test.display()))
}

/// Where else an attack is tried, to show that it can work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// By the user of the test, outside any box.
    Natively,
    /// With every capability over new user, mount, pid, net, ipc and uts namespaces, and no other layer.
    InNamespaces,
    /// Natively, and only where the test runs as root.
    AsRoot,
    /// Nowhere: it would harm the machine, or no kernel setting lets it work. Says why.
    Nowhere(&'static str),
}

/// An attack, how it ends in a box, and how where it can work.
#[derive(Debug, Clone, Copy)]
pub struct Attack {
    /// Name and argument for the attack program.
    pub word: &'static str,
    /// What the box answers; alternatives with `|` between.
    pub inside: &'static str,
    /// Where it is tried too.
    pub control: Control,
    /// How it ends there: [`WORKS`], or an errno that lies behind the check for who may call.
    pub outside: &'static str,
}

impl Attack {
    /// An attack that the box refuses with `inside` and that works at `control`.
    #[must_use]
    pub const fn new(word: &'static str, inside: &'static str, control: Control) -> Self {
        Self { word, inside, control, outside: WORKS }
    }

    /// The same, where at `control` it is refused too, but not for its caller.
    #[must_use]
    pub const fn outside(self, outside: &'static str) -> Self {
        Self { outside, ..self }
    }
}

/// Fails unless every attack ends in the box (started with `arguments`) and at its control as the table says.
#[track_caller]
pub fn assert_refused(home: &Home, arguments: &[&str], attacks: &[Attack]) {
    let words = |wanted: &dyn Fn(Control) -> bool| -> Vec<&str> {
        attacks.iter().filter(|attack| wanted(attack.control)).map(|attack| attack.word).collect()
    };
    let root = crate::is_root();
    let inside = home.attack(arguments, &words(&|_| true));
    let natively = natively(&words(&|control| control == Control::Natively || (root && control == Control::AsRoot)));
    let bare = in_namespaces(&words(&|control| control == Control::InNamespaces));
    let mut wrong = Vec::new();
    for attack in attacks {
        let said = &inside[attack.word];
        if !attack.inside.split('|').any(|allowed| allowed == said) {
            wrong.push(format!("in the box {}: {said}, expected {}", attack.word, attack.inside));
        }
        if let Some(said) = natively.get(attack.word).or_else(|| bare.get(attack.word))
            && said != attack.outside
        {
            wrong.push(format!("{:?} {}: {said}, expected {}", attack.control, attack.word, attack.outside));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Tries `words` as the user of the test, confined by nothing.
#[track_caller]
pub fn natively(words: &[&str]) -> Outcomes {
    outcomes(words, |words| run(Command::new(program()).args(words)))
}

/// Tries `words` in bare namespaces.
#[track_caller]
pub fn in_namespaces(words: &[&str]) -> Outcomes {
    outcomes(words, |words| run(bare().arg(program()).args(words)))
}

/// A command in bare namespaces: what a box is without mounts, Landlock, seccomp and the loss of capabilities.
#[must_use]
pub fn bare() -> Command {
    let mut command = Command::new("unshare");
    command.args([
        "--user",
        "--map-root-user",
        "--mount",
        "--pid",
        "--fork",
        "--mount-proc",
        "--net",
        "--ipc",
        "--uts",
    ]);
    command.arg("--");
    command
}

/// How `words` end where `attack` runs the attack program with them.
#[track_caller]
pub fn outcomes(words: &[&str], attack: impl FnOnce(&[&str]) -> Ran) -> Outcomes {
    if words.is_empty() {
        return Outcomes::new();
    }
    // A single word is answered without its name, so there are always two.
    let padded = [words, &["list=/"]].concat();
    let ran = attack(&padded).expect_success();
    let lines = ran.stdout.lines().filter_map(|line| line.split_once('\t')).filter(|(word, _)| words.contains(word));
    let outcomes: Outcomes = lines.map(|(word, outcome)| (word.to_owned(), outcome.to_owned())).collect();
    let missing: Vec<_> = words.iter().filter(|word| !outcomes.contains_key(**word)).collect();
    assert!(missing.is_empty(), "no outcome of {missing:?}\n{ran}");
    outcomes
}

impl Home {
    /// `agentd run -q ARGUMENTS` with the attack program at [`INSIDE`]; add the command.
    #[must_use]
    pub fn boxed(&self, arguments: &[&str]) -> Command {
        let mut command = self.agentd();
        let mount = format!("type=bind,src={},dst={INSIDE}", program().display());
        command.args(["run", "-q", "--mount", &mount]).args(arguments).arg("--");
        command
    }

    /// Runs `script` in a box of its own with the box's `sh`.
    #[track_caller]
    pub fn sh(&self, arguments: &[&str], script: &str) -> Ran {
        run(self.boxed(arguments).args(["sh", "-c", script]))
    }

    /// What `script` prints in a box of its own; fails when it fails.
    #[track_caller]
    pub fn said(&self, arguments: &[&str], script: &str) -> String {
        self.sh(arguments, script).expect_success().stdout
    }

    /// Tries `words` in a box of its own.
    #[track_caller]
    #[must_use]
    pub fn attack(&self, arguments: &[&str], words: &[&str]) -> Outcomes {
        outcomes(words, |words| run(self.boxed(arguments).arg(INSIDE).args(words)))
    }
}
