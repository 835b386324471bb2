//! A copy of a repository in an object store is all of it, whatever the repository does meanwhile, and becomes one again.
//!
//! Where `scripts/test.sh` has started a gateway of Ceph, the copies are there. Without it they are in a directory, under the same
//! keys.

use crate::common::load::{Load, fill, recovers, transact, transactions};
use crate::common::object_store::{gateway, place, reach};
use crate::common::registry::topic;
use crate::common::tree::differences;
use crate::common::{Install, Mount, PgServer, Site};
use serde_json::Value;
use std::fs;
use std::thread::sleep;
use std::time::Duration;

topic! {
    once a_repository_in_use_is_copied_and_every_command_works_on_the_copy_of_the_copy,
    once what_is_gone_here_goes_there_only_when_asked_and_never_when_something_is_lost,
    once a_killed_copy_goes_on_where_it_ended,
    once what_an_attacker_overwrites_and_deletes_comes_back_from_a_locked_bucket,
    once a_copy_in_azure_comes_back,
    alone what_cannot_be_copied_is_refused,
}

/// A prefix in the bucket that keeps versions and locks each for a day; `scripts/test.sh` has made it.
fn locked_place(site: &Site) -> String {
    reach(site);
    // The directory of a site is no other's.
    let own = site.path("").file_name().unwrap().to_string_lossy().into_owned();
    format!("s3://locked/{own}-{}", std::process::id())
}

#[track_caller]
fn copy_out(site: &Site, url: &str, options: &[&str]) -> Value {
    let repository = site.repository().display().to_string();
    site.json(&[&["copy", &repository, url], options].concat())
}

/// Another host, with nothing but the copy.
#[track_caller]
fn copy_back(site: &Site, url: &str) -> Site {
    let there = Site::new();
    let config = format!(
        "[barmanfs]\nrepository = {}\n[main]\n",
        there.repository().display()
    );
    there.write_file("barmanfs.conf", config.as_bytes());
    place(&there, "none");
    let report = there.json(&["copy", url, &there.repository().display().to_string()]);
    assert_eq!(report["problems"], serde_json::json!([]), "{report}");
    assert_eq!(report["catalog"]["lost_chunks"], 0, "{report}");
    assert_equal(site, &there);
    there
}

/// The same backups, files and WAL, by what a mount shows.
fn assert_equal(site: &Site, there: &Site) {
    assert_eq!(there.backup_ids(), site.backup_ids());
    let (left, right) = (Mount::for_all(site), Mount::for_all(there));
    for id in site.backup_ids() {
        let raw = format!("main/raw/{id}");
        let found = differences(&left.path(&raw), &right.path(&raw), &|_| false);
        assert_eq!(found, [""; 0], "{id}");
    }
    let wal = |mount: &Mount<'_>, site: &Site| site.checksums(&mount.path("main/wal"));
    assert_eq!(wal(&left, site), wal(&right, there));
    drop((left, right));
    there.ok(&["verify"]);
}

fn count(report: &Value, key: &str) -> u64 {
    report[key].as_u64().unwrap_or_else(|| panic!("{key}: {report}"))
}

fn a_repository_in_use_is_copied_and_every_command_works_on_the_copy_of_the_copy(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    fill(&server, 1);
    site.backup();
    let url = place(&site, "copy");
    let plan = copy_out(&site, &url, &["--dry-run"]);
    assert_eq!(plan["present_packs"], 0, "{plan}");
    assert_eq!(plan["copied_packs"], plan["packs"], "{plan}");

    let load = Load::start(&server);
    let first = copy_out(&site, &url, &[]);
    server.archive_current_segment();
    site.backup();
    let second = copy_out(&site, &url, &[]);
    load.stop();
    assert!(
        count(&first, "copied_packs") >= count(&plan, "packs"),
        "{first} {plan}"
    );
    assert!(count(&second, "copied_packs") > 0, "{second}");
    assert_eq!(second["present_packs"], first["packs"], "{second} {first}");

    server.archive_current_segment();
    let expected = transactions(&server);
    drop(server);
    copy_out(&site, &url, &[]);
    let done = copy_out(&site, &url, &[]);
    assert_eq!(
        (count(&done, "copied_packs"), &done["present_packs"]),
        (0, &done["packs"]),
        "{done}"
    );

    let there = copy_back(&site, &url);
    recovers(install, &there, "to", expected);
    for words in [
        &["sweep"][..],
        &["stats"],
        &["timeline", "main"],
        &["rebuild-catalog"],
        &["delete", "main", "oldest"],
    ] {
        there.ok(words);
    }
    let again = there.repository().display().to_string();
    there
        .barmanfs(&["copy", &url, &again])
        .refused(1)
        .says(&["there is a repository already"]);
}

/// Another backup in place of the first one, of which nothing is left.
fn replace_the_backup(site: &Site, server: PgServer) {
    // Everything is written again, so that the first backup is the only one that needs its chunks.
    server.query("UPDATE pgbench_accounts SET abalance = random() * 1000");
    server.query("VACUUM FULL");
    server.archive_current_segment();
    site.backup();
    drop(server);
    site.ok(&["delete", "main", "oldest"]);
    site.ok(&["sweep"]);
}

