//! WAL between hosts: `put-wal`, the clients for `archive_command` and `restore_command`, and the directory for copies.

use crate::common::load::{assert_sums_agree, fill, transact, transactions};
use crate::common::network::Network;
use crate::common::process::{Run, run, until};
use crate::common::registry::topic;
use crate::common::ssh::Ssh;
use crate::common::sshd::{Sshd, user_name};
use crate::common::{Install, Mount, PgServer, Site};
use std::fs;
use std::path::{Path, PathBuf};

topic! {
    once a_cut_in_the_middle_of_recovery_stops_it_and_it_goes_on_later,
    once many_waiting_segments_take_few_connections,
    once segments_ahead_come_over_kept_connections,
    once put_wal_takes_all_or_says_what_it_refused,
    once get_wal_gives_what_is_received_and_peeks,
    once copies_in_a_directory_are_archived,
    once what_comes_between_two_questions_is_fetched,
    once a_recovery_without_a_network_is_not_promoted(as_root),
    once barman_and_barmanfs_exchange_wal,
}

/// A server that archives through the client, over ssh.
fn site_over_ssh(install: &'static Install) -> (Site, PgServer) {
    let site = Site::with_repository();
    let mut server = PgServer::init(install, &site.path("main"), &["--wal-segsize=1"]);
    {
        let ssh = Ssh::to_barmanfs(&site);
        server.configure(&format!(
            "archive_mode = on\narchive_command = '{} {} backup main %p'",
            ssh.path(),
            ssh.link("barman-wal-archive").display()
        ));
    }
    site.write_config(&[("main", &server)]);
    server.start();
    (site, server)
}

fn archived(server: &PgServer) -> String {
    server.query("SELECT last_archived_wal FROM pg_stat_archiver")
}

