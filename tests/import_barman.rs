//! The home of a real Barman becomes a repository. The kind: a file, a tablespace or a segment that is not what Barman's own
//! restore gives; something that is read twice; a source that is changed; damage that is taken for a backup.

use crate::common::barman::{Barman, archive_command, state};
use crate::common::process::{Run, until};
use crate::common::random::Random;
use crate::common::registry::topic;
use crate::common::sshd::Sshd;
use crate::common::{Install, Mount, PgServer, Site};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

topic! {
    once a_home_of_every_method_is_taken_over(as_root),
    once an_imported_backup_recovers_to_wherever_barman_gets,
    once what_is_damaged_or_hostile_is_named_and_stops_nothing,
    once what_barman_exports_or_puts_into_a_cloud_is_taken_over,
    alone barmans_configuration_becomes_a_section,
}

/// A server with a tablespace and a file outside its data directory, whose WAL goes to Barman.
fn barmans_server(install: &'static Install) -> (Site, PgServer) {
    let site = Site::with_repository();
    let mut server = PgServer::init(install, &site.path("main"), &[]);
    let hba = site.write_file("pg_hba.conf", &fs::read(server.data.join("pg_hba.conf")).unwrap());
    fs::remove_file(server.data.join("pg_hba.conf")).unwrap();
    server.configure(&format!(
        "summarize_wal = on\narchive_mode = on\narchive_command = '{}'\nhba_file = '{}'",
        archive_command(&site),
        hba.display()
    ));
    site.write_config(&[("main", &server)]);
    server.start();
    let place = site.make_directory("ts1");
    server.query(&format!("CREATE TABLESPACE ts1 LOCATION '{}'", place.display()));
    server.query("CREATE TABLE a AS SELECT generate_series(1, 20000) AS i");
    server.query("CREATE TABLE b TABLESPACE ts1 AS SELECT generate_series(1, 20000) AS i");
    (site, server)
}

/// The command line of an import, which can read all that these homes have.
fn import_from<'a>(home: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let line = [
        "import",
        "main",
        "--barman-home",
        home,
        "--passphrase-command",
        "echo secret",
    ];
    [&line, more].concat()
}

#[track_caller]
fn report(run: &Run) -> Value {
    serde_json::from_slice(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run}"))
}

