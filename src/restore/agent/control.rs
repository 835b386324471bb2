//! Starts an agent on the other host, and says what to restore.

use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::ChildStdout;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use barmanfs_store::sync::lock;

use super::serve::Server;
use super::wire::{self, Assignment, Frame, FromAgent, PROTOCOL, ToAgent};
use crate::error::Error;
use crate::progress::Progress;
use crate::restore::destination::State;
use crate::restore::remote::RemoteShell;
use crate::restore::remote::shell::{Session, word};
use crate::restore::space::TreeSize;
use crate::restore::tablespaces::Relocations;
use crate::restore::throttle::Throttle;
use crate::restore::view::ViewTree;
use crate::restore::{Restored, WriteOptions};

/// An agent names at most so many removed entries.
const MAX_REMOVED: usize = 20_000;

/// An agent that waits for orders.
#[derive(Debug)]
pub(in crate::restore) struct Agent {
    session: Session,
    from: BufReader<ChildStdout>,
}

/// What an agent has found.
#[derive(Debug)]
pub(in crate::restore) struct Found {
    pub(in crate::restore) state: State,
    /// Both without links.
    pub(in crate::restore) directory: PathBuf,
    pub(in crate::restore) relocations: Relocations,
}

/// What is restored, and what of that is shown.
pub(in crate::restore) struct Order<'a> {
    pub(in crate::restore) view: &'a ViewTree,
    pub(in crate::restore) shell: &'a RemoteShell,
    pub(in crate::restore) options: &'a WriteOptions,
    pub(in crate::restore) size: &'a TreeSize,
    pub(in crate::restore) progress: &'a Progress,
    pub(in crate::restore) dry_run: bool,
}

impl Agent {
    /// Starts one.
    ///
    /// # Errors
    /// When it cannot be started, or is of another release.
    pub(in crate::restore) fn start(shell: &RemoteShell) -> Result<Self, Error> {
        let mut session = shell.start("run an agent", "exec barmanfs agent")?;
        let output = session.output.take();
        let output = output.ok_or_else(|| Error::failed("The agent has no output"))?;
        let mut agent = Self {
            session,
            from: BufReader::new(output),
        };
        agent.tell(&ToAgent::Hello { protocol: PROTOCOL })?;
        match agent.next()? {
            FromAgent::Hello { protocol: PROTOCOL } => Ok(agent),
            _ => Err(wire::garbled("no greeting")),
        }
    }

    /// Has the agent look at the directory.
    ///
    /// # Errors
    /// When it may not be written to.
    pub(in crate::restore) fn prepare(
        &mut self,
        view: &ViewTree,
        directory: &Path,
        relocations: &Relocations,
        (options, size): (&WriteOptions, &TreeSize),
    ) -> Result<Found, Error> {
        self.tell(&ToAgent::Prepare(Box::new(Assignment {
            backup: view.backup.clone(),
            directory: directory.to_owned(),
            relocations: relocations.clone(),
            stat: (&view.stat).into(),
            size: size.clone(),
            jobs: options.jobs,
            delta: options.delta,
            keep: options.keep.clone(),
        })))?;
        match self.next()? {
            FromAgent::Prepared {
                state,
                directory,
                relocations,
            } => Ok(Found {
                state: state.into(),
                directory,
                relocations,
            }),
            _ => Err(wire::garbled("no answer to the assignment")),
        }
    }

