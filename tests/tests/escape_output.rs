//! Confusing the supervisor and the user's terminal: huge and odd output, control characters in what agentd prints
//! (THREATS.md, 7 and 8).

use std::fs;

use agentd_tests::oci::{Compression, Entry, Layer};
use agentd_tests::{Feature, Home, Ran, busybox, require, run};

/// Sets a window's title, clears the screen, moves up: and C1 forms of the same.
const NASTY: &str = "\u{1b}]0;pwned\u{7}\u{1b}[2J\u{1b}[1A\r\u{9b}2J\u{8}";

/// Says where `ran` printed a control character.
fn nasty(ran: &Ran, what: &str) -> Vec<String> {
    [("stdout", &ran.stdout), ("stderr", &ran.stderr)]
        .into_iter()
        .filter(|(_, text)| text.chars().any(|character| character.is_control() && character != '\n'))
        .map(|(stream, text)| format!("{what}, on {stream}: {text:?}"))
        .collect()
}

#[test]
fn escape_what_agentd_prints_of_a_job_has_no_control_characters() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let mut wrong = Vec::new();
    let mut check = |ran: &Ran, what: &str| wrong.extend(nasty(ran, what));
    let work = home.path().join(format!("work{}\nnext", NASTY.replace('/', "")));
    fs::create_dir(&work).unwrap();
    let work = work.to_str().unwrap();
    let ran =
        run(home.agentd().args(["run", "-q", "--workspace", work, "--", "sh", "-c", "exit 3", NASTY, "two\nlines"]));
    assert_eq!(ran.code(), 3, "{ran}");
    check(&run(home.agentd().args(["run", "--", NASTY])).expect_code(127), "a program that is not there");
    check(&run(home.agentd().args(["run", "-w", &format!("/{NASTY}"), "--", "true"])), "a working directory");
    check(
        &run(home.agentd().args(["run", "--mount", &format!("src=/{NASTY},dst=/x"), "--", "true"])).expect_code(125),
        "a mount",
    );
    for arguments in [&["ps", "-a"][..], &["ps", "-a", "--format", "json"], &["ps", "-aq"]] {
        let ran = run(home.agentd().args(arguments)).expect_success();
        assert!(!ran.stdout.is_empty());
        check(&ran, &arguments.join(" "));
    }
    let id = run(home.agentd().args(["ps", "-aq"])).stdout;
    let id = id.lines().last().unwrap();
    check(&run(home.agentd().args(["inspect", id])).expect_success(), "inspect");
    check(&run(home.agentd().args(["inspect", NASTY])), "an id");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn escape_what_an_image_says_is_printed_without_control_characters() {
    if !require(Feature::Userns) || !require(Feature::Busybox) {
        return;
    }
    let home = Home::new();
    let write = |name: &str, image: agentd_tests::oci::Image| {
        let dir = home.path().join(name);
        image.write(&dir, "t").unwrap();
        format!("oci:{}:t", dir.display())
    };
    let images = [
        write("entrypoint", busybox().entrypoint(&[NASTY])),
        write("workdir", busybox().workdir(&format!("/bin/busybox/{NASTY}"))),
        write("user", busybox().user(NASTY)),
        write("env", busybox().env(&format!("{NASTY}=x")).entrypoint(&["/nothing"])),
        write("path", busybox().env(&format!("PATH=/{NASTY}")).entrypoint(&["nothing"])),
        write(
            "file",
            busybox().layer(Layer::Entries(vec![Entry::file(&format!("{NASTY}/../x"), "")]), Compression::Plain),
        ),
        write("link", busybox().layer(Layer::Entries(vec![Entry::hardlink("x", NASTY)]), Compression::Plain)),
    ];
    let mut wrong = Vec::new();
    let mut check = |ran: &Ran, what: &str| wrong.extend(nasty(ran, what));
    for image in &images {
        check(&run(home.agentd().args(["run", "--image", image])), image);
        check(&run(home.agentd().args(["run", "--image", image, "--dry-run"])), image);
    }
    check(&run(home.agentd().args(["ps", "-a"])), "ps");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The payload's output is its own: it passes byte for byte, and what is kept of it has a bound.
#[test]
fn escape_a_flood_of_output_is_bounded_on_disk() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let script = "head -c 40000000 /dev/zero; head -c 3000000 /dev/zero >&2";
    let ran = home.sh(&["--max-output", "100k"], script).expect_success();
    assert_eq!((ran.stdout.len(), ran.stderr.len()), (40_000_000, 3_000_000));
    let job = fs::read_dir(home.state().join("jobs")).unwrap().next().unwrap().unwrap().path();
    let size: u64 = fs::read_dir(job).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert!((100_000..400_000).contains(&size), "{size} bytes are kept");
}

/// A payload that closes, floods and never reads its streams neither hangs nor confuses the supervisor.
#[test]
fn escape_odd_use_of_the_streams_does_not_hang_the_supervisor() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let input = vec![b'x'; 3_000_000];
    for script in ["exec 0<&- 1>&- 2>&-; exit 7", "exit 7", "cat >/dev/null & exit 7", "exec >/dev/null; yes & exit 7"]
    {
        let _ran = agentd_tests::run_with_input(home.boxed(&["-i"]).args(["sh", "-c", script]), &input).expect_code(7);
    }
    // Signals to itself, to its group, to everything, and to PID 1.
    for (script, code) in
        [("kill -9 $$", 137), ("kill -TERM -1; kill -TERM $$", 143), ("kill -9 1; kill -STOP 1; exit 7", 7)]
    {
        assert_eq!(home.sh(&[], script).code(), code, "{script}");
    }
}
