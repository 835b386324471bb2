//! The part of Google's XML interface that a bucket needs, after its documents: no emulator honours the condition of a PUT.
//!
//! Conditions hold under races, listings come in short pages, and every third request is lost, refused or answered in part.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use barmanfs_store::sync::lock;
use barmanfs_store::testing::conforms;
use bytes::Bytes;

use super::http::{Answer, End, Request, Server};
use super::{PATIENCE, packs};
use crate::{Abilities, Bucket, Created, Location, Settings};

const BUCKET: &str = "packs";
const PAGE: usize = 50;
const MODIFIED: &str = "Mon, 30 Nov 2026 10:00:00 GMT";

#[derive(Debug, Clone)]
struct Object {
    bytes: Vec<u8>,
    sha256: Option<String>,
    generation: usize,
}

/// A bucket, and a server for it.
struct Google {
    server: Server,
    calls: Arc<AtomicUsize>,
}

impl Google {
    /// With a pace of 0 nothing fails.
    fn start(pace: usize) -> Self {
        let objects: Mutex<BTreeMap<String, Object>> = Mutex::default();
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let server = Server::start(move |request| {
            let call = counted.fetch_add(1, Ordering::Relaxed);
            if pace == 0 || !call.is_multiple_of(pace) {
                return answer(&objects, request);
            }
            match call / pace % 5 {
                0 => refused("503 Service Unavailable", "ServiceUnavailable"),
                1 => refused("429 Too Many Requests", "SlowDown"),
                2 => Answer::new("200 OK", "").ending(End::Lost),
                // It is done, and nobody hears of it.
                3 => answer(&objects, request).ending(End::Lost),
                _ => answer(&objects, request).ending(End::Cut),
            }
        });
        Self { server, calls }
    }

    fn bucket(&self) -> Bucket {
        let key = "{\"gcs_base_url\":\"http://unused\",\"disable_oauth\":true,\"client_email\":\"\",\
             \"private_key\":\"\",\"private_key_id\":\"\"}";
        let settings = Settings {
            endpoint: Some(self.server.url()),
            patience: PATIENCE,
            // Without these the library asks for a token before a PUT, although it is told not to sign.
            environment: BTreeMap::from([("GOOGLE_SERVICE_ACCOUNT_KEY".to_owned(), key.to_owned())]),
            ..Settings::default()
        };
        let location = Location::parse(&format!("gs://{BUCKET}/prefix")).unwrap();
        Bucket::open(&location, &settings).unwrap()
    }
}

fn refused(status: &'static str, code: &str) -> Answer {
    Answer::new(
        status,
        format!("<?xml version='1.0'?><Error><Code>{code}</Code><Message>A test</Message></Error>"),
    )
}

fn answer(objects: &Mutex<BTreeMap<String, Object>>, request: &Request) -> Answer {
    let mut objects = lock(objects);
    let (bucket, key) = request.path.split_once('/').unwrap_or((&request.path, ""));
    if bucket != BUCKET {
        return refused("404 Not Found", "NoSuchBucket");
    }
    match (request.method.as_str(), key) {
        ("GET", "") => list(&objects, request),
        ("PUT", key) => put(&mut objects, key, request),
        ("GET" | "HEAD", key) => match objects.get(key) {
            None => refused("404 Not Found", "NoSuchKey"),
            Some(object) => get(object, request),
        },
        ("DELETE", key) => match objects.remove(key) {
            None => refused("404 Not Found", "NoSuchKey"),
            Some(_) => Answer::new("204 No Content", ""),
        },
        _ => refused("405 Method Not Allowed", "MethodNotAllowed"),
    }
}

fn put(objects: &mut BTreeMap<String, Object>, key: &str, request: &Request) -> Answer {
    let must_be_new = match request.headers.get("x-goog-if-generation-match") {
        None => false,
        Some(zero) if zero == "0" => true,
        Some(_) => return refused("400 Bad Request", "InvalidArgument"),
    };
    let generation = objects.values().map(|object| object.generation).max();
    let object = Object {
        bytes: request.body.clone(),
        sha256: request.headers.get("x-goog-meta-sha256").cloned(),
        generation: generation.unwrap_or(0) + 1,
    };
    let generation = object.generation;
    match objects.entry(key.to_owned()) {
        Entry::Occupied(_) if must_be_new => return refused("412 Precondition Failed", "PreconditionFailed"),
        Entry::Occupied(mut entry) => drop(entry.insert(object)),
        Entry::Vacant(entry) => drop(entry.insert(object)),
    }
    Answer::new("200 OK", "")
        .header("ETag", format!("\"{generation}\""))
        .header("x-goog-generation", generation.to_string())
}

