//! Figures of the index with made-up chunks. Run by hand, optimized:
//! `MADE_UP_CHUNKS=10000000 cargo test --release -p barmanfs-catalog --lib figures_of_the_index -- --ignored --nocapture`

use std::time::{Duration, Instant};

use barmanfs_store::testing::noise;
use barmanfs_store::{ChunkId, ClosedPack, Encoding, PackId, PackedChunk};

use crate::index::chunk_index::{kept_place, proven_place};
use crate::index::records;
use crate::index::repository::temporary;
use crate::index::runs::merge;

/// Chunks of a full pack: windows of 128 KiB that compress to a third.
const OF_A_PACK: usize = 1500;

fn written_bytes() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix("wchar: "));
    line.unwrap().parse().unwrap()
}

/// What this thread has taken of a core.
fn used() -> Duration {
    let of_thread = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let nanoseconds = of_thread.split(' ').next().unwrap();
    Duration::from_nanos(nanoseconds.parse().unwrap())
}

fn pack(number: u64, deltas: usize) -> ClosedPack {
    let random = noise(number + 1, OF_A_PACK * 64 + 16);
    let mut offset = 32;
    let chunk = |(number, of): (usize, &[u8])| {
        let is_delta = number % 100 < deltas;
        let stored_bytes = 20_000 + u32::from(of[0]) * 200;
        offset += stored_bytes;
        PackedChunk {
            id: ChunkId(of[..32].try_into().unwrap()),
            encoding: if is_delta { Encoding::Delta } else { Encoding::Zstd },
            offset: offset - stored_bytes,
            stored_bytes,
            raw_bytes: 131_072,
            base: is_delta.then(|| ChunkId(of[32..64].try_into().unwrap())),
        }
    };
    let (id, of) = random.split_at(16);
    ClosedPack {
        id: PackId(id.try_into().unwrap()),
        bytes: 1,
        chunks: of.chunks_exact(64).enumerate().map(chunk).collect(),
        records: Vec::new(),
    }
}

#[test]
#[ignore = "takes minutes, and says something only when it is optimized"]
fn figures_of_the_index() {
    let variable = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let chunks: u64 = variable("MADE_UP_CHUNKS").unwrap_or(1_000_000);
    let deltas = variable("MADE_UP_DELTAS").unwrap_or(0) as usize;
    let (_directory, repository) = temporary();
    let packs = chunks / OF_A_PACK as u64;
    let (began, before) = (Instant::now(), written_bytes());
    for number in 0..packs {
        let pack = pack(number, deltas);
        let entered = repository
            .db
            .write(|db| records::enter(db, |_, _, _| Ok(()), &pack, None));
        assert!(entered.unwrap().new);
    }
    let per_chunk = |bytes: u64| bytes as f64 / (packs * OF_A_PACK as u64) as f64;
    let written = per_chunk(written_bytes() - before);
    println!(
        "{chunks} chunks, {deltas} % deltas: entered in {:?}, {written:.0} bytes written for each",
        began.elapsed()
    );
    let runs: i64 = repository
        .db
        .read(|db| Ok(db.query_row("SELECT count(*) FROM runs", [], |row| row.get(0))?))
        .unwrap();
    println!(
        "{:.1} bytes for each, {runs} runs",
        per_chunk(repository.catalog_bytes())
    );
    let look_up = |what: &str, ids: &[ChunkId]| {
        for _ in 0..2 {
            let (began, before) = (Instant::now(), used());
            for id in ids {
                repository.db.read(|db| kept_place(db, id)).unwrap();
            }
            let each = |all: Duration| all / ids.len() as u32;
            println!(
                "{what}: {:?} for each, {:?} of a core",
                each(began.elapsed()),
                each(used() - before)
            );
        }
    };
    let known: Vec<ChunkId> = (0..20_000)
        .map(|at| pack(at * 7919 % packs, 0).chunks[at as usize % OF_A_PACK].id)
        .collect();
    let unknown: Vec<ChunkId> = (0..40)
        .flat_map(|at| pack(packs + 1 + at, 0).chunks)
        .map(|chunk| chunk.id)
        .collect();
    look_up("known", &known);
    look_up("unknown", &unknown);
    let began = Instant::now();
    for id in &unknown {
        assert!(repository.db.read(|db| proven_place(db, id)).unwrap().is_none());
    }
    println!(
        "for a writer: {:?} for each",
        began.elapsed() / unknown.len() as u32
    );
    repository
        .db
        .write(|db| {
            Ok(db.execute_batch(
                "DELETE FROM packs WHERE seq % 2 = 1; DELETE FROM chunk_lists WHERE (first >> 16) % 2 = 1",
            )?)
        })
        .unwrap();
    let began = Instant::now();
    merge::compact(&repository.db).unwrap();
    repository.db.shrink().unwrap();
    let left = repository.catalog_bytes() as f64 * 2.0 / (packs * OF_A_PACK as u64) as f64;
    println!(
        "half gone: {left:.1} bytes for each that is left, after {:?}",
        began.elapsed()
    );
}
