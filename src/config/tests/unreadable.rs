//! Configurations that cannot be read in full. The kind: a byte, a line or a file that cannot be read stops everything, or
//! is left out without a word, so that a server runs, and deletes, by settings that nobody has chosen.

use super::*;
use std::os::unix::fs::symlink;

/// The servers, and whether each is disabled.
fn disabled(config: &Config) -> Vec<(&str, bool)> {
    let servers = config.servers.iter();
    servers
        .map(|server| (server.name.as_str(), server.is_disabled()))
        .collect()
}

/// Two servers, with these bytes in the global section, in the section of `a`, and before all.
fn site(before: &[u8], global: &[u8], of_a: &[u8]) -> Vec<u8> {
    let parts: [&[u8]; 6] = [
        before,
        b"[barmanfs]\nrepository = /r\n",
        global,
        b"\n[a]\nconninfo = host=a\n",
        of_a,
        b"\n[b]\nconninfo = host=b\n",
    ];
    parts.concat()
}

#[test]
fn a_byte_disables_only_the_server_whose_setting_it_may_be() {
    let long = [b"description = ", "long ".repeat(1 << 18).as_bytes()].concat();
    for (before, global, of_a, expected) in [
        // Outside values nothing is lost.
        (&b""[..], &b""[..], &b"# caf\xe9\n; \0\0\n"[..], [false, false]),
        (b"", b"# caf\xe9", b"", [false, false]),
        (b"\xef\xbb\xbf", b"", &long, [false, false]),
        (b"", b"", b"description = caf\xe9", [true, false]),
        (b"", b"", b"description = a\0b", [true, false]),
        (b"", b"", b"description = a\n  caf\xe9", [true, false]),
        (b"", b"", b"retention_p\xe9licy = REDUNDANCY 1", [true, false]),
        (b"", b"", b"\0\0\0\0\0\0", [true, false]),
        (b"", b"", b"retention_po", [true, false]),
        (b"", b"retention_po", b"", [true, true]),
        (
            b"",
            b"minimum_redundancy = \xe9",
            b"minimum_redundancy = 1",
            [false, true],
        ),
        (b"retention_policy = REDUNDANCY 1\n", b"", b"", [true, true]),
        (b"[DEFAULT]\nretention_po\n", b"", b"", [true, true]),
    ] {
        for ending in ["\n", "\r\n", "\r"] {
            let text = site(before, global, of_a);
            let lines = text.split(|byte| *byte == b'\n').collect::<Vec<_>>();
            let config = parse_bytes(&lines.join(ending.as_bytes())).unwrap();
            let [a, b] = expected;
            assert_eq!(disabled(&config), [("a", a), ("b", b)], "{}", said(&config));
            assert!(
                config
                    .servers
                    .iter()
                    .all(|server| server.refuse_storing().is_ok())
            );
        }
    }
}

