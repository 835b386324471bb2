//! Compares pages of an incremental backup with the server.
//!
//! In an incremental backup, what the server did not send is taken from the backup before. If the server has forgotten a
//! change, nothing else notices it: checksums of pages and of the manifest are all right. So a random sample of pages is
//! read from the server's files and compared.
//!
//! A page whose LSN is older than the backup's start has not been changed since, so it must be the same in the backup. Two
//! things change pages without a new LSN. Hint bits do, unless page checksums are on: then the first such change after a
//! checkpoint writes a new LSN, and a backup begins with one. And a page that is only zeros has no LSN. Pages of free space
//! maps are not logged at all. All these are left out.

use std::time::SystemTime;

use barmanfs_catalog::{AuditMemory, Backup, Repository};
use barmanfs_pg::relation_name::{self, Fork};
use barmanfs_pg::{Lsn, hex};
use barmanfs_store::layout::BLOCK_BYTES;
use barmanfs_store::tree::TreeReader;
use barmanfs_store::{DirectoryRef, FileMap, Node};

use super::task::newest_done;
use crate::cluster::{self, Purpose};
use crate::config::ServerConfig;
use crate::error::Error;
use crate::output;
use crate::postgres::{self, Connection};

/// Bytes of a page.
const PAGE: u64 = BLOCK_BYTES as u64;

/// Pages of one file that are asked for with one statement: half a megabyte, as text twice as much.
const PAGES_AT_ONCE: usize = 64;

/// SQLSTATE "insufficient privilege".
const NOT_ALLOWED: &str = "42501";

/// A page in the sample.
struct Sample {
    path: String,
    map: FileMap,
    /// Its numbers in the file, in order.
    pages: Vec<u64>,
}

/// Compares `audit_sample` pages of the newest backup, and remembers the result.
///
/// # Errors
/// When the server or the backup cannot be read. A difference and a refusal are results.
pub(super) fn run(repository: &Repository, server: &ServerConfig) -> Result<String, Error> {
    let backup = newest_done(repository, &server.name)?;
    let mut audit = AuditMemory {
        backup: backup.id,
        at: SystemTime::now().into(),
        pages: 0,
        refused: None,
        difference: None,
    };
    match backup.data_checksums {
        Some(true) => compare(repository, server, &backup, &mut audit)?,
        _ => audit.refused = Some("without page checksums, pages change unnoticed".to_owned()),
    }
    repository.remember_of_server(&server.name, |memory| {
        if audit.difference.is_some() {
            memory.difference = Some(audit.clone());
        }
        memory.audit = Some(audit.clone());
    })?;
    let id = backup.id;
    if let Some(difference) = &audit.difference {
        tracing::error!(
            "Backup {id} of server {} is not what the server has: {difference}. The next one is a full one",
            server.name
        );
    }
    let compared = output::count(audit.pages, "page");
    Ok(match (audit.difference, audit.refused) {
        (Some(difference), _) => format!("backup {id} differs from the server: {difference}"),
        (None, Some(refused)) => format!("backup {id} cannot be compared: {refused}"),
        (None, None) => format!("{compared} of backup {id} are as on the server"),
    })
}

