//! `barmanfs agent`: a restore on this host whose tree is on the other side of standard input and output.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use barmanfs_store::sync::lock;
use barmanfs_store::{ChunkHash, Secret, threads};
use rustix::event::PollFlags;

use super::far::{FarDirectory, FarTree};
use super::wire::{self, Assignment, Bytes, ChunkKey, Failure, Frame, FromAgent, PROTOCOL, ToAgent};
use crate::error::Error;
use crate::progress::{Progress, Step, Tell};
use crate::readiness::is_ready;
use crate::restore::catch_up::CaughtUp;
use crate::restore::destination::{self, State};
use crate::restore::remote::shell::SILENCE;
use crate::restore::source::TreeSource;
use crate::restore::view::ViewTree;
use crate::restore::{Prepared, Restored, WriteOptions};
use crate::signals::Interruption;

/// How often the other side learns how far the restore is.
const TOLD_EVERY: Duration = Duration::from_millis(200);

/// Removed paths in one message.
const REMOVED_AT_ONCE: usize = 200;

/// Runs an agent. `join` is the socket of one that this one brings a connection to.
///
/// # Errors
/// When the other side cannot be understood. What goes wrong with the restore is told there.
pub(crate) fn run(join: Option<&Path>) -> Result<(), Error> {
    if let Some(socket) = join {
        return pass_on(socket);
    }
    let told = Arc::new(Told::default());
    match restore(&told) {
        Ok(()) => Ok(()),
        Err(error) => {
            // Somebody may still listen. If not, the exit code says it.
            let _ = told.failure(&error);
            Err(error)
        }
    }
}

/// Passes bytes between standard input and output and the agent that waits at this socket.
fn pass_on(socket: &Path) -> Result<(), Error> {
    let failed = |error: std::io::Error| Error::failed(format!("Cannot reach the agent: {error}"));
    let mut answers = UnixStream::connect(socket).map_err(failed)?;
    let mut requests = answers.try_clone().map_err(failed)?;
    threads::start("input", move || {
        // At the end of one, the other side of it sees that the connection is cut.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut answers);
        let _ = answers.shutdown(std::net::Shutdown::Both);
    })?;
    let mut out = std::io::stdout().lock();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = requests.read(&mut buffer).map_err(failed)?;
        if count == 0 {
            return Ok(());
        }
        let bytes = buffer.get(..count).unwrap_or_default();
        out.write_all(bytes).and_then(|()| out.flush()).map_err(failed)?;
    }
}

/// What the other side is told, by any thread.
#[derive(Debug)]
struct Told {
    last: Mutex<Option<Instant>>,
}

impl Default for Told {
    fn default() -> Self {
        Self {
            last: Mutex::new(None),
        }
    }
}

impl Told {
    fn message(&self, message: &FromAgent) -> Result<(), Error> {
        let _one_at_a_time = lock(&self.last);
        wire::write_json(&mut std::io::stdout().lock(), Frame::Message, message)
    }

    fn failure(&self, error: &Error) -> Result<(), Error> {
        let _one_at_a_time = lock(&self.last);
        wire::write_json(
            &mut std::io::stdout().lock(),
            Frame::Failure,
            &Failure::from(error),
        )
    }

    /// Now and then. That it could not be told is noticed by the thread that reads.
    fn step(&self, step: Step<'_>) {
        match step {
            Step::Done(done) => {
                let mut last = lock(&self.last);
                if last.is_some_and(|last| last.elapsed() < TOLD_EVERY) {
                    return;
                }
                *last = Some(Instant::now());
                drop(last);
                let _ = self.message(&FromAgent::Progress { done });
            }
            Step::Stage(text) => {
                let _ = self.message(&FromAgent::Stage(text.to_owned()));
            }
        }
    }
}

fn next() -> Result<ToAgent, Error> {
    wire::json(&wire::expect(&mut std::io::stdin().lock(), Frame::Message)?)
}

