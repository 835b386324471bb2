//! The data that a server sends in BASE_BACKUP, as files: the same archives and manifest that `pg_basebackup -Ft` would
//! write in the program's place. So a test can do with PostgreSQL's own tools what barmanfs does with exactly the same
//! bytes.

use super::proxy::{Fate, Proxy};
use super::user::give;
use super::{PgServer, Site};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Sits between the program and a server of PostgreSQL 15 or later.
pub(crate) struct Recorder {
    proxy: Proxy,
    tape: Arc<Mutex<Tape>>,
}

#[derive(Default)]
struct Tape {
    directory: PathBuf,
    file: Option<File>,
}

impl Recorder {
    pub(crate) fn start(server: &PgServer) -> Self {
        let tape: Arc<Mutex<Tape>> = Arc::default();
        let written = Arc::clone(&tape);
        let proxy = Proxy::start(&server.sockets(), move |payload| {
            written.lock().expect("no recorder panics").take(payload);
            Fate::Pass
        });
        Self { proxy, tape }
    }

    pub(crate) fn conninfo(&self) -> String {
        self.proxy.conninfo()
    }

    /// From now on the data goes into this directory.
    pub(crate) fn record_into(&self, directory: PathBuf) {
        let mut tape = self.tape.lock().expect("no recorder panics");
        *tape = Tape {
            directory,
            file: None,
        };
    }
}

impl Tape {
    fn take(&mut self, payload: &[u8]) {
        match payload.split_first() {
            Some((b'n', names)) => {
                let name = names.split(|byte| *byte == 0).next().unwrap_or_default();
                self.open(std::str::from_utf8(name).expect("archives have plain names"));
            }
            Some((b'm', [])) => self.open("backup_manifest"),
            Some((b'd', bytes)) => {
                let file = self.file.as_mut().expect("data belongs to an archive");
                file.write_all(bytes).expect("Cannot write what is recorded");
            }
            _ => {}
        }
    }

    fn open(&mut self, name: &str) {
        let path = self.directory.join(name);
        self.file = Some(File::create(&path).expect("Cannot create a file to record into"));
        give(&path);
    }
}

/// Unpacks a recorded backup as `pg_basebackup -Fp` would have written it, its tablespaces inside.
pub(crate) fn unpack(site: &Site, tapes: &Path, name: &str) -> PathBuf {
    let to = site.path(name);
    let script = "set -e; mkdir -m 700 \"$to\"; cp \"$tapes/backup_manifest\" \"$to\"; tar -xf \"$tapes/base.tar\" -C \"$to\"; \
                  for tar in \"$tapes\"/[0-9]*.tar; do [ -e \"$tar\" ] || continue; oid=$(basename \"$tar\" .tar); \
                  rm \"$to/pg_tblspc/$oid\"; mkdir -m 700 \"$to/pg_tblspc/$oid\"; tar -xf \"$tar\" -C \"$to/pg_tblspc/$oid\"; done";
    site.sh(&format!(
        "to='{}'; tapes='{}'; {script}",
        to.display(),
        tapes.display()
    ))
    .ok();
    to
}
