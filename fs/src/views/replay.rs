//! WAL as a copy may replay it: replay stays within the copy's data directory, whatever the WAL contains.
//!
//! Where the server created a tablespace, replay would create a symbolic link into the server's own directory and
//! write there. In the WAL shown here, PostgreSQL creates a plain directory instead, as in the tablespaces of all
//! views, see [`barmanfs_pg::wal_scan::confine`]. Only WAL for copies is changed: `wal/`, `raw/` and `get-wal` have
//! the original bytes.
//!
//! WAL that cannot be confined to the copy cannot be opened here: recovery ends with an error, and the log gives the
//! reason.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use barmanfs_catalog::{Confined, LooseSegment, scan_segment};
use barmanfs_catalog::{ServerName, WalFile};
use barmanfs_pg::wal_check::LONG_HEADER_BYTES;
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_store::FileMap;

use super::context::Context;
use super::generated;
use crate::entry::{Body, Child, Lifetime};
use crate::error::{Error, Result};

/// An archived file.
pub(super) fn archived(context: &Context, file: WalFile) -> Result<Body> {
    let Confined { edits } = context.repository.confined(&file)?;
    Ok(Body::edited(file.map, edits))
}

/// The entry of an archived file. It gets another identity when the shown bytes change: the next segment may show that
/// more has to be changed.
pub(super) fn shown(context: &Context, server: &ServerName, child: Child, name: &WalName) -> Result<Child> {
    let Some(file) = context.repository.wal(server).find(name)? else {
        return Ok(child);
    };
    Ok(match context.repository.confined(&file) {
        Ok(Confined { edits }) if edits.is_empty() => child,
        Ok(Confined { edits }) => Child {
            identity: child
                .identity
                .wrapping_add(generated::identity(format!("{edits:?}").as_bytes())),
            lifetime: Lifetime::Never,
            ..child
        },
        // Opening it returns the error.
        Err(_) => Child {
            lifetime: Lifetime::Never,
            ..child
        },
    })
}

/// A segment that came with a backup, in its `pg_wal`. `beside` finds the neighbouring ones there.
pub(super) fn stored(
    context: &Context,
    server: &ServerName,
    name: SegmentName,
    map: FileMap,
    beside: &mut dyn FnMut(SegmentName) -> barmanfs_catalog::Result<Option<FileMap>>,
) -> Result<Body> {
    let Confined { edits } = context.repository.confined_stored(server, name, &map, beside)?;
    Ok(Body::edited(map, edits))
}

/// Confines the copy of a received part of a segment.
pub(super) fn confine_received(
    context: &Context,
    server: &ServerName,
    name: SegmentName,
    copy: &File,
    size_bytes: u64,
) -> Result<()> {
    let failed = |source: io::Error| Error::io("read", format!("(what has been received of {name})"), source);
    let mut source = copy;
    source.seek(SeekFrom::Start(0)).map_err(failed)?;
    let Some(index) = scan_segment(name, size_bytes, &mut source).map_err(failed)? else {
        return Ok(());
    };
    let mut beginning = Vec::new();
    source.seek(SeekFrom::Start(0)).map_err(failed)?;
    source
        .take(LONG_HEADER_BYTES as u64)
        .read_to_end(&mut beginning)
        .map_err(failed)?;
    let loose = LooseSegment {
        name,
        beginning: &beginning,
        index: &index,
    };
    for (at, bytes) in context.repository.confined_received(server, &loose)?.edits {
        copy.write_all_at(&bytes, at).map_err(failed)?;
    }
    Ok(())
}
