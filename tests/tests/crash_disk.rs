//! What is left when the disk that the records are on is full or read-only, when a record is not what it should be, and
//! when the clock was wrong: never a wrong state, a hang or a lost job.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use agentd_tests::{Feature, Home, Ran, agentd, require, run};

fn home() -> Option<Home> {
    require(Feature::Userns).then(Home::new)
}

/// Runs a shell script where the state directory is a small tmpfs of its own; `$A` is agentd, `$S` that directory.
fn on_a_small_disk(home: &Home, script: &str) -> Ran {
    let prepared = "mount -t tmpfs -o size=256k,mode=700 none \"$XDG_STATE_HOME\" || exit 99; \
                    fill() { dd if=/dev/zero of=\"$XDG_STATE_HOME/fill\" bs=1k 2>/dev/null; };";
    let mut shell = home.agentd();
    let (program, state) = (agentd(), home.state());
    let mut command = Command::new("unshare");
    command.args(["-Urmpf", "--kill-child", "--mount-proc", "sh", "-c"]).arg(format!("{prepared}\n{script}"));
    command.env_clear().envs(shell.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.env("A", program).env("S", state);
    shell.arg("unused");
    run(&mut command)
}

/// A job that ends when there is no room for its end reads as lost, everything goes on around it, and `rm` makes room.
#[test]
fn a_full_disk_keeps_nobody_from_listing_and_removing() {
    let Some(home) = home() else { return };
    let ran = on_a_small_disk(
        &home,
        r#"
        mkfifo "$HOME/work/gate"
        id=$("$A" run -d --workspace "$HOME/work" -- sh -c 'read x < gate') || exit 98
        # Its first line and noise, to the end of a page: whatever comes behind it needs another one.
        head -c $((16384 - $(stat -c %s "$S/live/$id"))) /dev/zero | tr '\0' x >> "$S/live/$id"
        fill
        echo > "$HOME/work/gate"
        while ! flock -n "$S/live/$id" true; do sleep 0.05; done
        echo "wait $("$A" wait "$id" 2>/dev/null)"
        echo "state $("$A" ps -a --format '{{.State}}' 2>"$HOME/said")"
        "$A" run -d -- true 2>"$HOME/refused"; echo "run $?"
        "$A" rm "$id" > /dev/null 2>&1; echo "rm $?"
        rm "$S/../fill"
        echo "left $("$A" ps -aq)"
        "$A" run -q -- true; echo "again $?"
        "#,
    );
    assert_eq!(ran.stdout, "wait 137\nstate lost\nrun 125\nrm 0\nleft \nagain 0\n", "{ran}");
    let read = |name: &str| fs::read_to_string(home.path().join(name)).unwrap_or_default();
    assert!(read("said").contains("No space left"), "the trouble is told: {}", read("said"));
    assert!(read("refused").contains("No space left"), "{}", read("refused"));
}

#[test]
fn a_read_only_state_directory_can_be_looked_at() {
    let Some(home) = home() else { return };
    let ran = on_a_small_disk(
        &home,
        r#"
        "$A" run -q --name done -- sh -c 'echo said; exit 3' >/dev/null
        id=$("$A" run -d --name gone -- sleep 1000)
        kill -9 $("$A" inspect gone | sed -n 's/.*"supervisor_pid": \([0-9]*\).*/\1/p')
        while ! flock -n "$S/live/$id" true; do sleep 0.05; done
        mount -o remount,bind,ro "$XDG_STATE_HOME" || exit 97
        "$A" ps -a --format '{{.Name}} {{.State}}' 2>"$HOME/said"; echo "ps $?"
        "$A" logs done; echo "logs $?"
        "$A" wait done gone 2>/dev/null; echo "wait $?"
        "$A" run -- true 2>"$HOME/refused"; echo "run $?"
        "$A" rm done 2>/dev/null; echo "rm $?"
        "#,
    );
    let expected = "gone lost\ndone exited (3)\nps 0\nsaid\nlogs 0\n3\n137\nwait 137\nrun 125\nrm 125\n";
    assert_eq!(ran.stdout, expected, "{ran}");
    for name in ["said", "refused"] {
        let said = fs::read_to_string(home.path().join(name)).unwrap_or_default();
        assert!(said.contains("Read-only file system"), "{name}: {said}");
    }
}

/// The record of a job that has ended, replaced by what `damage` makes of its path and text.
fn damaged(home: &Home, damage: impl Fn(&Path, &str)) -> String {
    let id = home.detached(&[], "exit 3");
    let _ran = home.say(&["wait", &id]).expect_code(3);
    let record = home.state().join("jobs").join(&id).join("record.jsonl");
    let text = fs::read_to_string(&record).unwrap_or_default();
    fs::remove_file(&record).unwrap_or_default();
    damage(&record, &text);
    id
}

#[test]
fn a_damaged_record_is_told_listed_around_and_can_be_removed() {
    let Some(home) = home() else { return };
    let sound = home.detached(&["--name", "sound"], "exit 4");
    let _ran = home.say(&["wait", &sound]).expect_code(4);
    let write = |path: &Path, text: &str| fs::write(path, text).unwrap_or_else(|e| panic!("{e}"));
    let noise: String = (0..4000_u32).filter_map(|n| char::from_u32(n.wrapping_mul(2_654_435_761) % 255 + 1)).collect();
    type Damage<'a> = Box<dyn Fn(&Path, &str) + 'a>;
    let damages: [(&str, Damage<'_>); 7] = [
        ("empty", Box::new(|path, _| write(path, ""))),
        ("noise", Box::new(|path, _| write(path, &noise))),
        ("one line, cut short", Box::new(|path, text| write(path, &text[..text.len().min(100)]))),
        ("other JSON", Box::new(|path, _| write(path, "{\"schema\":1,\"id\":\"../../etc\"}\n[]\nnull\n"))),
        ("a directory", Box::new(|path, _| fs::create_dir(path).unwrap_or_else(|e| panic!("{e}")))),
        ("a link to nothing", Box::new(|path, _| symlink("nothing", path).unwrap_or_else(|e| panic!("{e}")))),
        ("endless", Box::new(|path, _| symlink("/dev/zero", path).unwrap_or_else(|e| panic!("{e}")))),
    ];
    for (what, damage) in damages {
        let id = damaged(&home, damage);
        let listed = home.say(&["ps", "-aq"]).expect_success();
        assert_eq!(listed.stdout, format!("{sound}\n"), "{what}");
        assert!(what == "a link to nothing" || listed.stderr.contains(&id), "{what}: {listed}");
        let _ran = home.say(&["inspect", &id]).expect_code(125);
        for verb in ["stop", "kill", "attach"] {
            let ran = home.say(&[verb, &id]);
            assert_eq!((ran.code(), ran.stdout.as_str()), (125, ""), "{what}: {verb}: {ran}");
        }
        let _ran = home.say(&["rm", "-f", &id]).expect_success();
        assert!(home.state().join("jobs").join(&id).symlink_metadata().is_err(), "{what}");
    }
    // Of a record that has lost its end the beginning counts, and says that nobody wrote one.
    let cut = damaged(&home, |path, text| {
        let first = text.lines().find(|line| !line.is_empty()).unwrap_or_default();
        let last = text.lines().last().unwrap_or_default();
        write(path, &format!("{first}\n{}", &last[..last.len() / 2]));
    });
    assert_eq!(home.record(&cut)["state"], "lost");
    // A line that says less than ever was in a record hides none before it.
    let more = damaged(&home, |path, text| {
        write(path, &format!("{text}\n{{\"renamed\":\"../x\"}}\n{{\"state\":\"running\"}}\n"))
    });
    assert_eq!(home.record(&more)["exit_code"], 3);
}

/// No test may set the clock of the machine it runs on: what a wrong clock leaves behind is records with times of their
/// own. Whatever is waited for goes by the monotonic clock, which no setting of the other moves (clock_gettime(2)).
#[test]
fn a_clock_that_jumped_makes_no_wrong_state() {
    let Some(home) = home() else { return };
    let times = ["2999-12-31T23:59:59.999Z", "1970-01-01T00:00:00.000Z", "no time at all"];
    let jobs: Vec<String> = times
        .iter()
        .map(|time| {
            damaged(&home, |path, text| {
                let created =
                    text.split("\"created\":\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default();
                let written = fs::write(path, text.replace(created, time));
                written.unwrap_or_else(|e| panic!("{e}"));
            })
        })
        .collect();
    let table = home.say(&["ps", "-a"]).expect_silent_success().stdout;
    assert!(jobs.iter().all(|id| table.contains(id)) && table.contains("2999-12-31"), "{table}");
    let _ran = home.say(&["inspect", &jobs[0]]).expect_success();
    let _ran = home.say(&["logs", "--since", "10m", &jobs[0]]).expect_success();
    // A running job whose record is from the future still has its time, and its end.
    let id = home.detached(&["--timeout", "1s"], "exec sleep 1000");
    let live = home.state().join("live").join(&id);
    let text = fs::read_to_string(&live).unwrap_or_default();
    let created = text.split("\"created\":\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default();
    // As the supervisor appends: in place, and as long as it was.
    let moved = text.replace(created, times[0]);
    assert_eq!(moved.len(), text.len());
    fs::write(&live, moved).unwrap_or_else(|e| panic!("{e}"));
    let _ran = home.say(&["wait", &id]).expect_code(124);
    assert_eq!(home.record(&id)["state"], "exited");
    for id in jobs {
        let _ran = home.say(&["rm", &id]).expect_success();
    }
}