fn compare(
    repository: &Repository,
    server: &ServerConfig,
    backup: &Backup,
    audit: &mut AuditMemory,
) -> Result<(), Error> {
    let (Some(root), Some(start)) = (&backup.root, backup.start_lsn) else {
        return Ok(());
    };
    let trees = repository.trees();
    let mut sql = cluster::connect(server, Purpose::Sql)?;
    let sampled = sample(&trees, &root.directory, server.audit_sample)?;
    for sample in &sampled {
        for pages in sample.pages.chunks(PAGES_AT_ONCE) {
            let theirs = match ask(&mut sql, &sample.path, pages) {
                Err(postgres::Error::Server(answer)) if answer.code == NOT_ALLOWED => {
                    audit.refused = Some(answer.to_string());
                    return Ok(());
                }
                answer => answer?,
            };
            for (page, theirs) in pages.iter().zip(theirs) {
                let Some(theirs) = theirs.filter(|theirs| must_be_same(theirs, start)) else {
                    continue;
                };
                audit.pages += 1;
                if differs(&trees, sample, *page, &theirs)? && stays(&mut sql, sample, *page, &theirs)? {
                    let lsn = lsn(&theirs).unwrap_or_default();
                    audit.difference = Some(format!(
                        "page {page} of {} was last changed at {lsn}, before the backup began at {start}, and the \
                         backup has another one",
                        sample.path
                    ));
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

/// The page's LSN.
fn lsn(page: &[u8]) -> Option<Lsn> {
    let number = |bytes: &[u8]| bytes.try_into().ok().map(u32::from_le_bytes);
    let (high, low) = (number(page.get(..4)?)?, number(page.get(4..8)?)?);
    Some(Lsn(u64::from(high) << 32 | u64::from(low)))
}

/// Whether the server's page has not been changed since the backup began.
fn must_be_same(page: &[u8], start: Lsn) -> bool {
    page.len() == BLOCK_BYTES && lsn(page).is_some_and(|lsn| lsn.0 != 0 && lsn < start)
}

/// Whether the backup has another page, and not a newer one: then the server's file lags behind its memory.
fn differs(trees: &TreeReader, sample: &Sample, page: u64, theirs: &[u8]) -> Result<bool, Error> {
    let mut ours = vec![0; BLOCK_BYTES];
    let length = trees.read_at(&sample.map, page * PAGE, &mut ours)?;
    ours.truncate(length);
    Ok(ours != theirs && lsn(&ours) <= lsn(theirs))
}

/// Whether the server has the same page once more: the first one may have been read while it was written.
fn stays(sql: &mut Connection, sample: &Sample, page: u64, theirs: &[u8]) -> Result<bool, Error> {
    let again = ask(sql, &sample.path, &[page])?;
    Ok(again
        .first()
        .is_some_and(|again| again.as_deref() == Some(theirs)))
}

/// Reads these pages of a file; `None` for each that does not exist.
fn ask(sql: &mut Connection, path: &str, pages: &[u64]) -> Result<Vec<Option<Vec<u8>>>, postgres::Error> {
    // Paths of relation files have nothing that would have to be quoted.
    let reads: Vec<String> = pages
        .iter()
        .map(|page| format!("({page}, pg_catalog.encode(pg_catalog.pg_read_binary_file('{path}', {}, {PAGE}, true), 'hex'))", page * PAGE))
        .collect();
    let text = format!(
        "SELECT v.page FROM (VALUES {}) v (number, page) ORDER BY v.number",
        reads.join(", ")
    );
    let results = sql.simple_query(&text)?;
    let rows = results.first();
    Ok((0..pages.len())
        .map(|row| rows.and_then(|rows| rows.text(row, "page")).and_then(hex::decode))
        .collect())
}

/// Random pages of the main forks of relations, each page with the same probability, in the order of their places. The
/// tree is walked twice: to count the pages, and to find the chosen ones.
fn sample(trees: &TreeReader, root: &DirectoryRef, count: u32) -> Result<Vec<Sample>, Error> {
    let mut total = 0;
    each_relation(trees, root, &mut |_, map| total += map.size_bytes / PAGE)?;
    let mut chosen: Vec<u64> = match u64::from(count) >= total {
        true => (0..total).collect(),
        false => (0..count).map(|_| fastrand::u64(..total)).collect(),
    };
    chosen.sort_unstable();
    chosen.dedup();
    let mut chosen = chosen.into_iter().peekable();
    let (mut first, mut found) = (0, Vec::new());
    each_relation(trees, root, &mut |path, map| {
        let next = first + map.size_bytes / PAGE;
        let pages: Vec<u64> = std::iter::from_fn(|| chosen.next_if(|page| *page < next))
            .map(|page| page - first)
            .collect();
        if !pages.is_empty() {
            found.push(Sample {
                path: path.to_owned(),
                map: map.clone(),
                pages,
            });
        }
        first = next;
    })?;
    Ok(found)
}

/// Calls `each` with all files of main forks of logged relations, always in the same order.
fn each_relation(
    trees: &TreeReader,
    root: &DirectoryRef,
    each: &mut dyn FnMut(&str, &FileMap),
) -> Result<(), Error> {
    let mut waiting = vec![(String::new(), root.clone())];
    while let Some((path, directory)) = waiting.pop() {
        for entry in trees.entries(&directory) {
            let entry = entry?;
            let path = format!("{path}{}", String::from_utf8_lossy(&entry.name));
            match entry.node {
                Node::File(map) => {
                    let relation = relation_name::parse(path.as_bytes());
                    if relation.is_some_and(|relation| relation.fork == Fork::Main) {
                        each(&path, &map);
                    }
                }
                Node::Directory(child) => waiting.push((format!("{path}/"), child)),
                Node::Symlink(_) => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(lsn: u64) -> Vec<u8> {
        let mut page = vec![7; BLOCK_BYTES];
        page[..4].copy_from_slice(&((lsn >> 32) as u32).to_le_bytes());
        page[4..8].copy_from_slice(&(lsn as u32).to_le_bytes());
        page
    }

    #[test]
    fn only_pages_older_than_the_backup_are_compared() {
        let start = Lsn(0x1_0000_0028);
        assert_eq!(lsn(&page(0x1_0000_0027)), Some(Lsn(0x1_0000_0027)));
        assert!(must_be_same(&page(0x1_0000_0027), start));
        assert!(!must_be_same(&page(start.0), start));
        assert!(!must_be_same(&page(0), start), "it has no LSN");
        assert!(
            !must_be_same(&page(1)[..100], start),
            "the file has become shorter"
        );
    }
}