/// A passive node follows this Barman, backup by backup.
pub(crate) fn follow(install: &'static Install, node: &dyn Fn(&Path) -> Site) {
    let (site, server) = barmans_server(install);
    let Some(mut barman) = Barman::new(&site, &server) else {
        return;
    };
    barman.set("backup_method = local-rsync\nreuse_backup = link");
    let mut names = vec![barman.backup("")];
    let node = node(&barman.home());
    let sync = |node: &Site| node.json(&["sync", "main"])["servers"][0].clone();
    let first = sync(&node);
    assert_eq!(first["backups"].as_array().unwrap().len(), 1, "{first}");
    server.query("INSERT INTO a SELECT generate_series(1, 1000)");
    names.push(barman.backup(""));
    let second = sync(&node);
    assert_eq!(second["backups"].as_array().unwrap().len(), 1, "{second}");
    assert_eq!(second["problems"], serde_json::json!([]), "{second}");
    let here = node.backups();
    let of_barman: Vec<&str> = here
        .iter()
        .map(|backup| backup["imported"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(of_barman, names);
    assert!(here.iter().all(|backup| backup["status"] == "DONE"), "{here:?}");
    let checked = node.barmanfs(&["check", "main"]).text();
    assert!(checked.contains("primary Barman home: OK"), "{checked}");
    // A disk of Barman that is not mounted is no Barman without WAL.
    let (wals, away) = (barman.place().join("wals"), barman.place().join("away"));
    fs::rename(&wals, &away).unwrap();
    fs::create_dir(&wals).unwrap();
    node.barmanfs(&["sync", "main"])
        .refused(3)
        .says(&["wals", "mounted"]);
    fs::remove_dir(&wals).unwrap();
    fs::rename(&away, &wals).unwrap();
    // What was deleted here stays deleted.
    node.ok(&["delete", "main", here[0]["id"].as_str().unwrap()]);
    let third = sync(&node);
    assert_eq!(third["deleted_here"].as_array().unwrap().len(), 1, "{third}");
    assert_eq!(node.backup_ids().len(), 1);
    node.ok(&["verify"]);
}

/// The same of a Barman behind a real sshd, with backups of several methods. The command is that of a passive node.
pub(crate) fn follow_over_ssh(install: &'static Install, node: &dyn Fn(&str) -> Site) {
    let (site, server) = barmans_server(install);
    let Some(mut barman) = Barman::new(&site, &server) else {
        return;
    };
    let more = || server.query("INSERT INTO a SELECT generate_series(1, 1000)");
    barman.set("backup_method = local-rsync\nreuse_backup = link");
    let mut names = vec![barman.backup("")];
    more();
    barman.set("backup_method = postgres\nbackup_compression = gzip\nbackup_compression_format = tar");
    names.push(barman.backup(""));
    let sshd = Sshd::start(&site);
    let node = node(&format!(
        "{} env PATH={}:/usr/bin:/bin",
        sshd.command(),
        barman.program().display()
    ));
    let checked = node.barmanfs(&["check", "main"]).text();
    assert!(checked.contains("ssh: OK (Barman primary node)"), "{checked}");
    // A cut in the middle of a backup leaves nothing that looks whole.
    let begun = node.repository().join("running/main.json");
    let mut cut = node.spawn(&["sync", "main"]);
    until("a backup comes", || {
        begun.exists() || cut.try_wait().unwrap().is_some()
    });
    sshd.cut();
    cut.wait().unwrap();
    let statuses: Vec<Value> = node
        .backups()
        .iter()
        .map(|backup| backup["status"].clone())
        .collect();
    assert!(
        statuses
            .iter()
            .all(|status| status == "DONE" || status == "WAITING_FOR_WALS"),
        "{statuses:?}"
    );
    node.ok(&["verify"]);
    let sync = || node.json(&["sync", "main"])["servers"][0].clone();
    let first = sync();
    assert_eq!(first["problems"], serde_json::json!([]), "{first}");
    assert_eq!(node.backup_ids(), names);
    // Only what is new is asked for.
    let again = sync();
    assert_eq!(
        (&again["backups"], &again["wal_files"]),
        (&serde_json::json!([]), &0.into()),
        "{again}"
    );
    let asked = fs::read_to_string(site.path("barman_asked")).unwrap();
    let last = asked.lines().last().unwrap();
    assert!(last.contains("sync-info main 0000000100000000"), "{asked}");
    more();
    barman.set("backup_method = postgres");
    names.push(barman.backup(""));
    let second = sync();
    assert_eq!(second["problems"], serde_json::json!([]), "{second}");
    assert_eq!(second["backups"].as_array().unwrap().len(), 1, "{second}");
    assert_eq!(node.backup_ids(), names);
    assert!(node.backups().iter().all(|backup| backup["status"] == "DONE"));
    node.ok(&["verify"]);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    every_tree_is_barmans(&node, &barman, &names);
    let mount = Mount::new(&node);
    let plain = site.checksums(&site.path("plain_wal"));
    let here = node.checksums(&mount.path("main/wal"));
    let others: Vec<&str> = here.lines().filter(|line| !plain.contains(*line)).collect();
    assert!(others.is_empty() && here.lines().count() > 2, "{here} {plain}");
}

/// The backups of a report with this state, by their names.
fn in_state<'v>(report: &'v Value, state: &str) -> Vec<&'v str> {
    let backups = report["backups"].as_array().expect("a list of backups").iter();
    let found = backups.filter(|backup| backup["state"] == state);
    found
        .map(|backup| backup["name"].as_str().expect("a name"))
        .collect()
}

fn left_out(report: &Value) -> Vec<String> {
    let left_out = report["left_out"].as_array().expect("a list").iter();
    let lines = left_out.map(|one| {
        format!(
            "{}: {}",
            one["name"].as_str().unwrap(),
            one["reason"].as_str().unwrap()
        )
    });
    lines.collect()
}

/// What the backups are, and how they were made.
struct Ids {
    first: String,
    linked: String,
    plain: String,
    incremental: String,
    archives: Vec<String>,
}

/// A backup by each method, and WAL in each form that this Barman can write.
fn backups_of_every_method(barman: &mut Barman<'_>, server: &PgServer) -> Ids {
    let more = || server.query("INSERT INTO a SELECT generate_series(1, 1000)");
    barman.set("backup_method = local-rsync\nreuse_backup = link");
    let first = barman.backup("--name nightly");
    more();
    barman.set("backup_method = local-rsync\nreuse_backup = link\ncompression = gzip");
    let linked = barman.backup("");
    more();
    barman.set("backup_method = postgres\ncompression = bzip2");
    let plain = barman.backup("");
    more();
    let incremental = barman.backup(&format!("--incremental {plain}"));
    let key = barman.gpg_key();
    let gpg = format!(
        "backup_compression = gzip\nbackup_compression_format = tar\nencryption = gpg\nencryption_key_id = {key}\n\
         encryption_passphrase_command = echo secret"
    );
    let archives = [
        "backup_compression = lz4\ncompression = xz",
        "backup_compression = zstd",
        &gpg,
    ]
    .map(|lines| {
        more();
        barman.set(&format!("backup_method = postgres\n{lines}"));
        barman.backup("")
    });
    barman.sh(&format!("barman keep --target full main {plain}")).ok();
    Ids {
        first,
        linked,
        plain,
        incremental,
        archives: archives.to_vec(),
    }
}

