//! `agentd generate systemd`: the unit of a job.
//!
//! Invariant: there are two units, those in `runtime/systemd`. What is printed is one of them with other words in the lines that
//! say what is started; each word is one word to systemd too, whatever is in it.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ArgMatches;
use clap::parser::ValueSource;
use rustix::process::geteuid;

use super::environment::Directories;
use super::say;
use crate::job::id::JobName;
use crate::launch::plan::Plan;

/// The machine's unit, and a user's.
const SYSTEM: &str = include_str!("../../systemd/agentd@.service");
const USER: &str = include_str!("../../systemd/user/agentd@.service");

/// Flags that are about how it was started then.
const NOT_AGAIN: [&str; 8] = ["detach", "interactive", "tty", "dry_run", "format", "name", "replace", "quiet"];

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  agentd generate systemd fix > ~/.config/systemd/user/agentd-fix.service   # as the job fix was started
  agentd generate systemd > ~/.config/systemd/user/agentd@.service          # for every ~/.config/agentd/jobs/NAME.toml
  systemctl --user daemon-reload && systemctl --user enable --now agentd@NAME && loginctl enable-linger")]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// A systemd unit
    ///
    /// Of a job: what `agentd run` was told then. Without one the template: agentd@NAME runs the job file NAME.toml of
    /// ~/.config/agentd/jobs, or of /etc/agentd/jobs with --system, there as user agentd.
    Systemd(Unit),
}

#[derive(Debug, clap::Args)]
#[group(skip)]
struct Unit {
    /// A job, by name, id or the beginning of one
    #[arg(value_name = "JOB")]
    of: Option<String>,
    /// A job file, as for `agentd run --job`
    #[arg(long, value_name = "FILE", conflicts_with = "of")]
    job: Option<PathBuf>,
    /// What the unit calls its job [default: the job's or the file's name]
    #[arg(long)]
    name: Option<JobName>,
    /// For the machine's manager, not yours; root's default
    #[arg(long)]
    system: bool,
}

/// Runs the verb.
pub(super) fn run(args: Args) -> Result<()> {
    let What::Systemd(unit) = args.what;
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    let is_system = unit.system || geteuid().is_root();
    let start = match (&unit.of, &unit.job) {
        (Some(job), _) => Start::of_job(job, unit.name)?,
        (None, Some(file)) => Start::of_file(file, unit.name)?,
        (None, None) if unit.name.is_some() => {
            bail!("--name is for the unit of one job: name it, or a file with --job")
        }
        (None, None) => return print(&template(is_system, &program)?, &program),
    };
    for variable in &start.from_environment {
        say(&format!(
            "the job takes {variable} from its environment: give the unit an Environment= or EnvironmentFile="
        ));
    }
    print(&start.unit(is_system, &program)?, &program)
}

fn print(text: &str, program: &Path) -> Result<()> {
    if is_hidden(text, program) {
        say(&format!(
            "{} is out of sight in this unit (ProtectHome=): install agentd in /usr/local/bin, and ask that one for the unit",
            program.display()
        ));
    }
    Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
}

/// Whether a unit hides the program that it starts (systemd.exec(5), "ProtectHome").
fn is_hidden(unit: &str, program: &Path) -> bool {
    let hides = unit.lines().any(|line| line == "ProtectHome=yes");
    hides && ["/home", "/root", "/run/user"].iter().any(|place| program.starts_with(place))
}

fn template(is_system: bool, program: &Path) -> Result<String> {
    let text = if is_system { SYSTEM } else { USER };
    Ok(text.replace("ExecStart=/usr/bin/agentd ", &format!("ExecStart={} ", quoted(utf8(program)?))))
}

/// What a unit starts.
#[derive(Debug)]
struct Start {
    name: String,
    /// The words after `agentd run`, but for the name.
    words: Vec<String>,
    /// Where relative paths among them begin.
    directory: Option<PathBuf>,
    /// The file that has to be there.
    needs: Option<PathBuf>,
    /// Where the job writes, as far as that is known.
    writes: Option<PathBuf>,
    /// Variables of this program's that it used.
    from_environment: Vec<String>,
    /// Whether it is a job of root's own, not one of user agentd's.
    is_roots: bool,
}

impl Start {
    fn of_file(file: &Path, name: Option<JobName>) -> Result<Self> {
        let path = super::run::absolute(file, "job file")?;
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let name = match name {
            Some(name) => name,
            None => stem.parse().context("--name gives the job another name than its file's")?,
        };
        Ok(Self {
            name: name.as_str().to_owned(),
            words: vec!["--job".into(), utf8(&path)?.to_owned()],
            directory: None,
            needs: Some(path),
            writes: None,
            from_environment: Vec::new(),
            is_roots: false,
        })
    }

