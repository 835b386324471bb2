//! Writes what WAL-G writes into its storage, from what `pg_basebackup` has taken of a real server. WAL-G itself cannot be had
//! here, so this follows its sources (3.0.9): names, archives, increments, lists and sentinels.

use crate::common::process::run;
use crate::common::{PgServer, Site};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

/// When each backup ends, one second after the other.
const FINISHED_S: u64 = 1_795_880_000;

const PAGE: usize = 8192;

/// How archives are compressed, by the end of their names.
pub(crate) const FORMS: [&str; 5] = ["lz4", "zst", "lzma", "gz", ""];

/// What a backup is like.
#[derive(Clone, Copy, Default)]
pub(crate) struct Like<'t> {
    /// A name in [`FORMS`].
    pub(crate) form: &'t str,
    /// Taken over the replication protocol.
    pub(crate) is_streamed: bool,
    pub(crate) is_permanent: bool,
    pub(crate) user_data: Option<&'t str>,
    /// A delta of this backup.
    pub(crate) parent: Option<&'t Taken>,
    /// A member with this name and this claimed size, which no WAL-G writes.
    pub(crate) evil: Option<(&'t str, u64)>,
}

/// A backup in the storage.
pub(crate) struct Taken {
    pub(crate) name: String,
    /// What it restores to.
    pub(crate) tree: PathBuf,
    start: u64,
}

pub(crate) struct Storage<'s> {
    pub(crate) site: &'s Site,
    pub(crate) root: PathBuf,
}

/// A member of an archive.
struct Member {
    name: String,
    place: PathBuf,
    /// Instead of what is at that place.
    content: Option<Vec<u8>>,
}

fn number(lsn: &str) -> u64 {
    let (high, low) = lsn.split_once('/').unwrap();
    let part = |digits: &str| u64::from_str_radix(digits, 16).unwrap();
    part(high) << 32 | part(low)
}

