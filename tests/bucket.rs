//! A repository in an object store is one: for the host that writes, and for others that read.
//!
//! Where `scripts/test.sh` has started a gateway of Ceph, the repositories are there. Without it they are in a directory, under the
//! same keys.

use crate::common::load::{fill, recovers, transact, transactions};
use crate::common::object_store::{place, reach, use_place};
use crate::common::process::until;
use crate::common::registry::topic;
use crate::common::tree::differences;
use crate::common::{Install, Mount, PgServer, Site};
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

topic! {
    once one_host_writes_and_others_read_and_recover_from_a_bucket,
    once kills_lose_nothing_in_a_bucket_and_neither_does_a_lost_cache,
    alone what_a_bucket_cannot_be_is_said,
}

/// A server whose site has its repository in an object store.
fn in_bucket(install: &'static Install) -> (Site, PgServer, String) {
    let (site, server) = Site::with_server(install);
    let url = place(&site, "bucket");
    use_place(&site, &url);
    let said = site.ok(&["init"]);
    assert!(said.contains(&format!("Created the repository {url}")), "{said}");
    assert!(said.contains("never overwritten: yes"), "{said}");
    assert!(site.ok(&["init"]).contains("is a repository already"));
    (site, server, url)
}

/// Another host that knows the bucket.
fn other_host(url: &str) -> Site {
    let there = Site::new();
    let config = format!(
        "[barmanfs]\nrepository = {}\n[main]\n",
        there.repository().display()
    );
    there.write_file("barmanfs.conf", config.as_bytes());
    use_place(&there, url);
    there
}

/// The same backups and files, by what a mount on each host shows.
fn assert_equal(here: &Site, there: &Site) {
    let ids = here.backup_ids();
    until("the other host sees the backups", || there.backup_ids() == ids);
    let (left, right) = (Mount::for_all(here), Mount::for_all(there));
    for id in ids {
        let raw = format!("main/raw/{id}");
        let found = differences(&left.path(&raw), &right.path(&raw), &|_| false);
        assert_eq!(found, [""; 0], "{id}");
    }
}

fn one_host_writes_and_others_read_and_recover_from_a_bucket(install: &'static Install) {
    let (site, server, url) = in_bucket(install);
    fill(&server, 1);
    let first = site.backup();
    transact(&server, 100);
    let there = other_host(&url);
    assert_equal(&site, &there);
    let expected = transactions(&server);
    let segment = server.archive_current_segment();
    until("the other host sees the segment", || {
        there.barmanfs(&["get-wal", "main", &segment]).code() == Some(0)
    });
    recovers(install, &there, "to", expected);
    there
        .barmanfs(&["delete", "main", &first, "--force"])
        .refused(1)
        .says(&["is written by host", "init --take-over"]);
    let checked = there.barmanfs(&["check", "all"]).all();
    assert!(checked.contains("writes into it"), "{checked}");

    // What is gone here is gone there, and what was moved is read.
    let mount = Mount::for_all(&there);
    server.query("VACUUM FULL pgbench_accounts");
    site.backup();
    site.ok(&["delete", "main", &first]);
    let swept = site.json(&["sweep"]);
    assert!(swept["removed_packs"].as_u64() > Some(0), "{swept}");
    let ids = site.backup_ids();
    until("the mount of the other host shows what there is now", || {
        let shown = there.list(&mount.path("main/raw"));
        ids.iter().all(|id| shown.contains(id)) && !shown.contains(&first)
    });
    drop(mount);
    assert_equal(&site, &there);
    there.ok(&["rebuild-catalog"]);
    assert_equal(&site, &there);
    site.ok(&["verify"]);

    // It writes here from now on, and the one before finds that out.
    there.ok(&["init", "--take-over"]);
    there.ok(&["sweep"]);
    site.barmanfs(&["sweep"]).refused(1).says(&["is written by host"]);
    site.ok(&["init", "--take-over"]);
    let again = site.backup();
    assert!(site.backup_ids().contains(&again));
    site.ok(&["verify"]);
    drop(server);
}

