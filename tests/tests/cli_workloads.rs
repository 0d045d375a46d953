//! What agents run all day, under `default`: every program does its work, and nothing it asks for is refused.
//!
//! Each test gives the denials it expects: mostly none. Programs are this machine's own; what it lacks is skipped, and said.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test ends by a panic, a skip is told on stderr")]

use std::fs::{self, File};
use std::io::Read;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use agentd_tests::messages_api::{Lock, Script, Server};
use agentd_tests::tls::Authority;
use agentd_tests::{Feature, Home, require, run, skip_without, toolchain};
use serde_json::{Value, json};

/// The box's PATH for programs of the machine.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Whose bundle of certificate authorities programs use that bring one of their own.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";
const AUTHORITY_VARIABLES: [&str; 4] = ["PIP_CERT", "NODE_EXTRA_CA_CERTS", "CARGO_HTTP_CAINFO", "SSL_CERT_FILE"];

/// A home, if the machine can make boxes and has `programs`.
fn home_with(programs: &[&str]) -> Option<Home> {
    if !require(Feature::Userns) {
        return None;
    }
    for program in programs {
        let found = Command::new("sh").args(["-c", &format!("PATH={PATH} command -v {program}")]).output().unwrap();
        if !found.status.success() {
            skip_without(&[*program], &format!("no {program} in {PATH}"));
            return None;
        }
    }
    Some(Home::new())
}

/// Whether the registry answers; without, a test of it says nothing about agentd.
fn reaches(registry: &str) -> bool {
    let addresses = (registry, 443).to_socket_addrs().map(Iterator::collect::<Vec<_>>).unwrap_or_default();
    let reached = addresses.iter().any(|to| TcpStream::connect_timeout(to, Duration::from_secs(3)).is_ok());
    if !reached {
        eprintln!("skipped: {registry} cannot be reached");
    }
    reached
}

/// Runs `script` in the workspace; it succeeds, ends with `says`, and exactly `expected` is refused, a line a kind:
/// `program call(arguments)`.
#[track_caller]
fn works(home: &Home, flags: &[&str], script: &str, says: &str, expected: &[&str]) {
    let mut command = home.run();
    command.args(["-q", "--workspace", home.workspace().to_str().unwrap(), "-e", "CI=1"]);
    if fs::metadata(AUTHORITIES).is_ok() {
        for variable in AUTHORITY_VARIABLES {
            command.args(["-e", &format!("{variable}={AUTHORITIES}")]);
        }
    }
    let ran = run(command.args(flags).args(["--", "sh", "-ec", script])).expect_success();
    assert!(ran.stdout.trim_end().ends_with(says), "expected {says:?} at the end\n{ran}");
    let id = home.jobs()[0]["id"].as_str().unwrap().to_owned();
    let told = run(home.agentd().args(["logs", "--denials", "--format", "json", &id])).expect_success();
    let found: Value = told.stdout.parse().unwrap_or_default();
    let of = |one: &Value| {
        let arguments = one["arguments"].as_array().into_iter().flatten();
        let arguments: Vec<String> =
            arguments.map(|one| format!("{}={:#x}", one["number"], one["value"].as_u64().unwrap())).collect();
        format!("{}({})", one["syscall"], arguments.join(", ")).replace('"', "")
    };
    let mut refused: Vec<String> = found.as_array().into_iter().flatten().map(of).collect();
    refused.sort();
    refused.dedup();
    assert_eq!(refused, expected, "{ran}");
}

fn write(home: &Home, files: &[(&str, &str)]) {
    for (name, contents) in files {
        let path = home.workspace().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }
}

#[test]
fn cli_workload_git() {
    let Some(home) = home_with(&["git"]) else { return };
    let script = "export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
        git init -q -b main r; cd r
        for i in 1 2 3; do echo $i > f$i; git add .; git commit -qm $i; done
        git checkout -qb topic HEAD~1; echo t > t; git add t; git commit -qm t; git rebase -q main
        echo w >> t; git stash -q; git stash pop -q; git checkout -q -- t
        git worktree add -q ../wt main~1; git -C ../wt status --short
        cd ..; git clone -q file:///workspace/r c; git clone -q --depth 1 file:///workspace/r s
        cd c; git pull -q --rebase origin topic; git gc -q; git fsck --no-progress
        git merge-base --is-ancestor origin/main HEAD; git log --format=%s | tr '\\n' ' '";
    works(&home, &[], script, "t 3 2 1", &[]);
    // Over the network that a box has always: its own.
    let script =
        "git daemon --base-path=/workspace --export-all --listen=127.0.0.1 --reuseaddr --detach --pid-file=/tmp/pid
        until git ls-remote -q git://127.0.0.1/r >/dev/null 2>&1; do :; done
        git clone -q git://127.0.0.1/r /tmp/n; git -C /tmp/n log --format=%s -n 1; kill $(cat /tmp/pid)";
    works(&home, &[], script, "t", &[]);
}

