use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use barmanfs_pg::wal_name::WalName;
use barmanfs_store::LocalPacks;
use barmanfs_store::age::{Identity, Recipient};
use barmanfs_store::testing::{Call, TestPacks};

use super::*;
use crate::archive::derive::derive;
use crate::home::keys::{KeySource, unlock, use_keys_of};
use crate::home::{CATALOG, PACKS};
use crate::index::repository::Repository;
use crate::monitor::Silent;
use crate::names::ServerName;
use crate::upkeep::verify::VerifyScope;

/// The key of this process: every test may use it.
#[derive(Debug)]
struct Own(Identity);

impl KeySource for Own {
    fn identities(&self) -> Result<Vec<Identity>, String> {
        Ok(vec![self.0.clone()])
    }

    fn expects(&self, _repository: &Path) -> bool {
        false
    }
}

fn own() -> NewRecipient {
    static OWN: OnceLock<Recipient> = OnceLock::new();
    NewRecipient::Key(*OWN.get_or_init(|| {
        let identity = Identity::generate().unwrap();
        let recipient = identity.recipient().unwrap();
        use_keys_of(Arc::new(Own(identity)));
        recipient
    }))
}

fn somebody() -> NewRecipient {
    NewRecipient::Key(Identity::generate().unwrap().recipient().unwrap())
}

fn server() -> ServerName {
    "name_of_a_server".parse().unwrap()
}

fn keyed() -> FirstKey {
    FirstKey::New(IdHash::Blake3Keyed)
}

struct Place {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

fn place() -> Place {
    let directory = tempfile::tempdir().unwrap();
    Place {
        path: directory.path().join("repository"),
        _directory: directory,
    }
}

type Archived = BTreeMap<WalName, Vec<u8>>;

fn archive(repository: &Repository, numbers: std::ops::Range<u32>) -> Result<Archived> {
    let mut archived = BTreeMap::new();
    for number in numbers {
        let name: WalName = format!("{number:08X}.history").parse().unwrap();
        let reason = format!("name_of_a_table {number} ").repeat(100);
        let bytes = format!("1\t0/3000000\t{reason}\n").into_bytes();
        let writer = repository.writer("test")?;
        writer.archive_wal(&server(), &name, &mut &*bytes, bytes.len() as u64, "test")?;
        archived.insert(name, bytes);
    }
    Ok(archived)
}

fn assert_has(repository: &Repository, archived: &Archived) {
    for (name, bytes) in archived {
        let file = repository
            .wal(&server())
            .find(name)
            .unwrap()
            .expect("it was archived");
        let mut read = Vec::new();
        repository
            .trees()
            .reader(file.map)
            .read_to_end(&mut read)
            .unwrap();
        assert_eq!(read, *bytes, "{name}");
    }
    let verified = repository.verify(&VerifyScope::All, &mut Silent).unwrap();
    assert!(verified.damages.is_empty(), "{verified:?}");
}

fn packs_of(path: &Path) -> Vec<PathBuf> {
    let mut packs = Vec::new();
    for part in fs::read_dir(path.join(PACKS)).unwrap() {
        if let Ok(entries) = fs::read_dir(part.unwrap().path()) {
            packs.extend(entries.map(|entry| entry.unwrap().path()));
        }
    }
    packs.sort();
    packs
}

fn shows(path: &Path, text: &str) -> bool {
    let has = |pack: &PathBuf| {
        let bytes = fs::read(pack).unwrap();
        bytes.windows(text.len()).any(|window| window == text.as_bytes())
    };
    packs_of(path).iter().any(has)
}

#[test]
fn packs_of_an_encrypted_repository_show_nothing_and_read_back() {
    let place = place();
    let repository = Repository::create_encrypted(
        &place.path,
        CreateOptions::default(),
        &keyed(),
        &[own(), somebody()],
    )
    .unwrap();
    let archived = archive(&repository, 2..6).unwrap();
    assert_has(&repository, &archived);
    for text in ["name_of", "history", "version", "\"server\""] {
        assert!(!shows(&place.path, text), "{text}");
    }
    drop(repository);
    fs::remove_file(place.path.join(CATALOG)).unwrap();
    assert!(
        Repository::rebuild(&place.path, &mut Silent)
            .unwrap()
            .is_complete()
    );
    assert_has(&Repository::open(&place.path).unwrap(), &archived);
    // Its keys say the same as the file that is lost.
    fs::remove_file(place.path.join(SETTINGS)).unwrap();
    assert!(
        Repository::rebuild(&place.path, &mut Silent)
            .unwrap()
            .made_settings
    );
    let again = Repository::open(&place.path).unwrap();
    assert_has(&again, &archived);
    archive(&again, 8..9).unwrap();
    assert_eq!(again.plain_packs().unwrap(), 0);
}

#[test]
fn without_its_key_a_repository_is_left_alone() {
    own();
    let place = place();
    let made = Repository::create_encrypted(
        &place.path,
        CreateOptions::default(),
        &keyed(),
        &[own(), somebody()],
    );
    archive(&made.unwrap(), 2..4).unwrap();
    let own_file = key_files(&place.path).unwrap().remove(0);
    assert_eq!(Repository::check_keys(&place.path).unwrap()[0].problem, None);
    let wrapped = fs::read(&own_file.path).unwrap();
    fs::remove_file(&own_file.path).unwrap();
    let before = (fs::read(place.path.join(CATALOG)).unwrap(), packs_of(&place.path));
    let key = own_file.key.to_string();
    for error in [
        Repository::open(&place.path).unwrap_err(),
        Repository::rebuild_with(&place.path, true, &mut Silent).unwrap_err(),
        Repository::add_recipient(&place.path, &somebody()).unwrap_err(),
        Repository::rotate_key(&place.path, None).unwrap_err(),
    ] {
        assert!(
            matches!(&error, Error::Store(StoreError::NoKey { .. })),
            "{error}"
        );
        assert!(!error.is_damage() && error.to_string().contains(&key), "{error}");
    }
    assert_eq!(
        (fs::read(place.path.join(CATALOG)).unwrap(), packs_of(&place.path)),
        before
    );
    let checked = Repository::check_keys(&place.path).unwrap();
    assert!(checked[0].problem.as_ref().unwrap().contains(&key), "{checked:?}");
    fs::write(&own_file.path, wrapped).unwrap();
    Repository::open(&place.path).unwrap();
}

#[test]
fn who_opened_a_repository_before_it_had_a_key_writes_nothing_more() {
    let place = place();
    let before = Repository::create(&place.path, CreateOptions::default()).unwrap();
    let mut archived = archive(&before, 2..4).unwrap();
    Repository::encrypt_from_now(&place.path, &[own()]).unwrap();
    let error = archive(&before, 4..5).unwrap_err();
    assert!(error.to_string().contains("start it again"), "{error}");
    let after = Repository::open(&place.path).unwrap();
    archived.append(&mut archive(&after, 4..6).unwrap());
    assert_has(&after, &archived);
    assert_eq!(after.plain_packs().unwrap(), 2);
    // It says why it cannot read, and takes nothing for damaged.
    let (name, _) = archived.last_key_value().unwrap();
    let file = before.wal(&server()).find(name).unwrap().unwrap();
    let error = io::read_to_string(before.trees().reader(file.map)).unwrap_err();
    assert!(error.to_string().contains("is sealed under key"), "{error}");
}

/// Everything fails from the call with this number on, as if the process were killed.
fn kill_at(packs: &TestPacks<LocalPacks>, nth: usize) -> Arc<AtomicUsize> {
    let calls = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&calls);
    packs.before_each(move |call| {
        // Looking for changes of the 257 directories is most of the calls, and changes nothing.
        if matches!(call, Call::Mark(_) | Call::List) {
            return Ok(());
        }
        match seen.fetch_add(1, Ordering::SeqCst) >= nth {
            true => Err(StoreError::io(
                "reach",
                Path::new("packs"),
                io::ErrorKind::TimedOut.into(),
            )),
            false => Ok(()),
        }
    });
    calls
}

