//! What an image's config asks for beside its command: places to write to, and the signal that ends it.
//!
//! Invariant: an image gets no place that agentd or the user has given to something else, and no wish of it that makes no
//! sense ends a start: it is left out, and the record says so.

use std::path::Path;
use std::str::FromStr;

use agentd_rootfs::ImageConfig;
use nix::sys::signal::Signal;

use crate::job::spec::{self, JobSpec};

/// Each is a mount; real images have one or two.
const VOLUMES: usize = 64;

/// The kernel's first and last real-time signal, which glibc's SIGRTMIN is 2 above.
const SIGRTMIN: i32 = 34;
const SIGRTMAX: i32 = 64;

/// Places that are agentd's own or writable anyway.
const TAKEN: [&str; 7] = ["/proc", "/dev", "/sys", "/run", "/tmp", "/scratch", super::plan::WORKSPACE];

/// The directories that stay writable in a sealed root because the image has them in `Volumes`.
pub(super) fn volumes(config: &ImageConfig, spec: &JobSpec, notes: &mut Vec<String>) -> Vec<String> {
    let mut volumes: Vec<String> = Vec::new();
    for asked in &config.volumes {
        let path = spec::absolute(asked).ok().filter(|path| path != "/");
        let Some(path) = path.filter(|path| !TAKEN.iter().any(|taken| Path::new(path).starts_with(taken))) else {
            notes.push(format!("the image's volume `{}` is no place for one, and was left out", quoted(asked)));
            continue;
        };
        // What the user mounts there is what is there.
        let given = spec.mounts.iter().any(|mount| Path::new(&path).starts_with(&mount.target));
        if !given && !volumes.contains(&path) {
            volumes.push(path);
        }
    }
    if volumes.len() > VOLUMES {
        notes.push(format!(
            "the image has {} volumes, and those after the first {VOLUMES} were left out",
            volumes.len()
        ));
        volumes.truncate(VOLUMES);
    }
    volumes
}

/// The number of the signal that asks the payload to end.
pub(super) fn stop_signal(config: &ImageConfig, notes: &mut Vec<String>) -> i32 {
    let Some(text) = &config.stop_signal else { return libc::SIGTERM };
    parse_signal(text).unwrap_or_else(|| {
        notes.push(format!("the image's StopSignal `{}` is no signal; it is stopped by SIGTERM", quoted(text)));
        libc::SIGTERM
    })
}

/// `SIGTERM`, `term`, `15`, `SIGRTMIN+3`, as docker reads them.
fn parse_signal(text: &str) -> Option<i32> {
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<i32>().ok()).flatten();
    if let Some(number) = digits(text) {
        return (1..=SIGRTMAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(""), _) => SIGRTMIN,
        (_, Some("")) => SIGRTMAX,
        (Some(above), _) => SIGRTMIN.checked_add(digits(above.strip_prefix('+')?)?)?,
        (_, Some(below)) => SIGRTMAX.checked_sub(digits(below.strip_prefix('-')?)?)?,
        (None, None) => return Signal::from_str(&format!("SIG{name}")).ok().map(|signal| signal as i32),
    };
    (SIGRTMIN..=SIGRTMAX).contains(&number).then_some(number)
}

/// Text of an image for a note: short, and without control characters.
fn quoted(untrusted: &str) -> String {
    untrusted.chars().take(100).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_read_as_docker_reads_them() {
        for (text, want) in [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("SigQuit", Some(3)),
            ("KILL", Some(9)),
            ("SIGWINCH", Some(28)),
            ("15", Some(15)),
            ("64", Some(64)),
            ("SIGRTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("rtmax-1", Some(63)),
            ("RTMAX", Some(64)),
            ("RTMIN+30", Some(64)),
            ("RTMIN+31", None),
            ("RTMAX-31", None),
            ("RTMIN-1", None),
            ("RTMIN+-1", None),
            ("RTMIN+99999999999", None),
            ("RTMIN+", None),
            ("0", None),
            ("65", None),
            ("-9", None),
            ("+9", None),
            ("99999999999999999999", None),
            ("", None),
            ("SIG", None),
            ("SIGSIGTERM", None),
            ("SIGTERM ", None),
            ("ſigterm", None),
        ] {
            assert_eq!(parse_signal(text), want, "{text:?}");
        }
        let mut notes = Vec::new();
        let config = ImageConfig { stop_signal: Some("\u{1b}[2J".into()), ..ImageConfig::default() };
        assert_eq!(stop_signal(&config, &mut notes), libc::SIGTERM);
        assert_eq!(notes, ["the image's StopSignal `\\u{1b}[2J` is no signal; it is stopped by SIGTERM"]);
    }
}
