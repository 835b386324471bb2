//! The tar parser against a reference writer, every slicing, and hostile archives.

use proptest::prelude::*;

use super::*;

/// The events that a sink received.
#[derive(Debug, Default, PartialEq, Eq)]
struct Collected {
    members: Vec<(TarEntry, Vec<u8>)>,
    open: bool,
    /// Fails at this member, to check that the sink's own error is returned.
    fail_at: Option<usize>,
}

impl TarSink for Collected {
    fn entry(&mut self, entry: &TarEntry) -> Result<(), SinkError> {
        assert!(!self.open);
        if self.fail_at == Some(self.members.len()) {
            return Err("disk full".into());
        }
        self.open = true;
        self.members.push((entry.clone(), Vec::new()));
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        assert!(self.open && !bytes.is_empty());
        self.members.last_mut().unwrap().1.extend(bytes);
        Ok(())
    }

    fn end_entry(&mut self) -> Result<(), SinkError> {
        assert!(self.open);
        self.open = false;
        Ok(())
    }
}

/// A correct header, as PostgreSQL writes it.
fn header(name: &[u8], kind: u8, size: u64, link: &[u8]) -> [u8; 512] {
    let mut block = [0_u8; 512];
    block[..name.len()].copy_from_slice(name);
    block[100..108].copy_from_slice(b"0000600 ");
    block[108..116].copy_from_slice(b"0000145 ");
    block[116..124].copy_from_slice(b"0000150 ");
    block[124..136].copy_from_slice(&size_field(size));
    block[136..148].copy_from_slice(b"15110000000 ");
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[265..273].copy_from_slice(b"postgres");
    with_checksum(block)
}

fn size_field(size: u64) -> [u8; 12] {
    if size < 1 << 33 {
        return format!("{size:011o} ").into_bytes().try_into().unwrap();
    }
    let mut field = [0; 12];
    field[0] = 0x80;
    field[4..].copy_from_slice(&size.to_be_bytes());
    field
}

fn with_checksum(mut block: [u8; 512]) -> [u8; 512] {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:07o} ").as_bytes());
    block
}

