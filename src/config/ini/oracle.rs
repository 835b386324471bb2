//! Random files are read as Python's `configparser` reads them, which is what Barman uses.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};

use super::super::origin::File;
use super::parse;

/// Sections with their keys; `None` for a text that is refused.
type Read = Option<BTreeMap<String, BTreeMap<String, String>>>;

/// Reads a JSON list of texts, and prints what each says, with Barman's rule for quotes.
const PYTHON: &str = r#"
import configparser, json, re, sys
quoted = re.compile(r"""^(["'])(.*)\1$""")
def read(text):
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read_string(text)
    except configparser.Error:
        return None
    merged = {}
    for name in parser.sections():
        items = {k: quoted.sub(lambda m: m.group(2), v) for k, v in parser.items(name)}
        merged.setdefault(name, {}).update(items)
    return merged
print(json.dumps([read(text) for text in json.load(sys.stdin)]))
"#;

fn line(random: &mut fastrand::Rng) -> String {
    let any = |random: &mut fastrand::Rng, texts: &[&str]| texts[random.usize(..texts.len())].to_owned();
    let indent = any(random, &["", "", "", " ", "   ", "\t"]);
    match random.u8(..20) {
        0..3 => format!("{indent}[{}]", any(random, &["a", "b", "my server"])),
        3 => format!("[a]{}", any(random, &[" ; text", " text", "x = 1"])),
        4..12 => {
            let key = any(random, &["key", "Key", "two words", "k"]);
            let separator = any(random, &["=", " = ", ":", " : ", "  ="]);
            let value = any(
                random,
                &[
                    "x",
                    "\"x y\"",
                    "'x'",
                    "\"x'",
                    "a = b : c",
                    "",
                    "x # y",
                    "%(k)s",
                    "'",
                ],
            );
            format!("{indent}{key}{separator}{value}")
        }
        12..15 => format!("    {}", any(random, &["more", "[a]", "k = 1", "'", "\"end\""])),
        15..17 => format!("{indent}{}", any(random, &["# text", "; text", "#", ";k = 1"])),
        17..19 => any(random, &["", "", "   "]),
        _ => any(random, &["", "word", "= x", "[", "[]"]),
    }
}

fn ours(text: &str) -> Read {
    let contents = parse(&File::new("/c"), text.as_bytes());
    let mut merged: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for section in contents.sections {
        if !section.malformed.is_empty() {
            return None;
        }
        let entries = section.entries.into_iter().map(|entry| (entry.key, entry.value));
        merged.entry(section.name?).or_default().extend(entries);
    }
    Some(merged)
}

#[test]
fn files_are_read_as_python_reads_them() {
    let mut random = fastrand::Rng::with_seed(20_261_129);
    let texts: Vec<String> = (0..5000)
        .map(|_| {
            let mut lines = vec!["[a]".to_owned()];
            lines.extend((0..random.usize(1..12)).map(|_| line(&mut random)));
            lines.join("\n") + "\n"
        })
        .collect();
    let python = Command::new("python3")
        .args(["-c", PYTHON])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut python) = python else {
        eprintln!("Not compared: there is no python3");
        return;
    };
    let input = serde_json::to_string(&texts).unwrap();
    python.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    let theirs: Vec<Read> = serde_json::from_slice(&output.stdout).unwrap();
    let refused = theirs.iter().filter(|read| read.is_none()).count();
    assert!(refused > 100 && refused < 3000, "{refused} of 5000 are refused");
    for (text, theirs) in texts.iter().zip(theirs) {
        assert_eq!(ours(text), theirs, "{text}");
    }
}
