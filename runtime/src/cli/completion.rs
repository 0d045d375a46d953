//! `agentd completion`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use clap_complete::Shell;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What to write
    #[arg(value_enum)]
    what: What,
    /// Where the manual's pages go
    #[arg(value_name = "DIRECTORY", required_if_eq("what", "man"))]
    directory: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    Bash,
    Zsh,
    Fish,
    Elvish,
    Powershell,
    Man,
}

/// Runs the verb.
pub(super) fn run(args: &Args, mut command: clap::Command) -> Result<()> {
    let shell = match args.what {
        What::Bash => Shell::Bash,
        What::Zsh => Shell::Zsh,
        What::Fish => Shell::Fish,
        What::Elvish => Shell::Elvish,
        What::Powershell => Shell::PowerShell,
        What::Man => {
            let Some(directory) = &args.directory else { bail!("name a directory for the pages") };
            let made = std::fs::create_dir_all(directory).and_then(|()| clap_mangen::generate_to(command, directory));
            return made.with_context(|| format!("cannot write the manual to {}", directory.display()));
        }
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "agentd", &mut script);
    Ok(std::io::stdout().lock().write_all(&script)?)
}
