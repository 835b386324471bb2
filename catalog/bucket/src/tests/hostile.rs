//! Stores that answer nonsense, stop in the middle, or answer nothing: each request ends with one line, within the patience of the
//! caller, and what came in part is never taken for the whole.

use std::time::{Duration, Instant};

use barmanfs_store::{Error, PackId, PackStorage};
use bytes::Bytes;

use super::http::{Answer, End, Request, Server};
use super::packs;
use crate::{Bucket, Location, Settings};

const PATIENCE: Duration = Duration::from_secs(1);

/// An attempt that begins within the patience may take as long again, and a machine may be busy.
const ENDS_WITHIN: Duration = Duration::from_secs(20);

const SECRET: &str = "SecretOfTheTest";
const TOKEN: &str = "TokenOfTheTest";

fn bucket(server: &Server) -> Bucket {
    let variables = [
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_SESSION_TOKEN", TOKEN),
    ];
    let settings = Settings {
        endpoint: Some(server.url()),
        patience: PATIENCE,
        environment: variables
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        ..Settings::default()
    };
    Bucket::open(&Location::parse("s3://bucket/prefix").unwrap(), &settings).unwrap()
}

/// The answer of a store that has an object of 11 bytes, whatever is asked.
fn object(request: &Request) -> Answer {
    let answer = match request.headers.get("range") {
        None => Answer::new("200 OK", "hello world"),
        Some(_) => Answer::new("206 Partial Content", "hello world").header("Content-Range", "bytes 0-10/11"),
    };
    answer
        .header("ETag", "\"1\"")
        .header("Last-Modified", "Mon, 30 Nov 2026 10:00:00 GMT")
}

const PORTAL: &str = "<html><head><title>Please log in</title></head><body>...</body></html>";

type Nonsense = fn(&Request) -> Answer;

/// The kinds of nonsense.
const NONSENSE: [(&str, Nonsense); 13] = [
    ("no HTTP", |_| {
        Answer::new("", "\u{7}hello, who is there?\r\n\r\n").ending(End::Raw)
    }),
    ("half a head", |_| {
        Answer::new("", "HTTP/1.1 200 OK\r\nContent-Le").ending(End::Raw)
    }),
    ("a page", |_| {
        Answer::new("200 OK", PORTAL).header("Content-Type", "text/html; charset=utf-8")
    }),
    ("a page without a type", |_| Answer::new("200 OK", PORTAL)),
    ("a page with 404", |_| Answer::new("404 Not Found", PORTAL)),
    ("a page with 502", |_| Answer::new("502 Bad Gateway", PORTAL)),
    ("a redirect to nowhere", |_| {
        Answer::new("301 Moved Permanently", "")
    }),
    ("a redirect in a circle", |request| {
        Answer::new("307 Temporary Redirect", "").header("Location", format!("/{}", request.path))
    }),
    ("nothing", |_| Answer::new("", "").ending(End::Lost)),
    ("silence", |_| Answer::new("", "").ending(End::Silent)),
    ("a part", |request| object(request).ending(End::Cut)),
    ("a part and silence", |request| object(request).ending(End::Stall)),
    ("more than there is", |request| {
        object(request)
            .header("Content-Length", "100000000000")
            .ending(End::Stall)
    }),
];

type Asked = fn(&Bucket) -> Option<Error>;

/// What is asked, and the error if there is one.
const REQUESTS: [(&str, Asked); 7] = [
    ("get", |bucket| bucket.get("key").err()),
    ("get_range", |bucket| bucket.get_range("key", 0, 11).err()),
    ("get_end", |bucket| bucket.get_end("key", 11).err()),
    ("list", |bucket| bucket.list("packs", &mut |_, _| Ok(())).err()),
    ("create", |bucket| {
        bucket.create("key", &Bytes::from_static(b"mine")).err()
    }),
    ("delete", |bucket| bucket.delete("key").err()),
    ("versions", |bucket| bucket.at_oldest_versions(None).err()),
];

#[test]
fn nonsense_ends_with_one_line_in_time_and_says_no_secret() {
    std::thread::scope(|scope| {
        for (kind, nonsense) in NONSENSE {
            for (asked, request) in REQUESTS {
                // These are good answers to a PUT and to a deletion, which need no body.
                let may_succeed = matches!(
                    (asked, kind),
                    (
                        "create" | "delete",
                        "a page without a type" | "a part" | "a part and silence" | "more than there is"
                    )
                );
                scope.spawn(move || {
                    let server = Server::start(nonsense);
                    let began = Instant::now();
                    let error = request(&bucket(&server));
                    assert!(
                        began.elapsed() < ENDS_WITHIN,
                        "{kind}, {asked}: {:?}",
                        began.elapsed()
                    );
                    let Some(error) = error else {
                        assert!(may_succeed, "{kind}, {asked}: no error");
                        return;
                    };
                    let text = error.to_string();
                    assert!(matches!(error, Error::Io { .. }), "{kind}, {asked}: {error:?}");
                    assert!(
                        !text.contains('\n') && text.len() < 600,
                        "{kind}, {asked}: {text}"
                    );
                    for secret in [SECRET, TOKEN, "Signature=", "Credential="] {
                        assert!(!text.contains(secret), "{kind}, {asked}: {text}");
                    }
                });
            }
        }
    });
}

/// A pack that cannot be read now must not be taken for one that is lost, or for another one.
#[test]
fn nonsense_is_no_loss() {
    std::thread::scope(|scope| {
        for (kind, nonsense) in NONSENSE {
            scope.spawn(move || {
                let server = Server::start(nonsense);
                let packs = packs(bucket(&server));
                let error = packs.whole(PackId::random().unwrap()).unwrap_err();
                assert!(matches!(error, Error::Io { .. }), "{kind}: {error:?}");
                let error = packs.bytes(PackId::random().unwrap()).unwrap_err();
                assert!(matches!(error, Error::Io { .. }), "{kind}: {error:?}");
            });
        }
    });
}

/// A listing that never ends, and one that says that it is complete although it is not, by its own words.
#[test]
fn a_listing_in_a_circle_ends() {
    let page = "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>\
         <Contents><Key>prefix/packs/x</Key><Size>1</Size><ETag>\"1\"</ETag>\
         <LastModified>2026-11-30T10:00:00.000Z</LastModified></Contents></ListBucketResult>";
    let server =
        Server::start(move |_| Answer::new("200 OK", page).header("Content-Type", "application/xml"));
    let mut count = 0;
    let error = bucket(&server)
        .list("packs", &mut |_, _| {
            count += 1;
            Ok(())
        })
        .unwrap_err();
    assert!(error.to_string().contains("the same objects again"), "{error}");
    assert_eq!(count, 1);
}

#[test]
fn a_wrong_clock_is_said_at_once() {
    let refusal =
        "<Error><Code>RequestTimeTooSkewed</Code><Message>The difference is too large.</Message></Error>";
    let server = Server::start(move |_| Answer::new("403 Forbidden", refusal));
    let error = bucket(&server).get("key").unwrap_err().to_string();
    assert!(error.contains("the clock of this host is wrong"), "{error}");
}
