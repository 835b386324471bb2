use std::collections::HashSet;
use std::process::{Command, Stdio};

use super::*;

fn packs() -> (tempfile::TempDir, LocalPacks) {
    let directory = tempfile::tempdir().unwrap();
    let packs = LocalPacks::create(&directory.path().join("packs")).unwrap();
    (directory, packs)
}

fn put(packs: &LocalPacks, bytes: &[u8]) -> PackId {
    let mut upload = packs.begin().unwrap();
    let id = upload.id();
    upload.write(bytes).unwrap();
    upload.finish().unwrap();
    id
}

fn listed(packs: &LocalPacks) -> HashSet<PackId> {
    let mut ids = HashSet::new();
    packs
        .list(&mut |id| {
            assert!(ids.insert(id));
            Ok(())
        })
        .unwrap();
    ids
}

fn temporaries(packs: &LocalPacks) -> usize {
    fs::read_dir(&packs.directory)
        .unwrap()
        .filter(|entry| !entry.as_ref().unwrap().path().is_dir())
        .count()
}

#[test]
fn a_pack_is_there_when_finished_and_not_before() {
    let (_directory, packs) = packs();
    let mut upload = packs.begin().unwrap();
    let id = upload.id();
    upload.write(b"0123456789").unwrap();
    assert!(listed(&packs).is_empty());
    assert!(matches!(packs.bytes(id), Err(Error::MissingPack(_))));
    assert!(matches!(
        packs.read_at(id, 0, &mut [0]),
        Err(Error::MissingPack(_))
    ));
    upload.finish().unwrap();
    assert_eq!(listed(&packs), HashSet::from([id]));
    assert_eq!(packs.bytes(id).unwrap(), 10);
    let mut middle = [0; 4];
    packs.read_at(id, 3, &mut middle).unwrap();
    assert_eq!(&middle, b"3456");
    assert_eq!(temporaries(&packs), 0);
}

#[test]
fn a_directory_does_what_a_storage_must() {
    let (_directory, packs) = packs();
    crate::testing::conforms(&packs);
    assert_eq!(temporaries(&packs), 0);
}

#[test]
fn wrappers_and_memory_do_what_a_storage_must() {
    let (_directory, packs) = packs();
    let counted = crate::CountedPacks::new(Arc::new(packs), Arc::default());
    crate::testing::conforms(&crate::testing::TestPacks::new(counted));
    crate::testing::conforms(&crate::testing::MemoryPacks::default());
}

#[test]
fn a_dropped_pack_leaves_nothing() {
    let (_directory, packs) = packs();
    let mut upload = packs.begin().unwrap();
    upload.write(&vec![1; 3 * WRITE_BUFFER_BYTES]).unwrap();
    assert_eq!(temporaries(&packs), 1);
    drop(upload);
    assert_eq!(temporaries(&packs), 0);
}

#[test]
fn reading_past_the_end_is_damage() {
    let (_directory, packs) = packs();
    let id = put(&packs, b"0123456789");
    let error = packs.read_at(id, 8, &mut [0; 4]).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("Pack {id} is damaged: It ends before byte 12")
    );
}

#[test]
fn what_the_disk_cannot_read_is_damage() {
    let id = PackId([1; 16]);
    let of = |errno| unreadable(id, "open", Path::new("/p"), io::Error::from_raw_os_error(errno));
    for errno in [EIO, EBADMSG, EUCLEAN] {
        let error = of(errno);
        assert!(
            error.is_damage() && error.to_string().contains(&id.to_string()),
            "{error}"
        );
    }
    assert!(matches!(of(2), Error::MissingPack(_)));
    assert!(matches!(of(13), Error::Io { .. }));
}

#[test]
fn removing_twice_is_no_error() {
    let (_directory, packs) = packs();
    let (kept, id) = (put(&packs, b"kept"), put(&packs, b"gone"));
    packs.read_at(id, 0, &mut [0; 4]).unwrap();
    packs.remove(id).unwrap();
    packs.remove(id).unwrap();
    assert!(matches!(
        packs.read_at(id, 0, &mut [0; 4]),
        Err(Error::MissingPack(_))
    ));
    assert_eq!(listed(&packs), HashSet::from([kept]));
}

#[test]
fn a_directory_lost_where_it_was_empty_is_made_again() {
    let (_directory, packs) = packs();
    for first in 0..=u8::MAX {
        fs::remove_dir(packs.directory.join(format!("{first:02x}"))).unwrap();
    }
    let id = put(&packs, b"x");
    assert_eq!(listed(&packs), HashSet::from([id]));
}

