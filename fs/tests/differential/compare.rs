//! Compares two directories.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD};
use rustix::io::Errno;

use crate::side::Attributes;

/// The entries of a directory by path: attributes, the content of a file or the target of a link, and the
/// first name of the same file.
type Contents = BTreeMap<Vec<u8>, (Attributes, Vec<u8>, Vec<u8>)>;

/// A directory and everything below it.
fn contents(root: &Path, started_s: i64) -> Contents {
    let mut found = Contents::new();
    let mut first_names: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut waiting = vec![root.to_path_buf()];
    while let Some(path) = waiting.pop() {
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
        let stat = match rustix::fs::statat(CWD, &path, AtFlags::SYMLINK_NOFOLLOW) {
            // In a directory that this user may not read.
            Err(Errno::ACCESS) => continue,
            stat => stat.unwrap(),
        };
        let attributes = Attributes::of(&stat, started_s);
        let holds = match attributes.kind {
            kind if kind.is_dir() => {
                let mut below: Vec<_> = match std::fs::read_dir(&path) {
                    Ok(names) => names.map(|name| name.unwrap().path()).collect(),
                    Err(_) => Vec::new(),
                };
                below.sort();
                waiting.extend(below.into_iter().rev());
                Vec::new()
            }
            kind if kind.is_symlink() => rustix::fs::readlink(&path, Vec::new()).unwrap().into_bytes(),
            _ => std::fs::read(&path).unwrap_or_default(),
        };
        // For a file with several names: the first name found. The order is the same on both sides.
        let same_as = match attributes.links {
            0 | 1 => name.clone(),
            _ => first_names
                .entry(stat.st_ino)
                .or_insert_with(|| name.clone())
                .clone(),
        };
        found.insert(name, (attributes, holds, same_as));
    }
    found
}

/// Everything below a directory, at most three names deep.
pub(crate) fn paths(root: &Path) -> Vec<String> {
    let paths = contents(root, 0).into_keys();
    let shallow = |path: &String| !path.is_empty() && path.split('/').count() <= 3;
    paths
        .filter_map(|path| String::from_utf8(path).ok())
        .filter(shallow)
        .collect()
}

/// The first difference, if any.
pub(crate) fn difference(clone: &Path, real: &Path, started_s: i64) -> Option<String> {
    let (clone, real) = (contents(clone, started_s), contents(real, started_s));
    let names: std::collections::BTreeSet<_> = clone.keys().chain(real.keys()).collect();
    for name in names {
        let shown = String::from_utf8_lossy(name);
        let (ours, theirs) = match (clone.get(name), real.get(name)) {
            (Some(ours), Some(theirs)) => (ours, theirs),
            (None, _) => return Some(format!("{shown}: is not in the clone")),
            (_, None) => return Some(format!("{shown}: is only in the clone")),
        };
        if ours.0 != theirs.0 {
            return Some(format!("{shown}: clone {:?}, ext4 {:?}", ours.0, theirs.0));
        }
        if ours.2 != theirs.2 {
            let of = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
            return Some(format!(
                "{shown}: clone the same file as {}, ext4 as {}",
                of(&ours.2),
                of(&theirs.2)
            ));
        }
        if let Some(how) = bytes(&ours.1, &theirs.1) {
            return Some(format!("{shown}: {how}"));
        }
    }
    None
}

/// Describes where bytes differ, if they do.
pub(crate) fn bytes(clone: &[u8], real: &[u8]) -> Option<String> {
    if clone == real {
        return None;
    }
    let at = clone.iter().zip(real).position(|(ours, theirs)| ours != theirs);
    let at = at.unwrap_or(clone.len().min(real.len()));
    let there = |bytes: &[u8]| format!("{:02x?}", &bytes[at..bytes.len().min(at + 8)]);
    Some(format!(
        "differs from byte {at} on: clone {} of {} bytes, ext4 {} of {} bytes",
        there(clone),
        clone.len(),
        there(real),
        real.len()
    ))
}