fn a_home_of_every_method_is_taken_over(install: &'static Install) {
    let (site, server) = barmans_server(install);
    let Some(mut barman) = Barman::new(&site, &server) else {
        return;
    };
    let ids = backups_of_every_method(&mut barman, &server);
    let home = barman.home().display().to_string();
    let before = barman.state();

    a_wrong_passphrase_is_told(&site, &home, &ids.archives[2]);
    let planned = site.json(&import_from(&home, &["--dry-run"]));
    assert_eq!(in_state(&planned, "would be imported").len(), 7, "{planned}");
    assert_eq!(site.backup_ids(), [""; 0]);

    let taken = read_only(&site, &home, &import_from(&home, &["--json"])).ok();
    let taken = report(&taken);
    let all = [&ids.first, &ids.linked, &ids.plain, &ids.incremental];
    let all: Vec<&str> = all.into_iter().chain(&ids.archives).map(String::as_str).collect();
    assert_eq!(in_state(&taken, "imported"), all, "{taken}");
    assert_eq!(left_out(&taken), [""; 0]);
    assert!(barman.state() == before, "The import has changed the source");
    assert_eq!(site.backup_ids(), all);
    linked_files_were_read_once(&taken, &ids);
    marks_came_along(&site, &ids);
    every_tree_is_barmans(&site, &barman, &all);
    all_wal_is_there(&site);

    let packs: Vec<(PathBuf, u64)> = sizes(&site);
    let again = report(&site.barmanfs(&import_from(&home, &["--json"])).ok());
    assert_eq!(in_state(&again, "present"), all);
    assert_eq!(
        (&again["wal"]["archived"], sizes(&site)),
        (&Value::from(0), packs)
    );
    // A decision that was made here counts.
    site.ok(&["keep", "main", &ids.plain, "--release"]);
    site.ok(&import_from(&home, &["--wal", "none"]));
    let kept = site.ok(&["keep", "main", &ids.plain, "--status"]);
    assert!(kept.contains("not kept"), "{kept}");
    it_recovers_to_the_end(install, &site, &server);
}

fn a_wrong_passphrase_is_told(site: &Site, home: &str, encrypted: &str) {
    let without = ["import", "main", "--barman-home", home, "--dry-run", "--json"];
    let run = site.barmanfs(&without).refused(3);
    let lines = left_out(&report(&run));
    assert!(
        lines.len() == 1 && lines[0].contains(encrypted) && lines[0].contains("--passphrase-command"),
        "{run}"
    );
    // The agent may still know the right one.
    site.sh("gpgconf --kill gpg-agent").ok();
    let wrong = [
        "import",
        "main",
        "--barman-home",
        home,
        "--backup",
        encrypted,
        "--wal",
        "none",
        "--json",
        "--passphrase-command",
        "echo mistaken",
    ];
    let run = site.barmanfs(&wrong).refused(3);
    assert!(left_out(&report(&run))[0].contains("gpg"), "{run}");
    assert!(
        !run.stderr.contains("mistaken") && !run.text().contains("mistaken"),
        "{run}"
    );
    assert_eq!(site.backup_ids(), [""; 0]);
}

fn sizes(site: &Site) -> Vec<(PathBuf, u64)> {
    let packs = site.packs().into_iter();
    let mut sizes: Vec<_> = packs
        .map(|pack| (pack.clone(), fs::metadata(pack).unwrap().len()))
        .collect();
    sizes.sort();
    sizes
}

/// Runs the program where nobody can write into the home.
fn read_only(site: &Site, home: &str, arguments: &[&str]) -> Run {
    let program = site.barmanfs_command(arguments);
    let mut line = vec![program.get_program().to_owned()];
    line.extend(program.get_args().map(std::ffi::OsStr::to_owned));
    let script = format!("mount --bind {home} {home} && mount -o remount,ro,bind {home} && exec \"$@\"");
    let mut command = crate::common::user::own_command("unshare", &site.path(""));
    command.args(["-m", "sh", "-c", &script, "sh"]).args(line);
    crate::common::process::run(&mut command)
}