#[test]
fn what_cannot_be_read_is_named_with_its_line() {
    let text = site(
        b"",
        b"log_file = /\xe9",
        b"description = caf\xe9\nsecret hunter2\nencryption = \0none\n[\xe9\xe9\nretention_policy = REDUNDANCY 9",
    );
    let config = parse_bytes(&text).unwrap();
    assert_snapshot!(said(&config), @r"
    /c/b.conf:3: 'log_file' has bytes that are no text: write UTF-8; it is ignored
    /c/b.conf:6: 'description' has bytes that are no text: write UTF-8: server a is disabled
    /c/b.conf:7: Malformed line: expected [section], key = value, or a comment that begins with # or ;: server a is disabled
    /c/b.conf:8: 'encryption' has bytes that are no text: write UTF-8: server a is disabled
    /c/b.conf:9: Malformed section header: expected [name]
    ");
    assert_eq!(disabled(&config), [("a", true), ("b", false)]);
    // Nobody knows whether something was to be encrypted.
    assert!(config.servers[0].refuse_storing().is_err());
    // Nor what was in the section without a name.
    assert!(config.servers[1].retention_rules().held.is_some());
}

#[test]
fn in_a_file_of_barman_a_harmless_value_that_is_no_text_is_ignored() {
    let text = b"[barman]\nrepository = /r\n[a]\ndescription = a\0\xe9\n[b]\nretention_policy = \xe9\n[c]\nconninfo = host=%(where)s\nwhere = \xe9\n";
    let config = parse_bytes(text).unwrap();
    assert_eq!(disabled(&config), [("a", false), ("b", true), ("c", true)]);
}

#[test]
fn an_included_file_that_cannot_be_read_holds_deletions_and_nothing_else() {
    let home = tempfile::tempdir().unwrap();
    let main = home.path().join("b.conf");
    std::fs::write(
        &main,
        "[barmanfs]\nrepository = /r\nconfiguration_files_directory = d\n[a]\n",
    )
    .unwrap();
    let directory = home.path().join("d");
    std::fs::create_dir(&directory).unwrap();
    for nth in 0..300 {
        std::fs::write(
            directory.join(format!("s{nth}.conf")),
            format!("[s{nth}]\n# caf\u{e9}\nretention_policy = REDUNDANCY 1\n"),
        )
        .unwrap();
    }
    std::fs::create_dir(directory.join("x.conf")).unwrap();
    std::fs::write(directory.join("empty.conf"), "").unwrap();
    let load = || Config::load(Some(&main), None).unwrap();
    let rules = |config: &Config| config.server("s7").unwrap().retention_rules();
    assert_eq!((load().servers.len(), load().misnamed.len()), (301, 0));
    assert!(rules(&load()).held.is_none() && rules(&load()).backups.is_some());
    let refusal = |config: &Config, name: &str| config.refuse_deletions(&name.parse().unwrap()).err();
    assert!(refusal(&load(), "s7").is_none() && refusal(&load(), "nobody").is_none());

    let broken = directory.join("t.conf");
    type Make = fn(&Path);
    let makes: [(Make, &str); 4] = [
        (
            |path| symlink("nowhere", path).unwrap(),
            "t.conf:1: The file cannot be read",
        ),
        (
            |path| symlink("t.conf", path).unwrap(),
            "t.conf:1: The file cannot be read",
        ),
        (
            |path| std::fs::write(path, b"a\xe9b\n").unwrap(),
            "t.conf:1: A line is before the first [section]",
        ),
        (
            |path| std::fs::File::create(path).unwrap().set_len(17 << 20).unwrap(),
            "more than 16 MiB",
        ),
    ];
    for (make, message) in makes {
        make(&broken);
        let config = load();
        assert!(config.servers.iter().all(|server| !server.is_disabled()));
        assert_eq!(config.servers.len(), 301);
        let [file] = config.misnamed.as_slice() else {
            panic!("{:?}", config.misnamed)
        };
        assert!(
            file.is_a_file() && file.problem.to_string().contains(message),
            "{}",
            file.problem
        );
        assert!(rules(&config).held.unwrap().contains("t.conf"));
        // Its section may be what cannot be read.
        for name in ["s7", "nobody"] {
            let refusal = refusal(&config, name).unwrap().to_string();
            assert!(
                refusal.contains("is deleted") && refusal.contains("t.conf"),
                "{refusal}"
            );
        }
        std::fs::remove_file(&broken).unwrap();
    }
    // What it says for all servers may be about its own ones only.
    std::fs::write(&broken, "[barmanfs]\nminimum_redundancy = 3\n[t]\n").unwrap();
    let config = load();
    let wrong = config.servers.iter().filter(|server| server.is_disabled());
    assert_eq!(
        wrong.map(|server| server.name.as_str()).collect::<Vec<_>>(),
        ["t"]
    );
}

/// Each prefix, and each byte overwritten: a server has the settings that were written, or is disabled.
#[test]
fn a_torn_file_of_changes_lets_no_server_run_without_them() {
    let main = site(b"", b"", b"");
    let change = r#"[{"scope":"server","server_name":"b","retention_policy":"REDUNDANCY 9","description":"x"},
                     {"scope":"server","server_name":"a","minimum_redundancy":7}]"#;
    let text = update::render(&update::changes(change, &parse_bytes(&main).unwrap()).unwrap());
    let whole = parse_with(&main, Some(text.as_bytes())).unwrap();
    assert_eq!(disabled(&whole), [("a", false), ("b", false)]);
    let assert_safe = |bytes: &[u8]| {
        let config = parse_with(&main, Some(bytes)).unwrap();
        let pairs = config.servers.iter().zip(&whole.servers);
        for (server, whole) in pairs {
            assert!(
                server.is_disabled() || server.effective() == whole.effective(),
                "{}: {:?}",
                server.name,
                String::from_utf8_lossy(bytes)
            );
        }
        config
            .servers
            .iter()
            .filter(|server| server.is_disabled())
            .count()
    };
    for length in 0..text.len() {
        assert_eq!(assert_safe(&text.as_bytes()[..length]), 2);
    }
    let mut disabled = [0; 3];
    for at in 0..text.len() {
        for byte in [0, 0xff] {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = byte;
            disabled[assert_safe(&bytes)] += 1;
        }
    }
    // Others go on where it is known whose setting was hit.
    assert!(disabled[1] > 50, "{disabled:?}");
    // An earlier release has written neither the names nor the end.
    let (_, rest) = text.split_once('\n').unwrap();
    let earlier = format!(
        "# Written by 'barmanfs config-update', and read after all other files.\n{}",
        rest.trim_end().trim_end_matches("# End")
    );
    assert_eq!(assert_safe(earlier.as_bytes()), 0);
}
