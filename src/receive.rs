//! Receiving WAL as a stream: what `receive-wal` does until it is stopped.
//!
//! One thread holds the connection ([`session`]). It writes received data into the spool, and syncs it as soon as
//! nothing more is arriving. Only then does it report to the server, which may have a commit waiting for that. Another
//! thread ([`archiver`]) moves whole segments from the spool into the archive, so that no commit waits for compression.
//!
//! - Only data that is durable in the spool or the archive is reported as flushed. A kill at any moment loses nothing
//!   that was reported: the next start continues after the stored data ([`position`]).
//! - Only a signal, or a changed or wrong configuration, ends this. Every other failure is logged, and the work is tried again.

mod archiver;
mod backoff;
mod intake;
mod position;
mod session;
pub(crate) mod slot;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use barmanfs_catalog::Repository;
use barmanfs_pg::wal_name::SegmentName;
use barmanfs_store::threads;

use crate::cluster::{self, Purpose, ServerSettings};
use crate::config::ServerConfig;
use crate::error::{Error, Kind};
use crate::signals::Interruption;
use archiver::Archiver;
pub(crate) use archiver::archive;
use backoff::Backoff;
use session::{Ended, Session};

/// How often it is looked whether the configuration has changed.
const LOOK_AT_CONFIGURATION_EVERY: Duration = Duration::from_secs(5);

/// Why receiving ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// A signal came.
    Stopped,
    /// The configuration of the server has changed: another process must go on with it.
    Changed,
}

/// Receives the WAL of a server until a signal comes, or `has_changed` says that its configuration is another one now.
///
/// # Errors
/// When another process receives it, when the configuration is wrong, or when the repository cannot be used at all.
pub(crate) fn run(
    repository: &Repository,
    server: &ServerConfig,
    has_changed: &(dyn Fn() -> bool + Sync),
) -> Result<End, Error> {
    let stop = Interruption::watch(|| {})?;
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        threads::start_in(scope, "configuration", || {
            let mut looks = 0;
            while !stop.requested() {
                stop.sleep(LOOK_AT_CONFIGURATION_EVERY);
                // Once may be in the middle of a change.
                looks = if has_changed() { looks + 1 } else { 0 };
                if looks > 1 && !stop.requested() {
                    end.store(true, Ordering::Relaxed);
                    stop.request();
                }
            }
        })?;
        let received = until_stopped(repository, server, &stop);
        stop.request();
        received
    })?;
    Ok(match end.load(Ordering::Relaxed) {
        true => End::Changed,
        false => End::Stopped,
    })
}

fn until_stopped(repository: &Repository, server: &ServerConfig, stop: &Interruption) -> Result<(), Error> {
    let spool = Arc::new(repository.spool(&server.name)?);
    let archiver = Archiver::start(Arc::clone(&spool), server)?;
    let session = Session {
        server,
        spool: &spool,
        archiver: &archiver,
        stop,
    };
    if server.slot_name.is_none() {
        tracing::warn!(
            "Server {} has no slot_name: WAL it removes before it is received is lost",
            server.name
        );
    }
    let mut backoff = Backoff::default();
    while !stop.requested() {
        let reason = match session.run(&mut backoff) {
            Ok(Ended::Stopped) => break,
            Ok(Ended::ServerShutDown) => "The server is shutting down".to_owned(),
            Err(error) if error.kind() == Kind::Usage => return Err(error),
            Err(error) => in_one_line(&error),
        };
        if archiver.has_ended() {
            return Err(Error::failed("The thread that archives has ended: this is a bug"));
        }
        let delay = backoff.next();
        tracing::warn!(
            "WAL of server {} is not being received, next try in {:.1} s. {reason}",
            server.name,
            delay.as_secs_f64()
        );
        stop.sleep(delay);
    }
    tracing::info!("Receiving WAL of server {} ended", server.name);
    Ok(())
}

/// Message and hint in one line.
fn in_one_line(error: &Error) -> String {
    match error.hint_text() {
        Some(hint) => format!("{error}. {hint}"),
        None => error.to_string(),
    }
}

/// Makes the next start begin with the segment that the server is writing now, regardless of what was received before.
/// The content of the spool is kept in the archive.
///
/// # Errors
/// While another process receives, and when the server or the repository cannot be used.
pub(crate) fn reset(repository: &Repository, server: &ServerConfig) -> Result<SegmentName, Error> {
    let spool = repository.spool(&server.name)?;
    let mut connection = cluster::connect(server, Purpose::ReceiveWal)?;
    let cluster = ServerSettings::ask(&mut connection)?;
    session::refuse_other_system(repository, server, &connection, &cluster)?;
    spool.settle(cluster.timeline)?;
    for name in spool.partial()? {
        spool.set_aside(name)?;
        tracing::info!("Segment {name}, which was not whole, is kept in the archive as {name}.partial");
    }
    let name = SegmentName::from_lsn(cluster.timeline, cluster.flush_lsn, cluster.segment_size);
    spool.begin(name, cluster.segment_size)?;
    Ok(name)
}
