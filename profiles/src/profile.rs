//! A whole policy: system calls, paths, namespaces, and what of it an old kernel may leave out.
//!
//! Invariant: a profile that exists is complete. What it was made of (a base it extends, a workspace that tightens it) no
//! longer matters to whoever enforces or explains it.

use std::borrow::Cow;

use serde::Serialize;

use crate::path::{LandlockRight, MayMiss, PathAccess, PathRule, Place};
use crate::rule::{SeccompRule, SeccompRules};

/// A policy, checked and complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Profile {
    /// Its name.
    pub name: Cow<'static, str>,
    /// Whom it is for, in a line.
    pub about: Cow<'static, str>,
    /// Whether the payload may make namespaces.
    pub namespaces: Namespaces,
    /// What it says about system calls.
    pub seccomp: SeccompRules,
    /// What it grants below which place.
    #[serde(rename = "path")]
    pub paths: Cow<'static, [PathRule]>,
    /// What an old kernel may leave out.
    #[serde(rename = "may-miss")]
    pub may_miss: Cow<'static, [MayMiss]>,
}

/// Whether the payload may make namespaces of its own, and so change what is mounted in them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Namespaces {
    /// Landlock forbids a process that has any file rule to mount: where namespaces are allowed, there are none.
    pub allowed: bool,
    /// Why.
    pub reason: Cow<'static, str>,
}

/// A Landlock right that this kernel lacks and the profile does not give up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Landlock's right `{right}` needs ABI {}, this kernel has {abi}", right.since())]
pub struct MissingRight {
    /// The right.
    pub right: LandlockRight,
    /// What the kernel has.
    pub abi: u32,
}

impl Profile {
    /// The Landlock rights to enforce on a kernel with ABI `abi`.
    ///
    /// # Errors
    /// When the kernel lacks one that the profile does not let it miss.
    pub fn landlock(&self, abi: u32) -> Result<Vec<LandlockRight>, MissingRight> {
        let wanted = LandlockRight::ALL.into_iter().filter(|right| !self.namespaces.allowed || !right.is_about_files());
        let mut enforced = Vec::new();
        for right in wanted {
            if right.since() <= abi {
                enforced.push(right);
            } else if !self.may_miss.iter().any(|missing| missing.right == right) {
                return Err(MissingRight { right, abi });
            }
        }
        Ok(enforced)
    }

    /// What it grants at a class of places, or nothing.
    #[must_use]
    pub fn access(&self, place: &Place) -> PathAccess {
        self.paths.iter().find(|rule| rule.place == *place).map_or_else(PathAccess::default, |rule| rule.access)
    }

    /// The rules that name a system call, in the order in which they are asked.
    pub fn rules_of<'a>(&'a self, syscall: &'a str) -> impl Iterator<Item = &'a SeccompRule> {
        self.seccomp.rules.iter().filter(move |rule| rule.syscalls.iter().any(|call| call.name == syscall))
    }
}
