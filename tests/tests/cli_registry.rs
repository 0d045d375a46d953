//! Images from a real registry: how they were made, how they are guarded, what happens when the wire breaks.

#![expect(clippy::unwrap_used, reason = "a test ends by a panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use agentd_tests::oci::{self, Compression, Entry, Image, Layer};
use agentd_tests::registry::{Access, Authority, PASSWORD, Registry, TokenService, USER, Wire};
use agentd_tests::unpackers::installed;
use agentd_tests::{Feature, Home, Started, Terminal, busybox, install, require, run, wait_until};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::process::Signal;
use serde_json::{Value, json};

/// A home, and an open registry with one image in it: `a/b:t`, whose /etc/marker says `from the registry`.
struct Site {
    home: Home,
    written: oci::Written,
}

impl Site {
    fn new() -> Option<Self> {
        if !installed(&["docker-registry", "skopeo"]) {
            return None;
        }
        let home = Home::new();
        let written = image(Compression::Gzip).write(&home.path().join("image"), "t").unwrap();
        let open = Registry::start(home.path(), &Access::Open);
        open.push(&format!("oci:{}:t", home.path().join("image").display()), "a/b:t", &["--preserve-digests"]);
        Some(Self { home, written })
    }

    /// The same, and what vouches for its registry.
    fn with_authority() -> Option<(Self, Authority)> {
        if !installed(&["openssl"]) {
            return None;
        }
        let site = Self::new()?;
        let authority = Authority::new(site.home.path());
        Some((site, authority))
    }

    fn registry(&self, access: &Access<'_>) -> Registry {
        Registry::start(self.home.path(), access)
    }

    fn pull(&self, host: &str) -> Command {
        let mut command = self.home.agentd();
        command.args(["pull", "-q"]).arg(format!("{host}/a/b:t"));
        command
    }

    /// What a pull of the image prints.
    fn digest(&self) -> String {
        format!("{}\n", self.written.manifest)
    }

    /// Writes a file of this home's user.
    fn write(&self, path: &str, text: impl AsRef<str>) -> PathBuf {
        let path = self.home.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text.as_ref()).unwrap();
        path
    }

    /// The store's partial downloads.
    fn partials(&self) -> Vec<PathBuf> {
        let paths = self.home.paths();
        paths.into_iter().filter(|path| path.extension().is_some_and(|end| end == "partial")).collect()
    }

    /// That of the layer with the noise.
    fn partial(&self) -> Option<PathBuf> {
        let (_, noise) = self.written.layers[1].split_once(':').unwrap();
        let found = self.partials().into_iter().find(|path| path.to_string_lossy().contains(noise));
        found.map(|path| self.home.path().join(path))
    }
}

fn image(compression: Compression) -> Image {
    let marker = Entry::file("etc/marker", "from the registry\n");
    busybox()
        .layer(Layer::Entries(vec![Entry::file("noise", noise())]), compression)
        .layer(Layer::Entries(vec![marker]), compression)
}

/// Four megabytes that no compression makes smaller.
fn noise() -> Vec<u8> {
    let mut state = 1u64;
    let words = std::iter::repeat_with(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()
    });
    words.take(1 << 19).flatten().collect()
}

fn stored(host: &str, password: &str) -> String {
    json!({ "auths": { host: { "auth": STANDARD.encode(format!("{USER}:{password}")) } } }).to_string()
}

