//! Starts an agent on the other host, and says what to restore.

use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use barmanfs_store::sync::lock;
use barmanfs_store::threads;

use super::serve::{Server, Unserved};
use super::wire::{self, Assignment, ChunkKey, Frame, FromAgent, PROTOCOL, ToAgent};
use crate::error::Error;
use crate::progress::Progress;
use crate::restore::catch_up::{CatchUp, CaughtUp};
use crate::restore::destination::State;
use crate::restore::remote::RemoteShell;
use crate::restore::remote::shell::{BEAT_EVERY, Output, Session, word};
use crate::restore::space::TreeSize;
use crate::restore::tablespaces::Relocations;
use crate::restore::view::ViewTree;
use crate::restore::{Restored, WriteOptions};
use crate::throttle::Throttle;

/// An agent names at most so many removed entries.
const MAX_REMOVED: usize = 20_000;

/// Notes of an agent, at most.
const MAX_NOTES: usize = 20;

/// How soon the thread that shows that this side is there notices the end.
const NOTICED_WITHIN: Duration = Duration::from_millis(50);

/// An agent that waits for orders.
#[derive(Debug)]
pub(in crate::restore) struct Agent {
    session: Session,
    from: BufReader<Output>,
}

/// What an agent has found.
#[derive(Debug)]
pub(in crate::restore) struct Found {
    pub(in crate::restore) state: State,
    /// Both without links.
    pub(in crate::restore) directory: PathBuf,
    pub(in crate::restore) relocations: Relocations,
    /// What there is to say about the directory.
    pub(in crate::restore) notes: Vec<String>,
    /// What a standby was, if it is caught up.
    pub(in crate::restore) caught_up: Option<CaughtUp>,
}

/// Why an agent has not restored.
#[derive(Debug)]
pub(in crate::restore) enum Stopped {
    /// It says so itself, and what there is over there now.
    Told(Error),
    /// It was cut off, or has ended without a word.
    Ended(Error),
}

/// Why one connection has ended.
#[derive(Debug)]
struct Reason {
    error: Error,
    /// The other host is not reached any more.
    is_lost: bool,
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
        catch_up: Option<&CatchUp>,
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
            catch_up: catch_up.cloned(),
            chunk_key: view.chunk_key().map(|key| ChunkKey(*key.expose())),
        })))?;
        match self.next()? {
            FromAgent::Prepared {
                state,
                directory,
                relocations,
                notes,
                caught_up,
            } => Ok(Found {
                state: state.into(),
                directory,
                relocations,
                notes: notes
                    .iter()
                    .take(MAX_NOTES)
                    .map(|note| wire::shown(note))
                    .collect(),
                caught_up: caught_up.map(|found| CaughtUp {
                    own_files: found.own_files.iter().map(|path| wire::shown(path)).collect(),
                    ..found
                }),
            }),
            _ => Err(wire::garbled("no answer to the assignment")),
        }
    }

    /// Has the agent restore, and answers what it asks for.
    ///
    /// # Errors
    /// When it fails, or the connection.
    pub(in crate::restore) fn run(&mut self, order: &Order<'_>) -> Result<Restored, Stopped> {
        let began = Instant::now();
        let socket = self.begin(order).map_err(Stopped::Ended)?;
        let throttle = order.options.bandwidth_limit.map(Throttle::new);
        let script = format!("exec barmanfs agent --join {}", word(&socket.to_string_lossy()));
        let (jobs, failed) = (order.options.jobs.max(1), AtomicUsize::new(0));
        let (why, ended) = (Mutex::new(None), AtomicBool::new(false));
        let connection = || {
            if let Err(reason) = answer(order, &script, throttle.as_ref()) {
                tracing::debug!("A connection has failed: {}", reason.error);
                let mut why = lock(&why);
                if why
                    .as_ref()
                    .is_none_or(|known: &Reason| reason.is_lost && !known.is_lost)
                {
                    *why = Some(reason);
                }
                // Without any, the agent would wait for ever.
                if failed.fetch_add(1, Ordering::AcqRel) + 1 == jobs {
                    order.shell.running().stop();
                }
            }
        };
        let Self { session, from } = self;
        let (restored, met) = thread::scope(|scope| {
            let started = threads::start_in(scope, "beat", || beat(session, &ended)).and_then(|_| {
                (0..jobs).try_for_each(|_| threads::start_in(scope, "serve", connection).map(drop))
            });
            let restored = match started {
                Ok(()) => follow(from, order),
                Err(refused) => Err(Stopped::Ended(refused.into())),
            };
            ended.store(true, Ordering::Release);
            // What ends from here on has this side ended.
            let met = lock(&why).take();
            if restored.is_err() {
                order.shell.running().stop();
            }
            (restored, met)
        });
        let mut restored = restored.map_err(|stopped| self.best_reason(stopped, met))?;
        restored.elapsed = began.elapsed();
        Ok(restored)
    }

    fn begin(&mut self, order: &Order<'_>) -> Result<PathBuf, Error> {
        self.tell(&ToAgent::Run {
            dry_run: order.dry_run,
        })?;
        match self.next()? {
            FromAgent::Listening { socket } => Ok(socket),
            _ => Err(wire::garbled("no socket")),
        }
    }

    /// Of several reasons, the one from which the others follow. A connection that was lost takes all others with it; an
    /// agent that gives up says why; and without either, it is what this side has met.
    fn best_reason(&mut self, stopped: Stopped, met: Option<Reason>) -> Stopped {
        match (stopped, met) {
            (_, Some(met)) if met.is_lost => Stopped::Ended(met.error),
            (told @ Stopped::Told(_), _) => told,
            (Stopped::Ended(_), Some(met)) => Stopped::Ended(met.error),
            (Stopped::Ended(error), None) => Stopped::Ended(self.reason(error)),
        }
    }

    fn tell(&mut self, message: &ToAgent) -> Result<(), Error> {
        let told = wire::write_json(&mut self.session, Frame::Message, message);
        told.map_err(|error| self.reason(error))
    }

    fn next(&mut self) -> Result<FromAgent, Error> {
        next(&mut self.from).map_err(|stopped| match stopped {
            Stopped::Told(error) => error,
            Stopped::Ended(error) => self.reason(error),
        })
    }

    /// What ssh says about its end is the better reason.
    fn reason(&mut self, error: Error) -> Error {
        self.session.finish().err().unwrap_or(error)
    }
}

