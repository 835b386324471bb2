//! A private server that is removed with the test.

use std::fmt::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::User;
use tempfile::TempDir;

use crate::postgres::{Connection, Conninfo, Environment, Error, Mode};

/// The superuser connects over the Unix socket; every other user in one way over TCP.
const HBA: &str = "\
local     all,replication postgres                  trust
host      all,replication password_user 127.0.0.1/32 password
host      all,replication md5_user      127.0.0.1/32 md5
host      all,replication scram_user    127.0.0.1/32 scram-sha-256
hostssl   all,replication tls_user      127.0.0.1/32 scram-sha-256
hostnossl all,replication plain_user    127.0.0.1/32 scram-sha-256
hostssl   all,replication cert_user     127.0.0.1/32 cert
";

const ROLES: [&str; 6] = [
    "password_user",
    "md5_user",
    "scram_user",
    "tls_user",
    "plain_user",
    "cert_user",
];

/// The password of all users. The blank and the quote must survive in a connection string.
pub(super) const PASSWORD: &str = "se cr'et";

/// The directories of the programs of all installed versions.
pub(super) fn installations() -> Vec<PathBuf> {
    let found: Vec<PathBuf> = match std::env::var("BARMANFS_TEST_PG_BINDIRS") {
        Ok(list) => list
            .split(':')
            .filter_map(|item| item.split_once('='))
            .map(|(_, dir)| dir.into())
            .collect(),
        Err(_) => std::fs::read_dir("/usr/lib/postgresql")
            .map(|entries| entries.flatten().map(|entry| entry.path().join("bin")).collect())
            .unwrap_or_default(),
    };
    let found: Vec<PathBuf> = found
        .into_iter()
        .filter(|directory| directory.join("initdb").exists())
        .collect();
    assert!(
        !found.is_empty(),
        "These tests need PostgreSQL: install it or set BARMANFS_TEST_PG_BINDIRS"
    );
    found
}

pub(super) struct Server {
    pub(super) directory: TempDir,
    pub(super) port: u16,
    pub(super) has_tls: bool,
    bin: PathBuf,
}

impl Server {
    pub(super) fn start(bin: &Path) -> Self {
        let directory = tempfile::Builder::new().prefix("bfs").tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let mut server = Self {
            directory,
            port,
            has_tls: false,
            bin: bin.to_owned(),
        };
        server.give(server.directory.path());
        server.run(
            "initdb",
            &[
                "-k",
                "-N",
                "-A",
                "trust",
                "-U",
                "postgres",
                "-D",
                &server.path("data"),
            ],
        );
        server.make_certificates();
        server.configure();
        server.has_tls = server.try_start("on");
        if !server.has_tls {
            let without_tls: Vec<_> = HBA.lines().filter(|line| !line.starts_with("hostssl")).collect();
            std::fs::write(server.path("data/pg_hba.conf"), without_tls.join("\n") + "\n").unwrap();
            assert!(server.try_start("off"), "{}", server.log());
        }
        server.make_roles();
        server
    }

    pub(super) fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Gives a file or directory to the server's user. A server refuses to run as root.
    pub(super) fn give(&self, path: &Path) {
        if let Some(user) = server_user() {
            chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
        }
    }

