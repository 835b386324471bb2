//! The checks of a running server.

use std::env;
use std::path::Path;
use std::process::Command;

use nix::unistd::{Uid, User};

use super::client::{self, Ended, Stdout};
use super::server::{HAS_EVENT_TRIGGERS_SETTING, Server};
use super::workspace::{PORT, Workspace};
use super::{Failure, Stop, one_line};
use crate::error::Error;
use crate::instance::Instance;
use crate::signals::Interruption;

/// Nearly every cluster has one of these databases. All have `template1`, unless it was removed on purpose.
const DATABASES: [&str; 2] = ["postgres", "template1"];

/// The superuser's usual name.
const USUAL_USER: &str = "postgres";

/// Settings of a session: the server's own settings must not cancel or refuse our statements.
const SESSION: &str = "-c statement_timeout=0 -c lock_timeout=0 -c default_transaction_read_only=off";

const SUPERUSER: &str = "SELECT rolname FROM pg_roles WHERE rolsuper AND rolcanlogin ORDER BY oid LIMIT 1";

/// Sessions of a superuser.
#[derive(Debug)]
pub(super) struct Client<'a> {
    instance: &'a Instance,
    server: &'a Server,
    workspace: &'a Workspace,
    interruption: &'a Interruption,
    database: String,
    user: String,
}

impl<'a> Client<'a> {
    /// Finds a superuser to log in as: only the database knows the names. `users` are tried first.
    pub(super) fn connect(
        instance: &'a Instance,
        server: &'a Server,
        workspace: &'a Workspace,
        interruption: &'a Interruption,
        users: &[String],
    ) -> Result<Self, Stop> {
        let mut client = Self {
            instance,
            server,
            workspace,
            interruption,
            database: String::new(),
            user: String::new(),
        };
        let own = User::from_uid(Uid::effective())
            .ok()
            .flatten()
            .map(|user| user.name);
        let users = users.iter().cloned().chain([USUAL_USER.to_owned()]).chain(own);
        let mut last = String::new();
        for user in users {
            for database in DATABASES {
                (client.user, client.database) = (user.clone(), database.to_owned());
                let answer = client.try_query(database, SUPERUSER)?;
                if answer.status.success() {
                    client.user = value(&answer.said).to_owned();
                    return match client.user.is_empty() {
                        true => Err(Error::failed("No superuser of this backup can log in").into()),
                        false => Ok(client),
                    };
                }
                let unknown = [
                    "does not exist",
                    "is not permitted to log in",
                    "not currently accepting",
                ];
                if !unknown.iter().any(|words| answer.said.contains(words)) {
                    return Err(client.failure("Cannot connect", &answer.said).into());
                }
                last = error_in(&answer.said);
            }
        }
        Err(
            Error::failed(format!("Cannot connect to the server that was started: {last}"))
                .hint("Name a user of the database with PGUSER in the environment")
                .into(),
        )
    }

    /// The version that the server reports: "18.1".
    pub(super) fn version(&self) -> Result<String, Stop> {
        let version = self.query(&self.database, "SHOW server_version")?;
        let number = value(&version).split_whitespace().next();
        Ok(number.unwrap_or_default().to_owned())
    }

    /// Connects to every database that allows connections, and reads its catalog.
    pub(super) fn catalogs(&self) -> Result<(), Stop> {
        self.query_all("SELECT count(*) FROM pg_class")
    }

    fn query_all(&self, sql: &str) -> Result<(), Stop> {
        // -2: what an interrupted DROP DATABASE leaves (`DATCONNLIMIT_INVALID_DB`).
        let names = "SELECT datname FROM pg_database WHERE datallowconn AND datconnlimit <> -2 ORDER BY oid";
        let names = self.query(&self.database, names)?;
        for database in values(&names) {
            self.query(database, sql)?;
        }
        Ok(())
    }

    /// Runs a file of SQL. The test fails with the first statement that fails.
    pub(super) fn sql(&self, file: &Path, stdout: Stdout) -> Result<(), Stop> {
        let mut psql = self.command("psql", &self.database);
        psql.args(["-X", "-w", "-b", "-v", "ON_ERROR_STOP=1", "-f"])
            .arg(file);
        let ended = client::run(psql, stdout, self.interruption)?;
        // 1: psql itself failed; 2: the connection was lost; 3: a statement failed.
        match ended.status.code() {
            Some(0) => {
                let _unheard = crate::progress::write_stderr(ended.said.as_bytes());
                Ok(())
            }
            Some(3) => Err(Stop::Failed(Failure {
                message: error_in(&ended.said),
                details: ended.said,
            })),
            Some(2) => Err(self.failure("The server has gone", &ended.said).into()),
            _ => Err(Error::failed(format!("psql: {}", one_line(&ended.said))).into()),
        }
    }

