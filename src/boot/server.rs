//! The server of a boot test: a child of this process that ends with it, even when this process is killed.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

use super::workspace::{PORT, Workspace};
use super::{Failure, Stop};
use crate::error::Error;
use crate::instance::{self, Instance, Setting, StartOptions, Status};
use crate::signals::Interruption;

/// How often a server that starts or ends is polled.
const POLL: Duration = Duration::from_millis(20);

/// A postmaster that shuts down at once kills processes that have not ended after 5 s. After twice that time, the
/// postmaster itself hangs.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// The severities of log lines that explain why a server ended.
const DEADLY: [&str; 2] = ["PANIC:", "FATAL:"];

/// Settings that override the server's own configuration, in addition to those of every server that barmanfs starts:
/// - The log is in a language that the test can parse.
/// - The server fits on a host that is not its own.
/// - Nothing runs by itself: no scheduled jobs, no event triggers.
/// - Only this process reads the server, and only once, so its data need not survive a crash.
///
/// Whether the server starts depends on the view's settings. With other values, the test would prove nothing about a
/// copy.
const SETTINGS: [(&str, &str); 7] = [
    ("log_line_prefix", ""),
    ("log_statement", "none"),
    ("lc_messages", "C"),
    ("shared_buffers", "256MB"),
    ("max_worker_processes", "0"),
    ("autovacuum", "off"),
    ("fsync", "off"),
];

/// A trigger on logins or on definitions may write to files or other servers, which nobody wants here. Servers before
/// this version have no such setting, see [`Client::amcheck`](super::checks::Client::amcheck).
const NO_EVENT_TRIGGERS: (&str, &str) = ("event_triggers", "off");

/// The first version with that setting and with login triggers.
pub(super) const HAS_EVENT_TRIGGERS_SETTING: u32 = 17;

/// The server of a boot test. It is shut down when this is dropped.
#[derive(Debug)]
pub(super) struct Server {
    postmaster: Child,
    data: PathBuf,
    log: PathBuf,
}

impl Server {
    /// Starts a server with these settings. It does not answer yet when this returns.
    pub(super) fn start(
        instance: &Instance,
        data: PathBuf,
        workspace: &Workspace,
        asked: &[Setting],
    ) -> Result<Self, Error> {
        let failed = |error: io::Error| Error::failed(format!("Cannot run postgres: {error}"));
        let mut settings = SETTINGS.map(|(name, value)| Setting::new(name, value)).to_vec();
        if instance.major() >= HAS_EVENT_TRIGGERS_SETTING {
            settings.push(Setting::new(NO_EVENT_TRIGGERS.0, NO_EVENT_TRIGGERS.1));
        }
        settings.extend_from_slice(asked);
        settings.push(Setting::new("hba_file", workspace.hba_file().to_string_lossy()));
        let options = StartOptions {
            port: Some(PORT),
            socket_directory: workspace.sockets(),
            share: false,
            listen: String::new(),
            settings,
            log: workspace.log(),
            timeout: Duration::MAX,
        };
        let log = File::create(&options.log).map_err(failed)?;
        let mut command = instance.server(PORT, &options);
        command
            .stdout(log.try_clone().map_err(failed)?)
            .stderr(Stdio::from(log))
            // Ctrl-C is for this process, which then shuts the server down.
            .process_group(0);
        end_with_us(&mut command);
        Ok(Self {
            postmaster: command.spawn().map_err(failed)?,
            data,
            log: options.log,
        })
    }

    /// Waits until the server has recovered, is promoted, and answers. Calls `replaying` when the recovery begins.
    pub(super) fn wait_until_ready(
        &mut self,
        interruption: &Interruption,
        replaying: impl FnOnce(),
    ) -> Result<(), Stop> {
        let mut replaying = Some(replaying);
        loop {
            if interruption.requested() {
                return Err(super::interrupted().into());
            }
            match self.postmaster.try_wait() {
                Ok(None) => {}
                Ok(Some(status)) => {
                    let why = self.why().unwrap_or_else(|| format!("it ended with {status}"));
                    return Err(self.failure(format!("PostgreSQL does not start: {why}")).into());
                }
                Err(error) => return Err(Error::failed(format!("Cannot wait for postgres: {error}")).into()),
            }
            match instance::status(&self.data) {
                Status::Ready => return Ok(()),
                Status::Recovering => {
                    if let Some(replaying) = replaying.take() {
                        replaying();
                    }
                }
                Status::Starting => {}
            }
            interruption.sleep(POLL);
        }
    }

    /// A failure of the server, with the end of its log.
    pub(super) fn failure(&self, message: String) -> Failure {
        let log = instance::tail(&self.log, 0).unwrap_or_else(|| "It is empty".to_owned());
        Failure {
            message,
            details: format!("The end of the server's log:\n{log}"),
        }
    }

    /// The reason in the server's log: the first fatal line. Later ones are its consequences.
    fn why(&self) -> Option<String> {
        let log = instance::tail(&self.log, 0)?;
        let deadly = |line: &&str| DEADLY.iter().any(|word| line.contains(word));
        log.lines().find(deadly).map(super::one_line)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.postmaster.try_wait(), Ok(Some(_))) {
            return;
        }
        // SIGQUIT ends the server at once. Nothing of it is needed any more.
        let _ = kill_process(Pid::from_child(&self.postmaster), Signal::QUIT);
        let until = Instant::now() + ENDS_WITHIN;
        while matches!(self.postmaster.try_wait(), Ok(None)) {
            if Instant::now() > until {
                tracing::warn!("The server of the boot test does not end: killing it");
                let _ = self.postmaster.kill();
                let _ = self.postmaster.wait();
                return;
            }
            std::thread::sleep(POLL);
        }
    }
}

/// Makes the kernel end the server when this process is killed: without its mount, the server would never end by
/// itself. The kernel watches the thread that starts the server, which is the main thread here.
#[allow(unsafe_code)]
fn end_with_us(command: &mut Command) {
    let ask = || Ok(set_parent_process_death_signal(Some(Signal::QUIT))?);
    // SAFETY: between fork and exec it makes one system call (prctl), and neither allocates nor takes a lock.
    unsafe { command.pre_exec(ask) };
}
