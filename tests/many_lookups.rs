//! Any user may look up any number of names: the memory for them is bounded, and the mount loses nothing because of it.
//!
//! The kind: a process makes up a name that it looks up (a target below `pitr/`, a file below `.barmanfs/`). The name
//! costs memory until the kernel forgets it, which it does only when it is short of memory itself.

use std::fs;
use std::process::Command;

use crate::common::load::fill;
use crate::common::process::run;
use crate::common::registry::topic;
use crate::common::{Install, Mount, Site};

topic! {
    once looking_up_many_names_takes_no_memory(as_root),
}

/// Maximum growth of the daemon; without a bound each target takes 3 KiB and each other name a third of that.
const MAX_GROWTH_KIB: u64 = 16 << 10;

fn rss_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("its memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Looks up `count` numbered names, as a user who may read nothing here. Returns how many of them exist.
fn look_up(directory: &str, name: &str, first: u64, count: u64) -> u64 {
    let script = format!(
        "$n = 0; for ($i = {first}; $i < {first} + {count}; $i++) \
         {{ $n++ if lstat(\"{directory}/\" . sprintf(\"{name}\", $i)); }} print $n;"
    );
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid=nobody",
        "--regid=nogroup",
        "--clear-groups",
        "--",
        "perl",
        "-e",
    ]);
    run(command.arg(script)).ok().text().parse().expect("a number")
}

fn looking_up_many_names_takes_no_memory(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    fill(&server, 1);
    site.backup();
    let first = server.query("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn");
    let first: u64 = first.parse().expect("a number");
    fill(&server, 2);
    server.archive_current_segment();
    let mount = Mount::for_all(&site);
    let pitr = mount.path("main/pitr").display().to_string();
    let absent = mount.path(".barmanfs/absent/main").display().to_string();
    // The memory for the first names is not counted.
    assert_eq!(look_up(&pitr, "0-%X", first, 2000), 2000);
    look_up(&absent, "0000000A00000001%08X", 0, 2000);
    let held = mount.path(&format!("main/pitr/0-{first:X}"));
    let mut inside = Command::new("sh");
    inside
        .args(["-c", "cd \"$1\" && exec sleep 600", "sh"])
        .arg(&held);
    let mut inside = inside.spawn().expect("a shell");
    let before = rss_kib(mount.pid());
    let found = look_up(&pitr, "0-%X", first + 2000, 10_000);
    assert!(found > 8_000, "{found} of 10000 were found");
    // The last part of a name is hexadecimal; numbers above FF are not segments of 16 MB.
    look_up(&absent, "0000000A%08X00000001", 1, 20_000);
    let after = rss_kib(mount.pid());
    println!("{before} KiB before, {after} KiB after");
    assert!(after < before + MAX_GROWTH_KIB, "from {before} to {after} KiB");
    // A process with its working directory in one is not disturbed, and all names can be looked up again.
    let version = Command::new("cat")
        .arg(format!("/proc/{}/cwd/PG_VERSION", inside.id()))
        .status();
    assert!(version.expect("cat").success());
    assert!(held.join("PG_VERSION").exists());
    site.sh(&format!("test -e '{absent}/0000000A0000000100000001'"))
        .ok();
    let _ = inside.kill();
    let _ = inside.wait();
}
