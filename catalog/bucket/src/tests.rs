//! Packs on real stores, and on stores that lose requests and answers.
//!
//! `scripts/test.sh` starts a gateway of Ceph and says in `BARMANFS_TEST_S3` where it is: endpoint, bucket, access key and
//! secret key. Without it the tests of it do nothing; those in memory and in a directory always run.

#![allow(clippy::disallowed_methods)]

mod azure;
mod ceph;
mod google;
mod hostile;
mod http;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use barmanfs_store::testing::{TestPacks, conforms};
use barmanfs_store::{Error, PackId, PackStorage, RecordId};
use bytes::Bytes;
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path as Key;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};

use crate::{Abilities, Bucket, Created, Location, ObjectPacks, Settings};

const PATIENCE: Duration = Duration::from_secs(60);

fn in_memory() -> Bucket {
    Bucket::on(Arc::new(InMemory::new()), "prefix", "memory".to_owned(), PATIENCE).unwrap()
}

/// A new prefix in Ceph's gateway, if there is one.
fn in_ceph() -> Option<(Location, Settings)> {
    let given = std::env::var("BARMANFS_TEST_S3").ok();
    let given: Vec<&str> = given.as_deref().unwrap_or_default().split_whitespace().collect();
    let [endpoint, bucket, key, secret] = given[..] else {
        eprintln!("Without a gateway of Ceph, nothing to test: scripts/test.sh starts one");
        return None;
    };
    let url = format!("s3://{bucket}/{}", RecordId::random().unwrap());
    let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let settings = Settings {
        endpoint: Some(endpoint.to_owned()),
        patience: PATIENCE,
        environment: BTreeMap::from([
            variable("AWS_ACCESS_KEY_ID", key),
            variable("AWS_SECRET_ACCESS_KEY", secret),
        ]),
        ..Settings::default()
    };
    Some((Location::parse(&url).unwrap(), settings))
}

/// A store does what it must, too, when each third request or answer is lost.
fn conforms_though_flaky(location: &Location, settings: &Settings) {
    let store = crate::connect::connect(location, settings).unwrap().store;
    let bucket = Bucket::on(
        Arc::new(Flaky::new(store, 3)),
        &location.prefix,
        location.to_string(),
        PATIENCE,
    );
    conforms(&packs(bucket.unwrap()));
}

fn packs(bucket: Bucket) -> ObjectPacks {
    ObjectPacks::new(Arc::new(bucket))
}

#[test]
fn memory_does_what_a_storage_must() {
    conforms(&packs(in_memory()));
    conforms(&TestPacks::new(packs(in_memory())));
}

#[test]
fn a_directory_of_objects_does_what_a_storage_must() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("file://{}/copy", directory.path().display());
    let location = Location::parse(&url).unwrap();
    let bucket = Bucket::open(&location, &Settings::default()).unwrap();
    let abilities = Abilities::probe(&bucket).unwrap();
    abilities.require().unwrap();
    conforms(&packs(bucket));
}

#[test]
fn ceph_does_what_a_storage_must() {
    let Some((location, settings)) = in_ceph() else {
        return;
    };
    let bucket = Bucket::open(&location, &settings).unwrap();
    let abilities = Abilities::probe(&bucket).unwrap();
    abilities.require().unwrap();
    assert_eq!(abilities.cannot_delete, None);
    conforms(&packs(bucket));
}

/// More keys than one answer of a listing has.
#[test]
fn ceph_lists_everything() {
    let Some((location, settings)) = in_ceph() else {
        return;
    };
    let bucket = Bucket::open(&location, &settings).unwrap();
    let all = 1100;
    std::thread::scope(|scope| {
        for part in 0..4 {
            let bucket = &bucket;
            scope.spawn(move || {
                for n in (part..all).step_by(4) {
                    bucket
                        .create(&format!("many/{n:04}"), &Bytes::from_static(b"x"))
                        .unwrap();
                }
            });
        }
    });
    let mut listed = Vec::new();
    bucket
        .list("many", &mut |key, bytes| {
            assert_eq!(bytes, 1);
            listed.push(key.to_owned());
            Ok(())
        })
        .unwrap();
    listed.sort();
    assert_eq!(
        listed,
        (0..all).map(|n| format!("many/{n:04}")).collect::<Vec<_>>()
    );
}

