//! Roles, versions and locks on Ceph's gateway, by its own words: what `docs/iam.md` allows and refuses, and what comes back.

use std::collections::BTreeMap;

use barmanfs_store::{PackId, PackStorage, RecordId};
use bytes::Bytes;
use jiff::{Timestamp, ToSpan};
use object_store::client::{HttpRequest, HttpRequestBody};
use object_store::path::Path as Key;
use object_store::{HeaderMap, HeaderValue, ObjectStoreExt};
use reqwest::Method;
use serde_json::{Value, json};

use super::{in_ceph, packs};
use crate::connect::connect;
use crate::{Abilities, Bucket, FromVersions, Location, ObjectPacks, Settings};

/// A bucket of its own, with the rights of its owner.
struct Owned {
    name: String,
    location: Location,
    settings: Settings,
    runtime: tokio::runtime::Runtime,
}

impl Owned {
    fn new(kind: &str) -> Option<Self> {
        let (_, settings) = in_ceph()?;
        let name = format!("{kind}-{}", RecordId::random().unwrap());
        let owned = Self {
            location: Location::parse(&format!("s3://{name}/prefix")).unwrap(),
            name,
            settings,
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap(),
        };
        let mut headers = HeaderMap::new();
        if kind == "locked" {
            headers.insert(
                "x-amz-bucket-object-lock-enabled",
                HeaderValue::from_static("true"),
            );
        }
        owned.put("", "", headers);
        Some(owned)
    }

    /// Sets something of the bucket.
    fn put(&self, what: &str, body: &str, headers: HeaderMap) {
        let own = connect(&self.location, &self.settings).unwrap().own.unwrap();
        let mut request = HttpRequest::new(HttpRequestBody::from(body.to_owned().into_bytes()));
        *request.headers_mut() = headers;
        let query = [(what, String::new())];
        let query = query.get(usize::from(what.is_empty())..).unwrap_or_default();
        self.runtime
            .block_on(own.send(Method::PUT, &Key::default(), query, request))
            .unwrap();
    }

    fn keep_versions(&self) {
        let text = "<VersioningConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Status>Enabled</Status>\
             </VersioningConfiguration>";
        self.put("versioning", text, HeaderMap::new());
    }

    fn bucket(&self) -> Bucket {
        Bucket::open(&self.location, &self.settings).unwrap()
    }

    /// As another user, who has what one policy of the document allows.
    fn role(&self, user: &str, policies: &[(&str, &str)]) -> Bucket {
        let statements: Vec<Value> = policies
            .iter()
            .flat_map(|(user, title)| statements(&self.name, user, title))
            .collect();
        let policy = json!({"Version": "2012-10-17", "Statement": statements});
        self.put("policy", &policy.to_string(), HeaderMap::new());
        let mut settings = self.settings.clone();
        let key = format!("barmanfs{user}");
        settings.environment.insert("AWS_ACCESS_KEY_ID".to_owned(), key);
        Bucket::open(&self.location, &settings).unwrap()
    }

    /// What somebody does who has stolen the right to put and to delete.
    fn attack(&self, overwritten: &[PackId], deleted: &[PackId]) {
        let store = connect(&self.location, &self.settings).unwrap().store;
        let key = |id: &PackId| {
            let name = id.to_string();
            Key::from(format!("prefix/packs/local/{}/{name}", &name[..2]))
        };
        self.runtime.block_on(async {
            for id in overwritten {
                store
                    .put(&key(id), Bytes::from_static(b"pay").into())
                    .await
                    .unwrap();
            }
            for id in deleted {
                store.delete(&key(id)).await.unwrap();
            }
        });
    }
}