    /// Has the agent restore, and answers what it asks for.
    ///
    /// # Errors
    /// When it fails, or the connection.
    pub(in crate::restore) fn run(&mut self, order: &Order<'_>) -> Result<Restored, Error> {
        let began = Instant::now();
        self.tell(&ToAgent::Run {
            dry_run: order.dry_run,
        })?;
        let FromAgent::Listening { socket } = self.next()? else {
            return Err(wire::garbled("no socket"));
        };
        let throttle = order.options.bandwidth_limit.map(Throttle::new);
        let script = format!("exec barmanfs agent --join {}", word(&socket.to_string_lossy()));
        let (jobs, failed) = (order.options.jobs.max(1), AtomicUsize::new(0));
        let why = std::sync::Mutex::new(None);
        let connection = || {
            if let Err(error) = answer(order, &script, throttle.as_ref()) {
                tracing::debug!("A connection has failed: {error}");
                lock(&why).get_or_insert(error);
                // Without any, the agent would wait for ever.
                if failed.fetch_add(1, Ordering::AcqRel) + 1 == jobs {
                    order.shell.running().stop();
                }
            }
        };
        let restored = thread::scope(|scope| {
            for number in 0..jobs {
                thread::Builder::new()
                    .name(format!("serve-{number}"))
                    .spawn_scoped(scope, connection)
                    .map_err(|error| Error::failed(format!("Cannot start a thread: {error}")))?;
            }
            let restored = self.follow(order);
            if restored.is_err() {
                order.shell.running().stop();
            }
            restored
        });
        let reason = lock(&why).take();
        let mut restored = restored.map_err(|error| match error.hint_text() {
            // It was cut because all the others were.
            None if failed.load(Ordering::Acquire) == jobs => reason.unwrap_or(error),
            _ => error,
        })?;
        restored.elapsed = began.elapsed();
        Ok(restored)
    }

    /// Reads what the agent tells until it is done.
    fn follow(&mut self, order: &Order<'_>) -> Result<Restored, Error> {
        let mut restored = Restored {
            bytes: order.size.bytes,
            ..Restored::default()
        };
        loop {
            match self.next()? {
                FromAgent::Progress { done } => {
                    order
                        .progress
                        .set(done.min(order.size.bytes), Some(order.size.bytes));
                }
                FromAgent::Stage(text) => order.progress.stage(&text),
                FromAgent::Removed(paths) => {
                    use std::os::unix::ffi::OsStringExt;
                    let paths = paths
                        .into_iter()
                        .map(|path| std::ffi::OsString::from_vec(path.0).into());
                    restored.removed.extend(paths);
                    if restored.removed.len() > MAX_REMOVED {
                        return Err(wire::garbled("too many removed entries"));
                    }
                }
                FromAgent::Done { written_bytes } => {
                    restored.written_bytes = written_bytes;
                    return Ok(restored);
                }
                _ => return Err(wire::garbled("a message out of turn")),
            }
        }
    }

    fn tell(&mut self, message: &ToAgent) -> Result<(), Error> {
        let told = wire::write_json(&mut self.session, Frame::Message, message);
        told.map_err(|error| self.reason(error))
    }

    fn next(&mut self) -> Result<FromAgent, Error> {
        match wire::read_frame(&mut self.from) {
            Ok(Some((Frame::Message, bytes))) => wire::json(&bytes),
            Ok(Some((Frame::Failure, bytes))) => {
                let failure: wire::Failure = wire::json(&bytes)?;
                Err(Error::from(failure).context("On the other host"))
            }
            Ok(Some(_)) => Err(wire::garbled("another frame than a message")),
            Ok(None) => Err(self.reason(Error::failed("The agent on the other host has ended"))),
            Err(error) => Err(error),
        }
    }

    /// What ssh says about its end is the better reason.
    fn reason(&mut self, error: Error) -> Error {
        self.session.finish().err().unwrap_or(error)
    }
}

/// Brings one more connection to the agent, and answers on it.
fn answer(order: &Order<'_>, script: &str, throttle: Option<&Throttle>) -> Result<(), Error> {
    let mut session = order.shell.start("join an agent", script)?;
    let output: Option<ChildStdout> = session.output.take();
    let output: Box<dyn Read> = match output {
        Some(output) => Box::new(output),
        None => Box::new(std::io::empty()),
    };
    let answered = Server::new(order.view, throttle).run(output, &mut session);
    if answered.is_err() {
        session.abort();
        return answered;
    }
    session.finish()
}
