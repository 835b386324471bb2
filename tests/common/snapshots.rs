//! A storage that takes snapshots: btrfs in images, and a server on two disks of it. Needs root.

use super::load::{assert_sums_agree, fill, transactions};
use super::process::{Run, run};
use super::user::give;
use super::{Install, PgServer, Site};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A disk: a file system in an image, whose subvolume `disk` is mounted at NAME, and all of it at NAME.all. Snapshots are in
/// NAME.all/snaps. The database user may take and delete them.
#[derive(Debug)]
pub(crate) struct Disk {
    /// Where the server has it.
    pub(crate) point: PathBuf,
    /// Where the storage has all of it.
    pub(crate) all: PathBuf,
    device: String,
}

/// How the server has it mounted.
pub(crate) const OPTIONS: &str = "noatime,user_subvol_rm_allowed";

impl Disk {
    pub(crate) fn new(site: &Site, name: &str, megabytes: u32) -> Self {
        let (point, all) = (
            site.make_directory(name),
            site.make_directory(&format!("{name}.all")),
        );
        let image = site.path(&format!("{name}.image"));
        let sh = |script: &str| run(Command::new("sh").args(["-c", script])).ok().text();
        // mkfs.btrfs checks the backing file of every loop device, and fails if a test beside this one has cut the power of
        // one.
        let make = "awk '$1 ~ \"^/dev/loop\" {print $2}' /proc/self/mounts | xargs -r umount -l; mkfs.btrfs -q \"$1\"";
        sh(&format!("truncate -s{megabytes}M '{}'", image.display()));
        run(Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", make, "sh"])
            .arg(&image))
        .ok();
        let device = sh(&format!("losetup --find --show '{}'", image.display()));
        sh(&format!(
            "mount -o {OPTIONS} {device} '{0}' && btrfs -q subvolume create '{0}/disk' && mkdir '{0}/snaps'",
            all.display()
        ));
        let disk = Self { point, all, device };
        disk.mount("disk", OPTIONS);
        give(&disk.point);
        give(&disk.all.join("snaps"));
        disk
    }

    /// Mounts a subvolume where the server has the disk.
    pub(crate) fn mount(&self, subvolume: &str, options: &str) {
        run(Command::new("mount")
            .args(["-o", &format!("{options},subvol={subvolume}"), &self.device])
            .arg(&self.point))
        .ok();
    }

    pub(crate) fn umount(&self) {
        run(Command::new("umount").arg(&self.point)).ok();
    }

    /// Makes a disk of a snapshot: the subvolume NAME.
    pub(crate) fn clone_of(&self, snapshot: &str, name: &str) {
        run(Command::new("btrfs")
            .args(["-q", "subvolume", "snapshot"])
            .args([self.all.join("snaps").join(snapshot), self.all.join(name)]))
        .ok();
    }

    /// A shell command that takes the snapshot whose name is in a variable of the shell.
    pub(crate) fn take(&self, name: &str) -> String {
        format!(
            "btrfs -q subvolume snapshot '{}' '{}'/snaps/{name}",
            self.point.display(),
            self.all.display()
        )
    }

    /// The names of the snapshots.
    pub(crate) fn snapshots(&self, site: &Site) -> Vec<String> {
        site.list(&self.all.join("snaps"))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        for point in [&self.point, &self.all] {
            let _ = Command::new("umount").arg("-l").arg(point).status();
        }
        let _ = Command::new("losetup").args(["-d", &self.device]).status();
    }
}

/// What is in the tablespace.
pub(crate) const ROWS: &str = "SELECT count(*) || ' ' || coalesce(sum(n), 0) FROM there";

/// A server whose data directory is on one disk, and a tablespace on another.
pub(crate) struct TwoDisks {
    pub(crate) site: Site,
    pub(crate) server: PgServer,
    pub(crate) main: Disk,
    pub(crate) fast: Disk,
}

