//! Which host writes into a repository in a bucket: one at a time.
//!
//! `hosts/<n>` are created one after the other, and the newest counts. The host that creates the next number has taken the repository
//! over. The one before finds that out by asking for the number behind its own, which it does before it puts or removes
//! a pack. A request that is under way at that moment still arrives: so nobody takes over while the other host writes.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use barmanfs_store::sync::lock;
use barmanfs_store::{Error, RecordId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::bucket::Bucket;

const DIRECTORY: &str = "hosts";

/// The file that names the host.
const HOST: &str = "host";

/// The file with the newest number that the host has seen.
const NEWEST: &str = "newest-host";

/// Who writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The id of the host's cache.
    pub host: String,
    /// The name of the host.
    pub name: String,
}

/// What a host knows of who writes.
#[derive(Debug)]
pub struct Claim {
    bucket: Arc<Bucket>,
    directory: PathBuf,
    us: OnceLock<Holder>,
    /// The newest number, and whose it is.
    seen: Mutex<Option<(u64, Holder)>>,
}

impl Claim {
    /// Whether some host has written into a repository in this bucket: then it is no mere copy.
    ///
    /// # Errors
    /// When the bucket cannot be read.
    pub fn is_made(bucket: &Bucket) -> Result<bool> {
        Ok(bucket.size(&key(1))?.is_some())
    }

    /// The claims of a bucket, as the host sees them whose files are in `directory`.
    #[must_use]
    pub fn of(bucket: Arc<Bucket>, directory: &Path) -> Self {
        let seen = fs::read(directory.join(NEWEST))
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok());
        Self {
            bucket,
            directory: directory.to_path_buf(),
            us: OnceLock::new(),
            seen: Mutex::new(seen),
        }
    }

    /// This host. It gets an id when it has none.
    fn us(&self) -> Result<&Holder> {
        if let Some(us) = self.us.get() {
            return Ok(us);
        }
        let host = host_in(&self.directory.join(HOST))?;
        let name = rustix::system::uname();
        let name = name.nodename().to_string_lossy().into_owned();
        Ok(self.us.get_or_init(|| Holder { host, name }))
    }

    /// Whether this host writes, as far as it remembers.
    #[must_use]
    pub fn seems_ours(&self) -> bool {
        let seen = lock(&self.seen).as_ref().map(|(_, holder)| holder.clone());
        seen.is_some_and(|holder| self.is_us(&holder).unwrap_or(false))
    }

    /// Who writes; `None` before the first host has written.
    ///
    /// # Errors
    /// When the bucket cannot be read.
    pub fn holder(&self) -> Result<Option<Holder>> {
        self.holder_by(&self.bucket)
    }

    /// Whether this host still writes, asked through `bucket`, which may wait for less long.
    ///
    /// # Errors
    /// When the bucket cannot be read.
    pub fn is_still_ours(&self, bucket: &Bucket) -> Result<bool> {
        match self.holder_by(bucket)? {
            Some(holder) => self.is_us(&holder),
            None => Ok(false),
        }
    }

    /// Who writes, as it was when that was asked last.
    #[must_use]
    pub fn known(&self) -> Option<Holder> {
        lock(&self.seen).as_ref().map(|(_, holder)| holder.clone())
    }

    fn holder_by(&self, bucket: &Bucket) -> Result<Option<Holder>> {
        let mut seen = lock(&self.seen);
        let before = seen.as_ref().map(|(number, _)| *number);
        if seen.is_none() {
            let mut newest = None;
            bucket.list(DIRECTORY, &mut |key, _| {
                newest = newest.max(number_of(key));
                Ok(())
            })?;
            if let Some(newest) = newest {
                *seen = Some((
                    newest,
                    read(bucket, newest)?.ok_or_else(|| self.vanished(newest))?,
                ));
            }
        }
        loop {
            let next = seen.as_ref().map_or(1, |(number, _)| number + 1);
            match read(bucket, next)? {
                Some(holder) => *seen = Some((next, holder)),
                None => break,
            }
        }
        if seen.as_ref().map(|(number, _)| *number) != before {
            self.remember(seen.as_ref());
        }
        Ok(seen.as_ref().map(|(_, holder)| holder.clone()))
    }

    /// Whether this host writes.
    ///
    /// # Errors
    /// When the bucket cannot be read.
    pub fn is_ours(&self) -> Result<bool> {
        self.is_still_ours(&self.bucket)
    }

    /// Makes this host the one that writes, if there is none.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the host that writes; when the bucket cannot be read or written.
    pub fn require(&self) -> Result<()> {
        let holder = match self.holder()? {
            None => {
                self.create_next()?;
                self.holder()?
            }
            known => known,
        };
        match holder {
            Some(holder) if self.is_us(&holder)? => Ok(()),
            Some(holder) => Err(self.refusal(&holder)),
            None => Err(self.vanished(1)),
        }
    }

    /// Takes the repository over. Returns whose it was.
    ///
    /// # Errors
    /// When another host takes it over at the same moment; when the bucket cannot be read or written.
    pub fn take_over(&self) -> Result<Option<Holder>> {
        let before = self.holder()?;
        let is_ours = match &before {
            Some(holder) => self.is_us(holder)?,
            None => false,
        };
        if !is_ours {
            self.create_next()?;
        }
        self.require()?;
        Ok(before)
    }

    fn is_us(&self, holder: &Holder) -> Result<bool> {
        Ok(holder.host == self.us()?.host)
    }

    fn refusal(&self, holder: &Holder) -> Error {
        let Holder { host, name } = holder;
        Error::Invalid(format!(
            "{} is written by host {name} (cache {host}), and one host writes at a time. When nothing writes there any more, take \
             it over with 'barmanfs init --take-over' on this host",
            self.bucket.place()
        ))
    }

    /// One of several hosts succeeds.
    fn create_next(&self) -> Result<()> {
        let next = lock(&self.seen).as_ref().map_or(1, |(number, _)| number + 1);
        let text = serde_json::to_vec(self.us()?).map_err(|error| Error::Invalid(error.to_string()))?;
        self.bucket.put(&key(next), &Bytes::from(text)).map(drop)
    }

    fn vanished(&self, number: u64) -> Error {
        Error::Invalid(format!(
            "{}/{} is listed, and is not there",
            self.bucket.place(),
            key(number)
        ))
    }

    /// Only spares requests.
    fn remember(&self, seen: Option<&(u64, Holder)>) {
        let newest = self.directory.join(NEWEST);
        let write = || -> std::io::Result<()> {
            let text = serde_json::to_vec(&seen)?;
            fs::rename(written(&newest, &text)?, &newest)
        };
        if let Err(error) = write() {
            tracing::debug!("Cannot write {}: {error}", newest.display());
        }
    }
}

