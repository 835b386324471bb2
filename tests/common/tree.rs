//! Comparing two directory trees on ordinary file systems, byte for byte.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Returns one line for each difference. Compared: names, kinds, permission bits, owners, sizes, bytes, targets of
/// symbolic links, and modification times of files in whole seconds (a base backup carries no more). A directory's time
/// depends on all its entries, so it is compared only if `skip` skips nothing in it.
pub(crate) fn differences(left: &Path, right: &Path, skip: &dyn Fn(&str) -> bool) -> Vec<String> {
    let (lefts, rights) = (scan(left, skip), scan(right, skip));
    let mut found = Vec::new();
    for (path, entry) in &lefts.entries {
        match rights.entries.get(path) {
            None => found.push(format!("{path}: only in {}", left.display())),
            Some(other) => {
                let time_counts = !lefts.incomplete.contains(path) && !rights.incomplete.contains(path);
                compare(path, entry, other, time_counts, &mut found);
            }
        }
    }
    for path in rights
        .entries
        .keys()
        .filter(|path| !lefts.entries.contains_key(*path))
    {
        found.push(format!("{path}: only in {}", right.display()));
    }
    found
}

struct Entry {
    path: PathBuf,
    metadata: fs::Metadata,
}

struct Scan {
    entries: BTreeMap<String, Entry>,
    /// Directories in which something was skipped.
    incomplete: Vec<String>,
}

fn scan(root: &Path, skip: &dyn Fn(&str) -> bool) -> Scan {
    let mut scan = Scan {
        entries: BTreeMap::new(),
        incomplete: Vec::new(),
    };
    let mut waiting = vec![String::new()];
    while let Some(directory) = waiting.pop() {
        let path = root.join(&directory);
        for entry in
            fs::read_dir(&path).unwrap_or_else(|error| panic!("Cannot list {}: {error}", path.display()))
        {
            let entry = entry.unwrap_or_else(|error| panic!("Cannot list {}: {error}", path.display()));
            let name = entry.file_name().to_string_lossy().into_owned();
            let relative = if directory.is_empty() {
                name
            } else {
                format!("{directory}/{name}")
            };
            if skip(&relative) {
                scan.incomplete.push(directory.clone());
                continue;
            }
            let metadata = entry
                .metadata()
                .unwrap_or_else(|error| panic!("Cannot look at {relative}: {error}"));
            if metadata.is_dir() {
                waiting.push(relative.clone());
            }
            scan.entries.insert(
                relative,
                Entry {
                    path: entry.path(),
                    metadata,
                },
            );
        }
    }
    scan
}

fn compare(path: &str, left: &Entry, right: &Entry, directory_time_counts: bool, found: &mut Vec<String>) {
    let mut check = |what: &str, left: String, right: String| {
        if left != right {
            found.push(format!("{path}: {what} {left} and {right}"));
        }
    };
    let (l, r) = (&left.metadata, &right.metadata);
    check("mode", format!("{:o}", l.mode()), format!("{:o}", r.mode()));
    check(
        "owner",
        format!("{}:{}", l.uid(), l.gid()),
        format!("{}:{}", r.uid(), r.gid()),
    );
    if l.is_file() || (l.is_dir() && directory_time_counts) {
        check("time", l.mtime().to_string(), r.mtime().to_string());
    }
    if l.is_symlink() && r.is_symlink() {
        check("target", target(&left.path), target(&right.path));
    }
    if l.is_file() && r.is_file() {
        check("size", l.len().to_string(), r.len().to_string());
        if l.len() == r.len() {
            check(
                "bytes",
                "as there".into(),
                first_difference(&left.path, &right.path),
            );
        }
    }
}

fn target(path: &Path) -> String {
    fs::read_link(path).map_or_else(|error| error.to_string(), |target| target.display().to_string())
}

fn first_difference(left: &Path, right: &Path) -> String {
    let read = |path: &Path| {
        fs::read(path).unwrap_or_else(|error| panic!("Cannot read {}: {error}", path.display()))
    };
    match read(left).iter().zip(&read(right)).position(|(l, r)| l != r) {
        None => "as there".into(),
        Some(offset) => format!("different from offset {offset}, page {}", offset / 8192),
    }
}