/// The statements under a title of `docs/iam.md`, for one user of the gateway.
fn statements(bucket: &str, user: &str, title: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/iam.md")).unwrap();
    let (_, section) = text.split_once(&format!("\n### {title}\n")).expect(title);
    let (_, policy) = section.split_once("```json\n").unwrap();
    let (policy, _) = policy.split_once("```").unwrap();
    let policy = policy.replace("BUCKET", bucket).replace("PREFIX", "prefix");
    let mut policy: Value = serde_json::from_str(&policy).unwrap();
    let statements = policy["Statement"].as_array_mut().unwrap();
    for statement in &mut *statements {
        statement["Principal"] = json!({"AWS": [format!("arn:aws:iam:::user/{user}")]});
    }
    std::mem::take(statements)
}

fn add(packs: &ObjectPacks, number: usize) -> BTreeMap<PackId, Vec<u8>> {
    let all = (0..number).map(|n| {
        let (id, bytes) = (PackId::random().unwrap(), format!("pack {n}").into_bytes());
        let mut upload = packs.begin_copy(id).unwrap();
        upload.write(&bytes).unwrap();
        upload.finish().unwrap();
        (id, bytes)
    });
    all.collect()
}

fn all(packs: &ObjectPacks) -> BTreeMap<PackId, Vec<u8>> {
    let mut ids = Vec::new();
    packs
        .sizes(&mut |id, _| {
            ids.push(id);
            Ok(())
        })
        .unwrap();
    ids.into_iter()
        .map(|id| (id, packs.whole(id).unwrap().0.to_vec()))
        .collect()
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: crate::Result<T>, right: &str) {
    let text = result.unwrap_err().to_string();
    assert!(
        text.contains(right) && text.contains("docs/iam.md"),
        "{right}: {text}"
    );
}

/// Each role can what it must, and is refused what it must not, with the right that it lacks.
#[test]
fn roles_can_what_they_must_and_no_more() {
    let Some(owned) = Owned::new("roles") else {
        return;
    };
    let policies = [
        ("archiver", "Archiver"),
        ("sweeper", "Sweeper"),
        ("reader", "Reader"),
    ];
    let some = Bytes::from_static(b"some");
    let can_read = |bucket: &Bucket| {
        assert_eq!(bucket.get("kept").unwrap().unwrap().bytes, some);
        assert!(bucket.get("none").unwrap().is_none());
        assert_eq!(bucket.size("kept").unwrap(), Some(4));
        bucket.list("", &mut |_, _| Ok(())).unwrap();
    };

    let archiver = owned.role("archiver", &policies);
    let abilities = Abilities::probe(&archiver).unwrap();
    abilities.require().unwrap();
    let reason = abilities.cannot_delete.unwrap();
    assert!(reason.contains("s3:DeleteObject"), "{reason}");
    archiver.create("kept", &some).unwrap();
    archiver.create("gone", &some).unwrap();
    can_read(&archiver);
    refused(archiver.delete("kept"), "s3:DeleteObject");

    let reader = owned.role("reader", &policies);
    can_read(&reader);
    refused(reader.create("new", &some), "s3:PutObject");
    refused(reader.delete("kept"), "s3:DeleteObject");
    refused(reader.at_oldest_versions(None), "s3:ListBucketVersions");

    let sweeper = owned.role("sweeper", &policies);
    can_read(&sweeper);
    Abilities::probe(&sweeper).unwrap().require().unwrap();
    sweeper.delete("gone").unwrap();
    assert!(reader.get("gone").unwrap().is_none());

    let other = Location::parse(&format!("s3://{}/other", owned.name)).unwrap();
    let mut settings = owned.settings.clone();
    settings
        .environment
        .insert("AWS_ACCESS_KEY_ID".to_owned(), "barmanfsarchiver".to_owned());
    let elsewhere = Bucket::open(&other, &settings).unwrap();
    refused(elsewhere.create("key", &some), "s3:PutObject");

    // Without any policy nothing is allowed.
    let nobody = owned.role("reader", &policies[..1]);
    refused(nobody.get("kept"), "s3:GetObject");
    refused(nobody.list("", &mut |_, _| Ok(())), "s3:ListBucket");
}

