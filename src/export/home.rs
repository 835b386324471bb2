//! A directory of Barman with the backups and the WAL of a server, as Barman itself would have it: plain backups in
//! `base/`, their descriptions in `meta/`, WAL in `wals/`.
//!
//! A file that is equal in two backups that follow each other is written once and has two names, so the backups take about
//! the space that they would with Barman's `reuse_backup = link`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use barmanfs_catalog::{Backup, ServerName};
use barmanfs_fs::views::PlainOptions;
use barmanfs_pg::TimestampMicros;
use barmanfs_pg::wal_name::WalName;

use super::plain::DataDirectory;
use super::tarball::{description, identity, own_wal};
use super::{Asked, Exported, outside, unsuitable, xlog_db};
use crate::error::Error;
use crate::moment;
use crate::progress::{Counted, Progress};
use crate::restore::{Like, Relocations, SourceFile, destination};
use crate::signals::Interruption;
use crate::unfinished::{UnfinishedDirectory, failed};

/// Which WAL the directory gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HomeWal {
    /// All that is archived.
    All,
    /// That from the start of each backup to its end.
    Needed,
}

/// Exports backups of a server to `<to>/<server>`.
pub(crate) fn export(
    asked: &Asked<'_>,
    server: &ServerName,
    backups: Vec<Backup>,
    wal: HomeWal,
) -> Result<Exported, Error> {
    let began = Instant::now();
    let Some(to) = asked.to else {
        return Err(Error::usage(
            "A directory of Barman is no stream: name a directory instead of -",
        ));
    };
    let to = destination::resolved(to)?;
    make_directory(&to)?;
    let owner = fs::metadata(&to).map_err(|error| failed("look at", &to, &error))?;
    let unfinished = UnfinishedDirectory::make(&to.join(server.as_str()))?;
    let home = Home {
        asked,
        server,
        path: unfinished.below(),
        to: unfinished.destination(),
        owner: (owner.uid(), owner.gid()),
        signals: Interruption::watch(|| {})?,
    };
    destination::refuse_place(Some(asked.repository), home.to)?;
    let mut exported = Exported::default();
    let written = home.write(backups, wal, &mut exported);
    written.map_err(|error| unfinished.named(error))?;
    if rustix::process::geteuid().is_root() {
        unfinished.give(home.owner)?;
    }
    exported.path = Some(unfinished.destination().to_owned());
    unfinished.put()?;
    exported.elapsed = began.elapsed();
    Ok(exported)
}

/// A directory of Barman that is being written.
struct Home<'a> {
    asked: &'a Asked<'a>,
    server: &'a ServerName,
    /// By its descriptor. Others cannot look into it, so what is in it can be given away by its path.
    path: PathBuf,
    /// Where it will be.
    to: &'a Path,
    /// To whom everything belongs if this is root: Barman runs as one user.
    owner: (u32, u32),
    signals: Interruption,
}

/// What `pg_wal` of a backup has and the archive has not.
type Extra = BTreeMap<String, (WalName, SourceFile)>;

/// Adds a file of WAL: its name, its size, when it was archived, and its content.
type AddWal<'a> = dyn FnMut(&WalName, u64, TimestampMicros, &mut dyn io::Read) -> Result<(), Error> + 'a;

/// Adds a segment that came with a backup.
fn add_own(add: &mut AddWal<'_>, name: &WalName, file: &SourceFile) -> Result<(), Error> {
    let time = xlog_db::time_of(file);
    add(name, file.stat.size_bytes, time, &mut file.read()?)
}