#[test]
fn an_image_runs_however_it_was_made() {
    if !require(Feature::Userns) || !require(Feature::Busybox) || !installed(&["docker-registry", "skopeo"]) {
        return;
    }
    let home = Home::new();
    let registry = Registry::start(home.path(), &Access::Open);
    for (name, compression, options) in [
        ("oci/gzip:t", Compression::Gzip, &["--format", "oci"][..]),
        ("oci/zstd:t", Compression::Zstd, &["--format", "oci"]),
        ("docker/gzip:t", Compression::Gzip, &["--format", "v2s2"]),
        ("docker/plain:t", Compression::Plain, &["--format", "v2s2"]),
    ] {
        let dir = home.path().join("image").join(name.replace(['/', ':'], "-"));
        image(compression).write(&dir, "t").unwrap();
        registry.push(&format!("oci:{}:t", dir.display()), name, options);
        // A name without a scheme is a registry's too.
        for reference in [format!("docker://{}/{name}", registry.host), format!("{}/{name}", registry.host)] {
            let fresh = Home::new();
            let ran = run(fresh.run().args(["-q", "--image", &reference, "--", "cat", "/etc/marker"]));
            assert_eq!(ran.expect_silent_success().stdout, "from the registry\n");
        }
    }
}

#[test]
fn an_index_leads_to_the_image_for_this_machine() {
    let Some(site) = Site::new() else { return };
    let registry = site.registry(&Access::Open);
    let other = Image::new().layer(Layer::Entries(vec![Entry::file("other", "x")]), Compression::Gzip);
    let dir = site.home.path().join("other");
    let other = other.write(&dir, "t").unwrap();
    registry.push(&format!("oci:{}:t", dir.display()), "a/b:other", &["--preserve-digests"]);
    let entry = |written: &oci::Written, layout: &Path, architecture: &str| {
        let size = oci::Written::blob(layout, &written.manifest).metadata().unwrap().len();
        json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": written.manifest, "size": size,
            "platform": { "os": "linux", "architecture": architecture },
        })
    };
    let ours = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let entries = [entry(&other, &dir, "s390x"), entry(&site.written, &site.home.path().join("image"), ours)];
    for (tag, kind) in [
        ("index", "application/vnd.oci.image.index.v1+json"),
        ("list", "application/vnd.docker.distribution.manifest.list.v2+json"),
    ] {
        let index = json!({ "schemaVersion": 2, "mediaType": kind, "manifests": entries });
        registry.put(&format!("/v2/a/b/manifests/{tag}"), kind, &index.to_string());
        let name = format!("{}/a/b:{tag}", registry.host);
        let pulled = run(site.home.agentd().args(["pull", "-q", &name])).expect_silent_success();
        assert_eq!(pulled.stdout, site.digest());
    }
}

#[test]
fn a_digest_is_pulled_as_it_is_and_what_is_not_there_is_told() {
    let Some(site) = Site::new() else { return };
    let registry = site.registry(&Access::Open);
    let pull = |name: String| run(site.home.agentd().args(["pull", "-q", &name]));
    let pinned = pull(format!("{}/a/b@{}", registry.host, site.written.manifest));
    assert_eq!(pinned.expect_silent_success().stdout, site.digest());
    let absent = format!("sha256:{}", "0".repeat(64));
    for (name, said) in [
        (format!("{}/a/b:absent", registry.host), "has no image `a/b:absent`"),
        (format!("{}/none:t", registry.host), "has no image `none:t`"),
        (format!("{}/a/b@{absent}", registry.host), "has no image `a/b@sha256:0000"),
    ] {
        pull(name).expect_code(125).expect_one_error_line(&[said, &registry.host]);
    }
}

#[test]
fn a_password_is_found_where_podman_and_docker_keep_it_and_is_never_told() {
    let Some(site) = Site::new() else { return };
    let registry = site.registry(&Access::Password);
    let denied = run(&mut site.pull(&registry.host)).expect_code(125);
    denied.expect_one_error_line(&["denies access to `a/b`", &format!("podman login {}", registry.host)]);
    for path in ["run/containers/auth.json", "config/containers/auth.json", ".docker/config.json"] {
        let file = site.write(path, stored(&registry.host, PASSWORD));
        assert_eq!(run(&mut site.pull(&registry.host)).expect_silent_success().stdout, site.digest(), "{path}");
        fs::remove_file(file).unwrap();
    }
    let file = site.write("elsewhere", stored(&registry.host, PASSWORD));
    let mut pull = site.pull(&registry.host);
    assert_eq!(run(pull.env("REGISTRY_AUTH_FILE", &file)).expect_silent_success().stdout, site.digest());

    site.write("run/containers/auth.json", stored(&registry.host, "wrong horse"));
    let denied = run(&mut site.pull(&registry.host)).expect_code(125);
    denied.expect_one_error_line(&["denies access to `a/b` with the credentials stored for it"]);
    for secret in ["wrong horse", &STANDARD.encode(format!("{USER}:wrong horse"))] {
        assert!(!denied.stderr.contains(secret), "{denied}");
    }
}

