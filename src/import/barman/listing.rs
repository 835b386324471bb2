//! Which backups a server has in a home, and which of them can be taken.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use barmanfs_catalog::KeepTarget;
use barmanfs_foreign::barman::backup_info::{self, BackupInfo, Moment, Status, Tablespace};
use barmanfs_foreign::barman::identity::{self, Identity};
use barmanfs_foreign::barman::names::{BackupId, KeepMark, MetaKind, MetaName, TarName};
use barmanfs_foreign::barman::snapshots::Snapshots;
use barmanfs_pg::{SystemId, TimestampMicros};
use jiff::tz::TimeZone;

use super::{Options, Waiting};
use crate::error::Error;
use crate::import::directory::{cannot_read, read_small};
use crate::import::{ForeignBackup, LeftOut};
use crate::moment;
use crate::output::printable;

/// The names in a backup's directory and its data directory.
type Names = [Option<Vec<String>>; 2];

/// The tool, in the record of a backup. Its version is nowhere in a home.
pub(super) const TOOL: &str = "Barman";

/// A backup of a running Barman may wait so long for its WAL before a person has to know.
const AWAITED_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// More than a keep mark ever has.
const KEEP_BYTES: u64 = 64;

/// A backup that can be taken.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) backup: ForeignBackup,
    pub(super) info: BackupInfo,
    /// `base/<ID>`
    pub(super) place: PathBuf,
    pub(super) layout: Layout,
    names: Names,
}

/// How a backup's files lie there.
#[derive(Debug)]
pub(super) enum Layout {
    /// As they were on the server.
    Tree {
        /// The data directory.
        data: PathBuf,
        /// Where the tablespaces are, each by its OID.
        tablespaces: PathBuf,
    },
    /// In archives of tar, in the order of their parts.
    Archives(Vec<ArchiveFile>),
}

/// An archive of tar.
#[derive(Debug, Clone)]
pub(super) struct ArchiveFile {
    pub(super) name: TarName,
    pub(super) path: PathBuf,
}

/// The names of the servers in a home.
pub(super) fn servers(home: &Path) -> Result<Vec<String>, Error> {
    let is_server = |place: &Path| {
        let has = |name: &str| place.join(name).is_dir();
        has("base") && (has("wals") || has("meta"))
    };
    let mut names =
        names_in(home)?.ok_or_else(|| Error::usage(format!("{} does not exist", home.display())))?;
    names.retain(|name| is_server(&home.join(name)));
    Ok(names)
}

/// The names in a directory that are UTF-8, as all are that Barman makes, sorted; `None` if it does not exist.
pub(super) fn names_in(place: &Path) -> Result<Option<Vec<String>>, Error> {
    let entries = match fs::read_dir(place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries.map_err(|error| cannot_read(place, &error))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| cannot_read(place, &error))?;
        names.extend(entry.file_name().into_string().ok());
    }
    names.sort_unstable();
    Ok(Some(names))
}

/// The server's backups, parents before their children, and what is left out.
pub(super) fn list(place: &Path, options: &Options) -> Result<(Vec<Found>, Vec<LeftOut>), Error> {
    let identity = read_small(&place.join("identity.json"), identity::LONGEST_BYTES as u64)?;
    let identity = identity.map(|bytes| Identity::parse(&bytes)).transpose();
    let identity = identity.map_err(|error| Error::failed(format!("{}: {error}", place.display())))?;
    let reader = Reader {
        place,
        options,
        system_id: identity.map(|identity| identity.system_id),
        marks: marks(place)?,
    };
    let mut found: Vec<Found> = Vec::new();
    let mut left_out = Vec::new();
    for id in reader.ids()? {
        match reader.describe(&id, &mut left_out) {
            Ok(one) => found.push(one),
            Err(why) => left_out.push(why),
        }
    }
    found.sort_by(|one, other| {
        let key = |found: &Found| (found.backup.begin_time, found.backup.id);
        key(one).cmp(&key(other))
    });
    Ok((with_parents(found, &mut left_out), left_out))
}