fn what_is_gone_here_goes_there_only_when_asked_and_never_when_something_is_lost(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    fill(&server, 1);
    site.backup();
    let url = place(&site, "copy");
    copy_out(&site, &url, &[]);
    replace_the_backup(&site, server);
    let kept = copy_out(&site, &url, &[]);
    assert!(count(&kept, "extra_packs") > 0, "{kept}");
    assert_eq!(kept["removed_packs"], 0, "{kept}");

    // A pack that was lost must not be taken for one that went.
    let pack = site.largest_pack(&[]);
    let aside = site.path("aside");
    fs::rename(&pack, &aside).unwrap();
    let name = pack.file_name().unwrap().to_string_lossy().into_owned();
    let repository = site.repository().display().to_string();
    let run = site
        .barmanfs(&["copy", &repository, &url, "--delete", "--json"])
        .refused(3)
        .says(&[&name]);
    let report: Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(report["removed_packs"], 0, "{report}");
    fs::rename(&aside, &pack).unwrap();

    let plan = copy_out(&site, &url, &["--delete", "--dry-run"]);
    assert_eq!(plan["removed_packs"], kept["extra_packs"], "{plan} {kept}");
    let removed = copy_out(&site, &url, &["--delete"]);
    assert_eq!(removed["removed_packs"], kept["extra_packs"], "{removed} {kept}");
    assert_eq!(copy_out(&site, &url, &[])["extra_packs"], 0);
    copy_back(&site, &url);

    // One that a rebuild has given up is nowhere but in the bucket.
    fs::remove_file(&pack).unwrap();
    site.barmanfs(&["rebuild-catalog"]).refused(3);
    let kept = copy_out(&site, &url, &["--delete"]);
    assert!(count(&kept, "extra_packs") > 0, "{kept}");
    assert_eq!(kept["removed_packs"], 0, "{kept}");

    // A prefix belongs to one repository.
    let other = Site::with_repository();
    place(&other, "copy");
    other
        .barmanfs(&["copy", &other.repository().display().to_string(), &url])
        .refused(1)
        .says(&["has another repository already"]);
}

fn a_killed_copy_goes_on_where_it_ended(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    fill(&server, 2);
    site.backup();
    for _ in 0..5 {
        transact(&server, 50);
        server.archive_current_segment();
    }
    drop(server);
    let url = place(&site, "copy");
    let repository = site.repository().display().to_string();
    let killed = |site: &Site, from: &str, to: &str| {
        for wait in [20_u64, 60, 120, 250, 400] {
            let mut running = site.spawn(&["copy", from, to]);
            sleep(Duration::from_millis(wait));
            let _ = running.kill();
            running.wait().unwrap();
        }
    };
    killed(&site, &repository, &url);
    copy_out(&site, &url, &[]);

    let there = Site::new();
    let config = format!(
        "[barmanfs]\nrepository = {}\n[main]\n",
        there.repository().display()
    );
    there.write_file("barmanfs.conf", config.as_bytes());
    place(&there, "none");
    let back = there.repository().display().to_string();
    killed(&there, &url, &back);
    // The last of them may have come to its end.
    if !there.repository().join("repository.json").exists()
        || there.repository().join("copying.json").exists()
    {
        there.ok(&["copy", &url, &back]);
    }
    assert_equal(&site, &there);
}

fn what_cannot_be_copied_is_refused() {
    let site = Site::with_repository();
    let repository = site.repository().display().to_string();
    let other = site.path("other").display().to_string();
    let url = format!("file://{other}");
    for (words, said) in [
        (
            &["copy", &repository, &other][..],
            "One side of a copy is a directory",
        ),
        (&["copy", &url, "s3://b/x"], "One side of a copy is a directory"),
        (
            &["copy", &repository, "ftp://host/x"],
            "must be s3://BUCKET/PREFIX",
        ),
        (
            &["copy", &url, &other, "--delete"],
            "--delete is for a copy to an object store",
        ),
    ] {
        site.barmanfs(words).refused(2).says(&[said]);
    }
    let back = site.path("back").display().to_string();
    site.barmanfs(&["copy", &url, &back])
        .refused(1)
        .says(&["There is no repository in file://"]);
    site.barmanfs(&["copy", "", &url])
        .refused(2)
        .says(&["'' is neither a directory nor a URL"]);
    // The kind: a bucket that is a directory, and a repository, in one place.
    site.sh(&format!(
        "rm -rf '{other}' && cp -a '{repository}' '{other}' && ln -s '{repository}' '{other}-link'"
    ))
    .ok();
    for (from, to) in [
        (&repository, &format!("file://{repository}")),
        (&repository, &format!("file://{repository}/copy")),
        (&repository, &format!("file://{other}-link/copy")),
        (&repository, &url),
        (&repository, &format!("file://{}", site.path("").display())),
        (&url, &back),
        (&format!("file://{back}"), &format!("{back}/inside")),
    ] {
        site.barmanfs(&["copy", from, to])
            .refused(2)
            .says(&["Name a directory of its own"]);
    }
    assert_eq!(
        fs::read_dir(site.path("back"))
            .map_err(|error| error.kind())
            .err(),
        Some(std::io::ErrorKind::NotFound)
    );
    site.sh(&format!("rm -r '{other}'")).ok();
    site.barmanfs(&["copy", &other, &url])
        .refused(1)
        .says(&["is not a barmanfs repository"]);
}

