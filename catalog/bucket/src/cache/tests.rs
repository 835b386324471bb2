//! The cache over packs in memory: what it must return, keep and forget.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use barmanfs_store::testing::conforms;
use object_store::memory::InMemory;

use super::*;
use crate::Bucket;

const PATIENCE: Duration = Duration::from_secs(5);

struct Cache {
    directory: tempfile::TempDir,
    packs: Arc<ObjectPacks>,
    max_bytes: u64,
}

impl Cache {
    fn new(max_bytes: u64) -> Self {
        let bucket = Bucket::on(Arc::new(InMemory::new()), "p", "memory".to_owned(), PATIENCE).unwrap();
        Self {
            directory: tempfile::tempdir().unwrap(),
            packs: Arc::new(ObjectPacks::new(Arc::new(bucket))),
            max_bytes,
        }
    }

    /// As another process opens it.
    fn open(&self) -> BlockCache {
        BlockCache::new(
            Arc::clone(&self.packs),
            &self.directory.path().join("blocks"),
            self.max_bytes,
        )
    }

    /// A pack of which nothing is here.
    fn put(&self, bytes: &[u8]) -> PackId {
        let mut upload = self.packs.begin().unwrap();
        upload.write(bytes).unwrap();
        let id = upload.id();
        upload.finish().unwrap();
        id
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        let Ok(directories) = fs::read_dir(self.directory.path().join("blocks")) else {
            return files;
        };
        for directory in directories
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_dir())
        {
            files.extend(
                fs::read_dir(directory)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        }
        files
    }

    fn taken(&self) -> u64 {
        let taken = |path: &PathBuf| fs::metadata(path).unwrap().blocks() * 512;
        self.files().iter().map(taken).sum()
    }
}

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length)
        .map(|n| (n / 251) as u8 ^ (n % 251) as u8 ^ seed)
        .collect()
}

fn read(cache: &BlockCache, id: PackId, offset: usize, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    cache.read_at(id, offset as u64, &mut bytes).unwrap();
    bytes
}

#[test]
fn a_cache_does_what_a_storage_must() {
    conforms(&Cache::new(1 << 30).open());
    conforms(&Cache::new(0).open());
}

#[test]
fn what_was_read_or_put_is_read_again_without_the_bucket() {
    let cache = Cache::new(1 << 30);
    let bytes = pattern(3_000_000, 1);
    let id = cache.put(&bytes);
    for (offset, length) in [(0, 10), (262_140, 10), (1_000_000, 700_000), (2_999_990, 10)] {
        assert_eq!(
            read(&cache.open(), id, offset, length),
            &bytes[offset..offset + length]
        );
    }
    let mut upload = cache.open().begin().unwrap();
    upload.write(&bytes[..1_000_001]).unwrap();
    upload.write(&bytes[1_000_001..]).unwrap();
    let own = upload.id();
    upload.finish().unwrap();
    cache.packs.remove(id).unwrap();
    cache.packs.remove(own).unwrap();
    assert_eq!(
        read(&cache.open(), id, 1_000_000, 700_000),
        &bytes[1_000_000..1_700_000]
    );
    assert_eq!(read(&cache.open(), own, 0, bytes.len()), bytes);
    assert_eq!(cache.open().bytes(own).unwrap(), 3_000_000);
}

/// The kind: what a crash or a bad disk leaves in the cache must never be taken for data.
#[test]
fn a_damaged_block_is_read_from_the_bucket() {
    let cache = Cache::new(1 << 30);
    let bytes = pattern(600_000, 2);
    let id = cache.put(&bytes);
    assert_eq!(read(&cache.open(), id, 0, bytes.len()), bytes);
    let [file] = &cache.files()[..] else {
        panic!("one file")
    };
    for damage in [
        // In a block, in the table, in the header, at the end.
        |file: &mut Vec<u8>| file[8192 + 300_000] ^= 1,
        |file: &mut Vec<u8>| file[4096] ^= 1,
        |file: &mut Vec<u8>| file[0] ^= 1,
        |file: &mut Vec<u8>| file[10] ^= 1,
        |file: &mut Vec<u8>| file.truncate(8192 + 20),
        |file: &mut Vec<u8>| file.truncate(0),
    ] {
        let whole = fs::read(file).unwrap();
        let mut damaged = whole.clone();
        damage(&mut damaged);
        fs::write(file, damaged).unwrap();
        assert_eq!(read(&cache.open(), id, 0, bytes.len()), bytes);
        fs::write(file, whole).unwrap();
    }
}

#[test]
fn the_limit_holds_and_what_was_not_used_goes_first() {
    let limit = 4 << 20;
    let cache = Cache::new(limit);
    let packs: Vec<PackId> = (0..12).map(|n| cache.put(&pattern(1 << 20, n))).collect();
    for (n, id) in packs.iter().enumerate() {
        assert_eq!(read(&cache.open(), *id, 0, 1 << 20), pattern(1 << 20, n as u8));
        assert!(cache.taken() <= limit, "{}", cache.taken());
        // Their order is that of their times, whatever the clock's steps are.
        let time = std::time::SystemTime::now() - Duration::from_secs(3600 - n as u64);
        for file in cache.files() {
            if file.ends_with(id.to_string()) {
                fs::File::open(file).unwrap().set_modified(time).unwrap();
            }
        }
    }
    let names: Vec<String> = cache
        .files()
        .iter()
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    assert!(names.contains(&packs[11].to_string()), "{names:?}");
    assert!(!names.contains(&packs[0].to_string()), "{names:?}");
}

#[test]
fn everything_works_without_the_directory_and_while_it_is_removed() {
    let cache = Cache::new(1 << 30);
    let bytes = pattern(2_000_000, 5);
    let id = cache.put(&bytes);
    let open = cache.open();
    assert_eq!(read(&open, id, 0, 2_000_000), bytes);
    fs::remove_dir_all(cache.directory.path().join("blocks")).unwrap();
    assert_eq!(read(&open, id, 0, 2_000_000), bytes);
    // A file in its place: nothing can be kept.
    let _not_made_again = fs::remove_dir_all(cache.directory.path().join("blocks"));
    fs::write(cache.directory.path().join("blocks"), "").unwrap();
    let open = cache.open();
    assert_eq!(read(&open, id, 0, 2_000_000), bytes);
    let mut upload = open.begin().unwrap();
    upload.write(&bytes).unwrap();
    upload.finish().unwrap();
}

#[test]
fn many_readers_at_once_get_what_was_put() {
    let cache = Cache::new(3 << 20);
    let bytes = pattern(5_000_000, 7);
    let ids = [cache.put(&bytes), cache.put(&bytes)];
    let open = cache.open();
    std::thread::scope(|scope| {
        for thread in 0..6_usize {
            let (open, bytes, ids) = (&open, &bytes, &ids);
            scope.spawn(move || {
                for step in 0..60_usize {
                    let offset = (thread * 700_001 + step * 81_920) % 4_900_000;
                    let id = ids[step % 2];
                    open.will_read(id, offset as u64 + 400_000, 100_000);
                    assert_eq!(read(open, id, offset, 90_000), &bytes[offset..offset + 90_000]);
                }
            });
        }
    });
}
