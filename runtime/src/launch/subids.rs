//! `--userns subids`: the user's ranges of subordinate ids, and the host's helpers that may map them (docs/adr/0021).
//!
//! The map is the one that rootless podman makes: root of the box is the user, so what lies in the store and in a workspace is
//! root's inside; ids from 1 on come from the ranges, in the order of the files.
//!
//! Invariant: a range that the files do not give to this user is in no plan; newuidmap(1) looks at them again.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use agentd_init::plan::{IdRange, SubIds};
use rustix::fs::{Access, access};
use rustix::process::{getegid, geteuid};
use serde::{Deserialize, Serialize};

/// Where the helpers lie; set-user-ID programs are not looked for in directories that a variable names.
const PLACES: [&str; 3] = ["/usr/bin", "/usr/local/bin", "/run/wrappers/bin"];

/// Bytes of each of the host's tables that are read.
const MOST_BYTES: u64 = 4 << 20;

/// Rows of a map (user_namespaces(7) has room for 340), and how many ids they hold together: those of 16 bits.
const MOST_RANGES: usize = 32;
const MOST_IDS: u32 = 65_536;

/// Several ids that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SubIdError {
    /// Root's.
    #[error(
        "--userns subids is for ordinary users: the box's root would be this machine's, with capabilities over its files; leave it out, or run agentd as an ordinary user"
    )]
    OfRoot,
    /// None are given.
    #[error(
        "--userns subids: {file} has no range for {user}; an administrator gives one with `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}` (a range that is nobody else's there), or use --fake-root, which needs none"
    )]
    NoRange {
        /// Where there is none.
        file: &'static str,
        /// Whose.
        user: String,
    },
    /// No helper.
    #[error(
        "--userns subids: {0} is in none of /usr/bin, /usr/local/bin and /run/wrappers/bin; install it (Debian: uidmap, Fedora: shadow-utils), or use --fake-root, which needs none"
    )]
    NoHelper(&'static str),
    /// A table of the host.
    #[error("--userns subids: cannot read {file}")]
    Read {
        /// Which.
        file: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// The host's programs that map ranges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Helpers {
    /// newuidmap(1).
    pub uids: PathBuf,
    /// newgidmap(1).
    pub gids: PathBuf,
}

/// What this user may map, and by which programs.
pub(super) fn find() -> Result<(SubIds, Helpers), SubIdError> {
    if geteuid().is_root() {
        return Err(SubIdError::OfRoot);
    }
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let passwd = table("/etc/passwd")?;
    let name = name_of(&passwd, uid);
    let given = |file, own| match ranges(&table(file)?, uid, name, own) {
        ranges if ranges.is_empty() => {
            Err(SubIdError::NoRange { file, user: name.map_or_else(|| uid.to_string(), str::to_owned) })
        }
        ranges => Ok(ranges),
    };
    let helper = |program| {
        let mut places = PLACES.iter().map(|place| Path::new(place).join(program));
        places.find(|path| access(path, Access::EXEC_OK).is_ok()).ok_or(SubIdError::NoHelper(program))
    };
    let helpers = Helpers { uids: helper("newuidmap")?, gids: helper("newgidmap")? };
    Ok((SubIds { uids: given("/etc/subuid", uid)?, gids: given("/etc/subgid", gid)? }, helpers))
}

fn table(file: &'static str) -> Result<String, SubIdError> {
    let mut bytes = Vec::new();
    match File::open(file).and_then(|table| table.take(MOST_BYTES).read_to_end(&mut bytes)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(SubIdError::Read { file, source: error }),
        _ => Ok(String::from_utf8_lossy(&bytes).into_owned()),
    }
}

/// The name of a user in passwd(5).
pub(crate) fn name_of(passwd: &str, uid: u32) -> Option<&str> {
    let uid = uid.to_string();
    passwd.lines().find(|line| line.split(':').nth(2) == Some(&uid)).and_then(|line| line.split(':').next())
}

/// The ranges of a user in subuid(5) or subgid(5), by number or name, in a row from id 1 on. Rows that are none, and those
/// that hold the user's `own` id (which is mapped already), are left out.
pub(crate) fn ranges(table: &str, uid: u32, name: Option<&str>, own: u32) -> Vec<IdRange> {
    let number = uid.to_string();
    let mut ranges: Vec<IdRange> = Vec::new();
    let mut inside = 1;
    for line in table.lines() {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let [owner, outside, count] = fields[..] else { continue };
        let (Ok(outside), Ok(count)) = (outside.parse::<u32>(), count.parse::<u32>()) else { continue };
        // The last id of all is none (-1).
        let Some(end) = outside.checked_add(count).filter(|_| owner == number || Some(owner) == name) else { continue };
        let overlaps = |known: &IdRange| outside < known.outside + known.count && known.outside < end;
        let count = count.min(MOST_IDS - (inside - 1));
        if count == 0 || outside == 0 || (outside..end).contains(&own) || ranges.iter().any(overlaps) {
            continue;
        }
        ranges.push(IdRange { inside, outside, count });
        inside += count;
        if ranges.len() == MOST_RANGES {
            break;
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_are_found_by_name_and_by_number_and_lie_in_a_row() {
        let range = |inside, outside, count| IdRange { inside, outside, count };
        for (table, expected) in [
            ("ann:100000:65536\n", vec![range(1, 100_000, 65_536)]),
            ("1000:100000:10\nbob:1:9\nann:200000:5\n", vec![range(1, 100_000, 10), range(11, 200_000, 5)]),
            ("bob:100000:65536\n", vec![]),
            ("ann:100000:70000\nann:300000:5\n", vec![range(1, 100_000, 65_536)]),
            ("ann:x:1\nann:100000\nann:1:2:3\nann:4294967295:2\nann:5:0\n\n# ann:1:2\n", vec![]),
            ("ann:990:20\nann:0:5\nann:5000:2\n", vec![range(1, 5000, 2)]),
            ("ann:5000:10\nann:5005:10\n", vec![range(1, 5000, 10)]),
        ] {
            assert_eq!(ranges(table, 1000, Some("ann"), 1000), expected, "{table:?}");
        }
        assert_eq!(name_of("root:x:0:0::/:\nann:x:1000:1000::/:\n", 1000), Some("ann"));
        assert_eq!(name_of("x\n::\n", 1000), None);
    }

    proptest! {
        /// Whatever the table says, the map is one that the kernel takes, and holds nothing but rows of this user.
        #[test]
        fn any_table_gives_a_map_or_none(rows in proptest::collection::vec(("(ann|1000|bob|)", any::<u32>(), any::<u32>()), 0..50)) {
            let table: String = rows.iter().map(|(owner, first, count)| format!("{owner}:{first}:{count}\n")).collect();
            let found = ranges(&table, 1000, Some("ann"), 1000);
            let mut next = 1;
            for (at, range) in found.iter().enumerate() {
                prop_assert!(range.count > 0 && range.inside == next);
                next += range.count;
                let end = range.outside.checked_add(range.count).unwrap();
                prop_assert!(!(range.outside..end).contains(&1000) && range.outside > 0);
                prop_assert!(found[..at].iter().all(|other| end <= other.outside || other.outside + other.count <= range.outside));
                let is_given = |(owner, first, count): &(String, u32, u32)| owner != "bob" && !owner.is_empty() && *first == range.outside && range.count <= *count;
                prop_assert!(rows.iter().any(is_given));
            }
            prop_assert!(next - 1 <= MOST_IDS);
        }
    }
}
