//! The kind: a cluster whose members are made and replaced by Patroni. Its replicas come from the repository, a failover loses
//! nothing that was acknowledged, neither on the new leader nor in the archive, and a new cluster begins at a point in time.

use crate::common::process::{Run, run, until};
use crate::common::registry::topic;
use crate::common::user::command;
use crate::common::{Install, PgServer, Site};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

topic! {
    once a_cluster_lives_on_the_repository,
}

/// Commits that the load tries; more than it can finish.
const COMMITS: u32 = 200_000;

/// Patroni does not accept less. After so many seconds without its leader a cluster elects another one.
const TTL_S: u32 = 20;

/// Where Patroni is, with etcd in the path.
fn patroni() -> Option<PathBuf> {
    let place =
        std::env::var("BARMANFS_TEST_PATRONI").unwrap_or("/var/cache/barmanfs-test/patroni".to_owned());
    let program = Path::new(&place).join("bin/patroni");
    let has_etcd = Command::new("etcd")
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    (program.exists() && has_etcd.is_ok()).then_some(program)
}

/// A port that nobody has.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("Cannot bind");
    listener.local_addr().expect("It has an address").port()
}

/// A process that is killed at the end.
struct Held(Child);

impl Drop for Held {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

/// A member of the cluster.
struct Member<'a> {
    site: &'a Site,
    install: &'static Install,
    name: String,
    port: u16,
    api: u16,
    process: Option<Held>,
}

impl<'a> Member<'a> {
    fn new(site: &'a Site, install: &'static Install, name: &str) -> Self {
        Self {
            site,
            install,
            name: name.to_owned(),
            port: free_port(),
            api: free_port(),
            process: None,
        }
    }

    fn data(&self) -> PathBuf {
        self.site.path(&self.name)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.site.path(&format!("{}.log", self.name))).unwrap_or_default()
    }

    fn barmanfs(&self) -> String {
        let (program, config) = (self.site.program(), self.site.config());
        format!("{} -c {}", program.display(), config.display())
    }

    /// Its configuration. `bootstrap` is the section for the first member.
    fn configure(&self, etcd: u16, scope: &str, bootstrap: &str) {
        let Self { name, port, api, .. } = self;
        let mut text = format!("scope: {scope}\nname: {name}\n");
        let _never_fails = write!(
            text,
            "restapi: {{listen: '127.0.0.1:{api}', connect_address: '127.0.0.1:{api}'}}\n\
             etcd3: {{host: '127.0.0.1:{etcd}'}}\n\
             bootstrap:\n  dcs:\n    ttl: {TTL_S}\n    loop_wait: 1\n    retry_timeout: 3\n    slots: {{barmanfs: {{type: physical}}}}\n{bootstrap}\
             postgresql:\n  listen: '127.0.0.1:{port}'\n  connect_address: '127.0.0.1:{port}'\n  data_dir: {data}\n  \
             bin_dir: {bin}\n  pgpass: {data}.pass\n  authentication:\n    superuser: {{username: postgres, password: x}}\n    \
             replication: {{username: postgres, password: x}}\n  parameters: {{unix_socket_directories: {site}}}\n  pg_hba:\n  \
             - host all all 127.0.0.1/32 trust\n  - host replication all 127.0.0.1/32 trust\n  - local all all trust\n  \
             create_replica_methods: [barmanfs]\n  barmanfs:\n    command: {barmanfs} patroni replica main\n    \
             keep_data: true\n    no_leader: true\n  recovery_conf:\n    restore_command: {barmanfs} get-wal main %f %p\n",
            data = self.data().display(),
            bin = self.install.bindir.display(),
            site = self.site.path("").display(),
            barmanfs = self.barmanfs(),
        );
        self.site.write_file(&format!("{name}.yml"), text.as_bytes());
    }

    fn start(&mut self, patroni: &Path) {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.site.path(&format!("{}.log", self.name)))
            .unwrap();
        let mut process = command(patroni, &self.site.path(""));
        process
            .arg(self.site.path(&format!("{}.yml", self.name)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.process = Some(Held(process.spawn().expect("Cannot run Patroni")));
    }

    fn query(&self, sql: &str) -> Run {
        let mut psql = command(self.install.program("psql"), &self.site.path(""));
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d"]).arg(format!(
            "host=127.0.0.1 port={} user=postgres dbname=postgres connect_timeout=3",
            self.port
        ));
        run(psql.args(["-c", sql]))
    }

    fn answers(&self, sql: &str, answer: &str) -> bool {
        let run = self.query(sql);
        run.code() == Some(0) && run.text().trim() == answer
    }

    fn is_leader(&self) -> bool {
        self.answers("SELECT pg_is_in_recovery()", "f")
    }

    /// Ends at once, with its server.
    fn kill(&mut self) {
        self.process = None;
        let pid = fs::read_to_string(self.data().join("postmaster.pid")).unwrap();
        self.site
            .sh(&format!("kill -9 {}", pid.lines().next().unwrap()))
            .ok();
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        self.process = None;
        crate::common::postgres::end_servers_of(&self.data());
    }
}

