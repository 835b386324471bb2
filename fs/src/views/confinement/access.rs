//! Whether `pg_hba.conf` or `pg_ident.conf` name files outside the data directory.

use std::collections::BTreeSet;

use barmanfs_pg::conf::{AccessReference, access_references, is_taken_by_include_dir, location};

use super::source::{Source, Stored};
use crate::error::Result;

/// A file that leads to more of them counts as one that leads out.
const MAX_FILES: usize = 1000;

/// Whether something that PostgreSQL reads with this file is not in the data directory. Who may come in is not known then:
/// what is missing may be who is rejected.
pub(in crate::views) fn leads_out(source: &impl Source, path: &[u8]) -> Result<bool> {
    let mut seen = BTreeSet::from([path.to_vec()]);
    let mut waiting = vec![path.to_vec()];
    while let Some(path) = waiting.pop() {
        let text = match source.read(&path)? {
            Stored::Text(_, text) => text,
            // PostgreSQL cannot read it either, and starts without.
            Stored::Damaged => continue,
            Stored::Unusable(..) | Stored::Absent => return Ok(true),
        };
        for reference in access_references(&text) {
            let Some(named) = targets(source, &path, &reference)? else {
                return Ok(true);
            };
            waiting.extend(named.into_iter().filter(|path| seen.insert(path.clone())));
        }
        if seen.len() > MAX_FILES {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The files a reference stands for; `None` where it leads out or to nothing.
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
