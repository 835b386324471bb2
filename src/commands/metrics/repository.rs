//! The metrics of the repository.

use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime};

use barmanfs_fs::FoundMount;

use super::families as of;
use super::server::{cron, seconds};
use super::sheet::Sheet;
use crate::error::Error;
use crate::health::{self, Extent};
use crate::output::printable;
use crate::place::Place;

const DAY_SECONDS: f64 = 24.0 * 3600.0;

/// Adds what is known of the repository at `place`. That it cannot be read within the time is one of the metrics.
pub(super) fn add(sheet: &mut Sheet, place: &Place, within: Duration) -> Result<(), Error> {
    sheet.add(&of::BUILD_INFO, &[env!("CARGO_PKG_VERSION")], 1)?;
    sheet.add_fraction(&of::MEASURED_AT, &[], seconds(SystemTime::now().into()))?;
    let owned = place.clone();
    let extent = match health::within(within, move || Extent::of(&owned)) {
        Some(Ok(extent)) => extent,
        Some(Err(error)) => return unreadable(sheet, &error.to_string()),
        None => return unreadable(sheet, "it does not answer in time"),
    };
    sheet.add(&of::REPOSITORY_UP, &[], 1)?;
    sheet.add(&of::PACKS, &[], extent.packs.packs)?;
    sheet.add(&of::PACK_BYTES, &[], extent.packs.bytes)?;
    sheet.add(&of::CATALOG_BYTES, &[], extent.catalog_bytes)?;
    sheet.add(&of::FREE_BYTES, &[], extent.free_bytes)?;
    sheet.add(&of::LOGICAL_BYTES, &["backups"], extent.backup_bytes)?;
    sheet.add(&of::LOGICAL_BYTES, &["wal"], extent.wal_bytes)?;
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let growth = extent.growth.bytes_per_day as f64 / DAY_SECONDS;
    sheet.add_fraction(&of::GROWTH, &[], growth)?;
    if let Some(ratio) = extent.dedup_ratio() {
        sheet.add_fraction(&of::DEDUP_RATIO, &[], ratio)?;
    }
    cron(sheet, "", extent.cron.ran_at, &extent.cron.tasks)?;
    sheet.add(&of::MOUNTS, &[], extent.mounts.len() as u64)?;
    extent.mounts.iter().try_for_each(|mount| add_mount(sheet, mount))
}

/// What a mount has done since it began.
fn add_mount(sheet: &mut Sheet, mount: &FoundMount) -> Result<(), Error> {
    let Some(counters) = &mount.counters else {
        return Ok(());
    };
    let place = printable(mount.mount_point.as_os_str().as_bytes());
    let place = place.as_str();
    for totals in counters.requests.iter().filter(|totals| totals.count > 0) {
        let labels = [place, totals.kind.as_str()];
        sheet.add(&of::MOUNT_REQUESTS, &labels, totals.count)?;
        sheet.add_fraction(&of::MOUNT_SECONDS, &labels, totals.seconds)?;
    }
    for totals in &counters.errors {
        let number = totals
            .errno
            .map_or_else(|| "other".to_owned(), |errno| errno.to_string());
        sheet.add(&of::MOUNT_ERRORS, &[place, &number], totals.count)?;
    }
    for (family, value) in [
        (of::MOUNT_READ_BYTES, counters.bytes_read),
        (of::MOUNT_PACK_BYTES, counters.pack_bytes_read),
        (of::MOUNT_PACK_FAILURES, counters.pack_reads_failed),
        (of::MOUNT_CHUNKS, counters.chunks_decoded),
        (of::MOUNT_CHUNK_BYTES, counters.chunk_bytes_decoded),
        (of::MOUNT_HITS, counters.cache_hits),
        (of::MOUNT_MISSES, counters.cache_misses),
    ] {
        sheet.add(&family, &[place], value)?;
    }
    Ok(())
}

fn unreadable(sheet: &mut Sheet, why: &str) -> Result<(), Error> {
    tracing::warn!("The repository cannot be read: {why}");
    sheet.add(&of::REPOSITORY_UP, &[], 0)
}
