//! The course of a job: its record before the payload starts, the box, what came of it, the record's end.
//!
//! Invariant: whatever goes wrong once there is a record, it gets an end, and nothing of the box is left.

use std::io;
use std::time::Instant;

use agentd_egress::Request;
use agentd_init::plan::Network;
use agentd_profiles::Lessons;
use agentd_rootfs::Hold;

use super::detach::Notice;
use super::service::Service;
use super::shell::Shell;
use super::{Ending, FAILED, SuperviseError, Supervisor, keep};
use crate::job::events::Denial;
use crate::job::record::{Enforced, Record, SCHEMA, State};
use crate::job::store::{Jobs, now};
use crate::launch::plan::Plan;
use crate::launch::protect;
use crate::launch::protect::stubs::Stubs;
use crate::launch::secrets::Values;

/// A finished job: how it ended, and its record as it was written.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub ending: Ending,
    /// The final record.
    pub record: Record,
    /// The calls that policy refused.
    pub denials: Vec<Denial>,
    /// What a job that learns has learned.
    pub lessons: Option<Lessons>,
    /// What was asked of the network and refused.
    pub refusals: Vec<Request>,
    /// What went wrong after the end; the record has it too.
    pub late_warning: Option<String>,
}

/// Whose a job is while it runs.
#[derive(Debug)]
pub enum Presence {
    /// Of the process that started it: its streams are the job's, and its end is the job's.
    Foreground,
    /// Nobody's, from the moment that its start is told.
    Detached(Notice),
}

/// Runs a job, from its plan to its record, in `shell` if there is one; `hold` keeps its layers in the store until its plan
/// is written. Of `secrets` nothing is kept but what a record or log would have to be cleaned of. `service` is told of start
/// and end.
///
/// # Errors
/// [`SuperviseError`]; nothing of the box is left then.
pub fn run(
    plan: &Plan,
    jobs: &Jobs,
    hold: Option<Hold>,
    secrets: Values,
    presence: Presence,
    shell: Option<io::Result<Shell>>,
    service: &Service,
) -> Result<Finished, SuperviseError> {
    let begun = Instant::now();
    let mut supervisor = Supervisor::start(plan, &jobs.directory_of(&plan.id), secrets, presence, shell, service)?;
    // Written while PID 1 builds the box on another core; the payload starts only when they are there.
    let kept = supervisor.kept();
    let mut record = first_record(&kept);
    record.cgroup = supervisor.leaf.as_ref().map(|leaf| leaf.path().display().to_string());
    supervisor.redact(&mut record);
    let job = jobs.create(&record)?;
    let written = job.write_plan(&*kept).map_err(SuperviseError::from);
    // From here on the plan says which layers are in use.
    drop(hold);
    let mut stubs = None;
    let placed = written.and_then(|()| {
        let wanted = plan.stubs();
        if !wanted.is_empty() {
            stubs = Some(Stubs::place(&jobs.stubs(), wanted)?);
        }
        Ok(())
    });
    let released = placed.and_then(|()| match plan.inside.root.keep {
        // When what agentd itself has put into the root is taken note of.
        true => Ok(()),
        false => supervisor.release(),
    });
    let supervised = released.and_then(|()| supervisor.supervise());
    supervisor.streams.last_words();
    record.output_dropped = supervisor.streams.close_logs();
    let refusals = supervisor.end_network(&mut record);
    let redactor = supervisor.redactor.take();
    let (denials, total) = supervisor.denials.finish();
    let lessons = supervisor.denials.lessons();
    record.denials = total;
    if supervisor.started && supervisor.denials.is_silent() {
        let why = "agentd itself runs under a filter that another program listens to";
        record.warnings.push(format!("refused calls are not told: {why}"));
    }
    let (upper, steward) = (supervisor.upper.take(), supervisor.steward.take());
    record.usage = supervisor.usage();
    record.restarts = supervisor.restarts();
    // Here at the latest the terminal has its modes back and no process of the box is left.
    drop(supervisor);
    if let Some(steward) = steward {
        steward.finish(&mut record);
    }
    record.left.extend(protect::after::findings(plan));
    let supervised = match supervised {
        Ok(ending) => {
            record.state = ending.state();
            if matches!(ending, Ending::Exited { .. }) {
                record.root = upper.map(|upper| keep::keep(upper, &jobs.directory_of(&plan.id)));
            }
            Ok(ending)
        }
        Err(error) => {
            let reason = match std::error::Error::source(&error) {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            };
            record.state = State::Failed { exit_code: FAILED, reason };
            Err(error)
        }
    };
    if let Some(redactor) = &redactor {
        redactor.record(&mut record);
    }
    record.finished = Some(now());
    record.duration_ms = u64::try_from(begun.elapsed().as_millis()).ok();
    let ended = job.finish(&record);
    service.ended(&record);
    // Last, when the kernel has taken the box's mounts off them: to unlink what is mounted on somewhere costs ten times as much.
    let left = stubs.and_then(|stubs| stubs.remove().err()).map(|error| {
        format!("stubs of protected paths are left in the workspace: {error}; the next agentd command tries again")
    });
    record.warnings.extend(left.clone());
    if let (Some(_), Ok(ended)) = (&left, &ended)
        && let Err(error) = ended.amend(&record)
    {
        // The job has its end, and whoever waits here is told of the stubs all the same.
        tracing::debug!(%error, "the record does not say it");
    }
    let ending = supervised?;
    ended?;
    Ok(Finished { ending, record, denials, lessons, refusals, late_warning: left })
}

fn first_record(plan: &Plan) -> Record {
    Record {
        schema: SCHEMA,
        id: plan.id.clone(),
        name: plan.name.clone(),
        image: plan.image.clone(),
        image_digest: plan.image_digest.clone(),
        workspace: plan.workspace().map(|path| path.display().to_string()),
        command: plan.inside.process.argv.clone(),
        created: now(),
        finished: None,
        duration_ms: None,
        supervisor_pid: std::process::id(),
        state: State::Running,
        enforced: Enforced {
            landlock_abi: plan.inside.landlock.abi,
            landlock_rights: plan.inside.landlock.rights.iter().map(ToString::to_string).collect(),
            seccomp: plan.inside.seccomp.profile.clone(),
            profile_digest: plan.inside.seccomp.digest.clone(),
            network: match (plan.inside.network, &plan.reach) {
                (Network::None, None) => "none".into(),
                (Network::None, Some(_)) => "broker".into(),
                (Network::Host, _) => "host".into(),
            },
        },
        warnings: plan.warnings.iter().chain(&plan.notes).cloned().collect(),
        left: Vec::new(),
        root: None,
        cgroup: None,
        usage: None,
        output_dropped: 0,
        denials: 0,
        network: None,
        restarts: 0,
    }
}