/// Finds where the parents of incremental backups start. Those without a parent that can be taken are left out.
fn with_parents(found: Vec<Found>, left_out: &mut Vec<LeftOut>) -> Vec<Found> {
    let mut starts = BTreeMap::new();
    let mut kept = Vec::new();
    for mut one in found {
        if let Some(parent) = &one.info.parent {
            one.backup.parent_start = starts.get(parent.as_str()).copied();
            if one.backup.parent_start.is_none() {
                left_out.push(LeftOut::problem(
                    &one.backup.name,
                    format!("it builds on {parent}, which is not there or cannot be taken"),
                ));
                continue;
            }
        }
        starts.insert(
            one.backup.name.clone(),
            (one.backup.start_lsn, one.backup.timeline),
        );
        kept.push(one);
    }
    kept
}

fn names(place: &Path) -> Result<Names, Error> {
    Ok([names_in(place)?, names_in(&place.join("data"))?])
}

/// What has become of a backup since it was listed; `None` if it is as it was.
pub(super) fn changed(server: &Path, found: &Found) -> Option<String> {
    changed_since(server, &found.backup.name, &found.place, &found.names)
}

fn changed_since(server: &Path, id: &str, place: &Path, before: &Names) -> Option<String> {
    let meta = server.join("meta");
    let exists = |path: &Path| fs::symlink_metadata(path).is_ok();
    let is_described = exists(&meta.join(format!("{id}-backup.info"))) || exists(&place.join("backup.info"));
    if exists(&meta.join(format!("{id}-delete_this"))) || !is_described || !exists(place) {
        return Some("Barman has deleted it meanwhile".to_owned());
    }
    match names(place) {
        Ok(now) if now == *before => None,
        _ => Some("its files have changed meanwhile: some were deleted, or have come".to_owned()),
    }
}

/// The files in `meta/`.
fn marks(place: &Path) -> Result<BTreeSet<(BackupId, MetaKind)>, Error> {
    let names = names_in(&place.join("meta"))?.unwrap_or_default();
    let read = names.iter().filter_map(|name| MetaName::parse(name));
    Ok(read.map(|name| (name.id, name.kind)).collect())
}

struct Reader<'a> {
    place: &'a Path,
    options: &'a Options,
    system_id: Option<SystemId>,
    marks: BTreeSet<(BackupId, MetaKind)>,
}