fn linked_files_were_read_once(taken: &Value, ids: &Ids) {
    let of = |id: &str, field: &str| {
        let backups = taken["backups"].as_array().unwrap();
        let backup = backups.iter().find(|backup| backup["name"] == id).unwrap();
        backup[field].as_u64().unwrap()
    };
    let whole = of(&ids.first, "read_bytes");
    assert!(whole > 20 << 20, "{taken}");
    assert!(of(&ids.linked, "read_bytes") < whole / 10, "{taken}");
    assert!(of(&ids.linked, "shared_bytes") > whole / 10 * 9, "{taken}");
}

fn marks_came_along(site: &Site, ids: &Ids) {
    let backups = site.backups();
    let of = |id: &str| backups.iter().find(|backup| backup["id"] == id).unwrap();
    assert_eq!(of(&ids.first)["label"], "nightly");
    let kept = site.ok(&["keep", "main", &ids.plain, "--status"]);
    assert!(kept.contains("full"), "{kept}");
    let shown = site.json(&["show-backup", "main", &ids.first]).to_string();
    assert!(shown.contains("ts1") && shown.contains("Barman"), "{shown}");
    let text = site.ok(&["show-backup", "main", &ids.first]);
    assert!(
        text.contains(&format!("from Barman, where it is {}", ids.first)),
        "{text}"
    );
}

/// What Barman writes, leaves out or changes when it restores.
fn is_of_restore(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    matches!(
        name,
        "postgresql.conf" | "postgresql.auto.conf" | ".barman-recover.info" | "tablespace_map"
    ) || name.starts_with("backup_manifest")
        || name.ends_with(".origin")
        || ["./barman_wal/", "./pg_wal/", "./pg_hba.conf"]
            .iter()
            .any(|beginning| path.starts_with(beginning))
}

/// The checksum of each file in a directory, but for those that a restore changes.
fn content(site: &Site, place: &Path) -> Vec<String> {
    let sums = site.checksums(place);
    let lines = sums.lines().filter(|line| {
        let path = line.split("  ").nth(1).unwrap_or_default();
        !is_of_restore(path) && !path.starts_with("./pg_tblspc/")
    });
    lines.map(str::to_owned).collect()
}

fn every_tree_is_barmans(site: &Site, barman: &Barman<'_>, ids: &[&str]) {
    let mount = Mount::new(site);
    for id in ids {
        let theirs = barman.restore(id);
        let tablespace = PathBuf::from(format!("{}_ts1", theirs.display()));
        tree_is(site, &mount.path(&format!("main/raw/{id}")), &theirs, &tablespace);
    }
    let hba = site
        .sh(&format!("cat {}/main/{}/pg_hba.conf", mount.text(), ids[0]))
        .ok();
    assert!(hba.text().contains("trust"), "{hba}");
}

/// Byte for byte what the server has archived, whatever form Barman gave it.
fn all_wal_is_there(site: &Site) {
    let mount = Mount::new(site);
    let plain = site.path("plain_wal");
    let names = site.list(&plain);
    assert!(names.len() > 15, "{names:?}");
    let ours = mount.path("main/wal");
    for name in names.iter().filter(|name| !name.ends_with(".backup")) {
        // What came before the first backup, Barman does not keep.
        if name.as_str() > "000000010000000000000003" {
            let same = format!("cmp {0}/{1} {2}/{1}", plain.display(), name, ours.display());
            site.sh(&same).ok();
        }
    }
}

fn it_recovers_to_the_end(install: &'static Install, site: &Site, server: &PgServer) {
    let rows = server.query("SELECT count(*) FROM a");
    server.archive_current_segment();
    let copy = {
        let mount = Mount::new(site);
        site.copy(&mount.path("main/latest"), "copy")
    };
    let mut copy = PgServer::on(install, &copy);
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(copy.query("SELECT count(*) FROM a"), rows);
    assert_eq!(copy.query("SELECT count(*) FROM b"), "20000");
    copy.assert_sound();
}

