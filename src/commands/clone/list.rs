//! `barmanfs clone list`.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use barmanfs_catalog::{CloneDescription, Repository};
use barmanfs_pg::TimestampMicros;

use crate::cli::clone::ListArgs;
use crate::commands::App;
use crate::error::{Error, Outcome};
use crate::mounts::{Mounts, live};
use crate::output::{self, Align, Cell, Style, Table};
use crate::report::ListedClone;

const SECONDS_OF_A_DAY: u64 = 24 * 60 * 60;

/// Runs the command. This does not access a clone through a mount that does not serve it already.
pub(super) fn run(app: &mut App, args: &ListArgs) -> Result<Outcome, Error> {
    let repository = app.repository()?;
    let mounts = Mounts::of(&repository)?;
    let mut clones = Vec::new();
    for server in app.known_servers(&repository, &args.server)? {
        let configured = app.config.server(server.as_str());
        let max_bytes = configured.and_then(|server| server.clone_limits.max_bytes);
        for clone in repository.clones(&server)? {
            clones.push(ListedClone {
                max_bytes,
                ..listed(&repository, &mounts, clone)?
            });
        }
    }
    if args.json.json {
        app.out.json_list("clones", &clones)?;
    } else if clones.is_empty() {
        app.out.line("No clone")?;
    } else {
        app.out.table(&table(&clones, SystemTime::now().into()))?;
    }
    Ok(Outcome::Done)
}

fn listed(
    repository: &Repository,
    mounts: &Mounts<'_>,
    clone: CloneDescription,
) -> Result<ListedClone, Error> {
    let (server, name) = (clone.server, clone.name);
    let directory = repository.clone_directory(&server, &name);
    let written_bytes = allocated_bytes(&directory)
        .map_err(|error| Error::failed(format!("Cannot read {}: {error}", directory.display())))?;
    let serving = mounts.serving(&server, &name).map(|(_, path)| path);
    let found = mounts.server_on(&server, &name);
    if let Err(error) = &found {
        tracing::debug!("{error}");
    }
    // Neither yes nor no, if it is unknown.
    let is_running = found.as_ref().ok().map(Option::is_some);
    let running = found.ok().flatten().map(|found| found.running);
    let elsewhere = || {
        let mount = mounts.showing(&server).next()?;
        Some(live(mount, &server).join(name.as_str()))
    };
    Ok(ListedClone {
        path: serving.or_else(elsewhere),
        running: is_running,
        port: running.as_ref().map(|running| running.port),
        socket_directory: running.as_ref().map(|running| running.socket_directory.clone()),
        outlived_its_mount: running
            .as_ref()
            .is_some_and(|running| running.has_outlived_its_mount),
        process: running.map(|running| running.pid),
        origin: clone.origin,
        created_at: clone.created_at,
        max_bytes: None,
        written_bytes,
        server,
        name,
    })
}

/// Bytes that a directory and its content take in the file system.
fn allocated_bytes(directory: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = match entry.metadata() {
            // It was removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata?,
        };
        bytes += metadata.blocks() * 512;
        if metadata.is_dir() {
            bytes += allocated_bytes(&entry.path())?;
        }
    }
    Ok(bytes)
}

fn table(clones: &[ListedClone], now: TimestampMicros) -> Table {
    let mut table = Table::new(&[
        ("Server", Align::Left),
        ("Clone", Align::Left),
        ("Backup", Align::Left),
        ("Target", Align::Left),
        ("Age", Align::Right),
        ("Written", Align::Right),
        ("PostgreSQL", Align::Left),
        ("Path", Align::Left),
    ]);
    for clone in clones {
        let running = match clone.port {
            Some(_) if clone.outlived_its_mount => Cell::styled("without its mount", Style::Red),
            Some(port) => Cell::styled(place(port, clone), Style::Green),
            None if clone.running.is_none() => "unknown".into(),
            None => "-".into(),
        };
        let path = clone.path.as_ref().map(|path| path.display().to_string());
        table.row([
            clone.server.as_str().into(),
            clone.name.as_str().into(),
            clone.origin.backup.to_string().into(),
            clone
                .origin
                .target
                .clone()
                .unwrap_or_else(|| "-".to_owned())
                .into(),
            age(clone.created_at, now).into(),
            output::bytes(clone.written_bytes).into(),
            running,
            path.unwrap_or_else(|| "not mounted".to_owned()).into(),
        ]);
    }
    table
}

/// Where the server listens: in the clone itself, unless something else is mentioned.
fn place(port: u16, clone: &ListedClone) -> String {
    let elsewhere = clone
        .socket_directory
        .as_ref()
        .filter(|sockets| clone.path.as_ref() != Some(sockets));
    match elsewhere {
        Some(sockets) => format!("port {port} in {}", sockets.display()),
        None => format!("port {port}"),
    }
}

/// `12 s`, `2 h 03 min`, `5 d`
fn age(since: TimestampMicros, now: TimestampMicros) -> String {
    let age = Duration::from_secs(now.saturating_duration_since(since).as_secs());
    match age.as_secs() / SECONDS_OF_A_DAY {
        0 if age.as_secs() < 10 => format!("{} s", age.as_secs()),
        0 | 1 => output::duration(age),
        days => format!("{days} d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use barmanfs_catalog::CloneOrigin;
    use insta::assert_snapshot;
    use std::path::PathBuf;

    #[test]
    fn each_clone_has_its_line() {
        let made = TimestampMicros::from_unix_seconds(1_763_700_000);
        let described = |name: &str, target: Option<&str>, port: Option<u16>, sockets: &str| ListedClone {
            server: "main".parse().unwrap(),
            name: name.parse().unwrap(),
            origin: CloneOrigin {
                backup: "20261120T101500".parse().unwrap(),
                target: target.map(str::to_owned),
                copied_from: None,
            },
            created_at: made,
            written_bytes: 3 << 20,
            max_bytes: None,
            path: port.map(|_| PathBuf::from("/mnt/backups/main/live").join(name)),
            running: Some(port.is_some()),
            port,
            socket_directory: port.map(|_| PathBuf::from(sockets)),
            process: port.map(|_| 4711),
            outlived_its_mount: false,
        };
        let mut unknown = described("held", None, None, "");
        unknown.running = None;
        let clones = [
            described("test1", None, Some(25_432), "/mnt/backups/main/live/test1"),
            described(
                "team",
                None,
                Some(25_433),
                "/tmp/barmanfs-clone-0123456789abcdef-Xb3kQ1",
            ),
            described("before", Some("name:before"), None, ""),
            unknown,
        ];
        let later = TimestampMicros::from_unix_seconds(1_763_707_380);
        assert_snapshot!(table(&clones, later).render(false), @"
        Server  Clone   Backup           Target              Age   Written  PostgreSQL                                                 Path
        main    test1   20261120T101500  -            2 h 03 min  3.00 MiB  port 25432                                                 /mnt/backups/main/live/test1
        main    team    20261120T101500  -            2 h 03 min  3.00 MiB  port 25433 in /tmp/barmanfs-clone-0123456789abcdef-Xb3kQ1  /mnt/backups/main/live/team
        main    before  20261120T101500  name:before  2 h 03 min  3.00 MiB  -                                                          not mounted
        main    held    20261120T101500  -            2 h 03 min  3.00 MiB  unknown                                                    not mounted
        ");
        let days = TimestampMicros::from_unix_seconds(1_763_700_000 + 5 * 86_400);
        assert_eq!(
            (age(made, made), age(made, days)),
            ("0 s".to_owned(), "5 d".to_owned())
        );
    }
}