#[test]
fn other_files_are_no_packs() {
    let (_directory, packs) = packs();
    let id = put(&packs, b"x");
    let (elsewhere, own) = (PackId([0xcd; 16]).to_string(), packs.path(id));
    fs::write(own.parent().unwrap().join("notes"), b"").unwrap();
    fs::write(
        packs.directory.join("ab").join(&elsewhere),
        b"a pack in the wrong directory",
    )
    .unwrap();
    fs::write(packs.directory.join("cd"), b"").unwrap_err();
    assert_eq!(listed(&packs), HashSet::from([id]));
}

#[test]
fn packs_that_cannot_be_looked_at_are_not_left_out() {
    let (_directory, packs) = packs();
    let shelf = packs.directory.join("ab");
    fs::remove_dir(&shelf).unwrap();
    std::os::unix::fs::symlink("ab", &shelf).unwrap();
    let error = packs.list(&mut |_| Ok(())).unwrap_err();
    assert!(error.to_string().contains("/ab"), "{error}");
}

#[test]
fn what_a_living_writer_writes_is_never_abandoned() {
    let (_directory, packs) = packs();
    let mut upload = packs.begin().unwrap();
    upload.write(b"alive").unwrap();
    fs::write(packs.directory.join("tmp-00.partial"), b"dead").unwrap();
    fs::write(packs.directory.join("readme"), b"neither").unwrap();
    assert_eq!(
        packs.remove_abandoned(Duration::from_secs(3600)).unwrap(),
        0,
        "too young"
    );
    assert_eq!(packs.remove_abandoned(Duration::ZERO).unwrap(), 1);
    assert_eq!(packs.remove_abandoned(Duration::ZERO).unwrap(), 0);
    assert_eq!(temporaries(&packs), 2);
    upload.finish().unwrap();
    assert_eq!(listed(&packs).len(), 1);
}

#[test]
fn the_next_pack_is_written_into_a_spare_and_gives_back_what_it_does_not_need() {
    use rustix::fs::{FallocateFlags, fallocate};
    let (_directory, packs) = packs();
    let spare = LocalPacks::spare(&packs.directory);
    let file = File::create(&spare).unwrap();
    fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 1 << 20).unwrap();
    let inode = file.metadata().unwrap().ino();
    drop(file);
    let id = put(&packs, b"held");
    let pack = fs::metadata(packs.path(id)).unwrap();
    assert_eq!((pack.ino(), pack.len()), (inode, 4));
    assert!(pack.blocks() * 512 < 1 << 20, "{} blocks", pack.blocks());
    assert!(!spare.exists());
    assert_ne!(
        fs::metadata(packs.path(put(&packs, b"other"))).unwrap().ino(),
        inode
    );
}

#[test]
fn a_spare_that_another_writer_holds_or_has_written_to_is_left_alone() {
    let (_directory, packs) = packs();
    let spare = LocalPacks::spare(&packs.directory);
    let file = File::create(&spare).unwrap();
    file.lock().unwrap();
    put(&packs, b"a pack");
    assert!(spare.exists(), "it is another writer's");
    drop(file);
    fs::write(&spare, b"x").unwrap();
    put(&packs, b"another");
    assert_eq!(fs::read(&spare).unwrap(), b"x");
}

#[test]
fn a_lock_of_another_process_counts() {
    let (_directory, packs) = packs();
    let path = packs.directory.join("tmp-00.partial");
    fs::write(&path, b"").unwrap();
    let mut flock = Command::new("flock");
    let flock = flock
        .arg(&path)
        .args(["-c", "echo; read wait"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut writer = flock.spawn().unwrap();
    io::Read::read_exact(writer.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    assert_eq!(packs.remove_abandoned(Duration::ZERO).unwrap(), 0);
    drop(writer.stdin.take());
    writer.wait().unwrap();
    assert_eq!(packs.remove_abandoned(Duration::ZERO).unwrap(), 1);
}

#[test]
fn more_packs_than_are_kept_open() {
    let (_directory, packs) = packs();
    let ids: Vec<PackId> = (0..OPEN_PACKS.get() + 10)
        .map(|n| put(&packs, &n.to_le_bytes()))
        .collect();
    for _ in 0..2 {
        for (n, id) in ids.iter().enumerate() {
            let mut bytes = [0; 8];
            packs.read_at(*id, 0, &mut bytes).unwrap();
            assert_eq!(bytes, n.to_le_bytes());
        }
    }
    assert_eq!(packs.open_files().len(), OPEN_PACKS.get());
}

#[test]
fn a_directory_that_is_none_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("packs");
    assert!(LocalPacks::open(&path).is_err());
    fs::write(&path, b"").unwrap();
    assert!(
        LocalPacks::open(&path)
            .unwrap_err()
            .to_string()
            .starts_with("Cannot open /")
    );
}