#[test]
fn a_credential_helper_is_asked() {
    let Some(site) = Site::new() else { return };
    let registry = site.registry(&Access::Password);
    let helper = format!(
        "#!/bin/sh\n[ \"$1\" = get ] && [ \"$(cat)\" = {} ] && echo '{}'\n",
        registry.host,
        json!({ "ServerURL": registry.host, "Username": USER, "Secret": PASSWORD })
    );
    let bin = site.home.path().join("bin");
    fs::create_dir(&bin).unwrap();
    install(&bin.join("docker-credential-of-the-test"), helper.as_bytes());
    let path = std::env::var("PATH").unwrap();
    let docker = |config: Value| site.write(".docker/config.json", config.to_string());
    let podman = |text: &str| site.write("config/containers/registries.conf", text);
    for named in ["docker, for the registry", "docker, for all", "podman"] {
        drop(match named {
            "podman" => podman("credential-helpers = ['containers-auth.json', 'of-the-test']"),
            "docker, for all" => docker(json!({ "credsStore": "of-the-test" })),
            _ => docker(json!({ "credHelpers": { registry.host.clone(): "of-the-test" } })),
        });
        if named == "podman" {
            fs::remove_file(site.home.path().join(".docker/config.json")).unwrap();
        }
        let mut pull = site.pull(&registry.host);
        pull.env("PATH", format!("{}:{path}", bin.display()));
        assert_eq!(run(&mut pull).expect_silent_success().stdout, site.digest());
        let without = run(&mut site.pull(&registry.host)).expect_code(125);
        without.expect_one_error_line(&["docker-credential-of-the-test", "cannot be started"]);
    }
}

#[test]
fn a_certificate_is_believed_only_where_it_should_be() {
    let Some((site, authority)) = Site::with_authority() else { return };
    let registry = site.registry(&Access::Tls(&authority));
    let refused = || {
        let refused = run(&mut site.pull(&registry.host)).expect_code(125);
        refused.expect_one_error_line(&["is not trusted", &format!("certs.d/{}/ca.crt", registry.host)]);
    };
    refused();
    let root = fs::read_to_string(&authority.root).unwrap();
    let of = |host: &str| site.write(&format!("config/containers/certs.d/{host}/ca.crt"), &root);
    // Another port is another registry.
    of("127.0.0.1");
    of("127.0.0.1:1");
    refused();
    let mine = of(&registry.host);
    assert_eq!(run(&mut site.pull(&registry.host)).expect_silent_success().stdout, site.digest());
    fs::remove_file(mine).unwrap();
    let mut pull = site.pull(&registry.host);
    assert_eq!(run(pull.env("SSL_CERT_FILE", &authority.root)).expect_silent_success().stdout, site.digest());
    refused();
    let insecure = format!("[[registry]]\nlocation = '{}'\ninsecure = true\n", registry.host);
    site.write("config/containers/registries.conf", insecure);
    assert_eq!(run(&mut site.pull(&registry.host)).expect_silent_success().stdout, site.digest());
}

