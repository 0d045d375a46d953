//! A workspace's own profile: it may take from the profile its user chose, and never add.
//!
//! ```toml
//! schema = 1
//! [[seccomp.rule]]           # verdicts are errnos only
//! [[path]]                   # places that the profile has, with fewer rights
//! ```
//!
//! Invariant: the workspace is not trusted. Its rules only refuse, and are asked before the profile's: whatever it says,
//! the result allows no call, grants no path and misses no right that the profile under it does not; and a call that is
//! denied aloud without them is denied aloud with them.

use serde::Deserialize;
use toml::Spanned;

use crate::path::{PathRule, Place};
use crate::profile::Profile;
use crate::rule::{SeccompRule, SeccompRules, Verdict};
use crate::schema::{self, Problem, RuleEntry, SchemaError};

/// What the payload's filter sends its listener by: where it is refused, no denial is told.
const TELLS: &str = "sendmsg";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    schema: u32,
    #[serde(default)]
    seccomp: SeccompSection,
    #[serde(default)]
    path: Vec<Spanned<PathRule>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SeccompSection {
    #[serde(default)]
    rule: Vec<Spanned<RuleEntry>>,
}

/// `base`, tightened by the text of a workspace's profile.
///
/// # Errors
/// When the text is not such a profile, or would allow something that `base` does not: the line and the rule.
pub fn tighten(base: &Profile, text: &str) -> Result<Profile, SchemaError> {
    let Document { schema, seccomp, path } = schema::document(text)?;
    schema::version(schema)?;
    let refusals = schema::each(text, seccomp.rule, "rules", |entry| refusal(base, schema::rule(entry)?))?;
    let spans: Vec<_> = path.iter().map(Spanned::span).collect();
    let tightened = schema::paths(text, path)?;
    let checked = spans.into_iter().zip(tightened).map(|(span, rule)| Spanned::new(span, rule)).collect();
    let tightened = schema::each(text, checked, "paths", |rule| less(base, rule))?;
    let mut paths = base.paths.to_vec();
    for rule in tightened {
        if let Some(place) = paths.iter_mut().find(|known| known.place == rule.place) {
            *place = rule;
        }
    }
    let SeccompRules { unlisted, unlisted_reason, .. } = base.seccomp.clone();
    let rules = schema::before(refusals, &base.seccomp.rules).into();
    Ok(Profile { seccomp: SeccompRules { rules, unlisted, unlisted_reason }, paths: paths.into(), ..base.clone() })
}

/// A rule that refuses, and hides no refusal of `base`: an answer that programs take for an old kernel is told to nobody.
fn refusal(base: &Profile, rule: SeccompRule) -> Result<SeccompRule, Problem> {
    let group = || rule.group.to_string();
    // What pretends to be done is a lie that its user did not choose.
    if matches!(rule.verdict, Verdict::Allow | Verdict::Pretend) {
        let syscall = rule.syscalls.first().map(|call| call.name.to_string()).unwrap_or_default();
        return Err(Problem::Allows { group: group(), syscall });
    }
    if rule.syscalls.iter().any(|call| call.name == TELLS) {
        return Err(Problem::Mutes { group: group() });
    }
    // By its conditions a rule may spare what `base` denies aloud; who could say so at a glance?
    let is_denied = |name: &str| base.rules_of(name).any(|known| known.verdict.is_denial());
    match rule.syscalls.iter().find(|call| !rule.verdict.is_denial() && is_denied(&call.name)) {
        Some(call) => {
            Err(Problem::Hides { group: group(), syscall: call.name.to_string(), verdict: rule.verdict.to_string() })
        }
        None => Ok(rule),
    }
}

/// A grant that is one of `base` with fewer rights, and takes them from where nothing else grants them.
fn less(base: &Profile, rule: PathRule) -> Result<PathRule, Problem> {
    let place = || rule.place.word().to_owned();
    let Some(known) = base.paths.iter().find(|known| known.place == rule.place) else {
        let words: Vec<_> = base.paths.iter().map(|known| known.place.word()).collect();
        return Err(Problem::NoSuchPlace { place: place(), known: words.join(", ") });
    };
    let more = rule.access.without(known.access);
    if more != Default::default() {
        return Err(Problem::Widens { place: place(), has: known.access.to_string(), more: more.to_string() });
    }
    let taken = known.access.without(rule.access);
    for above in base.paths.iter().filter(|above| above.place != rule.place) {
        let Place::Path(path) = &above.place else { continue };
        let kept = above.access.and(taken);
        if rule.place.lies_below(path) && kept != Default::default() {
            return Err(Problem::NoEffect { place: place(), rights: kept.to_string(), by: path.to_string() });
        }
    }
    Ok(rule)
}

#[cfg(test)]
#[path = "tighten/tests.rs"]
mod tests;
