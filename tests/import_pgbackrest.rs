//! The kind: a repository of a real pgBackRest. Imported, each backup is what pgBackRest restores, byte for byte, its WAL is all
//! here, and recovery goes where it went; what is not whole there never looks whole here.

use crate::common::moments::{Moments, rows};
use crate::common::process::{Run, run};
use crate::common::registry::topic;
use crate::common::tree::differences;
use crate::common::user::command;
use crate::common::{Install, Mount, PgServer, Site};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

topic! {
    edges what_pgbackrest_has_stored_is_what_is_here,
    once a_damaged_repository_never_looks_whole,
}

/// By blocks, in bundles, encrypted.
const NEW: &str = "compress-type=zst\nrepo1-bundle=y\nrepo1-block=y\nrepo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass=secret words\n";

/// A file for each file.
const OLD: &str = "compress-type=gz\n";

/// A pgBackRest with its repository, and a server that archives there.
struct Origin<'s> {
    site: &'s Site,
    program: PathBuf,
    is_encrypted: bool,
}

/// The new one; `None` if there is none.
fn new_program() -> Option<PathBuf> {
    let given = std::env::var_os("BARMANFS_TEST_PGBACKREST");
    let program = given.map_or_else(
        || "/var/cache/barmanfs-test/pgbackrest/pgbackrest".into(),
        PathBuf::from,
    );
    let found = program.exists();
    if !found {
        eprintln!("Without a pgBackRest 2.46 or newer, no repository with blocks is imported");
    }
    found.then_some(program)
}

/// The one of this Debian, if it knows this server.
fn old_program(install: &Install) -> Option<PathBuf> {
    let program = PathBuf::from("/usr/bin/pgbackrest");
    (program.exists() && install.major <= 15).then_some(program)
}

impl<'s> Origin<'s> {
    /// Starts a server with a tablespace.
    fn start(site: &'s Site, install: &'static Install, program: PathBuf, options: &str) -> (Self, PgServer) {
        let mut server = PgServer::init(install, &site.path("main"), &["--wal-segsize=1"]);
        let (home, config) = (site.make_directory("pgbackrest"), site.path("pgbackrest.conf"));
        let home = home.display();
        let text = format!(
            "[global]\nrepo1-path={home}/repo\nlog-path={home}\nlock-path={home}\nspool-path={home}\nlog-level-console=warn\n\
             log-level-file=off\nrepo1-retention-full=9\nstart-fast=y\n{options}[main]\npg1-path={}\npg1-socket-path={}\npg1-user=postgres\n",
            server.data.display(),
            server.sockets().display(),
        );
        site.write_file("pgbackrest.conf", text.as_bytes());
        server.configure(&format!(
            "archive_mode = on\narchive_command = '{} --config={} --stanza=main archive-push %p'",
            program.display(),
            config.display()
        ));
        site.write_config(&[("main", &server)]);
        server.start();
        let is_encrypted = options.contains("cipher");
        let origin = Self {
            site,
            program,
            is_encrypted,
        };
        origin.run(&["stanza-create"]);
        let space = site.make_directory("space");
        server.query(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display()));
        server.query("CREATE TABLE there TABLESPACE fast AS SELECT generate_series(1, 1000) n");
        server.query("CREATE TABLE rows AS SELECT 1 AS n");
        server.query("CREATE TABLE large AS SELECT n, md5(n::text) t FROM generate_series(1, 20000) n");
        (origin, server)
    }

    #[track_caller]
    fn run(&self, words: &[&str]) -> Run {
        let config = format!("--config={}", self.site.path("pgbackrest.conf").display());
        run(command(&self.program, &self.site.path(""))
            .args([&config, "--stanza=main"])
            .args(words))
        .ok()
    }

    fn repository(&self) -> PathBuf {
        self.site.path("pgbackrest/repo")
    }

    fn import(&self, repository: &Path, options: &[&str]) -> Run {
        let mut words = vec![
            "import",
            "main",
            "--json",
            "--stanza",
            "main",
            "--pgbackrest",
            repository.to_str().unwrap(),
        ];
        if self.is_encrypted {
            words.extend(["--cipher-passphrase-command", "echo 'secret words'"]);
        }
        self.site.barmanfs(&[&words, options].concat())
    }

    /// The names of all archived segments.
    fn segments(&self) -> Vec<String> {
        let found = self.site.sh(&format!(
            "find {}/archive/main -type f -name '*-*'",
            self.repository().display()
        ));
        let name = |path: &str| path.rsplit('/').next().unwrap()[..24].to_owned();
        let mut names: Vec<String> = found.ok().text().lines().map(name).collect();
        names.sort();
        names
    }
}