impl Reader<'_> {
    /// All backups that have a description or a directory.
    fn ids(&self) -> Result<BTreeSet<BackupId>, Error> {
        let described = self.marks.iter().filter(|(_, kind)| *kind == MetaKind::Info);
        let mut ids: BTreeSet<BackupId> = described.map(|(id, _)| id.clone()).collect();
        let directories = names_in(&self.place.join("base"))?.unwrap_or_default();
        ids.extend(directories.iter().filter_map(|name| name.parse().ok()));
        Ok(ids)
    }

    fn meta(&self, id: &BackupId, kind: MetaKind, name: &str) -> Option<PathBuf> {
        let has = self.marks.contains(&(id.clone(), kind));
        has.then(|| self.place.join("meta").join(format!("{id}-{name}")))
    }

    /// What is known of a backup, or why it is left out.
    fn describe(&self, id: &BackupId, left_out: &mut Vec<LeftOut>) -> Result<Found, LeftOut> {
        let problem = |why: String| LeftOut::problem(id.as_str(), why);
        if self.marks.contains(&(id.clone(), MetaKind::Deleted)) {
            return Err(LeftOut::expected(id.as_str(), "Barman is deleting it"));
        }
        let place = self.place.join("base").join(id.as_str());
        let info = self.info(id, &place)?;
        match info.status {
            Status::Done => {}
            Status::WaitingForWals => self.wait_for(id, &info)?,
            status => return Err(LeftOut::expected(id.as_str(), format!("its status is {status}"))),
        }
        if let Some(snapshots) = &info.snapshots {
            return Err(problem(in_snapshots(snapshots, &info, &place)));
        }
        let layout = layout(&place).map_err(|error| problem(error.to_string()))?;
        if let Layout::Archives(files) = &layout {
            check_archives(files, &info).map_err(problem)?;
        }
        if let Layout::Archives(files) = &layout
            && files.iter().any(|file| file.name.is_encrypted)
            && self.options.plain.passphrase.is_none()
        {
            return Err(problem(
                "it is encrypted, and there is no --passphrase-command".to_owned(),
            ));
        }
        let mut backup = self.backup(id, &info).map_err(problem)?;
        match self.keep(id, &place) {
            Ok(keep) => backup.keep = keep,
            Err(why) => left_out.push(LeftOut::problem(format!("keep mark of {id}"), why)),
        }
        let names = names(&place).map_err(|error| problem(error.to_string()))?;
        Ok(Found {
            names,
            backup,
            info,
            place,
            layout,
        })
    }

    /// A backup waits for its WAL: whether it is taken all the same.
    fn wait_for(&self, id: &BackupId, info: &BackupInfo) -> Result<(), LeftOut> {
        let why = format!("its status is {}", info.status);
        let end = info.end_time.and_then(|end| end.in_zone(&self.options.zone));
        let waits = |end: TimestampMicros| moment::now().saturating_duration_since(end);
        match self.options.waiting {
            Waiting::Taken => Ok(()),
            Waiting::Awaited if end.is_none_or(|end| waits(end) < AWAITED_MAX) => {
                Err(LeftOut::expected(id.as_str(), why))
            }
            Waiting::Awaited => {
                let why = format!("{why} for more than a day: see why its WAL does not come to Barman");
                Err(LeftOut::problem(id.as_str(), why))
            }
            Waiting::Named => {
                let why = format!(
                    "{why}: repeat the import when Barman has its WAL, or take it with --include-waiting"
                );
                Err(LeftOut::problem(id.as_str(), why))
            }
        }
    }

    fn info(&self, id: &BackupId, place: &Path) -> Result<BackupInfo, LeftOut> {
        let path = self
            .meta(id, MetaKind::Info, "backup.info")
            .unwrap_or_else(|| place.join("backup.info"));
        let problem = |why: String| LeftOut::problem(id.as_str(), why);
        let bytes = read_small(&path, backup_info::LONGEST_BYTES as u64)
            .map_err(|error| problem(error.to_string()))?;
        match bytes {
            Some(bytes) => {
                BackupInfo::parse(&bytes).map_err(|error| problem(format!("{}: {error}", path.display())))
            }
            None if place.exists() => Err(problem("it has no backup.info".to_owned())),
            None => Err(LeftOut::expected(id.as_str(), "Barman has deleted it meanwhile")),
        }
    }

    fn keep(&self, id: &BackupId, place: &Path) -> Result<Option<KeepTarget>, String> {
        let path = self
            .meta(id, MetaKind::Keep, "keep")
            .unwrap_or_else(|| place.join("annotations/keep"));
        let content = read_small(&path, KEEP_BYTES).map_err(|error| error.to_string())?;
        match content.map(|content| KeepMark::parse(&content)) {
            None => Ok(None),
            Some(Some(KeepMark::Full)) => Ok(Some(KeepTarget::Full)),
            Some(Some(KeepMark::Standalone)) => Ok(Some(KeepTarget::Standalone)),
            Some(None) => Err(format!("{} is neither full nor standalone", path.display())),
        }
    }

    fn backup(&self, id: &BackupId, info: &BackupInfo) -> Result<ForeignBackup, String> {
        let system_id = match (info.system_id, self.system_id) {
            (Some(own), Some(of_all)) if own != of_all => {
                return Err(format!(
                    "it is of the cluster {own}, identity.json of the server says {of_all}"
                ));
            }
            (own, of_all) => own.or(of_all),
        };
        foreign(id, info, system_id, &self.options.zone)
    }
}

/// What a person does with a backup whose data is in a cloud: only the snapshots' disks have it.
fn in_snapshots(snapshots: &Snapshots, info: &BackupInfo, place: &Path) -> String {
    let end = info
        .end_lsn
        .map_or_else(|| "LSN".to_owned(), |lsn| lsn.to_string());
    let data = info.data_directory.as_deref().unwrap_or("DIR");
    format!(
        "its data is in snapshots of disks ({snapshots}). Mount disks that are made of them, then take it with 'barmanfs \
         backup SERVER --from DIR --backup-label {} --stop-lsn {end}', where DIR is what was {} on the server",
        place.join("data/backup_label").display(),
        printable(data.as_bytes())
    )
}

