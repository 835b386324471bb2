use super::*;

/// Two keys that `age-keygen` 1.1.1 made, with their recipients.
const IDENTITIES: [(&str, &str); 2] = [
    (
        "AGE-SECRET-KEY-1JVAKRC3AE92THY6K6H2J8R4U5TR0EHT2TXYKVPDQ3WG2ETVWQWKQYG9ZNZ",
        "age1nnjuhyec9p245gp4hpr9ula770qv0k62kdm3vwg88ywnw0wk750s3pczy3",
    ),
    (
        "AGE-SECRET-KEY-17EH8UEPD4HUNDKN2N606ZYGWLR3YUDW4826FXJZXEMQD4TA9JQ9QRTR8SZ",
        "age13nu70yzwytrm94ca8hwdacdkfg9c6hxgcfw056cp9xrv0utzn58q0tzyyu",
    ),
];

/// Files that `age` 1.1.1 made, in base64: for both keys, for the first one with nothing in it, and under a passphrase.
const TWO: &str = "YWdlLWVuY3J5cHRpb24ub3JnL3YxCi0+IFgyNTUxOSBNZnZlNk9YSGxXZVFSRnhzQ3RBam1Cd2YzZWtGVXREaGkvMkZ5Z2ZhYTFj\
    CndQZFowYStpWDl6dDh6SW5VREtoTEFIcVJRbWk3alRmUTB2ekZvWEhnMXMKLT4gWDI1NTE5IFJMM2k1YWF4Mk1mRDRmY3h0cWtR\
    MEdhQ3lSbkwwOGFnL0J1U2pvc3JyMzgKeFZHVFFFTTdydkpNQnRPU1pQYWlmS2FWeEM1ajdwOE9nNUpldUFQNGZHSQotLS0gWmsw\
    cEdETTlmeHNjZEt2bXkyZ2lVMDNFallhemFWZTAvY25Zdi84d1kzOAomdf2m3HPmfXNkFV3/4CBxJqC5npwdlLOIXTTi8PIbAa/T\
    0IdL7p61ekptB3HIeDtMB19ibmWyVFEx";
const EMPTY: &str = "YWdlLWVuY3J5cHRpb24ub3JnL3YxCi0+IFgyNTUxOSBQN3U2clpZdHVzUnU3aWVIWEFZQWRHTnl1OHhWZzh1SkQ4TVd4SXI0RkI4\
    Ci9FL3NNRnhyYnFNTHlMZWM0eFcvQXUzNWdGR1lIRGxMSmZZUG4yTkJjWEkKLS0tIGZYem5lRDJxaEo0Q1ZFVEFNZWd3eXI4YjlP\
    T3ViaW1aNnVJcC9CT2JwWkEKcJ0epn26PsDfKCufhsIB8AQgUAulfnqFvV2kYSAqiCo";
const PASSPHRASE: &str = "YWdlLWVuY3J5cHRpb24ub3JnL3YxCi0+IHNjcnlwdCBMeHJqY1doTERzL01MVzJ5U0RFd3pRIDE4CjlWd3crM0k0T1ZielhzSkw1\
    R1Bpa1Q2eHNqL1lROGRyZXZ5N01YelBqWE0KLS0tIFY0TWQrNHQ1VC90blRTSkxjRmRTY2lnSGZ3NW5HOS9xV0YvYjNwam9vWncK\
    TXrCSnbWE4jpY8BSbWkzbdYAPFbMJJm3aSztVSLHGO1wF5srvFSSh+C6qG0aqRzF4AKbneAYVK23TQ";

fn identity(n: usize) -> Identity {
    let text = format!("# created: 2026\n\n{}\n", IDENTITIES[n].0);
    Identity::parse_all(text.as_bytes()).unwrap().remove(0)
}

fn file(text: &str) -> Vec<u8> {
    base64::decode(text).unwrap()
}

#[test]
fn keys_of_age_keygen_are_read_and_written() {
    for (n, (secret, recipient)) in IDENTITIES.iter().enumerate() {
        let identity = identity(n);
        assert_eq!(identity.to_text().unwrap().as_str(), *secret);
        assert_eq!(identity.recipient().unwrap().to_string(), *recipient);
        assert_eq!(
            recipient.parse::<Recipient>().unwrap(),
            identity.recipient().unwrap()
        );
    }
}

