//! A name server that is the attacker's: it changes its answers, and listens for names that were not meant for it.
//!
//! Only root can be that name server here, and put it into /etc/resolv.conf, in a mount namespace of the test's own.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in the functions beside it")]

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use agentd_tests::server::{OK, Server};
use agentd_tests::{Feature, Home, require, run};

const GOOD: Ipv4Addr = Ipv4Addr::new(127, 67, 1, 1);

/// Answers for `*.test` with [`GOOD`], but for the name `rebind.test`: the second time that is 127.0.0.1. Other names do not
/// exist. Keeps what it was asked.
fn name_server(at: Ipv4Addr) -> Arc<Mutex<Vec<String>>> {
    let socket = UdpSocket::bind((at, 53)).unwrap();
    let asked = Arc::<Mutex<Vec<String>>>::default();
    let kept = Arc::clone(&asked);
    std::thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut question) {
            let (mut name, mut at) = (String::new(), 12);
            while question[at] != 0 {
                let end = at + 1 + usize::from(question[at]);
                name.push_str(&String::from_utf8_lossy(&question[at + 1..end]));
                name.push('.');
                at = end;
            }
            let is_a = question[at + 2] == 1;
            let mut asked = kept.lock().unwrap_or_else(PoisonError::into_inner);
            let again = name == "rebind.test." && asked.contains(&name);
            if is_a {
                asked.push(name.clone());
            }
            let exists = name.ends_with(".test.") && !name.contains("nosuch");
            let mut answer = question[..at + 5].to_vec();
            answer[2] = 0x81;
            answer[3] = if exists { 0x80 } else { 0x83 };
            answer[6..12].copy_from_slice(&[0, u8::from(exists && is_a), 0, 0, 0, 0]);
            if exists && is_a {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
                answer.extend(if again { Ipv4Addr::LOCALHOST } else { GOOD }.octets());
            }
            assert!(length > at);
            socket.send_to(&answer, from).unwrap();
        }
    });
    asked
}

/// `command` where /etc/resolv.conf names this server, and a search list.
fn asking(home: &Home, at: Ipv4Addr, command: &Command) -> Command {
    let file = home.path().join("resolv.conf");
    std::fs::write(&file, format!("search evil.example\noptions ndots:5\nnameserver {at}\n")).unwrap();
    let mut apart = Command::new("unshare");
    let script = format!("mount --bind {} /etc/resolv.conf && exec \"$@\"", file.display());
    apart.args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh"]);
    apart.arg(command.get_program()).args(command.get_args()).current_dir(home.path());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => apart.env(name, value),
            None => apart.env_remove(name),
        };
    }
    apart
}

const SCRIPT: &str = r#"
say() { wget -q -O - "http://$1:$PORT/" 2>&1 | grep -o -E 'ok|HTTP/1.1 [0-9]+'; }
say rebind.test
n=0; while [ $n -lt 260 ]; do say n$n.flood.test; n=$((n+1)); done | sort -u
say rebind.test; say nosuch.test || true"#;

#[test]
fn escape_an_answer_that_changes_is_judged_anew() {
    if !require(Feature::Userns) || !require(Feature::Root) || !require(Feature::Busybox) {
        return;
    }
    let home = Home::new();
    let at = Ipv4Addr::new(127, 67, 53, 1);
    let asked = name_server(at);
    let listener = TcpListener::bind((GOOD, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let good = Server::on(listener, OK);
    let bad = Server::on(TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap(), OK);
    let attack = |also: &[&str]| {
        let mut command = home.run();
        for rule in [format!("*.test:{port}"), format!("{GOOD}:{port}")] {
            command.args(["--allow", &rule]);
        }
        let image = format!("oci:{}", home.busybox_image().display());
        command.args(also).args(["-q", "--image", &image, "-e", &format!("PORT={port}"), "--", "sh", "-c", SCRIPT]);
        run(&mut asking(&home, at, &command)).stdout
    };
    // In between so many names are looked up that the first answer is forgotten.
    assert_eq!(attack(&[]), "ok\nok\nHTTP/1.1 403\n");
    assert_eq!((good.connections(), bad.connections()), (261, 0));
    let heard = asked.lock().unwrap_or_else(PoisonError::into_inner).join(" ");
    // Nobody hears of a name who was not asked for it: not what the search list says, and twice what was used twice.
    assert!(!heard.contains("evil.example") && heard.contains("nosuch.test."), "{heard}");
    assert_eq!(heard.matches("rebind.test.").count(), 2, "{heard}");
    let id = home.jobs()[0]["id"].as_str().map(str::to_owned).unwrap_or_default();
    let told = run(home.agentd().args(["logs", "--net", &id])).expect_success().stdout;
    assert!(told.contains("the name leads to 127.0.0.1, which is the host itself"), "{told}");
    // With a rule that names the host itself the answer is followed; and a program of the host asks further.
    let named = format!("127.0.0.1:{port}");
    assert_eq!(attack(&["--allow", &named]), "ok\nok\nok\n");
    assert!(bad.connections() > 0);
    let mut control = Command::new("getent");
    let _unknown = run(&mut asking(&home, at, control.args(["ahostsv4", "nosuch.test"]))).expect_code(2);
    assert!(asked.lock().unwrap_or_else(PoisonError::into_inner).contains(&"nosuch.test.evil.example.".to_owned()));
}
