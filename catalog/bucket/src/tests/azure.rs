//! Microsoft's own emulator. `scripts/test.sh` starts it, and says in `BARMANFS_TEST_AZURE` which container it has; the library
//! finds it by `AZURITE_BLOB_STORAGE_URL`. Without them these tests do nothing.

use barmanfs_store::testing::conforms;
use barmanfs_store::{PackStorage as _, RecordId};
use bytes::Bytes;

use super::{PATIENCE, conforms_though_flaky, packs};
use crate::{Abilities, Bucket, Location, Settings};

fn in_azurite() -> Option<(Location, Settings)> {
    let Ok(container) = std::env::var("BARMANFS_TEST_AZURE") else {
        eprintln!("Without Azurite, nothing to test: scripts/test.sh starts it");
        return None;
    };
    let url = format!("az://{container}/{}", RecordId::random().unwrap());
    let settings = Settings {
        patience: PATIENCE,
        environment: [("AZURE_STORAGE_USE_EMULATOR".to_owned(), "true".to_owned())].into(),
        ..Settings::default()
    };
    Some((Location::parse(&url).unwrap(), settings))
}

#[test]
fn azure_does_what_a_storage_must() {
    let Some((location, settings)) = in_azurite() else {
        return;
    };
    let bucket = Bucket::open(&location, &settings).unwrap();
    let abilities = Abilities::probe(&bucket).unwrap();
    abilities.require().unwrap();
    assert_eq!(abilities.cannot_delete, None);
    conforms(&packs(bucket));
}

#[test]
fn lost_requests_and_answers_change_nothing_in_azure() {
    let Some((location, settings)) = in_azurite() else {
        return;
    };
    conforms_though_flaky(&location, &settings);
}

/// Azure has no range from the end, and none in an empty object.
#[test]
fn ends_of_objects_in_azure() {
    let Some((location, settings)) = in_azurite() else {
        return;
    };
    let bucket = Bucket::open(&location, &settings).unwrap();
    bucket.create("some", &Bytes::from_static(b"some bytes")).unwrap();
    bucket.create("empty", &Bytes::new()).unwrap();
    let end = |key: &str, bytes| bucket.get_end(key, bytes).unwrap().map(|found| found.bytes);
    assert_eq!(end("some", 5).unwrap(), b"bytes"[..]);
    assert_eq!(end("some", 500).unwrap(), b"some bytes"[..]);
    assert_eq!(end("empty", 5).unwrap(), b""[..]);
    assert!(end("none", 5).is_none());
}

#[test]
fn azure_refuses_in_words() {
    let Some((_, settings)) = in_azurite() else {
        return;
    };
    let location = Location::parse("az://no-such-container/x").unwrap();
    let error = Abilities::probe(&Bucket::open(&location, &settings).unwrap()).unwrap_err();
    assert!(error.to_string().contains("no such bucket"), "{error}");
    let error = packs(Bucket::open(&location, &settings).unwrap())
        .list(&mut |_| Ok(()))
        .unwrap_err();
    assert!(error.to_string().contains("no such bucket"), "{error}");
}
