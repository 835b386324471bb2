use super::*;

#[test]
fn a_frame_comes_as_it_was_sent_and_nothing_else_is_one() {
    let mut sent = Vec::new();
    write_frame(&mut sent, Frame::Content, b"abc").unwrap();
    assert_eq!(
        read_frame(&mut sent.as_slice()).unwrap(),
        Some((Frame::Content, b"abc".to_vec()))
    );
    assert_eq!(read_frame(&mut [].as_slice()).unwrap(), None);
    for length in 1..sent.len() {
        assert!(read_frame(&mut &sent[..length]).is_err());
    }
    for hostile in [
        &b"GET / HTTP/1.1"[..],
        b"M\xff\xff\xff\xff",
        b"\0\0\0\0\0",
        b"Last login: today\n",
    ] {
        let error = read_frame(&mut &*hostile).unwrap_err().to_string();
        assert!(error.contains("does not speak"), "{error}");
    }
    let mut failed = Vec::new();
    let error = Error::usage("no\x1b[31m").hint("do");
    write_json(&mut failed, Frame::Failure, &Failure::from(&error)).unwrap();
    let told = expect(&mut failed.as_slice(), Frame::Entries).unwrap_err();
    assert_eq!((told.kind(), told.hint_text()), (Kind::Usage, Some("do")));
    assert!(!told.to_string().contains('\x1b'));
}

#[test]
fn bytes_survive_json() {
    let bytes = Bytes((0..=255).collect());
    let text = serde_json::to_vec(&bytes).unwrap();
    assert_eq!(json::<Bytes>(&text).unwrap(), bytes);
    assert!(json::<Bytes>("\"\u{100}\"".as_bytes()).is_err());
    for wrong in [&b""[..], b".", b"..", b"a/b", b"a\0"] {
        assert!(!is_name(wrong));
    }
    assert!(is_name(b"\xff 1259"));
}

#[test]
fn windows_must_be_those_of_the_part() {
    let window = |n: u8| Window {
        chunk: (n > 0).then(|| ChunkId::of(&[n])),
        crc32c: n.into(),
    };
    let part = PartWindows {
        window_bytes: 8192,
        first: 2,
        windows: (0..3).map(window).collect(),
    };
    let sent = rows(&part);
    let size_bytes = 4 * 8192 + 5;
    let found = windows(&sent, size_bytes, (16384, 65536)).unwrap();
    assert_eq!((found.first, found.windows), (2, part.windows));
    assert!(windows(&sent, size_bytes, (0, 65536)).is_err());
    assert!(windows(&sent, 9 * 8192, (16384, 65536)).is_err());
    assert!(windows(&sent[..sent.len() - 1], size_bytes, (16384, 65536)).is_err());
    for window_bytes in [0_u32, 3, 1 << 30] {
        let hostile = [&window_bytes.to_be_bytes(), &sent[4..]].concat();
        assert!(windows(&hostile, size_bytes, (16384, 65536)).is_err());
    }
    assert!(windows(b"", size_bytes, (0, 0)).is_err());
}

#[test]
fn content_is_compressed_where_that_pays() {
    let random: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(8192).collect();
    for bytes in [vec![7; 8192], random] {
        let sent = packed(&bytes);
        assert!(sent.len() <= bytes.len() + 1);
        assert_eq!(unpacked(&sent, 8192).unwrap(), bytes);
        assert!(unpacked(&sent, 8191).is_err() && unpacked(&sent, 8193).is_err());
        assert!(unpacked(&sent[1..], 8192).is_err() || sent[1] == 0);
    }
    assert!(unpacked(b"", 1).is_err());
}