/// The same targets by Barman and by a copy from here, from one backup by rsync and one by tar.
fn an_imported_backup_recovers_to_wherever_barman_gets(install: &'static Install) {
    let (site, server) = barmans_server(install);
    let Some(mut barman) = Barman::new(&site, &server) else {
        return;
    };
    let mut random = Random::new("import_barman");
    let mut targets = Vec::new();
    for method in [
        "backup_method = local-rsync\nreuse_backup = link",
        "backup_method = postgres\nbackup_compression = gzip",
    ] {
        barman.set(&format!("{method}\ncompression = gzip"));
        let id = barman.backup("");
        let points: Vec<Point> = (0..8).map(|n| point(&server, n)).collect();
        // PostgreSQL stops at a time only before a transaction that ended after it.
        server.query("INSERT INTO a VALUES (0)");
        server.archive_current_segment();
        let mut at = || points[random.below(points.len() as u64) as usize].clone();
        targets.push((id.clone(), "--target-time", at().time));
        targets.push((id.clone(), "--target-xid", at().xid));
        targets.push((id.clone(), "--target-lsn", at().lsn));
        targets.push((id, "--target-name", at().name));
    }
    barman.sh("barman archive-wal main").ok();
    let home = barman.home().display().to_string();
    site.barmanfs(&import_from(&home, &[])).ok();
    let mount = Mount::new(&site);
    for (id, option, target) in &targets {
        let what = format!(
            "BARMANFS_TEST_SEED={}: {option} {target:?} from {id}",
            random.seed()
        );
        println!("{what}");
        let kind = option.trim_start_matches("--target-");
        let view = format!("main/pitr/{kind}:{},backup={id}", target.replace('/', "-"));
        let ours = rows_of(install, &site, &site.copy(&mount.path(&view), "ours"));
        let theirs = barman.restore_to(id, &format!("{option} '{target}' --target-action promote"));
        let expected = rows_of(install, &site, &theirs);
        assert_eq!(ours, expected, "{what}");
    }
}

/// What a recovery can be asked for, at the end of a transaction.
#[derive(Clone)]
struct Point {
    time: String,
    xid: String,
    lsn: String,
    name: String,
}

/// A transaction, and its place. Time passes on both sides of it.
fn point(server: &PgServer, n: u32) -> Point {
    let xid = server.query("INSERT INTO a SELECT generate_series(1, 10) RETURNING pg_current_xact_id()");
    server.query("SELECT pg_sleep(0.02)");
    let line = server.query(&format!(
        "SELECT pg_current_wal_insert_lsn(), clock_timestamp() AT TIME ZONE 'UTC' || '+00', \
                pg_create_restore_point('point {n} of ' || (SELECT count(*) FROM a))"
    ));
    server.query("SELECT pg_sleep(0.02)");
    let fields: Vec<&str> = line.split('|').collect();
    let rows = server.query("SELECT count(*) FROM a");
    Point {
        time: fields[1].to_owned(),
        xid: xid.lines().next().expect("a transaction").to_owned(),
        lsn: fields[0].to_owned(),
        name: format!("point {n} of {rows}"),
    }
}

/// What the table has when this copy is recovered.
fn rows_of(install: &'static Install, site: &Site, data: &Path) -> String {
    let mut copy = PgServer::on(install, data);
    copy.start();
    copy.wait_until_promoted();
    let rows = copy.query("SELECT count(*), sum(i) FROM a");
    copy.stop("immediate");
    drop(copy);
    let text = data.display();
    site.sh(&format!("rm -rf {text} {text}.s {text}.log {text}_ts1"))
        .ok();
    rows
}

