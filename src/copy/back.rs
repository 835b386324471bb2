//! From an object store into a directory, which becomes a repository again.

use std::path::Path;
use std::sync::{Arc, Mutex};

use barmanfs_bucket::{Bucket, ObjectPacks, Verified};
use barmanfs_catalog::{CopyInto, KnownPack, Monitor, RebuildReport};
use barmanfs_store::sync::lock;
use barmanfs_store::{Error as StoreError, PackId, PackStorage, read_footer};

use super::workers::each_pack;
use super::{Copied, CopyOptions, CopyProblem, SETTINGS, id_in, keys_in, settings_in};
use crate::error::Error;

/// What came back, and what the catalog says of it. Nothing was rebuilt with `dry_run`.
pub(crate) fn run(
    bucket: &Arc<Bucket>,
    directory: &Path,
    options: CopyOptions,
    monitor: &mut dyn Monitor,
) -> Result<(Copied, Option<RebuildReport>), Error> {
    let settings = settings_in(bucket)?.ok_or_else(|| {
        Error::failed(format!(
            "There is no repository in {0}: it has no {SETTINGS}",
            bucket.place()
        ))
        .hint("Name the prefix that the repository was copied to")
    })?;
    let packs = ObjectPacks::new(Arc::clone(bucket));
    monitor.stage("Listing the bucket");
    let mut there = Vec::new();
    let listed = packs.sizes(&mut |id, bytes| {
        there.push(KnownPack { id, bytes });
        Ok(())
    });
    listed?;
    let mut copied = Copied {
        repository: id_in(&settings, bucket.place())?,
        packs: there.len() as u64,
        bytes: there.iter().map(|pack| pack.bytes).sum(),
        ..Copied::default()
    };
    if options.dry_run {
        (copied.copied_packs, copied.copied_bytes) = (copied.packs, copied.bytes);
        return Ok((copied, None));
    }
    let into = CopyInto::begin(directory, &settings, &keys_in(bucket)?, bucket.place())?;
    let (present, missing): (Vec<_>, Vec<_>) = there
        .into_iter()
        .partition(|pack| matches!(into.packs().bytes(pack.id), Ok(bytes) if bytes == pack.bytes));
    copied.present_packs = present.len() as u64;
    monitor.stage(&format!("Copying from {}", bucket.place()));
    let problems = Mutex::new(Vec::new());
    let done = Mutex::new((0, 0));
    each_pack(&missing, monitor, |pack| {
        match fetch(&packs, into.packs().as_ref(), pack.id) {
            Ok(()) => {
                let mut done = lock(&done);
                *done = (done.0 + 1, done.1 + pack.bytes);
                Ok(())
            }
            Err(error) if error.is_damage() || matches!(error, StoreError::Invalid(_)) => {
                lock(&problems).push(CopyProblem::new(&pack.id, &error));
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    })?;
    (copied.copied_packs, copied.copied_bytes) = done.into_inner().unwrap_or_default();
    copied.problems = problems.into_inner().unwrap_or_default();
    copied.problems.sort();
    let report = into.finish(monitor)?;
    Ok((copied, Some(report)))
}

/// Takes one pack, if it is what was put into the bucket and a pack.
fn fetch(from: &ObjectPacks, into: &dyn PackStorage, id: PackId) -> barmanfs_store::Result<()> {
    let Verified(bytes) = from.whole(id)?;
    let mut upload = into.begin_copy(id)?;
    upload.write(&bytes)?;
    upload.finish()?;
    match read_footer(into, id) {
        Ok(_) => Ok(()),
        Err(error) => {
            into.remove(id)?;
            Err(error)
        }
    }
}