#[test]
fn a_password_goes_over_tls_to_whom_is_trusted_alone() {
    let Some((site, authority)) = Site::with_authority() else { return };
    let registry = site.registry(&Access::PasswordTls(&authority));
    let password = site.write("run/containers/auth.json", stored(&registry.host, PASSWORD));
    run(&mut site.pull(&registry.host)).expect_code(125).expect_one_error_line(&["is not trusted"]);
    assert!(wait_until(Duration::from_secs(60), || registry.log().contains("TLS handshake error")));
    assert!(!registry.log().contains("\"GET "), "{}", registry.log());
    let root = fs::read_to_string(&authority.root).unwrap();
    site.write(&format!("config/containers/certs.d/{}/ca.crt", registry.host), root);
    assert_eq!(run(&mut site.pull(&registry.host)).expect_silent_success().stdout, site.digest());
    fs::remove_file(password).unwrap();
    let denied = run(&mut site.pull(&registry.host)).expect_code(125);
    denied.expect_one_error_line(&["denies access to `a/b`", &format!("podman login {}", registry.host)]);
    for secret in [PASSWORD, &STANDARD.encode(format!("{USER}:{PASSWORD}"))] {
        assert!(!registry.log().contains(secret), "{}", registry.log());
    }
}

#[test]
fn a_certificate_of_the_users_is_shown_to_its_registry_alone() {
    let Some((site, authority)) = Site::with_authority() else { return };
    let registry = site.registry(&Access::Certificate(&authority));
    let text = |path: &Path| fs::read_to_string(path).unwrap();
    let certs = |host: &str| format!("config/containers/certs.d/{host}");
    let of = |host: &str, name: &str, from: &Path| site.write(&format!("{}/{name}", certs(host)), text(from));
    drop(of(&registry.host, "ca.crt", &authority.root));
    let refused = |words: &[&str]| {
        run(&mut site.pull(&registry.host)).expect_code(125).expect_one_error_line(words);
    };
    refused(&[&registry.host]);
    drop((of("127.0.0.1:1", "me.cert", &authority.certificate), of("127.0.0.1:1", "me.key", &authority.key)));
    refused(&[&registry.host]);
    drop(of(&registry.host, "me.cert", &authority.certificate));
    refused(&["me.cert` cannot be used: its key is not beside it"]);
    for not_its_own in [&authority.certificate, &site.home.path().join("root.key")] {
        drop(of(&registry.host, "me.key", not_its_own));
        refused(&["me.cert` cannot be used: its key", "is none or not its own"]);
    }
    drop(of(&registry.host, "me.key", &authority.key));
    assert_eq!(run(&mut site.pull(&registry.host)).expect_silent_success().stdout, site.digest());
    drop(of(&registry.host, "other.cert", &authority.certificate));
    refused(&["me.cert` cannot be used: there is another one beside it"]);
}

/// What podman would take for another image is not taken for Docker Hub's.
#[test]
fn a_short_name_that_an_alias_leads_elsewhere_is_refused() {
    let home = Home::new();
    let conf = home.path().join("config/containers/registries.conf.d/shortnames.conf");
    fs::create_dir_all(conf.parent().unwrap()).unwrap();
    fs::write(&conf, "[aliases]\n'agentd-test' = 'registry.invalid/agentd-test'\n").unwrap();
    let words = ["`agentd-test` is `docker.io/library/agentd-test`", "`registry.invalid/agentd-test` to podman"];
    for name in ["agentd-test", "agentd-test:1"] {
        run(home.agentd().args(["pull", name])).expect_code(125).expect_one_error_line(&words);
        run(home.run().args(["--image", name, "--", "true"])).expect_code(125).expect_one_error_line(&words);
    }
    // Said in full there is no doubt; that registry is nowhere.
    let full = run(home.agentd().args(["pull", "registry.invalid/agentd-test"])).expect_code(125);
    full.expect_one_error_line(&["registry `registry.invalid`"]);
}

