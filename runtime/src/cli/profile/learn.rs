//! `agentd profile learn`: runs a command with fewer refusals, and writes the profile under which it needs none.
//!
//! Invariant: the file is written when no process of the job is left, to a place where none of them could write.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use agentd_init::plan::{Access, Mount};
use agentd_profiles::Lessons;
use anyhow::{Context, Result, bail, ensure};

use super::super::{printable, run, say};
use super::place::Place;
use crate::launch::plan::Plan;
use crate::supervisor::Finished;

/// What to run, and where what is learned goes.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// Write the profile to this file, which must not be there yet [default: to standard output, behind the command's own]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    run: run::Args,
}

pub(super) fn run(args: Args) -> Result<u8> {
    let learning = Learning::new(args.output)?;
    run::learn(args.run, &learning)
}

/// Where what is learned goes.
#[derive(Debug)]
pub(in crate::cli) struct Learning {
    output: Option<PathBuf>,
    name: String,
}

impl Learning {
    fn new(output: Option<PathBuf>) -> Result<Self> {
        let Some(output) = output else { return Ok(Learning { output: None, name: "learned".into() }) };
        let (Some(name), parent) = (output.file_name(), output.parent()) else {
            bail!("{} is no name for a file", output.display());
        };
        let parent = parent.filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let place = run::absolute(parent, "directory")?.join(name);
        ensure!(place.symlink_metadata().is_err(), "{} is there already; choose another name", place.display());
        let stem = place.file_stem().unwrap_or_default().to_string_lossy();
        let is_name =
            !stem.is_empty() && stem.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        let name = if is_name && stem.len() <= 64 { stem.into_owned() } else { "learned".into() };
        Ok(Learning { output: Some(place), name })
    }

    /// A profile that the command can write is no wall around the next one.
    pub(in crate::cli) fn check(&self, plan: &Plan) -> Result<()> {
        let Some(output) = &self.output else { return Ok(()) };
        let told = |path: &Path| Place::of(path).with_context(|| format!("cannot tell where {} is", path.display()));
        let place = told(output.parent().unwrap_or(Path::new("/")))?;
        for mount in &plan.inside.mounts {
            if let Mount::Bind { source, access: Access::ReadWrite, .. } = mount {
                // By that name or by another.
                let is_inside = output.starts_with(&source.path) || place.is_in(&told(&source.path)?);
                ensure!(
                    !is_inside,
                    "{} lies where the command can write; choose a place for the profile outside of {}",
                    output.display(),
                    source.path.display()
                );
            }
        }
        Ok(())
    }

    /// Writes what a job has learned.
    pub(in crate::cli) fn write(&self, lessons: &Lessons, finished: &Finished, quiet: bool) -> Result<()> {
        let text = lessons.text(&self.name, &finished.record.command.join(" "));
        let text = text.context("what was learned does not make a profile")?;
        match &self.output {
            None => std::io::stdout().lock().write_all(text.as_bytes())?,
            Some(output) => {
                let written = File::create_new(output).and_then(|mut file| file.write_all(text.as_bytes()));
                written.with_context(|| format!("cannot write the profile to {}", output.display()))?;
            }
        }
        if !quiet {
            let place =
                self.output.as_ref().map_or_else(String::new, |path| format!("; they are in {}", path.display()));
            let kinds = lessons.learned();
            let plural = if kinds == 1 { "" } else { "s" };
            say(&format!("learned {kinds} kind{plural} of refused calls{}", printable(&place)));
            let kept: Vec<&str> = lessons.denied().collect();
            if !kept.is_empty() {
                say(&format!("refused all the same, and why stands in the profile: {}", kept.join(", ")));
            }
        }
        Ok(())
    }
}