#[test]
fn what_was_overwritten_and_deleted_comes_back() {
    let Some(owned) = Owned::new("versions") else {
        return;
    };
    owned.keep_versions();
    let there = packs(owned.bucket());
    let written = add(&there, 12);
    let ids: Vec<PackId> = written.keys().copied().collect();
    owned.attack(&ids[..4], &ids[2..6]);
    owned.attack(&ids[..2], &[]);
    // All came before this, by the store's clock, which is this host's.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let attacked = Timestamp::now();
    let forged = add(&there, 1);

    let mut listed = 0;
    let listing = there.sizes(&mut |_, _| {
        listed += 1;
        Ok(())
    });
    listing.unwrap();
    assert_eq!(listed, 12 - 4 + 1);
    let (oldest, found) = owned.bucket().at_oldest_versions(Some(attacked)).unwrap();
    assert_eq!(
        found,
        FromVersions {
            deleted: 4,
            overwritten: 2,
            too_late: 1
        }
    );
    let oldest = packs(oldest);
    assert_eq!(all(&oldest), written);
    let mut end = [0; 4];
    oldest.read_at(ids[0], 0, &mut end).unwrap();
    assert_eq!(&end, b"pack");
    assert_eq!(oldest.bytes(ids[3]).unwrap(), written[&ids[3]].len() as u64);
    assert!(oldest.remove(ids[0]).is_err());
    assert!(owned.bucket().at_oldest_versions(None).unwrap().1.too_late == 0 && forged.len() == 1);

    // Who may only read the newest is told what is missing, and the policy for this is enough.
    let rescuer = owned.role("reader", &[("reader", "Rescuer")]);
    let (oldest, _) = rescuer.at_oldest_versions(Some(attacked)).unwrap();
    assert_eq!(all(&packs(oldest)), written);
}

/// More versions than one answer of a listing has.
#[test]
fn all_pages_of_versions_are_read() {
    let Some(owned) = Owned::new("pages") else {
        return;
    };
    owned.keep_versions();
    let written = add(&packs(owned.bucket()), 60);
    let ids: Vec<PackId> = written.keys().copied().collect();
    std::thread::scope(|scope| {
        for part in ids.chunks(15) {
            let owned = &owned;
            scope.spawn(move || (0..17).for_each(|_| owned.attack(part, &[])));
        }
    });
    let (oldest, found) = owned.bucket().at_oldest_versions(None).unwrap();
    assert_eq!(found.overwritten, 60);
    assert_eq!(all(&packs(oldest)), written);
}

/// Ceph overlooks the condition of a PUT in a bucket that keeps versions. The first version stays, which is enough for a copy.
#[test]
fn a_locked_bucket_is_good_for_copies_and_says_until_when() {
    let Some(owned) = Owned::new("locked") else {
        return;
    };
    let retention = "<ObjectLockConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
         <ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention><Mode>GOVERNANCE</Mode><Days>2</Days>\
         </DefaultRetention></Rule></ObjectLockConfiguration>";
    owned.put("object-lock", retention, HeaderMap::new());
    let bucket = owned.bucket();
    let abilities = Abilities::probe(&bucket).unwrap();
    abilities.require_for_copies().unwrap();
    if !abilities.keeps_first {
        assert!(abilities.keeps_versions && abilities.require().is_err());
    }
    bucket.create("key", &Bytes::from_static(b"first")).unwrap();
    let held = bucket.held("key").unwrap().unwrap();
    let now = Timestamp::now();
    assert!(held.is_locked(now) && held.has_versions, "{held:?}");
    let until = held.until.unwrap();
    assert!(until > now + 47.hours() && until < now + 49.hours(), "{until}");
    assert_eq!(bucket.held("none").unwrap(), None);

    let plain = in_ceph().map(|(location, settings)| Bucket::open(&location, &settings).unwrap());
    let plain = plain.unwrap();
    plain.create("key", &Bytes::from_static(b"first")).unwrap();
    let held = plain.held("key").unwrap().unwrap();
    assert!(!held.is_locked(now) && !held.has_versions, "{held:?}");
}