impl<'s> Storage<'s> {
    pub(crate) fn new(site: &'s Site) -> Self {
        let root = site.path("walg");
        for directory in ["basebackups_005", "wal_005"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        Self { site, root }
    }

    /// Takes a backup of the server, as `tree`.
    pub(crate) fn push(&self, server: &PgServer, tree: &str, like: Like<'_>) -> Taken {
        let place = self.site.path(tree);
        let space = self.site.path("space");
        let mapping = format!("{}={}.space", space.display(), place.display());
        let mut command = server.client("pg_basebackup");
        command.args(["-c", "fast", "--no-sync", "-X", "none", "-T", &mapping, "-D"]);
        run(command.arg(&place)).ok();
        let finished = FINISHED_S + self.site.list(&self.root.join("basebackups_005")).len() as u64;
        let (segment, start, stop) = positions(&place);
        let map = format!("{} {}\n", tablespace(&place), space.display());
        let attributes = fs::metadata(place.join("backup_label")).unwrap();
        fs::write(place.join("tablespace_map"), map).unwrap();
        std::os::unix::fs::chown(
            place.join("tablespace_map"),
            Some(attributes.uid()),
            Some(attributes.gid()),
        )
        .unwrap();
        self.site
            .sh(&format!("chmod 600 '{}/tablespace_map'", place.display()))
            .ok();
        for name in ["backup_label", "tablespace_map"] {
            set_time(&place.join(name), finished);
        }
        let mut name = format!("base_{segment}");
        if let Some(parent) = like.parent {
            name = format!("{name}_D_{}", &parent.name[5..29]);
        }
        let taken = Taken {
            name,
            tree: place,
            start,
        };
        self.write(server, &taken, (stop, finished), like);
        taken
    }

    pub(crate) fn directory(&self, taken: &Taken) -> PathBuf {
        self.root.join("basebackups_005").join(&taken.name)
    }

    fn write(&self, server: &PgServer, taken: &Taken, (stop, finished): (u64, u64), like: Like<'_>) {
        let partitions = self.directory(taken).join("tar_partitions");
        fs::create_dir_all(&partitions).unwrap();
        let (mut parts, mut label, files) = self.members(taken, like);
        let slash = if like.is_streamed { "" } else { "/" };
        let control = |name: &str| Member {
            name: format!("{slash}{name}"),
            place: taken.tree.join(name),
            content: None,
        };
        if like.is_streamed {
            // The server sends the label first and the control file last.
            let last = parts.len() - 1;
            let mut all = std::mem::take(&mut label);
            all.append(&mut parts[last]);
            all.push(control("global/pg_control"));
            parts[last] = all;
        }
        for (at, members) in parts.iter().enumerate() {
            // The last one as if a composer had copied it.
            let name = match (like.is_streamed, at + 1 == parts.len()) {
                (false, true) => "copy_0.tar".to_owned(),
                _ => format!("part_{:03}.tar", at + 1),
            };
            let evil = like.evil.filter(|_| at == 0);
            archive(&partitions, &name, like, members, evil);
        }
        archive(
            &partitions,
            "pg_control.tar",
            like,
            &[control("global/pg_control")],
            None,
        );
        if !like.is_streamed {
            archive(
                &partitions,
                "backup_label.tar",
                Like {
                    is_streamed: false,
                    ..like
                },
                &label,
                None,
            );
        }
        let files =
            json!({"Files": files, "TarFileSets": {"part_001.tar.lz4": ["/"]}, "DatabasesByNames": {}});
        fs::write(
            self.directory(taken).join("files_metadata.json"),
            files.to_string(),
        )
        .unwrap();
        self.describe(server, taken, (stop, finished), like);
    }

    fn describe(&self, server: &PgServer, taken: &Taken, (stop, finished): (u64, u64), like: Like<'_>) {
        let time = |s: u64| {
            format!(
                "{}Z",
                server.query(&format!(
                    "SELECT to_char(to_timestamp({s}) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS')"
                ))
            )
        };
        let system: u64 = server
            .query("SELECT system_identifier FROM pg_control_system()")
            .parse()
            .unwrap();
        let version: u64 = server.query("SHOW server_version_num").parse().unwrap();
        let user_data = like
            .user_data
            .map(|text| serde_json::from_str::<Value>(text).unwrap());
        let oid = tablespace(&taken.tree);
        let space = self.site.path("space");
        let mut sentinel = json!({
            "LSN": taken.start, "FinishLSN": stop, "PgVersion": version, "SystemIdentifier": system,
            "UncompressedSize": 40_000_000, "CompressedSize": 4_000_000, "DataCatalogSize": 60_000_000, "ChkpNum": null,
            "Spec": {"base_prefix": server.data, "tablespaces": [oid], oid.as_str(): {"loc": space, "link": format!("pg_tblspc/{oid}")}},
            "Version": 2, "StartTime": time(finished - 60), "FinishTime": time(finished), "DateFmt": "%Y", "Hostname": "db1",
            "DataDir": server.data, "IsPermanent": false, "UserData": user_data,
        });
        if let Some(parent) = like.parent {
            sentinel["DeltaLSN"] = json!(parent.start);
            sentinel["DeltaFrom"] = json!(parent.name);
            sentinel["DeltaFullName"] = json!(&parent.name[..29]);
            sentinel["DeltaCount"] = json!(1);
        }
        let metadata = json!({
            "start_time": time(finished - 60), "finish_time": time(finished), "date_fmt": "%Y", "hostname": "db1",
            "data_dir": server.data, "pg_version": version, "start_lsn": taken.start, "finish_lsn": stop,
            "is_permanent": like.is_permanent, "system_identifier": system, "uncompressed_size": 1, "compressed_size": 1,
            "user_data": user_data,
        });
        fs::write(self.directory(taken).join("metadata.json"), metadata.to_string()).unwrap();
        let place = self.root.join(format!(
            "basebackups_005/{}_backup_stop_sentinel.json",
            taken.name
        ));
        fs::write(place, sentinel.to_string()).unwrap();
    }

    /// The members of the parts, those of the label, and the list of files.
    fn members(&self, taken: &Taken, like: Like<'_>) -> (Vec<Vec<Member>>, Vec<Member>, Map<String, Value>) {
        let (mut parts, mut label, mut files) = ([Vec::new(), Vec::new()], Vec::new(), Map::new());
        let slash = if like.is_streamed { "" } else { "/" };
        let mut entries = BTreeMap::new();
        walk(&taken.tree, "", &mut entries);
        for (at, (path, place)) in entries.into_iter().enumerate() {
            let found = fs::symlink_metadata(&place).unwrap();
            let is_link = path.starts_with("pg_tblspc/") && path.matches('/').count() == 1;
            if path == "global/pg_control"
                || (is_link && !like.is_streamed)
                || (path.is_empty() && like.is_streamed)
            {
                continue;
            }
            let mut member = Member {
                name: format!("{slash}{path}"),
                place,
                content: None,
            };
            if ["backup_label", "tablespace_map"].contains(&path.as_str()) {
                member.name = path;
                label.push(member);
                continue;
            }
            let mut state = "whole";
            if let Some(parent) = like.parent.filter(|_| found.is_file()) {
                state = changes(&parent.tree.join(&path), (&mut member, &path), parent.start);
            }
            files.insert(
                member.name.clone(),
                json!({"IsIncremented": state == "increment", "IsSkipped": state == "skipped", "MTime": "2026-11-20T10:15:00Z",
                       "UpdatesCount": 0}),
            );
            if state != "skipped" {
                // A stream has its tablespaces first, in parts of their own.
                let is_first = if like.is_streamed {
                    path.starts_with("pg_tblspc/") && !is_link
                } else {
                    at % 2 == 0
                };
                parts[usize::from(!is_first)].push(member);
            }
        }
        if !like.is_streamed {
            // Left by somebody's exclusive backup.
            let member = Member {
                name: "/backup_label".to_owned(),
                place: taken.tree.join("PG_VERSION"),
                content: Some(b"START WAL LOCATION: 0/1 (file 000000010000000000000000)\n".to_vec()),
            };
            parts[0].push(member);
        }
        (parts.into(), label, files)
    }

    /// Puts these WAL files into the storage.
    pub(crate) fn archive_wal(&self, from: &Path) {
        for (at, name) in self.site.list(from).into_iter().enumerate() {
            let form = FORMS[at % FORMS.len()];
            let content = fs::read(from.join(&name)).unwrap();
            let file = match form {
                "" => name,
                form => format!("{name}.{form}"),
            };
            fs::write(self.root.join("wal_005").join(file), compressed(&content, form)).unwrap();
        }
    }
}

/// The segment of its beginning, where it begins and where it ends. Removes the manifest, which WAL-G does not have.
fn positions(tree: &Path) -> (String, u64, u64) {
    let label = fs::read_to_string(tree.join("backup_label")).unwrap();
    let line = label.lines().next().unwrap();
    let words: Vec<&str> = line.split([' ', ')']).collect();
    let manifest = tree.join("backup_manifest");
    let parsed: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    fs::remove_file(manifest).unwrap();
    let stop = parsed["WAL-Ranges"][0]["End-LSN"].as_str().unwrap();
    (words[5].to_owned(), number(words[3]), number(stop))
}

/// The object id of the only tablespace.
fn tablespace(tree: &Path) -> String {
    let mut entries = fs::read_dir(tree.join("pg_tblspc")).unwrap();
    entries
        .next()
        .unwrap()
        .unwrap()
        .file_name()
        .into_string()
        .unwrap()
}

fn set_time(place: &Path, seconds: u64) {
    let file = File::options().write(true).open(place).unwrap();
    file.set_modified(UNIX_EPOCH + Duration::from_secs(seconds))
        .unwrap();
}

fn walk(place: &Path, path: &str, entries: &mut BTreeMap<String, PathBuf>) {
    entries.insert(path.to_owned(), place.to_owned());
    let is_space = path.starts_with("pg_tblspc/");
    if !(place.is_dir() && (is_space || !place.is_symlink())) {
        return;
    }
    for entry in fs::read_dir(place).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let inner = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}/{name}")
        };
        walk(&place.join(name), &inner, entries);
    }
}

