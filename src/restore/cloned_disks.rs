//! A backup that is a snapshot of the storage, on a host to which the clones of its disks are attached.
//!
//! Before anything is written, each disk must be mounted where the server had it, with its options, and the directory must hold
//! the data directory of this backup, which no server has started on since. Then the label is placed, the map of tablespaces, and
//! the settings of the recovery. The label comes first and the signal last: a server that is started in between refuses.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use barmanfs_catalog::{Backup, SnapshotDisk, StorageSnapshot};
use barmanfs_pg::backup_label::BackupLabel;
use barmanfs_pg::pg_control::{ClusterState, ControlFile};
use barmanfs_pg::tablespace_map;
use barmanfs_pg::{ServerVersion, TimestampMicros};
use barmanfs_store::open_regular;

use super::remote::{RemoteShell, word};
use crate::error::Error;
use crate::fstab;
use crate::instance::AUTO_CONF;
use crate::output::printable;

/// The most that a file of interest may have.
const SMALL_BYTES: u64 = 4 << 20;

/// The name of a file until it is complete.
const UNFINISHED: &str = ".barmanfs-placing";

const LABEL: &str = "backup_label";
const MAP: &str = "tablespace_map";
const PID: &str = "postmaster.pid";
const SIGNALS: [&str; 2] = ["recovery.signal", "standby.signal"];

/// Options that say which part of a file system is mounted: a clone is another one.
const OF_THE_CLONE: [&str; 2] = ["subvol", "subvolid"];

/// Where the clones are.
#[derive(Debug)]
pub(crate) enum Host {
    /// Here.
    Here,
    /// Where this command leads to.
    There(RemoteShell),
}

/// The data directory on cloned disks.
#[derive(Debug)]
pub(crate) struct ClonedDisks<'a> {
    pub(crate) backup: &'a Backup,
    pub(crate) snapshot: &'a StorageSnapshot,
    pub(crate) directory: &'a Path,
    pub(crate) host: Host,
}

/// What is there.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) control: ControlFile,
    /// `postgresql.auto.conf`
    pub(crate) auto_conf: Vec<u8>,
}

/// A mounted file system.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mounted {
    point: PathBuf,
    options: Vec<String>,
}

