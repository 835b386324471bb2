//! The kind: one file of the data directory has unexpected attributes, and then no backup is possible at all. A tar
//! header can hold more than the usual numbers: all attributes of a file come back with the copy.

use crate::common::registry::topic;
use crate::common::{Install, Mount, Site};

topic! {
    edges odd_times_and_owners_are_restored,
    once a_copy_has_no_file_of_the_running_server,
}

/// Times as `touch` reads them, and whether root gives the file to a user with a huge number.
const FILES: &[(&str, &str, bool)] = &[
    ("before_1970", "1960-05-05 01:02:03 UTC", false),
    ("just_before", "1969-12-31 23:59:59 UTC", false),
    ("the_epoch", "1970-01-01 00:00:00 UTC", false),
    ("before_1902", "1901-01-01 00:00:00 UTC", false),
    ("after_2038", "2050-06-01 12:00:00 UTC", false),
    ("after_2242", "2400-01-01 00:00:00 UTC", false),
    ("huge_owner", "2026-01-01 00:00:00 UTC", true),
];

pub(crate) fn odd_times_and_owners_are_restored(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    for (name, time, other_owner) in FILES {
        let path = server.data.join(name);
        site.sh(&format!("echo {name} > '{}'", path.display())).ok();
        if *other_owner && crate::common::user::is_root() {
            std::os::unix::fs::chown(&path, Some(4_000_000_000), Some(3_000_000_000)).expect("root may");
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).expect("root may");
        }
        // The file may belong to another user by now, so this runs as the tests' own user.
        let touch = std::process::Command::new("touch")
            .args(["-d", time])
            .arg(&path)
            .status();
        assert!(touch.is_ok_and(|status| status.success()), "touch {name}");
    }
    let stat = |directory: &std::path::Path| {
        let names: Vec<&str> = FILES.iter().map(|(name, ..)| *name).collect();
        site.sh(&format!(
            "cd '{}' && stat -c '%n %Y %u %g %s' {}",
            directory.display(),
            names.join(" ")
        ))
        .ok()
        .text()
    };
    let original = stat(&server.data);
    assert!(original.contains("before_1970 -304815477"), "{original}");
    let times = |text: &str| -> Vec<String> {
        // A user who mounts without root owns everything in the mount.
        text.lines()
            .map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" "))
            .collect()
    };
    site.backup();
    let mount = Mount::new(&site);
    assert_eq!(times(&stat(&mount.path("main/latest"))), times(&original));
    assert_eq!(
        times(&stat(&mount.path("main/raw").join(site.backup_ids().remove(0)))),
        times(&original)
    );
    server.verify_backup(&mount.path("main/latest"), None);
    let copy = site.copy(&mount.path("main/latest"), "copy");
    assert_eq!(times(&stat(&copy)), times(&original));
    let listed = site.ok(&["list-files", "main", "latest", "--json"]);
    assert!(listed.contains("1960-05-05T01:02:03"), "{listed}");
    assert!(listed.contains("2400-01-01T00:00:00"), "{listed}");
    // A clone keeps them, and an incremental backup builds on them.
    site.sh(&format!("mkdir '{}'", mount.path("main/live/odd").display()))
        .ok();
    assert_eq!(times(&stat(&mount.path("main/live/odd"))), times(&original));
    site.backup();
    assert_eq!(times(&stat(&mount.path("main/latest"))), times(&original));
}

/// The files that a server leaves in its data directory that has its socket there: by the lock file, a process of the number
/// in it keeps a copy from starting.
pub(crate) fn a_copy_has_no_file_of_the_running_server(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    let names = [
        ".s.PGSQL.5432.lock",
        ".s.PGSQL.65535.lock",
        "postmaster.external.pid",
    ];
    for name in names {
        site.sh(&format!("echo 1 > '{}'", server.data.join(name).display()))
            .ok();
    }
    let id = site.backup();
    let mount = Mount::new(&site);
    let raw = mount.path(&format!("main/raw/{id}"));
    let restored = site.path("restored");
    site.ok(&["restore", "main", "auto", restored.to_str().expect("a path")]);
    for (place, has) in [
        (&raw, true),
        (&mount.path("main/latest"), false),
        (&mount.path("main/pitr/now"), false),
        (&restored, false),
    ] {
        let found = site.list(place);
        for name in names {
            assert_eq!(
                found.contains(&name.to_owned()),
                has,
                "{name} in {}",
                place.display()
            );
        }
        server.verify_backup(place, None);
    }
}