fn parsed(run: &Run) -> Value {
    serde_json::from_str(&run.text()).unwrap_or_else(|error| panic!("{error}: {run}"))
}

fn texts(report: &Value, list: &str, key: &str) -> Vec<String> {
    let items = report[list].as_array().unwrap();
    items
        .iter()
        .map(|item| item[key].as_str().unwrap().to_owned())
        .collect()
}

/// What a restore by pgBackRest has rewritten: it makes a control file from which nothing starts without a label, and the map
/// of tablespaces has become links. What is in them is compared for itself. Here, `raw/` has the WAL that the backup needs.
fn is_rewritten(path: &str) -> bool {
    [
        "backup_manifest",
        "global/pg_control",
        "recovery.signal",
        "tablespace_map",
    ]
    .contains(&path)
        || path.starts_with("pg_tblspc/")
        || path.starts_with("pg_wal/0")
}

fn what_pgbackrest_has_stored_is_what_is_here(install: &'static Install) {
    let site = Site::new();
    let (program, options) = match (old_program(install), new_program()) {
        (Some(old), _) => (old, OLD),
        (None, Some(new)) => (new, NEW),
        (None, None) => return,
    };
    let (origin, mut server) = Origin::start(&site, install, program, options);
    for kind in ["full", "diff", "incr"] {
        origin.run(&["backup", &format!("--type={kind}")]);
        server.query("UPDATE large SET t = 'changed' WHERE n % 1000 = 0; INSERT INTO there VALUES (1)");
    }
    let moments = Moments::pass(&server);
    let expected = rows(&server);
    let table = server.query("SELECT pg_relation_filepath('large')");
    server.stop("fast");

    let repository = origin.repository();
    let before = site.checksums(&repository);
    let planned = parsed(&origin.import(&repository, &["--dry-run"]).ok());
    let labels = texts(&planned, "backups", "name");
    assert_eq!(labels.len(), 3, "{planned}");
    let imported = origin.import(&repository, &[]).ok();
    assert!(!imported.all().contains("secret words"));
    let report = parsed(&imported);
    assert_eq!(report["left_out"], json!([]));
    assert_eq!(site.checksums(&repository), before, "the source is only read");
    let ids = texts(&report, "backups", "backup");
    assert_eq!(site.backup_ids(), ids);
    assert!(site.backups().iter().all(|backup| backup["status"] == "DONE"));
    let taken_over = |at: usize| report["backups"][at]["shared_bytes"].as_u64().unwrap();
    assert!(taken_over(0) == 0 && taken_over(1) > 10_000_000, "{report}");
    if origin.is_encrypted {
        // Stored by blocks: of the table, which is larger, only changed blocks were read.
        let table = server.data.join(&table);
        let table = fs::metadata(table).expect("the table").len();
        let read = report["backups"][2]["read_bytes"].as_u64().unwrap();
        assert!(read < table / 2, "{table}: {report}");
    }

    let stored = site.stored_bytes();
    let again = parsed(&origin.import(&repository, &[]).ok());
    assert_eq!(texts(&again, "backups", "state"), ["present"; 3]);
    assert_eq!(
        (&again["wal"]["archived"], site.stored_bytes()),
        (&json!(0), stored)
    );

    if origin.is_encrypted {
        let file = site.write_file("pass", b"wrong\n");
        let words = [
            "import",
            "main",
            "--stanza",
            "main",
            "--pgbackrest",
            repository.to_str().unwrap(),
        ];
        let wrong = ["--cipher-passphrase-file", file.to_str().unwrap()];
        site.barmanfs(&[&words[..], &wrong].concat())
            .refused(1)
            .says(&["cannot be decrypted", "repo1-cipher-pass"]);
        site.barmanfs(&words)
            .refused(1)
            .says(&["is encrypted", "--cipher-passphrase-file"]);
    }
    same_files(&origin, &labels, &ids);
    same_wal(&origin);
    recovers(&site, install, &ids, (&expected, &moments.time));
    site.ok(&["verify"]);
}