impl ClonedDisks<'_> {
    /// Checks everything.
    ///
    /// # Errors
    /// When a disk is not mounted as it was, or the directory is not this backup's.
    pub(crate) fn check(&self) -> Result<Found, Error> {
        let mounts = self.host.mounts()?;
        for disk in &self.snapshot.disks {
            check_disk(disk, &mounts)?;
        }
        let is_below = |disk: &SnapshotDisk| self.directory.starts_with(&disk.mount_point);
        if !self.snapshot.disks.iter().any(is_below) {
            return Err(Error::failed(format!(
                "{} is not on a disk of the snapshot: the data directory is restored where its clone is mounted",
                self.directory.display()
            )));
        }
        let found = self.check_directory()?;
        self.check_tablespaces()?;
        Ok(found)
    }

    fn check_directory(&self) -> Result<Found, Error> {
        let place = self.directory.display();
        let backup = self.backup;
        let needed = |name: &str| {
            self.read(name)?
                .ok_or_else(|| Error::failed(format!("{place} has no {name}: it is no data directory")))
        };
        let version = ServerVersion::of_data_directory(&needed("PG_VERSION")?);
        if version.map(ServerVersion::major) != Some(backup.server_version.major()) {
            return Err(Error::failed(format!(
                "PG_VERSION in {place} is not that of PostgreSQL {}",
                backup.server_version.major()
            )));
        }
        let control = ControlFile::parse(&needed("global/pg_control")?)
            .map_err(|error| Error::failed(format!("global/pg_control in {place}: {error}")))?;
        if control.system_id != backup.system_id {
            return Err(Error::failed(format!(
                "{place} is of the cluster with system identifier {}, the backup of {}",
                control.system_id, backup.system_id
            )));
        }
        let label = BackupLabel::parse(self.snapshot.backup_label.as_bytes())
            .map_err(|error| Error::failed(format!("The backup_label is not understood: {error}")))?;
        let stop = backup.stop_lsn.unwrap_or_default();
        if control.checkpoint < label.checkpoint_lsn || control.checkpoint > stop {
            return Err(Error::failed(format!(
                "{place} is not as the snapshot was taken: its last checkpoint is at {}, the backup lies between {} and {stop}",
                control.checkpoint, label.checkpoint_lsn
            ))
            .hint("Make new clones of the snapshot: a server has been started there, or they are of another one"));
        }
        match self.read(LABEL)? {
            Some(there) if there != self.snapshot.backup_label.as_bytes() => {
                return Err(Error::failed(format!(
                    "{place} has a backup_label of another backup"
                )));
            }
            // An earlier restore has placed it.
            Some(_) => {}
            None => self.refuse_started(&control)?,
        }
        if self.host.runs_server(self.directory)? {
            return Err(Error::failed(format!("A server runs in {place}")));
        }
        Ok(Found {
            control,
            auto_conf: self.read(AUTO_CONF)?.unwrap_or_default(),
        })
    }

    /// A server that was started there without the label has gone a way of its own, and the archive's WAL does not continue
    /// that. The original's own file is in the snapshot of its running server: a clean end of another one removes it, and
    /// after a crash it has the time of the other one.
    fn refuse_started(&self, control: &ControlFile) -> Result<(), Error> {
        let is_running = matches!(
            control.state,
            ClusterState::InProduction | ClusterState::InArchiveRecovery
        );
        let ended = self.backup.end_time.unwrap_or(self.backup.begin_time);
        let pid_file = self.read(PID)?.unwrap_or_default();
        let started = String::from_utf8_lossy(&pid_file)
            .lines()
            .nth(2)
            .and_then(|line| line.trim().parse().ok())
            .map(TimestampMicros::from_unix_seconds);
        match is_running && started.is_some_and(|started| started <= ended) {
            true => Ok(()),
            false => Err(Error::failed(format!(
                "A server was started in {} after the snapshot was taken, or its {PID} was removed: what it wrote does not \
                 belong to the backup",
                self.directory.display()
            ))
            .hint("Make new clones of the snapshot, and start no server there before the restore")),
        }
    }

    /// The map is obeyed by PostgreSQL: it makes the links again.
    fn check_tablespaces(&self) -> Result<(), Error> {
        let map = tablespace_map::parse(self.snapshot.tablespace_map.as_bytes())
            .map_err(|error| Error::failed(error.to_string()))?;
        for (oid, location) in map {
            let location = String::from_utf8_lossy(&location).into_owned();
            if location.starts_with('/') && !self.host.is_directory(Path::new(&location))? {
                return Err(Error::failed(format!(
                    "Tablespace {oid} is not at {}: mount the clone of its disk there",
                    printable(location.as_bytes())
                )));
            }
        }
        Ok(())
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        self.host.read(&self.directory.join(name))
    }

    /// Places the files, durably. `is_standby` decides which signal.
    ///
    /// # Errors
    /// When one cannot be written.
    pub(crate) fn place(&self, auto_conf: &[u8], is_standby: bool) -> Result<Vec<&'static str>, Error> {
        let [recovery, standby] = SIGNALS;
        let (signal, other) = match is_standby {
            true => (standby, recovery),
            false => (recovery, standby),
        };
        let mut placed = vec![LABEL];
        let put = |name, bytes: &[u8]| self.host.put(self.directory, name, bytes);
        put(LABEL, self.snapshot.backup_label.as_bytes())?;
        if !self.snapshot.tablespace_map.is_empty() {
            put(MAP, self.snapshot.tablespace_map.as_bytes())?;
            placed.push(MAP);
        }
        put(AUTO_CONF, auto_conf)?;
        self.host.remove(self.directory, &[other, PID])?;
        put(signal, b"")?;
        placed.extend([AUTO_CONF, signal]);
        Ok(placed)
    }
}

