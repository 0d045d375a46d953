//! What a layer costs each start, counted in system calls and in processor time: a stack of forty starts as one of three
//! does, but for them.

use agentd_tests::oci::{Compression, Entry, Layer};
use agentd_tests::{Feature, Home, busybox, costs_below, cpu_time, require, run, traced};

/// What is asked of a layer, once a start: what the store knows of it and which directory it is (the plan); that it is
/// still the same, and that it is the next one of the overlay (PID 1: open, look, enter, add, close).
const CALLS_PER_LAYER: usize = 7;

#[test]
fn userns_a_layer_costs_a_start_a_handful_of_system_calls() {
    if !require(Feature::Userns) || !require(Feature::Busybox) {
        return;
    }
    let home = Home::new();
    let mut counts = Vec::new();
    for layers in [20, 60] {
        let layout = home.path().join(format!("stack-{layers}"));
        let image = (1..layers).fold(busybox(), |image, number| {
            // Every one has a say in where the users are found.
            let entries = vec![Entry::dir("etc"), Entry::file(&format!("etc/layer-{number}"), "a layer\n")];
            image.layer(Layer::Entries(entries), Compression::Plain)
        });
        image.write(&layout, "latest").unwrap();
        let image = format!("oci:{}", layout.display());
        let warm = run(home.run().args(["-q", "--image", &image, "--", "ls", "etc"])).expect_success();
        assert_eq!(warm.stdout.lines().filter(|name| name.starts_with("layer-")).count(), layers - 1, "{warm}");
        // Nobody waits for the layers to be on disk, and a start before they are looks after those that are not.
        home.wait_until_written_back();
        let mut agentd = home.run();
        agentd.args(["-q", "--image", &image, "--", "true"]);
        let Some(trace) = traced(&agentd, &[], &home) else { return };
        // A debug build asks about a descriptor before it closes it; a wait may be told in two parts.
        let is_call = |line: &&str| line.contains('(') && !line.contains("F_GETFD") && !line.contains(" resumed>");
        counts.push(trace.lines().filter(is_call).count());
    }
    // The plan and the record name each layer: a longer text is read and written in a few more parts, and waits differ.
    let slack = 40;
    assert!(counts[1] > counts[0], "{counts:?}");
    assert!(counts[1] - counts[0] <= 40 * CALLS_PER_LAYER + slack, "{counts:?}");
}

/// `cargo xtask bench unpack` measures how much more it is on a quiet machine: less than half a millisecond.
#[test]
fn userns_forty_layers_cost_a_start_little_more_than_one() {
    if !require(Feature::Userns) || !require(Feature::Busybox) {
        return;
    }
    let home = Home::new();
    let image = home.path().join("layers");
    for layers in [1, 40] {
        let more = (1..layers).fold(busybox(), |image, number| {
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
    // Ten starts are counted by too few ticks of the clock to tell a fifth.
    let held = costs_below(1.3, || cpu_time(&start(40), 40), || cpu_time(&start(1), 40));
    held.unwrap_or_else(|costs| panic!("forty starts of forty layers, and of one: {costs:?}"));
}