impl Home<'_> {
    fn write(&self, backups: Vec<Backup>, wal: HomeWal, exported: &mut Exported) -> Result<(), Error> {
        let backups = self.suitable(backups, &mut exported.notes);
        let Some(newest) = backups.last() else {
            return Err(
                Error::failed(format!("No backup of server {} can be exported", self.server))
                    .hint(exported.notes.join("; ")),
            );
        };
        for directory in ["base", "meta", "wals"] {
            self.directory(directory)?;
        }
        self.file("identity.json", identity(newest).as_bytes())?;
        self.backups(&backups, exported)?;
        self.wal(&backups, wal, exported)
    }

    /// The backups that Barman could have, oldest first.
    fn suitable(&self, backups: Vec<Backup>, notes: &mut Vec<String>) -> Vec<Backup> {
        let mut suitable = backups;
        suitable.retain(|backup| {
            let why = if !backup.is_of_server() {
                "it was made of a clone".to_owned()
            } else if let Some(why) = unsuitable(backup, true) {
                why
            } else if backup.archive() != self.server {
                "it belongs to a history that was left".to_owned()
            } else {
                return true;
            };
            notes.push(format!("Left out: backup {} ({why})", backup.id));
            false
        });
        suitable.sort_by_key(|backup| backup.id);
        suitable
    }

    fn backups(&self, backups: &[Backup], exported: &mut Exported) -> Result<(), Error> {
        let mut like = None;
        for (number, backup) in (1..).zip(backups) {
            let what = format!("Export of {} ({number} of {})", backup.id, backups.len());
            let progress = Progress::start(what, Counted::Bytes, self.asked.quiet);
            let written = self.backup(backup, like.take(), &progress)?;
            exported.backups.push(backup.id);
            exported.files += written.1.files;
            exported.bytes += written.1.bytes;
            exported.written_bytes += written.1.written_bytes;
            like = Some(written.0);
            let meta = |kind: &str| format!("meta/{}-{kind}", backup.id);
            let view = self.view(backup)?;
            let info = description(self.asked.repository, backup, &view)?;
            self.file(&meta("backup.info"), info.as_bytes())?;
            let keep = self.asked.repository.keep_of(backup)?;
            if let Some(keep) = keep.filter(|keep| keep.holds(moment::now())) {
                self.file(&meta("keep"), keep.target.as_str().as_bytes())?;
            }
        }
        Ok(())
    }

    fn view(&self, backup: &Backup) -> Result<crate::restore::ViewTree, Error> {
        let plain = PlainOptions { wal: false };
        super::open(self.asked.repository, backup, Some(plain), Some(self.owner))
    }

    /// Writes one backup, and returns what the next one may share files with.
    fn backup(
        &self,
        backup: &Backup,
        like: Option<Like>,
        progress: &Progress,
    ) -> Result<(Like, Exported), Error> {
        let own = format!("base/{}", backup.id);
        self.directory(&own)?;
        let places = outside(backup).into_iter();
        let places = places.map(|oid| (oid, self.path.join(&own).join(oid.to_string())));
        let tree = DataDirectory {
            path: self.path.join(&own).join("data"),
            tablespaces: Relocations::at(places),
        };
        let written = tree.write(self.asked, self.view(backup)?, like, progress, &self.signals)?;
        for (oid, _) in tree.tablespaces.tablespaces() {
            tree.link(oid, &self.to.join(&own).join(oid.to_string()))?;
        }
        let like = Like::new(self.view(backup)?, &tree.path, &tree.tablespaces)?;
        Ok((like, written))
    }

    fn wal(&self, backups: &[Backup], wal: HomeWal, exported: &mut Exported) -> Result<(), Error> {
        let archive = self.asked.repository.wal(self.server);
        let needed: BTreeSet<WalName> = match wal {
            HomeWal::All => BTreeSet::new(),
            HomeWal::Needed => backups
                .iter()
                .flat_map(super::own_segments)
                .map(WalName::Segment)
                .collect(),
        };
        let mut extra = self.not_archived(backups)?;
        let mut database = self.new_file(&format!("wals/{}-xlog.db", self.server))?;
        let path = self.path.join("wals");
        let progress = Progress::start("Export of WAL", Counted::Things, self.asked.quiet);
        let total = archive.totals()?.files;
        let mut add = |name: &WalName, size_bytes: u64, time: TimestampMicros, content: &mut dyn io::Read| {
            self.wal_file(name, time, content)?;
            exported.wal_files += 1;
            exported.written_bytes += size_bytes;
            database
                .write_all(xlog_db::line(name, size_bytes, time).as_bytes())
                .map_err(|error| failed("write", &path, &error))
        };
        let mut seen = 0;
        for entry in archive.entries() {
            let entry = entry?;
            seen += 1;
            progress.set(seen, Some(total));
            let text = entry.name.to_string();
            while let Some(first) = extra.first_entry().filter(|first| *first.key() < text) {
                let (name, file) = first.remove();
                add_own(&mut add, &name, &file)?;
            }
            if wal == HomeWal::Needed && entry.name.segment().is_some() && !needed.contains(&entry.name) {
                continue;
            }
            let file = archive.find(&entry.name)?.ok_or_else(|| {
                Error::failed(format!("{text} is no longer archived")).hint("Run the command again")
            })?;
            let mut content = self.asked.repository.trees().reader(file.map);
            add(&entry.name, entry.size_bytes, entry.archived_at, &mut content)?;
        }
        for (name, file) in extra.into_values() {
            add_own(&mut add, &name, &file)?;
        }
        Ok(())
    }

    /// Segments that came with backups, and that the archive has not.
    fn not_archived(&self, backups: &[Backup]) -> Result<Extra, Error> {
        let archive = self.asked.repository.wal(self.server);
        let mut extra = BTreeMap::new();
        for backup in backups.iter().filter(|backup| backup.wal_included) {
            for (name, file) in own_wal(&self.view(backup)?, backup)? {
                if archive.entry(&name)?.is_none() {
                    extra.insert(name.to_string(), (name, file));
                }
            }
        }
        Ok(extra)
    }

    fn wal_file(
        &self,
        name: &WalName,
        time: TimestampMicros,
        content: &mut dyn io::Read,
    ) -> Result<(), Error> {
        if self.signals.requested() {
            return Err(Error::failed("Interrupted"));
        }
        let place = format!("wals/{}", xlog_db::place(name));
        if let Some((directory, _)) = place.rsplit_once('/')
            && !self.path.join(directory).exists()
        {
            self.directory(directory)?;
        }
        let path = self.path.join(&place);
        let mut file = self.new_file(&place)?;
        io::copy(content, &mut file).map_err(|error| failed("write", &path, &error))?;
        let micros = u64::try_from(time.unix_micros()).unwrap_or(0);
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_micros(micros))
            .map_err(|error| failed("set the time of", &path, &error))
    }

    fn file(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let mut file = self.new_file(name)?;
        file.write_all(bytes)
            .map_err(|error| failed("write", &self.path.join(name), &error))
    }

    fn new_file(&self, name: &str) -> Result<File, Error> {
        let path = self.path.join(name);
        let mut options = OpenOptions::new();
        let opened = options.write(true).create_new(true).mode(0o600).open(&path);
        let file = opened.map_err(|error| failed("make", &path, &error))?;
        self.give(&path)?;
        Ok(file)
    }

    fn directory(&self, name: &str) -> Result<(), Error> {
        let path = self.path.join(name);
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|error| failed("make", &path, &error))?;
        self.give(&path)
    }

    /// Gives it to the owner of all of it.
    fn give(&self, path: &Path) -> Result<(), Error> {
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let (uid, gid) = self.owner;
        std::os::unix::fs::lchown(path, Some(uid), Some(gid))
            .map_err(|error| failed("set the owner of", path, &error))
    }
}

fn make_directory(path: &Path) -> Result<(), Error> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed("make", path, &error)),
        _ => Ok(()),
    }
}
