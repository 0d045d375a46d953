//! What images cost in processor time: beside programs that do the same by parts, and a start by its number of layers.
//! `cargo xtask bench unpack` measures both on a quiet machine.

use std::fs;
use std::process::Command;
use std::time::Duration;

use agentd_tests::oci::{Compression, Entry, Image, Layer};
use agentd_tests::unpackers::installed;
use agentd_tests::{Feature, Home, cpu_time, require, run};

#[test]
fn a_layer_costs_little_more_than_its_parts() {
    if !require(Feature::Userns) || !installed(&["openssl", "gzip", "zstd", "tar"]) {
        return;
    }
    let home = Home::new();
    let at = home.path().display();
    let sh = |script: &str| {
        let mut command = Command::new("sh");
        command.args(["-euc", script]);
        command
    };
    // Some 18 MB in 1,125 files, of digits: they compress to a third.
    let make = "mkdir tree; head -c 6000000 /dev/urandom | od -An -v -tx1 | split -b 16000 -a 4 - tree/; \
                tar -C tree -cf a .; gzip -kS .gz a; zstd -q a -o a.zst";
    let _made = run(&mut sh(&format!("cd {at}; {make}"))).expect_success();
    for (compression, suffix, inflate) in
        [(Compression::Gzip, "gz", "gzip -dc"), (Compression::Zstd, "zst", "zstd -dc")]
    {
        let read = |name: &str| fs::read(home.path().join(name)).unwrap();
        let layer = Layer::Stored { blob: read(&format!("a.{suffix}")), archive: read("a") };
        let image = home.path().join(suffix);
        let _written = Image::new().layer(layer, compression).write(&image, "latest").unwrap();
        let mut costs: Vec<(Duration, Duration)> = Vec::new();
        // Processor time is dearer while the core's other thread has work: the least of each counts, of as many as it takes.
        let is_cheap = (0..10).any(|round| {
            let fresh = home.path().join(format!("{suffix}-{round}"));
            fs::create_dir(&fresh).unwrap();
            let parts = [
                format!("exec openssl dgst -sha256 a a.{suffix}"),
                format!("exec {inflate} a.{suffix}"),
                format!("exec tar -C {} -xf a", fresh.display()),
            ];
            let parts = parts.iter().map(|part| cpu_time(&sh(&format!("cd {at}; {part}")), 1)).sum();
            let mut pull = home.agentd();
            pull.env("XDG_DATA_HOME", home.path().join(format!("data-{suffix}-{round}")));
            costs.push((cpu_time(pull.args(["pull", "-q"]).arg(format!("oci:{}", image.display())), 1), parts));
            fs::remove_dir_all(fresh).unwrap();
            // On a quiet machine it is less than all of them.
            let least =
                |which: fn(&(Duration, Duration)) -> Duration| costs.iter().map(which).min().unwrap_or_default();
            least(|cost| cost.0) * 4 < least(|cost| cost.1) * 5
        });
        assert!(is_cheap, "{suffix}: to pull, and the digests, {inflate} and tar by themselves: {costs:?}");
    }
}

#[test]
fn forty_layers_cost_a_start_little_more_than_one() {
    if !require(Feature::Userns) || !require(Feature::Busybox) {
        return;
    }
    let home = Home::new();
    let image = home.path().join("layers");
    for layers in [1, 40] {
        let more = (1..layers).fold(agentd_tests::busybox(), |image, number| {
            image.layer(Layer::Entries(vec![Entry::file(&format!("more/{number}"), "x")]), Compression::Plain)
        });
        let _written = more.write(&image, &layers.to_string()).unwrap();
    }
    let start = |layers: usize| {
        let mut command = home.run();
        command.args(["-q", "--rm", "--image", &format!("oci:{}:{layers}", image.display()), "--", "true"]);
        command
    };
    for layers in [1, 40] {
        let _pulled = run(&mut start(layers)).expect_success();
    }
    home.wait_until_written_back();
    let mut costs = Vec::new();
    // Processor time is dearer while the core's other thread has work, so one of some attempts is enough.
    let is_cheap = (0..5).any(|_| {
        let both = [(); 10].map(|()| [1, 40].map(|layers| cpu_time(&start(layers), 10)));
        let [one, forty] = [0, 1].map(|which| both.iter().map(|times| times[which]).min().unwrap());
        costs.push((one, forty));
        forty < one * 5 / 4
    });
    assert!(is_cheap, "ten starts of one layer, and of forty: {costs:?}");
}
