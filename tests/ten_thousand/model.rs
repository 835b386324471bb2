//! What must be in the repository, by what was acknowledged. What was killed is open: it may appear, as long as no rebuild has read
//! all packs.

use super::act::{Seen, SeenBackup, SeenServer};
use super::made::Tree;
use std::collections::{BTreeMap, BTreeSet};

/// `REDUNDANCY`, of all servers.
pub(super) const KEPT: usize = 3;

/// Behind the names of all segments.
const NO_SEGMENT: &str = "G";

/// Whether something is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Here {
    Yes,
    /// What makes it was killed.
    MayCome,
    /// What removes it was killed, or need not remove it.
    MayGo,
}

#[derive(Debug)]
pub(super) struct Backup {
    /// `None` until it is seen, for one that was killed.
    pub(super) id: Option<String>,
    pub(super) here: Here,
    /// `None` until it is seen, for a server's.
    pub(super) digest: Option<String>,
    pub(super) tree: Option<Tree>,
    /// The segments that it needs; empty until it is seen, for a server's.
    pub(super) first: String,
    pub(super) last: String,
    /// What may be decided about it: `None`, `full` or `standalone`; one value unless something was killed.
    pub(super) keeps: BTreeSet<Option<String>>,
}

#[derive(Debug)]
pub(super) struct Wal {
    pub(super) hash: String,
    pub(super) here: Here,
}

#[derive(Debug)]
pub(super) struct Clone {
    pub(super) backup: String,
    pub(super) digest: String,
    pub(super) here: Here,
}

#[derive(Debug, Default)]
pub(super) struct Server {
    /// In the order in which they began.
    pub(super) backups: Vec<Backup>,
    pub(super) wal: BTreeMap<String, Wal>,
    pub(super) clones: BTreeMap<String, Clone>,
    /// Ids of backups and names of WAL files that are gone for ever.
    pub(super) gone: BTreeSet<String>,
}

#[derive(Debug, Default)]
pub(super) struct Model(pub(super) BTreeMap<String, Server>);

impl Backup {
    pub(super) fn is_surely_kept(&self) -> bool {
        !self.keeps.contains(&None)
    }

    pub(super) fn may_be_kept(&self) -> bool {
        self.keeps.iter().any(Option::is_some)
    }

    pub(super) fn is_here(&self) -> bool {
        self.here == Here::Yes
    }
}

impl Model {
    /// Compares, and learns what was open.
    pub(super) fn see(&mut self, seen: &Seen) -> Vec<String> {
        let mut faults = Vec::new();
        for (name, server) in &mut self.0 {
            let nothing = SeenServer::default();
            let seen = seen.0.get(name).unwrap_or(&nothing);
            let mut found = Vec::new();
            server.see_backups(seen, &mut found);
            server.see_wal(seen, &mut found);
            server.see_clones(seen, &mut found);
            faults.extend(found.into_iter().map(|fault| format!("{name}: {fault}")));
        }
        let unknown = seen.0.keys().filter(|name| !self.0.contains_key(*name));
        faults.extend(unknown.map(|name| format!("{name}: nobody has made this server")));
        faults
    }

    /// The names that need not be looked into.
    pub(super) fn known(&self) -> BTreeSet<String> {
        let mut known = BTreeSet::new();
        for (name, server) in &self.0 {
            let ids = server.backups.iter().filter_map(|backup| backup.id.as_ref());
            let files = server.wal.iter().filter(|(_, wal)| wal.here != Here::MayCome);
            let names = ids.chain(files.map(|(name, _)| name));
            known.extend(names.map(|of| format!("{name}/{of}")));
        }
        known
    }

    /// A rebuild has read all packs: what is not there by now never comes, and what is there stays.
    pub(super) fn settle(&mut self) {
        for server in self.0.values_mut() {
            server.backups.retain(|backup| backup.here != Here::MayCome);
            server
                .backups
                .iter_mut()
                .for_each(|backup| backup.here = Here::Yes);
            server.wal.retain(|_, wal| wal.here != Here::MayCome);
            server.wal.values_mut().for_each(|wal| wal.here = Here::Yes);
            server.clones.retain(|_, clone| clone.here != Here::MayCome);
            server
                .clones
                .values_mut()
                .for_each(|clone| clone.here = Here::Yes);
        }
    }
}

