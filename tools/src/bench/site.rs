//! The place of a benchmark: its directory, its log, and the users who run the programs.
//!
//! PostgreSQL refuses to run as root, but only root can drop the page cache between measurements.
//! So root runs the benchmark, and the server and its tools run as the user `postgres`.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// Maximum output of a failed program that is shown.
const SHOWN_OUTPUT_BYTES: usize = 2000;

/// Maximum length of a failed command that is shown.
const SHOWN_COMMAND_CHARACTERS: usize = 200;

/// A benchmark's directory.
#[derive(Debug)]
pub(crate) struct Site {
    root: PathBuf,
    is_root: bool,
}

impl Site {
    /// Uses `root`, which must exist, and makes it accessible to the server's user.
    pub(crate) fn new(root: &Path) -> Result<Self> {
        let root = root
            .canonicalize()
            .with_context(|| format!("Cannot use {}", root.display()))?;
        // The path is used in archive_command and in configuration files, where quoting differs.
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
        let text = root.to_str().unwrap_or_default();
        ensure!(
            !text.is_empty() && text.chars().all(plain),
            "{} has characters other than letters, digits and ._- in its path: choose another --workdir",
            root.display()
        );
        let is_root = output(Command::new("id").arg("-u"))?.trim() == "0";
        run_silently(Command::new("chmod").arg("755").arg(&root))?;
        Ok(Self { root, is_root })
    }

    /// A path in the benchmark's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Makes an empty directory, in place of an existing one.
    pub(crate) fn empty_directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        remove(&path)?;
        fs::create_dir_all(&path).with_context(|| format!("Cannot make {}", path.display()))?;
        Ok(path)
    }

    /// Makes an empty directory that belongs to the server's user.
    pub(crate) fn empty_postgres_directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        remove(&path)?;
        let mut install = Command::new("install");
        install.args(["-d", "-m", "700"]);
        if self.is_root {
            install.args(["-o", "postgres", "-g", "postgres"]);
        }
        self.run(install.arg(&path))?;
        Ok(path)
    }

    /// A command that runs as the server's user.
    pub(crate) fn as_postgres(&self, program: impl AsRef<Path>) -> Command {
        let program = program.as_ref();
        if !self.is_root {
            return Command::new(program);
        }
        let mut command = Command::new("runuser");
        command
            .args(["-u", "postgres", "--"])
            .arg(program)
            .current_dir("/");
        command
    }

    /// The file for the output of all programs.
    pub(crate) fn log(&self) -> Result<File> {
        let path = self.path("log");
        let log = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .open(&path);
        log.with_context(|| format!("Cannot open {}", path.display()))
    }

    /// Runs a command to its end, with its output in the log.
    pub(crate) fn run(&self, command: &mut Command) -> Result<()> {
        let mut log = self.log()?;
        let start = log.seek(SeekFrom::End(0))?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log.try_clone()?);
        let status = command
            .status()
            .with_context(|| format!("Cannot run {}", shown(command)))?;
        if !status.success() {
            bail!(
                "{} failed ({status}): {}",
                shown(command),
                tail_of(&mut log, start)?
            );
        }
        Ok(())
    }
}

/// The end of what was written to `log` since `start`.
pub(crate) fn tail_of(log: &mut File, start: u64) -> Result<String> {
    log.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    log.read_to_end(&mut bytes)?;
    let shown = bytes
        .get(bytes.len().saturating_sub(SHOWN_OUTPUT_BYTES)..)
        .unwrap_or_default();
    Ok(String::from_utf8_lossy(shown).trim().to_owned())
}

/// Removes a directory with all its contents, if it exists.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("Cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// A command as a person would type it, shortened if SQL makes it long.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words
        .map(|word| word.to_string_lossy().replace('\n', " "))
        .collect();
    let text = words.join(" ");
    if text.chars().count() > SHOWN_COMMAND_CHARACTERS {
        text.chars()
            .take(SHOWN_COMMAND_CHARACTERS)
            .chain("...".chars())
            .collect()
    } else {
        text
    }
}

/// Runs a short command. Returns its output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("Cannot run {}", shown(command)))?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed ({}): {}", shown(command), output.status, reason.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn run_silently(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}
