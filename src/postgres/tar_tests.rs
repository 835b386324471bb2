//! The tar parser against a reference writer, every slicing, and hostile archives.

use proptest::prelude::*;

use super::*;

/// What a sink saw.
#[derive(Debug, Default, PartialEq, Eq)]
struct Collected {
    members: Vec<(TarEntry, Vec<u8>)>,
    open: bool,
    /// Fails at this member, to see that the sink's own error comes back.
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

/// A header as PostgreSQL writes it, before anything is made wrong with it.
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
fn members_come_out_as_they_went_in() {
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
    let entry = Header(&header(b"big", b'0', 9 << 33, b"")).entry().unwrap();
    assert_eq!(entry.size_bytes, 9 << 33);
    let entry = Header(&header(b"edge", b'0', (1 << 33) - 1, b""))
        .entry()
        .unwrap();
    assert_eq!(entry.size_bytes, (1 << 33) - 1);
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

    /// One changed byte in a header that has the right checksum otherwise: found, or harmless, never a panic.
    #[test]
    fn a_changed_header_byte_is_found(at in 0_usize..512, to in any::<u8>()) {
        let mut block = header(b"base/5/1259", b'0', 0, b"");
        prop_assume!(block[at] != to);
        // A blank and a NUL after the digits mean the same, and the checksum does not cover itself.
        prop_assume!(!(148..156).contains(&at));
        block[at] = to;
        prop_assert!(Header(&block).entry().is_err());
    }
}

/// Name of the case, the header, and what the error must say.
fn hostile_headers() -> Vec<(&'static str, [u8; 512], &'static str)> {
    let changed = |at: usize, to: &[u8]| {
        let mut block = header(b"base/1", b'0', 0, b"");
        block[at..at + to.len()].copy_from_slice(to);
        with_checksum(block)
    };
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
        (
            "GNU long name",
            header(b"././@LongLink", b'L', 5, b""),
            "GNU long name",
        ),
        ("pax", header(b"pax", b'x', 5, b""), "pax header"),
        ("unknown", header(b"odd", b'Z', 0, b""), "unknown type 'Z'"),
        ("bad checksum", bad_sum, "checksum"),
        ("no magic", changed(257, b"\0\0\0\0\0\0"), "ustar"),
        ("prefix", changed(345, b"/etc"), "prefix"),
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
fn the_sinks_error_comes_back_as_it_is() {
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
