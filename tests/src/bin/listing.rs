//! Prints the listing (`agentd_tests::listing`) of the box it runs in, mounts left out: `[MOUNT POINTS, LISTING]`.

use std::path::Path;

use agentd_tests::listing;
use anyhow::{Context, Result};

#[expect(clippy::print_stdout, reason = "the listing is this program's output")]
fn main() -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("read the mounts")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    let points: Vec<String> = points.map(|point| point.trim_start_matches('/').to_owned()).collect();
    let points: Vec<String> = points.into_iter().filter(|point| !point.is_empty()).collect();
    let listing = listing::of(Path::new("/"), &points).context("list the root")?;
    println!("{}", serde_json::to_string(&(points, listing))?);
    Ok(())
}