/// `raw/` is what pgBackRest restores.
fn same_files(origin: &Origin<'_>, labels: &[String], ids: &[String]) {
    let site = origin.site;
    let mount = Mount::new(site);
    for (label, id) in labels.iter().zip(ids) {
        let (theirs, spaces) = (
            site.path(&format!("theirs.{id}")),
            site.path(&format!("spaces.{id}")),
        );
        origin.run(&[
            "restore",
            "--type=none",
            &format!("--set={label}"),
            &format!("--pg1-path={}", theirs.display()),
            &format!("--tablespace-map-all={}", spaces.display()),
        ]);
        let ours = site.copy(&mount.path(&format!("main/raw/{id}")), &format!("ours.{id}"));
        let mut found = differences(&theirs, &ours, &is_rewritten);
        found.retain(|difference| !is_time_of_restore(&theirs, difference));
        assert_eq!(found, [""; 0], "{label}");
        let space = fs::read_dir(ours.join("pg_tblspc"))
            .unwrap()
            .next()
            .unwrap()
            .unwrap();
        let theirs = spaces.join(space.file_name());
        let theirs = if theirs.exists() {
            theirs
        } else {
            spaces.join("fast")
        };
        let mut found = differences(&theirs, &space.path(), &|_| false);
        found.retain(|difference| !is_time_of_restore(&theirs, difference));
        assert_eq!(found, [""; 0], "{label}");
    }
}

/// A manifest has no times of directories, and a restore writes the file with its recovery settings.
fn is_time_of_restore(restored: &Path, difference: &str) -> bool {
    let Some((path, _)) = difference.split_once(": time") else {
        return false;
    };
    path == "postgresql.auto.conf" || restored.join(path).is_dir()
}

/// Each segment is what pgBackRest gives back.
fn same_wal(origin: &Origin<'_>) {
    let site = origin.site;
    let names = origin.segments();
    assert!(names.len() > 5, "{names:?}");
    for name in names {
        let (theirs, ours) = (site.path("segment"), site.path("segment.ours"));
        origin.run(&["archive-get", &name, theirs.to_str().unwrap()]);
        let get = format!(
            "'{}' -c '{}' get-wal main {name} >'{}'",
            site.program().display(),
            site.config().display(),
            ours.display()
        );
        site.sh(&get).ok();
        assert!(fs::read(&theirs).unwrap() == fs::read(&ours).unwrap(), "{name}");
    }
}

fn recovers(site: &Site, install: &'static Install, ids: &[String], (all, time): (&str, &str)) {
    let [first, .., last] = ids else { panic!("{ids:?}") };
    let then: &[&str] = &["--target-time", time, "--target-action", "promote"];
    for (id, name, target, expected) in [(last, "end", [].as_slice(), all), (first, "then", then, "1,2")] {
        let place = site.path(name);
        site.ok(&[&["restore", "main", id, place.to_str().unwrap()], target].concat());
        let mut copy = PgServer::on(install, &place);
        copy.start();
        copy.wait_until_promoted();
        assert_eq!(rows(&copy), expected);
        assert_eq!(copy.query("SELECT count(*) FROM large"), "20000");
        assert_eq!(copy.query("SELECT count(*) > 999 FROM there"), "t");
        copy.stop_and_assert_checksums();
    }
}

/// Damages a copy of the repository by a script, and returns what importing it says.
fn import_damaged(origin: &Origin<'_>, script: &str) -> Run {
    let site = origin.site;
    let copy = site.path("copy");
    let words = format!(
        "rm -rf {0} && cp -a {1} {0} && cd {0} && {script}",
        copy.display(),
        origin.repository().display()
    );
    site.sh(&words).ok();
    origin.import(&copy, &["--wal", "needed"])
}

