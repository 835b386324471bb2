//! What a sweep would free if something were deleted first.

use barmanfs_store::Record;
use rusqlite::Connection;
use serde::Serialize;

use crate::archive::backup::Backup;
use crate::archive::backup::boot_test::BootTestRecord;
use crate::archive::backup::configuration::ConfigurationRecord;
use crate::archive::roots::Without;
use crate::error::Result;
use crate::index::records::{self, Kind};
use crate::index::repository::Repository;
use crate::monitor::Monitor;
use crate::names::ServerName;
use crate::retention::RetentionPlan;
use crate::upkeep::sweep::SweepOptions;
use crate::upkeep::sweep::condemn::live_records;
use crate::upkeep::sweep::mark::Mark;

/// What a sweep would free.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Forecast {
    /// Bytes of packs that would be removed, without the bytes that would be copied out of them.
    pub freed_bytes: u64,
    /// Packs with nothing in use.
    pub dead_packs: u64,
    /// Packs that would be repacked.
    pub repacked_packs: u64,
}

impl Repository {
    /// What a sweep would free after a plan has been carried out, with what earlier deletions have left. Reads what all
    /// records refer to, as a sweep does.
    ///
    /// # Errors
    /// As a sweep: when it is unknown what is in use.
    pub fn forecast(
        &self,
        server: &ServerName,
        plan: &RetentionPlan,
        monitor: &mut dyn Monitor,
    ) -> Result<Forecast> {
        let doomed: Vec<_> = plan.doomed().map(|backup| backup.id).collect();
        let without = Without {
            server: server.clone(),
            backups: doomed,
            wal: plan.removable_wal().iter().map(|wal| wal.range).collect(),
        };
        monitor.stage("Finding what would be in use");
        let mark = Mark::make_without(self, Some(&without), monitor)?;
        let dead_percent = u64::from(SweepOptions::default().dead_percent);
        let mut forecast = Forecast::default();
        for pack in self.condemned().all(mark.newest_pack)? {
            let in_use = mark.in_use(pack.seq);
            let live = live_records(self, &pack)?;
            let stays = self.db.read(|db| {
                let mut stays = false;
                for record in &live {
                    stays |= !goes(db, &without, record)?;
                }
                Ok(stays)
            })?;
            let dead_bytes = pack.stored_bytes.saturating_sub(in_use.stored_bytes);
            if in_use.chunks == 0 && !stays {
                forecast.dead_packs += 1;
                forecast.freed_bytes += pack.bytes;
            } else if dead_bytes * 100 > pack.stored_bytes * dead_percent {
                forecast.repacked_packs += 1;
                forecast.freed_bytes += dead_bytes;
            }
        }
        Ok(forecast)
    }
}

/// Whether a record would be deleted.
fn goes(db: &Connection, without: &Without, record: &Record) -> Result<bool> {
    match Kind::of(record.kind) {
        Some(Kind::Backup | Kind::Snapshot) => {
            let backup: Backup = records::parse(record.id, &record.payload)?;
            Ok(without.has_backup(&backup.server, backup.id))
        }
        // What belongs to a backup is deleted with it.
        Some(Kind::Configuration) => {
            let of: ConfigurationRecord = records::parse(record.id, &record.payload)?;
            Ok(without.has_backup(&of.server, of.backup))
        }
        Some(Kind::BootTest) => {
            let of: BootTestRecord = records::parse(record.id, &record.payload)?;
            Ok(without.has_backup(&of.server, of.backup))
        }
        Some(Kind::Wal) => without.has_wal(db, record.id, &records::parse(record.id, &record.payload)?),
        _ => Ok(false),
    }
}