fn on_failing_packs(path: &Path) -> (Arc<TestPacks<LocalPacks>>, Repository) {
    let home = Home::at(path).unwrap();
    let settings = read_settings(&home).unwrap();
    let keys = unlock(path, &settings).unwrap().unwrap();
    let packs = Arc::new(TestPacks::new(LocalPacks::open(&path.join(PACKS)).unwrap()));
    let sealed = Arc::new(SealedPacks::new(packs.clone(), keys));
    (
        packs,
        Repository::on(home, settings, sealed, None, derive).unwrap(),
    )
}

fn half_encrypted() -> (Place, Archived) {
    let place = place();
    let plain = Repository::create(&place.path, CreateOptions::default()).unwrap();
    let mut archived = archive(&plain, 2..12).unwrap();
    drop(plain);
    Repository::encrypt_from_now(&place.path, &[own()]).unwrap();
    let sealing = Repository::open(&place.path).unwrap();
    archived.append(&mut archive(&sealing, 12..14).unwrap());
    (place, archived)
}

/// So many points, evenly over all calls of the storage.
const POINTS: usize = 100;

#[test]
fn an_encryption_that_is_killed_anywhere_loses_nothing_and_goes_on() {
    let (place, archived) = half_encrypted();
    let (packs, repository) = on_failing_packs(&place.path);
    let calls = kill_at(&packs, usize::MAX);
    assert!(
        repository
            .encrypt(&SweepOptions::default(), &mut Silent)
            .unwrap()
            .complete
    );
    assert_has(&Repository::open(&place.path).unwrap(), &archived);
    let calls = calls.load(Ordering::SeqCst);
    assert!(calls >= 50, "{calls} calls");
    for point in 0..POINTS.min(calls) {
        let (place, mut archived) = half_encrypted();
        let (packs, repository) = on_failing_packs(&place.path);
        kill_at(&packs, point * calls / POINTS.min(calls));
        let _killed = repository.encrypt(&SweepOptions::default(), &mut Silent);
        drop(repository);
        let again = Repository::open(&place.path).unwrap();
        assert_has(&again, &archived);
        archived.append(&mut archive(&again, 20..21).unwrap());
        let report = again.encrypt(&SweepOptions::default(), &mut Silent).unwrap();
        assert!(report.complete, "point {point}: {report:?}");
        drop(again);
        assert!(
            Repository::rebuild(&place.path, &mut Silent)
                .unwrap()
                .is_complete()
        );
        let done = Repository::open(&place.path).unwrap();
        assert_has(&done, &archived);
        assert_eq!(done.plain_packs().unwrap(), 0);
        assert!(!shows(&place.path, "name_of"));
        assert!(!done.settings().encryption.as_ref().unwrap().plain_packs);
    }
}