/// Writes a new file beside another one, and returns its path.
fn written(beside: &Path, bytes: &[u8]) -> std::io::Result<PathBuf> {
    let random = RecordId::random().map_err(std::io::Error::other)?;
    let path = beside.with_extension(format!("tmp-{random}"));
    File::create_new(&path).and_then(|mut file| file.write_all(bytes))?;
    Ok(path)
}

fn read(bucket: &Bucket, number: u64) -> Result<Option<Holder>> {
    let Some(found) = bucket.get(&key(number))? else {
        return Ok(None);
    };
    let holder = serde_json::from_slice(&found.bytes);
    holder
        .map(Some)
        .map_err(|error| Error::damaged(format!("{}/{}", bucket.place(), key(number)), error.to_string()))
}

fn key(number: u64) -> String {
    format!("{DIRECTORY}/{number:08}")
}

fn number_of(name: &str) -> Option<u64> {
    let number = name.rsplit('/').next()?.parse().ok()?;
    (key(number) == name).then_some(number)
}

/// The id in the file, which one of several processes makes.
fn host_in(file: &Path) -> Result<String> {
    let read = || match fs::read_to_string(file) {
        Ok(text) => Ok(text.strip_suffix('\n').map(str::to_owned)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", file, error)),
    };
    if let Some(host) = read()? {
        return Ok(host);
    }
    let id = RecordId::random()?;
    let make = || -> std::io::Result<()> {
        let temporary = written(file, format!("{id}\n").as_bytes())?;
        match fs::hard_link(&temporary, file) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        fs::remove_file(&temporary)
    };
    make().map_err(|source| Error::io("write", file, source))?;
    let host = read()?;
    host.ok_or_else(|| Error::Invalid(format!("{} is damaged: remove it", file.display())))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use object_store::memory::InMemory;

    use super::*;

    fn hosts() -> (tempfile::TempDir, [Claim; 2]) {
        let directory = tempfile::tempdir().unwrap();
        let bucket = Bucket::on(
            Arc::new(InMemory::new()),
            "p",
            "memory".to_owned(),
            Duration::from_secs(5),
        );
        let bucket = Arc::new(bucket.unwrap());
        let claims = ["a", "b"].map(|name| {
            let home = directory.path().join(name);
            fs::create_dir(&home).unwrap();
            Claim::of(Arc::clone(&bucket), &home)
        });
        (directory, claims)
    }

    #[test]
    fn one_host_writes_until_another_takes_over() {
        let (_directory, [a, b]) = hosts();
        assert_eq!(a.holder().unwrap(), None);
        a.require().unwrap();
        a.require().unwrap();
        assert!(a.is_ours().unwrap() && a.seems_ours() && !b.is_ours().unwrap());
        let refused = b.require().unwrap_err().to_string();
        assert!(refused.contains("--take-over"), "{refused}");
        assert_eq!(
            b.take_over().unwrap(),
            a.holder().unwrap().map(|_| a.us().unwrap().clone())
        );
        b.require().unwrap();
        assert!(a.require().is_err() && !a.seems_ours());
        a.take_over().unwrap();
        assert!(b.require().is_err());
        a.require().unwrap();
    }

    #[test]
    fn of_hosts_that_begin_at_once_one_writes() {
        let (_directory, claims) = hosts();
        let won: Vec<bool> = std::thread::scope(|scope| {
            let threads: Vec<_> = claims
                .iter()
                .map(|claim| scope.spawn(|| claim.require().is_ok()))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(won.iter().filter(|won| **won).count(), 1);
    }

    #[test]
    fn a_host_is_known_by_its_file_and_another_process_of_it_goes_on() {
        let (directory, [a, b]) = hosts();
        a.require().unwrap();
        let again = Claim::of(Arc::clone(&a.bucket), &directory.path().join("a"));
        assert!(again.seems_ours());
        again.require().unwrap();
        fs::remove_dir_all(directory.path().join("a")).unwrap();
        fs::create_dir(directory.path().join("a")).unwrap();
        let lost = Claim::of(Arc::clone(&a.bucket), &directory.path().join("a"));
        assert!(!lost.seems_ours() && lost.require().is_err());
        drop(b);
    }
}
