//! PostgreSQL runs on the mount itself: `mkdir live/NAME` is a clone that can be started, written, crashed and
//! destroyed, and the backup below it stays unchanged.

use crate::common::load::{assert_sums_agree, fill, transact, transactions};
use crate::common::process::until;
use crate::common::registry::topic;
use crate::common::{Install, Load, Mount, PgServer, Site};
use std::time::{Duration, Instant};

topic! {
    with_postgres a_clone_stays_sound_under_load_and_after_a_crash(as_root),
    edges commits_survive_the_kill_of_the_daemon(as_root),
    once clones_of_several_points_in_time_run_side_by_side(as_root),
    edges a_clone_never_archives_whatever_its_settings(as_root),
    once a_clone_cannot_archive_and_keeps_its_backup(as_root),
}

/// How long the test works on a clone; `BARMANFS_TEST_SECONDS` overrides it, and 60 is the full test.
const USUAL_SECONDS: u64 = 3;

fn seconds() -> u64 {
    std::env::var("BARMANFS_TEST_SECONDS").map_or(USUAL_SECONDS, |text| {
        text.parse().expect("BARMANFS_TEST_SECONDS is a number")
    })
}

/// A site with a backup of a filled database, which still runs.
fn filled_site(install: &'static Install) -> (Site, PgServer) {
    let (site, primary) = Site::with_initdb_options(install, &["--wal-segsize=1"]);
    fill(&primary, 2);
    transact(&primary, 100);
    site.backup();
    (site, primary)
}

/// Makes a clone without starting its server. Its sockets and its log are outside the mount.
#[track_caller]
fn make_clone(site: &Site, mount: &Mount, install: &'static Install, name: &str, of: &str) -> PgServer {
    let made = mount.path(&format!("main/live/{name}{of}"));
    site.sh(&format!("mkdir '{}'", made.display())).ok();
    PgServer::on_mount(
        install,
        &mount.path(&format!("main/live/{name}")),
        &site.path(name),
    )
}

fn a_clone_stays_sound_under_load_and_after_a_crash(install: &'static Install) {
    let (site, primary) = filled_site(install);
    let expected = transactions(&primary);
    let mount = Mount::for_all(&site);
    let below = mount.path(&format!("main/raw/{}", site.backup_ids()[0]));
    let was = site.checksums(&below);
    let mut clone = make_clone(&site, &mount, install, "test1", "");
    clone.start();
    clone.wait_until_promoted();
    assert_eq!(transactions(&clone), expected);
    let load = Load::start(&clone);
    let until_then = Instant::now() + Duration::from_secs(seconds());
    while Instant::now() < until_then {
        std::thread::sleep(Duration::from_secs(1));
        clone.query("CHECKPOINT");
    }
    clone.kill();
    load.stop();
    clone.start();
    let done = transactions(&clone) - expected;
    println!("{done} transactions");
    assert!(done > 0);
    assert_sums_agree(&clone);
    clone.query("VACUUM FULL pgbench_accounts");
    clone.query("TRUNCATE pgbench_history");
    clone.assert_sound();
    mount_refuses_to_go(&site, &mount);
    clone.stop_and_assert_checksums();
    site.ok(&["verify", "main"]);
    assert_eq!(site.checksums(&below), was, "the backup below has changed");

    site.sh(&format!("rmdir '{}'", mount.path("main/live/test1").display()))
        .ok();
    assert_eq!(site.list(&mount.path("main/live")), [""; 0]);
    assert_eq!(transactions(&primary), expected);
}

/// The mount is not removed while a server runs on it, unless that is requested.
fn mount_refuses_to_go(site: &Site, mount: &Mount<'_>) {
    site.barmanfs(&["umount", &mount.text()])
        .refused(1)
        .says(&["live/test1", "--force"]);
    assert!(mount.is_alive());
}

fn commits_survive_the_kill_of_the_daemon(install: &'static Install) {
    let (site, _primary) = filled_site(install);
    let mut mount = Mount::for_all(&site);
    let mut clone = make_clone(&site, &mount, install, "test1", "");
    // An acknowledged commit must be on disk: without this, servers of tests do not wait for the disk.
    clone.configure("fsync = on");
    let configuration = clone.data.join("postgresql.conf");
    site.sh(&format!("sync '{}'", configuration.display())).ok();
    clone.start();
    clone.wait_until_promoted();
    for round in 0..3 {
        clone.query("CREATE TABLE IF NOT EXISTS kept (n int)");
        for n in 0..20 {
            clone.query(&format!("INSERT INTO kept VALUES ({})", round * 20 + n));
        }
        let load = Load::start(&clone);
        std::thread::sleep(Duration::from_millis(500));
        let committed = transactions(&clone);
        let postmaster = clone.postmaster();
        mount.kill();
        load.stop();
        clone.end_without_data(postmaster);
        drop(mount);
        mount = Mount::for_all(&site);
        clone.start();
        let kept = clone.query("SELECT count(*) FROM kept");
        assert_eq!(kept, ((round + 1) * 20).to_string());
        assert!(transactions(&clone) >= committed, "round {round}");
        assert_sums_agree(&clone);
    }
    clone.assert_sound();
    clone.stop("fast");
}

