//! Starts processes that outlive this one.
//!
//! The program starts itself again. The child gets no descriptor of this process except, on request, standard output and
//! error: a pipe or a lock would stay open as long as the child runs, and a process that waits for it would wait as long.

use std::ffi::OsString;
use std::process::{Command, Stdio};

use barmanfs_catalog::{CronTask, Repository, ServerName, TaskMemory};
use barmanfs_pg::TimestampMicros;

use super::super::App;
use super::unheard;
use crate::background;
use crate::cli::upkeep::CronArgs;
use crate::error::Error;

/// Starts tasks, and collects a line about each.
#[derive(Debug)]
pub(super) struct Launcher {
    /// The options of this command.
    options: Vec<OsString>,
    keep_descriptors: bool,
    started: Vec<String>,
}

impl Launcher {
    pub(super) fn new(app: &App, args: &CronArgs) -> Result<Self, Error> {
        let config = std::path::absolute(&app.config.file)
            .map_err(|error| Error::failed(format!("Cannot find the configuration: {error}")))?;
        let mut options: Vec<OsString> = vec!["-c".into(), config.into()];
        options.extend((0..app.options.verbose).map(|_| "-v".into()));
        if let Some(level) = app.options.log_level {
            options.extend(["--log-level".into(), level.to_string().into()]);
        }
        Ok(Self {
            options,
            keep_descriptors: args.keep_descriptors,
            started: Vec::new(),
        })
    }

    /// Notes that a task begins, and starts its process. It does the task for these servers one after the other; a task
    /// of the repository has none.
    pub(super) fn start(
        &mut self,
        repository: &Repository,
        task: CronTask,
        servers: &[ServerName],
        now: TimestampMicros,
    ) -> Result<(), Error> {
        let noted = match servers {
            [] => repository.remember_of_repository(|memory| TaskMemory::begin(&mut memory.tasks, task, now)),
            servers => servers.iter().try_for_each(|server| {
                repository
                    .remember_of_server(server, |memory| TaskMemory::begin(&mut memory.tasks, task, now))
            }),
        };
        match noted {
            // These make room where it could not be noted for want of room.
            Err(error) if matches!(task, CronTask::Retention | CronTask::Sweep) => unheard(Err(error)),
            noted => noted?,
        }
        let failed =
            |error: std::io::Error| Error::failed(format!("Cannot start {}: {error}", task.as_str()));
        let program = std::env::current_exe().map_err(failed)?;
        background::keep_inherited();
        let mut child = Command::new(program);
        child
            .args(&self.options)
            .args(["cron", "--task", task.as_str()])
            .stdin(Stdio::null());
        for server in servers {
            child.args(["--server", server.as_str()]);
        }
        if self.keep_descriptors {
            child.arg("--keep-descriptors");
        } else {
            child.stdout(Stdio::null()).stderr(Stdio::null());
        }
        let child = child.spawn().map_err(failed)?;
        let names: Vec<&str> = servers.iter().map(ServerName::as_str).collect();
        let whose = match names.as_slice() {
            [] => String::new(),
            [one] => format!(" for server {one}"),
            several => format!(" for servers {}", several.join(", ")),
        };
        self.started.push(format!(
            "Starting {}{whose} (process {})",
            task.as_str(),
            child.id()
        ));
        Ok(())
    }

    /// A line about each task that was started.
    pub(super) fn into_started(self) -> Vec<String> {
        self.started
    }
}
