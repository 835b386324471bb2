//! Counted commits: all acknowledged ones must be there, whatever has been killed since.

use super::process::{COMMAND_LIMIT, run, wait};
use super::{PgServer, Site};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Stdio};

/// Commits that one connection tries; more than it can finish.
const SCRIPT_COMMITS: u64 = 20_000;

/// A psql that inserts numbers one by one and prints each when its commit has returned.
pub(crate) struct Committer {
    number: u32,
    script: PathBuf,
    printed: PathBuf,
    psql: Option<Child>,
    next: u64,
    returned: Vec<u64>,
}

impl Committer {
    /// Makes this many, without starting them.
    pub(crate) fn several(site: &Site, count: u32) -> Vec<Self> {
        (0..count).map(|number| Self::new(site, number)).collect()
    }

    /// Makes the table for the commits.
    pub(crate) fn make_table(server: &PgServer) {
        server.query("CREATE TABLE counted (client int, n bigint)");
    }

    fn new(site: &Site, number: u32) -> Self {
        Self {
            number,
            script: site.write_file(&format!("client{number}.sql"), b""),
            printed: site.write_file(&format!("client{number}.out"), b""),
            psql: None,
            next: 0,
            returned: Vec::new(),
        }
    }

    pub(crate) fn start(&mut self, server: &PgServer) {
        let mut script = fs::File::create(&self.script).expect("Cannot write a script");
        let numbers = self.next..self.next + SCRIPT_COMMITS;
        let text: String = numbers
            .map(|n| format!("INSERT INTO counted VALUES ({}, {n});\n\\echo {n}\n", self.number))
            .collect();
        script.write_all(text.as_bytes()).expect("Cannot write a script");
        // A number without an answer is not tried again.
        self.next += SCRIPT_COMMITS;
        let psql = server
            .client("psql")
            .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-f"])
            .arg(&self.script)
            .stdin(Stdio::null())
            .stdout(fs::File::create(&self.printed).expect("Cannot write"))
            .stderr(Stdio::null())
            .spawn()
            .expect("Cannot run psql");
        self.psql = Some(psql);
    }

    /// Reads the output; psql ends with its server. Does nothing for one that was not started again.
    pub(crate) fn collect(&mut self) {
        let Some(mut psql) = self.psql.take() else {
            return;
        };
        wait(&mut psql, COMMAND_LIMIT).expect("psql ends when its server is gone");
        let printed = fs::read_to_string(&self.printed).expect("Cannot read");
        let numbers = printed.lines().map(|line| line.parse::<u64>().expect("a number"));
        self.returned.extend(numbers);
    }

    /// Commits that returned.
    pub(crate) fn returned(&self) -> usize {
        self.returned.len()
    }
}

/// All acknowledged commits are there.
#[track_caller]
pub(crate) fn assert_none_lost(server: &PgServer, committers: &[Committer]) {
    let sql = "SELECT client, n FROM counted ORDER BY client, n";
    let found = run(server
        .client("psql")
        .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-F", " ", "-c", sql]))
    .ok()
    .text();
    let found: BTreeSet<(u32, u64)> = found
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(client, n)| (client.parse().expect("a number"), n.parse().expect("a number")))
        .collect();
    for committer in committers {
        let lost: Vec<u64> = committer
            .returned
            .iter()
            .filter(|n| !found.contains(&(committer.number, **n)))
            .copied()
            .collect();
        assert!(
            lost.is_empty(),
            "{} of {} commits of client {} that returned are lost, {} first",
            lost.len(),
            committer.returned.len(),
            committer.number,
            lost[0]
        );
    }
}