    /// Runs one of the server's programs as the server's user.
    pub(super) fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self
            .command(&self.bin.join(program))
            .args(arguments)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {text}{errors}{}",
            self.log()
        );
        text
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.directory.path())
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LC_ALL", "C");
        if let Some(user) = server_user() {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command
    }

    fn openssl(&self, arguments: &str) {
        let output = self
            .command(Path::new("openssl"))
            .args(arguments.split(' '))
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "openssl: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Makes an authority, a server certificate with only a common name, one for a client, and a self-signed
    /// one.
    fn make_certificates(&self) {
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        for name in ["ca", "other"] {
            self.openssl(&format!(
                "req -x509 {key} -days 2 -subj /CN={name} -keyout {name}.key -out {name}.crt"
            ));
        }
        for (name, subject) in [("server", "localhost"), ("client", "cert_user")] {
            self.openssl(&format!(
                "req -new {key} -subj /CN={subject} -keyout {name}.key -out {name}.csr"
            ));
            std::fs::write(self.path("v3"), "basicConstraints=CA:FALSE\n").unwrap();
            self.openssl(&format!(
                "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile v3 -out {name}.crt"
            ));
        }
        self.openssl(&format!(
            "req -x509 {key} -days 2 -subj /CN=x -addext subjectAltName=DNS:localhost,IP:127.0.0.1 \
             -keyout self.key -out self.crt"
        ));
    }

    fn configure(&self) {
        let mut text = String::new();
        let directory = self.directory.path().display();
        writeln!(text, "listen_addresses = '127.0.0.1'\nport = {}", self.port).unwrap();
        writeln!(text, "unix_socket_directories = '{directory},@bfs-{}'", self.port).unwrap();
        writeln!(text, "ssl_ca_file = '{directory}/ca.crt'").unwrap();
        writeln!(
            text,
            "ssl_cert_file = '{directory}/server.crt'\nssl_key_file = '{directory}/server.key'"
        )
        .unwrap();
        text.push_str("fsync = off\nautovacuum = off\nwal_level = replica\nmax_wal_senders = 5\n");
        std::fs::write(self.path("data/postgresql.auto.conf"), text).unwrap();
        std::fs::write(self.path("data/pg_hba.conf"), HBA).unwrap();
    }

    fn try_start(&self, ssl: &str) -> bool {
        let options = format!("-c ssl={ssl}");
        let arguments = [
            "start",
            "-w",
            "-D",
            &self.path("data"),
            "-l",
            &self.path("log"),
            "-o",
            &options,
        ];
        let started = self
            .command(&self.bin.join("pg_ctl"))
            .args(arguments)
            .output()
            .unwrap()
            .status
            .success();
        assert!(
            started || self.log().contains("not supported by this build"),
            "{}",
            self.log()
        );
        started
    }

    fn make_roles(&self) {
        let quoted = PASSWORD.replace('\'', "''");
        for role in ROLES {
            let encryption = if role == "md5_user" {
                "md5"
            } else {
                "scram-sha-256"
            };
            self.sql(&format!("SET password_encryption = '{encryption}'; CREATE ROLE {role} LOGIN REPLICATION PASSWORD '{quoted}'"));
        }
    }

    /// The connection string of the superuser.
    pub(super) fn local(&self) -> String {
        format!(
            "host={} port={} user=postgres dbname=postgres",
            self.directory.path().display(),
            self.port
        )
    }

    /// A connection with an environment that has only an empty home.
    pub(super) fn connect(&self, conninfo: &str, mode: Mode) -> Result<Connection, Error> {
        let home = self.directory.path().join("home");
        Connection::connect(
            &Conninfo::parse(conninfo, &Environment::fixed("nobody", &home, &[]))?,
            mode,
        )
    }

    /// The first value of a statement's result.
    pub(super) fn sql(&self, text: &str) -> Option<String> {
        let mut connection = self.connect(&self.local(), Mode::Sql).unwrap();
        let results = connection.simple_query(text).unwrap();
        let result = results.last()?;
        result.text(0, result.columns().first()?).map(str::to_owned)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let data = self.path("data");
        let stopped = self
            .command(&self.bin.join("pg_ctl"))
            .args(["stop", "-m", "immediate", "-D", &data])
            .output();
        assert!(stopped.is_ok() || std::thread::panicking());
    }
}

/// The user that runs the server, if this process is root.
fn server_user() -> Option<User> {
    let named = |name| User::from_name(name).ok().flatten();
    nix::unistd::geteuid()
        .is_root()
        .then(|| named("postgres").or_else(|| named("nobody")).unwrap())
}
