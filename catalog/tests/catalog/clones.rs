//! Clones: what they stand on stays, whatever becomes of the backup.

use std::time::SystemTime;

use barmanfs_catalog::{
    Backup, CloneDescription, CloneName, CloneOrigin, Error, Graft, Repository, Silent, SweepOptions,
};
use barmanfs_store::{Node, RecordId};

use crate::common::{Files, Fixture, SYSTEM, archive, attributes, back_up, fixture, noise, restore, segment};

fn files(generation: u64) -> Files {
    (0..8)
        .map(|n| (format!("base/{n}"), noise(100 * generation + n, 150_000)))
        .collect()
}

fn name(text: &str) -> CloneName {
    text.parse().unwrap()
}

fn description(f: &Fixture, backup: &Backup, clone: &str) -> CloneDescription {
    CloneDescription {
        id: RecordId::random().unwrap(),
        seed: None,
        server: f.server.clone(),
        name: name(clone),
        origin: CloneOrigin {
            backup: backup.id,
            target: None,
            copied_from: None,
        },
        created_at: SystemTime::now().into(),
        root: backup.root.clone().unwrap(),
        grafts: Vec::new(),
        max_bytes: None,
    }
}

fn make(f: &Fixture, backup: &Backup, clone: &str) -> CloneDescription {
    let draft = f.repository.begin_clone(description(f, backup, clone), backup);
    draft.unwrap().finish().unwrap()
}

fn sweep(repository: &Repository) -> u64 {
    let report = repository.sweep(&SweepOptions::default(), &mut Silent).unwrap();
    assert_eq!(report.missing_chunks, 0);
    report.removed_packs
}

#[test]
fn a_clone_is_there_when_it_is_finished_and_goes_as_a_whole() {
    let f = fixture();
    let backup = back_up(&f.repository, &f.server, &files(0));
    let draft = f
        .repository
        .begin_clone(description(&f, &backup, "test1"), &backup)
        .unwrap();
    std::fs::write(draft.directory().join("journal"), b"x").unwrap();
    assert_eq!(f.repository.clones(&f.server).unwrap(), []);
    let made = draft.finish().unwrap();
    assert_eq!(
        f.repository.clones(&f.server).unwrap(),
        std::slice::from_ref(&made)
    );
    let place = f.repository.clone_directory(&f.server, &made.name);
    assert!(place.join("journal").exists());

    let again = f
        .repository
        .begin_clone(description(&f, &backup, "test1"), &backup);
    assert!(matches!(again, Err(Error::CloneExists { .. })), "{again:?}");

    let lock = f.repository.lock_clone(&f.server, &made.name, "test").unwrap();
    let second = f.repository.lock_clone(&f.server, &made.name, "test");
    assert!(matches!(second, Err(Error::CloneInUse { .. })), "{second:?}");
    f.repository.remove_clone(&made, lock).unwrap();
    assert!(!place.exists());
    let gone = f.repository.clone_named(&f.server, &made.name);
    assert!(matches!(gone, Err(Error::NoSuchClone { .. })), "{gone:?}");
    make(&f, &backup, "test1");
}

#[test]
fn a_draft_that_is_given_up_leaves_nothing() {
    let f = fixture();
    let backup = back_up(&f.repository, &f.server, &files(0));
    let draft = f.repository.begin_clone(description(&f, &backup, "a"), &backup);
    let place = draft.as_ref().unwrap().directory().to_path_buf();
    drop(draft);
    assert!(!place.exists());
    // As a killed process leaves it.
    std::fs::create_dir_all(place.join("files")).unwrap();
    let report = f.repository.sweep(&SweepOptions::default(), &mut Silent).unwrap();
    assert_eq!(report.abandoned_files, 1);
    assert!(!place.exists());
}

#[test]
fn what_a_clone_stands_on_survives_the_backup() {
    let f = fixture();
    let (wal, bytes) = segment(1, SYSTEM, 7);
    archive(&f.repository, &f.server, &wal, &bytes).unwrap();
    let backup = back_up(&f.repository, &f.server, &files(0));
    let mut wanted = description(&f, &backup, "test1");
    wanted.grafts.push(Graft {
        path: format!("pg_wal/{wal}"),
        attributes: attributes(),
        map: f.repository.wal(&f.server).find(&wal).unwrap().unwrap().map,
    });
    let clone = f
        .repository
        .begin_clone(wanted, &backup)
        .unwrap()
        .finish()
        .unwrap();

    let refused = f.repository.delete_backup(&backup, false).unwrap_err();
    assert_eq!(
        refused.to_string(),
        format!(
            "Backup {} of server main is what the clone test1 stands on: destroy it first, or use --force, which keeps the data",
            backup.id
        )
    );
    f.repository.delete_backup(&backup, true).unwrap();
    sweep(&f.repository);
    assert_eq!(restore(&f.repository, &backup), files(0));
    let trees = f.repository.trees();
    let graft = &clone.grafts[0];
    let mut read = vec![0; bytes.len()];
    assert_eq!(trees.read_at(&graft.map, 0, &mut read).unwrap(), bytes.len());
    assert_eq!(read, bytes);
    assert!(
        trees
            .entries(&clone.root.directory)
            .all(|entry| matches!(entry.unwrap().node, Node::Directory(_) | Node::File(_)))
    );

    let lock = f.repository.lock_clone(&f.server, &clone.name, "test").unwrap();
    f.repository.remove_clone(&clone, lock).unwrap();
    assert!(sweep(&f.repository) > 0);
}

#[test]
fn a_sweep_frees_nothing_while_a_clone_cannot_be_read() {
    let f = fixture();
    let backup = back_up(&f.repository, &f.server, &files(0));
    let clone = make(&f, &backup, "test1");
    f.repository.delete_backup(&backup, true).unwrap();
    let place = f.repository.clone_directory(&f.server, &clone.name);
    std::fs::write(place.join("clone.json"), b"{").unwrap();
    let refused = f.repository.sweep(&SweepOptions::default(), &mut Silent);
    assert!(matches!(refused, Err(Error::BadClone { .. })), "{refused:?}");
    assert_eq!(restore(&f.repository, &backup), files(0));
}

#[test]
fn a_clone_of_a_deleted_backup_is_refused() {
    let f = fixture();
    let backup = back_up(&f.repository, &f.server, &files(0));
    f.repository.delete_backup(&backup, false).unwrap();
    let refused = f
        .repository
        .begin_clone(description(&f, &backup, "late"), &backup);
    assert!(matches!(refused, Err(Error::NoSuchBackup { .. })), "{refused:?}");
}