fn check_disk(disk: &SnapshotDisk, mounts: &[Mounted]) -> Result<(), Error> {
    let name = printable(disk.snapshot.as_bytes());
    let point = printable(disk.mount_point.as_bytes());
    // The last one is over the others.
    let Some(mounted) = mounts
        .iter()
        .rfind(|mounted| mounted.point == Path::new(&disk.mount_point))
    else {
        return Err(Error::failed(format!(
            "Nothing is mounted at {point}: the clone of {name} belongs there"
        )));
    };
    let is_there = |wanted: &&str| {
        let key = wanted.split('=').next().unwrap_or_default();
        OF_THE_CLONE.contains(&key) || mounted.options.iter().any(|option| option == wanted)
    };
    let wanted = disk.mount_options.split(',').filter(|option| !option.is_empty());
    let missing: Vec<&str> = wanted.filter(|wanted| !is_there(wanted)).collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(Error::failed(format!(
            "{point} is mounted without {}: the server had it mounted with {}",
            printable(missing.join(",").as_bytes()),
            printable(disk.mount_options.as_bytes())
        ))),
    }
}

/// Reads `/proc/self/mountinfo`: mount points, and the options of the mount and of its file system.
fn mounts(text: &str) -> Vec<Mounted> {
    let mounted = |line: &str| {
        let point = fstab::mounted_at(line)?;
        let own = line.split_ascii_whitespace().nth(5)?;
        let of_the_file_system = line.rsplit_once(" - ")?.1.split_ascii_whitespace().nth(2)?;
        let options = own.split(',').chain(of_the_file_system.split(','));
        Some(Mounted {
            point,
            options: options.map(str::to_owned).collect(),
        })
    };
    text.lines().filter_map(mounted).collect()
}

impl Host {
    fn mounts(&self) -> Result<Vec<Mounted>, Error> {
        let text = self.read(Path::new("/proc/self/mountinfo"))?;
        let text = text.ok_or_else(|| Error::failed("/proc/self/mountinfo does not exist"))?;
        Ok(mounts(&String::from_utf8_lossy(&text)))
    }

    /// A small file; `None` if it does not exist.
    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, Error> {
        let failed = |error: io::Error| Error::failed(format!("Cannot read {}: {error}", path.display()));
        let mut bytes = Vec::new();
        match self {
            Self::Here => {
                let file: Result<File, io::Error> = match path.starts_with("/proc") {
                    true => File::open(path),
                    false => open_regular(path),
                };
                match file {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                    file => file
                        .map_err(failed)?
                        .take(SMALL_BYTES + 1)
                        .read_to_end(&mut bytes)
                        .map_err(failed)?,
                };
            }
            Self::There(shell) => {
                let path = quoted(path)?;
                let script = format!(
                    "if test -e {path}; then echo y; head -c {} {path}; fi",
                    SMALL_BYTES + 1
                );
                let answer = shell.run("read a file", &script, b"")?;
                match answer.strip_prefix(b"y\n") {
                    None => return Ok(None),
                    Some(rest) => bytes.extend_from_slice(rest),
                }
            }
        }
        match bytes.len() as u64 > SMALL_BYTES {
            true => Err(Error::failed(format!(
                "{} has more than {SMALL_BYTES} bytes",
                path.display()
            ))),
            false => Ok(Some(bytes)),
        }
    }

    fn is_directory(&self, path: &Path) -> Result<bool, Error> {
        match self {
            Self::Here => Ok(path.is_dir()),
            Self::There(shell) => {
                let script = format!("if test -d {}; then echo y; fi", quoted(path)?);
                Ok(shell.run("look at a directory", &script, b"")? == b"y\n")
            }
        }
    }

    /// Whether the process in `postmaster.pid` runs in this directory. The snapshot has that file, too.
    fn runs_server(&self, directory: &Path) -> Result<bool, Error> {
        let Some(bytes) = self.read(&directory.join(PID))? else {
            return Ok(false);
        };
        let text = String::from_utf8_lossy(&bytes);
        let Some(pid) = text
            .lines()
            .next()
            .and_then(|line| line.trim().parse::<u32>().ok())
        else {
            return Ok(false);
        };
        match self {
            Self::Here => {
                let id = |path: &Path| fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
                let cwd = id(Path::new(&format!("/proc/{pid}/cwd")));
                Ok(cwd.is_some() && cwd == id(directory))
            }
            Self::There(shell) => {
                let script = format!(
                    "if test /proc/{pid}/cwd -ef {}; then echo y; fi",
                    quoted(directory)?
                );
                Ok(shell.run("look for a server", &script, b"")? == b"y\n")
            }
        }
    }