/// One command, from nothing: the layers come with a bar each, and then the job has the terminal.
#[test]
fn a_registrys_image_runs_on_a_terminal_in_one_command() {
    if !require(Feature::Userns) || !require(Feature::Busybox) {
        return;
    }
    let Some(site) = Site::new() else { return };
    let registry = site.registry(&Access::Open);
    let (_, port) = registry.host.split_once(':').unwrap();
    let fresh = Home::new();
    let mut terminal = Terminal::new();
    let reference = format!("docker://localhost:{port}/a/b:t");
    let mut command = fresh.run();
    let started =
        terminal.start(command.args(["--image", &reference, "--", "cat", "/etc/marker"]).env("TERM", "xterm"));
    let ran = terminal.finish(started).expect_success();
    for digest in &site.written.layers {
        assert!(ran.stdout.contains(&format!("{} [", &digest[7..19])), "{ran}");
    }
    assert!(ran.stdout.contains(" MiB / "), "{ran}");
    assert!(ran.stdout.trim_end().ends_with("from the registry"), "{ran}");
}

#[test]
fn a_token_service_is_asked_for_this_repository_alone() {
    if !installed(&["openssl"]) {
        return;
    }
    let Some(site) = Site::new() else { return };
    let tokens = TokenService::start(site.home.path());
    let registry = site.registry(&Access::Tokens(&tokens));
    let denied = run(&mut site.pull(&registry.host)).expect_code(125);
    denied.expect_one_error_line(&["denies access to `a/b`; log in with"]);
    site.write("run/containers/auth.json", stored(&registry.host, PASSWORD));
    assert_eq!(run(&mut site.pull(&registry.host)).expect_silent_success().stdout, site.digest());
    let asked = tokens.asked();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert!(asked.iter().all(|target| target.contains("scope=repository:a/b:pull")), "{asked:?}");
}

#[test]
fn a_mirror_serves_a_registry_that_cannot_be_reached_and_a_blocked_one_is_not_asked() {
    let Some(site) = Site::new() else { return };
    let registry = site.registry(&Access::Open);
    let conf = |more: &str| {
        let text = format!(
            "[[registry]]\nprefix = 'registry.invalid'\nlocation = 'registry.invalid'\n{more}\n\
             [[registry.mirror]]\nlocation = '{}'\n",
            registry.host
        );
        site.write("config/containers/registries.conf", text);
    };
    conf("");
    assert_eq!(run(&mut site.pull("registry.invalid")).expect_silent_success().stdout, site.digest());
    conf("blocked = true");
    let blocked = run(&mut site.pull("registry.invalid")).expect_code(125);
    blocked.expect_one_error_line(&["`registry.invalid/a/b` is blocked by `", "/config/containers/registries.conf`"]);
}

#[test]
fn two_pulls_at_once_download_once() {
    let Some(site) = Site::new() else { return };
    let registry = site.registry(&Access::Open);
    let pulls: Vec<_> = (0..2).map(|_| Started::new(&mut site.pull(&registry.host))).collect();
    for pull in pulls {
        assert_eq!(pull.finish().expect_success().stdout, site.digest());
    }
    for layer in &site.written.layers {
        assert_eq!(registry.served(&format!("/v2/a/b/blobs/{layer}"), 200), 1, "{}", registry.log());
    }
    assert_eq!(site.partials(), [] as [PathBuf; 0]);
}

/// A pull of which two megabytes have come, over a wire that then falls silent.
fn stalled(site: &Site, registry: &Registry) -> (Wire, Started) {
    let wire = Wire::new(&registry.host, 2 << 20);
    let pull = Started::new(&mut site.pull(&wire.host));
    wait_until_stalled(site);
    (wire, pull)
}

fn wait_until_stalled(site: &Site) {
    let some = || site.partial().is_some_and(|path| path.metadata().is_ok_and(|file| file.len() > 1 << 20));
    assert!(wait_until(Duration::from_secs(60), some));
}

/// A pull that ends, and asks only for what did not come before.
fn goes_on(site: &Site, registry: &Registry) {
    assert_eq!(run(&mut site.pull(&registry.host)).expect_success().stdout, site.digest());
    let noise = format!("/v2/a/b/blobs/{}", site.written.layers[1]);
    assert_eq!(registry.served(&noise, 206), 1, "{}", registry.log());
    assert_eq!(site.partials(), [] as [PathBuf; 0]);
}

