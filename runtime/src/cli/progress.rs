//! What a user sees of a pull: a bar a layer on a terminal, lines elsewhere, nothing with `-q`.
//!
//! Invariant: standard error only, and nothing of the image but digests, which are checked, and counts.

use std::collections::HashMap;

use agentd_rootfs::{Event, Fetch, Progress};
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::interrupt::Interrupts;
use super::say;
use super::wanted::Wanted;

/// Exit code of a pull that SIGINT or SIGTERM ended.
pub(super) const INTERRUPTED: u8 = 130;

/// Follows pulls, one after another.
pub(super) struct Follower {
    display: Display,
    left_out: Vec<String>,
}

enum Display {
    Silent,
    Lines { begun: Vec<String> },
    Bars { all: MultiProgress, bars: HashMap<String, ProgressBar> },
}

impl Follower {
    pub(super) fn new(quiet: bool) -> Self {
        let target = ProgressDrawTarget::stderr_with_hz(10);
        let display = match quiet {
            true => Display::Silent,
            // No terminal, or one that cannot go back up.
            false if target.is_hidden() => Display::Lines { begun: Vec::new() },
            false => Display::Bars { all: MultiProgress::with_draw_target(target), bars: HashMap::new() },
        };
        Follower { display, left_out: Vec::new() }
    }

    /// Does `work`, showing what it tells; `None` when a signal ended it.
    pub(super) fn follow<T, E>(
        &mut self,
        wanted: &Wanted,
        work: impl FnOnce(&mut Fetch<'_>) -> Result<T, E>,
    ) -> Result<Option<T>, E> {
        let mut interrupts = Interrupts::default();
        let stop = interrupts.stop();
        let mut tell = |event: Event| {
            if event == Event::Begun
                && let Err(error) = interrupts.watch()
            {
                tracing::debug!(%error, "signals end the pull at once");
            }
            self.show(&event);
        };
        let Wanted { pull, limits, registries } = wanted;
        let done = work(&mut Fetch { pull: *pull, limits, registries, tell: &mut tell, stop: &stop });
        interrupts.end();
        self.finish();
        if interrupts.caught() {
            say("interrupted: the layers that were finished are kept, and the next pull goes on from there");
            return Ok(None);
        }
        done.map(Some)
    }

    fn show(&mut self, event: &Event) {
        match event {
            Event::Begun => {}
            Event::Placed(note) => self.line(note),
            Event::Waiting(digest) => self.line(&format!("waiting for another pull of layer {}", short(digest))),
            Event::Layer(progress) => self.layer(progress),
        }
    }

    fn layer(&mut self, progress: &Progress) {
        let name = short(&progress.digest);
        let left_out = [("device nodes", progress.skipped_devices), ("extended attributes", progress.dropped_xattrs)];
        for (what, count) in left_out.into_iter().filter(|(_, count)| *count > 0) {
            self.left_out.push(format!("layer {name}: {count} {what} left out, which an ordinary user cannot make"));
        }
        match &mut self.display {
            Display::Silent => {}
            Display::Lines { begun } => {
                if !begun.contains(&progress.digest) {
                    begun.push(progress.digest.clone());
                    say(&format!("unpacking layer {name} ({})", HumanBytes(progress.bytes_total)));
                }
                if progress.done {
                    say(&format!("unpacked  layer {name}"));
                }
            }
            Display::Bars { all, bars } => {
                let bar = bars.entry(progress.digest.clone()).or_insert_with(|| {
                    let bar = ProgressBar::new(progress.bytes_total).with_style(style());
                    all.add(bar.with_prefix(name.trim_start_matches("sha256:").to_owned()))
                });
                bar.set_position(progress.bytes_done);
                if progress.done {
                    bar.finish_with_message("unpacked");
                }
            }
        }
    }

    fn line(&self, text: &str) {
        match &self.display {
            Display::Silent => {}
            Display::Lines { .. } => say(text),
            Display::Bars { all, .. } => all.suspend(|| say(text)),
        }
    }

    /// Bars go when the pull is over: what comes then is the job's, or the image's id.
    fn finish(&mut self) {
        if let Display::Bars { all, bars } = &mut self.display {
            bars.clear();
            // A terminal that is gone has nothing to clear.
            all.clear().unwrap_or_default();
        }
        for line in std::mem::take(&mut self.left_out) {
            self.line(&line);
        }
    }
}

/// The beginning of a digest, enough to tell layers apart.
fn short(digest: &str) -> &str {
    digest.get(..19).unwrap_or(digest)
}

fn style() -> ProgressStyle {
    // The bar takes what the rest leaves of a line: a line that wraps would not be redrawn in its place.
    const TEMPLATE: &str = "{prefix} [{wide_bar}] {bytes:>10} / {total_bytes:<10} {binary_bytes_per_sec:>12} {msg:8}";
    ProgressStyle::with_template(TEMPLATE)
        .unwrap_or_else(|_malformed| ProgressStyle::default_bar())
        .progress_chars("=> ")
}
