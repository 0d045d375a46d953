//! The workspace in memory: the text files that rules look at, and cargo's view of the packages.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};

use crate::workspace::{self, Metadata};

#[derive(Debug, Default)]
pub(super) struct Tree {
    /// .rs, .md and .toml files.
    pub(super) files: Vec<File>,
    /// Every path below the root, directories too, for links.
    pub(super) paths: BTreeSet<String>,
    pub(super) metadata: Metadata,
}

#[derive(Debug)]
pub(super) struct File {
    /// Relative to the root.
    pub(super) path: String,
    pub(super) text: String,
}

impl Tree {
    pub(super) fn read() -> Result<Self> {
        let mut tree = Self { metadata: workspace::metadata()?, ..Self::default() };
        tree.walk(workspace::root(), "")?;
        tree.files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(tree)
    }

    fn walk(&mut self, directory: &Path, prefix: &str) -> Result<()> {
        let listed = std::fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
        for entry in listed {
            let entry = entry.with_context(|| format!("list {}", directory.display()))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = format!("{prefix}{name}");
            let kind = entry.file_type().with_context(|| format!("look at {path}"))?;
            if kind.is_dir() {
                // Build output and what tools keep for themselves; .ci and .cargo are ours.
                if path == "target" || path == ".git" || path == ".demo" {
                    continue;
                }
                self.walk(&entry.path(), &format!("{path}/"))?;
            } else if kind.is_file() && [".rs", ".md", ".toml"].iter().any(|ending| name.ends_with(ending)) {
                let text = std::fs::read_to_string(entry.path()).with_context(|| format!("read {path}"))?;
                self.files.push(File { path: path.clone(), text });
            }
            self.paths.insert(path);
        }
        Ok(())
    }

    pub(super) fn with_ending(&self, ending: &'static str) -> impl Iterator<Item = &File> {
        self.files.iter().filter(move |file| file.path.ends_with(ending))
    }

    pub(super) fn text(&self, path: &str) -> Option<&str> {
        self.files.iter().find(|file| file.path == path).map(|file| file.text.as_str())
    }
}
