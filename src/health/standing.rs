//! How a server stands: what it says of itself, what is stored of it, and what would be lost if it were gone now.
//!
//! `status` and other commands show these facts. Nothing here prints, and nothing decides whether a fact is good.
//!
//! - [`Stored`]: facts from the repository.
//! - [`Live`]: facts from the server itself.
//! - [`Exposure`]: the commits of the server that are not safe here yet.
//! - [`Replication`]: what receives the server's WAL as a stream.
//! - [`each`]: collects facts of many servers at a time.

mod clients;
mod each;
mod exposure;
mod live;
mod replication;
mod stored;
mod unsafe_wal;

use barmanfs_catalog::{CrossingRecord, Repository};

use crate::cluster::Host;
use crate::config::ServerConfig;
use crate::error::Error;
pub(super) use clients::ask as ask_for_clients;
pub(crate) use clients::{OwnStream, StreamClient};
pub(crate) use each::each;
pub(crate) use exposure::{Exposure, Verdict};
pub(crate) use live::{ArchiverStats, Live, SETTINGS, Slot};
pub(crate) use replication::Replication;
pub(crate) use stored::{LastWal, Stored};

/// What a server said of itself.
#[derive(Debug)]
pub(crate) enum Answer {
    /// It was not asked, because it is inactive or passive.
    NotAsked,
    /// It did not answer.
    Failed(Error),
    /// It answered.
    Live(Box<Live>),
}

impl Answer {
    /// The facts, if it answered.
    pub(crate) fn live(&self) -> Option<&Live> {
        match self {
            Self::Live(live) => Some(live),
            Self::NotAsked | Self::Failed(_) => None,
        }
    }
}

/// How a server stands.
#[derive(Debug)]
pub(crate) struct Standing {
    /// What the server says.
    pub(crate) answer: Answer,
    /// What the host says that WAL is received from, where that is another one; `None` if it did not answer.
    wal_host: Option<Box<Live>>,
    /// What is stored of it; `None` before anything is.
    pub(crate) stored: Option<Stored>,
    /// What would be lost without it.
    pub(crate) exposure: Exposure,
}

/// Asks a host of a server what it says of itself.
///
/// # Errors
/// When it does not answer.
pub(crate) fn ask(server: &ServerConfig, host: Host) -> Result<Live, Error> {
    live::ask(server, host).map(|(live, _)| live)
}

impl Standing {
    /// Asks the server, if it is active, and then looks at what is stored: so what the server has said to be archived is
    /// there.
    ///
    /// # Errors
    /// When the repository cannot be read. A server that does not answer is no error.
    pub(crate) fn of(server: &ServerConfig, repository: Option<&Repository>) -> Result<Self, Error> {
        let is_asked = server.active && !server.is_passive();
        let asked = is_asked.then(|| live::ask(server, Host::Backup));
        let wal_host = (is_asked && server.has_wal_host()).then(|| live::ask(server, Host::Wal));
        let stored = repository
            .map(|repository| Stored::of(repository, &server.name))
            .transpose()?;
        let weigh = |live: &Live, streaming| {
            let crossing = match (&stored, repository, live.segment_size) {
                (Some(stored), Some(repository), Some(size)) => stored.crossing(repository, server, size)?,
                _ => CrossingRecord::Unknown,
            };
            Ok::<_, Error>(exposure::of(live, streaming, stored.as_ref(), crossing, server))
        };
        let (answer, mut exposure) = match asked {
            None => {
                let why = match server.is_passive() {
                    true => "this is a passive node, which does not ask the server",
                    false => "the server is inactive and was not asked",
                };
                let why = why.to_owned();
                (Answer::NotAsked, exposure::unasked(stored.as_ref(), server, why))
            }
            Some(Err(error)) => {
                let why = format!("the server does not answer: {error}");
                let exposure = exposure::unasked(stored.as_ref(), server, why);
                (Answer::Failed(error), exposure)
            }
            // A standby may not have the last commits.
            Some(Ok((live, _))) if wal_host.is_some() => {
                (Answer::Live(Box::new(live)), Exposure::unknown(String::new()))
            }
            Some(Ok((live, streaming))) => {
                let exposure = weigh(&live, streaming)?;
                (Answer::Live(Box::new(live)), exposure)
            }
        };
        let wal_host = match wal_host {
            None => None,
            Some(Ok((live, streaming))) => {
                exposure = weigh(&live, streaming)?;
                Some(Box::new(live))
            }
            Some(Err(error)) => {
                let why = format!("the host that WAL is received from does not answer: {error}");
                exposure = exposure::unasked(stored.as_ref(), server, why);
                None
            }
        };
        Ok(Self {
            answer,
            wal_host,
            stored,
            exposure,
        })
    }

    /// What the host says that WAL is received from.
    pub(crate) fn wal_live(&self, server: &ServerConfig) -> Option<&Live> {
        match server.has_wal_host() {
            true => self.wal_host.as_deref(),
            false => self.answer.live(),
        }
    }

    /// How far the stream of a running `receive-wal` is behind the server, in bytes of flushed WAL.
    pub(crate) fn stream_lag_bytes(&self, server: &ServerConfig) -> Option<u64> {
        let live = self.wal_live(server)?;
        let client = live.own_stream(server)?;
        Some(live.flush_lsn?.0.saturating_sub(client.flush_lsn?.0))
    }
}