/// The kind: what a site sets wrong is said at once, with what to do, and without the secret.
#[test]
fn ceph_refuses_in_words() {
    let Some((location, settings)) = in_ceph() else {
        return;
    };
    let said = |url: Option<&str>, change: &dyn Fn(&mut Settings)| {
        let mut settings = settings.clone();
        change(&mut settings);
        let location = url.map_or(location.clone(), |url| Location::parse(url).unwrap());
        let began = Instant::now();
        let error = Abilities::probe(&Bucket::open(&location, &settings).unwrap()).unwrap_err();
        assert!(began.elapsed() < PATIENCE / 2, "it was tried again");
        error.to_string()
    };
    let set = |name: &'static str, value: &'static str| {
        move |settings: &mut Settings| {
            settings.environment.insert(name.to_owned(), value.to_owned());
        }
    };
    let text = said(None, &set("AWS_SECRET_ACCESS_KEY", "wrongsecret"));
    assert!(
        text.contains("SignatureDoesNotMatch") && text.contains("secret key"),
        "{text}"
    );
    assert!(!text.contains("wrongsecret"), "{text}");
    let text = said(None, &set("AWS_ACCESS_KEY_ID", "nobody"));
    assert!(text.contains("does not know this access key"), "{text}");
    let text = said(Some("s3://no-such-bucket/x"), &|_| {});
    assert!(
        text.contains("no such bucket") && text.contains("s3://no-such-bucket/x"),
        "{text}"
    );
}

#[test]
fn lost_requests_and_answers_change_nothing() {
    for pace in [2, 3, 5] {
        let flaky = Flaky::new(Arc::new(InMemory::new()), pace);
        let bucket = Bucket::on(Arc::new(flaky), "prefix", "memory".to_owned(), PATIENCE).unwrap();
        conforms(&packs(bucket));
    }
}

#[test]
fn lost_requests_and_answers_change_nothing_in_ceph() {
    let Some((location, settings)) = in_ceph() else {
        return;
    };
    conforms_though_flaky(&location, &settings);
}

#[test]
fn a_store_that_overwrites_is_refused() {
    let bucket = Bucket::on(
        Arc::new(Overwrites(InMemory::new())),
        "",
        "memory".to_owned(),
        PATIENCE,
    )
    .unwrap();
    let abilities = Abilities::probe(&bucket).unwrap();
    assert!(!abilities.keeps_first && abilities.lists_at_once);
    let refused = abilities.require().unwrap_err().to_string();
    assert!(refused.contains("overwrites a key"), "{refused}");
    assert!(
        abilities.to_string().contains("never overwritten: NO"),
        "{abilities}"
    );
}

#[test]
fn patience_ends_with_what_and_where_and_why() {
    let flaky = Flaky::new(Arc::new(InMemory::new()), 1);
    let bucket = Bucket::on(Arc::new(flaky), "prefix", "s3://b/prefix".to_owned(), PATIENCE).unwrap();
    let began = Instant::now();
    let error = bucket.within(Duration::from_millis(300)).get("key").unwrap_err();
    assert!(began.elapsed() >= Duration::from_millis(300));
    let text = error.to_string();
    assert!(
        text.starts_with("Cannot read s3://b/prefix/key: the cable is out ("),
        "{text}"
    );
    assert!(text.contains("attempts in 0 s"), "{text}");
}

#[test]
fn a_key_that_is_taken_keeps_its_bytes() {
    let bucket = in_memory();
    let (one, other) = (Bytes::from_static(b"one"), Bytes::from_static(b"other"));
    assert_eq!(bucket.create("k", &one).unwrap(), Created::Now);
    assert_eq!(bucket.create("k", &one).unwrap(), Created::Before);
    assert!(matches!(bucket.create("k", &other), Err(Error::Invalid(_))));
    assert_eq!(bucket.get("k").unwrap().unwrap().bytes, one);
    bucket.delete("k").unwrap();
    assert!(bucket.get("k").unwrap().is_none() && bucket.size("k").unwrap().is_none());
}

#[test]
fn a_pack_that_has_changed_in_the_bucket_is_damaged() {
    let store = Arc::new(InMemory::new());
    let bucket = Bucket::on(Arc::clone(&store) as _, "", "memory".to_owned(), PATIENCE).unwrap();
    let packs = packs(bucket.within(PATIENCE));
    let id = PackId::random().unwrap();
    let mut upload = packs.begin_copy(id).unwrap();
    upload.write(b"as it was put").unwrap();
    upload.finish().unwrap();
    assert_eq!(packs.whole(id).unwrap().0, b"as it was put"[..]);
    let mut key = String::new();
    bucket
        .list("packs", &mut |name, _| {
            name.clone_into(&mut key);
            Ok(())
        })
        .unwrap();
    let name = id.to_string();
    assert_eq!(key, format!("packs/local/{}/{name}", &name[..2]));
    let found = bucket.get(&key).unwrap().unwrap();
    let changed = Found {
        bytes: Bytes::from_static(b"as it was not"),
        ..found
    };
    assert!(!changed.is_as_put());
}