fn a_damaged_repository_never_looks_whole(install: &'static Install) {
    let Some(program) = new_program() else { return };
    let site = Site::new();
    let options = NEW
        .split_inclusive('\n')
        .filter(|line| !line.contains("cipher"))
        .collect::<String>();
    let (origin, mut server) = Origin::start(&site, install, program, &options);
    for kind in ["full", "incr"] {
        origin.run(&["backup", &format!("--type={kind}")]);
        server.query("UPDATE large SET t = 'changed' WHERE n % 1000 = 0");
    }
    server.stop("fast");
    let labels = texts(
        &parsed(&origin.import(&origin.repository(), &["--dry-run"]).ok()),
        "backups",
        "name",
    );
    let (full, changes) = (&labels[0], &labels[1]);

    // Nothing can be known.
    origin
        .import(&site.path("main"), &[])
        .refused(1)
        .says(&["repo1-path"]);
    import_damaged(
        &origin,
        "echo x >> backup/main/backup.info; rm backup/main/backup.info.copy",
    )
    .refused(1)
    .says(&["backup.info", "line"]);
    let file = site.write_file("pass", b"wrong\n");
    let words = ["--cipher-passphrase-file", file.to_str().unwrap()];
    origin
        .import(&origin.repository(), &words)
        .refused(1)
        .says(&["not encrypted"]);
    // A pipe that nobody writes into is not waited for.
    import_damaged(
        &origin,
        "rm backup/main/backup.info*; mkfifo backup/main/backup.info",
    )
    .refused(1)
    .says(&["pipe"]);

    // Each leaves out what it damages, and never the rest.
    for (script, names, word) in [
        (
            format!(
                "truncate -s -100 backup/main/{full}/bundle/*; find backup/main/{full} -name '*.pgbi' -delete"
            ),
            vec![full, changes],
            "cannot be",
        ),
        (
            format!(
                "find backup/main/{changes} -type f ! -name backup.manifest* -exec truncate -s 10 {{}} +"
            ),
            vec![changes],
            "",
        ),
        (
            format!("sed -i 's|pg_data/base/|pg_data/../base/|' backup/main/{changes}/backup.manifest*"),
            vec![changes],
            "not a path",
        ),
        (
            format!("rm backup/main/{changes}/backup.manifest*"),
            vec![changes],
            "backup.manifest",
        ),
    ] {
        let run = import_damaged(&origin, &script).refused(3);
        let left_out = texts(&parsed(&run), "left_out", "name");
        assert!(
            names.iter().all(|name| left_out.contains(name)),
            "{script}: {run}"
        );
        assert!(run.all().contains(word), "{script}: {run}");
        let here = site.backups();
        assert!(
            here.iter()
                .all(|backup| backup["status"] == "DONE" || backup["status"] == "FAILED"),
            "{here:?}"
        );
        let whole: Vec<&Value> = here.iter().filter(|backup| backup["status"] == "DONE").collect();
        assert!(
            whole.iter().all(|backup| !names
                .iter()
                .any(|name| backup["imported"]["name"] == name.as_str())),
            "{script}: {here:?}"
        );
    }
    // A backup that has expired is no problem; the copy of a damaged list is as good.
    let expired = format!("rm -r backup/main/{changes}; echo x >> backup/main/backup.info");
    let run = import_damaged(&origin, &expired)
        .ok()
        .says(&["expired", "its copy is used"]);
    assert_eq!(texts(&parsed(&run), "backups", "name"), [full.as_str()]);
    damaged_wal(&origin);
    assert_eq!(
        parsed(&origin.import(&origin.repository(), &[]).ok())["left_out"],
        json!([])
    );
    site.ok(&["verify"]);
    of_the_present_cluster(&origin, install, &labels);
}

/// After an upgrade of the stanza, only what is of the new cluster is taken.
fn of_the_present_cluster(origin: &Origin<'_>, install: &'static Install, labels: &[String]) {
    let site = origin.site;
    let mut next = PgServer::init(install, &site.path("next"), &[]);
    let config = site.path("pgbackrest.conf");
    let text = fs::read_to_string(&config).unwrap();
    let main = site.path("main").display().to_string();
    site.write_file(
        "pgbackrest.conf",
        text.replace(&main, &next.data.display().to_string()).as_bytes(),
    );
    next.configure(&format!(
        "archive_mode = on\narchive_command = '{} --config={} --stanza=main archive-push %p'",
        origin.program.display(),
        config.display()
    ));
    next.start();
    origin.run(&["stanza-upgrade"]);
    origin.run(&["backup", "--type=full", "--annotation=why=after the upgrade"]);
    next.stop("fast");
    let words = [
        "import",
        "next",
        "--json",
        "--stanza",
        "main",
        "--pgbackrest",
        "pgbackrest/repo",
    ];
    let report = parsed(&site.barmanfs(&words).ok());
    assert_eq!(texts(&report, "backups", "state"), ["imported"]);
    let left_out = texts(&report, "left_out", "name");
    assert!(
        labels.iter().all(|label| left_out.contains(label)) && left_out.len() == 3,
        "{report}"
    );
    let listed = site.json(&["list-backups", "next"]);
    assert_eq!(listed["backups"][0]["label"], "why: after the upgrade");
}

fn damaged_wal(origin: &Origin<'_>) {
    // Nothing needs the first segment.
    let script = "f=$(find archive/main -name '*-*' -type f | sort | head -1) && printf x | dd of=$f bs=1 seek=900 conv=notrunc status=none \
                  && touch $(dirname $f)/junk $(dirname $f)/000000010000000000000099-x.pgbackrest.tmp";
    import_damaged(origin, script);
    let run = origin
        .import(&origin.site.path("copy"), &[])
        .refused(3)
        .says(&["/junk", "no"]);
    let left_out = texts(&parsed(&run), "left_out", "name");
    assert_eq!(left_out.len(), 2, "{run}");
    assert!(left_out.iter().any(|name| name.ends_with(".zst")), "{run}");
}