#[test]
fn plain_packs_are_accepted_only_with_a_proof() {
    let (place, _) = half_encrypted();
    let repository = Repository::open(&place.path).unwrap();
    let before = fs::read_to_string(place.path.join(SETTINGS)).unwrap();
    // A writer that was there before keeps the end of it back.
    let writer = repository.writer("test").unwrap();
    let report = repository.encrypt(&SweepOptions::default(), &mut Silent).unwrap();
    assert!(!report.complete && report.waiting_for.is_some(), "{report:?}");
    drop(writer);
    assert!(
        repository
            .encrypt(&SweepOptions::default(), &mut Silent)
            .unwrap()
            .complete
    );
    let after = fs::read_to_string(place.path.join(SETTINGS)).unwrap();
    fs::write(
        place.path.join(SETTINGS),
        after.replace("\"plain_packs\": false", "\"plain_packs\": true"),
    )
    .unwrap();
    let error = Repository::open(&place.path).unwrap_err();
    assert!(
        error.to_string().contains("changed by somebody without the key"),
        "{error}"
    );
    let other = before.replace("\"format_version\": 2", "\"format_version\": 1");
    fs::write(place.path.join(SETTINGS), other).unwrap();
    assert!(matches!(
        Repository::open(&place.path),
        Err(Error::BadSettings { .. })
    ));
}

#[test]
fn the_last_recipient_stays_and_a_false_one_gets_no_new_key() {
    let place = place();
    let repository =
        Repository::create_encrypted(&place.path, CreateOptions::default(), &keyed(), &[own()]).unwrap();
    let mut archived = archive(&repository, 2..4).unwrap();
    let error = Repository::remove_recipient(&place.path, &|_| true).unwrap_err();
    assert!(error.to_string().contains("last recipient"), "{error}");
    assert!(Repository::remove_recipient(&place.path, &|_| false).is_err());
    let added = Repository::add_recipient(&place.path, &somebody())
        .unwrap()
        .remove(0);
    let second = Repository::rotate_key(&place.path, None).unwrap();
    assert_eq!(
        key_files(&place.path)
            .unwrap()
            .iter()
            .filter(|file| file.key == second)
            .count(),
        2
    );
    let rotated = Repository::open(&place.path).unwrap();
    archived.append(&mut archive(&rotated, 4..6).unwrap());
    assert_has(&rotated, &archived);
    Repository::remove_recipient(&place.path, &|file| file.recipient == added.recipient).unwrap();
    // Somebody who can write here, and has no key, names himself.
    let mine = key_files(&place.path)
        .unwrap()
        .into_iter()
        .find(|file| file.key == second)
        .unwrap();
    let described = mine.path.with_extension("json");
    let forged = fs::read_to_string(&described).unwrap();
    let forged = forged.replace(
        mine.recipient.as_ref().unwrap(),
        added.recipient.as_ref().unwrap(),
    );
    fs::write(&described, forged).unwrap();
    let error = Repository::rotate_key(&place.path, None).unwrap_err();
    assert!(error.to_string().contains("not proven"), "{error}");
}

#[test]
fn a_second_repository_may_name_chunks_as_the_first_does() {
    let (first, second) = (place(), place());
    let repository =
        Repository::create_encrypted(&first.path, CreateOptions::default(), &keyed(), &[own()]).unwrap();
    let like = FirstKey::LikeThatOf(first.path.clone());
    let other =
        Repository::create_encrypted(&second.path, CreateOptions::default(), &like, &[own()]).unwrap();
    let (one, two) = (repository.storage.keys(), other.storage.keys());
    assert_eq!(one.id_of(b"chunk"), two.id_of(b"chunk"));
    assert_ne!(one.newest(), two.newest());
    let plain = place();
    Repository::create(&plain.path, CreateOptions::default()).unwrap();
    let like = FirstKey::LikeThatOf(plain.path.clone());
    let none = place();
    assert!(Repository::create_encrypted(&none.path, CreateOptions::default(), &like, &[own()]).is_err());
}