impl Server {
    fn see_backups(&mut self, seen: &SeenServer, faults: &mut Vec<String>) {
        let is_good = |backup: &&SeenBackup| matches!(backup.status.as_str(), "DONE" | "WAITING_FOR_WALS");
        let good: Vec<&SeenBackup> = seen.backups.iter().filter(is_good).collect();
        for found in &good {
            match self
                .backups
                .iter()
                .position(|backup| backup.id.as_deref() == Some(&found.id))
            {
                Some(at) => self.backups[at].see(found, faults),
                None => self.see_new(found, faults),
            }
        }
        let is_missing = |backup: &Backup| {
            let id = backup.id.as_ref();
            id.is_some_and(|id| !good.iter().any(|found| found.id == *id))
        };
        for backup in self.backups.iter().filter(|backup| is_missing(backup)) {
            let id = backup.id.clone().unwrap_or_default();
            match backup.here {
                Here::MayGo => {
                    self.gone.insert(id);
                }
                _ => {
                    let now = seen.backups.iter().find(|found| found.id == id);
                    faults.push(format!(
                        "backup {id} is not there, but {:?}",
                        now.map(|found| &found.status)
                    ));
                }
            }
        }
        self.backups.retain(|backup| !is_missing(backup));
    }

    /// One that is complete although its process was killed.
    fn see_new(&mut self, found: &SeenBackup, faults: &mut Vec<String>) {
        if self.gone.contains(&found.id) {
            faults.push(format!("backup {} has come back", found.id));
            return;
        }
        let known: Vec<&String> = self
            .backups
            .iter()
            .filter_map(|backup| backup.id.as_ref())
            .collect();
        let fits = |(at, backup): &(usize, &Backup)| {
            let before = self.backups[..*at]
                .iter()
                .rev()
                .find_map(|backup| backup.id.as_ref());
            backup.id.is_none()
                && before.is_none_or(|before| *before < found.id)
                && (backup.digest.is_none() || backup.digest == found.digest)
        };
        // Of several with the same content, the oldest that is left.
        let Some((at, _)) = self.backups.iter().enumerate().find(fits) else {
            faults.push(format!("nobody has taken backup {found:?}; known are {known:?}"));
            return;
        };
        let backup = &mut self.backups[at];
        backup.id = Some(found.id.clone());
        backup.here = Here::Yes;
        backup.first.clone_from(&found.first);
        backup.last.clone_from(&found.last);
        backup.see(found, faults);
    }

    fn see_wal(&mut self, seen: &SeenServer, faults: &mut Vec<String>) {
        for (name, hash) in &seen.wal {
            let Some(wal) = self.wal.get_mut(name) else {
                faults.push(match self.gone.contains(name) {
                    true => format!("WAL file {name} has come back"),
                    false => format!("nobody has archived {name}"),
                });
                continue;
            };
            if wal.here == Here::MayCome {
                wal.here = Here::Yes;
            }
            if hash.as_ref().is_some_and(|hash| *hash != wal.hash) {
                faults.push(format!("WAL file {name} is {hash:?} and not {}", wal.hash));
            }
        }
        let (wal, gone) = (&mut self.wal, &mut self.gone);
        wal.retain(|name, wal| {
            if wal.here == Here::MayCome || seen.wal.contains_key(name) {
                return true;
            }
            if wal.here == Here::Yes {
                faults.push(format!("WAL file {name} is not there"));
            }
            gone.insert(name.clone());
            false
        });
    }

    fn see_clones(&mut self, seen: &SeenServer, faults: &mut Vec<String>) {
        for (name, found) in &seen.clones {
            let Some(clone) = self.clones.get_mut(name) else {
                faults.push(format!("nobody has made clone {name}"));
                continue;
            };
            if clone.here == Here::MayCome {
                clone.here = Here::Yes;
            }
            let differs = found
                .digest
                .as_ref()
                .is_some_and(|digest| *digest != clone.digest);
            if differs || found.backup != clone.backup {
                faults.push(format!("clone {name} is {found:?} and not {clone:?}"));
            }
        }
        self.clones.retain(|name, clone| {
            let is_here = seen.clones.contains_key(name);
            if !is_here && clone.here == Here::Yes {
                faults.push(format!("clone {name} is not there"));
            }
            is_here
        });
    }

    /// How many backups that began after this one are there, or may be.
    fn newer(&self, at: usize, counts: impl Fn(&Backup) -> bool) -> usize {
        self.backups[at + 1..]
            .iter()
            .filter(|backup| counts(backup))
            .count()
    }

    /// Whether a policy keeps it in any case.
    fn is_surely_valid(&self, at: usize) -> bool {
        self.newer(at, |_| true) < KEPT
    }

