//! Jobs on disk, whole and damaged.

use super::*;
use crate::job::record::{Enforced, SCHEMA};

fn record(id: &JobId, name: Option<&str>) -> Record {
    Record {
        schema: SCHEMA,
        id: id.clone(),
        name: name.map(|name| name.parse().unwrap()),
        image: "host".into(),
        image_digest: None,
        workspace: None,
        command: vec!["true".into()],
        created: now(),
        finished: None,
        duration_ms: None,
        supervisor_pid: 1,
        state: State::Running,
        enforced: Enforced {
            landlock_abi: 7,
            landlock_rights: vec!["files".into()],
            seccomp: "default".into(),
            profile_digest: String::new(),
            network: "none".into(),
        },
        warnings: Vec::new(),
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

fn finished(mut record: Record) -> Record {
    record.state = State::Exited { exit_code: 0, reason: None };
    record
}

fn store() -> (tempfile::TempDir, Jobs) {
    let directory = tempfile::tempdir().unwrap();
    let jobs = Jobs::at(directory.path().join("agentd"));
    (directory, jobs)
}

fn sweep(jobs: &Jobs) -> Vec<JobId> {
    let (lost, troubles) = jobs.sweep();
    assert!(troubles.is_empty(), "{troubles:?}");
    lost
}

#[test]
fn a_job_is_running_until_it_is_finished_and_then_stays() {
    let (_directory, jobs) = store();
    let id = JobId::random().unwrap();
    let first = record(&id, Some("a"));
    let live = jobs.create(&first).unwrap();
    assert!(sweep(&jobs).is_empty());
    assert_eq!(jobs.read(&id).unwrap(), first);
    assert!(matches!(jobs.remove(&id), Err(JobStoreError::Running(..))));
    let other = JobId::random().unwrap();
    assert!(matches!(jobs.create(&record(&other, Some("a"))), Err(JobStoreError::NameTaken(_))));
    assert!(matches!(jobs.find(other.as_str()), Err(JobStoreError::NotFound(_))));
    let last = finished(first);
    live.finish(&last).unwrap();
    assert_eq!(jobs.read(&jobs.find("a").unwrap()).unwrap(), last);
    assert_eq!(jobs.list().unwrap().0, [last]);
    jobs.remove(&id).unwrap();
    assert!(jobs.list().unwrap().0.is_empty());
    assert!(jobs.find("a").is_err());
}

#[test]
fn a_supervisor_that_is_gone_leaves_a_lost_job() {
    let (_directory, jobs) = store();
    let id = JobId::random().unwrap();
    drop(jobs.create(&record(&id, None)).unwrap());
    assert_eq!(sweep(&jobs), std::slice::from_ref(&id));
    assert!(matches!(jobs.read(&id).unwrap().state, State::Lost { .. }));
    assert!(sweep(&jobs).is_empty());
    jobs.remove(&id).unwrap();
}

#[test]
fn a_supervisor_that_is_killed_before_it_makes_the_directory_leaves_a_lost_job_too() {
    let (_directory, jobs) = store();
    let id = JobId::random().unwrap();
    drop(jobs.create(&record(&id, None)).unwrap());
    fs::remove_dir(jobs.directory_of(&id)).unwrap();
    assert_eq!(sweep(&jobs), std::slice::from_ref(&id));
    assert!(matches!(jobs.read(&id).unwrap().state, State::Lost { .. }));
    jobs.remove(&id).unwrap();
    assert!(entries(&jobs.directory.join("live")).unwrap().is_empty());
}

#[test]
fn a_final_record_that_was_not_moved_is_final() {
    let (_directory, jobs) = store();
    let id = JobId::random().unwrap();
    let live = jobs.create(&record(&id, None)).unwrap();
    let last = finished(record(&id, None));
    append(&live.file, &last).unwrap();
    drop(live);
    assert!(sweep(&jobs).is_empty());
    assert_eq!(jobs.read(&id).unwrap(), last);
}

#[test]
fn a_line_that_was_cut_short_does_not_count() {
    let (_directory, jobs) = store();
    let id = JobId::random().unwrap();
    let first = record(&id, None);
    let mut live = jobs.create(&first).unwrap();
    let line = serde_json::to_vec(&finished(first.clone())).unwrap();
    live.file.write_all(&line[..line.len() / 2]).unwrap();
    assert_eq!(jobs.read(&id).unwrap(), first);
    drop(live);
    assert_eq!(sweep(&jobs), std::slice::from_ref(&id));
    assert!(matches!(jobs.read(&id).unwrap().state, State::Lost { .. }));
}

#[test]
fn a_job_without_a_whole_line_never_was() {
    let (_directory, jobs) = store();
    let id = JobId::random().unwrap();
    let live = jobs.create(&record(&id, None)).unwrap();
    live.file.set_len(10).unwrap();
    assert!(jobs.list().unwrap().1.is_empty());
    drop(live);
    assert!(sweep(&jobs).is_empty());
    assert!(matches!(jobs.find(id.as_str()), Err(JobStoreError::NotFound(_))));
}

#[test]
fn a_later_schema_is_named_and_left_alone() {
    let (_directory, jobs) = store();
    let id = JobId::random().unwrap();
    let mut newer = record(&id, None);
    newer.schema = SCHEMA + 1;
    drop(jobs.create(&newer).unwrap());
    assert!(sweep(&jobs).is_empty());
    assert!(matches!(jobs.read(&id), Err(JobStoreError::NewerRecord { found, .. }) if found == SCHEMA + 1));
}

#[test]
fn a_job_that_is_renamed_keeps_its_new_name_when_it_ends() {
    let (_directory, jobs) = store();
    let id = JobId::random().unwrap();
    let first = record(&id, Some("old"));
    let live = jobs.create(&first).unwrap();
    let name = |text: &str| text.parse::<JobName>().unwrap();
    jobs.rename(&id, &name("new")).unwrap();
    assert!(jobs.find("old").is_err());
    assert_eq!(jobs.read(&jobs.find("new").unwrap()).unwrap().name, Some(name("new")));
    live.finish(&finished(first)).unwrap();
    assert_eq!(jobs.read(&id).unwrap().name, Some(name("new")));
    jobs.rename(&id, &name("newer")).unwrap();
    let last = jobs.read(&id).unwrap();
    assert_eq!((last.name, last.state), (Some(name("newer")), State::Exited { exit_code: 0, reason: None }));
    let other = JobId::random().unwrap();
    let _live = jobs.create(&record(&other, Some("taken"))).unwrap();
    assert!(matches!(jobs.rename(&id, &name("taken")), Err(JobStoreError::NameTaken(_))));
    assert_eq!(jobs.find("newer").unwrap(), id);
    jobs.remove(&id).unwrap();
    assert!(entries(&jobs.names()).unwrap() == ["taken"]);
}

#[test]
fn what_comes_to_light_after_the_end_is_said_by_a_line_more() {
    let (_directory, jobs) = store();
    let id = JobId::random().unwrap();
    let live = jobs.create(&record(&id, None)).unwrap();
    let mut last = finished(record(&id, None));
    let ended = live.finish(&last).unwrap();
    last.warnings.push("something is left".into());
    ended.amend(&last).unwrap();
    assert_eq!(jobs.read(&id).unwrap(), last);
}

#[test]
fn an_empty_file_in_the_way_takes_no_record_along() {
    let (_directory, jobs) = store();
    let id = JobId::random().unwrap();
    let live = jobs.create(&record(&id, None)).unwrap();
    let last = finished(record(&id, None));
    live.finish(&last).unwrap();
    fs::write(jobs.live(&id), "").unwrap();
    assert!(sweep(&jobs).is_empty());
    assert_eq!(jobs.read(&id).unwrap(), last);
    assert!(fs::symlink_metadata(jobs.live(&id)).is_err());
}

#[test]
fn a_job_whose_end_cannot_be_written_reads_as_lost() {
    let (_directory, jobs) = store();
    let id = JobId::random().unwrap();
    let live = jobs.create(&record(&id, None)).unwrap();
    assert_eq!(jobs.list_running().unwrap().0.len(), 1);
    drop(live);
    assert!(matches!(jobs.read(&id).unwrap().state, State::Lost { .. }));
    assert!(jobs.list_running().unwrap().0.is_empty() && jobs.list_brief_running().unwrap().0.is_empty());
    assert!(matches!(jobs.list_brief().unwrap().0[..], [ref job] if job.state().word() == "lost"));
}