use crate::Found;

/// Loses requests, and answers of what was done, in turn; with a pace of 1 everything.
#[derive(Debug)]
struct Flaky {
    store: Arc<dyn ObjectStore>,
    pace: usize,
    calls: AtomicUsize,
}

impl Flaky {
    fn new(store: Arc<dyn ObjectStore>, pace: usize) -> Self {
        Self {
            store,
            pace,
            calls: AtomicUsize::new(0),
        }
    }

    /// What becomes of the next call: it never arrives, its answer is lost, or neither.
    fn fate(&self) -> (object_store::Result<()>, object_store::Result<()>) {
        let lost = || {
            Err(object_store::Error::Generic {
                store: "test",
                source: std::io::Error::other("the cable is out").into(),
            })
        };
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        match (call.is_multiple_of(self.pace), call / self.pace % 2) {
            (false, _) => (Ok(()), Ok(())),
            (true, 0) => (lost(), Ok(())),
            (true, _) => (Ok(()), lost()),
        }
    }
}

impl std::fmt::Display for Flaky {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Flaky")
    }
}

#[async_trait]
impl ObjectStore for Flaky {
    async fn put_opts(
        &self,
        key: &Key,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        let (before, after) = self.fate();
        before?;
        let put = self.store.put_opts(key, payload, options).await;
        after.and(put)
    }

    async fn put_multipart_opts(
        &self,
        key: &Key,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.store.put_multipart_opts(key, options).await
    }

    async fn get_opts(&self, key: &Key, options: GetOptions) -> object_store::Result<GetResult> {
        let (before, after) = self.fate();
        before.and(after)?;
        self.store.get_opts(key, options).await
    }

    async fn get_ranges(&self, key: &Key, ranges: &[Range<u64>]) -> object_store::Result<Vec<Bytes>> {
        self.store.get_ranges(key, ranges).await
    }

    fn delete_stream(
        &self,
        keys: BoxStream<'static, object_store::Result<Key>>,
    ) -> BoxStream<'static, object_store::Result<Key>> {
        use futures_util::StreamExt;
        let (before, after) = self.fate();
        match before {
            Err(error) => futures_util::stream::once(async { Err(error) }).boxed(),
            Ok(()) => {
                let deleted = self.store.delete_stream(keys);
                match after {
                    Ok(()) => deleted,
                    Err(error) => {
                        let mut error = Some(error);
                        deleted.map(move |key| error.take().map_or(key, Err)).boxed()
                    }
                }
            }
        }
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        use futures_util::StreamExt;
        let (before, after) = self.fate();
        let listed = self.store.list(prefix);
        match before.and(after) {
            Ok(()) => listed,
            // It breaks after the first.
            Err(error) => listed
                .take(1)
                .chain(futures_util::stream::once(async { Err(error) }))
                .boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> object_store::Result<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Key, to: &Key, options: CopyOptions) -> object_store::Result<()> {
        self.store.copy_opts(from, to, options).await
    }
}

/// A store that knows no conditions, and does not say so.
#[derive(Debug)]
struct Overwrites(InMemory);

impl std::fmt::Display for Overwrites {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Overwrites")
    }
}

#[async_trait]
impl ObjectStore for Overwrites {
    async fn put_opts(
        &self,
        key: &Key,
        payload: PutPayload,
        _: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.0.put_opts(key, payload, PutOptions::default()).await
    }

    async fn put_multipart_opts(
        &self,
        key: &Key,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(key, options).await
    }

    async fn get_opts(&self, key: &Key, options: GetOptions) -> object_store::Result<GetResult> {
        self.0.get_opts(key, options).await
    }

    async fn get_ranges(&self, key: &Key, ranges: &[Range<u64>]) -> object_store::Result<Vec<Bytes>> {
        self.0.get_ranges(key, ranges).await
    }

    fn delete_stream(
        &self,
        keys: BoxStream<'static, object_store::Result<Key>>,
    ) -> BoxStream<'static, object_store::Result<Key>> {
        self.0.delete_stream(keys)
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.0.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> object_store::Result<ListResult> {
        self.0.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Key, to: &Key, options: CopyOptions) -> object_store::Result<()> {
        self.0.copy_opts(from, to, options).await
    }
}