#[test]
fn cli_workload_gcc_and_make() {
    let Some(home) = home_with(&["gcc", "make", "ar"]) else { return };
    let c = "#include <pthread.h>\n#include <stdio.h>\nint twice(int);\nstatic void *run(void *p) { *(int *)p = twice(21); return p; }\n\
             int main(void) { pthread_t t; int n = 0; pthread_create(&t, 0, run, &n); pthread_join(t, 0); printf(\"%d\\n\", n); return 0; }\n";
    let makefile = "all: p\n\t./p\np: p.o libtwice.a\n\tgcc -flto -pthread -o $@ p.o -L. -ltwice\nlibtwice.a: twice.o\n\tar rcs $@ $^\n\
                    %.o: %.c\n\tgcc -O2 -g -flto -ffat-lto-objects -pipe -c -o $@ $<\n";
    write(&home, &[("p.c", c), ("twice.c", "int twice(int n) { return 2 * n; }\n"), ("Makefile", makefile)]);
    works(
        &home,
        &[],
        "make -s -j4; gcc -O1 -g -fsanitize=address,undefined -pthread -o s p.c twice.c; ./s",
        "42\n42",
        &[],
    );
}

const UNITTEST: &str = "
import asyncio, multiprocessing, os, signal, socket, sqlite3, ssl, subprocess, tempfile, threading, unittest
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import shared_memory
def square(n): return n * n
class All(unittest.TestCase):
    def test_pools(self):
        for pool in (ProcessPoolExecutor(2), ThreadPoolExecutor(4)):
            with pool: self.assertEqual(sum(pool.map(square, range(10))), 285)
    def test_spawn_and_shared_memory(self):
        memory = shared_memory.SharedMemory(create=True, size=16)
        memory.close(); memory.unlink()
        with multiprocessing.get_context('spawn').Pool(2) as pool: self.assertEqual(pool.map(square, [3]), [9])
    def test_asyncio(self):
        async def serve():
            async def answer(reader, writer): writer.write(await reader.readline()); await writer.drain(); writer.close()
            server = await asyncio.start_server(answer, '127.0.0.1', 0)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b'x\\n'); self.assertEqual(await reader.readline(), b'x\\n')
            process = await asyncio.create_subprocess_exec('true'); self.assertEqual(await process.wait(), 0)
        asyncio.run(serve())
    def test_files(self):
        with tempfile.TemporaryDirectory() as d, sqlite3.connect(d + '/db') as db:
            db.execute('pragma journal_mode=wal'); db.execute('create table t(x)')
            os.chmod(d, 0o700); os.utime(d); os.link(d + '/db', d + '/l'); os.mkfifo(d + '/f')
    def test_signals_and_pty(self):
        import pty
        signal.setitimer(signal.ITIMER_REAL, 10); signal.alarm(0)
        self.assertIn(b'x', (lambda fds: (os.write(fds[1], b'x'), os.read(fds[0], 9))[1])(pty.openpty()))
if __name__ == '__main__': unittest.main()
";

#[test]
fn cli_workload_python_unittest() {
    let Some(home) = home_with(&["python3"]) else { return };
    write(&home, &[("test_all.py", UNITTEST)]);
    works(&home, &[], "python3 -m unittest -q 2>&1", "OK", &[]);
}

