//! The commands of a replication connection, except the streams.

use barmanfs_pg::{Lsn, SystemId, TimelineId};

use super::{Connection, Error};

/// The identity and position of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SystemIdentification {
    /// The cluster.
    pub(crate) system_id: SystemId,
    /// The timeline that it writes or replays.
    pub(crate) timeline: TimelineId,
    /// The end of its flushed WAL; on a standby, of the received and replayed WAL.
    pub(crate) flush_lsn: Lsn,
}

/// The position of a replication slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SlotPosition {
    /// The oldest WAL that it keeps; `None` if it keeps none yet.
    pub(crate) restart_lsn: Option<Lsn>,
    /// The timeline of that position.
    pub(crate) restart_timeline: Option<TimelineId>,
}

/// A timeline history file from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HistoryFile {
    /// Its bytes.
    pub(crate) content: Vec<u8>,
}

/// The longest name of a slot: one less than PostgreSQL's `NAMEDATALEN`.
const MAX_SLOT_NAME_BYTES: usize = 63;

impl Connection {
    /// `IDENTIFY_SYSTEM`.
    pub(crate) fn identify_system(&mut self) -> Result<SystemIdentification, Error> {
        let result = self.one_result("IDENTIFY_SYSTEM")?;
        Ok(SystemIdentification {
            system_id: result.parse(0, "systemid")?,
            timeline: result.parse(0, "timeline")?,
            flush_lsn: result.parse(0, "xlogpos")?,
        })
    }

    /// `SHOW`: a setting in the server's form, such as `16MB` for `wal_segment_size`.
    pub(crate) fn show(&mut self, name: &str) -> Result<String, Error> {
        let is_name = !name.is_empty()
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.');
        if !is_name {
            return Err(Error::settings(format!(
                "\"{}\" is no name of a setting",
                name.escape_debug()
            )));
        }
        let result = self.one_result(&format!("SHOW {name}"))?;
        let value = result
            .columns()
            .first()
            .and_then(|column| result.text(0, column))
            .map(str::to_owned);
        value.ok_or_else(|| Error::protocol(format!("no value of \"{name}\"")))
    }

    /// Creates a slot that exists as long as this connection and keeps all WAL from now on.
    ///
    /// # Errors
    /// SQLSTATE 53400 if `max_replication_slots` are in use.
    pub(crate) fn create_temporary_slot(&mut self, name: &str) -> Result<(), Error> {
        // All versions accept this form; the one with options in parentheses only works from 15 on.
        let quoted = quoted_slot_name(name)?;
        self.one_result(&format!(
            "CREATE_REPLICATION_SLOT {quoted} TEMPORARY PHYSICAL RESERVE_WAL"
        ))?;
        self.keep_temporary_slot(name);
        Ok(())
    }

    /// `TIMELINE_HISTORY`: the history of a timeline; `None` for the first, which has none.
    ///
    /// # Errors
    /// SQLSTATE 58P01 if the server does not have the file.
    pub(crate) fn timeline_history(&mut self, timeline: TimelineId) -> Result<Option<HistoryFile>, Error> {
        if timeline.0 <= 1 {
            return Ok(None);
        }
        let result = self.one_result(&format!("TIMELINE_HISTORY {timeline}"))?;
        match (result.text(0, "filename"), result.bytes(0, "content")) {
            (Some(name), Some(content)) if name == format!("{}.history", timeline.hex()) => {
                Ok(Some(HistoryFile {
                    content: content.to_vec(),
                }))
            }
            _ => Err(Error::protocol(format!("no history of timeline {timeline}"))),
        }
    }
}

/// Slots that outlive the connection.
impl Connection {
    /// Creates a permanent slot, which keeps all WAL from now on.
    ///
    /// # Errors
    /// SQLSTATE 42710 if the name exists.
    pub(crate) fn create_slot(&mut self, name: &str) -> Result<(), Error> {
        let name = quoted_slot_name(name)?;
        self.one_result(&format!("CREATE_REPLICATION_SLOT {name} PHYSICAL RESERVE_WAL"))
            .map(drop)
    }

    /// The position of a physical slot; `None` if it does not exist. PostgreSQL 15 and later.
    pub(crate) fn read_slot(&mut self, name: &str) -> Result<Option<SlotPosition>, Error> {
        let result = self.one_result(&format!("READ_REPLICATION_SLOT {}", quoted_slot_name(name)?))?;
        if result.bytes(0, "slot_type").is_none() {
            return Ok(None);
        }
        let present = |column: &str| result.bytes(0, column).is_some();
        Ok(Some(SlotPosition {
            restart_lsn: present("restart_lsn")
                .then(|| result.parse(0, "restart_lsn"))
                .transpose()?,
            restart_timeline: present("restart_tli")
                .then(|| result.parse(0, "restart_tli"))
                .transpose()?,
        }))
    }

    /// Drops a slot. With `wait`, waits while it is in use.
    pub(crate) fn drop_slot(&mut self, name: &str, wait: bool) -> Result<(), Error> {
        let name = quoted_slot_name(name)?;
        let wait = if wait { " WAIT" } else { "" };
        self.simple_query(&format!("DROP_REPLICATION_SLOT {name}{wait}"))
            .map(drop)
    }
}

/// Whether PostgreSQL accepts this name for a slot.
pub(crate) fn is_slot_name(name: &str) -> bool {
    (1..=MAX_SLOT_NAME_BYTES).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

pub(super) fn quoted_slot_name(name: &str) -> Result<String, Error> {
    match is_slot_name(name) {
        true => Ok(format!("\"{name}\"")),
        false => Err(Error::settings(format!(
            "Invalid name of a replication slot \"{}\"",
            name.escape_debug()
        ))
        .with_hint("It may have up to 63 lower-case letters, digits and underscores")),
    }
}