    /// Reads and checks all tables and B-trees with `pg_amcheck`.
    pub(super) fn amcheck(&self) -> Result<(), Stop> {
        let available = "SELECT count(*) FROM pg_available_extensions WHERE name = 'amcheck'";
        if value(&self.query(&self.database, available)?) != "1" {
            let message = "This PostgreSQL has pg_amcheck, but not the extension amcheck";
            return Err(Error::failed(message)
                .hint("Install the package with PostgreSQL's own extensions (contrib)")
                .into());
        }
        if self.instance.major() < HAS_EVENT_TRIGGERS_SETTING {
            // Installing the extension must not run event triggers.
            self.query_all("UPDATE pg_event_trigger SET evtenabled = 'D' WHERE evtenabled <> 'D'")?;
        }
        let mut pg_amcheck = self.command("pg_amcheck", &self.database);
        pg_amcheck.args(["--all", "--install-missing", "--heapallindexed", "-w"]);
        let ended = client::run(pg_amcheck, Stdout::Kept, self.interruption)?;
        if ended.status.success() {
            return Ok(());
        }
        Err(Stop::Failed(Failure {
            message: format!("pg_amcheck: {}", first_finding(&ended.said)),
            details: ended.said,
        }))
    }

    fn query(&self, database: &str, sql: &str) -> Result<String, Stop> {
        let ended = self.try_query(database, sql)?;
        if ended.status.success() {
            return Ok(ended.said);
        }
        let what = format!("Database {database}, {sql}");
        Err(self.failure(&what, &ended.said).into())
    }

    /// The answer, in the format for [`values`], or the errors.
    fn try_query(&self, database: &str, sql: &str) -> Result<Ended, Error> {
        let mut psql = self.command("psql", database);
        psql.args(["-XAtq0w", "-v", "ON_ERROR_STOP=1", "-c", sql]);
        client::run(psql, Stdout::Kept, self.interruption)
    }

    fn failure(&self, what: &str, said: &str) -> Failure {
        self.server.failure(format!("{what}: {}", error_in(said)))
    }

    /// A client program, run as the server's user. Its environment names this server and no other.
    fn command(&self, program: &str, database: &str) -> Command {
        let mut command = self.instance.command(program);
        for (name, _) in env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"PG") {
                command.env_remove(name);
            }
        }
        command
            .env("PGHOST", self.workspace.sockets())
            .env("PGPORT", PORT.to_string())
            .env("PGUSER", &self.user)
            .env("PGDATABASE", database)
            .env("PGOPTIONS", SESSION)
            .env("PGAPPNAME", "barmanfs");
        command
    }
}

/// The values of the only column, as `psql -0` prints them.
fn values(answer: &str) -> impl Iterator<Item = &str> {
    answer.split('\0').filter(|value| !value.is_empty())
}

/// The first value.
fn value(answer: &str) -> &str {
    values(answer).next().unwrap_or_default()
}

/// The first error in a client program's output, in one line: "check.sql:3: ERROR: relation "a" does not exist".
fn error_in(said: &str) -> String {
    let is_error = |line: &&str| {
        ["ERROR:", "FATAL:", "PANIC:", "error:"]
            .iter()
            .any(|word| line.contains(word))
    };
    let line = said.lines().find(is_error).unwrap_or(said);
    let line = line.strip_prefix("psql:").map_or(line, str::trim_start);
    // The message begins with the path of the socket.
    let from = line
        .find(" failed: FATAL:")
        .map_or(0, |at| at + " failed: ".len());
    one_line(line.get(from..).unwrap_or(line))
}

/// `pg_amcheck` prints the relation in one line, and the fault in the next.
fn first_finding(said: &str) -> String {
    let mut lines = said.lines().filter(|line| !line.trim().is_empty());
    let first = lines.next().unwrap_or("it failed without a word");
    let more = lines
        .next()
        .filter(|line| line.starts_with(' '))
        .unwrap_or_default();
    one_line(&format!("{first} {more}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_reported_in_one_line() {
        let said = "psql:/srv/check.sql:3: NOTICE:  hm\npsql:/srv/check.sql:4: ERROR:  relation \"a\" does not exist\n\
                    LINE 1: SELECT * FROM a;\n                      ^\nSTATEMENT:  SELECT * FROM a;\n";
        assert_eq!(
            error_in(said),
            "/srv/check.sql:4: ERROR: relation \"a\" does not exist"
        );
        let said = "psql: error: connection to server on socket \"/tmp/s/.s.PGSQL.1\" failed: FATAL:  role \"a\" does not exist\n";
        assert_eq!(error_in(said), "FATAL: role \"a\" does not exist");
        assert_eq!(error_in("nothing of the kind\n"), "nothing of the kind");
    }

    #[test]
    fn a_finding_names_its_relation() {
        let said = "heap table \"app.public.noise\", block 17, offset 3:\n    xmin 1 precedes\nbtree index \"app.public.i\":\n";
        assert_eq!(
            first_finding(said),
            "heap table \"app.public.noise\", block 17, offset 3: xmin 1 precedes"
        );
        assert_eq!(first_finding("pg_amcheck: error: a\nb\n"), "pg_amcheck: error: a");
    }
}
