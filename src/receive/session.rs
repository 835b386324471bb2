//! One connection to the server, from its beginning to its end, across all its timelines.

use barmanfs_catalog::{Repository, Spool};
use barmanfs_pg::wal_name::SegmentName;
use barmanfs_pg::{SystemId, TimelineId};

use super::archiver::Archiver;
use super::backoff::Backoff;
use super::intake::{Intake, StreamEnd, TICK};
use super::position::{self, Server, Start};
use super::slot;
use crate::cluster::{self, ANSWER_WITHIN, Purpose, ServerSettings};
use crate::config::ServerConfig;
use crate::error::Error;
use crate::forks;
use crate::lineage::{self, ForkPoint, Lineage, history_file};
use crate::postgres::{Connection, NextTimeline, Replication};
use crate::signals::Interruption;

/// The origin of history files that this archives, for their records.
const ORIGIN: &str = "receive-wal";

/// How a connection that did not fail ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// A signal came.
    Stopped,
    /// The server shuts down.
    ServerShutDown,
}

/// The state that all connections share.
pub(super) struct Session<'a> {
    pub(super) server: &'a ServerConfig,
    pub(super) spool: &'a Spool,
    pub(super) archiver: &'a Archiver,
    pub(super) stop: &'a Interruption,
}

impl Session<'_> {
    /// Receives until the connection ends.
    ///
    /// # Errors
    /// When the connection ended because of a failure.
    pub(super) fn run(&self, backoff: &mut Backoff) -> Result<Ended, Error> {
        let repository = self.spool.repository();
        let mut connection = cluster::connect(self.server, Purpose::ReceiveWal)?;
        let cluster = ServerSettings::ask(&mut connection)?;
        // Another process may have rebuilt the catalog.
        repository.generation()?;
        refuse_other_system(repository, self.server, &connection, &cluster)?;
        self.compare_history(&mut connection, &cluster);
        // A comparison that failed in the middle of an answer has used the connection up. It must not delay receiving.
        if !connection.is_ready() {
            connection = cluster::connect(self.server, Purpose::ReceiveWal)?;
        }
        let mut at = self.start(&mut connection, &cluster)?;
        loop {
            tracing::info!(
                "Receiving WAL of server {} from {} on, timeline {}",
                self.server.name,
                at.lsn,
                at.timeline
            );
            let next = match self.stream(&mut connection, at, &cluster, backoff)? {
                StreamEnd::Stopped => return Ok(Ended::Stopped),
                StreamEnd::ShutDown => return Ok(Ended::ServerShutDown),
                StreamEnd::Timeline(next) => next,
            };
            at = self.follow(&mut connection, at.timeline, next, &cluster)?;
        }
    }

    /// Records a fork if the server has another history than the archive. Receiving continues, but the WAL is put
    /// aside.
    fn compare_history(&self, connection: &mut Connection, cluster: &ServerSettings) {
        let (repository, name) = (self.spool.repository(), &self.server.name);
        let record = |found: &ForkPoint| {
            let place = (found.timeline, found.lsn, cluster.segment_size);
            repository
                .writer(&format!("receive-wal of {name}"))?
                .record_fork(name, place, &found.why, ORIGIN)
        };
        match lineage::of_archive(repository, name, cluster, connection) {
            Ok(Lineage::Same | Lineage::Unknown) => {}
            Ok(Lineage::Other(found)) => match record(&found) {
                Ok(fork) => tracing::error!(
                    "The history of server {name} has changed: {found}. {}",
                    forks::advice(name, &fork)
                ),
                Err(error) => tracing::error!("The history of server {name} has changed: {found}. {error}"),
            },
            Err(error) => {
                tracing::warn!("The history of server {name} cannot be compared with the archive's: {error}");
            }
        }
    }

    fn start(&self, connection: &mut Connection, cluster: &ServerSettings) -> Result<Start, Error> {
        let repository = self.spool.repository();
        let history = history_file::fetch(
            repository,
            connection,
            &self.server.name,
            cluster.timeline,
            ORIGIN,
        )?;
        for kept in self.spool.settle(cluster.timeline)? {
            tracing::error!(
                "Segment {kept} had been received with other content than the archive has by now: it is kept there as {kept}.partial"
            );
        }
        let server = Server {
            history: &history,
            flush_lsn: cluster.flush_lsn,
            slot: slot::prepare(connection, self.server)?,
            size: cluster.segment_size,
        };
        position::find(repository, self.spool, &server)
    }

    /// Receives one timeline.
    fn stream(
        &self,
        connection: &mut Connection,
        at: Start,
        cluster: &ServerSettings,
        backoff: &mut Backoff,
    ) -> Result<StreamEnd, Error> {
        let slot = self.server.slot_name.as_deref();
        connection.set_read_timeout(Some(TICK))?;
        let intake = Intake::new(self.spool, self.archiver, self.stop, at, cluster.segment_size);
        let ended = match connection
            .start_replication(slot, at.timeline, at.lsn)
            .map_err(|error| slot::explain(self.server, error))?
        {
            Replication::Stream(stream) => intake.run(stream, &mut || backoff.reset())?,
            Replication::TimelineEnded(next) => StreamEnd::Timeline(next),
        };
        connection.set_read_timeout(Some(ANSWER_WITHIN))?;
        Ok(ended)
    }

    /// Continues with the next timeline, as PostgreSQL's own receiver does: from the start of the segment in which the
    /// old timeline was left, so that the new timeline's segment is complete.
    fn follow(
        &self,
        connection: &mut Connection,
        left: TimelineId,
        next: NextTimeline,
        cluster: &ServerSettings,
    ) -> Result<Start, Error> {
        let (size, switch) = (cluster.segment_size, next.switch_lsn);
        if next.timeline <= left {
            return Err(Error::failed(format!(
                "The server says that timeline {left} goes on as timeline {}",
                next.timeline
            )));
        }
        tracing::info!(
            "Server {} went over from timeline {left} to {} at {switch}",
            self.server.name,
            next.timeline
        );
        let repository = self.spool.repository();
        history_file::fetch(repository, connection, &self.server.name, next.timeline, ORIGIN)?;
        // Up to the switch, the old segment has the same bytes as the new one. Bytes beyond the switch come from an old
        // primary, and the standby that was promoted never got them: commits that may have been reported as done.
        let segment = SegmentName::from_lsn(left, switch, size);
        if self.spool.take_over(segment, next.timeline, switch, size)? {
            tracing::error!(
                "Segment {segment} holds WAL after {switch} that is not in timeline {}: it is kept in the archive as \
                 {segment}.partial. Commits in it are not on the server",
                next.timeline
            );
        }
        Ok(Start {
            timeline: next.timeline,
            lsn: switch.segment_start(size),
        })
    }
}