fn member(name: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = header(name.as_bytes(), b'0', data.len() as u64, b"").to_vec();
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn read(archive: &[u8], end_blocks: EndBlocks, sizes: &[usize]) -> Result<Collected, String> {
    let mut sink = Collected::default();
    let mut reader = TarReader::new("base.tar", end_blocks);
    let (mut rest, mut turn) = (archive, 0);
    while !rest.is_empty() {
        let (now, after) = rest.split_at(sizes[turn % sizes.len()].min(rest.len()));
        reader.feed(now, &mut sink).map_err(|error| error.to_string())?;
        (rest, turn) = (after, turn + 1);
    }
    reader.finish().map_err(|error| error.to_string())?;
    assert!(!sink.open);
    Ok(sink)
}

#[test]
fn members_read_back() {
    let mut archive = member("backup_label", b"START WAL LOCATION: 0/2000028\n");
    archive.extend(header(b"./pg_wal/archive_status/", b'5', 0, b""));
    archive.extend(header(b"pg_tblspc/16384/", b'2', 0, b"/srv/fast"));
    archive.extend(member("base/5/1259", &[7; 8192]));
    archive.extend(member("empty", b""));
    let mut with_end = archive.clone();
    with_end.extend([0; 1024]);
    for (bytes, end_blocks) in [
        (&with_end, EndBlocks::Required),
        (&with_end, EndBlocks::Optional),
        (&archive, EndBlocks::Optional),
    ] {
        let members = read(bytes, end_blocks, &[usize::MAX]).unwrap().members;
        let names: Vec<_> = members
            .iter()
            .map(|(entry, _)| String::from_utf8_lossy(&entry.path))
            .collect();
        assert_eq!(
            names,
            [
                "backup_label",
                "pg_wal/archive_status",
                "pg_tblspc/16384",
                "base/5/1259",
                "empty"
            ]
        );
        assert_eq!(members[1].0.kind, TarKind::Directory);
        assert_eq!(members[2].0.kind, TarKind::Symlink);
        assert_eq!(members[2].0.link_target, b"/srv/fast");
        let relation = &members[3];
        assert_eq!(
            (relation.0.mode, relation.0.uid, relation.0.gid),
            (0o600, 101, 104)
        );
        assert_eq!(relation.0.mtime_s, 0o151_1000_0000);
        assert_eq!(relation.1, [7; 8192]);
    }
}

#[test]
fn sizes_past_octal_are_read_in_base_256() {
    for size in [9 << 33, (1 << 33) - 1] {
        assert_eq!(entry(&header(b"big", b'0', size, b"")).unwrap().size_bytes, size);
    }
}

fn entry(block: &[u8; 512]) -> Result<TarEntry, String> {
    match Header(block).read(&mut Extensions::default(), &mut Names::default())? {
        Member::Entry(entry) => Ok(entry),
        Member::Extension(kind, _) => Err(format!("{kind:?}")),
    }
}

/// A header with the bytes at this place changed.
fn changed(at: usize, to: &[u8]) -> [u8; 512] {
    let mut block = header(b"base/1", b'0', 0, b"");
    block[at..at + to.len()].copy_from_slice(to);
    with_checksum(block)
}

/// An extended header with this data and the padding.
fn extended(kind: u8, data: &[u8]) -> Vec<u8> {
    let mut bytes = header(b"x", kind, data.len() as u64, b"").to_vec();
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// Pax records of these pairs.
fn pax(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, value) in pairs {
        let rest = key.len() + value.len() + 3;
        let length = (1..)
            .map(|digits| rest + digits)
            .find(|length| length.to_string().len() + rest == *length);
        bytes.extend(format!("{} {key}={value}\n", length.unwrap()).bytes());
    }
    bytes
}

#[test]
fn numbers_that_do_not_fit_into_octal_digits() {
    // PostgreSQL's own form of a time before 1970, and GNU's.
    let time = |field: [u8; 12]| entry(&changed(136, &field)).unwrap().mtime_s;
    assert_eq!(
        time([0x80, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xED, 0xD3, 0x7F, 0x80]),
        -304_906_368
    );
    assert_eq!(
        time([
            0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xED, 0xD3, 0x7F, 0x80
        ]),
        -304_906_368
    );
    assert_eq!(time([0x80, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0]), 1 << 36);
    // Owners above 2^21.
    let uid = entry(&changed(108, &[0x80, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFE]))
        .unwrap()
        .uid;
    assert_eq!(uid, u32::MAX - 1);
    let error = entry(&changed(108, &[0x80, 0, 0, 1, 0, 0, 0, 0])).unwrap_err();
    assert_eq!(error, "the owner is out of range");
}

#[test]
fn extended_headers_apply_to_the_members_they_are_for() {
    let long = "base/".to_owned() + &"n".repeat(150);
    let mut archive = extended(b'g', &pax(&[("uid", "7"), ("mtime", "-5")]));
    archive.extend(extended(
        b'x',
        &pax(&[
            ("path", &long),
            ("mtime", "-1.5"),
            ("size", "3"),
            ("comment", "a=b"),
            ("gid", "4294967294"),
        ]),
    ));
    archive.extend(member("short", b"abc"));
    archive.extend(member("next", b""));
    archive.extend(extended(b'K', b"/srv/fast\0"));
    archive.extend(extended(b'L', [long.as_bytes(), b"\0"].concat().as_slice()));
    archive.extend(header(b"cut", b'2', 0, b"/srv"));
    archive.extend(extended(b'x', &pax(&[("uid", "")])));
    archive.extend(member("last", b""));
    let sum: Vec<_> = read(&archive, EndBlocks::Optional, &[7, 512, 100])
        .unwrap()
        .members
        .into_iter()
        .map(|(entry, data)| {
            (
                entry.path,
                entry.uid,
                entry.gid,
                (entry.mtime_s, entry.mtime_ns),
                entry.link_target,
                data,
            )
        })
        .collect();
    let member = |path: &str, uid, gid, time, link: &str, data: &str| {
        (
            path.as_bytes().to_vec(),
            uid,
            gid,
            time,
            link.as_bytes().to_vec(),
            data.as_bytes().to_vec(),
        )
    };
    assert_eq!(
        sum,
        [
            member(&long, 7, 4_294_967_294, (-2, 500_000_000), "", "abc"),
            member("next", 7, 0o150, (-5, 0), "", ""),
            member(&long, 7, 0o150, (-5, 0), "/srv/fast", ""),
            member("last", 0o145, 0o150, (-5, 0), "", ""),
        ]
    );
}

#[test]
fn hostile_extensions_are_refused() {
    let cases: &[(&str, Vec<u8>, &str)] = &[
        ("parent", extended(b'x', &pax(&[("path", "../x")])), "\"..\""),
        ("absolute", extended(b'x', &pax(&[("path", "/x")])), "absolute"),
        ("long parent", extended(b'L', b"a/../../x\0"), "\"..\""),
        ("NUL", extended(b'L', b"a\0b\0"), "NUL"),
        ("NUL in a link", extended(b'K', b"a\0b\0"), "NUL"),
        ("link of a file", extended(b'K', b"/x\0"), "not a link"),
        (
            "sparse",
            extended(b'x', &pax(&[("GNU.sparse.major", "1")])),
            "sparse",
        ),
        (
            "size",
            extended(b'x', &pax(&[("size", "-1")])),
            "size is not a number",
        ),
        (
            "absurd size",
            extended(b'x', &pax(&[("size", "99999999999999999")])),
            "absurd",
        ),
        (
            "owner",
            extended(b'x', &pax(&[("uid", "4294967296")])),
            "out of range",
        ),
        ("time", extended(b'x', &pax(&[("mtime", "now")])), "not a time"),
        ("length", extended(b'x', b"99 path=x\n"), "malformed"),
        ("no length", extended(b'x', b"path=x\n"), "malformed"),
        ("no key", extended(b'x', b"6 =ab\n"), "malformed"),
        ("no end", extended(b'x', b"8 path=x"), "malformed"),
        ("huge", header(b"x", b'x', 1 << 20, b"").to_vec(), "absurd"),
        ("sparse member", header(b"f", b'S', 0, b"").to_vec(), "sparse"),
        (
            "without end",
            (0..40)
                .flat_map(|n| extended(b'x', &pax(&[(&format!("k{n}"), &"v".repeat(5000))])))
                .collect(),
            "too long",
        ),
    ];
    for (case, bytes, expected) in cases {
        let archive = [bytes.as_slice(), &member("f", b""), &[0; 1024]].concat();
        let error = read(&archive, EndBlocks::Required, &[usize::MAX]).unwrap_err();
        assert!(error.contains(expected), "{case}: {error}");
    }
    for end_blocks in [EndBlocks::Optional, EndBlocks::Required] {
        let archive = [extended(b'x', &pax(&[("path", "a")])), vec![0; 1024]].concat();
        let error = read(&archive, end_blocks, &[usize::MAX]).unwrap_err();
        assert!(error.contains("without its member"), "{error}");
    }
}

/// GNU tar as the reference: everything that it writes must be parsed as it is on disk.
#[test]
fn archives_of_gnu_tar_are_read() {
    use std::os::unix::fs::MetadataExt;
    let directory = tempfile::tempdir().unwrap();
    let long = format!("{}/{}", "d".repeat(90), "f".repeat(150));
    std::fs::create_dir(directory.path().join("d".repeat(90))).unwrap();
    for (name, date) in [
        ("old", "1960-05-05 01:02:03.25"),
        ("late", "2400-01-01"),
        (&long, "2026-11-28 12:00:00"),
    ] {
        let path = directory.path().join(name);
        std::fs::write(&path, name).unwrap();
        let touch = std::process::Command::new("touch")
            .arg("-d")
            .arg(date)
            .arg(&path)
            .status();
        assert!(touch.unwrap().success());
    }
    for format in ["posix", "gnu", "oldgnu"] {
        let run = std::process::Command::new("tar")
            .args(["--format", format, "-cf", "-", "-C"])
            .arg(directory.path())
            .args(["old", "late", &long])
            .output()
            .unwrap();
        assert!(run.status.success(), "{run:?}");
        let members = read(&run.stdout, EndBlocks::Required, &[1000]).unwrap().members;
        assert_eq!(members.len(), 3, "{format}");
        for (entry, data) in members {
            let name = String::from_utf8(entry.path).unwrap();
            let metadata = directory.path().join(&name).metadata().unwrap();
            let fraction = if format == "posix" {
                metadata.mtime_nsec()
            } else {
                0
            };
            let time = (entry.mtime_s, i64::from(entry.mtime_ns));
            assert_eq!(time, (metadata.mtime(), fraction), "{format} {name}");
            assert_eq!((entry.uid, entry.gid), (metadata.uid(), metadata.gid()));
            assert_eq!(data, name.as_bytes());
        }
    }
}

proptest! {
    #[test]
    fn any_slicing_gives_the_same(
        files in prop::collection::vec(("[a-z]{1,20}(/[a-z][a-z0-9_.]{0,19})?", prop::collection::vec(any::<u8>(), 0..3000)), 0..8),
        sizes in prop::collection::vec(1_usize..2000, 1..5),
    ) {
        let mut archive: Vec<u8> = files.iter().flat_map(|(name, data)| member(name, data)).collect();
        archive.extend([0; 1024]);
        let collected = read(&archive, EndBlocks::Required, &sizes).map_err(TestCaseError::fail)?;
        let seen: Vec<_> = collected
            .members
            .into_iter()
            .map(|(entry, data)| (String::from_utf8(entry.path).unwrap(), data))
            .collect();
        prop_assert_eq!(seen, files);
    }

    #[test]
    fn noise_never_panics(
        bytes in prop::collection::vec(any::<u8>(), 0..4096),
        sizes in prop::collection::vec(1_usize..600, 1..4),
    ) {
        let _either = read(&bytes, EndBlocks::Optional, &sizes);
    }

    /// One changed byte in a header with an otherwise correct checksum is detected or harmless, and never
    /// causes a panic.
    #[test]
    fn a_changed_header_byte_is_found(at in 0_usize..512, to in any::<u8>()) {
        let mut block = header(b"base/5/1259", b'0', 0, b"");
        prop_assume!(block[at] != to);
        // A blank and a NUL after the digits mean the same, and the checksum does not cover its own field.
        prop_assume!(!(148..156).contains(&at));
        block[at] = to;
        prop_assert!(entry(&block).is_err());
    }
}

/// The name of the case, the header, and the expected error.
fn hostile_headers() -> Vec<(&'static str, [u8; 512], &'static str)> {
    let mut bad_sum = header(b"base/1", b'0', 0, b"");
    bad_sum[0] = b'c';
    vec![
        ("parent", header(b"../etc/passwd", b'0', 0, b""), "\"..\""),
        ("inner parent", header(b"base/../../x", b'0', 0, b""), "\"..\""),
        ("last parent", header(b"base/..", b'5', 0, b""), "\"..\""),
        ("parent behind ./", header(b"./../x", b'0', 0, b""), "\"..\""),
        ("absolute", header(b"/etc/passwd", b'0', 0, b""), "absolute"),
        (
            "absolute behind ./",
            header(b".//etc/passwd", b'0', 0, b""),
            "empty component",
        ),
        ("no name", header(b"", b'0', 0, b""), "empty component"),
        ("root", header(b"./", b'5', 0, b""), "empty component"),
        (
            "doubled slash",
            header(b"base//1", b'0', 0, b""),
            "empty component",
        ),
        ("NUL", changed(2, b"\0x"), "NUL"),
        ("character device", header(b"dev", b'3', 0, b""), "device node"),
        ("block device", header(b"dev", b'4', 0, b""), "device node"),
        ("pipe", header(b"pipe", b'6', 0, b""), "named pipe"),
        ("hard link", header(b"link", b'1', 0, b"base/1"), "hard link"),
        ("unknown", header(b"odd", b'Z', 0, b""), "unknown type 'Z'"),
        ("bad checksum", bad_sum, "checksum"),
        ("no magic", changed(257, b"\0\0\0\0\0\0"), "ustar"),
        ("prefix that leads out", changed(345, b"/etc"), "absolute"),
        ("parent in the prefix", changed(345, b".."), "\"..\""),
        ("negative size", changed(124, &[0xFF; 12]), "negative"),
        (
            "size past 64 bits",
            changed(124, &[0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
            "out of range",
        ),
        (
            "absurd size",
            changed(124, &[0x80, 0, 0, 0, 0x7F, 0, 0, 0, 0, 0, 0, 0]),
            "absurd",
        ),
        (
            "size in letters",
            changed(124, b"12345678901x"),
            "size is not a number",
        ),
        (
            "size with digit 8",
            changed(124, b"00000000008 "),
            "size is not a number",
        ),
        (
            "empty size",
            changed(124, b"            "),
            "size is not a number",
        ),
        (
            "directory with data",
            header(b"d/", b'5', 512, b""),
            "512 bytes of data",
        ),
        (
            "link without target",
            header(b"l", b'2', 0, b""),
            "points nowhere",
        ),
        ("file with target", header(b"f", b'0', 0, b"x"), "not a link"),
    ]
}

#[test]
fn hostile_headers_are_refused_by_name_and_place() {
    for (case, block, expected) in hostile_headers() {
        let mut archive = member("first", b"x");
        archive.extend(block);
        archive.extend([0; 2048]);
        let error = read(&archive, EndBlocks::Required, &[usize::MAX]).unwrap_err();
        assert!(error.contains(expected), "{case}: {error}");
        assert!(error.starts_with("base.tar, byte 1024"), "{case}: {error}");
        assert!(!error.contains('\0') && !error.contains('\n'), "{case}: {error}");
    }
}

#[test]
fn every_cut_is_noticed_where_end_blocks_are_required() {
    let mut archive = member("a", b"one");
    archive.extend(member("b", &[1; 700]));
    archive.extend([0; 1024]);
    for cut in 0..archive.len() {
        let result = read(&archive[..cut], EndBlocks::Required, &[usize::MAX]);
        assert!(result.is_err(), "cut at {cut}");
    }
    assert!(read(&archive, EndBlocks::Required, &[usize::MAX]).is_ok());
}

#[test]
fn without_end_blocks_only_whole_members_are_accepted() {
    let mut archive = member("a", b"one");
    archive.extend(member("b", &[1; 700]));
    for cut in 0..=archive.len() {
        let whole = [0, 1024, archive.len()].contains(&cut);
        let result = read(&archive[..cut], EndBlocks::Optional, &[usize::MAX]);
        assert_eq!(result.is_ok(), whole, "cut at {cut}");
    }
}

#[test]
fn nothing_may_follow_the_end() {
    let mut archive = member("a", b"one");
    archive.extend([0; 1024]);
    archive.extend(member("late", b"x"));
    let error = read(&archive, EndBlocks::Required, &[usize::MAX]).unwrap_err();
    assert_eq!(
        error,
        "base.tar, byte 2048: there is data after the end of the archive"
    );
}

#[test]
fn the_sinks_error_is_returned_unchanged() {
    let mut sink = Collected {
        fail_at: Some(1),
        ..Collected::default()
    };
    let mut reader = TarReader::new("base.tar", EndBlocks::Required);
    let mut archive = member("a", b"one");
    archive.extend(member("b", b"two"));
    let error = reader.feed(&archive, &mut sink).unwrap_err();
    assert!(
        matches!(&error, super::super::Error::Sink(inner) if inner.to_string() == "disk full"),
        "{error}"
    );
}

/// The archives of WAL-G have a slash before each name and an end, or neither.
#[test]
fn an_archive_of_walg_is_closed_where_its_names_have_a_slash() {
    let read = |bytes: &[u8]| {
        let (mut reader, mut sink) = (TarReader::of_walg("part_001.tar"), Collected::default());
        reader.feed(bytes, &mut sink)?;
        reader.finish()?;
        Ok::<_, super::super::Error>(sink.members)
    };
    let archive = |slash: &str| {
        let mut bytes = Vec::new();
        if !slash.is_empty() {
            bytes.extend(header(b"/", b'5', 0, b""));
        }
        for name in ["base", "PG_VERSION"] {
            let name = format!("{slash}{name}");
            let (kind, size) = if name.ends_with("base") {
                (b'5', 0)
            } else {
                (b'0', 3)
            };
            bytes.extend(header(name.as_bytes(), kind, size, b""));
        }
        bytes.extend(b"19\n");
        bytes
    };
    let names = |bytes: &[u8]| -> Vec<Vec<u8>> {
        let members = read(bytes).unwrap();
        members.into_iter().map(|(entry, _)| entry.path).collect()
    };
    // Neither end blocks nor padding.
    let streamed = archive("");
    assert_eq!(names(&streamed), [&b"base"[..], b"PG_VERSION"]);
    assert!(read(&streamed[..streamed.len() - 1]).is_err());
    let local = archive("/");
    let padded = [local.as_slice(), &[0; 509]].concat();
    let closed = [padded.as_slice(), &[0; 1024]].concat();
    assert_eq!(names(&closed), [&b""[..], b"base", b"PG_VERSION"]);
    assert!(read(&local).is_err() && read(&padded).is_err());
    for bad in ["//x", "/../x", "/x/../y", "/./x"] {
        assert!(read(&header(bad.as_bytes(), b'0', 0, b"")).is_err(), "{bad}");
    }
    // Anywhere else, an absolute name is refused.
    let mut reader = TarReader::new("base.tar", EndBlocks::Required).with_root();
    assert!(reader.feed(&closed, &mut Collected::default()).is_err());
}