fn clones_of_several_points_in_time_run_side_by_side(install: &'static Install) {
    let (site, primary) = filled_site(install);
    let mut points = Vec::new();
    for n in 1..=5 {
        transact(&primary, 50);
        primary.query(&format!("SELECT pg_create_restore_point('point {n}')"));
        points.push((format!("point {n}"), transactions(&primary)));
    }
    transact(&primary, 10);
    primary.archive_current_segment();
    let mount = Mount::for_all(&site);
    let mut clones: Vec<(PgServer, u64)> = Vec::new();
    for (n, (point, expected)) in points.into_iter().enumerate() {
        let name = format!("c{n}");
        let clone = make_clone(&site, &mount, install, &name, &format!("@name:{point}"));
        clones.push((clone, expected));
    }
    for (clone, _) in &mut clones {
        clone.start();
    }
    for (clone, expected) in &clones {
        clone.wait_until_promoted();
        assert_eq!(transactions(clone), *expected);
        transact(clone, 20);
        assert_sums_agree(clone);
    }
    assert_eq!(
        site.list(&mount.path("main/live")),
        ["c0", "c1", "c2", "c3", "c4"]
    );
    for (clone, _) in &mut clones {
        clone.stop("fast");
    }
    let busy = mount.path("main/live/none@name:nobody made this");
    let refused = site.sh(&format!("mkdir '{}'", busy.display()));
    assert!(refused.stderr.contains("No such file"), "{refused}");
}

fn a_clone_never_archives_whatever_its_settings(install: &'static Install) {
    let (site, mut primary) = filled_site(install);
    // The backup includes all of these settings: in both files, and with the mode in which even a standby archives.
    primary.configure("archive_mode = always");
    primary.query(&format!(
        "ALTER SYSTEM SET archive_command = '{}'",
        site.archive_command()
    ));
    primary.query("ALTER SYSTEM SET archive_mode = always");
    primary.stop("fast");
    primary.start();
    site.backup();
    transact(&primary, 50);
    primary.archive_current_segment();
    primary.stop("fast");
    let mount = Mount::for_all(&site);
    let archived = site.list(&mount.path("main/wal"));
    let work_on = |clone: &PgServer| {
        transact(clone, 50);
        clone.query("SELECT pg_switch_wal()");
        clone.query("CHECKPOINT");
    };

    let mut clone = make_clone(&site, &mount, install, "test1", "@now");
    clone.start();
    clone.wait_until_promoted();
    work_on(&clone);
    assert_eq!(clone.query("SHOW archive_mode"), "off");
    assert_eq!(
        clone.query("SELECT archived_count + failed_count FROM pg_stat_archiver"),
        "0"
    );

    // When archiving is turned on again, the clone tries to archive, and is refused.
    clone.query("ALTER SYSTEM SET archive_mode = always");
    clone.stop("fast");
    clone.start();
    work_on(&clone);
    until("archiving has failed", || {
        clone.query("SELECT failed_count > 0 FROM pg_stat_archiver") == "t"
    });
    assert_eq!(clone.query("SELECT archived_count FROM pg_stat_archiver"), "0");
    assert!(
        clone.log().contains("no copy or clone there archives"),
        "{}",
        clone.log()
    );
    assert_eq!(site.list(&mount.path("main/wal")), archived);
    clone.query("ALTER SYSTEM SET archive_mode = off");
    clone.stop("fast");
}

fn a_clone_cannot_archive_and_keeps_its_backup(install: &'static Install) {
    let (site, primary) = filled_site(install);
    let id = site.backup_ids().remove(0);
    // Everything that the server itself has to archive is archived.
    primary.archive_current_segment();
    let mount = Mount::for_all(&site);
    let mut clone = make_clone(&site, &mount, install, "test1", "");
    clone.start();
    clone.wait_until_promoted();
    let archived = site.list(&mount.path("main/wal"));
    clone.query("SELECT pg_switch_wal()");
    transact(&clone, 100);
    clone.query("CHECKPOINT; SELECT pg_switch_wal()");
    assert_eq!(clone.query("SHOW archive_mode"), "off");
    assert_eq!(site.list(&mount.path("main/wal")), archived);
    clone.stop("fast");
    drop(primary);

    site.barmanfs(&["delete", "main", &id])
        .refused(1)
        .says(&["test1"]);
    let rmdir = format!("rmdir '{}'", mount.path("main/live/test1").display());
    site.sh(&rmdir).ok();
    until("the backup can be deleted", || {
        site.barmanfs(&["delete", "main", &id, "--force"]).code() == Some(0)
    });
}
