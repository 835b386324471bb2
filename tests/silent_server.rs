//! The kind: a wait on a socket that never ends. If a server sends nothing, or a byte now and then, each step has a
//! limit: connecting, TLS, the login as a whole, a query with its answer, a backup that receives nothing. And data that
//! a server sends unasked does not take unbounded memory.

use crate::common::Site;
use crate::common::fake::{FakeServer, LET_IN, let_in, message, parameter, problem};
use crate::common::proxy::{Fate, Proxy};
use crate::common::registry::topic;
use crate::common::{Install, PgServer};
use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

topic! {
    alone a_login_ends_with_its_time_limit,
    alone a_query_that_is_not_answered_ends,
    alone a_connection_that_is_not_accepted_ends,
    alone servers_that_are_silent_are_waited_for_together,
    alone a_signal_ends_a_login,
    alone unrequested_data_takes_no_memory,
    once a_backup_from_a_vanished_server_ends,
    once a_backup_from_a_slow_server_continues,
}

/// Sends two bytes per second, for ever.
fn drip(client: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    for byte in bytes.iter().chain(std::iter::repeat(&0)) {
        client.write_all(&[*byte])?;
        thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

/// Neither reads nor writes.
fn sleep(_client: TcpStream) -> io::Result<()> {
    thread::sleep(Duration::from_secs(1000));
    Ok(())
}

fn servers_that_are_silent_are_waited_for_together() {
    let silent = FakeServer::start(sleep);
    let site = Site::new();
    let conninfo = format!("{} connect_timeout=3", silent.conninfo());
    let names: Vec<String> = (0..6).map(|nth| format!("s{nth}")).collect();
    let servers: Vec<_> = names
        .iter()
        .map(|name| (name.as_str(), conninfo.as_str()))
        .collect();
    site.write_config_with(&servers);
    let began = Instant::now();
    let shown = site.ok(&["show-servers", "all"]);
    assert_eq!(shown.matches("does not answer").count(), 6, "{shown}");
    // One wait for all of them, of both connections of each.
    assert!(
        began.elapsed() < Duration::from_millis(5500),
        "{:?}",
        began.elapsed()
    );
}

/// Backs up from all of these at the same time. Each backup must fail within this many seconds and print all of the
/// words.
fn end_within(limit: u64, cases: &[(&str, String, &str)]) {
    let sites: Vec<(Site, fs::File)> = cases
        .iter()
        .map(|(_, conninfo, _)| {
            let site = Site::new();
            site.write_config_with(&[("main", conninfo.as_str())]);
            site.init();
            let log = fs::File::create(site.write_file("log", b"")).expect("Cannot open a log");
            (site, log)
        })
        .collect();
    let began = Instant::now();
    let mut children: Vec<_> = sites
        .iter()
        .map(|(site, log)| {
            site.barmanfs_command(&["backup", "main"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log.try_clone().expect("Cannot share a file"))
                .spawn()
                .expect("Cannot run barmanfs")
        })
        .collect();
    let mut stuck = Vec::new();
    for (child, (name, ..)) in children.iter_mut().zip(cases) {
        let left = Duration::from_secs(limit).saturating_sub(began.elapsed());
        if crate::common::process::wait(child, left).is_none() {
            stuck.push(*name);
        }
    }
    assert!(stuck.is_empty(), "Still waiting after {limit} s: {stuck:?}");
    for ((name, _, words), (site, _)) in cases.iter().zip(&sites) {
        let log = fs::read_to_string(site.path("log")).expect("Cannot read a log");
        assert!(log.contains(words), "{name} should have said {words:?}: {log}");
    }
}

fn a_login_ends_with_its_time_limit() {
    let dripping_notice = FakeServer::start(|mut client| {
        message(&mut client, false)?;
        drip(&mut client, &problem(b'N', "NOTICE", &"x".repeat(10_000)))
    });
    let dripping_parameters = FakeServer::start(|mut client| {
        message(&mut client, false)?;
        client.write_all(LET_IN)?;
        loop {
            drip_once(&mut client, &parameter("a", "b"))?;
        }
    });
    let silent = FakeServer::start(sleep);
    let silent_tls = FakeServer::start(|mut client| {
        message(&mut client, false)?;
        client.write_all(b"S")?;
        sleep(client)
    });
    let dripping_tls = FakeServer::start(|mut client| {
        message(&mut client, false)?;
        client.write_all(b"S")?;
        // A handshake record of 16 KiB.
        drip(&mut client, &[22, 3, 3, 0x40, 0])
    });
    let after_authentication = FakeServer::start(|mut client| {
        message(&mut client, false)?;
        client.write_all(LET_IN)?;
        sleep(client)
    });
    let limited = |server: &FakeServer| format!("{} connect_timeout=3", server.conninfo());
    let encrypted = |server: &FakeServer| limited(server).replace("sslmode=disable", "sslmode=require");
    let three = "did not answer within 3 s";
    end_within(
        20,
        &[
            ("a notice, byte by byte", limited(&dripping_notice), three),
            ("parameters, byte by byte", limited(&dripping_parameters), three),
            ("silence", limited(&silent), three),
            ("silence instead of TLS", encrypted(&silent), three),
            ("silence within TLS", encrypted(&silent_tls), three),
            ("TLS, byte by byte", encrypted(&dripping_tls), three),
            (
                "silence after authentication",
                limited(&after_authentication),
                three,
            ),
        ],
    );
}

fn drip_once(client: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    for byte in bytes {
        client.write_all(&[*byte])?;
        thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

/// Even without a limit in the connection string.
fn a_query_that_is_not_answered_ends() {
    let silent_login = FakeServer::start(sleep);
    let silent = FakeServer::start(|mut client| {
        let_in(&mut client)?;
        sleep(client)
    });
    let dripping = FakeServer::start(|mut client| {
        let_in(&mut client)?;
        message(&mut client, true)?;
        drip(&mut client, &problem(b'N', "NOTICE", &"x".repeat(10_000)))
    });
    let minute = "did not answer within 60 s";
    end_within(
        100,
        &[
            ("a login without limit", silent_login.conninfo(), minute),
            ("a query", silent.conninfo(), minute),
            ("an answer, byte by byte", dripping.conninfo(), minute),
        ],
    );
}

fn a_connection_that_is_not_accepted_ends() {
    let site = Site::new();
    let path = site.path(".s.PGSQL.5432");
    let listener = socket_without_room(&path);
    let conninfo = format!("host={} user=postgres connect_timeout=3", site.path("").display());
    end_within(20, &[("a full queue", conninfo, "did not answer within 3 s")]);
    drop(listener);
}

/// A listening socket whose queue is full.
fn socket_without_room(path: &std::path::Path) -> Vec<rustix::fd::OwnedFd> {
    use rustix::net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
    };
    let address = SocketAddrUnix::new(path).expect("a short path");
    let socket = |flags| socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).expect("a socket");
    let listener = socket(SocketFlags::empty());
    bind(&listener, &address).expect("Cannot bind");
    listen(&listener, 0).expect("Cannot listen");
    crate::common::user::give(path);
    let mut sockets = vec![listener];
    loop {
        let client = socket(SocketFlags::NONBLOCK);
        let connected = connect(&client, &address);
        sockets.push(client);
        if connected.is_err() {
            return sockets;
        }
    }
}

fn a_signal_ends_a_login() {
    let silent = FakeServer::start(sleep);
    let site = Site::new();
    site.write_config_with(&[("main", &silent.conninfo())]);
    site.init();
    let mut child = site.spawn(&["backup", "main"]);
    thread::sleep(Duration::from_secs(2));
    let process = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(process, rustix::process::Signal::INT).expect("Cannot signal");
    let status = crate::common::process::wait(&mut child, Duration::from_secs(5));
    assert!(status.is_some(), "It goes on waiting");
}

fn unrequested_data_takes_no_memory() {
    let parameters = FakeServer::start(|mut client| {
        message(&mut client, false)?;
        client.write_all(LET_IN)?;
        let value = "v".repeat(4000);
        for number in 0..200_000 {
            client.write_all(&parameter(&format!("name{number}"), &value))?;
        }
        sleep(client)
    });
    let warnings = FakeServer::start(|mut client| {
        message(&mut client, false)?;
        client.write_all(LET_IN)?;
        for _ in 0..60 {
            client.write_all(&problem(b'N', "WARNING", &"w".repeat(5_000_000)))?;
        }
        sleep(client)
    });
    for server in [parameters, warnings] {
        let site = Site::new();
        site.write_config_with(&[("main", &format!("{} connect_timeout=20", server.conninfo()))]);
        site.init();
        let mut child = site.spawn(&["backup", "main"]);
        let mut peak_kb = 0;
        while child.try_wait().expect("Cannot wait for a child").is_none() {
            let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kb = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
            peak_kb = peak_kb.max(kb.unwrap_or_default());
            thread::sleep(Duration::from_millis(10));
        }
        assert!((1..150_000).contains(&peak_kb), "It took {peak_kb} kB");
    }
}

/// A server whose host vanishes in the middle of a backup: no data arrives, and new connections fail.
fn a_backup_from_a_vanished_server_ends(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    let stalled = stalling(&site, &server, None);
    let began = Instant::now();
    let run = site.barmanfs(&["backup", "main", "--fast-checkpoint"]);
    run.refused(1)
        .says(&["has sent nothing for", "cannot be reached by another connection"]);
    assert!(began.elapsed() < Duration::from_secs(170));
    assert!(stalled.load(Ordering::Relaxed));
}

/// A server that is only slow.
fn a_backup_from_a_slow_server_continues(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    stalling(&site, &server, Some(Duration::from_secs(70)));
    let run = site.barmanfs(&["backup", "main", "--fast-checkpoint"]).ok();
    run.says(&["has sent nothing for", "is waited for"]);
    assert_eq!(site.backups().pop().expect("a backup")["status"], "DONE");
}

/// Puts a proxy in front of the server that stalls in the middle of a backup: for some time, in which it answers other
/// connections, or for ever.
fn stalling(site: &Site, server: &PgServer, time: Option<Duration>) -> &'static AtomicBool {
    let stalled: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(false)));
    let (mut bytes, sockets) = (0, server.sockets());
    let proxy = Proxy::start(&sockets, move |payload| {
        bytes += payload.len();
        if bytes > 1_000_000 && !stalled.swap(true, Ordering::Relaxed) {
            thread::sleep(time.unwrap_or(Duration::from_secs(1000)));
        }
        Fate::Pass
    });
    // Between them, another proxy that leaves new connections unanswered once the first one has stalled.
    let inner = proxy.conninfo();
    let port = inner
        .split("port=")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .expect("a port")
        .to_owned();
    let outer = FakeServer::start(move |client| {
        if stalled.load(Ordering::Relaxed) && time.is_none() {
            return sleep(client);
        }
        let server = TcpStream::connect(format!("127.0.0.1:{port}"))?;
        let (mut from_server, mut to_client) = (server.try_clone()?, client.try_clone()?);
        thread::spawn(move || {
            let _ = io::copy(&mut from_server, &mut to_client);
            let _ = to_client.shutdown(std::net::Shutdown::Both);
        });
        let (mut from_client, mut to_server) = (client, server);
        let mut buffer = [0; 8192];
        loop {
            match from_client.read(&mut buffer)? {
                0 => return to_server.shutdown(std::net::Shutdown::Write),
                length => to_server.write_all(&buffer[..length])?,
            }
        }
    });
    site.write_config_with(&[("main", &outer.conninfo())]);
    stalled
}
