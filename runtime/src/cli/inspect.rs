//! `agentd inspect`.

use anyhow::Result;

use super::environment::Directories;
use super::which::each;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Names, ids or beginnings of ids
    #[arg(required = true)]
    jobs: Vec<String>,
}

/// Runs the verb; gives the exit code. What can be read is printed beside what cannot.
pub(super) fn run(args: &Args) -> Result<u8> {
    let jobs = Directories::find()?.swept_jobs();
    let mut found = Vec::new();
    let code = each(&args.jobs, |text| {
        let id = jobs.find(text)?;
        let mut document = serde_json::to_value(jobs.read(&id)?)?;
        let plan = jobs.directory_of(&id).join("plan.json");
        // Null where there is none, or only a part: the disk was full.
        let plan: Option<serde_json::Value> =
            std::fs::read(&plan).ok().and_then(|plan| serde_json::from_slice(&plan).ok());
        if let Some(document) = document.as_object_mut() {
            document.insert("plan".into(), plan.into());
        }
        found.push(document);
        Ok(())
    })?;
    super::print_json(&found)?;
    Ok(code)
}