fn what_is_damaged_or_hostile_is_named_and_stops_nothing(install: &'static Install) {
    let (site, server) = barmans_server(install);
    let Some(mut barman) = Barman::new(&site, &server) else {
        return;
    };
    barman.set("backup_method = local-rsync\nreuse_backup = link");
    let ids: Vec<String> = (0..2).map(|_| barman.backup("")).collect();
    barman.set("backup_method = postgres\nbackup_compression = gzip\ncompression = gzip");
    let ids: Vec<String> = ids.into_iter().chain([barman.backup("")]).collect();
    let original = barman.place();
    // Each fault is put into a copy of the home that shares its files.
    let with = |name: &str, script: &str| {
        let home = site.path(name).join("main");
        let place = home.display();
        site.sh(&format!(
            "mkdir -p {0} && cp -al {1} {place} && cd {place} && {script}",
            site.path(name).display(),
            original.display()
        ))
        .ok();
        site.path(name).display().to_string()
    };
    let [first, linked, archive] = [&ids[0], &ids[1], &ids[2]];
    let is_left_out = |name: &str, script: &str, code: i32, words: &[&str], taken: usize| {
        let home = with(name, script);
        let run = site.barmanfs(&import_from(&home, &["--dry-run", "--json"]));
        assert_eq!(run.code(), Some(code), "{name}: {run}");
        let report = report(&run);
        let lines = left_out(&report).join("\n");
        assert!(words.iter().all(|word| lines.contains(word)), "{name}: {lines}");
        assert_eq!(
            in_state(&report, "would be imported").len(),
            taken,
            "{name}: {report}"
        );
    };
    let info = |id: &str| format!("meta/{id}-backup.info");
    let cut = format!("head -c 700 {0} > x && mv x {0}", info(first));
    is_left_out("cut", &cut, 3, &[first, "cut"], 2);
    let failed = format!("sed s/DONE/FAILED/ {0} > x && mv x {0}", info(first));
    is_left_out("failed", &failed, 0, &[first, "FAILED"], 2);
    let waiting = format!("sed s/DONE/WAITING_FOR_WALS/ {0} > x && mv x {0}", info(archive));
    is_left_out("waiting", &waiting, 3, &[archive, "--include-waiting"], 2);
    is_left_out(
        "deleted",
        &format!("touch meta/{first}-delete_this"),
        0,
        &["deleting"],
        2,
    );
    let orphan = format!("rm -r base/{first}");
    is_left_out("orphan", &orphan, 3, &[first, "missing"], 2);
    let other = format!(
        "sed 's/^systemid=.*/systemid=7/' {0} > x && mv x {0}",
        info(first)
    );
    is_left_out("other", &other, 3, &[first, "cluster 7"], 2);
    // Nothing but its description says that it is of another cluster.
    let later = format!(
        "rm -f identity.json; sed 's/^systemid=.*/systemid=7/' {0} > x && mv x {0}",
        info(linked)
    );
    is_left_out("later", &later, 3, &[linked, "cluster 7"], 2);
    let home = site.path("later").display().to_string();
    let run = site
        .barmanfs(&import_from(&home, &["--wal", "none", "--json"]))
        .refused(3);
    assert_eq!(in_state(&report(&run), "imported"), [first, archive], "{run}");
    for id in [first, archive] {
        site.ok(&["delete", "main", id, "--force"]);
    }
    let elsewhere = format!("rm -r base/{first} && ln -s /etc base/{first}");
    is_left_out("link", &elsewhere, 3, &[first, "link"], 2);
    is_left_out(
        "keep",
        &format!("echo maybe > meta/{first}-keep"),
        3,
        &["neither full nor standalone"],
        3,
    );
    let two = format!("cd base/{archive}/data && cp base.tar.gz base.tar");
    is_left_out("twice", &two, 3, &["twice"], 2);
    let without_space = format!("cd base/{archive}/data && rm [0-9]*.tar.gz");
    is_left_out("space", &without_space, 3, &[archive, "tablespace ts1"], 2);
    let orphaned = format!(
        "sed 's/^parent_backup_id=.*/parent_backup_id=20200101T000000/' {0} > x && mv x {0}",
        info(linked)
    );
    is_left_out("parent", &orphaned, 3, &[linked, "builds on"], 2);

    // Early releases kept everything in the backup's directory, and tablespaces in that of the data. The label of an
    // exclusive backup was only in its description, and times had no zone.
    let early = with(
        "early",
        &format!(
            "for i in {}; do sed 's/+00:00$//' meta/$i-backup.info > base/$i/backup.info; done; mkdir base/{first}/annotations && \
             printf standalone > base/{first}/annotations/keep && rm -r meta && mv wals/main-xlog.db wals/xlog.db && \
             rm base/{first}/data/backup_label && rmdir base/{first}/data/pg_notify && \
             cd base/{linked} && mv data pgdata && mv [0-9]* pgdata/pg_tblspc",
            ids.join(" ")
        ),
    );
    // And faults that only show when the data is read.
    let data = format!("base/{archive}/data");
    for (name, script, words) in [
        (
            "short",
            format!("cd {data} && head -c 100000 base.tar.gz > x && mv x base.tar.gz"),
            "base.tar",
        ),
        (
            "manifest",
            format!("cd {data} && sed s/Size/Sice/ backup_manifest > x && mv x backup_manifest"),
            "manifest",
        ),
        ("gone", format!("rm {data}/backup_manifest"), "manifest"),
        (
            "outside",
            format!(
                "cd {data} && touch evil && tar -cPf base.tar --transform s,evil,../../evil, evil && rm base.tar.gz evil"
            ),
            "evil",
        ),
    ] {
        let home = with(name, &script);
        let run = site.barmanfs(&import_from(
            &home,
            &["--backup", archive, "--wal", "none", "--json"],
        ));
        assert_eq!(run.code(), Some(3), "{name}: {run}");
        let lines = left_out(&report(&run)).join("\n");
        assert!(
            lines.contains(words) && lines.contains(archive.as_str()),
            "{name}: {lines}"
        );
        assert_eq!(site.backup_ids(), [""; 0], "{name}");
    }
    assert!(!site.path("evil").exists() && !Path::new("/evil").exists());
    wal_is_taken_around_what_is_damaged(&site, &early, &ids);
}

