//! The ordinary user that tests and measurements run as when root started them.
//!
//! Invariant: a command of [`Account::command`] has that user's ids and groups, his own HOME and runtime directory, and
//! nothing of root's environment but PATH.

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

const NAME: &str = "agentd-test";

/// A user account of this machine.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    home: PathBuf,
    runtime: PathBuf,
}

/// Whether this process is root.
pub(crate) fn am_root() -> Result<bool> {
    Ok(std::fs::metadata("/proc/self").context("look at /proc/self")?.uid() == 0)
}

impl Account {
    /// Finds the account, or creates it. Root only.
    pub(crate) fn ensure() -> Result<Self> {
        if Self::find()?.is_none() {
            println!("creating the user {NAME}");
            succeed(Command::new("useradd").args(["--create-home", "--shell", "/bin/bash", NAME]))?;
        }
        let account = Self::find()?.with_context(|| format!("useradd made no user {NAME}"))?;
        // No login session made one: a tmpfs directory of his own, as pam_systemd would give him.
        if let Err(error) = std::fs::DirBuilder::new().mode(0o700).create(&account.runtime) {
            ensure!(error.kind() == std::io::ErrorKind::AlreadyExists, "create {}: {error}", account.runtime.display());
        }
        account.give(&account.runtime)?;
        Ok(account)
    }

    fn find() -> Result<Option<Self>> {
        let passwd = std::fs::read_to_string("/etc/passwd").context("read /etc/passwd")?;
        Ok(passwd.lines().find_map(Self::parse))
    }

    fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split(':').collect();
        let [NAME, _, uid, gid, _, home, _] = fields[..] else { return None };
        let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
        Some(Self { uid, gid, home: home.into(), runtime: format!("/dev/shm/{NAME}-runtime").into() })
    }

    /// Makes `path` his.
    pub(crate) fn give(&self, path: &Path) -> Result<()> {
        std::os::unix::fs::chown(path, Some(self.uid), Some(self.gid))
            .with_context(|| format!("give {} to {NAME}", path.display()))
    }

    /// `program` as this user, in his home.
    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("setpriv");
        command.arg(format!("--reuid={}", self.uid)).arg(format!("--regid={}", self.gid)).arg("--init-groups");
        command.arg("--").arg(program.as_ref());
        command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        command.env("HOME", &self.home).env("USER", NAME).env("LOGNAME", NAME).env("LANG", "C.UTF-8");
        command.env("XDG_RUNTIME_DIR", &self.runtime).current_dir(&self.home);
        command
    }

    /// Whether this user can enter the directory `path`.
    pub(crate) fn can_enter(&self, path: &Path) -> Result<bool> {
        let test = self.command("test").args(["-x".as_ref(), path]).status().context("start setpriv")?;
        Ok(test.success())
    }
}

/// Runs `command` to its end, its output shown; an error unless it succeeds.
pub(crate) fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("start {command:?}"))?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_name_is_the_account() {
        let account = Account::parse("agentd-test:x:1001:1002::/home/agentd-test:/bin/bash").unwrap();
        assert_eq!((account.uid, account.gid), (1001, 1002));
        assert!(Account::parse("agentd-test2:x:1:1::/:/bin/sh").is_none());
        assert!(Account::parse("agentd-test:x:1001").is_none());
    }
}
