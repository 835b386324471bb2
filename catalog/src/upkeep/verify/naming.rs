//! Maps damaged chunks to the files and pages that a user knows.

use barmanfs_pg::wal_name::WalName;
use barmanfs_store::file_map::PIECE_WINDOWS;
use barmanfs_store::layout::BLOCK_BYTES;
use barmanfs_store::tree::TreeReader;
use barmanfs_store::{DirectoryRef, FileMap, Node, Windows};

use crate::error::Result;
use crate::names::{BackupId, CloneName, ServerName};
use crate::upkeep::verify::{Bad, BadChunks, DAMAGES_MAX, Damage, Subject, Verification, VerifyReport};

/// Names damage in the files of backups, the archive and clones of a server.
struct Namer<'a> {
    trees: TreeReader,
    bad: &'a BadChunks,
    report: &'a mut VerifyReport,
    server: &'a ServerName,
    backup: Option<BackupId>,
    clone: Option<CloneName>,
}

/// The damaged part of a file.
#[derive(Debug, Default)]
struct Extent {
    first_page: Option<u64>,
    pages: u64,
    reason: String,
}

impl Verification<'_> {
    /// Names the files of a subject that have damaged chunks.
    pub(super) fn name_damages(&mut self, subject: &Subject) -> Result<()> {
        let repository = self.repository;
        let mut namer = Namer {
            trees: repository.trees(),
            bad: &self.bad,
            report: &mut self.report,
            server: &subject.server,
            backup: None,
            clone: None,
        };
        for backup in &subject.backups {
            let Some(root) = &backup.root else { continue };
            if let Some(_guard) = repository.verifying(backup)? {
                namer.backup = Some(backup.id);
                namer.tree("", &root.directory)?;
                if let Some(files) = repository.configuration_files(backup)? {
                    namer.tree("/", &files.directory)?;
                }
            }
        }
        namer.backup = None;
        repository.each_wal(subject, &mut |file| {
            namer.file(WalName::to_string(&file.name), &file.map)
        })?;
        for file in &subject.quarantined {
            namer.file(format!("{} (quarantined)", file.name), &file.map)?;
        }
        let clones = repository.clones(&subject.server)?;
        for clone in subject.clones.iter().filter(|clone| clones.contains(clone)) {
            namer.clone = Some(clone.name.clone());
            namer.tree("", &clone.root.directory)?;
            for graft in &clone.grafts {
                namer.file(graft.path.clone(), &graft.map)?;
            }
        }
        Ok(())
    }
}

impl Namer<'_> {
    /// `prefix` comes before all names.
    fn tree(&mut self, prefix: &str, root: &DirectoryRef) -> Result<()> {
        let mut waiting = vec![(prefix.to_owned(), root.clone())];
        while let Some((path, directory)) = waiting.pop() {
            let (readable, all) = self.readable_part(&path, directory);
            for entry in self.trees.entries(&readable) {
                let entry = match entry {
                    Ok(entry) => entry,
                    // If pages are left out, its count cannot be right.
                    Err(_) if !all => break,
                    Err(error) if error.is_damage() => {
                        self.directory(&path, error.to_string());
                        break;
                    }
                    Err(error) => return Err(error.into()),
                };
                let path = format!("{path}{}", String::from_utf8_lossy(&entry.name));
                match entry.node {
                    Node::File(map) => self.file(path, &map)?,
                    Node::Directory(child) => waiting.push((format!("{path}/"), child)),
                    Node::Symlink(_) => {}
                }
            }
        }
        Ok(())
    }

    /// A directory without its damaged pages, which are reported, and whether it is complete.
    fn readable_part(&mut self, path: &str, mut directory: DirectoryRef) -> (DirectoryRef, bool) {
        let before = directory.pages.len();
        let bad = self.bad;
        // The reasons of all pages are collected, because each page is needed.
        let pages = directory.pages.iter();
        let reasons: Vec<&str> = pages
            .filter_map(|page| bad.get(&page.chunk))
            .map(Bad::reason)
            .collect();
        if let Some(reason) = reasons.first() {
            self.directory(path, (*reason).to_owned());
        }
        directory.pages.retain(|page| !bad.contains_key(&page.chunk));
        let all = directory.pages.len() == before;
        (directory, all)
    }

    fn directory(&mut self, path: &str, reason: String) {
        let file = if path.is_empty() {
            "/".to_owned()
        } else {
            path.to_owned()
        };
        self.damage(
            file,
            Extent {
                first_page: None,
                pages: 0,
                reason,
            },
        );
    }

    fn file(&mut self, file: String, map: &FileMap) -> Result<()> {
        let mut extent = Extent::default();
        match &map.windows {
            Windows::Inline(windows) => {
                for (n, window) in (0..).zip(windows) {
                    if let Some(bad) = window.chunk.and_then(|chunk| self.bad.get(&chunk)) {
                        extent.add(map, n..n + 1, bad.reason());
                    }
                }
            }
            Windows::Pieces(pieces) => {
                for (piece, chunk) in (0..).zip(pieces) {
                    let first = piece * PIECE_WINDOWS as u64;
                    let windows = first..map.window_count().min(first + PIECE_WINDOWS as u64);
                    if let Some(bad) = self.bad.get(chunk) {
                        extent.add(map, windows, bad.reason());
                        continue;
                    }
                    for n in windows {
                        let chunk = self.trees.window(map, n)?.chunk;
                        if let Some(bad) = chunk.and_then(|chunk| self.bad.get(&chunk)) {
                            extent.add(map, n..n + 1, bad.reason());
                        }
                    }
                }
            }
        }
        if extent.first_page.is_some() {
            self.damage(file, extent);
        }
        Ok(())
    }

    fn damage(&mut self, file: String, extent: Extent) {
        if self.report.damages.len() == DAMAGES_MAX {
            self.report.damages_cut = true;
            return;
        }
        let Extent {
            first_page,
            pages,
            reason,
        } = extent;
        let (server, backup, clone) = (self.server.clone(), self.backup, self.clone.clone());
        self.report.damages.push(Damage {
            server,
            backup,
            clone,
            file,
            first_page,
            pages,
            reason,
        });
    }
}

impl Extent {
    /// Adds damaged windows.
    fn add(&mut self, map: &FileMap, windows: std::ops::Range<u64>, reason: &str) {
        let page_bytes = BLOCK_BYTES as u64;
        let start = windows.start.saturating_mul(map.window_bytes.into());
        let end = windows
            .end
            .saturating_mul(map.window_bytes.into())
            .min(map.size_bytes);
        if self.first_page.is_none() {
            self.first_page = Some(start / page_bytes);
            self.reason = reason.to_owned();
        }
        self.pages += end.div_ceil(page_bytes) - start / page_bytes;
    }
}