/// The backup that a description is of.
pub(super) fn foreign(
    id: &BackupId,
    info: &BackupInfo,
    system_id: Option<SystemId>,
    zone: &TimeZone,
) -> Result<ForeignBackup, String> {
    let without = |key: &str| format!("its backup.info has no {key}");
    let time = |moment: Option<Moment>, key: &str| {
        moment
            .and_then(|moment| moment.in_zone(zone))
            .ok_or_else(|| without(key))
    };
    Ok(ForeignBackup {
        name: id.to_string(),
        tool: TOOL.to_owned(),
        id: id.as_str().parse().map_err(|_| format!("{id} is no time"))?,
        begin_time: time(info.begin_time, "begin_time")?,
        end_time: time(info.end_time, "end_time")?,
        start_lsn: info.begin_lsn.ok_or_else(|| without("begin_xlog"))?,
        stop_lsn: info.end_lsn.ok_or_else(|| without("end_xlog"))?,
        timeline: info.timeline.ok_or_else(|| without("timeline"))?,
        system_id: system_id
            .ok_or("neither its backup.info nor identity.json says of which cluster it is")?,
        server_version: info.version.ok_or_else(|| without("version"))?,
        segment_size: info.segment_size,
        label: info.name.clone(),
        annotations: barmanfs_catalog::Annotations::new(),
        keep: None,
        parent_start: None,
        is_cold: false,
        size_bytes: info.size_bytes,
    })
}

/// How the files lie in `base/<ID>`. Links are not followed: they lead out of the backup.
fn layout(place: &Path) -> Result<Layout, Error> {
    let is_directory = |path: &Path| match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        found => found
            .map(|found| found.is_dir())
            .map_err(|error| cannot_read(path, &error)),
    };
    if !is_directory(place)? {
        return Err(Error::failed("its directory in base is missing, or is a link"));
    }
    let (data, early) = (place.join("data"), place.join("pgdata"));
    if is_directory(&early)? {
        return Ok(Layout::Tree {
            tablespaces: early.join("pg_tblspc"),
            data: early,
        });
    }
    let has_data = is_directory(&data)?;
    let archives = archives(if has_data { &data } else { place })?;
    match (archives.is_empty(), has_data) {
        (false, _) => Ok(Layout::Archives(archives)),
        (true, true) => Ok(Layout::Tree {
            data,
            tablespaces: place.to_owned(),
        }),
        (true, false) => Err(Error::failed("it has neither a directory data nor archives")),
    }
}

/// The archives in a directory: tablespaces first, as a server sends them.
fn archives(place: &Path) -> Result<Vec<ArchiveFile>, Error> {
    let names = names_in(place)?.unwrap_or_default();
    let mut archives: Vec<ArchiveFile> = names
        .iter()
        .filter_map(|name| {
            Some(ArchiveFile {
                name: TarName::parse(name)?,
                path: place.join(name),
            })
        })
        .collect();
    let key = |file: &ArchiveFile| {
        (
            file.name.tablespace.is_none(),
            file.name.tablespace,
            file.name.part,
        )
    };
    archives.sort_by_key(key);
    for pair in archives.windows(2) {
        if let [one, other] = pair
            && key(one) == key(other)
        {
            return Err(Error::failed(format!(
                "{} and {} are the same archive twice",
                one.path.display(),
                other.path.display()
            )));
        }
    }
    Ok(archives)
}

/// The archives are all of the backup's, as far as their names and sizes show.
fn check_archives(files: &[ArchiveFile], info: &BackupInfo) -> Result<(), String> {
    if !files.iter().any(|file| file.name.tablespace.is_none()) {
        return Err("its archive of the data directory is missing".to_owned());
    }
    check_tablespaces(files, info)?;
    let mut before: Option<TarName> = None;
    for file in files {
        let name = file.name;
        let expected = match before {
            Some(before) if before.tablespace == name.tablespace => before.part + 1,
            _ => 0,
        };
        if name.part != expected {
            let shown = file.path.file_name().unwrap_or_default().display();
            return Err(format!(
                "it has {shown}, and part {expected} of the same archive is missing"
            ));
        }
        before = Some(name);
    }
    check_size(files, info)
}

/// Each tablespace has its archive, and no archive is of another one.
fn check_tablespaces(files: &[ArchiveFile], info: &BackupInfo) -> Result<(), String> {
    let there: Vec<u32> = files.iter().filter_map(|file| file.name.tablespace).collect();
    if let Some(missing) = info.tablespaces.iter().find(|known| !there.contains(&known.oid)) {
        return Err(missing_tablespace(missing));
    }
    match there
        .iter()
        .find(|oid| !info.tablespaces.iter().any(|known| known.oid == **oid))
    {
        Some(unknown) => Err(format!(
            "it has an archive of tablespace {unknown}, which its backup.info does not list"
        )),
        None => Ok(()),
    }
}

