//! The checks of the repository itself.

use std::io;
use std::path::Path;

use barmanfs_catalog::{Repository, UnreadPack, count_unread};

use super::finding::Findings;
use super::{cron, space};
use crate::error::Error;
use crate::invocation::Invocation;
use crate::output;
use crate::ownership;
use crate::place::Place;

/// The check whether there is a repository.
pub(super) const NAME: &str = "repository";

/// Checks that the repository can be written, that it has free space, that all of its packs can be read, and that it is
/// looked after.
pub(super) fn check(place: &Place, invocation: &Invocation, findings: &mut Findings) {
    let opened = super::open(place, true);
    let path = place.home();
    let shown = |_: &Repository| Some(place.shown());
    let Some(repository) = &findings.result(NAME, opened, shown) else {
        return;
    };
    findings.result("repository writable", writable(repository, path), Option::clone);
    file_system(path, findings);
    space::check(repository, path, findings);
    catalog_file(repository, invocation, findings);
    // This adds to the catalog what it has lost, so all later checks see everything.
    unread_packs(repository, findings);
    misshapen_packs(repository, findings);
    cron::check_repository(repository, invocation, findings);
}

/// Whether it can be written; or, of one in an object store, which other host does that.
fn writable(repository: &Repository, path: &Path) -> Result<Option<String>, Error> {
    if let Some(host) = repository.writing_elsewhere()? {
        return Ok(Some(format!("not from here: host {host} writes into it")));
    }
    ownership::refuse_foreign_root(path)?;
    repository.try_writing()?;
    Ok(None)
}

/// The catalog works on a network file system, but only for one host at a time.
fn file_system(path: &Path, findings: &mut Findings) {
    const NAME: &str = "file system";
    match rustix::fs::statfs(path) {
        Ok(state) => {
            if let Some(network) = network_file_system(state.f_type) {
                findings.ok(
                    NAME,
                    format!("{network}: the repository must be used by this host alone, mounts included"),
                );
            }
        }
        Err(error) => findings.failed(NAME, io::Error::from(error).to_string()),
    }
}

/// The network file system with this number, from Linux's `magic.h`.
fn network_file_system(number: rustix::fs::FsWord) -> Option<&'static str> {
    match number {
        0x6969 => Some("NFS"),
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => Some("SMB"),
        0x00c3_6400 => Some("Ceph"),
        0x5346_414f | 0x6b41_4653 => Some("AFS"),
        0x0102_1997 => Some("9p"),
        _ => None,
    }
}

/// `check` runs every few minutes, and does not read a larger catalog: cron does, once a day.
const CATALOG_BYTES_MAX: u64 = 64 << 20;

const CATALOG: &str = "catalog file";

fn catalog_file(repository: &Repository, invocation: &Invocation, findings: &mut Findings) {
    let is_small = repository.catalog_bytes() <= CATALOG_BYTES_MAX;
    let read = match is_small {
        true => repository.catalog_faults().map(|faults| (faults, None)),
        false => repository
            .repository_memory()
            .map(|memory| (memory.catalog_faults, memory.catalog_read_at)),
    };
    let (faults, read_at) = match read {
        Ok(read) => read,
        Err(error) => return findings.failed(CATALOG, Error::from(error).to_string()),
    };
    match (faults.first(), read_at) {
        (Some(first), _) => findings.failed(
            CATALOG,
            format!(
                "damaged ({}): make it again from the packs with '{}'",
                output::printable(first.as_bytes()),
                invocation.with("rebuild-catalog")
            ),
        ),
        (None, Some(read_at)) => findings.ok(CATALOG, format!("cron read it at {}", output::second(read_at))),
        (None, None) if is_small => findings.ok(CATALOG, None),
        (None, None) => findings.ok(
            CATALOG,
            format!(
                "large: '{}' looks through it, and cron once a day",
                invocation.with("verify")
            ),
        ),
    }
}

/// The content of these packs is missing everywhere, and recovery cannot determine where the archive ends.
fn unread_packs(repository: &Repository, findings: &mut Findings) {
    packs("packs are read", repository.unread_packs_by_survey(), findings);
}

/// The content of these packs cannot be read back.
fn misshapen_packs(repository: &Repository, findings: &mut Findings) {
    packs("packs are whole", repository.misshapen_packs(), findings);
}

fn packs(name: &'static str, found: barmanfs_catalog::Result<Vec<UnreadPack>>, findings: &mut Findings) {
    match found {
        Ok(found) => match found.first() {
            None => findings.ok(name, None),
            Some(first) => findings.failed(
                name,
                format!(
                    "{} not, the first is {}: {}",
                    output::count(count_unread(&found), "pack"),
                    output::printable(first.pack.as_bytes()),
                    output::printable(first.reason.as_bytes())
                ),
            ),
        },
        Err(error) => findings.failed(name, Error::from(error).to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_file_systems_are_named() {
        assert_eq!(network_file_system(0x6969), Some("NFS"));
        // ext4
        assert_eq!(network_file_system(0xef53), None);
    }
}
