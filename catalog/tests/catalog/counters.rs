//! What a repository counts of its own work.

use barmanfs_catalog::Repository;
use barmanfs_store::Counts;

use crate::common::{SEGMENT_SIZE, SYSTEM, archive, fixture, read_wal, segment};

#[test]
fn a_repository_counts_what_it_archives_and_reads() {
    let fixture = fixture();
    let (repository, server) = (&fixture.repository, &fixture.server);
    assert_eq!(repository.counters().snapshot(), Counts::default());
    let (name, bytes) = segment(1, SYSTEM, 1);
    archive(repository, server, &name, &bytes).unwrap();
    let first = repository.counters().snapshot();
    assert_eq!(
        (first.chunks_written, first.chunk_bytes_written),
        (1, SEGMENT_SIZE.bytes())
    );
    assert_eq!((first.packs_written, first.chunks_deduplicated), (1, 0));
    assert!(first.pack_bytes_written > first.frame_bytes_written);

    let other = "other".parse().unwrap();
    archive(repository, &other, &name, &bytes).unwrap();
    let second = repository.counters().snapshot();
    assert_eq!(
        (second.chunks_written, second.packs_written),
        (1, 2),
        "a record alone makes a pack"
    );
    assert_eq!(
        (second.chunks_deduplicated, second.chunk_bytes_deduplicated),
        (1, SEGMENT_SIZE.bytes())
    );

    // A larger cache is another one, and its readers count in the same place.
    let mounted = repository.clone().with_cache_bytes(8 << 20);
    for _ in 0..2 {
        assert_eq!(read_wal(&mounted, server, &name), bytes);
    }
    let third = repository.counters().snapshot();
    assert_eq!(
        (
            third.chunks_decoded - second.chunks_decoded,
            third.cache_misses - second.cache_misses
        ),
        (1, 1)
    );
    assert!(third.cache_hits > second.cache_hits);
    assert!(third.pack_read_latency.count > second.pack_read_latency.count);

    let opened = Repository::open(repository.path()).unwrap();
    assert_eq!(opened.counters().snapshot(), Counts::default());
}