    /// Writes a file with the owner of the directory, durably, in the place of one that may be there.
    fn put(&self, directory: &Path, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = directory.join(name);
        let failed = |error: io::Error| Error::failed(format!("Cannot write {}: {error}", path.display()));
        match self {
            Self::Here => {
                let unfinished = directory.join(UNFINISHED);
                match fs::remove_file(&unfinished) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                    _ => {}
                }
                let mut options = File::options();
                std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
                let mut file = options
                    .write(true)
                    .create_new(true)
                    .open(&unfinished)
                    .map_err(failed)?;
                file.write_all(bytes).map_err(failed)?;
                let owner = fs::metadata(directory).map_err(failed)?;
                if rustix::process::geteuid().is_root() {
                    std::os::unix::fs::fchown(&file, Some(owner.uid()), Some(owner.gid())).map_err(failed)?;
                }
                file.sync_all().map_err(failed)?;
                fs::rename(&unfinished, &path).map_err(failed)?;
                File::open(directory)
                    .and_then(|directory| directory.sync_all())
                    .map_err(failed)
            }
            Self::There(shell) => {
                let (directory, name) = (quoted(directory)?, word(name));
                let script = format!(
                    "set -e; cd {directory}; rm -f {UNFINISHED}; umask 077; cat >{UNFINISHED}; \
                     if test \"$(id -u)\" = 0; then chown \"$(stat -c %u:%g .)\" {UNFINISHED}; fi; \
                     sync {UNFINISHED}; mv -f {UNFINISHED} {name}; sync ."
                );
                shell.run("write a file", &script, bytes).map(drop)
            }
        }
    }

    /// Removes files that may be there.
    fn remove(&self, directory: &Path, names: &[&str]) -> Result<(), Error> {
        match self {
            Self::Here => names.iter().try_for_each(|name| {
                let path = directory.join(name);
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::failed(format!(
                        "Cannot remove {}: {error}",
                        path.display()
                    ))),
                    _ => Ok(()),
                }
            }),
            Self::There(shell) => {
                let names: Vec<String> = names.iter().map(|name| word(name)).collect();
                let script = format!("cd {} && rm -f {}", quoted(directory)?, names.join(" "));
                shell.run("remove files", &script, b"").map(drop)
            }
        }
    }
}

fn quoted(path: &Path) -> Result<String, Error> {
    path.to_str()
        .map(word)
        .ok_or_else(|| Error::usage(format!("{} is no UTF-8", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "30 1 8:17 / /srv/a\\040b rw,noatime shared:1 - ext4 /dev/sdb1 rw,errors=remount-ro\n\
                             31 1 0:40 /x /srv/pg rw,relatime - btrfs /dev/loop0 rw,space_cache=v2,subvolid=256,subvol=/disk\n\
                             32 1 0:41 /x /srv/pg ro,noatime - btrfs /dev/loop1 rw,space_cache=v2\n";

    fn checked(point: &str, options: &str) -> Result<(), String> {
        let disk = SnapshotDisk {
            disk: None,
            snapshot: "s1".to_owned(),
            mount_point: point.to_owned(),
            mount_options: options.to_owned(),
        };
        check_disk(&disk, &mounts(MOUNTINFO)).map_err(|error| error.to_string())
    }

    #[test]
    fn each_disk_is_mounted_where_it_was_and_as_it_was() {
        for options in ["", "noatime", "rw,noatime,errors=remount-ro"] {
            assert_eq!(checked("/srv/a b", options), Ok(()), "{options}");
        }
        let why = checked("/srv/a b", "rw,nodev").unwrap_err();
        assert_eq!(
            why,
            "/srv/a b is mounted without nodev: the server had it mounted with rw,nodev"
        );
        assert!(
            checked("/srv", "")
                .unwrap_err()
                .contains("the clone of s1 belongs there")
        );
        // What is mounted over another one counts; a clone is another subvolume.
        assert_eq!(checked("/srv/pg", "ro,noatime,subvol=/other,subvolid=5"), Ok(()));
        assert!(checked("/srv/pg", "relatime").is_err());
    }
}