fn what_an_attacker_overwrites_and_deletes_comes_back_from_a_locked_bucket(install: &'static Install) {
    let Some([endpoint, _, key, secret]) = gateway() else {
        eprintln!("Without a gateway of Ceph, nothing to test");
        return;
    };
    let (site, server) = Site::with_server(install);
    fill(&server, 1);
    site.backup();
    let url = locked_place(&site);
    copy_out(&site, &url, &[]);
    replace_the_backup(&site, server);
    let repository = site.repository().display().to_string();
    let said = site.ok(&["copy", &repository, &url, "--delete"]);
    assert!(
        said.contains("is locked until 20") && said.contains("locked by the bucket"),
        "{said}"
    );
    let report = copy_out(&site, &url, &["--delete"]);
    assert_eq!(report["removed_packs"], 0, "{report}");
    let locked = report["locked"].as_array().unwrap().len();
    assert_eq!(count(&report, "extra_packs"), locked as u64, "{report}");

    // Somebody who has the rights of a sweeper, and a wrong clock is no help.
    let there = url.strip_prefix("s3://").unwrap();
    let change = |how: &str, key_of_object: &str| {
        site.sh(&format!(
            "curl -sS -f {how} --aws-sigv4 aws:amz:us-east-1:s3 -u '{key}:{secret}' \
             -H 'x-amz-content-sha256: UNSIGNED-PAYLOAD' '{endpoint}/{there}/{key_of_object}'"
        ))
        .ok();
    };
    for (n, pack) in site.packs().iter().enumerate() {
        let name = pack.file_name().unwrap().to_string_lossy().into_owned();
        let how = ["-X DELETE", "-X PUT --data pay"][n % 2];
        change(how, &format!("packs/local/{}/{name}", &name[..2]));
    }
    change("-X DELETE", "repository.json");
    let other = Site::new();
    reach(&other);
    let back = other.path("back").display().to_string();
    other
        .barmanfs(&["copy", &url, &back])
        .refused(1)
        .says(&["There is no repository in s3://"]);
    other
        .in_days(1, &format!("copy '{url}' '{back}'"))
        .refused(1)
        .says(&["the clock of this host is wrong"]);

    let there = Site::new();
    let config = format!(
        "[barmanfs]\nrepository = {}\n[main]\n",
        there.repository().display()
    );
    there.write_file("barmanfs.conf", config.as_bytes());
    reach(&there);
    let to = there.repository().display().to_string();
    let report = there.json(&["copy", &url, &to, "--from-versions"]);
    assert_eq!(report["problems"], serde_json::json!([]), "{report}");
    let found = &report["from_versions"];
    assert!(
        count(found, "deleted") > 0 && count(found, "overwritten") > 0,
        "{report}"
    );
    assert_equal(&site, &there);
}

/// In Microsoft's emulator, which `scripts/test.sh` starts.
fn a_copy_in_azure_comes_back(install: &'static Install) {
    let (Ok(container), Ok(endpoint)) = (
        std::env::var("BARMANFS_TEST_AZURE"),
        std::env::var("AZURITE_BLOB_STORAGE_URL"),
    ) else {
        eprintln!("Without Azurite, nothing to test");
        return;
    };
    let (site, server) = Site::with_server(install);
    fill(&server, 1);
    site.backup();
    drop(server);
    let own = site.path("").file_name().unwrap().to_string_lossy().into_owned();
    let url = format!("az://{container}/{own}-{}", std::process::id());
    let copy = |site: &Site, from: &str, to: &str| -> Value {
        let run = site.sh(&format!(
            "AZURE_STORAGE_USE_EMULATOR=true AZURITE_BLOB_STORAGE_URL={endpoint} '{}' -c '{}' copy '{from}' '{to}' --json",
            site.program().display(),
            site.config().display()
        ));
        serde_json::from_str(&run.ok().text()).unwrap()
    };
    let repository = site.repository().display().to_string();
    let first = copy(&site, &repository, &url);
    assert_eq!(first["copied_packs"], first["packs"], "{first}");
    let again = copy(&site, &repository, &url);
    assert_eq!(again["present_packs"], first["packs"], "{again}");
    let there = Site::new();
    let config = format!(
        "[barmanfs]\nrepository = {}\n[main]\n",
        there.repository().display()
    );
    there.write_file("barmanfs.conf", config.as_bytes());
    let back = copy(&there, &url, &there.repository().display().to_string());
    assert_eq!(back["problems"], serde_json::json!([]), "{back}");
    assert_equal(&site, &there);
}
