//! What it costs in processor time to unpack an image, beside programs that do the same by parts. `cargo xtask bench unpack`
//! measures it on a quiet machine.

use std::fs;
use std::process::Command;

use agentd_tests::oci::{Compression, Image, Layer};
use agentd_tests::unpackers::installed;
use agentd_tests::{Feature, Home, costs_below, cpu_time, require, run};

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
        let mut rounds = 0;
        let pull = || {
            rounds += 1;
            let mut pull = home.agentd();
            pull.env("XDG_DATA_HOME", home.path().join(format!("data-{suffix}-{rounds}")));
            cpu_time(pull.args(["pull", "-q"]).arg(format!("oci:{}", image.display())), 1)
        };
        let parts = || {
            let fresh = home.path().join("fresh");
            fs::create_dir(&fresh).unwrap();
            let parts = [
                format!("openssl dgst -sha256 a a.{suffix}"),
                format!("{inflate} a.{suffix}"),
                "tar -C fresh -xf a".into(),
            ];
            let parts = parts.iter().map(|part| cpu_time(&sh(&format!("cd {at}; exec {part}")), 1)).sum();
            fs::remove_dir_all(fresh).unwrap();
            parts
        };
        // On a quiet machine it is less than all of them.
        let held = costs_below(1.25, pull, parts);
        held.unwrap_or_else(|costs| panic!("{suffix}, and the digests, {inflate} and tar by themselves: {costs:?}"));
    }
}
