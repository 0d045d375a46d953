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

/// What the disk did not take at the end has no later part that it could be missed before.
#[test]
fn output_that_a_full_disk_did_not_take_is_told_to_the_last_byte() {
    let Some(home) = home() else { return };
    let ran = on_a_small_disk(
        &home,
        r#"
        mkfifo "$HOME/work/gate"
        id=$("$A" run -d --workspace "$HOME/work" -- sh -c 'echo begin; read x < gate; head -c 2000000 /dev/zero; exit 3') || exit 98
        "$A" logs -f "$id" > "$HOME/followed" 2> "$HOME/said-by-follower" &
        echo > "$HOME/work/gate"
        echo "wait $("$A" wait "$id")"
        wait $!
        "$A" logs "$id" > "$HOME/kept" 2> "$HOME/said"
        "$A" logs --tail 0 "$id" 2> "$HOME/said-of-nothing"
        "$A" inspect "$id" | sed -n 's/.*"output_dropped": \([0-9]*\).*/dropped \1/p'
        "#,
    );
    let dropped = ran.stdout.strip_prefix("wait 3\ndropped ").and_then(|rest| rest.trim_end().parse::<u64>().ok());
    let Some(dropped) = dropped else { panic!("{ran}") };
    let read = |name: &str| fs::read(home.path().join(name)).unwrap_or_default();
    assert_eq!(read("kept").len() as u64 + dropped, 2_000_006, "{ran}");
    let said = format!("agentd: the last {dropped} bytes of its output are not kept: the disk took no more\n");
    for name in ["said", "said-by-follower", "said-of-nothing"] {
        assert_eq!(String::from_utf8_lossy(&read(name)), said, "{name}");
    }
    assert!(read("kept").starts_with(b"begin\n") && read("followed") == read("kept"), "what was kept stays");
}

/// Without an inode a supervisor makes no socket. Who talks to it is told so and does not wait for it, and the job can be
/// ended all the same.
#[test]
fn a_disk_without_inodes_keeps_nobody_from_ending_a_job() {
    let Some(home) = home() else { return };
    let ran = on_a_small_disk(
        &home,
        r#"
        mount -t tmpfs -o nr_inodes=64,mode=700 none "$XDG_STATE_HOME" || exit 97
        stubborn='trap "exit 7" TERM; while :; do sleep 0.02; done'
        for name in one two; do "$A" run -d --name $name -- sh -c "$stubborn" > /dev/null || exit 98; done
        i=0; while touch "$XDG_STATE_HOME/x$i" 2>/dev/null; do i=$((i + 1)); done
        # A supervisor that may still answer is waited for for ten seconds.
        timeout 9 "$A" kill one 2>"$HOME/said"; echo "kill $?"
        "$A" stop -t 1h one 2>>"$HOME/said"; echo "stop $?"
        "$A" ps -a --format '{{.Name}} {{.State}}'
        "$A" rm -f two >/dev/null; echo "rm $?"
        rm "$XDG_STATE_HOME"/x*
        "$A" ps -a --format '{{.Name}} {{.State}}'
        "#,
    );
    assert_eq!(ran.stdout, "kill 125\none\nstop 0\ntwo running\none exited (7)\nrm 0\none exited (7)\n", "{ran}");
    let said = fs::read_to_string(home.path().join("said")).unwrap_or_default();
    let words = |line: &str, words: [&str; 2]| words.iter().all(|word| line.contains(word));
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines.len() == 2 && words(lines[0], ["no socket", "No space left"]), "{said}");
    assert!(words(lines[1], ["SIGTERM", "--stop-timeout"]), "{said}");
}

/// Each kind of trouble that `health` knows, made for real.
#[test]
fn health_tells_what_is_left_and_what_is_full() {
    let Some(home) = home() else { return };
    let ran = on_a_small_disk(
        &home,
        r#"
        export AGENTD_STORE="$XDG_STATE_HOME/store"
        mkdir -m 700 "$AGENTD_STORE"
        health() { "$A" health --format json > "$HOME/$1"; echo "$1 $?"; }
        health well
        fill; health full; rm "$XDG_STATE_HOME/fill"
        killed() {
            live=$(echo "$S"/live/*)
            kill -9 $("$A" inspect $1 | sed -n 's/.*"supervisor_pid": \([0-9]*\).*/\1/p')
            flock "$live" true
        }
        # A record that cannot be moved, and stubs that cannot be removed.
        "$A" run -d --name one -- sleep 1000 > /dev/null; killed one
        mount -o remount,bind,ro "$XDG_STATE_HOME" || exit 96
        health orphan
        mount -o remount,bind,rw "$XDG_STATE_HOME" && mount -t tmpfs none "$HOME/work" && git init -q "$HOME/work" || exit 97
        "$A" run -d --name two --workspace "$HOME/work" -- sleep 1000 > /dev/null; killed two
        mount -o remount,bind,ro "$HOME/work" || exit 95
        health stubs
        mount -o remount,bind,rw "$HOME/work"
        health mended
        "#,
    );
    let found = |name: &str, subject: &str| {
        let text = fs::read_to_string(home.path().join(name)).unwrap_or_default();
        let found: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}\n{ran}"));
        let finding = found.as_array().into_iter().flatten().find(|finding| finding["subject"] == subject).cloned();
        finding.map(|finding| format!("{}: {} {}", finding["verdict"], finding["found"], finding["remedy"]))
    };
    let told = |name: &str, subject: &str, words: &[&str]| {
        let told = found(name, subject).unwrap_or_default();
        assert!(words.iter().all(|word| told.contains(word)), "{name}: {told}\n{ran}");
    };
    // A tmpfs carries no store before Linux 6.6, and that is told too.
    let well = i32::from(found("well", "store").is_some());
    assert_eq!(ran.stdout, format!("well {well}\nfull 1\norphan 1\nstubs 1\nmended {well}\n"), "{ran}");
    for subject in ["state-space", "store-space"] {
        told("well", subject, &["\"ok\""]);
        told("full", subject, &["\"limited\"", " 0 % of its file system is free", "agentd prune"]);
    }
    told("well", "left-behind", &["\"ok\"", "nothing"]);
    told("orphan", "left-behind", &["\"limited\"", "live/", "Read-only file system"]);
    told("stubs", "left-behind", &["\"limited\"", "stubs of protected paths", "agentd prune"]);
    told("mended", "left-behind", &["\"ok\""]);
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