/// A server name always belongs to the same cluster. As long as nothing is stored, WAL from a host of its own must be of the
/// cluster that backups come from.
pub(super) fn refuse_other_system(
    repository: &Repository,
    server: &ServerConfig,
    connection: &Connection,
    cluster: &ServerSettings,
) -> Result<(), Error> {
    let stored = repository.system_id(&server.name)?;
    let (known, whose) = match stored {
        Some(known) => (Some(known), format!("what is stored of '{}'", server.name)),
        None if server.has_wal_host() => (system_id_of_backups(server), "the host of backups".to_owned()),
        None => (None, String::new()),
    };
    let Some(known) = known.filter(|known| *known != cluster.system_id) else {
        return Ok(());
    };
    let (who, hint) = match server.has_wal_host() {
        true => (
            format!("The host that WAL is received from ({})", connection.target()),
            "Correct wal_streaming_conninfo, or use another server name for another cluster",
        ),
        false => (
            "The server".to_owned(),
            "Use another server name for a new cluster",
        ),
    };
    Err(Error::failed(format!(
        "{who} is the cluster with system identifier {}, {whose} is of {known}",
        cluster.system_id
    ))
    .hint(hint))
}

/// The cluster that backups come from; `None` if it does not answer.
fn system_id_of_backups(server: &ServerConfig) -> Option<SystemId> {
    let asked = cluster::look(server, Purpose::Backup)
        .and_then(|mut connection| Ok(connection.identify_system()?.system_id));
    match asked {
        Ok(system_id) => Some(system_id),
        Err(error) => {
            tracing::warn!(
                "Nothing is stored of server {} yet, and the host of its backups does not say whether it is of the same \
                 cluster as the host that WAL is received from: {error}",
                server.name
            );
            None
        }
    }
}