/// The segments of a server, as files that it does not recycle.
fn kept_segments(site: &Site, server: &PgServer, count: usize) -> Vec<PathBuf> {
    let kept = site.make_directory("kept");
    (0..count)
        .map(|_| {
            server.query("CREATE TABLE IF NOT EXISTS filler (n int); INSERT INTO filler SELECT generate_series(1, 500)");
            let name = server.query("SELECT pg_walfile_name(pg_current_wal_lsn())");
            server.query("SELECT pg_switch_wal()");
            let copy = kept.join(&name);
            site.sh(&format!("cp '{}/pg_wal/{name}' '{}'", server.data.display(), copy.display()))
                .ok();
            copy
        })
        .collect()
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

fn a_cut_in_the_middle_of_recovery_stops_it_and_it_goes_on_later(install: &'static Install) {
    let (site, primary) = site_over_ssh(install);
    fill(&primary, 2);
    site.backup();
    transact(&primary, 3000);
    primary.archive_current_segment();
    let mount = Mount::new(&site);
    let mut copy = PgServer::on(install, &site.copy(&mount.path("main/latest"), "copy"));
    mount.unmount();
    let ssh = Ssh::of(&site);
    let place = site.path("");
    // The spool may have a few more segments, and then the next one cannot be fetched.
    let command = format!(
        "echo >> {place}count; test $(wc -l < {place}count) -ne 3 || touch {place}cut; {} {} -p 2 backup main %f %p",
        ssh.path(),
        ssh.link("barman-wal-restore").display(),
        place = place.display()
    );
    copy.configure_auto(&format!(
        "restore_command = '{command}'\nrecovery_target = ''\nrecovery_target_timeline = 'latest'"
    ));
    let started = copy.try_start();
    if started.code() == Some(0) {
        until("the server stops", || !copy.data.join("postmaster.pid").exists());
    }
    let log = copy.log();
    assert!(log.contains("FATAL:  could not restore file"), "{log}");
    assert!(!log.contains("selected new timeline ID"), "{log}");
    assert_eq!(copy.timeline(), 1);

    ssh.mend();
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(transactions(&copy), transactions(&primary));
    assert_sums_agree(&copy);
    let peeked = ssh
        .commands()
        .iter()
        .filter(|line| line.contains("--peek"))
        .count();
    assert!(peeked > 0, "absence was not proven");
}

fn many_waiting_segments_take_few_connections(install: &'static Install) {
    let (site, server) = site_over_ssh(install);
    let ssh = Ssh::of(&site);
    server.archive_current_segment();
    ssh.cut();
    let segments = kept_segments(&site, &server, 20);
    let last = name_of(segments.last().unwrap());
    let before = ssh.commands().len();
    ssh.mend();
    until("all is archived", || archived(&server) == last);
    let taken = ssh.commands().len() - before;
    assert!(taken <= 6, "{taken} connections for 20 segments");
    for segment in &segments {
        let printed = site.barmanfs(&["get-wal", "main", &name_of(segment)]).ok();
        assert!(
            printed.stdout == fs::read(segment).unwrap(),
            "{}",
            segment.display()
        );
    }
}

/// Each client asks for one segment, and a process that outlives it has the next ones.
fn segments_ahead_come_over_kept_connections(install: &'static Install) {
    let (site, server) = site_over_ssh(install);
    let ssh = Ssh::of(&site);
    let segments = kept_segments(&site, &server, 16);
    let last = name_of(segments.last().unwrap());
    until("all is archived", || archived(&server) == last);
    let place = site.path("");
    let spool = format!("{}spool", place.display());
    let fetch = |segment: &Path, name: &str| {
        let (wal, dest) = (name_of(segment), format!("{}{name}", place.display()));
        let words = ["-p", "2", "--spool-dir", &spool, "backup", "main", &wal, &dest];
        run(&mut ssh.client(&ssh.link("barman-wal-restore"), &words)).ok();
        assert!(fs::read(&dest).unwrap() == fs::read(segment).unwrap(), "{wal}");
    };
    let before = ssh.commands().len();
    let asked = |what: &str| {
        let commands = ssh.commands();
        commands
            .iter()
            .skip(before)
            .filter(|line| line.contains(what))
            .count()
    };
    let ahead = format!("pgrep -f '[w]al-restore --prefetch.*{spool}'");
    for (number, segment) in segments.iter().enumerate() {
        fetch(segment, "fetched");
        match number {
            0 => until("the next ones are fetched", || asked("--feed") == 2),
            7 => drop(site.sh(&format!("kill -9 $({ahead})")).ok()),
            // One connection, if the process that was killed had fetched all but one.
            8 => until("another process fetches them", || asked("--feed") > 2),
            // Two at once.
            10 => std::thread::scope(|scope| {
                for name in ["one", "two"] {
                    let (fetch, segment) = (&fetch, &segments[11]);
                    scope.spawn(move || fetch(segment, name));
                }
            }),
            _ => {}
        }
    }
    let alone = asked("get-wal") - asked("--feed");
    let kept = asked("--feed");
    assert!(
        alone <= 4 && (3..=4).contains(&kept),
        "{kept}: {:?}",
        ssh.commands()
    );
    // What it would serve is gone, as with a copy that was removed.
    site.sh(&format!("rm -r '{spool}'")).ok();
    until("nothing is fetched any more", || {
        site.sh(&ahead).code() == Some(1)
    });
}

fn put_wal_takes_all_or_says_what_it_refused(install: &'static Install) {
    let (site, server) = site_over_ssh(install);
    let ssh = Ssh::of(&site);
    ssh.cut();
    let segments = kept_segments(&site, &server, 2);
    ssh.mend();
    let (one, two) = (segments[0].to_string_lossy(), segments[1].to_string_lossy());
    let send = |words: &[&str]| run(&mut ssh.client(&ssh.link("barman-wal-archive"), words));
    for form in [
        "--gzip", "--bzip2", "--xz", "--zstd", "--lz4", "--snappy", "--md5",
    ] {
        send(&[form, "backup", "main", &one]).ok();
    }
    let printed = site.barmanfs(&["get-wal", "main", &name_of(&segments[0])]).ok();
    assert!(printed.stdout == fs::read(&segments[0]).unwrap());
    send(&["--test", "backup", "main", "-"])
        .ok()
        .says(&["Ready to accept WAL files for the server main"]);
    send(&["backup", "nosuch", &one]).refused(1).says(&["nosuch"]);
    ssh.cut();
    send(&["backup", "main", &two]).refused(3);
    ssh.mend();
    send(&["backup", "main", &site.path("").to_string_lossy()]).refused(2);
    let own = |words: &[&str]| {
        let words = [&["wal-archive", "--remote", "b@backup:22"], words].concat();
        run(&mut ssh.client(&site.program(), &words))
    };
    own(&["main", &two]).ok();

    // Barman acknowledges this.
    let mut other = fs::read(&segments[1]).unwrap();
    let last = other.len() - 1;
    other[last] ^= 1;
    fs::write(&segments[1], other).unwrap();
    send(&["backup", "main", &two])
        .refused(1)
        .says(&["other content"]);
    own(&["main", &two]).refused(1).says(&["other content"]);

    let half = site.sh(&format!(
        "cd {}; {{ head -c 700000 /dev/zero | tr '\\0' x; }} | {} -c {} put-wal main",
        site.path("").display(),
        site.program().display(),
        site.config().display()
    ));
    half.refused(1);
}

fn get_wal_gives_what_is_received_and_peeks(install: &'static Install) {
    let (site, server) = Site::with_initdb_options(install, &["--wal-segsize=1"]);
    let segments: Vec<String> = (0..4)
        .map(|n| {
            server.query(&format!("CREATE TABLE t{n} ()"));
            server.archive_current_segment()
        })
        .collect();
    let get = |words: &[&str]| site.barmanfs(&[&["get-wal"], words].concat());
    assert_eq!(
        get(&["-p", "3", "main", &segments[0]]).ok().text(),
        segments[..3].join("\n")
    );
    assert_eq!(
        get(&["--peek", "9", "main", &segments[1]]).ok().text(),
        segments[1..].join("\n")
    );
    assert_eq!(
        get(&["--peek", "9", "main", "0000000100000000000000F0"])
            .ok()
            .text(),
        ""
    );
    get(&["--test", "main"])
        .ok()
        .says(&["Ready to retrieve WAL files from the server main"]);
    get(&["--test", "nosuch"]).refused(202);
    let plain = get(&["main", &segments[0]]).ok().stdout;
    let out = site.make_directory("out");
    get(&["-o", &out.to_string_lossy(), "main", &segments[0]]).ok();
    assert!(fs::read(out.join(&segments[0])).unwrap() == plain);
    get(&[
        "-z",
        "main",
        &segments[0],
        &out.join("gzipped.gz").to_string_lossy(),
    ])
    .ok();
    let unzipped = site.sh(&format!("gzip -dc {}/gzipped.gz", out.display())).ok();
    assert!(unzipped.stdout == plain);
    assert!(
        get(&["--keep-compression", "main", &segments[0]])
            .ok()
            .stdout
            .starts_with(b"\x1f\x8b")
    );

    // A segment that is received and not archived.
    server.query("ALTER SYSTEM SET archive_command = 'false'");
    server.query("SELECT pg_reload_conf()");
    site.write_config_of(&server, "streaming_archiver = on\n");
    let mut receiver = site.spawn(&["receive-wal", "main"]);
    server.query("CREATE TABLE received ()");
    let current = server.query("SELECT pg_walfile_name(pg_current_wal_lsn())");
    until("it is received", || {
        get(&["-P", "main", &current]).code() == Some(0)
    });
    let partial = get(&["--partial", "main", &current]).ok().stdout;
    assert_eq!(partial.len(), plain.len());
    assert_eq!(get(&["main", &current]).code(), Some(1));
    receiver.kill().unwrap();
    receiver.wait().unwrap();
}

fn copies_in_a_directory_are_archived(install: &'static Install) {
    let site = Site::with_repository();
    let incoming = site.make_directory("incoming");
    let mut server = PgServer::init(install, &site.path("main"), &["--wal-segsize=1"]);
    server.configure(&format!(
        "archive_mode = on\narchive_command = 'cp %p {}/%f'",
        incoming.display()
    ));
    let told = site.write_file("told", b"");
    site.write_config_of(
        &server,
        &format!(
            "archiver = on\nincoming_wals_directory = {}\npre_archive_script = echo $BARMAN_SEGMENT >> {}\n",
            incoming.display(),
            told.display()
        ),
    );
    server.start();
    // It begins with the end of a record of initdb, which may hold zeros: then it is believed after a minute.
    let first = name_of(&kept_segments(&site, &server, 1)[0]);
    let segments = kept_segments(&site, &server, 3);
    let names: Vec<String> = segments.iter().map(|segment| name_of(segment)).collect();
    until("all is copied", || archived(&server) == names[2]);
    fs::remove_file(incoming.join(first)).unwrap();
    site.sh(&format!("gzip {}/{}", incoming.display(), names[1])).ok();
    site.sh(&format!(
        "cd {}; mv {}.gz {}",
        incoming.display(),
        names[1],
        names[1]
    ))
    .ok();
    let stranger = "0000000100000000000000EE";
    site.sh(&format!(
        "cd {}; echo no > {stranger}; echo > readme; head -c 1000 {} > 0000000100000000000000EF; echo > .rsync.xyz",
        incoming.display(),
        names[0]
    ))
    .ok();
    // The last one is being copied by somebody who has given it its final size already.
    let last = incoming.join(&names[2]);
    let begin_copy = format!(
        "truncate -s 0 {0}; truncate -s 1M {0}; dd if={1} of={0} bs=1000 count=10 conv=notrunc status=none",
        last.display(),
        segments[2].display()
    );
    site.sh(&begin_copy).ok();
    let done = site.barmanfs(&["archive-wal", "main"]).ok();
    assert!(!done.text().contains(&names[2]), "{done}");
    assert!(last.exists());
    assert_eq!(
        fs::read_to_string(&told).unwrap(),
        format!("{}\n{}\n", names[0], names[1]),
        "no script is told of a file that is not whole: {done}"
    );
    site.sh(&format!("cat {} 1<> {}", segments[2].display(), last.display()))
        .ok();
    let rest = site.barmanfs(&["archive-wal", "main"]).ok();
    let done = format!("{}\n{}", done.text(), rest.text());
    for name in &names {
        assert!(done.lines().any(|line| line == name), "{done}");
        let printed = site.barmanfs(&["get-wal", "main", name]).ok();
        let kept = segments.iter().find(|kept| name_of(kept) == *name).unwrap();
        assert!(printed.stdout == fs::read(kept).unwrap());
    }
    assert_eq!(
        site.list(&incoming),
        [".rsync.xyz", stranger, "0000000100000000000000EF", "readme"]
    );
    a_script_runs_while_a_copier_goes_on(&site, &server, &incoming);
    // Nobody copies for a day.
    site.in_days(1, "archive-wal main").ok();
    assert_eq!(site.list(&incoming), [".rsync.xyz"]);
    let errors = site.list(&site.path("errors"));
    assert_eq!(errors.len(), 3, "{errors:?}");
    assert!(
        errors[0].starts_with(stranger) && errors[0].ends_with(".unknown"),
        "{errors:?}"
    );
    site.barmanfs(&["check", "main"])
        .says(&["incoming errors: FAILED"]);

    a_file_that_cannot_be_put_aside_is_an_error(&site, &incoming);
    // cron does the same.
    let next = name_of(&kept_segments(&site, &server, 1)[0]);
    until("it is copied", || archived(&server) == next);
    site.ok(&["cron"]);
    until("it is archived", || {
        site.barmanfs(&["get-wal", "main", &next]).code() == Some(0)
    });
}

/// The file was whole when its script began.
/// Neither its name nor the directory beside it may hide it.
fn a_file_that_cannot_be_put_aside_is_an_error(site: &Site, incoming: &Path) {
    let errors = site.path("errors");
    site.sh(&format!(
        "mv {0} {0}.old && echo > {0} && cd {1} && echo no > $(printf 'x\\377')",
        errors.display(),
        incoming.display()
    ))
    .ok();
    site.barmanfs(&["archive-wal", "main"])
        .ok()
        .says(&["1 file in", "may still be copied"]);
    let stays = site.in_days(1, "archive-wal main").refused(1);
    stays.says(&["is not archived", "stays where it is", "errors"]);
    site.in_days(1, "check main")
        .refused(3)
        .says(&["incoming WALs directory: FAILED", "has waited"]);
    site.sh(&format!("rm {0} && mv {0}.old {0}", errors.display()))
        .ok();
    site.in_days(1, "archive-wal main").ok();
    assert_eq!(site.list(&errors).len(), 4);
    assert_eq!(site.list(incoming), [".rsync.xyz"]);
}

fn a_script_runs_while_a_copier_goes_on(site: &Site, server: &PgServer, incoming: &Path) {
    let next = kept_segments(site, server, 1).remove(0);
    let name = name_of(&next);
    until("it is copied", || archived(server) == name);
    // It has given the file its final size again, and has copied the first pages.
    let script = site.write_file(
        "copier",
        b"#!/bin/sh\ndd if=/dev/zero of=\"$BARMAN_FILE\" bs=8192 seek=2 count=126 conv=notrunc status=none\n",
    );
    site.sh(&format!("chmod +x {}", script.display())).ok();
    let settings = |script: &str| {
        format!(
            "archiver = on\nincoming_wals_directory = {}\n{script}",
            incoming.display()
        )
    };
    site.write_config_of(
        server,
        &settings(&format!("pre_archive_script = {}\n", script.display())),
    );
    let waits = site.barmanfs(&["archive-wal", "main"]).ok();
    assert!(
        !waits.text().lines().any(|line| line == name) && incoming.join(&name).exists(),
        "{waits}"
    );
    assert_eq!(site.barmanfs(&["get-wal", "main", &name]).code(), Some(1));
    // One that only touches the file keeps nobody waiting, and the file goes.
    let toucher = site.write_file("toucher", b"#!/bin/sh\ntouch \"$BARMAN_FILE\"\n");
    site.sh(&format!("chmod +x {}", toucher.display())).ok();
    site.write_config_of(
        server,
        &settings(&format!("pre_archive_script = {}\n", toucher.display())),
    );
    site.sh(&format!(
        "cat {} 1<> {}",
        next.display(),
        incoming.join(&name).display()
    ))
    .ok();
    site.barmanfs(&["archive-wal", "main"]).ok();
    assert!(!incoming.join(&name).exists());
    site.write_config_of(server, &settings(""));
    let printed = site.barmanfs(&["get-wal", "main", &name]).ok();
    assert!(printed.stdout == fs::read(&next).unwrap());
}

/// WAL comes over a network that is cut when the third file is asked for.
fn a_recovery_without_a_network_is_not_promoted(install: &'static Install) {
    let Some(network) = Network::new() else { return };
    let (site, primary) = Site::with_initdb_options(install, &["--wal-segsize=1"]);
    fill(&primary, 1);
    site.backup();
    transact(&primary, 300);
    primary.archive_current_segment();
    let sshd = Sshd::behind(&site, &network);
    let links = site.make_directory("links");
    for name in ["barman", "barman-wal-restore"] {
        fs::hard_link(site.program(), links.join(name)).unwrap();
    }
    let own = links.join("barman-wal-restore").display().to_string();
    let fetch = |client: &str, options: &str| {
        format!(
            "{} {client} {options} -U {} -c {} backup main %f %p",
            sshd.path(),
            user_name(),
            site.config().display()
        )
    };
    site.write_file(
        "sshd/bin/barman",
        format!("#!/bin/sh\nexec '{}' \"$@\"\n", links.join("barman").display()).as_bytes(),
    );
    site.sh(&format!("chmod 755 '{}'", site.path("sshd/bin/barman").display()))
        .ok();
    // Ours ends with a code that stops a recovery.
    let mut copy = cut_in_recovery(&site, &network, install, "ours", &fetch(&own, ""), &[]);
    until("recovery stops", || !copy.data.join("postmaster.pid").exists());
    let log = copy.log();
    assert!(log.contains("FATAL:  could not restore file"), "{log}");
    assert_not_promoted(&copy);
    network.mend();
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(transactions(&copy), transactions(&primary));
    // Barman's own ends with 2, as at the end of the archive: a standby asks again.
    let Some(barmans) = barman_of_everybody(&site, "barman-wal-restore") else {
        return;
    };
    let command = fetch(&barmans, "");
    let copy = cut_in_recovery(&site, &network, install, "barmans", &command, &["--standby-mode"]);
    until("its client has failed", || {
        copy.log().contains("ssh: connect to host") || copy.log().contains("Connection problem")
    });
    assert_not_promoted(&copy);
    assert!(copy.data.join("postmaster.pid").exists(), "{}", copy.log());
    network.mend();
    until("it goes on", || {
        copy.try_query("SELECT count(*) FROM pgbench_history").text() == transactions(&primary).to_string()
    });
    assert_eq!(copy.query("SELECT pg_is_in_recovery()"), "t");
}

/// A copy that has fetched two files, and asks for the next while the cable is pulled.
fn cut_in_recovery(
    site: &Site,
    network: &Network,
    install: &'static Install,
    name: &str,
    command: &str,
    options: &[&str],
) -> PgServer {
    let data = site.path(name);
    let place = format!("{}.count", data.display());
    let gate = format!(
        "echo >> {place}; test $(wc -l < {place}) -ne 3 || {{ touch {place}.third; while test ! -e {place}.cut; do sleep 0.1; done; }}; {command}"
    );
    let words = [
        "restore",
        "main",
        "auto",
        data.to_str().unwrap(),
        "--restore-command",
        &gate,
    ];
    site.ok(&[&words[..], options].concat());
    let mut copy = PgServer::on(install, &data);
    let started = std::thread::scope(|scope| {
        let starting = scope.spawn(|| copy.try_start().code());
        until("the third file is asked for", || {
            Path::new(&format!("{place}.third")).exists()
        });
        network.cut();
        site.write_file(&format!("{name}.count.cut"), b"");
        starting.join().unwrap()
    });
    println!("pg_ctl has ended with {started:?}");
    copy
}

#[track_caller]
fn assert_not_promoted(copy: &PgServer) {
    let log = copy.log();
    assert!(!log.contains("selected new timeline ID"), "{log}");
    assert_eq!(copy.timeline(), 1);
}

/// The other side says that it has no such file, and then that it has.
fn what_comes_between_two_questions_is_fetched(install: &'static Install) {
    let site = Site::with_repository();
    let server = PgServer::init(install, &site.path("main"), &["--wal-segsize=1"]);
    let files = site.list(&server.data.join("pg_wal"));
    let names = files.iter().filter(|name| name.starts_with("00000001"));
    let name = names.min().unwrap().as_str();
    let segment = server.data.join("pg_wal").join(name);
    let asked = site.write_file("asked", b"");
    let ssh = Ssh::to(
        &site,
        &format!(
            "case \"$*\" in *--peek*) echo {name};; *) echo >> '{0}'; test $(wc -l < '{0}') -gt 1 || exit 1; cat '{1}';; esac",
            asked.display(),
            segment.display()
        ),
    );
    let fetched = site.path("fetched");
    let words = ["wal-restore", "--program", "barman", "backup", "main", name];
    let fetch = || {
        run(&mut ssh.own_client(
            &site.program(),
            &[&words[..], &[fetched.to_str().unwrap()]].concat(),
        ))
    };
    fetch().ok();
    assert!(fs::read(&fetched).unwrap() == fs::read(&segment).unwrap());
    assert_eq!(ssh.commands().len(), 3, "{:?}", ssh.commands());
    // One that always says both is in trouble: that is no end of the archive.
    fs::remove_file(&fetched).unwrap();
    Ssh::to(
        &site,
        &format!("case \"$*\" in *--peek*) echo {name};; *) exit 1;; esac"),
    );
    let code = fetch().code();
    assert!(code > Some(200), "{code:?}");
    assert!(!fetched.exists());
}

/// Barman 3.19, if it is installed: the command line that runs one of its programs.
pub(crate) fn barman(program: &str) -> Option<String> {
    let directory =
        std::env::var("BARMANFS_TEST_BARMAN").unwrap_or("/var/cache/barmanfs-test/barman".to_owned());
    let python = format!("{directory}/bin/python");
    let found = Path::new(&python).exists();
    if !found {
        eprintln!("Without Barman in {directory}, nothing is exchanged with it");
    }
    found.then(|| format!("{python} {directory}/bin/{program}"))
}

/// The same for the database user, who may not reach the Python that it was installed with.
pub(crate) fn barman_of_everybody(site: &Site, program: &str) -> Option<String> {
    let line = barman(program)?;
    let script = line.split(' ').nth(1)?;
    let place = Path::new(script).parent()?.parent()?.display();
    let other = format!("PYTHONPATH=$(echo {place}/lib/python3*/site-packages) python3 {script}");
    let runs = |line: &String| {
        let tried = site.sh(&format!("PATH=/usr/bin:/bin; export PATH; {line} --version"));
        tried.code() == Some(0)
    };
    let found = [line.clone(), other].into_iter().find(runs);
    if found.is_none() {
        eprintln!("The database user cannot run Barman's client");
    }
    found
}

fn barman_and_barmanfs_exchange_wal(install: &'static Install) {
    let Some(server_program) = barman("barman") else {
        return;
    };
    let (site, server) = site_over_ssh(install);
    let ssh = Ssh::of(&site);
    ssh.cut();
    let segments = kept_segments(&site, &server, 3);
    ssh.mend();
    barmans_clients_work_against_us(&site, &segments);
    our_clients_work_against_barman(&site, &segments, &server_program);
}

/// A command line of a shell that finds the site's ssh.
fn as_client(site: &Site, line: &str) -> Run {
    let ssh = Ssh::of(site);
    run(&mut ssh.own_client(Path::new("/bin/sh"), &["-c", line]))
}

fn barmans_clients_work_against_us(site: &Site, segments: &[PathBuf]) {
    let (archive, restore) = (
        barman("barman-wal-archive").unwrap(),
        barman("barman-wal-restore").unwrap(),
    );
    let one = &segments[0];
    for options in ["", "--md5", "--xz"] {
        as_client(
            site,
            &format!("{archive} {options} backup main {}", one.display()),
        )
        .ok();
    }
    as_client(site, &format!("{archive} -t backup main x"))
        .ok()
        .says(&["Ready to accept"]);
    as_client(site, &format!("{archive} backup main {}", segments[1].display())).ok();
    let place = site.path("");
    for options in [
        "",
        "-z",
        "--keep-compression",
        &format!("-p 2 --spool-dir {}s", place.display()),
    ] {
        let fetched = site.path("fetched");
        let line = format!(
            "{restore} {options} backup main {} {}",
            name_of(one),
            fetched.display()
        );
        as_client(site, &line).ok();
        assert!(fs::read(&fetched).unwrap() == fs::read(one).unwrap(), "{options}");
    }
    as_client(site, &format!("{restore} -t backup main f p"))
        .ok()
        .says(&["Ready to retrieve"]);
    let absent = format!(
        "{restore} backup main 0000000100000000000000F0 {}none",
        place.display()
    );
    assert_eq!(as_client(site, &absent).code(), Some(1));
    let unknown = format!("{restore} backup nosuch {} {}none", name_of(one), place.display());
    as_client(site, &unknown).refused(201);
}

fn our_clients_work_against_barman(site: &Site, segments: &[PathBuf], program: &str) {
    let home = site.make_directory("barman_home");
    site.make_directory("barman_home/main/wals");
    let config = format!(
        "[barman]\nbarman_home = {0}\nbarman_user = root\nlog_file = {0}/log\nconfiguration_files_directory = {0}/none\n\
         [main]\ndescription = x\nconninfo = host=/nowhere user=x dbname=x\nbackup_method = postgres\n\
         streaming_conninfo = host=/nowhere user=x\narchiver = on\n",
        home.display()
    );
    let file = site.write_file("real.conf", config.as_bytes());
    let ssh = Ssh::to(site, &format!("exec {program} -c {} \"$@\"", file.display()));
    let (archive, restore) = (ssh.link("barman-wal-archive"), ssh.link("barman-wal-restore"));
    let send = |words: &[&str]| run(&mut ssh.own_client(&archive, words));
    let fetch = |words: &[&str]| run(&mut ssh.own_client(&restore, words));
    let (one, two) = (segments[0].to_string_lossy(), segments[1].to_string_lossy());
    send(&["-t", "backup", "main", "x"])
        .ok()
        .says(&["Ready to accept"]);
    send(&["backup", "main", &one]).ok();
    send(&["--md5", "backup", "main", &one]).ok();
    send(&["-z", "backup", "main", &two]).ok();
    send(&["backup", "nosuch", &two]).refused(1);
    let fetched = site.path("from_barman");
    let fetched_text = fetched.to_string_lossy().into_owned();
    for options in [&[][..], &["-z"], &["--keep-compression"]] {
        fetch(
            &[
                options,
                &["backup", "main", &name_of(&segments[0]), &fetched_text],
            ]
            .concat(),
        )
        .ok();
        assert!(
            fs::read(&fetched).unwrap() == fs::read(&segments[0]).unwrap(),
            "{options:?}"
        );
    }
    // Barman gives one file for each connection, also ahead.
    let asked_before = ssh.commands().len();
    fetch(&["-p", "1", "backup", "main", &name_of(&segments[0]), &fetched_text]).ok();
    until("the next one is fetched", || {
        let commands = ssh.commands();
        let mut asked = commands.iter().skip(asked_before);
        asked.any(|line| line.ends_with(&format!("main {}", name_of(&segments[1]))))
    });
    // Barman ends with 1 for all of these. A home that is not mounted has no backup, as this one.
    let fetch_absent = || fetch(&["backup", "main", "0000000100000000000000F0", &fetched_text]);
    fetch_absent().refused(201).says(&["is its directory mounted?"]);
    let info = "begin_time=2026-01-01 00:00:00+00:00\nend_time=2026-01-01 00:00:01+00:00\nmode=postgres\nserver_name=main\n\
                begin_wal=000000010000000000000002\nend_wal=000000010000000000000002\nsize=1\nstatus=DONE\nsystemid=1\n\
                timeline=1\nversion=180000\nxlog_segment_size=1048576\n";
    site.make_directory("barman_home/main/meta");
    site.make_directory("barman_home/main/base/20260101T000000/data");
    site.write_file(
        "barman_home/main/meta/20260101T000000-backup.info",
        info.as_bytes(),
    );
    assert_eq!(fetch_absent().code(), Some(1));
    fetch(&["backup", "nosuch", &name_of(&segments[0]), &fetched_text]).refused(201);
    fs::write(home.join("main/incoming").join(name_of(&segments[2])), "damaged").unwrap();
    fetch(&["backup", "main", &name_of(&segments[2]), &fetched_text]).refused(201);
    ssh.cut();
    fetch(&["backup", "main", &name_of(&segments[0]), &fetched_text]).refused(255);
    ssh.mend();
}