    fn of_job(job: &str, name: Option<JobName>) -> Result<Self> {
        let jobs = Directories::find()?.swept_jobs();
        let id = jobs.find(job)?;
        let name = name.or(jobs.read(&id)?.name).map_or_else(|| id.to_string(), |name| name.as_str().to_owned());
        if name == id.as_str() {
            bail!("job {id} has no name; --name gives the unit's job one");
        }
        let path = jobs.directory_of(&id).join("plan.json");
        let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let plan: Plan = serde_json::from_slice(&text).with_context(|| format!("{} is no plan", path.display()))?;
        let writes = plan.workspace().map(Path::to_owned);
        let asked = plan.asked.with_context(|| format!("how job {id} was asked for is not in its plan"))?;
        let matches =
            super::understood(&asked.words).with_context(|| format!("this agentd has no such words as job {id}'s"))?;
        let (words, from_environment) = words(&matches);
        Ok(Self {
            name,
            words,
            directory: asked.directory,
            needs: None,
            writes,
            from_environment,
            is_roots: geteuid().is_root(),
        })
    }

    fn unit(&self, is_system: bool, program: &Path) -> Result<String> {
        let (text, place) = match is_system {
            true => (SYSTEM, "/etc/systemd/system"),
            false => (USER, "~/.config/systemd/user"),
        };
        // What the template says of the user that its jobs have, a job of root's own does not.
        let is_of_user = |line: &str| {
            ["User=", "StateDirectory=", "WorkingDirectory=", "Environment=HOME=", "UMask=", "CapabilityBoundingSet="]
                .iter()
                .any(|key| line.starts_with(key))
        };
        let mut unit = format!("# {place}/agentd-{}.service\n", self.name);
        for line in text.lines().skip_while(|line| line.starts_with('#')) {
            let line = match line.split_once('=') {
                Some(("Description", _)) => format!("Description=agentd job {}", self.name),
                Some(("ConditionPathExists", _)) => match &self.needs {
                    Some(path) => format!("ConditionPathExists={}", utf8(path)?.replace('%', "%%")),
                    None => continue,
                },
                Some(("ExecStart", _)) => {
                    if let Some(directory) = &self.directory {
                        unit.push_str(&format!("WorkingDirectory={}\n", utf8(directory)?.replace('%', "%%")));
                    }
                    let words = ["run", "--name", &self.name, "--replace"].into_iter();
                    let words = words.chain(self.words.iter().map(String::as_str)).map(quoted).collect::<Vec<_>>();
                    format!("ExecStart={} {}", quoted(utf8(program)?), words.join(" "))
                }
                Some(("LogExtraFields", _)) => format!("LogExtraFields=AGENTD_UNIT_JOB={}", self.name),
                Some(("ReadWritePaths", paths)) => match &self.writes {
                    Some(path) => format!("ReadWritePaths={paths} {}", quoted(&format!("-{}", utf8(path)?))),
                    None => line.to_owned(),
                },
                Some(("ProtectHome", _)) if self.writes.is_some() => continue,
                Some(("User", _)) if self.is_roots => "StateDirectory=agentd".to_owned(),
                Some(("WorkingDirectory", _)) if self.directory.is_some() => continue,
                _ if self.is_roots && is_of_user(line) => continue,
                _ => line.to_owned(),
            };
            unit.push_str(&line);
            unit.push('\n');
        }
        Ok(unit)
    }
}

/// The flags and the command that were given, in words that say the same; and what they take from the environment.
fn words(matches: &ArgMatches) -> (Vec<String>, Vec<String>) {
    let (mut words, mut variables) = (Vec::new(), Vec::new());
    let description = super::run::description();
    let given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    for argument in description.get_arguments() {
        let id = argument.get_id().as_str();
        let (Some(long), true) = (argument.get_long(), given(id) && !NOT_AGAIN.contains(&id)) else { continue };
        if !argument.get_action().takes_values() {
            words.push(format!("--{long}"));
            continue;
        }
        for value in matches.get_raw(id).into_iter().flatten() {
            let value = value.to_string_lossy();
            match (long, value.split_once('=')) {
                ("env" | "secret" | "secret-env", None) => variables.push(value.clone().into_owned()),
                ("secret" | "secret-env", Some((_, source))) => {
                    variables.extend(source.strip_prefix("env:").map(str::to_owned));
                }
                _ => {}
            }
            words.push(format!("--{long}={value}"));
        }
    }
    if given("command") {
        words.push("--".to_owned());
        let command = matches.get_raw("command").into_iter().flatten();
        words.extend(command.map(|word| word.to_string_lossy().into_owned()));
    }
    (words, variables)
}