#[test]
fn a_pull_that_was_killed_goes_on_where_it_ended() {
    let Some(site) = Site::new() else { return };
    let registry = site.registry(&Access::Open);
    // Dropped, the pull is killed.
    drop(stalled(&site, &registry));
    goes_on(&site, &registry);
}

#[test]
fn a_pull_that_waits_for_a_silent_registry_is_interrupted_at_once() {
    let Some(site) = Site::new() else { return };
    let registry = site.registry(&Access::Open);
    let (wire, pull) = stalled(&site, &registry);
    let begin = Instant::now();
    pull.signal(Signal::INT);
    drop(pull.finish().expect_code(130));
    // Far less than a silent server is given.
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    drop(wire);
    goes_on(&site, &registry);
}

/// Ctrl-C, pressed while bars are drawn: what is left is what the next pull goes on from.
#[test]
fn ctrl_c_on_a_terminal_ends_a_pull_and_leaves_a_clean_store() {
    let Some(site) = Site::new() else { return };
    let registry = site.registry(&Access::Open);
    let wire = Wire::new(&registry.host, 2 << 20);
    let mut terminal = Terminal::new();
    let mut command = site.home.agentd();
    command.arg("pull").arg(format!("{}/a/b:t", wire.host)).env("TERM", "xterm");
    let pull = terminal.start(&command);
    wait_until_stalled(&site);
    terminal.wait_for(&format!("{} [", &site.written.layers[1][7..19]));
    terminal.press(b"\x03");
    let ran = terminal.finish(pull).expect_code(130);
    assert!(ran.stdout.contains("agentd: interrupted: the layers that were finished are kept"), "{ran}");
    let tmp = fs::read_dir(site.home.path().join("data/agentd/store/tmp")).unwrap();
    let left: Vec<_> = tmp.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(!left.is_empty() && left.iter().all(|name| name.ends_with(".partial")), "{left:?}");
    drop(wire);
    goes_on(&site, &registry);
}

#[test]
fn a_layer_is_unpacked_while_the_rest_of_it_is_still_to_come() {
    let Some(site) = Site::new() else { return };
    let registry = site.registry(&Access::Open);
    let (_wire, _pull) = stalled(&site, &registry);
    let written = || {
        let noise = site.home.paths().into_iter().find(|path| path.ends_with("fs/noise"));
        noise.and_then(|path| site.home.path().join(path).metadata().ok()).map_or(0, |file| file.len())
    };
    assert!(wait_until(Duration::from_secs(60), || written() > 1 << 20), "{} bytes of it are unpacked", written());
    let whole = oci::Written::blob(&site.home.path().join("image"), &site.written.layers[1]);
    let come = site.partial().unwrap().metadata().unwrap().len();
    assert!(come < whole.metadata().unwrap().len(), "{come}");
}

/// What was kept is believed no more than what comes now: a byte of it is another one, or all of the rest is.
#[test]
fn a_damaged_partial_download_fails_one_pull_and_the_next_begins_anew() {
    let Some(site) = Site::new() else { return };
    let registry = site.registry(&Access::Open);
    let noise = oci::Written::blob(&site.home.path().join("image"), &site.written.layers[1]);
    let size = usize::try_from(noise.metadata().unwrap().len()).unwrap();
    for is_as_long in [false, true] {
        drop(stalled(&site, &registry));
        let partial = site.partial().unwrap();
        let mut bytes = fs::read(&partial).unwrap();
        bytes[1 << 19] ^= 0xff;
        if is_as_long {
            bytes.resize(size, 0);
        }
        fs::write(&partial, bytes).unwrap();
        let failed = run(&mut site.pull(&registry.host)).expect_code(125);
        failed.expect_one_error_line(&[&site.written.layers[1], "is corrupt: its bytes hash to"]);
        assert_eq!(site.partial(), None);
        assert_eq!(run(&mut site.pull(&registry.host)).expect_silent_success().stdout, site.digest());
        assert_eq!(site.partials(), [] as [PathBuf; 0]);
        drop(run(site.home.agentd().args(["prune", "--all"])).expect_success());
    }
}