fn kills_lose_nothing_in_a_bucket_and_neither_does_a_lost_cache(install: &'static Install) {
    let (site, server, url) = in_bucket(install);
    fill(&server, 2);
    let first = site.backup();
    let killed = |words: &[&str]| {
        for wait in [50_u64, 200, 600, 1500] {
            let mut running = site.spawn(words);
            sleep(Duration::from_millis(wait));
            let _ = running.kill();
            running.wait().unwrap();
        }
    };
    transact(&server, 500);
    killed(&["backup", "main"]);
    let second = site.backup();
    site.ok(&["verify"]);
    transact(&server, 100);
    server.query("VACUUM FULL pgbench_accounts");
    let third = site.backup();
    site.ok(&["delete", "main", &first]);
    site.ok(&["delete", "main", &second]);
    killed(&["sweep"]);
    site.ok(&["sweep"]);
    site.ok(&["verify"]);
    let ids = site.backup_ids();
    assert!(ids.contains(&third) && !ids.contains(&first), "{ids:?}");
    let expected = transactions(&server);
    server.archive_current_segment();

    // What is in the cache is in the bucket, or is made again.
    let blocks = fs::read_dir(site.path("cache"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    fs::remove_dir_all(blocks.join("blocks")).unwrap();
    recovers(install, &site, "to", expected);
    fs::remove_dir_all(site.path("cache")).unwrap();
    assert_eq!(site.backup_ids(), ids);
    recovers(install, &site, "again", expected);
    site.barmanfs(&["backup", "main"])
        .refused(1)
        .says(&["init --take-over"]);
    site.ok(&["init", "--take-over"]);
    server.archive_current_segment();
    site.backup();
    site.ok(&["sweep"]);
    site.ok(&["verify"]);
    drop(server);

    // The way into a directory.
    let directory = other_host(&url);
    let to = directory.path("repository");
    let report = directory.json(&["copy", &url, to.to_str().unwrap()]);
    assert_eq!(report["problems"], serde_json::json!([]), "{report}");
    use_directory(&directory, &to);
    assert_eq!(directory.backup_ids(), site.backup_ids());
    directory.ok(&["verify"]);
    reach(&directory);
    directory
        .barmanfs(&["copy", to.to_str().unwrap(), &url])
        .refused(1)
        .says(&["is a repository of its own"]);
}

fn use_directory(site: &Site, to: &Path) {
    let config = format!("[barmanfs]\nrepository = {}\n[main]\n", to.display());
    site.write_file("barmanfs.conf", config.as_bytes());
}

fn what_a_bucket_cannot_be_is_said() {
    let site = Site::new();
    let url = place(&site, "bucket");
    use_place(&site, &url);
    site.barmanfs(&["sweep"])
        .refused(1)
        .says(&[&url, "'barmanfs init' creates it"]);
    site.ok(&["-q", "init"]);
    let cache = fs::read_dir(site.path("cache"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let cache = cache.to_str().unwrap();
    // A cache is no repository, and a repository no cache.
    site.barmanfs(&["init", cache])
        .refused(1)
        .says(&["is the cache of the repository", &url]);
    site.barmanfs(&["copy", cache, "file:///nowhere/copy"])
        .refused(1)
        .says(&["is the cache of the repository"]);
    let directory = Site::with_repository();
    // A directory under a name of a cache.
    fs::rename(cache, site.path("elsewhere")).unwrap();
    site.copy(
        &directory.repository(),
        &format!("cache/{}", cache.rsplit('/').next().unwrap()),
    );
    site.barmanfs(&["list-servers"]).all();
    site.barmanfs(&["sweep"])
        .refused(1)
        .says(&["is a repository of its own, and no cache"]);
    for (line, said) in [
        ("repository = s3://\n", "names no bucket"),
        (
            "repository = s3://bucket/x\ncache = here\n",
            "allowed is an absolute path",
        ),
    ] {
        site.write_file("barmanfs.conf", format!("[barmanfs]\n{line}").as_bytes());
        site.barmanfs(&["sweep"]).refused(2).says(&[said]);
    }
    site.write_file(
        "barmanfs.conf",
        b"[barmanfs]\nrepository = s3://bucket/x\nbucket_timeout = soon\n",
    );
    site.barmanfs(&["sweep"])
        .refused(1)
        .says(&["No object store is used", "bucket_timeout"]);
    site.barmanfs(&["init", "s3://bucket/y"])
        .refused(2)
        .says(&["is not the repository of the configuration"]);
}