/// A word of a command line as systemd.service(5) reads it: without specifiers, variables and separators.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_@+=:,./-".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    let mut quoted = String::from("\"");
    for c in word.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '%' | '$' => quoted.extend([c, c]),
            '\n' => quoted.push_str("\\n"),
            c if c.is_ascii_control() => quoted.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("a unit is text, and {} is not", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(line: &[&str]) -> Start {
        let line: Vec<String> = line.iter().map(|word| (*word).to_owned()).collect();
        let (words, from_environment) = words(&super::super::understood(&line).unwrap());
        let (directory, needs, writes) = (None, None, Some(PathBuf::from("/srv/a repo")));
        Start { name: "fix".into(), words, directory, needs, writes, from_environment, is_roots: false }
    }

    #[test]
    fn flags_come_again_and_those_about_the_first_time_do_not() {
        let line = [
            "-dit",
            "--name=old",
            "-e",
            "A=1",
            "-e",
            "TERM",
            "--memory",
            "2g",
            "--rm",
            "--allow=claude",
            "make",
            "-k",
            "--",
            "x",
        ];
        let start = start(&line);
        let wanted =
            ["--rm", "--env=A=1", "--env=TERM", "--allow=claude", "--memory=2g", "--", "make", "-k", "--", "x"];
        assert_eq!(start.words, wanted);
        assert_eq!(start.from_environment, ["TERM"]);
        let sourced =
            super::Start { ..self::start(&["--secret", "A", "--secret-env", "B=env:C", "--secret", "D=file:/d", "x"]) };
        assert_eq!(sourced.from_environment, ["A", "C"]);
    }

    #[test]
    fn a_word_is_one_word_to_systemd() {
        for (word, wanted) in [
            ("make", "make"),
            ("", "\"\""),
            ("a b", "\"a b\""),
            ("100%", "\"100%%\""),
            ("$HOME", "\"$$HOME\""),
            (";", "\";\""),
            ("\"\\'", "\"\\\"\\\\'\""),
            ("a\nb\tc", "\"a\\nb\\x09c\""),
            ("é", "\"é\""),
        ] {
            assert_eq!(quoted(word), wanted);
        }
    }

    #[test]
    fn a_unit_is_the_template_with_other_words() {
        let program = Path::new("/opt/agentd");
        let mut start = start(&["--workspace", "a repo", "--", "sh", "-c", "echo 100%"]);
        start.directory = Some("/srv".into());
        let unit = start.unit(false, program).unwrap();
        assert!(
            unit.starts_with("# ~/.config/systemd/user/agentd-fix.service\n[Unit]\nDescription=agentd job fix\n"),
            "{unit}"
        );
        let started = "WorkingDirectory=/srv\nExecStart=/opt/agentd run --name fix --replace \"--workspace=a repo\" -- sh -c \"echo 100%%\"\n";
        assert!(unit.contains(started), "{unit}");
        assert!(!unit.contains("%i") && !unit.contains("ConditionPath"), "{unit}");
        let unit = start.unit(true, program).unwrap();
        assert!(unit.contains("\nUser=agentd\n") && unit.contains("ReadWritePaths=-/srv \"-/srv/a repo\"\n"), "{unit}");
        assert!(
            !unit.contains("%i") && !unit.contains("WorkingDirectory=%S") && !unit.contains("ProtectHome"),
            "{unit}"
        );
        start.is_roots = true;
        let unit = start.unit(true, program).unwrap();
        assert!(
            unit.contains("\nStateDirectory=agentd\nStateDirectoryMode=0700\n")
                && !unit.contains("User=")
                && !unit.contains("Capability"),
            "{unit}"
        );
        for is_system in [false, true] {
            assert!(template(is_system, program).unwrap().contains("\nExecStart=/opt/agentd run --job "));
        }
    }

    #[test]
    fn a_program_that_its_unit_hides_is_told() {
        for (program, is_system, is_told) in [
            ("/home/ada/.local/bin/agentd", true, true),
            ("/root/agentd", true, true),
            ("/usr/local/bin/agentd", true, false),
            ("/homes/agentd", true, false),
            ("/home/ada/.local/bin/agentd", false, false),
        ] {
            let program = Path::new(program);
            assert_eq!(is_hidden(&template(is_system, program).unwrap(), program), is_told, "{program:?} {is_system}");
        }
    }
}
