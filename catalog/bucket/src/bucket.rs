//! Requests to a bucket: blocking, and repeated until they succeed or the caller's patience ends.

mod found;
mod old;

use std::fmt;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use barmanfs_store::{Error, threads};
use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::path::Path as Key;
use object_store::{
    Attribute, Attributes, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions,
};
use tokio::runtime::{Builder, Runtime};

pub use self::found::Found;
use self::found::{SHA256, sha256, stalled};
use crate::Result;
use crate::connect::{Client, connect};
use crate::location::{Location, Scheme};
use crate::own::OwnRequests;
use crate::rights;
use crate::settings::Settings;
use crate::trouble::Trouble;
use crate::versions::Versions;

/// Threads that wait for answers: requests wait far more than they work.
const THREADS: usize = 2;

/// One attempt may take this long, or as long as the caller's patience if that is shorter, and as much longer as its bytes
/// take at the slowest rate that is worth waiting for. An answer that stops in the middle is given up after this time.
const ATTEMPT: Duration = Duration::from_secs(60);
const SLOWEST_BYTES_PER_SECOND: u64 = 64 * 1024;

/// An object is put, and got as a whole, in memory. Writers end a pack at 64 MiB of frames; the last frame, the largest footer
/// and a last record that belongs to it come on top.
pub(crate) const OBJECT_MAX_BYTES: u64 = 128 * 1024 * 1024;

/// The shortest silence that counts as one, for those with little patience.
const SHORTEST_STALL: Duration = Duration::from_secs(1);

/// Pauses between attempts: doubled each time, of random length, so that many clients do not come back at once.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// Ends the names of AWS' directory buckets, which list in no order.
const EXPRESS: &str = "--x-s3";

/// A place in an object store.
#[derive(Clone)]
pub struct Bucket {
    store: Arc<dyn ObjectStore>,
    prefix: Key,
    /// As people name it.
    place: String,
    patience: Duration,
    scheme: Scheme,
    /// Objects of a directory have no metadata, and what fails there once fails again.
    is_directory: bool,
    /// Whether a listing that breaks off can go on behind the last key.
    lists_in_order: bool,
    storage_class: Option<String>,
    /// What only S3 is asked.
    own: Option<OwnRequests>,
    /// The versions that are read, where those are not the newest.
    versions: Option<Arc<Versions>>,
    runtime: Arc<Runtime>,
}

/// How a key came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// By this request.
    Now,
    /// Before, with the same bytes. An earlier attempt whose answer was lost counts as this, too.
    Before,
}

/// Why there is no answer that a caller could use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refused {
    Missing,
    Taken,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bucket")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

impl Bucket {
    /// A client of a place. It sends nothing yet.
    ///
    /// # Errors
    /// When the settings cannot be used.
    pub fn open(location: &Location, settings: &Settings) -> Result<Self> {
        let place = location.to_string();
        let Client { store, own } =
            connect(location, settings).map_err(|reason| Error::Invalid(format!("{place}: {reason}")))?;
        let prefix = match location.scheme {
            Scheme::Directory => "",
            _ => &location.prefix,
        };
        let mut bucket = Self::on(store, prefix, place, settings.patience)?;
        bucket.is_directory = location.scheme == Scheme::Directory;
        bucket.lists_in_order = !bucket.is_directory && !location.bucket.ends_with(EXPRESS);
        bucket.storage_class.clone_from(&settings.storage_class);
        (bucket.scheme, bucket.own) = (location.scheme, own);
        Ok(bucket)
    }

    /// A client of `store`.
    pub(crate) fn on(
        store: Arc<dyn ObjectStore>,
        prefix: &str,
        place: String,
        patience: Duration,
    ) -> Result<Self> {
        // The runtime panics without its threads.
        let workers = threads::can_start(THREADS)?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(workers)
            .thread_name("bucket")
            .enable_all()
            .build()
            .map_err(|source| Error::io("start threads for", Path::new(&place), source))?;
        Ok(Self {
            store,
            prefix: Key::from(prefix),
            place,
            patience,
            scheme: Scheme::S3,
            is_directory: false,
            lists_in_order: true,
            storage_class: None,
            own: None,
            versions: None,
            runtime: Arc::new(runtime),
        })
    }

    /// The same place for a caller who waits no longer than this for one request.
    #[must_use]
    pub fn within(&self, patience: Duration) -> Self {
        Self {
            patience,
            ..self.clone()
        }
    }

