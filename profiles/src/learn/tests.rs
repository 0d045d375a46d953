//! What is learned, what never is, and that the file that comes of it opens exactly that.

use proptest::prelude::*;

use super::*;
use crate::{Profile, parse, tighten};

fn call(name: &str, args: [u64; 3]) -> Call {
    let nr = crate::syscall(name).and_then(|call| call.number(NATIVE)).unwrap();
    Call { arch: NATIVE.audit_word(), nr, args: [args[0], args[1], args[2], 0, 0, 0] }
}

fn lessons(base: BuiltIn, calls: &[Call]) -> Lessons {
    let mut lessons = Lessons::new(Cow::Borrowed(profile(base)));
    for call in calls {
        if verdict(&profile(base).seccomp, NATIVE, call) != Verdict::Allow {
            lessons.judge(&profile(base).seccomp, call, "a b\u{1b}");
        }
    }
    lessons
}

/// What no run can learn, under any profile: a list of attacks, each with the answer it keeps.
#[test]
fn what_is_a_wall_stays_one() {
    for (name, args) in [
        ("unshare", [0x1000_0000, 0, 0]),
        ("setns", [3, 0, 0]),
        ("clone", [0x1000_0011, 0, 0]),
        ("clone3", [0, 88, 0]),
        ("mount", [0; 3]),
        ("fsopen", [0; 3]),
        ("move_mount", [0; 3]),
        ("pivot_root", [0; 3]),
        ("bpf", [0; 3]),
        ("perf_event_open", [0; 3]),
        ("userfaultfd", [0; 3]),
        ("io_uring_setup", [1, 0, 0]),
        ("keyctl", [0; 3]),
        ("open_by_handle_at", [0; 3]),
        ("openat2", [0; 3]),
        ("init_module", [0; 3]),
        ("kexec_load", [0; 3]),
        ("ioctl", [0, 0x5412, 0]),
        ("fchmod", [3, 0o4755, 0]),
        ("mknodat", [3, 0, 0o020_666]),
        ("socket", [38, 5, 0]),
        ("socket", [40, 1, 0]),
        ("socket", [17, 3, 0]),
        ("socket", [16, 3, 12]),
        ("socket", [2, 3, 1]),
    ] {
        for base in [BuiltIn::Default, BuiltIn::Strict] {
            let call = call(name, args);
            let mut lessons = lessons(base, &[]);
            assert!(!lessons.judge(&profile(base).seccomp, &call, "x"), "{name} {args:x?} under {base}");
            assert_eq!((lessons.learned(), lessons.kept.len()), (0, 1));
            let text = lessons.text("a", "x").unwrap();
            assert!(text.contains(&format!("#   {name} ")), "{text}");
            assert_eq!(parse(&text).unwrap().seccomp, profile(base).seccomp);
        }
    }
    // By another entry, and by the alias that x32 has.
    let mut lessons = lessons(BuiltIn::Default, &[]);
    let foreign = Call { arch: 0x4000_0003, ..call("ptrace", [0; 3]) };
    let alias = Call { nr: 0x4000_0000 | call("ptrace", [0; 3]).nr, ..call("ptrace", [0; 3]) };
    for call in [foreign, alias] {
        assert!(!lessons.judge(&profile(BuiltIn::Default).seccomp, &call, "x"));
    }
}

#[test]
fn a_file_has_a_rule_for_each_kind_with_who_asked_and_why_it_was_refused() {
    let calls = [
        call("ptrace", [0, 7, 0]),
        call("ptrace", [16, 8, 1]),
        call("socket", [16, 0x8_0003, 0]),
        call("socket", [16, 3, 0]),
        call("socket", [16, 3, 15]),
        call("personality", [8, 0, 0]),
        call("personality", [0xffff_ffff_0004_0000, 0, 0]),
        call("mount", [0; 3]),
    ];
    let text = lessons(BuiltIn::Strict, &calls).text("mine", "make 'all\n#'").unwrap();
    let learned = parse(&text).unwrap();
    assert_eq!((&*learned.name, &*learned.about), ("mine", "learned from make 'all\\n#'"));
    let own: Vec<String> = learned
        .seccomp
        .rules
        .iter()
        .take_while(|rule| rule.group == "learned")
        .map(|rule| {
            let when: Vec<String> = rule.when.iter().map(ToString::to_string).collect();
            format!("{} {}", rule.syscalls[0].name, when.join(", "))
        })
        .collect();
    assert_eq!(
        own,
        [
            "personality arg 0 is 8 or 0x40000",
            "ptrace ",
            "socket arg 0 is 16, arg 1 & 0xf is 3, arg 2 is 0",
            "socket arg 0 is 16, arg 1 & 0xf is 3, arg 2 is 15",
        ]
    );
    assert!(
        learned.seccomp.rules[1].reason.starts_with("learned: a?b? used it 2 times; profile default lets"),
        "{text}"
    );
    assert!(learned.seccomp.rules[1].reason.contains("one process of the box does not read"), "{text}");
    assert!(text.contains("#   mount EPERM 1x: the mount tree"), "{text}");
}

/// What a workspace takes away no profile of its user's gives back, so nothing is learned of it.
#[test]
fn what_the_workspace_refuses_is_not_learned() {
    let rule = "schema = 1\n[[seccomp.rule]]\ngroup = \"w\"\nsyscalls = [\"ptrace\", \"personality\"]\nverdict = \"EPERM\"\nreason = \"r\"\n";
    let base = profile(BuiltIn::Default);
    let tight = tighten(base, rule).unwrap();
    let mut lessons = Lessons::new(Cow::Borrowed(base));
    for call in [call("ptrace", [0; 3]), call("personality", [8, 0, 0])] {
        assert!(!lessons.judge(&tight.seccomp, &call, "x"));
    }
    assert!(lessons.judge(&tight.seccomp, &call("fanotify_init", [0; 3]), "x"));
    assert_eq!((lessons.learned(), lessons.denied().count()), (1, 2));
}

