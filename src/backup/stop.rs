//! Stopping a backup by a signal.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::cluster::{self, Purpose};
use crate::config::ServerConfig;
use crate::error::Error;
use crate::postgres::{Connection, Interrupter};
use crate::signals::Interruption;
use barmanfs_store::threads;

use barmanfs_store::sync::lock;

/// How soon a signal is noticed while connecting to the server.
const SIGNAL_NOTICED_WITHIN: Duration = Duration::from_millis(100);

/// Ends the running backup's wait for its server when a signal comes.
#[derive(Debug)]
pub(crate) struct Stop {
    connection: Slot,
    /// Those of all backups that run at the same time.
    all: Arc<Mutex<Vec<Slot>>>,
    signals: Arc<Interruption>,
}

/// The connection of one backup.
type Slot = Arc<Mutex<Option<Interrupter>>>;

impl Stop {
    /// Starts watching for signals.
    pub(crate) fn watch() -> Result<Self, Error> {
        let connection = Slot::default();
        let all = Arc::new(Mutex::new(vec![Arc::clone(&connection)]));
        let current = Arc::clone(&all);
        let signals = Interruption::watch(move || {
            for slot in lock(&current).iter() {
                if let Some(interrupter) = lock(slot).as_ref() {
                    interrupter.interrupt();
                }
            }
        })?;
        Ok(Self {
            connection,
            all,
            signals: Arc::new(signals),
        })
    }

    /// For another backup at the same time: the same signals end it.
    pub(crate) fn another(&self) -> Self {
        let connection = Slot::default();
        lock(&self.all).push(Arc::clone(&connection));
        Self {
            connection,
            all: Arc::clone(&self.all),
            signals: Arc::clone(&self.signals),
        }
    }

    /// Whether to stop.
    pub(crate) fn requested(&self) -> bool {
        self.signals.requested()
    }

    /// The signals that it watches for.
    pub(crate) fn signals(&self) -> &Interruption {
        &self.signals
    }

    /// Makes this the connection to interrupt.
    pub(crate) fn guard(&self, connection: &Connection) -> Result<(), Error> {
        let interrupter = connection.interrupter()?;
        *lock(&self.connection) = Some(interrupter);
        Ok(())
    }

    /// Replaces the error of a connection that was interrupted.
    pub(crate) fn explain(&self, error: Error) -> Error {
        if self.requested() {
            Error::failed("Interrupted")
        } else {
            error
        }
    }
}

/// Connects in a thread of its own, because a login may take a while, and until then there is no connection to
/// interrupt.
pub(crate) fn connect(server: &ServerConfig, stop: &Stop) -> Result<Connection, Error> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let settings = server.clone();
    threads::start("connect", move || {
        // The receiver may have stopped waiting.
        let _unwanted = sender.send(cluster::connect(&settings, Purpose::Backup));
    })?;
    loop {
        match receiver.recv_timeout(SIGNAL_NOTICED_WITHIN) {
            Ok(connected) => return connected,
            Err(RecvTimeoutError::Timeout) if !stop.requested() => {}
            Err(_) => return Err(Error::failed("Interrupted")),
        }
    }
}