/// A psql that commits numbers on the leader, and prints each when its commit has returned.
struct Load {
    psql: Held,
    printed: PathBuf,
}

impl Load {
    fn start(site: &Site, leader: &Member<'_>) -> Self {
        let text: String = (0..COMMITS)
            .map(|n| format!("INSERT INTO counted VALUES ({n});\n\\echo {n}\n"))
            .collect();
        let script = site.write_file("load.sql", text.as_bytes());
        let printed = site.write_file("load.out", b"");
        let mut psql = command(leader.install.program("psql"), &site.path(""));
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d"])
            .arg(format!(
                "host=127.0.0.1 port={} user=postgres dbname=postgres",
                leader.port
            ))
            .arg("-f")
            .arg(script)
            .stdin(Stdio::null())
            .stdout(fs::File::create(&printed).unwrap())
            .stderr(Stdio::null());
        Self {
            psql: Held(psql.spawn().unwrap()),
            printed,
        }
    }

    fn returned(&self) -> BTreeSet<u32> {
        let text = fs::read_to_string(&self.printed).unwrap();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| line.parse().unwrap()).collect()
    }

    fn end(mut self) -> BTreeSet<u32> {
        let _gone = self.psql.0.wait();
        self.returned()
    }
}

fn numbers(run: &Run) -> BTreeSet<u32> {
    run.text().lines().map(|line| line.parse().unwrap()).collect()
}

fn start_etcd(site: &Site) -> (u16, Held) {
    let (client, peer) = (free_port(), free_port());
    let address = |port: u16| format!("http://127.0.0.1:{port}");
    let mut etcd = command("etcd", &site.path(""));
    etcd.arg("--data-dir")
        .arg(site.path("etcd"))
        .args([
            "--listen-client-urls",
            &address(client),
            "--advertise-client-urls",
            &address(client),
        ])
        .args([
            "--listen-peer-urls",
            &address(peer),
            "--initial-advertise-peer-urls",
            &address(peer),
        ])
        .args(["--initial-cluster", &format!("default={}", address(peer))])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    (client, Held(etcd.spawn().expect("Cannot run etcd")))
}