fn get(object: &Object, request: &Request) -> Answer {
    let all = object.bytes.len();
    let range = match request.headers.get("range") {
        None => None,
        Some(text) => match range(text, all) {
            None => return refused("416 Requested Range Not Satisfiable", "InvalidRange"),
            range => range,
        },
    };
    let answer = match range {
        None => Answer::new("200 OK", object.bytes.clone()),
        Some((from, end)) => Answer::new("206 Partial Content", &object.bytes[from..end])
            .header("Content-Range", format!("bytes {from}-{}/{all}", end - 1)),
    };
    let answer = answer
        .header("ETag", format!("\"{}\"", object.generation))
        .header("Last-Modified", MODIFIED)
        .header("x-goog-generation", object.generation.to_string());
    match &object.sha256 {
        None => answer,
        Some(sha256) => answer.header("x-goog-meta-sha256", sha256),
    }
}

/// The bytes that a range names in an object of this size, if there are any.
fn range(text: &str, all: usize) -> Option<(usize, usize)> {
    let (from, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let (from, end) = match (from.parse::<usize>(), last.parse::<usize>()) {
        (Ok(from), Ok(last)) => (from, all.min(last + 1)),
        (Ok(from), Err(_)) => (from, all),
        (Err(_), Ok(bytes)) => (all.saturating_sub(bytes), all),
        (Err(_), Err(_)) => return None,
    };
    (from < end).then_some((from, end))
}

fn list(objects: &BTreeMap<String, Object>, request: &Request) -> Answer {
    let asked = |name: &str| request.query.get(name).map_or("", String::as_str);
    let after = asked("start-after").max(asked("continuation-token"));
    let mut found = objects
        .iter()
        .filter(|(key, _)| key.starts_with(asked("prefix")) && key.as_str() > after);
    let mut text = "<?xml version='1.0' encoding='UTF-8'?><ListBucketResult>".to_owned();
    let mut last = "";
    for (key, object) in found.by_ref().take(PAGE) {
        last = key;
        let _ = write!(
            text,
            "<Contents><Key>{key}</Key><Generation>{0}</Generation><LastModified>2026-11-30T10:00:00.000Z</LastModified>\
             <ETag>\"{0}\"</ETag><Size>{1}</Size></Contents>",
            object.generation,
            object.bytes.len()
        );
    }
    if found.next().is_some() {
        let _ = write!(
            text,
            "<IsTruncated>true</IsTruncated><NextContinuationToken>{last}</NextContinuationToken>"
        );
    }
    text.push_str("</ListBucketResult>");
    Answer::new("200 OK", text).header("Content-Type", "application/xml")
}

#[test]
fn google_does_what_a_storage_must() {
    let google = Google::start(0);
    let abilities = Abilities::probe(&google.bucket()).unwrap();
    abilities.require().unwrap();
    assert_eq!(abilities.cannot_delete, None);
    conforms(&packs(google.bucket()));
}

#[test]
fn lost_requests_and_answers_change_nothing_in_google() {
    for pace in [2, 3] {
        let google = Google::start(pace);
        conforms(&packs(google.bucket()));
        assert!(google.calls.load(Ordering::Relaxed) > 10 * pace);
    }
}

#[test]
fn google_lists_everything() {
    let google = Google::start(7);
    let bucket = google.bucket();
    let all: Vec<String> = (0..3 * PAGE + 1).map(|n| format!("many/{n:04}")).collect();
    for key in &all {
        bucket.create(key, &Bytes::from_static(b"x")).unwrap();
    }
    let mut listed = Vec::new();
    bucket
        .list("many", &mut |key, _| {
            listed.push(key.to_owned());
            Ok(())
        })
        .unwrap();
    assert_eq!(listed, all);
}

#[test]
fn of_two_who_create_a_key_in_google_one_has_it() {
    let google = Google::start(0);
    for n in 0..20 {
        let key = format!("race/{n}");
        let create = |bytes: &'static [u8]| google.bucket().create(&key, &Bytes::from_static(bytes));
        let (left, right) = std::thread::scope(|scope| {
            let left = scope.spawn(|| create(b"left"));
            let right = create(b"right");
            (left.join().unwrap(), right)
        });
        let won = |result: &crate::Result<Created>| matches!(result, Ok(Created::Now));
        assert!(won(&left) != won(&right), "{left:?} {right:?}");
    }
}