fn wal_is_taken_around_what_is_damaged(site: &Site, home: &str, ids: &[String]) {
    let wals = Path::new(home).join("main/wals/0000000100000000");
    let names = site.list(&wals);
    let segments: Vec<&String> = names.iter().filter(|name| name.len() == 24).collect();
    let last = segments[segments.len() - 1];
    let (cut, link) = ("0000000100000000000000E0", "0000000100000000000000E1");
    site.sh(&format!(
        "cd {} && head -c 100 {last} > {cut} && ln -s /etc/passwd {link} && touch notes",
        wals.display()
    ))
    .ok();
    // In incoming, the content shows what is whole, and not the age: one segment is, of the other only the beginning has come.
    let (arrived, arriving) = (segments[segments.len() - 2], last);
    site.sh(&format!(
        "cd {0} && mkdir -p ../../incoming && mv {arrived} ../../incoming && zcat {last} | head -c 100 >../../incoming/{last} && \
         truncate -s 16M ../../incoming/{last}",
        wals.display()
    ))
    .ok();
    let run = site.barmanfs(&import_from(home, &["--json"]));
    assert_eq!(run.code(), Some(3), "{run}");
    let taken = report(&run);
    let waits = format!("incoming/{arriving}: it may still be copied");
    assert!(left_out(&taken).join("\n").contains(&waits), "{taken}");
    assert_eq!(in_state(&taken, "imported").len(), ids.len(), "{taken}");
    let lines = left_out(&taken).join("\n");
    for word in [cut, link, "notes"] {
        assert!(lines.contains(word), "{word}: {lines}");
    }
    assert_eq!(site.backup_ids(), ids);
    let kept = site.ok(&["keep", "main", &ids[0], "--status"]);
    assert!(kept.contains("standalone"), "{kept}");
    let archived = site.list(&Mount::new(site).path("main/wal"));
    assert!(
        segments.iter().all(|name| archived.contains(name)),
        "{archived:?}"
    );
    assert!(!archived.iter().any(|name| name == cut || name == link));
}

fn what_barman_exports_or_puts_into_a_cloud_is_taken_over(install: &'static Install) {
    let (site, server) = barmans_server(install);
    let Some(mut barman) = Barman::new(&site, &server) else {
        return;
    };
    barman.set("backup_method = local-rsync");
    let rsync = barman.backup("");
    barman.set("backup_method = postgres\nbackup_compression = zstd\ncompression = gzip");
    let archives = barman.backup("");
    the_layout_of_a_cloud_is_read(&site, &barman, &server);
    let out = site.make_directory("out");
    let mut files = Vec::new();
    for (id, options) in [(&rsync, "--compression gzip"), (&archives, "")] {
        barman
            .sh(&format!(
                "barman export-backup {options} main {id} {}",
                out.display()
            ))
            .ok();
        let found = site
            .list(&out)
            .into_iter()
            .find(|name| name.contains(id.as_str()));
        files.push(out.join(found.expect("an exported backup")).display().to_string());
    }
    let before = state(&site, &out);
    for (id, file) in [&rsync, &archives].into_iter().zip(&files) {
        let run = site
            .barmanfs(&["import", "main", "--barman-export", file, "--json"])
            .ok();
        assert_eq!(in_state(&report(&run), "imported"), [id.as_str()]);
        let kept = site.ok(&["keep", "main", id, "--status"]);
        assert!(kept.contains("standalone"), "{kept}");
    }
    assert!(state(&site, &out) == before);
    every_tree_is_barmans(&site, &barman, &[&rsync, &archives]);
    // A tarball without its tablespace.
    let less = site.path("less.tar").display().to_string();
    let delete = format!(
        "zcat {} >{less} && tar -f {less} --wildcards --delete 'backup/[0-9]*'",
        files[0]
    );
    site.sh(&delete).ok();
    let other = Site::with_repository();
    other
        .barmanfs(&["import", "main", "--barman-export", &less, "--json"])
        .refused(3)
        .says(&["tablespace ts1"]);
    // A byte that is not what the name says.
    site.sh(&format!(
        "cd {} && printf X | dd of={} bs=1 seek=3000 conv=notrunc",
        out.display(),
        files[1]
    ))
    .ok();
    site.barmanfs(&["import", "main", "--barman-export", &files[1]])
        .refused(1)
        .says(&["SHA-256"]);
    site.barmanfs(&[
        "import",
        "main",
        "--barman-export",
        &site.config().display().to_string(),
    ])
    .refused(1)
    .says(&["barmanfs.conf"]);
}