    /// For how long a request is repeated.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// What people call it.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Reads an object; `None` if there is none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn get(&self, key: &str) -> Result<Option<Found>> {
        self.read(key, None)
    }

    /// Reads bytes of an object, fewer where it ends; `None` if there is none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn get_range(&self, key: &str, offset: u64, bytes: u64) -> Result<Option<Found>> {
        self.read(key, Some(GetRange::Bounded(offset..offset.saturating_add(bytes))))
    }

    /// Reads the end of an object with one request; `None` if there is none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn get_end(&self, key: &str, bytes: u64) -> Result<Option<Found>> {
        match self.read(key, Some(GetRange::Suffix(bytes))) {
            // Azure has no such range, and the others none in an empty object.
            Err(Error::Io { source, .. }) if is_about_ranges(&source) => {
                let Some(object_bytes) = self.size(key)? else {
                    return Ok(None);
                };
                let from = object_bytes.saturating_sub(bytes);
                match object_bytes {
                    0 => Ok(Some(Found::empty())),
                    _ => self.read(key, Some(GetRange::Bounded(from..object_bytes))),
                }
            }
            read => read,
        }
    }

    /// Size of an object; `None` if there is none.
    ///
    /// # Errors
    /// When the store does not say.
    pub fn size(&self, key: &str) -> Result<Option<u64>> {
        let location = self.key(key);
        if let Some(versions) = &self.versions {
            return Ok(versions.of(&location).map(|version| version.bytes));
        }
        let head = self.request("look at", key, 0, || self.store.head(&location))?;
        self.found(key, head.map(|meta| meta.size))
    }

    /// Creates an object if its key is new. Where the key is taken, the object there must have the same bytes: an attempt
    /// whose answer was lost may have made it.
    ///
    /// # Errors
    /// When it cannot be created; when it is there with other bytes ([`Error::Invalid`]).
    pub fn create(&self, key: &str, bytes: &Bytes) -> Result<Created> {
        let began = Instant::now();
        loop {
            if self.put(key, bytes)? {
                return Ok(Created::Now);
            }
            match self.get(key)? {
                Some(found) if found.bytes == *bytes => return Ok(Created::Before),
                Some(_) => {
                    return Err(Error::Invalid(format!(
                        "{} is there already, with other bytes",
                        self.url(key)
                    )));
                }
                // A store may say so while two requests for one key are under way, and then neither of them succeeds.
                None if began.elapsed() < self.patience => std::thread::sleep(FIRST_PAUSE),
                None => {
                    let source =
                        std::io::Error::other("the store says both that it is there and that it is not");
                    return Err(Error::io("create", Path::new(&self.url(key)), source));
                }
            }
        }
    }

    /// One conditional PUT. Returns whether the key was new.
    pub(crate) fn put(&self, key: &str, bytes: &Bytes) -> Result<bool> {
        self.refuse_versions("create", key)?;
        let location = self.key(key);
        let options = PutOptions {
            mode: PutMode::Create,
            attributes: self.attributes(bytes),
            ..PutOptions::default()
        };
        let put = || {
            self.store
                .put_opts(&location, bytes.clone().into(), options.clone())
        };
        match self.request("create", key, bytes.len() as u64, put)? {
            Ok(_) => Ok(true),
            Err(Refused::Taken) => Ok(false),
            Err(Refused::Missing) => {
                let source = std::io::Error::other("the store says that there is no such place");
                Err(Error::io("create", Path::new(&self.url(key)), source))
            }
        }
    }

    fn attributes(&self, bytes: &Bytes) -> Attributes {
        let mut attributes = Attributes::new();
        if !self.is_directory {
            attributes.insert(Attribute::Metadata(SHA256.into()), sha256(bytes).into());
            if let Some(class) = &self.storage_class {
                attributes.insert(Attribute::StorageClass, class.clone().into());
            }
        }
        attributes
    }

    /// Calls `each` with the key and the size of every object under a prefix, which ends with a part of a key.
    ///
    /// # Errors
    /// When the listing does not come to its end, and whatever `each` returns.
    pub fn list(&self, under: &str, each: &mut dyn FnMut(&str, u64) -> Result<()>) -> Result<()> {
        self.list_from(under, None, each)
    }

    /// The same for the keys behind one of them.
    ///
    /// # Errors
    /// As for [`list`](Self::list).
    pub fn list_after(
        &self,
        under: &str,
        after: &str,
        each: &mut dyn FnMut(&str, u64) -> Result<()>,
    ) -> Result<()> {
        self.list_from(under, Some(self.key(after)), each)
    }

    /// The next parts of the keys under a prefix, as a directory has directories.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn directories(&self, under: &str) -> Result<Vec<String>> {
        let prefix = self.key(under);
        if let Some(versions) = &self.versions {
            return Ok(self.directories_of_versions(versions, &prefix));
        }
        let list = || self.store.list_with_delimiter(Some(&prefix));
        let listed = self.request("list", under, 0, list)?;
        let Some(listed) = self.found(under, listed)? else {
            return Ok(Vec::new());
        };
        let names = listed.common_prefixes.iter();
        Ok(names
            .filter_map(|name| name.filename().map(str::to_owned))
            .collect())
    }

    fn list_from(
        &self,
        under: &str,
        after: Option<Key>,
        each: &mut dyn FnMut(&str, u64) -> Result<()>,
    ) -> Result<()> {
        let prefix = self.key(under);
        if let Some(versions) = &self.versions {
            return self.list_versions(versions, &prefix, after.as_ref(), each);
        }
        let mut last = after;
        let mut began = false;
        let mut failing = Failing::default();
        loop {
            let mut stream = match &last {
                None => self.store.list(Some(&prefix)),
                Some(last) => self.store.list_with_offset(Some(&prefix), last),
            };
            let failed = loop {
                let next = self
                    .runtime
                    .block_on(async { tokio::time::timeout(self.stall(), stream.try_next()).await });
                match next {
                    Ok(Ok(Some(object))) => {
                        if self.lists_in_order && last.as_ref().is_some_and(|last| object.location <= *last) {
                            break Trouble::Lasting("the store lists the same objects again".to_owned());
                        }
                        failing = Failing::default();
                        if let Some(key) = self.relative(&object.location) {
                            each(&key, object.size)?;
                        }
                        last = Some(object.location);
                        began = true;
                    }
                    Ok(Ok(None)) => return Ok(()),
                    Ok(Err(error)) => break Trouble::of(&error),
                    Err(_) => break late(),
                }
            };
            match failed {
                // A directory that is not there is an empty prefix. A store lists nothing in other words. A listing that broke off
                // has not all: who decides by what is absent must not take it for that.
                Trouble::Missing if self.is_directory && !began => return Ok(()),
                Trouble::Missing => {
                    let reason = "the store answers that there is no such place".to_owned();
                    return Err(self.error("list", under, reason));
                }
                Trouble::Passing(reason) if last.is_some() && !self.lists_in_order => {
                    return Err(self.error("list", under, reason));
                }
                Trouble::Passing(reason) => self.pause("list", under, reason, &mut failing)?,
                Trouble::Lasting(reason) => return Err(self.error("list", under, reason)),
                Trouble::Denied(reason) => return Err(self.denied("list", under, &reason)),
                Trouble::Taken => return Err(self.error("list", under, "the store is confused".to_owned())),
            }
        }
    }

    /// Deletes an object; a missing one is no error.
    ///
    /// # Errors
    /// When it is there and cannot be deleted.
    pub fn delete(&self, key: &str) -> Result<()> {
        self.refuse_versions("delete", key)?;
        let location = self.key(key);
        match self.request("delete", key, 0, || self.store.delete(&location))? {
            Ok(()) | Err(Refused::Missing) => Ok(()),
            Err(Refused::Taken) => Err(self.error("delete", key, "the store holds it back".to_owned())),
        }
    }

    fn read(&self, key: &str, range: Option<GetRange>) -> Result<Option<Found>> {
        let version = match &self.versions {
            None => None,
            Some(versions) => match versions.of(&self.key(key)) {
                None => return Ok(None),
                Some(version) => Some(version.id.clone()),
            },
        };
        self.read_version(key, range, version)
    }

    fn read_version(
        &self,
        key: &str,
        range: Option<GetRange>,
        version: Option<String>,
    ) -> Result<Option<Found>> {
        let location = self.key(key);
        let bytes = match &range {
            Some(GetRange::Bounded(range)) => range.end - range.start,
            Some(GetRange::Suffix(bytes)) => *bytes,
            _ => OBJECT_MAX_BYTES,
        };
        let deed = match version {
            None => "read",
            Some(_) => "read an old version of",
        };
        let options = GetOptions {
            range,
            version,
            ..GetOptions::default()
        };
        let stall = self.stall();
        let read = || async {
            let answer = tokio::time::timeout(stall, self.store.get_opts(&location, options.clone()));
            Found::of(answer.await.map_err(|_| stalled())??, stall).await
        };
        let read = self.request(deed, key, bytes, read)?;
        self.found(key, read)
    }

    /// How long the store may say nothing.
    fn stall(&self) -> Duration {
        ATTEMPT.min(self.patience).max(SHORTEST_STALL)
    }

    fn found<T>(&self, key: &str, answer: Result<T, Refused>) -> Result<Option<T>> {
        match answer {
            Ok(found) => Ok(Some(found)),
            Err(Refused::Missing) => Ok(None),
            Err(Refused::Taken) => Err(self.error("read", key, "the store does not give it out".to_owned())),
        }
    }

    /// Sends a request until it is answered.
    fn request<T, F: Future<Output = object_store::Result<T>>>(
        &self,
        deed: &'static str,
        key: &str,
        bytes: u64,
        send: impl Fn() -> F,
    ) -> Result<Result<T, Refused>> {
        let attempt = self.stall() + Duration::from_secs(bytes / SLOWEST_BYTES_PER_SECOND);
        let mut failing = Failing::default();
        loop {
            let answer = self
                .runtime
                .block_on(async { tokio::time::timeout(attempt, send()).await });
            let trouble = match answer {
                Ok(Ok(answer)) => return Ok(Ok(answer)),
                Ok(Err(error)) => Trouble::of(&error),
                Err(_) => late(),
            };
            match trouble {
                Trouble::Missing => return Ok(Err(Refused::Missing)),
                Trouble::Taken => return Ok(Err(Refused::Taken)),
                Trouble::Lasting(reason) => return Err(self.error(deed, key, reason)),
                Trouble::Denied(reason) => return Err(self.denied(deed, key, &reason)),
                Trouble::Passing(reason) => self.pause(deed, key, reason, &mut failing)?,
            }
        }
    }

    /// Waits before the next attempt, or gives up.
    fn pause(&self, deed: &'static str, key: &str, reason: String, failing: &mut Failing) -> Result<()> {
        let since = failing.lasts(self.stall());
        if self.is_directory {
            return Err(self.error(deed, key, reason));
        }
        if since >= self.patience {
            let attempts = failing.attempts + 1;
            return Err(self.error(
                deed,
                key,
                format!("{reason} ({attempts} attempts in {} s)", since.as_secs()),
            ));
        }
        if failing.attempts == 0 {
            tracing::debug!("Cannot {deed} {}: {reason}: trying again", self.url(key));
        }
        let longest = FIRST_PAUSE
            .saturating_mul(1 << failing.attempts.min(10))
            .min(LONGEST_PAUSE)
            .min(self.patience.saturating_sub(since));
        failing.attempts += 1;
        std::thread::sleep(longest.mul_f64(0.5 + fastrand::f64() / 2.0));
        Ok(())
    }

    fn error(&self, deed: &'static str, key: &str, reason: String) -> Error {
        Error::io(deed, Path::new(&self.url(key)), std::io::Error::other(reason))
    }

    fn denied(&self, deed: &'static str, key: &str, said: &str) -> Error {
        let right = rights::needed(self.scheme, deed);
        self.error(
            deed,
            key,
            format!("{said}: the credentials lack the right to {right}; docs/iam.md has ready policies"),
        )
    }

    /// A key as people name it.
    pub(crate) fn url(&self, key: &str) -> String {
        format!("{}/{key}", self.place)
    }

    fn key(&self, key: &str) -> Key {
        match self.prefix.as_ref() {
            "" => Key::from(key),
            prefix => Key::from(format!("{prefix}/{key}")),
        }
    }

    fn relative(&self, key: &Key) -> Option<String> {
        let parts = key.prefix_match(&self.prefix)?;
        Some(
            parts
                .map(|part| part.as_ref().to_owned())
                .collect::<Vec<_>>()
                .join("/"),
        )
    }
}

/// Attempts that failed, one after the other.
#[derive(Debug)]
struct Failing {
    began: Instant,
    since: Option<Instant>,
    attempts: u32,
}

impl Default for Failing {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            since: None,
            attempts: 0,
        }
    }
}

impl Failing {
    /// For how long nothing has come of it. The first attempt may have moved many bytes before it failed, so of its time only a
    /// silence counts.
    fn lasts(&mut self, stall: Duration) -> Duration {
        let silence = stall.min(self.began.elapsed());
        let now = Instant::now();
        let since = *self
            .since
            .get_or_insert_with(|| now.checked_sub(silence).unwrap_or(now));
        since.elapsed()
    }
}

fn late() -> Trouble {
    Trouble::Passing("the store does not answer in time".to_owned())
}

/// Whether an error says that the object has no such range.
pub(crate) fn is_about_ranges(error: &std::io::Error) -> bool {
    let text = error.to_string();
    [
        "status 416",
        "InvalidRange",
        "object was only",
        "does not support suffix range",
    ]
    .iter()
    .any(|sign| text.contains(sign))
}
