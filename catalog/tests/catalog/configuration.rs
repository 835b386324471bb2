//! Configuration files from outside the data directory are stored with a backup, and removed with it.

use barmanfs_catalog::{Backup, ConfigurationFiles, Repository, Silent, SweepOptions, VerifyScope};
use barmanfs_store::layout::DATA_WINDOW_BYTES;
use barmanfs_store::{Attributes, FileMap};

use crate::common::{
    Files, Fixture, attributes, back_up, backup_end, begin, fixture, noise, put_files, stored,
};

/// Their kind of record, see FORMAT.md.
const KIND: u8 = 11;

const MAIN: &str = "/etc/postgresql/15/main/postgresql.conf";
const HBA: &str = "/etc/postgresql/15/main/pg_hba.conf";
const SHARED: &str = "/srv/shared.conf";

/// A backup with these configuration files.
pub(crate) fn back_up_with(f: &Fixture, seed: u64, files: &[(&str, &[u8])]) -> Backup {
    let mut run = begin(&f.repository, &f.server);
    put_files(&run, &Files::from([("base/1".to_owned(), noise(seed, 300_000))]));
    run.end_tree(attributes()).unwrap();
    let tree = run.configuration_tree().unwrap();
    for (path, text) in files {
        let name = path.trim_start_matches('/').as_bytes();
        let mut file = tree
            .file(name, attributes(), text.len() as u64, DATA_WINDOW_BYTES)
            .unwrap();
        file.write(text).unwrap();
        file.finish().unwrap();
    }
    let directory = tree.finish(attributes()).unwrap().root;
    run.set_configuration(ConfigurationFiles {
        directory,
        read_at: "2026-11-20T10:15:00Z".parse().unwrap(),
        data_directory: "/var/lib/postgresql/15/main".to_owned(),
        config_file: Some(MAIN.to_owned()),
        hba_file: Some(HBA.to_owned()),
        ident_file: None,
    });
    run.finish(backup_end(1, 1)).unwrap()
}

/// The files as they are read back.
fn read(repository: &Repository, backup: &Backup) -> Vec<(String, Vec<u8>)> {
    let Some(files) = repository.configuration_files(backup).unwrap() else {
        return Vec::new();
    };
    let trees = repository.trees();
    let read = |(path, (_, map)): (String, (Attributes, FileMap))| {
        let mut text = vec![0; usize::try_from(map.size_bytes).unwrap()];
        trees.read_at(&map, 0, &mut text).unwrap();
        (path, text)
    };
    files.all(&trees).unwrap().into_iter().map(read).collect()
}

fn sweep_twice(f: &Fixture) {
    for _ in 0..2 {
        f.repository.sweep(&SweepOptions::default(), &mut Silent).unwrap();
    }
}

#[test]
fn they_are_found_by_their_paths_on_the_server() {
    let f = fixture();
    let text = noise(7, 200_000);
    let files: [(&str, &[u8]); 3] = [(MAIN, &text), (HBA, b"local all all peer\n"), (SHARED, b"")];
    let backup = back_up_with(&f, 1, &files);
    let mut expected: Vec<_> = files
        .iter()
        .map(|(path, text)| ((*path).to_owned(), text.to_vec()))
        .collect();
    expected.sort();
    assert_eq!(read(&f.repository, &backup), expected);
    let found = f.repository.configuration_files(&backup).unwrap().unwrap();
    let trees = f.repository.trees();
    assert_eq!(
        found.names(&trees, "/etc/postgresql/15/main").unwrap(),
        Some(vec![b"pg_hba.conf".to_vec(), b"postgresql.conf".to_vec()])
    );
    assert_eq!(found.names(&trees, "/etc/nowhere").unwrap(), None);

    let other = back_up(&f.repository, &f.server, &Files::new());
    assert_eq!(f.repository.configuration_files(&other).unwrap(), None);
}

#[test]
fn what_has_not_changed_costs_one_record() {
    let f = fixture();
    let text = noise(7, 200_000);
    back_up_with(&f, 1, &[(MAIN, &text)]);
    let before = f.repository.stats().unwrap().pack_bytes;
    back_up_with(&f, 1, &[(MAIN, &text)]);
    let added = f.repository.stats().unwrap().pack_bytes - before;
    assert!(added < 8192, "{added}");
}

#[test]
fn a_sweep_keeps_them_as_long_as_their_backup() {
    let f = fixture();
    let (old, new) = (noise(7, 200_000), noise(8, 200_000));
    let first = back_up_with(&f, 1, &[(MAIN, &old)]);
    let second = back_up_with(&f, 2, &[(MAIN, &new)]);
    f.repository.delete_backup(&first, false).unwrap();
    sweep_twice(&f);
    assert_eq!(f.repository.configuration_files(&first).unwrap(), None);
    assert_eq!(read(&f.repository, &second), [(MAIN.to_owned(), new.clone())]);
    let report = f.repository.verify(&VerifyScope::All, &mut Silent);
    assert!(report.unwrap().damages.is_empty());

    Repository::rebuild(f.repository.path(), &mut Silent).unwrap();
    assert_eq!(read(&f.repository, &second), [(MAIN.to_owned(), new)]);
    assert_eq!(f.repository.configuration_files(&first).unwrap(), None);

    f.repository.delete_backup(&second, false).unwrap();
    sweep_twice(&f);
    assert_eq!(stored(&f, KIND), 0);
}