/// Modules of CPython's own tests that ask the most of the kernel and are done in seconds. Left out is one case: that
/// giving a file to another user is EPERM, where it is EINVAL for who knows one user.
#[test]
fn cli_workload_cpython_testsuite() {
    let Some(home) = home_with(&["python3"]) else { return };
    // To import it would write where the test runs.
    let find = "import importlib.util; exit(not importlib.util.find_spec('test.test_os'))";
    if !Command::new("/usr/bin/python3").args(["-c", find]).status().is_ok_and(|status| status.success()) {
        let package = "libpython3.11-testsuite, or as its Python is numbered";
        skip_without(&["python3"], &format!("no tests of CPython (Debian: {package})"));
        return;
    }
    let modules = "test_os test_posix test_tempfile test_shutil test_mmap test_fcntl test_select test_resource test_pty test_thread";
    let script = format!(
        "cd /tmp; /usr/bin/python3 -m test -q -j2 -i test_chown_without_permission {modules} 2>&1 | tail -n 30"
    );
    // A set-group-ID directory, and whether this user may do what root may: both refused, which the tests put up with.
    works(&home, &[], &script, "Tests result: SUCCESS", &["chmod(1=0x5ed)", "chroot()"]);
}

#[test]
fn cli_workload_pip() {
    let Some(home) = home_with(&["python3"]) else { return };
    if !Command::new("/usr/bin/python3").args(["-c", "import ensurepip, venv"]).output().unwrap().status.success() {
        skip_without(&["python3"], "no venv (Debian: python3-venv)");
        return;
    }
    write(
        &home,
        &[
            (
                "pkg/pyproject.toml",
                "[project]\nname = \"own\"\nversion = \"1\"\n[project.scripts]\nown = \"own:main\"\n",
            ),
            ("pkg/own/__init__.py", "def main(): print('own runs')\n"),
        ],
    );
    // Offline: a wheel made by hand.
    let script = "/usr/bin/python3 -m venv /tmp/v; . /tmp/v/bin/activate; cd pkg
        python3 - <<'END'
import zipfile
info = 'own-1.dist-info/'
files = {info + 'METADATA': 'Metadata-Version: 2.1\\nName: own\\nVersion: 1\\n', info + 'RECORD': '',
    info + 'WHEEL': 'Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n',
    info + 'entry_points.txt': '[console_scripts]\\nown = own:main\\n', 'own/__init__.py': open('own/__init__.py').read()}
with zipfile.ZipFile('/tmp/own-1-py3-none-any.whl', 'w') as wheel:
    for name, text in files.items(): wheel.writestr(name, text)
END
        pip install -q --disable-pip-version-check --no-index /tmp/own-1-py3-none-any.whl; own; pip check";
    works(&home, &[], script, "own runs\nNo broken requirements found.", &[]);
    if reaches("pypi.org") {
        let script = "/usr/bin/python3 -m venv /tmp/v; . /tmp/v/bin/activate
            pip install -q --disable-pip-version-check six markupsafe ./pkg; own; python3 -c 'import six, markupsafe._speedups; print(\"installed\")'";
        works(&home, &["--net", "host"], script, "own runs\ninstalled", &[]);
    }
}

#[test]
fn cli_workload_node() {
    let Some(home) = home_with(&["node", "npm"]) else { return };
    let test = "const test = require('node:test'), assert = require('node:assert'), fs = require('node:fs');
        const { Worker } = require('node:worker_threads'), { execFileSync, fork } = require('node:child_process');
        test('worker', () => new Promise((done) => new Worker('require(\"worker_threads\").parentPort.postMessage(1)', { eval: true }).on('message', done)));
        test('child', () => assert.strictEqual(execFileSync('echo', ['x']).toString(), 'x\\n'));
        test('server', () => new Promise((done) => { const s = require('http').createServer((_, r) => r.end('x')).listen(0, () =>
            fetch(`http://127.0.0.1:${s.address().port}`).then((r) => r.text()).then((t) => { assert.strictEqual(t, 'x'); s.close(done); })); }));
        test('watch', () => { const w = fs.watch('.'); w.close(); require('os').networkInterfaces(); });
        test('own', () => assert.strictEqual(require('own'), 42));";
    // Without a name: node 20 looks at every entry of the directory, and ends at a link that leads nowhere.
    let package = "{\"name\":\"app\",\"version\":\"1.0.0\",\"scripts\":{\"test\":\"node --test\"}}";
    write(
        &home,
        &[
            ("package.json", package),
            ("app.test.js", test),
            (
                "own/package.json",
                "{\"name\":\"own\",\"version\":\"1.0.0\",\"scripts\":{\"install\":\"echo 42 > made\"}}",
            ),
            ("own/index.js", "module.exports = Number(require('fs').readFileSync(__dirname + '/made'));"),
        ],
    );
    let script = "npm install --silent --no-audit --no-fund ./own; npm test --silent > /tmp/out || cat /tmp/out; grep -c '^# fail 0\\|^. fail 0' /tmp/out";
    works(&home, &[], script, "1", &[]);
    if reaches("registry.npmjs.org") {
        let script =
            "npm install --silent --no-audit --no-fund semver@7 prettier@3; npx --no-install semver -r '>=1' 1.2.3
            echo 'a  =1' | npx --no-install prettier --stdin-filepath a.js";
        works(&home, &["--net", "host"], script, "1.2.3\na = 1;", &[]);
        let script = "npm install --silent --no-audit --no-fund -g --prefix /scratch/npm semver@7; /scratch/npm/bin/semver 1.2.3; id -u";
        works(&home, &["--net", "host", "--fake-root", "--writable"], script, "1.2.3\n0", &[]);
    }
}