#[test]
fn a_typing_error_in_a_key_is_found() {
    let (secret, recipient) = IDENTITIES[0];
    for at in 0..recipient.len() {
        let mut typed = recipient.to_owned();
        let other = if recipient.as_bytes()[at] == b'q' {
            "p"
        } else {
            "q"
        };
        typed.replace_range(at..=at, other);
        assert_eq!(
            typed.parse::<Recipient>(),
            Err(AgeError::NotARecipient),
            "{typed}"
        );
    }
    let cut = &secret[..secret.len() - 1];
    assert_eq!(
        Identity::parse_all(cut.as_bytes()).unwrap_err(),
        AgeError::NotAnIdentity
    );
    assert_eq!(Identity::parse_all(b"").unwrap_err(), AgeError::NotAnIdentity);
    assert_eq!(recipient[..20].parse::<Recipient>(), Err(AgeError::NotARecipient));
}

#[test]
fn a_key_may_be_given_as_its_bytes() {
    let Identity::Key(secret) = identity(0) else {
        unreachable!()
    };
    let raw = Identity::parse_all(secret.expose()).unwrap().remove(0);
    assert_eq!(raw.recipient(), identity(0).recipient());
}

#[test]
fn files_of_the_stock_tool_open() {
    for n in 0..2 {
        assert_eq!(
            open(&file(TWO), &[identity(n)]).unwrap().as_slice(),
            b"wrapped by the stock tool\n"
        );
    }
    assert_eq!(
        open(&file(EMPTY), &[identity(1), identity(0)])
            .unwrap()
            .as_slice(),
        b""
    );
    assert_eq!(open(&file(EMPTY), &[identity(1)]).unwrap_err(), AgeError::NoMatch);
    let right = Identity::Passphrase("correct horse battery".to_owned().into());
    let opened = open(&file(PASSPHRASE), &[identity(0), right]).unwrap();
    assert_eq!(opened.as_slice(), b"wrapped under a passphrase");
}

#[test]
fn what_is_wrapped_opens_for_its_recipient_only() {
    let wrapped = wrap(b"content", &identity(0).recipient().unwrap()).unwrap();
    assert_eq!(open(&wrapped, &[identity(0)]).unwrap().as_slice(), b"content");
    assert_eq!(open(&wrapped, &[identity(1)]).unwrap_err(), AgeError::NoMatch);
    let passphrase = |text: &str| Identity::Passphrase(text.to_owned().into());
    let wrapped = wrap_with_work(b"content", "secret words", 10).unwrap();
    assert_eq!(
        open(&wrapped, &[passphrase("secret words")]).unwrap().as_slice(),
        b"content"
    );
    assert_eq!(
        open(&wrapped, &[passphrase("secret word")]).unwrap_err(),
        AgeError::NoMatch
    );
}

#[test]
fn any_wrong_byte_is_found_and_none_is_trusted() {
    let wrapped = wrap(b"content", &identity(0).recipient().unwrap()).unwrap();
    for at in 0..wrapped.len() {
        for flip in [1, 0x80] {
            let mut changed = wrapped.clone();
            changed[at] ^= flip;
            assert!(open(&changed, &[identity(0)]).is_err(), "byte {at}");
        }
        assert!(open(&wrapped[..at], &[identity(0)]).is_err(), "cut at {at}");
    }
    assert!(open(&[wrapped, vec![0]].concat(), &[identity(0)]).is_err());
}

#[test]
fn a_passphrase_that_needs_too_much_work_is_refused() {
    let costly = file(PASSPHRASE);
    let text = String::from_utf8_lossy(&costly).into_owned();
    let at = text.find(" 18\n").unwrap();
    let mut changed = costly.clone();
    changed[at + 1..at + 3].copy_from_slice(b"23");
    let identity = Identity::Passphrase("correct horse battery".to_owned().into());
    assert_eq!(
        open(&changed, &[identity]).unwrap_err(),
        AgeError::TooMuchWork(23)
    );
}

#[test]
fn base64_is_that_of_rfc_4648_without_padding() {
    for (bytes, text) in [
        ("", ""),
        ("f", "Zg"),
        ("fo", "Zm8"),
        ("foo", "Zm9v"),
        ("foob", "Zm9vYg"),
        ("foobar", "Zm9vYmFy"),
    ] {
        assert_eq!(base64::encode(bytes.as_bytes()), text);
        assert_eq!(base64::decode(text).unwrap(), bytes.as_bytes());
    }
    for wrong in ["Z", "Zh", "Zm9", "Zg==", "Zm-v", "Zg\n"] {
        assert_eq!(base64::decode(wrong), None, "{wrong}");
    }
}