fn restore(told: &Arc<Told>) -> Result<(), Error> {
    match next()? {
        ToAgent::Hello { protocol: PROTOCOL } => {}
        ToAgent::Hello { protocol } => {
            return Err(Error::failed(format!(
                "This barmanfs, {}, speaks another protocol ({PROTOCOL} and not {protocol})",
                env!("CARGO_PKG_VERSION")
            )));
        }
        _ => return Err(wire::garbled("no greeting")),
    }
    told.message(&FromAgent::Hello { protocol: PROTOCOL })?;
    let ToAgent::Prepare(assignment) = next()? else {
        return Err(wire::garbled("no assignment"));
    };
    let tree = Arc::new(FarTree::default());
    let mut assignment = assignment;
    if let Some(ChunkKey(key)) = &mut assignment.chunk_key {
        let _ = tree.hash.set(ChunkHash::keyed(Secret::take(key)));
    }
    let (prepared, caught_up) = prepare(*assignment, &tree)?;
    told.message(&FromAgent::Prepared {
        state: prepared.destination.state.into(),
        directory: prepared.destination.path.clone(),
        relocations: prepared.destination.relocations.clone(),
        notes: prepared.notes.clone(),
        caught_up,
    })?;
    let ToAgent::Run { dry_run } = next()? else {
        return Err(wire::garbled("no order to run"));
    };
    let listening = listen(&tree)?;
    told.message(&FromAgent::Listening {
        socket: listening.path().join(SOCKET),
    })?;
    let signals = Arc::new(Interruption::watch(|| {})?);
    watch_for_the_end(&tree, &signals)?;
    let progress = {
        let told = Arc::clone(told);
        Progress::told(Tell(Box::new(move |step| told.step(step))))
    };
    let restored = match dry_run {
        true => prepared.dry_run_with(&progress, &signals),
        false => prepared.run_with(&progress, &signals),
    };
    tree.close();
    report(told, restored?)
}

fn report(told: &Told, restored: Restored) -> Result<(), Error> {
    use std::os::unix::ffi::OsStringExt;
    let mut removed = restored
        .removed
        .into_iter()
        .map(|path| Bytes(path.into_os_string().into_vec()));
    loop {
        let some: Vec<Bytes> = removed.by_ref().take(REMOVED_AT_ONCE).collect();
        if some.is_empty() {
            break;
        }
        told.message(&FromAgent::Removed(some))?;
    }
    told.message(&FromAgent::Done {
        written_bytes: restored.written_bytes,
    })
}

fn prepare(assignment: Assignment, tree: &Arc<FarTree>) -> Result<(Prepared, Option<CaughtUp>), Error> {
    let directory = destination::resolved(&assignment.directory)?;
    let examined = match &assignment.catch_up {
        Some(catch_up) => Some(catch_up.examine(&directory, &assignment.backup)?),
        None => None,
    };
    let (relocations, own, caught_up, notes) = match examined {
        Some(examined) => (
            examined.relocations,
            Some(examined.own),
            Some(examined.found),
            examined.notes,
        ),
        None => (assignment.relocations.resolved()?, None, None, Vec::new()),
    };
    let view = ViewTree {
        backup: assignment.backup,
        root: Arc::new(FarDirectory::new(tree, Vec::new())),
        stat: assignment.stat.stat(),
        source: TreeSource::Far(Arc::clone(tree)),
    };
    let options = WriteOptions {
        jobs: assignment.jobs,
        bandwidth_limit: None,
        delta: assignment.delta,
        keep: assignment.keep,
        own,
        like: None,
        quiet: true,
    };
    let mut prepared = Prepared::far(view, directory, relocations, options, assignment.size)?;
    prepared.add_notes(notes);
    Ok((prepared, caught_up))
}

/// The name of the socket in its directory.
const SOCKET: &str = "s";

/// Takes further connections, which only processes of this user can bring.
fn listen(tree: &Arc<FarTree>) -> Result<tempfile::TempDir, Error> {
    let failed = |error: std::io::Error| Error::failed(format!("Cannot listen for connections: {error}"));
    let directory = tempfile::Builder::new()
        .prefix("barmanfs-agent")
        .tempdir()
        .map_err(failed)?;
    let listener = UnixListener::bind(directory.path().join(SOCKET)).map_err(failed)?;
    let tree = Arc::clone(tree);
    let take = move || {
        for stream in listener.incoming() {
            if let Err(error) = stream.and_then(|stream| tree.add(stream)) {
                tracing::debug!("A connection was not taken: {error}");
                return;
            }
        }
    };
    threads::start("connections", take)?;
    Ok(directory)
}

/// Ends the restore when the other side is gone: all that it still says is that it is there.
fn watch_for_the_end(tree: &Arc<FarTree>, signals: &Arc<Interruption>) -> Result<(), Error> {
    let (tree, signals) = (Arc::clone(tree), Arc::clone(signals));
    let watch = move || {
        let mut input = std::io::stdin();
        let mut buffer = [0; 4096];
        while is_ready(&input, PollFlags::IN, SILENCE) && input.read(&mut buffer).is_ok_and(|count| count > 0)
        {
        }
        signals.request();
        tree.close();
    };
    threads::start("watch", watch)?;
    Ok(())
}

impl From<State> for wire::FarState {
    fn from(state: State) -> Self {
        match state {
            State::Vacant => Self::Vacant,
            State::Incomplete => Self::Incomplete,
            State::Older => Self::Older,
        }
    }
}

impl From<wire::FarState> for State {
    fn from(state: wire::FarState) -> Self {
        match state {
            wire::FarState::Vacant => Self::Vacant,
            wire::FarState::Incomplete => Self::Incomplete,
            wire::FarState::Older => Self::Older,
        }
    }
}
