//! Any user may look up names, as many as he likes: what is kept for them is bounded, and nothing of the mount is lost by it.
//!
//! The kind: a name that is made up by the process that looks it up (a target below `pitr/`, a file below `.barmanfs/`) costs memory until
//! the kernel forgets it, which it does only when it is short of memory itself.

use std::fs;
use std::process::Command;

use crate::common::load::fill;
use crate::common::process::run;
use crate::common::registry::topic;
use crate::common::{Install, Mount, Site};

topic! {
    once looking_up_many_names_costs_no_memory(as_root),
}

/// What the daemon may grow by; without a bound each target takes 3 KiB and each other name a third of one.
const MAX_GROWTH_KIB: u64 = 16 << 10;

fn rss_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("its memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Looks up as many names as there are numbers from one on, as a user who may read nothing here; gives how many there were.
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

fn looking_up_many_names_costs_no_memory(install: &'static Install) {
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
    // What the first of them take is not counted.
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
    // The last byte of a name in hexadecimal: those above F are no segments of 16 MB.
    look_up(&absent, "0000000A%08X00000001", 1, 20_000);
    let after = rss_kib(mount.pid());
    println!("{before} KiB before, {after} KiB after");
    assert!(after < before + MAX_GROWTH_KIB, "from {before} to {after} KiB");
    // Who stands in one is not put out, and all can be looked up again.
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