/// The next message of an agent.
fn next(from: &mut impl Read) -> Result<FromAgent, Stopped> {
    let message = match wire::read_frame(from) {
        Ok(Some((Frame::Message, bytes))) => wire::json(&bytes),
        Ok(Some((Frame::Failure, bytes))) => match wire::json::<wire::Failure>(&bytes) {
            Ok(failure) => {
                return Err(Stopped::Told(Error::from(failure).context("On the other host")));
            }
            Err(error) => Err(error),
        },
        Ok(Some(_)) => Err(wire::garbled("another frame than a message")),
        Ok(None) => Err(Error::failed("The agent on the other host has ended")),
        Err(error) => Err(error),
    };
    message.map_err(Stopped::Ended)
}

/// Reads what the agent tells until it is done.
fn follow(from: &mut impl Read, order: &Order<'_>) -> Result<Restored, Stopped> {
    let mut restored = Restored {
        bytes: order.size.bytes,
        ..Restored::default()
    };
    loop {
        match next(from)? {
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
                    return Err(Stopped::Ended(wire::garbled("too many removed entries")));
                }
            }
            FromAgent::Done { written_bytes } => {
                restored.written_bytes = written_bytes;
                return Ok(restored);
            }
            _ => return Err(Stopped::Ended(wire::garbled("a message out of turn"))),
        }
    }
}

/// Lets the agent know that this side is there. Where that fails, the thread that reads finds out why.
fn beat(session: &mut Session, ended: &AtomicBool) {
    let mut last = Instant::now();
    while !ended.load(Ordering::Acquire) {
        if last.elapsed() >= BEAT_EVERY {
            last = Instant::now();
            let _ = wire::write_json(session, Frame::Message, &ToAgent::Beat);
        }
        thread::sleep(NOTICED_WITHIN);
    }
}

/// Brings one more connection to the agent, and answers on it.
fn answer(order: &Order<'_>, script: &str, throttle: Option<&Throttle>) -> Result<(), Reason> {
    let of_this_side = |error| Reason {
        error,
        is_lost: false,
    };
    let mut session = order.shell.start("join an agent", script).map_err(of_this_side)?;
    let output = session.output.take();
    let output = output.ok_or_else(|| of_this_side(Error::failed("The agent has no output")))?;
    let answered = Server::new(order.view, throttle).run(output, &mut session);
    let error = match answered {
        Ok(()) => session.finish().err(),
        Err(Unserved::Here(error)) => {
            session.abort();
            return Err(of_this_side(error));
        }
        // What ssh says about its end is the better reason.
        Err(Unserved::Connection(error)) => Some(session.finish().err().unwrap_or(error)),
    };
    let is_lost = session.is_lost();
    error.map_or(Ok(()), |error| Err(Reason { error, is_lost }))
}