    fn has_clone(&self, backup: &Backup, counts: impl Fn(&Clone) -> bool) -> bool {
        let mut clones = self.clones.values();
        clones.any(|clone| backup.id.as_ref() == Some(&clone.backup) && counts(clone))
    }

    /// What retention must not touch: ids and names.
    pub(super) fn needed(&self) -> BTreeSet<String> {
        let mut needed = BTreeSet::new();
        let mut anchor: Option<&str> = None;
        for (at, backup) in self
            .backups
            .iter()
            .enumerate()
            .filter(|(_, backup)| backup.is_here())
        {
            let is_valid = self.is_surely_valid(at);
            let has_clone = self.has_clone(backup, |clone| clone.here == Here::Yes);
            if !is_valid && !backup.is_surely_kept() && !has_clone {
                continue;
            }
            needed.extend(backup.id.clone());
            let keeps_wal = is_valid || backup.keeps.iter().all(|keep| keep.as_deref() == Some("full"));
            if keeps_wal {
                anchor = Some(anchor.map_or(&backup.first, |first| first.min(&backup.first)));
            }
            let own = self
                .wal
                .keys()
                .filter(|name| backup.first <= **name && name[..24] <= *backup.last);
            needed.extend(own.cloned());
        }
        // As long as nothing anchors recovery, no WAL goes. What may be there could be the only anchor.
        let open = self.backups.iter().filter(|backup| !backup.is_here());
        let first = anchor.unwrap_or_else(|| match open.clone().any(|backup| backup.first.is_empty()) {
            true => NO_SEGMENT,
            false => open.map(|backup| backup.first.as_str()).max().unwrap_or(""),
        });
        needed.extend(self.wal.keys().filter(|name| name.as_str() >= first).cloned());
        needed
    }

    /// What may be gone after a retention, even one that was killed.
    pub(super) fn enforce(&mut self) {
        let needed = self.needed();
        for backup in self.backups.iter_mut().filter(|backup| backup.here == Here::Yes) {
            if backup.id.as_ref().is_some_and(|id| !needed.contains(id)) {
                backup.here = Here::MayGo;
            }
        }
        for (name, wal) in self.wal.iter_mut().filter(|(_, wal)| wal.here == Here::Yes) {
            if !needed.contains(name) {
                wal.here = Here::MayGo;
            }
        }
    }

    /// Backups and segments that are still there though retention has ended well and nothing can need them.
    pub(super) fn left_behind(&self) -> Vec<String> {
        let mut left = Vec::new();
        let mut first_needed: Option<&str> = None;
        let mut own = Vec::new();
        for (at, backup) in self.backups.iter().enumerate() {
            let Some(id) = &backup.id else { continue };
            let is_obsolete = self.newer(at, Backup::is_here) >= KEPT;
            if is_obsolete && !backup.may_be_kept() && !self.has_clone(backup, |_| true) {
                left.push(id.clone());
            }
            if !is_obsolete || backup.keeps.contains(&Some("full".to_owned())) {
                first_needed = Some(first_needed.map_or(&backup.first, |first| first.min(&backup.first)));
            }
            own.push((&backup.first, &backup.last));
        }
        let here = self.wal.iter().filter(|(_, wal)| wal.here != Here::MayCome);
        let segments = here.map(|(name, _)| name).filter(|name| name.len() == 24);
        let is_unneeded = |name: &&String| {
            let is_own = own.iter().any(|(first, last)| *first <= *name && *name <= *last);
            first_needed.is_some_and(|first| name.as_str() < first) && !is_own
        };
        left.extend(segments.filter(is_unneeded).cloned());
        left
    }
}

impl Backup {
    fn see(&mut self, found: &SeenBackup, faults: &mut Vec<String>) {
        if let Some(digest) = &found.digest {
            let known = self.digest.get_or_insert_with(|| digest.clone());
            if known != digest || digest.starts_with("unreadable") {
                faults.push(format!("backup {} is {digest} and not {known}", found.id));
            }
        }
        if self.first.is_empty() {
            self.first.clone_from(&found.first);
            self.last.clone_from(&found.last);
        }
        if (&self.first, &self.last) != (&found.first, &found.last) {
            faults.push(format!("backup {found:?} needs other segments than {self:?}"));
        }
        if !self.keeps.contains(&found.keep) {
            faults.push(format!(
                "{:?} is decided about backup {}, not {:?}",
                found.keep, found.id, self.keeps
            ));
        }
    }
}