/// A server that refuses to run as root, as a user of its own.
#[test]
fn cli_workload_postgresql_with_several_ids() {
    let Some(home) = home_with(&["setpriv"]) else { return };
    if !require(Feature::Ranges) {
        return;
    }
    let there = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().next();
    let Some(programs) =
        there.map(|version| version.path().join("bin")).filter(|bin| bin.join("initdb").metadata().is_ok())
    else {
        eprintln!("skipped: no PostgreSQL (Debian: postgresql)");
        return;
    };
    let script = format!(
        "B={}; echo 'pg:x:33:33::/tmp/pg:/bin/sh' >> /etc/passwd; install -d -o pg -g 33 -m 700 /tmp/pg
        as() {{ setpriv --reuid 33 --regid 33 --clear-groups \"$@\"; }}
        ! $B/initdb -D /tmp/root 2>/dev/null; as $B/initdb -A trust -D /tmp/pg/data >/dev/null
        as $B/pg_ctl -s -w -D /tmp/pg/data -l /tmp/pg/log -o '-k /tmp/pg -c listen_addresses=' start
        as $B/psql -h /tmp/pg -d postgres -Atc 'select 6*7'; as $B/pg_ctl -s -w -D /tmp/pg/data -m fast stop
        stat -c %U /tmp/pg/data/PG_VERSION",
        programs.display()
    );
    works(&home, &["--userns", "subids", "--writable"], &script, "42\npg", &[]);
}

#[test]
fn cli_workload_cargo() {
    let Some(home) = home_with(&["gcc"]) else { return };
    let Some(toolchain) = toolchain(PATH) else {
        eprintln!("skipped: no Rust that this user can read");
        return;
    };
    let places = ["-e", "CARGO_HOME=/scratch/cargo", "-e", "CARGO_TARGET_DIR=/scratch/target"];
    let flags: Vec<&str> = toolchain.iter().map(String::as_str).chain(places).collect();
    write(
        &home,
        &[
            ("Cargo.toml", "[package]\nname = \"app\"\nversion = \"1.0.0\"\nedition = \"2021\"\n"),
            ("build.rs", "fn main() { println!(\"cargo:rustc-env=BUILT=yes\"); }"),
            (
                "src/main.rs",
                "fn main() { println!(\"built {}\", env!(\"BUILT\")); }\n#[test]\nfn adds() { assert_eq!(1 + 1, 2); }\n",
            ),
        ],
    );
    works(
        &home,
        &flags,
        "cargo test -q --offline >/dev/null; cargo build -q --offline; /scratch/target/debug/app",
        "built yes",
        &[],
    );
    if reaches("index.crates.io") && reaches("static.crates.io") {
        fs::write(
            home.workspace().join("Cargo.toml"),
            "[package]\nname = \"app\"\nversion = \"1.0.0\"\nedition = \"2021\"\n[dependencies]\ncfg-if = \"1\"\nlibc = \"0.2\"\n",
        )
        .unwrap();
        let flags = [&flags[..], &["--net", "host"]].concat();
        works(&home, &flags, "cargo build -q; /scratch/target/debug/app", "built yes", &[]);
    }
}

/// The native program, in the PATH of whoever runs the test.
fn claude() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let is_native = |program: &PathBuf| {
        let mut magic = [0; 4];
        File::open(program).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"\x7fELF"
    };
    std::env::split_paths(&path).map(|directory| directory.join("claude")).find(is_native)
}

/// Looks for the API's key in everything that the agent's tools can read; it is put together where no command line has it.
const SEARCH: &str = "import os
needle = '-'.join(['sk', 'of', 'the', 'agent', '0123456789']).encode()
def holds(path):
    try: return needle in open(path, 'rb').read(1 << 20)
    except OSError: return False
names = [f'/proc/{p}/{n}' for p in os.listdir('/proc') if p.isdigit() for n in ('environ', 'cmdline')]
names += [f'{d}/{n}' for top in ('/run', '/tmp', '/home', '/etc') for d, _, f in os.walk(top) for n in f]
print(len(names) > 20, [name for name in names if holds(name)], os.environ['ANTHROPIC_API_KEY'])
";

/// Claude Code with its tools, a script in the place of the model; its key is added outside, and nothing else is reached.
#[test]
fn cli_workload_claude() {
    let Some(home) = home_with(&["git", "bash"]) else { return };
    let Some(claude) = claude() else {
        eprintln!("skipped: no Claude Code (npm: @anthropic-ai/claude-code)");
        return;
    };
    let uses = |name: &str, input: Value| json!({ "text": "", "tools": [{ "name": name, "input": input }] });
    let bash = |command: &str| uses("Bash", json!({ "command": command }));
    let script = json!({ "turns": [
        bash("git status && git config --global user.email a@b && git config --global user.name a && ls -la && id && ps aux | wc -l"),
        uses("Write", json!({ "file_path": "/workspace/app.py", "content": "def twice(n):\n    return n\n" })),
        uses("Read", json!({ "file_path": "/workspace/app.py" })),
        uses("Edit", json!({ "file_path": "/workspace/app.py", "old_string": "return n", "new_string": "return 2 * n" })),
        bash("grep -rn twice . --include='*.py'; find . -name '*.py' | head; python3 -c 'import app; assert app.twice(2) == 4'"),
        uses("Write", json!({ "file_path": "/tmp/search.py", "content": SEARCH })),
        bash("python3 /tmp/search.py > /tmp/found; curl -sS https://evil.example/ >> /tmp/found 2>&1"),
        bash("git add -A && git commit -qm 'Twice' && git log --stat | cat; sleep 0.1 & wait"),
        { "text": "All of it is done." },
    ] });
    let script: Script = serde_json::from_value(script).unwrap();
    let (authority, key) = (Authority::new(), "sk-of-the-agent-0123456789");
    let place = |name: &str| home.path().join("config").join(name).display().to_string();
    authority.write(place("authority").as_ref());
    fs::write(place("key"), key).unwrap();
    let record = File::create(place("requests")).unwrap();
    let lock = Lock { tls: authority.vouch_for("api.test"), key: key.into() };
    let server = Server::locked(script, Some(record), lock).unwrap();
    drop(run(Command::new("git").args(["init", "-q"]).arg(home.workspace())).expect_success());
    let mount = format!("type=bind,src={},dst=/mnt/claude", claude.display());
    let secret = format!("ANTHROPIC_API_KEY@api.test:{}=file:{}", server.port(), place("key"));
    let traffic = "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1";
    let upstream = ["--add-host", "api.test:127.0.0.1", "--upstream-ca", &place("authority")];
    let flags = [&["--mount", &mount, "-e", traffic, "--secret", &secret], &upstream[..]].concat();
    // Of what the workspace's absent settings and servers show up as it does not complain.
    let script = "/mnt/claude -p --debug-file /tmp/debug --permission-mode bypassPermissions 'Do it' </dev/null
        test -s /tmp/debug; ! grep 'MCP config errors\\|Invalid settings' /tmp/debug; git log --format=%s; python3 -c 'import app; print(app.twice(21))'; cat /tmp/found";
    let says = "All of it is done.\nTwice\n42\nTrue [] agentd-adds-the-key-outside\n\
                curl: (6) Could not resolve host: evil.example";
    works(&home, &flags, script, says, &[]);
    let requests = fs::read_to_string(place("requests")).unwrap();
    assert!(requests.lines().count() > 5 && !requests.contains("\"has_key\":false"), "{requests}");
    // Refused once a kind, and not asked for again.
    let network = &home.jobs()[0]["network"];
    assert!(network["refused"].as_u64().unwrap() < 10, "{network}");
}
