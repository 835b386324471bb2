//! `barmanfs restore --watch`: how far the recovery of a restored directory has come.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::commands::App;
use crate::error::{Error, Outcome};
use crate::output;
use crate::progress::{Counted, Progress};
use crate::restore::rates;
use crate::restore::watch::{Replay, Watched};
use crate::signals::Interruption;

/// Replay of a segment takes longer than this, mostly.
const POLL: Duration = Duration::from_millis(200);

/// How long to wait for a server that is about to be started.
const START_WITHIN: Duration = Duration::from_secs(60);

/// Where a replay was first seen.
#[derive(Debug, Clone, Copy)]
struct Seen {
    at: Instant,
    done: u64,
}

/// Shows the replay until the server takes connections, or ends.
pub(super) fn run(app: &mut App, data: &Path) -> Result<Outcome, Error> {
    let watched = Watched::open(data)?;
    let progress = Progress::start("Replay", Counted::Things, app.options.quiet);
    let signals = Interruption::watch(|| {})?;
    let began = Instant::now();
    let (mut first, mut last): (Option<Seen>, Option<Seen>) = (None, None);
    let ended = loop {
        match watched.look() {
            Replay::Ready => break true,
            Replay::NotRunning if first.is_some() || began.elapsed() > START_WITHIN => break false,
            Replay::NotRunning => progress.note("waiting for a server"),
            Replay::Starting => progress.note("starting"),
            Replay::At(segment) => {
                progress.note(&format!("at LSN {}", watched.lsn(segment)));
                if let Some((done, all)) = watched.segments(segment) {
                    progress.set(done, Some(all.max(done)));
                    let seen = Seen {
                        at: Instant::now(),
                        done,
                    };
                    first.get_or_insert(seen);
                    last = Some(seen);
                }
            }
        }
        if signals.requested() {
            return Err(Error::failed("Interrupted"));
        }
        signals.sleep(POLL);
    };
    drop(progress);
    let replayed = first.zip(last).map(|(first, last)| {
        let bytes = (last.done.saturating_sub(first.done)).saturating_mul(watched.segment_bytes());
        (bytes, last.at.duration_since(first.at))
    });
    if let Some((bytes, elapsed)) = replayed
        && ended
        && let Ok(repository) = app.repository()
    {
        rates::keep_replay(&repository, bytes, elapsed);
    }
    let path = data.display();
    match ended {
        true => {
            let took = output::duration(began.elapsed());
            app.out.line(format_args!(
                "The server in {path} takes connections, after {took}"
            ))?;
            Ok(Outcome::Done)
        }
        false if first.is_some() => Err(Error::failed(format!("The server in {path} has ended"))
            .hint("Its log says why; a server that shuts down at its target does so, too")),
        false => Err(Error::failed(format!("No server runs in {path}"))
            .hint(format!("Start it: pg_ctl -D {path} start"))),
    }
}
