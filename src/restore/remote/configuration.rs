//! Configuration files from outside the data directory, written on the other host.

use std::path::{Path, PathBuf};

use barmanfs_fs::entry::Stat;
use barmanfs_store::Attributes;

use super::host::checked;
use super::shell::{RemoteShell, word};
use super::stream::{Stream, not_sent};
use crate::error::Error;
use crate::restore::configuration::{BEFORE, ConfigurationText, data_directories};

/// The files are unpacked there first.
const NEW: &str = ".barmanfs-restore-config";

/// A directory for configuration files on the other host.
#[derive(Debug)]
pub(super) struct RemoteConfiguration {
    directory: PathBuf,
}

impl RemoteConfiguration {
    /// Refuses the directory of a server that runs: it would come up on other data at its next start.
    pub(super) fn examine(shell: &RemoteShell, directory: PathBuf) -> Result<Self, Error> {
        let path = word(checked(&directory)?);
        let script = format!("if [ -f {path}/postgresql.conf ]; then cat {path}/postgresql.conf; fi");
        let text = shell.run("read the configuration", &script, b"")?;
        for data in data_directories(&text) {
            let Ok(place) = checked(&data) else { continue };
            let script = format!(
                "if read p < {}/postmaster.pid; then if kill -0 \"$p\" 2>/dev/null || [ -d \"/proc/$p\" ]; \
                 then echo \"$p\"; fi; fi 2>/dev/null",
                word(place)
            );
            let running = shell.run("look for a server", &script, b"")?;
            if !running.trim_ascii().is_empty() {
                return Err(Error::failed(format!(
                    "A server runs on the other host with the configuration in {} (in {})",
                    directory.display(),
                    data.display()
                ))
                .hint("Stop it first, or name another directory"));
            }
        }
        Ok(Self { directory })
    }

    /// Writes the files. One that is there and differs keeps its content under another name.
    pub(super) fn write(&self, shell: &RemoteShell, files: &[ConfigurationText]) -> Result<(), Error> {
        let failed = |error: Error| {
            error.hint("The data directory is complete. Copy the configuration from info/ of a mount")
        };
        self.try_to_write(shell, files).map_err(failed)
    }

    fn try_to_write(&self, shell: &RemoteShell, files: &[ConfigurationText]) -> Result<(), Error> {
        let directory = word(&self.directory.to_string_lossy());
        shell.run(
            "make a directory",
            &format!("set -e; mkdir -p {directory}; cd {directory}; rm -rf {NEW}; umask 077; mkdir {NEW}"),
            b"",
        )?;
        let mut stream = Stream::start(
            shell,
            &format!("umask 077; cd {directory}; exec tar -x -p -C {NEW} -f -"),
        )?;
        for file in files {
            if let Err(error) = stream.text(&file.place, &stat(&file.attributes), &file.text) {
                return Err(stream.fail(not_sent(&error)));
            }
        }
        stream.finish()?;
        let mut script = format!("set -e; cd {directory}\n");
        for file in files {
            let place = text(&file.place)?;
            let (new, old, before) = (
                word(&format!("{NEW}/{place}")),
                word(&format!("./{place}")),
                word(&format!("./{place}{BEFORE}")),
            );
            if let Some(parent) = file
                .place
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty())
            {
                script.push_str(&format!("mkdir -p {}\n", word(text(parent)?)));
            }
            script.push_str(&format!(
                "if cmp -s {new} {old}; then rm {new}; else\n\
                 if [ -e {old} ] && ! [ -e {before} ]; then mv {old} {before}; fi; mv -f {new} {old}; fi\n"
            ));
        }
        for directory in files.iter().flat_map(|file| &file.directories) {
            script.push_str(&format!("mkdir -p {}\n", word(text(directory)?)));
        }
        script.push_str(&format!("rm -rf {NEW}; sync"));
        shell.run("write the configuration", &script, b"").map(drop)
    }
}

fn text(path: &Path) -> Result<&str, Error> {
    path.to_str().filter(|text| !text.contains('\n')).ok_or_else(|| {
        Error::failed(format!(
            "{} is no path that can be passed to the other host",
            path.display()
        ))
    })
}

fn stat(attributes: &Attributes) -> Stat {
    Stat {
        mode: attributes.mode & 0o777,
        uid: attributes.uid,
        gid: attributes.gid,
        mtime_s: attributes.mtime_s,
        ..Stat::NONE
    }
}