/// Says that a tablespace is listed and not there.
pub(super) fn missing_tablespace(tablespace: &Tablespace) -> String {
    format!(
        "the files of its tablespace {}, OID {}, are missing",
        printable(tablespace.name.as_bytes()),
        tablespace.oid
    )
}

/// Of what it has put into a cloud, Barman notes how many bytes the archives have together. So a last part that is missing
/// shows, which no number does.
fn check_size(files: &[ArchiveFile], info: &BackupInfo) -> Result<(), String> {
    let Some(expected) = info
        .size_bytes
        .filter(|_| info.mode.as_deref() != Some("postgres"))
    else {
        return Ok(());
    };
    let mut found = 0_u64;
    for file in files {
        let size = fs::metadata(&file.path).map(|found| found.len());
        found += size.map_err(|error| cannot_read(&file.path, &error).to_string())?;
    }
    match found < expected {
        true => Err(format!(
            "its archives have {found} bytes together, and its backup.info says {expected}: one is cut, or a last part is missing"
        )),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of archives with these names, each of one byte, in a backup with the tablespaces 1 and 2.
    fn said(names: &[&str], size: &str) -> String {
        let place = tempfile::tempdir().unwrap();
        for name in names {
            fs::write(place.path().join(name), "x").unwrap();
        }
        let mut text: String = [
            "begin_time",
            "begin_wal",
            "begin_xlog",
            "end_time",
            "end_wal",
            "end_xlog",
        ]
        .iter()
        .map(|key| format!("{key}=None\n"))
        .collect();
        text += &format!("status=DONE\nsize={size}\nmode=concurrent\ntimeline=1\nversion=None\n");
        text += "tablespaces=[('one', 1, '/one'), ('two', 2, '/two')]\n";
        let info = BackupInfo::parse(text.as_bytes()).unwrap();
        let files = archives(place.path()).unwrap();
        check_archives(&files, &info).err().unwrap_or_default()
    }

    /// The kind: a directory that is gone before it is listed is not missed.
    #[test]
    fn a_backup_that_is_deleted_while_it_is_read_is_noticed() {
        let id = "20261130T010000";
        for (change, says) in [
            ("", ""),
            ("touch meta/20261130T010000-delete_this", "deleted"),
            ("rm meta/20261130T010000-backup.info", "deleted"),
            ("rm -r base", "deleted"),
            ("rm -r base/20261130T010000/data/base", "changed"),
            ("rm -r base/20261130T010000/16384", "changed"),
        ] {
            let server = tempfile::tempdir().unwrap();
            let place = server.path().join("base").join(id);
            for directory in ["data/base", "data/global", "16384"] {
                fs::create_dir_all(place.join(directory)).unwrap();
            }
            fs::create_dir(server.path().join("meta")).unwrap();
            fs::write(server.path().join(format!("meta/{id}-backup.info")), "").unwrap();
            let before = names(&place).unwrap();
            let mut shell = std::process::Command::new("/bin/sh");
            let status = shell.current_dir(server.path()).args(["-c", change]).status();
            assert!(status.unwrap().success());
            let said = changed_since(server.path(), id, &place, &before).unwrap_or_default();
            assert!(
                said.contains(says) && said.is_empty() == says.is_empty(),
                "{change}: {said}"
            );
        }
    }

    #[test]
    fn no_archive_and_no_part_may_be_missing() {
        let whole = [
            "data.tar",
            "data_0001.tar",
            "data_0002.tar",
            "1.tar.gz",
            "2.tar",
            "2_0001.tar",
        ];
        assert_eq!(said(&whole, "None"), "");
        assert_eq!(said(&whole, "6"), "");
        for (missing, says) in [
            ("data.tar", "data_0001.tar, and part 0"),
            ("data_0001.tar", "data_0002.tar, and part 1"),
            ("data_0002.tar", "a last part is missing"),
            ("1.tar.gz", "tablespace one, OID 1"),
            ("2.tar", "2_0001.tar, and part 0"),
            ("2_0001.tar", "a last part is missing"),
        ] {
            let left: Vec<&str> = whole.into_iter().filter(|name| *name != missing).collect();
            let said = said(&left, "6");
            assert!(said.contains(says), "{missing}: {said}");
        }
        assert!(said(&["1.tar", "2.tar"], "None").contains("data directory"));
        assert!(said(&["data.tar", "1.tar", "2.tar", "3.tar"], "None").contains("tablespace 3"));
    }
}