/// What a delta stores of a file. One that is as before gets the time that it had, as WAL-G would have seen it.
fn changes(before: &Path, (member, path): (&mut Member, &str), start: u64) -> &'static str {
    let Ok(old) = fs::read(before) else { return "whole" };
    let new = fs::read(&member.place).unwrap();
    if old == new {
        let time = fs::metadata(before).unwrap().modified().unwrap();
        let file = File::options().write(true).open(&member.place).unwrap();
        file.set_modified(time).unwrap();
        return "skipped";
    }
    let name = path.rsplit('/').next().unwrap();
    let is_relation = name.chars().all(|c| c.is_ascii_digit() || c == '.')
        && (path.starts_with("base/") || path.starts_with("pg_tblspc/"));
    if !is_relation || new.is_empty() || new.len() % PAGE != 0 {
        return "whole";
    }
    let mut numbers = Vec::new();
    for (number, page) in new.chunks(PAGE).enumerate() {
        let word = |at: usize| u32::from_le_bytes(page[at..at + 4].try_into().unwrap());
        let lsn = u64::from(word(0)) << 32 | u64::from(word(4));
        let is_new = page[..24].iter().all(|byte| *byte == 0);
        let was = old.get(number * PAGE..(number + 1) * PAGE);
        if is_new || lsn >= start || was != Some(page) {
            numbers.push(number as u32);
        }
    }
    let mut content = b"wi1\x55".to_vec();
    content.extend((new.len() as u64).to_le_bytes());
    content.extend((numbers.len() as u32).to_le_bytes());
    numbers
        .iter()
        .for_each(|number| content.extend(number.to_le_bytes()));
    for number in numbers {
        content.extend(&new[number as usize * PAGE..(number as usize + 1) * PAGE]);
    }
    member.content = Some(content);
    "increment"
}