fn a_cluster_lives_on_the_repository(install: &'static Install) {
    let Some(patroni) = patroni() else {
        eprintln!("Without Patroni and etcd, nothing to test: scripts/test.sh gets them");
        return;
    };
    let site = Site::new();
    let (etcd, _etcd) = start_etcd(&site);
    let mut members: Vec<Member<'_>> = ["n1", "n2", "n3"]
        .map(|name| Member::new(&site, install, name))
        .into();
    let ports: Vec<String> = members.iter().map(|member| member.port.to_string()).collect();
    let conninfo = format!(
        "host=127.0.0.1,127.0.0.1,127.0.0.1 port={} target_session_attrs=read-write user=postgres dbname=postgres",
        ports.join(",")
    );
    site.write_config_with(&[("main", &conninfo)]);
    let config = fs::read_to_string(site.config()).unwrap();
    let slot = "streaming_archiver = on\nslot_name = barmanfs\n";
    site.write_file("barmanfs.conf", (config + slot).as_bytes());
    let archive = format!("{} wal-archive main %p", members[0].barmanfs());
    let bootstrap = format!(
        "    postgresql:\n      parameters: {{archive_mode: 'on', archive_command: '{archive}'}}\n  initdb: [data-checksums]\n"
    );
    for member in &members {
        member.configure(etcd, "demo", &bootstrap);
    }
    members[0].start(&patroni);
    until("the first member leads", || members[0].is_leader());
    members[0].query("CREATE TABLE counted (n int)").ok();
    site.init();
    site.ok(&["backup", "main", "--fast-checkpoint"]);
    let receiver = Held(site.spawn(&["receive-wal", "main"]));

    // Replicas come from the repository.
    for member in &mut members[1..] {
        member.start(&patroni);
    }
    until("both replicas stream", || {
        members[0].answers(
            "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'",
            "3",
        )
    });
    for member in &members[1..] {
        assert!(member.log().contains("Restored backup"), "{}", member.log());
    }

    // Each commit is safe in the archive and on a replica before it returns.
    let mut settings = command(patroni.with_file_name("patronictl"), &site.path(""));
    settings
        .args(["-c"])
        .arg(site.path("n1.yml"))
        .args(["edit-config", "demo", "--force", "-p"])
        .arg("synchronous_standby_names=FIRST 2 (barmanfs_receive_wal, n1, n2, n3)");
    run(&mut settings).ok();
    until("commits wait for the archive", || {
        members[0].answers(
            "SELECT sync_state FROM pg_stat_replication WHERE application_name = 'barmanfs_receive_wal'",
            "sync",
        )
    });
    let load = Load::start(&site, &members[0]);
    until("commits return", || load.returned().len() > 200);
    members[0].kill();
    let returned = load.end();
    let mut leader = None;
    until("another member leads", || {
        leader = members[1..].iter().position(Member::is_leader);
        leader.is_some()
    });
    let leader = &members[1 + leader.unwrap()];
    let there = numbers(&leader.query("SELECT n FROM counted").ok());
    assert!(
        returned.is_subset(&there),
        "{:?} are gone",
        returned.difference(&there)
    );

    // The archive follows the new leader, and has all of it.
    let moment = leader
        .query("SELECT clock_timestamp()")
        .ok()
        .text()
        .trim()
        .to_owned();
    leader.query("INSERT INTO counted SELECT 1000000").ok();
    let switched = leader
        .query("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
        .ok();
    leader.query("SELECT pg_switch_wal()").ok();
    let (name, copy) = (switched.text().trim().to_owned(), site.path("segment"));
    until("the switched segment is archived", || {
        let fetched = site.barmanfs(&["get-wal", "main", &name, copy.to_str().unwrap()]);
        fetched.code() == Some(0)
    });
    drop(receiver);
    let now = site.path("now");
    site.ok(&["restore", "main", "auto", now.to_str().unwrap()]);
    let mut copy = PgServer::on(install, &now);
    // Patroni has written another one into the original's.
    copy.configure("port = 5432\n");
    copy.start();
    copy.wait_until_promoted();
    let restored: BTreeSet<u32> = copy
        .query("SELECT n FROM counted")
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    assert!(returned.is_subset(&restored) && restored.contains(&1_000_000));
    copy.stop("fast");

    // A new cluster begins at a moment of the old one.
    let mut first = Member::new(&site, install, "m1");
    let barmanfs = first.barmanfs();
    first.configure(
        etcd,
        "demo2",
        &format!(
            "  method: barmanfs\n  barmanfs:\n    command: {barmanfs} patroni bootstrap main --target-time '{moment}'\n    \
             recovery_conf:\n      restore_command: {barmanfs} get-wal --replay --partial main %f %p\n      \
             recovery_target_time: '{moment}'\n      recovery_target_action: promote\n      \
             recovery_target_timeline: latest\n"
        ),
    );
    first.start(&patroni);
    until("the new cluster has a leader", || first.is_leader());
    let begun = numbers(&first.query("SELECT n FROM counted").ok());
    assert_eq!(begun, there);
}
