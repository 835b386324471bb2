//! The header of an age file: to bytes and back.

use super::base64;

const VERSION: &str = "age-encryption.org/v1";

/// Columns of a stanza's body.
const COLUMNS: usize = 64;

/// The file's key, wrapped for one recipient.
#[derive(Debug)]
pub(super) struct Stanza {
    pub(super) kind: String,
    pub(super) arguments: Vec<String>,
    pub(super) body: Vec<u8>,
}

/// A parsed header.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) stanzas: Vec<Stanza>,
    /// The bytes that the MAC covers.
    pub(super) authenticated: Vec<u8>,
    pub(super) mac: Vec<u8>,
}

/// The bytes of a header up to its MAC, which covers them.
pub(super) fn encode(stanzas: &[Stanza]) -> Vec<u8> {
    let mut text = format!("{VERSION}\n");
    for Stanza {
        kind,
        arguments,
        body,
    } in stanzas
    {
        text.push_str(&format!("-> {kind} {}\n", arguments.join(" ")));
        let body = base64::encode(body);
        let mut rest = body.as_str();
        while let Some((line, after)) = rest.split_at_checked(COLUMNS) {
            text.push_str(&format!("{line}\n"));
            rest = after;
        }
        // A shorter line ends the body, if need be an empty one.
        text.push_str(&format!("{rest}\n"));
    }
    text.push_str("---");
    text.into_bytes()
}

impl Header {
    /// Splits a file into its header and what follows.
    pub(super) fn parse(file: &[u8]) -> Option<(Self, &[u8])> {
        let mut rest = file;
        let mut stanzas = Vec::new();
        if next_line(&mut rest)? != VERSION {
            return None;
        }
        loop {
            let before = file.len() - rest.len();
            let line = next_line(&mut rest)?;
            if let Some(mac) = line.strip_prefix("--- ") {
                let header = Self {
                    stanzas,
                    authenticated: file.get(..before + 3)?.to_vec(),
                    mac: base64::decode(mac)?,
                };
                return (!header.stanzas.is_empty()).then_some((header, rest));
            }
            let mut words = line.strip_prefix("-> ")?.split(' ').map(str::to_owned);
            let (kind, arguments) = (words.next()?, words.collect::<Vec<_>>());
            let is_word =
                |word: &String| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_graphic());
            if !is_word(&kind) || !arguments.iter().all(is_word) {
                return None;
            }
            let body = base64::decode(&body(&mut rest)?)?;
            stanzas.push(Stanza {
                kind,
                arguments,
                body,
            });
        }
    }
}

fn body(rest: &mut &[u8]) -> Option<String> {
    let mut body = String::new();
    loop {
        let line = next_line(rest)?;
        body.push_str(line);
        match line.len() {
            COLUMNS => {}
            fewer if fewer < COLUMNS => return Some(body),
            _ => return None,
        }
    }
}

fn next_line<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let end = rest.iter().position(|byte| *byte == b'\n')?;
    let (line, after) = rest.split_at_checked(end)?;
    *rest = after.get(1..)?;
    std::str::from_utf8(line).ok()
}