impl TwoDisks {
    pub(crate) fn new(install: &'static Install) -> Self {
        let site = Site::with_repository();
        let (main, fast) = (Disk::new(&site, "disk", 600), Disk::new(&site, "fast", 200));
        let server = PgServer::init(install, &main.point.join("main"), &[]);
        server.configure(&format!(
            "archive_mode = on\narchive_command = '{}'",
            site.archive_command()
        ));
        let mut disks = Self {
            site,
            server,
            main,
            fast,
        };
        disks.write_config("");
        disks.server.start();
        let space = disks.fast.point.join("space");
        fs::create_dir(&space).unwrap();
        give(&space);
        disks
            .server
            .query(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display()));
        disks
            .server
            .query("CREATE TABLE there TABLESPACE fast AS SELECT generate_series(1, 20000) n");
        disks.server.query("CREATE UNLOGGED TABLE brief AS SELECT 1 n");
        fill(&disks.server, 1);
        disks
    }

    /// The commands of the storage; `more` are further lines.
    pub(crate) fn write_config(&self, more: &str) {
        let name = "\"$BARMANFS_SNAPSHOT_NAME\"";
        let record = |disk: &Disk, word: &str| {
            format!(
                "printf '{{\"disk\": \"{word}\", \"snapshot\": \"%s\", \"mount_point\": \"{0}\", \"mount_options\": \"%s\"}}\\n' {name} \
                 \"$(findmnt -no OPTIONS '{0}')\"",
                disk.point.display()
            )
        };
        let take = format!(
            "set -e\ntest -d \"$BARMANFS_DATA_DIRECTORY\" && test -d \"$BARMANFS_TABLESPACES\"\n{}\nsleep 1\n{}\n{}\n{}\n",
            self.main.take(name),
            self.fast.take(name),
            record(&self.main, "main"),
            record(&self.fast, "fast")
        );
        self.site.write_file("take.sh", take.as_bytes());
        let snaps = [&self.main, &self.fast].map(|disk| disk.all.join("snaps").display().to_string());
        let mount = format!(
            "set -e\nln -sfn {0}/{name} '{2}'\nln -sfn {1}/{name}/space '{3}'\n",
            snaps[0],
            snaps[1],
            self.snapshot().parent().unwrap().display(),
            self.site.path("mnt-fast").display()
        );
        self.site.write_file("mount.sh", mount.as_bytes());
        let delete = format!(
            "for all in '{}' '{}'; do test ! -d $all/{name} || btrfs -q subvolume delete $all/{name} || exit 1; done\n",
            snaps[0], snaps[1]
        );
        self.site.write_file("delete.sh", delete.as_bytes());
        let script = |name: &str| format!("sh {}", self.site.path(name).display());
        let lines = format!(
            "snapshot_command = {}\nsnapshot_mount_command = {}\nsnapshot_umount_command = rm {} {}\n\
             snapshot_delete_command = {}\nsnapshot_list_command = ls {}\nsnapshot_disks = main, fast\n{more}",
            script("take.sh"),
            script("mount.sh"),
            self.site.path("mnt").display(),
            self.site.path("mnt-fast").display(),
            script("delete.sh"),
            snaps[0]
        );
        // What the test says counts.
        let key = |line: &str| line.split(" = ").next().map(str::to_owned);
        let said: Vec<_> = more.lines().map(key).collect();
        let (usual, more) = lines.split_once("snapshot_disks").unwrap();
        let usual: Vec<&str> = usual.lines().filter(|line| !said.contains(&key(line))).collect();
        let lines = format!("{}\nsnapshot_disks{more}", usual.join("\n"));
        self.site.write_config_of(&self.server, &lines);
    }

    /// The data directory in a mounted snapshot.
    pub(crate) fn snapshot(&self) -> PathBuf {
        self.site.path("mnt/main")
    }

    /// What must be in a copy.
    pub(crate) fn rows(&self) -> String {
        rows(&self.server)
    }

    /// Takes snapshots by hand, with what the server returns in the files NAME.label, NAME.map and NAME.lsn. `before` and
    /// `after` are shell commands before the start and after the end of the backup.
    pub(crate) fn by_hand(&self, name: &str, (before, within, after): (&str, &str, &str)) {
        let file = |what: &str| self.site.path(&format!("{name}.{what}")).display().to_string();
        let script = format!(
            "\\! {before}\nSELECT pg_backup_start('by hand', true);\n\\! {within}\n\
             SELECT lsn, labelfile, spcmapfile FROM pg_backup_stop(false) \\gset\n\\! {after}\n\
             \\o {}\n\\qecho :labelfile\n\\o {}\n\\qecho :spcmapfile\n\\o {}\n\\qecho :lsn\n",
            file("label"),
            file("map"),
            file("lsn")
        );
        let path = self.site.write_file("by_hand.sql", script.as_bytes());
        run(self
            .server
            .client("psql")
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null", "-f"])
            .arg(path))
        .ok();
    }

    /// Reads the snapshot SNAP by the label of NAME.
    pub(crate) fn read(&self, name: &str, snap: &str, more: &[&str]) -> Run {
        let file = |what: &str| self.site.path(&format!("{name}.{what}")).display().to_string();
        let lsn = fs::read_to_string(file("lsn")).unwrap();
        let from = self.main.all.join("snaps").join(snap).join("main");
        let from = from.display().to_string();
        let (label, map) = (file("label"), file("map"));
        let words = [
            "backup",
            "main",
            "--from",
            &from,
            "--backup-label",
            &label,
            "--tablespace-map",
            &map,
            "--stop-lsn",
            lsn.trim(),
        ];
        self.site.barmanfs(&[&words[..], more].concat())
    }

    /// `--tablespace` for a snapshot of the second disk.
    pub(crate) fn space(&self, snap: &str) -> String {
        format!(
            "{}/space:{}",
            self.fast.point.display(),
            self.fast.all.join("snaps").join(snap).join("space").display()
        )
    }
}

fn rows(server: &PgServer) -> String {
    format!("{} {}", server.query(ROWS), transactions(server))
}

/// The original's sockets are on the disk, too. It has ended, and its number may not be free yet.
pub(crate) fn forget_sockets(site: &Site, copy: &PgServer) {
    site.sh(&format!("rm -f '{}'/.s.PGSQL.*", copy.sockets().display()))
        .ok();
}

/// Starts a server on a copy, and looks for the rows.
#[track_caller]
pub(crate) fn assert_starts(disks: &TwoDisks, data: &Path, rows_then: &str) -> PgServer {
    let mut copy = PgServer::on(disks.server.install, data);
    copy.configure_auto("archive_mode = off");
    forget_sockets(&disks.site, &copy);
    copy.wait_for_predecessor();
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(rows(&copy), rows_then);
    assert_eq!(copy.query("SELECT count(*) FROM brief"), "0");
    assert_sums_agree(&copy);
    copy
}
