//! WAL-G's words: what `docs/walg.md` says that they are here.

use crate::common::load::fill;
use crate::common::registry::topic;
use crate::common::{Install, PgServer, Site};

topic! {
    once annotations_find_backups,
    once rules_delete_what_they_name_and_nothing_that_is_kept,
    once a_timeline_is_checked,
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

fn annotations_find_backups(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    server.query("CREATE TABLE marks (n int)");
    let take = |number: u32, more: &str| {
        server.query(&format!("INSERT INTO marks VALUES ({number})"));
        let line = format!("backup main --fast-checkpoint {more}");
        site.ok(&words(&line));
        site.backup_ids().pop().unwrap()
    };
    let first = take(
        1,
        "--annotate release=4.1 --annotate deployed_at=2026-11-20 --keep full",
    );
    let second = take(2, "--annotate release=4.2");
    let third = take(3, "");
    let listed = |annotation: &str| {
        let line = format!("list-backups main --minimal --annotation {annotation}");
        site.ok(&words(&line)).trim().to_owned()
    };
    assert_eq!(listed("release=4.1"), first);
    assert_eq!(listed("release=4.2"), second);
    assert_eq!(listed("release=4.1 --annotation deployed_at=2026-11-20"), first);
    assert_eq!(listed("release=4.1 --annotation deployed_at=2026"), "");
    let shown = site.json(&["show-backup", "main", &first]);
    let expected = serde_json::json!({"release": "4.1", "deployed_at": "2026-11-20"});
    assert_eq!(shown["annotations"], expected);
    assert_eq!(shown["keep"]["target"], "full");
    let text = site.ok(&["show-backup", "main", &first]);
    assert!(text.contains("release=4.1"), "{text}");
    assert_eq!(
        site.json(&["show-backup", "main", &third])["annotations"],
        serde_json::json!({})
    );
    // They are in the packs.
    site.ok(&["rebuild-catalog"]);
    assert_eq!(listed("release=4.2"), second);
    let restored = |backup: &str, annotation: &str, name: &str| {
        let to = site.path(name).display().to_string();
        let line = format!("restore main {backup} {to} --target-immediate --annotation {annotation}");
        site.barmanfs(&words(&line))
    };
    restored("latest", "release=4.1", "one").ok();
    restored("auto", "release=4.2", "two").ok();
    restored("auto", "release=4.3", "none")
        .refused(1)
        .says(&["release=4.3"]);
    restored(&third, "release=4.2", "none")
        .refused(1)
        .says(&["does not have"]);
    assert!(!site.path("none").exists());
    for (name, rows) in [("one", "1"), ("two", "1 2")] {
        let mut copy = PgServer::on(install, &site.path(name));
        copy.start();
        copy.wait_until_promoted();
        let found = copy.query("SELECT string_agg(n::text, ' ' ORDER BY n) FROM marks");
        assert_eq!(found, rows, "{name}");
    }
    site.barmanfs(&["backup", "main", "--annotate", "x"])
        .refused(2)
        .says(&["KEY=VALUE"]);
}

fn rules_delete_what_they_name_and_nothing_that_is_kept(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    fill(&server, 1);
    let ids: Vec<String> = (0..5).map(|_| site.backup()).collect();
    site.ok(&["keep", "main", &ids[1], "--target", "standalone"]);
    let would = |line: &str| {
        let line = format!("delete main {line} --dry-run");
        site.json(&words(&line))["deleted"].clone()
    };
    let expected = |ids: &[&String]| serde_json::json!(ids);
    assert_eq!(would("--retain 3"), expected(&[&ids[0]]));
    assert_eq!(would("--retain 2"), expected(&[&ids[0], &ids[2]]));
    assert_eq!(would("--retain FIND_FULL 2"), expected(&[&ids[0], &ids[2]]));
    assert_eq!(would("--retain 9"), expected(&[]));
    assert_eq!(
        would(&format!("--retain 1 --after {}", ids[3])),
        expected(&[&ids[0], &ids[2]])
    );
    assert_eq!(would(&format!("--before {}", ids[1])), expected(&[&ids[0]]));
    assert_eq!(would("--before 2000-01-01T00:00:00Z"), expected(&[]));
    assert_eq!(would(&format!("--target {}", ids[3])), expected(&[&ids[3]]));
    assert_eq!(site.backup_ids(), ids);
    site.barmanfs(&["delete", "main", "--retain", "0"]).refused(2);
    site.barmanfs(&["delete", "main"]).refused(2);
    site.barmanfs(&["delete", "main", "--all"]).refused(1);
    site.barmanfs(&["delete", "main", "--before", "nonsense"])
        .refused(1)
        .says(&["nonsense"]);
    site.ok(&["delete", "main", "--retain", "2"]);
    assert_eq!(
        site.backup_ids(),
        [ids[1].as_str(), ids[3].as_str(), ids[4].as_str()]
    );
    let text = site.ok(&["delete", "main", "--retain", "2"]);
    assert!(text.contains("No backup to delete"), "{text}");
    // The guards are those of any deletion.
    let minimum = "minimum_redundancy = 3";
    site.write_config_of(&server, minimum);
    site.barmanfs(&["delete", "main", "--before", &ids[4]])
        .refused(1)
        .says(&["minimum_redundancy"]);
    site.write_config_of(&server, "");
    site.ok(&["keep", "main", &ids[1], "--release"]);
    site.ok(&["delete", "main", "--all", "--force"]);
    assert_eq!(site.backup_ids(), [""; 0]);
}

fn a_timeline_is_checked(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    server.archive_current_segment();
    site.backup();
    server.archive_current_segment();
    site.ok(&["timeline", "main", "--check"]);
    let command = server.query("SHOW archive_command");
    server.query("ALTER SYSTEM SET archive_command = 'true'");
    server.query("SELECT pg_reload_conf()");
    server.query("CREATE TABLE lost (n int)");
    let name = server.query("SELECT pg_walfile_name(pg_switch_wal())");
    crate::common::process::until("the segment is lost", || {
        server.query("SELECT last_archived_wal FROM pg_stat_archiver") == name
    });
    server.query(&format!(
        "ALTER SYSTEM SET archive_command = '{}'",
        command.replace('\'', "''")
    ));
    server.query("SELECT pg_reload_conf()");
    server.query("CREATE TABLE behind (n int)");
    server.archive_current_segment();
    let checked = site.barmanfs(&["timeline", "main", "--check"]);
    checked.refused(3).says(&["Cannot be recovered"]);
    site.ok(&["timeline", "main"]);
}