fn archive(partitions: &Path, name: &str, like: Like<'_>, members: &[Member], evil: Option<(&str, u64)>) {
    let mut bytes = Vec::new();
    let mut padding = 0;
    for member in members {
        let found = match member.name.starts_with("pg_tblspc/") && member.name.matches('/').count() == 1 {
            true => fs::symlink_metadata(&member.place).unwrap(),
            false => fs::metadata(&member.place).unwrap(),
        };
        let content = match (&member.content, found.is_file()) {
            (Some(content), _) => content.clone(),
            (None, true) => fs::read(&member.place).unwrap(),
            (None, false) => Vec::new(),
        };
        let kind = match (found.is_dir(), found.is_symlink()) {
            (true, _) => tar::EntryType::Directory,
            (_, true) => tar::EntryType::Symlink,
            _ => tar::EntryType::Regular,
        };
        header(&mut bytes, &member.name, (kind, content.len() as u64), &found);
        bytes.extend(&content);
        padding = content.len().next_multiple_of(512) - content.len();
        bytes.resize(bytes.len() + padding, 0);
    }
    if let Some((name, size)) = evil {
        let found = fs::metadata(&members[0].place).unwrap();
        header(&mut bytes, name, (tar::EntryType::Regular, size), &found);
        bytes.resize(bytes.len() + 512, 0);
    }
    match like.is_streamed {
        // Such an archive is not closed.
        true => bytes.truncate(bytes.len() - padding),
        false => bytes.resize(bytes.len() + 1024, 0),
    }
    let name = match like.form {
        "" => name.to_owned(),
        form => format!("{name}.{form}"),
    };
    fs::write(partitions.join(name), compressed(&bytes, like.form)).unwrap();
}

fn header(bytes: &mut Vec<u8>, name: &str, (kind, size): (tar::EntryType, u64), found: &fs::Metadata) {
    let mut header = tar::Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(found.mode() & 0o7777);
    header.set_uid(found.uid().into());
    header.set_gid(found.gid().into());
    header.set_mtime(found.mtime() as u64);
    if kind == tar::EntryType::Symlink {
        header.set_link_name("elsewhere").unwrap();
    }
    header.set_cksum();
    bytes.extend(header.as_bytes());
}

fn compressed(content: &[u8], form: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    match form {
        "" => bytes.extend(content),
        "lz4" => {
            let mut encoder = lz4_flex::frame::FrameEncoder::new(bytes);
            encoder.write_all(content).unwrap();
            return encoder.finish().unwrap();
        }
        "gz" => {
            let mut encoder = flate2::write::GzEncoder::new(bytes, flate2::Compression::fast());
            encoder.write_all(content).unwrap();
            return encoder.finish().unwrap();
        }
        "zst" => {
            bytes = vec![0; zstd_safe::compress_bound(content.len())];
            let length = zstd_safe::compress(&mut bytes[..], content, 1).unwrap();
            bytes.truncate(length);
        }
        "lzma" => {
            let options = liblzma::stream::LzmaOptions::new_preset(0).unwrap();
            let stream = liblzma::stream::Stream::new_lzma_encoder(&options).unwrap();
            let mut encoder = liblzma::read::XzEncoder::new_stream(content, stream);
            encoder.read_to_end(&mut bytes).unwrap();
        }
        other => panic!("{other}"),
    }
    bytes
}
