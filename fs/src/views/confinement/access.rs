//! Whether `pg_hba.conf` or `pg_ident.conf` name files outside the data directory.

use std::collections::BTreeSet;

use barmanfs_pg::conf::{AccessReference, access_references, is_taken_by_include_dir, location};

use super::source::{Source, Stored};
use crate::error::Result;

/// Limit of included files. Beyond it, the file counts as leading out.
const MAX_FILES: usize = 1000;

/// The file with all that it names. `None` if PostgreSQL would read something outside the data directory with it. The
/// access rules are unknown then: the missing part may reject users.
pub(in crate::views) fn access_files(source: &impl Source, path: &[u8]) -> Result<Option<BTreeSet<Vec<u8>>>> {
    let mut seen = BTreeSet::from([path.to_vec()]);
    let mut waiting = vec![path.to_vec()];
    while let Some(path) = waiting.pop() {
        let text = match source.read(&path)? {
            Stored::Text(_, text) => text,
            // PostgreSQL cannot read it either, and starts without it.
            Stored::Damaged => continue,
            Stored::Unusable(..) | Stored::Absent => return Ok(None),
        };
        for reference in access_references(&text) {
            let Some(named) = targets(source, &path, &reference)? else {
                return Ok(None);
            };
            waiting.extend(named.into_iter().filter(|path| seen.insert(path.clone())));
        }
        if seen.len() > MAX_FILES {
            return Ok(None);
        }
    }
    Ok(Some(seen))
}

/// The files of a reference; `None` if one is outside or missing.
fn targets(source: &impl Source, path: &[u8], reference: &AccessReference) -> Result<Option<Vec<Vec<u8>>>> {
    let (AccessReference::File(named)
    | AccessReference::FileIfExists(named)
    | AccessReference::Directory(named)) = reference;
    let Some(at) = location(named, path) else {
        return Ok(None);
    };
    Ok(match reference {
        AccessReference::File(_) => Some(vec![at]),
        AccessReference::FileIfExists(_) => match source.read(&at)? {
            Stored::Absent => Some(Vec::new()),
            _ => Some(vec![at]),
        },
        AccessReference::Directory(_) => {
            let names = source.names(&at, &is_taken_by_include_dir)?;
            let below = |name: Vec<u8>| match &*at {
                b"" => name,
                at => [at, &name].join(&b'/'),
            };
            names.map(|names| names.into_iter().map(below).collect())
        }
    })
}
