//! From a directory into an object store, while backups, archiving and sweeps go on.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use barmanfs_bucket::{Abilities, Bucket, Claim, ObjectPacks};
use barmanfs_catalog::{CopyFrom, KnownPack, Monitor, Repository};
use barmanfs_store::sync::lock;
use barmanfs_store::{Error as StoreError, PackId, PackStorage, read_footer};
use bytes::Bytes;

use super::workers::each_pack;
use super::{Copied, CopyOptions, CopyProblem, LockedPack, SETTINGS, first, id_in, key_in, settings_in};
use crate::error::Error;

/// A pack is read in pieces of this size.
const READ_BYTES: usize = 4 * 1024 * 1024;

/// A copy that runs.
struct Out<'a> {
    from: CopyFrom,
    bucket: &'a Arc<Bucket>,
    packs: ObjectPacks,
    options: CopyOptions,
    /// What cannot be copied, by several threads.
    problems: Mutex<Vec<CopyProblem>>,
    copied: Copied,
}

/// Copies what the bucket lacks.
pub(crate) fn run(
    repository: &Repository,
    bucket: &Arc<Bucket>,
    options: CopyOptions,
    monitor: &mut dyn Monitor,
) -> Result<Copied, Error> {
    let id = repository.settings().id.clone();
    let key = repository
        .settings()
        .encryption
        .as_ref()
        .map(|encryption| encryption.key.to_string());
    let claimed = refuse_other(bucket, &id, key.as_deref())?;
    if Claim::is_made(bucket)? {
        return Err(Error::failed(format!(
            "{} is a repository of its own: a host writes into it, and a copy would mix the two",
            bucket.place()
        ))
        .hint("Copy into another prefix of the bucket"));
    }
    if !options.dry_run {
        let abilities = Abilities::probe(&first(bucket))?;
        tracing::debug!("{abilities}");
        abilities.require_for_copies()?;
    }
    let from = repository.begin_whole_copy(&format!("copy to {}", bucket.place()))?;
    if !from.is_guarded() {
        tracing::warn!(
            "{} cannot be written to, so nothing keeps a sweep from removing packs meanwhile: what is gone by then is named",
            repository.path().display()
        );
    }
    if !options.dry_run && !claimed {
        claim(&from, bucket, &id, key.as_deref())?;
    }
    if !options.dry_run {
        put_keys(&from, bucket)?;
    }
    let problems = from.unread.iter();
    let problems = problems.map(|unread| CopyProblem::new(&unread.pack, &unread.reason));
    let problems = Mutex::new(problems.collect());
    let mut out = Out {
        from,
        bucket,
        packs: ObjectPacks::new(Arc::clone(bucket)),
        options,
        problems,
        copied: Copied {
            repository: id,
            ..Copied::default()
        },
    };
    out.run(monitor)?;
    let mut copied = out.copied;
    copied.problems = out.problems.into_inner().unwrap_or_default();
    copied.problems.sort();
    copied.problems.dedup();
    Ok(copied)
}

/// A bucket has one repository under a prefix. Returns whether it has this one.
fn refuse_other(bucket: &Bucket, id: &str, key: Option<&str>) -> Result<bool, Error> {
    let Some(there) = settings_in(bucket)? else {
        return Ok(false);
    };
    let other = id_in(&there, bucket.place())?;
    if other == id && key_in(&there).as_deref() != key {
        return Err(Error::failed(format!(
            "{} has this repository as it was before it was encrypted, with packs that everybody can read",
            bucket.place()
        ))
        .hint("Copy into another prefix of the bucket, and remove the old one when that is done"));
    }
    match other == id {
        true => Ok(true),
        false => Err(Error::failed(format!(
            "{} has another repository already: its id is {other}, and that of this one is {id}",
            bucket.place()
        ))
        .hint("Copy into another prefix of the bucket")),
    }
}

/// Makes the bucket's prefix that of this repository. Of two that claim it at once, one is refused.
fn claim(from: &CopyFrom, bucket: &Bucket, id: &str, key: Option<&str>) -> Result<(), Error> {
    match bucket.create(SETTINGS, &Bytes::from(from.settings()?)) {
        Err(StoreError::Invalid(_)) => refuse_other(bucket, id, key).map(|_| ()),
        created => created.map(|_| ()).map_err(Error::from),
    }
}

/// Puts the wrapped keys into the bucket before the packs, which nobody could read without them. What a recipient that was
/// removed here has there stays.
fn put_keys(from: &CopyFrom, bucket: &Bucket) -> Result<(), Error> {
    for (name, bytes) in from.key_files()? {
        if bucket.size(&name)?.is_none() {
            bucket.create(&name, &Bytes::from(bytes))?;
        }
    }
    Ok(())
}

