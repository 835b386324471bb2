use proptest::prelude::*;

use super::super::info::tests::file as info_file;
use super::*;

const FULL: &str = "20261130-031850F";
const INCREMENTAL: &str = "20261130-031850F_20261130-031853I";

type Lines<'a> = &'a [(&'a str, &'a str)];

/// A manifest with these files, and what each one has.
fn manifest(files: Lines<'_>, paths: Lines<'_>) -> Vec<u8> {
    let label = format!("\"{INCREMENTAL}\"");
    let references = format!("\"{FULL},{INCREMENTAL}\"");
    info_file(&[
        (
            "backup",
            &[
                ("backup-archive-start", "\"00000002000000000000000C\""),
                ("backup-bundle-raw", "true"),
                ("backup-label", &label),
                ("backup-lsn-start", "\"0/C000028\""),
                ("backup-lsn-stop", "\"0/C000120\""),
                ("backup-reference", &references),
                ("backup-timestamp-start", "1796008734"),
                ("backup-timestamp-stop", "1796008736"),
            ],
        ),
        (
            "backup:db",
            &[("db-system-id", "7713798750413966879"), ("db-version", "\"18\"")],
        ),
        (
            "backup:option",
            &[
                ("option-archive-copy", "false"),
                ("option-compress", "true"),
                ("option-compress-type", "\"zst\""),
            ],
        ),
        (
            "backup:target",
            &[
                ("pg_data", r#"{"path":"/data","type":"path"}"#),
                (
                    "pg_tblspc/16384",
                    r#"{"path":"/ts","tablespace-id":"16384","tablespace-name":"ts","type":"link"}"#,
                ),
            ],
        ),
        ("target:file", files),
        (
            "target:file:default",
            &[("group", "\"g\""), ("mode", "\"0600\""), ("user", "\"u\"")],
        ),
        (
            "target:link",
            &[("pg_data/pg_tblspc/16384", r#"{"destination":"/ts"}"#)],
        ),
        ("target:path", paths),
        (
            "target:path:default",
            &[("group", "\"g\""), ("mode", "\"0700\""), ("user", "false")],
        ),
    ])
}

const PATHS: Lines<'static> = &[
    ("pg_data", "{}"),
    ("pg_data/base", r#"{"mode":"0750","user":"other"}"#),
    ("pg_data/pg_tblspc", "{}"),
    ("pg_tblspc", "{}"),
    ("pg_tblspc/16384", "{}"),
];

const SUM: &str = r#""checksum":"24b9c1f3fddff79893e5304f998f2f95ebebd149""#;

fn parse(files: Lines<'_>) -> Result<Manifest, InfoError> {
    Manifest::parse(manifest(files, PATHS).as_slice())
}

fn one(line: &str) -> Result<File, InfoError> {
    let mut manifest = parse(&[("pg_data/base/1", line)])?;
    Ok(manifest.files.remove(0))
}

#[test]
fn files_have_their_places() {
    let whole = format!(r#"{{{SUM},"repo-size":9,"size":3,"timestamp":5}}"#);
    let piece = format!(
        r#"{{"bni":2,"bno":77,{SUM},"mode":"0640","reference":"{FULL}","size":3,"timestamp":5,"user":"x"}}"#
    );
    let blocks = format!(
        r#"{{"bi":2,"bic":7,"bim":40,"bni":1,{SUM},"rck":"69a213c404a99e20513e87542a956741d4a66115","repo-size":99,"size":50000,"timestamp":5}}"#
    );
    let manifest = parse(&[
        ("pg_data/PG_VERSION", &whole),
        ("pg_data/base/1", &piece),
        ("pg_data/empty", r#"{"size":0,"timestamp":-1}"#),
        ("pg_tblspc/16384/b", &blocks),
    ])
    .unwrap();
    let [version, base, empty, block] = manifest.files.as_slice() else {
        panic!("{manifest:?}")
    };
    assert_eq!(manifest.stored_path(version), b"pg_data/PG_VERSION.zst");
    assert_eq!(
        (
            manifest.holder(version).as_str(),
            version.stored_bytes,
            version.mode
        ),
        (INCREMENTAL, 9, 0o600)
    );
    assert_eq!(manifest.name(version.user), Some("u"));
    assert_eq!(
        (manifest.holder(base).as_str(), base.piece),
        (
            FULL,
            Some(Piece {
                bundle: 2,
                offset: 77
            })
        )
    );
    assert_eq!(
        (manifest.name(base.user), base.mode, base.stored_bytes),
        (Some("x"), 0o640, 3)
    );
    assert_eq!((empty.size_bytes, empty.mtime_s), (0, -1));
    let wanted = Blocks {
        block_bytes: 16384,
        checksum_bytes: 7,
        map_bytes: 40,
    };
    assert_eq!(
        (block.blocks, &*block.path),
        (Some(wanted), b"pg_tblspc/16384/b".as_slice())
    );
    assert_eq!(manifest.stored_path(block), b"pg_tblspc/16384/b.pgbi");
    let base = &manifest.directories[1];
    assert_eq!(
        (&*base.path, base.mode, manifest.name(base.user)),
        (b"base".as_slice(), 0o750, Some("other"))
    );
    assert_eq!(manifest.directories[0].user, Owner::Unknown, "false");
    assert_eq!(manifest.start, Some((TimelineId(2), Lsn(0x0C00_0028))));
    assert_eq!(
        manifest.tablespaces,
        [Tablespace {
            oid: 16384,
            name: Some("ts".to_owned()),
            location: "/ts".to_owned()
        }]
    );
}

#[test]
fn hostile_lines_are_refused() {
    for (path, reason) in [
        ("pg_data/../etc/passwd", "not a path"),
        ("pg_data//x", "not a path"),
        ("pg_datax", "not a path"),
        ("pg_data/", "not a path"),
        ("/etc/passwd", "in no data directory"),
        ("pg_tblspc/99/x", "in no data directory"),
        ("pg_tblspc/16384/../x", "not a path"),
        ("pg_data", "a directory among files"),
        ("pg_tblspc", "a directory among files"),
        ("pg_data/base", "listed twice"),
        ("pg_data/nowhere/x", "is missing"),
    ] {
        let error = parse(&[(path, r#"{"size":0,"timestamp":1}"#)]).unwrap_err();
        assert!(error.to_string().contains(reason), "{path}: {error}");
    }
    let twice = [("pg_data/a", r#"{"size":0,"timestamp":1}"#); 2];
    assert!(parse(&twice).unwrap_err().to_string().contains("listed twice"));
    for (line, reason) in [
        (r#"{"size":9,"timestamp":1}"#.to_owned(), "not finished"),
        (
            format!(r#"{{{SUM},"size":9223372036854775808,"timestamp":1}}"#),
            "no file can have",
        ),
        (
            format!(r#"{{"bni":1,"bno":18446744073709551615,{SUM},"size":9,"timestamp":1}}"#),
            "no file can have",
        ),
        (
            format!(r#"{{{SUM},"reference":"../..","size":9,"timestamp":1}}"#),
            "not in the list",
        ),
        (
            format!(r#"{{{SUM},"reference":"20251130-031850F","size":9,"timestamp":1}}"#),
            "not in the list",
        ),
        (
            format!(r#"{{"bi":1,"bim":10,{SUM},"size":9,"timestamp":1}}"#),
            "block map",
        ),
        (
            format!(r#"{{"bi":99999999999,"bim":1,{SUM},"size":9,"timestamp":1}}"#),
            "size of blocks",
        ),
        (
            format!(r#"{{"bi":1,"bic":0,"bim":1,{SUM},"size":9,"timestamp":1}}"#),
            "size of blocks",
        ),
        (
            r#"{"checksum":"24b9","size":9,"timestamp":1}"#.to_owned(),
            "no SHA-1",
        ),
        (
            format!(r#"{{"mode":"0999",{SUM},"size":9,"timestamp":1}}"#),
            "octal",
        ),
        ("{}".to_owned(), "missing field"),
    ] {
        let error = one(&line).unwrap_err().to_string();
        assert!(error.contains(reason), "{line}: {error}");
    }
}

#[test]
fn what_is_not_whole_is_refused() {
    let bytes = manifest(&[("pg_data/a", r#"{"size":0,"timestamp":1}"#)], PATHS);
    for length in (0..bytes.len() - 1).step_by(7) {
        assert!(Manifest::parse(&bytes[..length]).is_err(), "{length}");
    }
    let orphan = manifest(&[], &[("pg_data/base/1", "{}"), ("pg_data", "{}")]);
    assert!(Manifest::parse(orphan.as_slice()).is_err());
}

proptest! {
    #[test]
    fn no_line_makes_it_panic(key in "(pg_data|pg_tblspc/16384)?[ -~]{0,30}", value in r#"\{("(bi|bim|bic|bni|bno|size|timestamp|mode|user|checksum|reference)":([0-9]{1,20}|"[0-9a-f/,]{0,40}"|false),?){0,5}\}"#) {
        let _ = parse(&[(&key, &value)]);
        let _ = Manifest::parse(manifest(&[], &[(&key, &value)]).as_slice());
    }
}