/// Barman's own uploader, whose cloud is a directory. Nothing restores from that, so tar does.
fn the_layout_of_a_cloud_is_read(site: &Site, barman: &Barman<'_>, server: &PgServer) {
    let program = site.write_file("cloud.py", include_bytes!("import_barman/cloud.py"));
    let cloud = site.make_directory("cloud");
    let (cloud, sockets) = (cloud.display(), server.sockets());
    let options = format!("-h {} -U postgres --immediate-checkpoint -z", sockets.display());
    barman
        .sh(&format!(
            "python3 {} {cloud} {options} s3://bucket main",
            program.display()
        ))
        .ok();
    server.archive_current_segment();
    let wal = barman.place().join("wals/0000000100000000");
    barman
        .sh(&format!(
            "barman archive-wal main && mkdir -p {cloud}/main/wals/0000000100000000 && cd {} && \
             for i in *; do cp $i {cloud}/main/wals/0000000100000000/$i.gz; done",
            wal.display()
        ))
        .ok();
    let home = cloud.to_string();
    let taken = report(&site.barmanfs(&import_from(&home, &["--json"])).ok());
    let id = in_state(&taken, "imported")[0].to_owned();
    let base = format!("{cloud}/main/base/{id}");
    let unpacked = site.make_directory("unpacked");
    site.sh(&format!(
        "cd {} && tar xzf {base}/data.tar.gz",
        unpacked.display()
    ))
    .ok();
    // A part that is missing is missed, also where no number shows it.
    for (name, script, says) in [
        ("space", "rm [0-9]*.tar.gz", "tablespace ts1"),
        ("part", "mv data.tar.gz data_0001.tar.gz", "part 0"),
    ] {
        let copy = site.path(&format!("cloud.{name}")).display().to_string();
        site.sh(&format!(
            "cp -a {cloud} {copy} && cd {copy}/main/base/{id} && {script}"
        ))
        .ok();
        let run = site
            .barmanfs(&import_from(&copy, &["--json", "--dry-run"]))
            .refused(3);
        assert!(left_out(&report(&run))[0].contains(says), "{run}");
    }
    let spaces = site.make_directory("unpacked_ts1");
    site.sh(&format!(
        "cd {} && tar xzf {base}/[0-9]*.tar.gz",
        spaces.display()
    ))
    .ok();
    {
        let mount = Mount::new(site);
        tree_is(site, &mount.path(&format!("main/raw/{id}")), &unpacked, &spaces);
    }
    let status = site
        .backups()
        .into_iter()
        .find(|backup| backup["id"] == id.as_str());
    assert_eq!(status.expect("the backup")["status"], "DONE");
}

/// What is in a tree here is in a directory and a tablespace.
#[track_caller]
fn tree_is(site: &Site, ours: &Path, theirs: &Path, tablespace: &Path) {
    assert_eq!(content(site, ours), content(site, theirs), "{}", ours.display());
    let oid = site.list(&ours.join("pg_tblspc")).join(" ");
    let files = content(site, tablespace);
    assert!(!files.is_empty(), "{}", tablespace.display());
    assert_eq!(
        content(site, &ours.join("pg_tblspc").join(oid)),
        files,
        "{}",
        ours.display()
    );
}

fn barmans_configuration_becomes_a_section() {
    let site = Site::new();
    let file = site.write_file(
        "barman.conf",
        b"[barman]\nbarman_home = /var/lib/barman\nretention_policy = RECOVERY WINDOW OF 7 days\n[pg]\n\
          conninfo = host=db user=barman password=geheim\nbackup_method = rsync\nreuse_backup = link\n\
          ssh_command = ssh postgres@db\nminimum_redundancy = 3\n",
    );
    let file = file.display().to_string();
    let line = ["import", "main", "--print-config", &file, "--from-server", "pg"];
    let printed = site.ok(&line);
    assert!(
        printed.contains("\n[main]\n") && !printed.contains("geheim"),
        "{printed}"
    );
    for word in [
        "\nretention_policy = ",
        "\nminimum_redundancy = 3",
        "\nconninfo = host=db user=barman\n",
        "#   ssh_command = ",
    ] {
        assert!(printed.contains(word), "{word}: {printed}");
    }
    // It can be used as it is.
    let conf = format!(
        "[barmanfs]\nrepository = {}\n{printed}\n",
        site.repository().display()
    );
    site.write_file("barmanfs.conf", conf.as_bytes());
    let shown = site.ok(&["show-servers", "main"]);
    assert!(shown.contains("minimum_redundancy"), "{shown}");
    site.barmanfs(&["import", "main", "--print-config", &file])
        .refused(2)
        .says(&["pg"]);
}
