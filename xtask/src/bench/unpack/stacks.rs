//! `agentd run` of `true` over 1, 10 and 40 layers that are unpacked already: what a layer costs a start.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Result, ensure};

use super::disk::Disk;
use super::image::{self, STACKS};
use crate::account::Account;

const RUNS: usize = 200;

/// Milliseconds from spawn to exit.
#[derive(Debug)]
pub(super) struct Stack {
    pub(super) layers: usize,
    pub(super) times: Vec<f64>,
}

pub(super) fn measure(account: &Account, scratch: &Path) -> Result<Vec<Stack>> {
    let images = image::stacks(&scratch.join("stacks"))?;
    let disk = Disk::new(scratch, account)?;
    let run = |image: &Path| {
        let mut command = account.command(scratch.join("agentd"));
        command.args(["run", "--image"]).arg(format!("oci:{}", image.display())).args(["--", "/bin/true"]);
        command.env("XDG_DATA_HOME", disk.place().join("data")).env("XDG_STATE_HOME", disk.place().join("state"));
        command.current_dir(disk.place()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let time = |mut command: Command| -> Result<f64> {
        let start = Instant::now();
        let status = command.status()?;
        ensure!(status.success(), "{command:?}: {status}");
        Ok(start.elapsed().as_secs_f64() * 1e3)
    };
    let mut stacks: Vec<Stack> = STACKS.iter().map(|layers| Stack { layers: *layers, times: Vec::new() }).collect();
    for round in 0..=RUNS {
        // Forwards and backwards in turn: nobody always follows the same one.
        let order: Vec<usize> = if round % 2 == 0 { (0..3).collect() } else { (0..3).rev().collect() };
        for index in order {
            let took = time(run(&images[index].1))?;
            // The first one unpacks.
            if round > 0 {
                stacks[index].times.push(took);
            }
        }
    }
    Ok(stacks)
}