/// A file of the user's is written out whole, also where it names only what it allows.
#[test]
fn a_file_is_learned_on_as_well() {
    let rule = |calls: &str, verdict: &str| {
        format!("[[seccomp.rule]]\ngroup = \"g\"\nsyscalls = [{calls}]\nverdict = \"{verdict}\"\nreason = \"r\"\n")
    };
    let alone = "schema = 1\nname = \"a\"\n[seccomp.unlisted]\nverdict = \"EPERM\"\nreason = \"r\"\n".to_owned();
    for base in [
        alone + &rule("\"read\", \"write\"", "allow"),
        "schema = 1\nname = \"a\"\nextends = \"strict\"\n".to_owned()
            + &rule("\"kcmp\", \"ptrace\", \"sync\"", "EPERM"),
    ] {
        let base = parse(&base).unwrap();
        let mut lessons = Lessons::new(Cow::Owned(base.clone()));
        let calls = [call("sync", [0; 3]), call("personality", [0x4_0000, 0, 0]), call("socket", [16, 3, 0])];
        for call in &calls {
            assert!(lessons.judge(&base.seccomp, call, "x"));
        }
        let learned = parse(&lessons.text("b", "x").unwrap()).unwrap();
        exactly(&base, &learned, &calls, &calls);
        exactly(&base, &learned, &calls, &[call("kcmp", [0; 3]), call("personality", [8, 0, 0]), call("read", [0; 3])]);
        assert_eq!(
            (&learned.paths, &learned.may_miss, &learned.namespaces),
            (&base.paths, &base.may_miss, &base.namespaces)
        );
    }
}

#[track_caller]
fn exactly(base: &Profile, learned: &Profile, taught: &[Call], tried: &[Call]) {
    for call in tried {
        let is_allowed = |profile: &Profile| verdict(&profile.seccomp, NATIVE, call) == Verdict::Allow;
        let before = verdict(&base.seccomp, NATIVE, call);
        if taught.contains(call) {
            assert!(is_allowed(learned), "{call:x?}");
        } else if is_allowed(learned) && before != Verdict::Allow {
            // It looks like one that was taught, to every rule: the values differ in bits that nobody tests.
            let like = |known: &Call| {
                let tested =
                    conditions(&base.seccomp, call.nr).chain(conditions(&profile(BuiltIn::Default).seccomp, call.nr));
                known.nr == call.nr
                    && tested
                        .into_iter()
                        .all(|test| low(known, test.arg) & test.mask == low(call, test.arg) & test.mask)
            };
            assert!(taught.iter().any(like), "{call:x?} was not taught");
        } else {
            assert_eq!(verdict(&learned.seccomp, NATIVE, call), before, "{call:x?}");
        }
    }
}

#[test]
fn what_is_kept_has_a_bound_and_says_when_it_is_met() {
    let calls: Vec<Call> = (0..150).map(|value| call("personality", [2 * value + 1, 0, 0])).collect();
    let lessons = lessons(BuiltIn::Default, &calls);
    assert_eq!((lessons.learned(), lessons.missed), (MOST, 50));
    let text = lessons.text("a", &"x".repeat(5000)).unwrap();
    assert!(text.contains("NOT WHOLE: 50 calls"), "{text}");
    assert!(lessons.text("No Name", "x").is_err());
}

fn any_call() -> impl Strategy<Value = Call> {
    let names: Vec<String> = profile(BuiltIn::Default)
        .seccomp
        .rules
        .iter()
        .flat_map(|rule| rule.syscalls.iter())
        .filter(|call| call.number(NATIVE).is_some())
        .map(|call| call.name.to_string())
        .collect();
    const OFTEN: [&str; 10] =
        ["socket", "personality", "ptrace", "mbind", "prctl", "clone", "ioctl", "setsockopt", "kcmp", "adjtimex"];
    let name = prop_oneof![3 => proptest::sample::select(&OFTEN[..]).prop_map(str::to_owned), 1 => proptest::sample::select(names)];
    let arg = prop_oneof![4 => 0..20_u64, 1 => any::<u64>(), 1 => Just(0x8_0003), 1 => Just(0xffff_ffff_0000_0010)];
    (name, proptest::array::uniform3(arg)).prop_map(|(name, args)| call(&name, args))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// For any calls: those that were let through pass, and no other that did not pass before; what is denied with the
    /// profile is what the run was denied too.
    #[test]
    fn a_learned_profile_opens_what_was_taught_and_nothing_else(
        calls in proptest::collection::vec(any_call(), 0..40),
        tried in proptest::collection::vec(any_call(), 60),
    ) {
        for built_in in [BuiltIn::Default, BuiltIn::Strict] {
            let base = profile(built_in);
            let mut lessons = Lessons::new(Cow::Borrowed(base));
            let refused = calls.iter().filter(|call| verdict(&base.seccomp, NATIVE, call) != Verdict::Allow);
            let taught: Vec<Call> = refused.filter(|call| lessons.judge(&base.seccomp, call, "x")).copied().collect();
            let learned = parse(&lessons.text("a", "x").unwrap()).unwrap();
            exactly(base, &learned, &taught, &tried);
            exactly(base, &learned, &taught, &calls);
            prop_assert!(tried.len() == 60);
        }
    }
}