#[test]
fn a_partial_download_is_kept_for_a_week_and_pruned_at_once() {
    let Some(site) = Site::new() else { return };
    let registry = site.registry(&Access::Open);
    drop(stalled(&site, &registry));
    let partial = site.partial().unwrap();
    for (days, is_kept) in [(6, true), (8, false)] {
        let then = SystemTime::now() - Duration::from_secs(days * 24 * 3600);
        fs::File::options().append(true).open(&partial).unwrap().set_modified(then).unwrap();
        // The pull of any other image looks after what is left.
        let other = site.home.path().join(format!("other-{days}"));
        let layer = Layer::Entries(vec![Entry::file("days", days.to_string())]);
        Image::new().layer(layer, Compression::Gzip).write(&other, "t").unwrap();
        let name = format!("oci:{}:t", other.display());
        drop(run(site.home.agentd().args(["pull", "-q", &name])).expect_silent_success());
        assert_eq!(partial.metadata().is_ok(), is_kept, "after {days} days");
    }
    drop(stalled(&site, &registry));
    let partials = site.partials();
    let left: Vec<&str> = partials.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    let pruned = run(site.home.agentd().args(["prune", "--format", "json"])).expect_success();
    let pruned: Value = serde_json::from_str(&pruned.stdout).unwrap();
    let downloads = pruned["downloads"].as_array().unwrap().iter();
    let mut named: Vec<&str> = downloads.map(|download| download["name"].as_str().unwrap()).collect();
    named.sort_unstable();
    assert_eq!(named, left);
    assert_eq!(site.partials(), [] as [PathBuf; 0]);
}

/// A static C library that opened the modules of another would fail, or worse. `absent` is none it could find.
#[test]
fn host_names_need_no_module_of_the_hosts_c_library() {
    if !require(Feature::Userns) {
        return;
    }
    let Some(site) = Site::new() else { return };
    let registry = site.registry(&Access::Open);
    let port = registry.host.rsplit(':').next().unwrap();
    let nsswitch = site.write("nsswitch.conf", "hosts: absent\n");
    let hosts = site.write("hosts", "127.0.0.1 registry.test\n");
    site.write(
        "config/containers/registries.conf",
        format!("[[registry]]\nlocation = 'registry.test:{port}'\ninsecure = true\n"),
    );
    let pull = site.pull(&format!("registry.test:{port}"));
    let mut inside = Command::new("unshare");
    inside.args([
        "-rm",
        "sh",
        "-c",
        "mount --bind $0 /etc/nsswitch.conf && mount --bind $1 /etc/hosts && shift && exec \"$@\"",
    ]);
    inside.arg(nsswitch).arg(hosts).arg(pull.get_program()).args(pull.get_args());
    inside.env_clear().envs(pull.get_envs().filter_map(|(name, value)| Some((name, value?))));
    assert_eq!(run(&mut inside).expect_silent_success().stdout, site.digest());
}

#[test]
fn what_is_pulled_is_known_by_its_name() {
    let Some(site) = Site::new() else { return };
    let registry = site.registry(&Access::Open);
    assert_eq!(run(&mut site.pull(&registry.host)).expect_silent_success().stdout, site.digest());
    let name = format!("{}/a/b:t", registry.host);
    drop(registry);
    let listed = run(site.home.agentd().args(["images", "--format", "json"])).expect_success();
    let listed: Value = serde_json::from_str(&listed.stdout).unwrap();
    assert!(listed.to_string().contains(&name), "{listed}");
    if require(Feature::Userns) {
        // The registry is gone, and nobody asks for it.
        let ran = run(site.home.run().args(["-q", "--image", &name, "--", "cat", "/etc/marker"]));
        assert_eq!(ran.expect_silent_success().stdout, "from the registry\n");
    }
}