impl Out<'_> {
    fn run(&mut self, monitor: &mut dyn Monitor) -> Result<(), Error> {
        monitor.stage("Listing the bucket");
        let there = self.listed()?;
        self.copied.packs = self.from.packs.len() as u64;
        self.copied.bytes = self.from.packs.iter().map(|pack| pack.bytes).sum();
        let missing: Vec<KnownPack> = self.without(&there);
        self.copied.present_packs = self.copied.packs - missing.len() as u64;
        if self.options.dry_run {
            self.copied.copied_packs = missing.len() as u64;
            self.copied.copied_bytes = missing.iter().map(|pack| pack.bytes).sum();
            self.compare(&there, &missing);
            return self.remove_extra(&there);
        }
        monitor.stage(&format!("Copying to {}", self.bucket.place()));
        let copied = Mutex::new((0, 0));
        each_pack(&missing, monitor, |pack| {
            if self.copy(pack)? {
                let mut copied = lock(&copied);
                *copied = (copied.0 + 1, copied.1 + pack.bytes);
            }
            Ok(())
        })?;
        (self.copied.copied_packs, self.copied.copied_bytes) = copied.into_inner().unwrap_or_default();
        monitor.stage("Listing the bucket again");
        let there = self.listed()?;
        self.compare(&there, &[]);
        self.remove_extra(&there)
    }

    /// The packs in the bucket and their sizes.
    fn listed(&self) -> Result<HashMap<PackId, u64>, Error> {
        let mut there = HashMap::new();
        let listed = self.packs.sizes(&mut |id, bytes| {
            there.insert(id, bytes);
            Ok(())
        });
        listed?;
        Ok(there)
    }

    fn without(&self, there: &HashMap<PackId, u64>) -> Vec<KnownPack> {
        let packs = self.from.packs.iter();
        packs
            .filter(|pack| !there.contains_key(&pack.id))
            .copied()
            .collect()
    }

    /// Copies one pack; returns whether it is in the bucket now.
    fn copy(&self, pack: KnownPack) -> Result<bool, Error> {
        match self.send(pack) {
            Ok(()) => Ok(true),
            Err(error)
                if error.is_damage()
                    || matches!(error, StoreError::Invalid(_) | StoreError::TooLarge { .. }) =>
            {
                self.problem(pack.id, &error);
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Only what is whole is copied: a damaged pack would be taken for a good one over there.
    fn send(&self, pack: KnownPack) -> barmanfs_store::Result<()> {
        let storage = self.from.storage().as_ref();
        read_footer(storage, pack.id)?;
        let bytes = storage.bytes(pack.id)?;
        if bytes != pack.bytes {
            let reason = format!("It has {bytes} bytes and was written with {}", pack.bytes);
            return Err(StoreError::damaged(format!("Pack {}", pack.id), reason));
        }
        let mut upload = self.packs.begin_copy(pack.id)?;
        let mut buffer = vec![0; READ_BYTES.min(usize::try_from(bytes).unwrap_or(READ_BYTES))];
        let mut at = 0;
        while at < bytes {
            let wanted = usize::try_from(bytes - at)
                .unwrap_or(READ_BYTES)
                .min(buffer.len());
            let part = buffer.get_mut(..wanted).unwrap_or_default();
            storage.read_at(pack.id, at, part)?;
            upload.write(part)?;
            at += wanted as u64;
        }
        upload.finish()
    }

    /// What the bucket should have is looked for by its name and its size; what is `to_come` may be missing.
    fn compare(&self, there: &HashMap<PackId, u64>, to_come: &[KnownPack]) {
        let known: HashSet<String> = lock(&self.problems)
            .iter()
            .map(|problem| problem.pack.clone())
            .chain(to_come.iter().map(|pack| pack.id.to_string()))
            .collect();
        for pack in &self.from.packs {
            let reason = match there.get(&pack.id) {
                Some(bytes) if *bytes == pack.bytes => continue,
                Some(bytes) => format!(
                    "It has {bytes} bytes in the bucket, and {} here: remove the object, and copy again",
                    pack.bytes
                ),
                None if known.contains(&pack.id.to_string()) => continue,
                None => "It is not in the bucket, although it was put there: copy again".to_owned(),
            };
            self.problem(pack.id, &reason);
        }
    }

    fn problem(&self, pack: PackId, reason: &dyn ToString) {
        lock(&self.problems).push(CopyProblem::new(&pack, &reason.to_string()));
    }

    /// What only the bucket has is counted, and removed where that is asked for and this repository lacks nothing.
    fn remove_extra(&mut self, there: &HashMap<PackId, u64>) -> Result<(), Error> {
        let ours: HashSet<PackId> = self.from.packs.iter().map(|pack| pack.id).collect();
        let mut extra = Vec::new();
        for (id, bytes) in there.iter().filter(|(id, _)| !ours.contains(id)) {
            // One that came meanwhile, by another copy, is none.
            if self.from.is_without(*id)? {
                extra.push(*id);
                self.copied.extra_bytes += bytes;
            }
        }
        self.copied.extra_packs = extra.len() as u64;
        if !self.options.delete {
            return Ok(());
        }
        if self.from.has_losses || !self.from.is_guarded() || !lock(&self.problems).is_empty() {
            tracing::warn!(
                "Nothing is removed from {}: this repository is not whole, or cannot be written to, and the bucket may have what it \
                 lacks ('barmanfs verify' and 'barmanfs rebuild-catalog' say what)",
                self.bucket.place()
            );
            return Ok(());
        }
        self.remove(&extra)
    }

    /// Where a bucket has versions, deleting a locked pack only hides it, and nobody would ask for it again: so it stays.
    fn remove(&mut self, extra: &[PackId]) -> Result<(), Error> {
        let now = jiff::Timestamp::now();
        for id in extra {
            let held = self.packs.held(*id)?;
            if let Some(held) = held.filter(|held| held.is_locked(now)) {
                let until = held.until.filter(|_| !held.has_legal_hold);
                self.copied.locked.push(LockedPack::new(*id, until));
                continue;
            }
            self.copied.keeps_versions |= held.is_some_and(|held| held.has_versions);
            if !self.options.dry_run {
                self.packs.remove(*id)?;
            }
            self.copied.removed_packs += 1;
        }
        self.copied.locked.sort();
        Ok(())
    }
}
