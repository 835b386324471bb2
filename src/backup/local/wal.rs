//! The WAL that a backup brings: read from the server's `pg_wal`, which the backup's slot keeps.

use std::fs;
use std::path::Path;

use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_pg::{Lsn, SegmentSize};
use barmanfs_store::layout::{DATA_WINDOW_BYTES, STREAM_WINDOW_BYTES};
use barmanfs_store::{Attributes, TreeWriter, open_unlinked};

use super::place::{DataDirectory, in_seconds};
use crate::backup::window::Stopped;
use crate::error::Error;
use crate::walk::{attributes, cannot_read};

/// Bytes to read at a time.
const READ_BYTES: usize = 256 << 10;

/// Stores the segments from the start to the end, and the histories, each with the mark that it is archived: a copy would archive
/// them again otherwise. Returns how many bytes were read.
///
/// # Errors
/// When a segment is missing, or something cannot be read or stored.
pub(super) fn store(
    tree: &TreeWriter,
    data: &DataDirectory,
    stopped: &Stopped,
    (size, like): (SegmentSize, Attributes),
) -> Result<u64, Error> {
    let place = data.path().join("pg_wal");
    let mut bytes = 0;
    for segment in segments(stopped, size) {
        let found = store_file(tree, &place, &segment.to_string(), (STREAM_WINDOW_BYTES, like))?;
        if found != size.bytes() {
            return Err(Error::failed(format!(
                "{} has {found} bytes and is no whole segment",
                place.join(segment.to_string()).display()
            )));
        }
        bytes += found;
    }
    for entry in fs::read_dir(&place).map_err(|error| cannot_read(&place, &error))? {
        let entry = entry.map_err(|error| cannot_read(&place, &error))?;
        let name = entry.file_name();
        if let Some(name) = name.to_str()
            && matches!(name.parse(), Ok(WalName::History(_)))
        {
            bytes += store_file(tree, &place, name, (DATA_WINDOW_BYTES, like))?;
        }
    }
    Ok(bytes)
}

/// Those of the backup.
fn segments(stopped: &Stopped, size: SegmentSize) -> impl Iterator<Item = SegmentName> {
    let timeline = stopped.label.start_timeline;
    let of = move |lsn| SegmentName::from_lsn(timeline, lsn, size);
    let (first, last) = (stopped.label.start_lsn, Lsn(stopped.stop_lsn.0.saturating_sub(1)));
    let last = of(last.max(first));
    std::iter::successors(Some(of(first)), move |segment| Some(segment.next(size)))
        .take_while(move |segment| *segment <= last)
}

fn store_file(
    tree: &TreeWriter,
    place: &Path,
    name: &str,
    (window_bytes, like): (u32, Attributes),
) -> Result<u64, Error> {
    let place = place.join(name);
    let unreadable = |error: std::io::Error| cannot_read(&place, &error);
    let mut file = open_unlinked(&place).map_err(unreadable)?;
    let found = file.metadata().map_err(unreadable)?;
    let path = format!("pg_wal/{name}");
    let mut sink = tree.file(
        path.as_bytes(),
        in_seconds(attributes(&found)),
        found.len(),
        window_bytes,
    )?;
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match std::io::Read::read(&mut file, &mut buffer).map_err(unreadable)? {
            0 => break,
            length => sink.write(buffer.get(..length).unwrap_or_default())?,
        }
    }
    sink.finish()?;
    let done = format!("pg_wal/archive_status/{name}.done");
    tree.file(done.as_bytes(), like, 0, DATA_WINDOW_BYTES)?.finish()?;
    Ok(found.len())
}
