//! Clones: their base stays, whatever happens to the backup.

use barmanfs_catalog::{
    Backup, BackupKind, BackupSelector, BackupStatus, CloneDescription, CloneName, Error, ExtraFile,
    Repository, Silent, SweepOptions, Target, TargetSpec,
};
use barmanfs_store::Node;

use crate::common::{
    Files, Fixture, SYSTEM, archive, attributes, back_up, clone_of, finish, fixture, new_backup,
    new_backup_with_wal, noise, put_files, restore, segment,
};

fn files(generation: u64) -> Files {
    (0..8)
        .map(|n| (format!("base/{n}"), noise(100 * generation + n, 150_000)))
        .collect()
}

fn name(text: &str) -> CloneName {
    text.parse().unwrap()
}

fn description(backup: &Backup, clone: &str) -> CloneDescription {
    CloneDescription {
        name: name(clone),
        ..clone_of(backup)
    }
}

pub(crate) fn make(f: &Fixture, backup: &Backup, clone: &str) -> CloneDescription {
    let draft = f.repository.begin_clone(description(backup, clone), backup);
    draft.unwrap().finish().unwrap()
}

fn sweep(repository: &Repository) -> u64 {
    let report = repository.sweep(&SweepOptions::default(), &mut Silent).unwrap();
    assert_eq!(report.missing_chunks, 0);
    report.removed_packs
}

#[test]
fn a_clone_appears_when_it_is_finished_and_is_removed_as_a_whole() {
    let f = fixture();
    let backup = back_up(&f.repository, &f.server, &files(0));
    let draft = f
        .repository
        .begin_clone(description(&backup, "test1"), &backup)
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

    let again = f.repository.begin_clone(description(&backup, "test1"), &backup);
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
fn an_abandoned_draft_leaves_nothing() {
    let f = fixture();
    let backup = back_up(&f.repository, &f.server, &files(0));
    let draft = f.repository.begin_clone(description(&backup, "a"), &backup);
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
fn a_clones_base_survives_the_deletion_of_its_backup() {
    let f = fixture();
    let (wal, bytes) = segment(1, SYSTEM, 7);
    archive(&f.repository, &f.server, &wal, &bytes).unwrap();
    let backup = back_up(&f.repository, &f.server, &files(0));
    let mut wanted = description(&backup, "test1");
    wanted.grafts.push(ExtraFile {
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
            "Clone test1 is based on backup {} of server main: destroy it first, or use --force, which keeps the data",
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
    let refused = f.repository.begin_clone(description(&backup, "late"), &backup);
    assert!(matches!(refused, Err(Error::NoSuchBackup { .. })), "{refused:?}");
}

/// Makes a backup of a clone of `backup`: its tree, with one file changed.
fn commit(f: &Fixture, backup: &Backup) -> Backup {
    let mut clone = description(backup, "test1");
    clone.origin.target = Some("lsn:0/3000000".to_owned());
    let new = new_backup_with_wal(SYSTEM);
    let writer = f.repository.writer("test commit").unwrap();
    let mut run = writer.begin_backup(&f.server, new).unwrap();
    run.build_on_clone(&clone, true).unwrap();
    put_files(&run, &files(0));
    finish(run, 1, 3)
}

#[test]
fn a_backup_of_a_clone_is_not_one_of_the_server() {
    let f = fixture();
    let own = back_up(&f.repository, &f.server, &files(0));
    let committed = commit(&f, &own);
    assert_eq!(
        (committed.kind, committed.parent, committed.status),
        (BackupKind::Clone, Some(own.id), BackupStatus::Done)
    );
    let from = committed.cloned_from.clone().unwrap();
    assert_eq!(
        (from.name.as_str(), from.target.as_deref(), from.shut_down),
        ("test1", Some("lsn:0/3000000"), true)
    );
    assert_eq!(committed.needed_wal().count(), 0);
    assert!(
        committed.new_stored_bytes < 2_000,
        "{}",
        committed.new_stored_bytes
    );
    for selector in [BackupSelector::Latest, BackupSelector::Oldest] {
        assert_eq!(
            f.repository.backup(&f.server, &selector).unwrap().id,
            own.id,
            "{selector}"
        );
    }
    for number in 1..=4 {
        let (name, bytes) = segment(number, SYSTEM, 100 + u64::from(number));
        archive(&f.repository, &f.server, &name, &bytes).unwrap();
    }
    let report = f.repository.timelines(&f.server).unwrap();
    let placed: Vec<_> = report
        .timelines
        .iter()
        .flat_map(|timeline| &timeline.backups)
        .collect();
    assert_eq!(placed.iter().map(|place| place.id).collect::<Vec<_>>(), [own.id]);
    let spec = TargetSpec {
        backup: Some(committed.id),
        ..Target::Immediate.into()
    };
    let refused = f.repository.plan(&f.server, &spec).unwrap().unwrap_err();
    assert!(refused.to_string().contains("made of a clone"), "{refused}");
    let spec = TargetSpec::from(Target::Immediate);
    assert_eq!(
        f.repository.plan(&f.server, &spec).unwrap().unwrap().backup.id,
        own.id
    );

    // It stays when everything it was made from is gone, and a rebuilt catalog shows the same
    // backup.
    f.repository.delete_backup(&own, false).unwrap();
    sweep(&f.repository);
    assert_eq!(restore(&f.repository, &committed), files(0));
    Repository::rebuild(f.repository.path(), &mut Silent).unwrap();
    let id = BackupSelector::Id(committed.id);
    assert_eq!(f.repository.backup(&f.server, &id).unwrap(), committed);
    let none = f.repository.backup(&f.server, &BackupSelector::Latest);
    assert!(matches!(none, Err(Error::NoSuchBackup { .. })));
}

#[test]
fn a_failed_commit_is_not_a_failed_backup_of_the_server() {
    let f = fixture();
    let own = back_up(&f.repository, &f.server, &files(0));
    let writer = f.repository.writer("test commit").unwrap();
    let mut run = writer.begin_backup(&f.server, new_backup()).unwrap();
    run.build_on_clone(&description(&own, "test1"), false).unwrap();
    run.fail("Interrupted");
    assert_eq!(f.repository.backups(&f.server).unwrap().len(), 2);
    let none = f.repository.backup(&f.server, &BackupSelector::LatestFailed);
    assert!(matches!(none, Err(Error::NoSuchBackup { .. })));
}
