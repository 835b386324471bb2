//! `barmanfs restore --watch`: how far the recovery of a restored directory has come.

use std::path::Path;
use std::time::{Duration, Instant};

use barmanfs_catalog::Repository;

use crate::commands::App;
use crate::error::{Error, Outcome};
use crate::instance;
use crate::output;
use crate::report::ReplayReport;
use crate::restore::rates;
use crate::restore::replay_progress::{ReplayProgress, text};
use crate::restore::watch::{Replay, Watched};
use crate::signals::Interruption;

/// Replay of a segment takes longer than this, mostly.
const POLL: Duration = Duration::from_millis(200);

/// How long to wait for a server that is about to be started.
const START_WITHIN: Duration = Duration::from_secs(60);

/// Shows the replay until the server takes connections, or ends; as JSON, how it is now.
pub(super) fn run(app: &mut App, data: &Path, is_json: bool) -> Result<Outcome, Error> {
    let mut watched = Watched::open(data)?;
    let server = watched
        .server
        .as_ref()
        .and_then(|server| app.config.server(server.as_str()));
    watched.path_prefix = server.and_then(|server| server.path_prefix.clone());
    // The directory may be on a host that has none.
    let repository = app.repository().ok();
    match is_json {
        true => once(app, data, &watched, repository.as_ref()),
        false => until_ready(app, data, &watched, repository.as_ref()),
    }
}

fn once(
    app: &mut App,
    data: &Path,
    watched: &Watched,
    repository: Option<&Repository>,
) -> Result<Outcome, Error> {
    let replay = watched.look();
    let reached = watched.reached(replay, repository);
    let rates = repository.map(rates::known).unwrap_or_default();
    app.out
        .json(&ReplayReport::new(data, watched, replay, &reached, &rates))?;
    Ok(Outcome::Done)
}

fn until_ready(
    app: &mut App,
    data: &Path,
    watched: &Watched,
    repository: Option<&Repository>,
) -> Result<Outcome, Error> {
    let mut progress = ReplayProgress::start(watched, repository, "Replay", app.options.quiet);
    let signals = Interruption::watch(|| {})?;
    let began = Instant::now();
    let ready = loop {
        match progress.look() {
            replay @ (Replay::Ready | Replay::Paused) => break Some(replay),
            Replay::NotRunning if instance::has_shut_down_at_target(data)? => {
                drop(progress);
                return tell_shut_down(app, data);
            }
            Replay::NotRunning if progress.has_begun() || began.elapsed() > START_WITHIN => break None,
            Replay::NotRunning | Replay::Starting | Replay::At(_) => {}
        }
        if signals.requested() {
            return Err(Error::failed("Interrupted"));
        }
        signals.sleep(POLL);
    };
    let has_begun = progress.has_begun();
    if ready.is_some() {
        progress.keep_rate();
    }
    drop(progress);
    let path = data.display();
    match ready {
        Some(replay) => {
            let took = output::duration(began.elapsed());
            let reached = watched.reached(replay, repository);
            let place = match reached.lsn {
                Some(_) => format!(": it is {}", text(&reached)),
                None => String::new(),
            };
            let pause = match replay {
                Replay::Paused => {
                    ", and is paused at its target: SELECT pg_wal_replay_resume() ends the recovery"
                }
                _ => "",
            };
            app.out.line(format_args!(
                "The server in {path} takes connections, after {took}{place}{pause}"
            ))?;
            Ok(Outcome::Done)
        }
        None if has_begun => Err(Error::failed(format!("The server in {path} has ended"))
            .hint("Its log says why; a server that shuts down at its target does so, too")),
        None => Err(Error::failed(format!("No server runs in {path}"))
            .hint(format!("Start it: pg_ctl -D {path} start"))),
    }
}

/// It was told to shut down at its target, so this is an end as good as another.
fn tell_shut_down(app: &mut App, data: &Path) -> Result<Outcome, Error> {
    let path = data.display();
    app.out.line(format_args!(
        "The server in {path} has recovered to its target and has shut down there, as recovery_target_action says: \
         set that to promote to go on"
    ))?;
    Ok(Outcome::Done)
}
