//! Configuration files: `postgresql.conf` and those it includes (`src/backend/utils/misc/guc-file.l`), and the tokens of
//! `pg_hba.conf` and `pg_ident.conf` (`src/backend/libpq/hba.c`).

/// A line of `postgresql.conf`, as PostgreSQL reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfLine {
    /// Nothing, or a comment.
    Blank,
    /// A setting or one of the `include` directives.
    Setting {
        /// Its name in lower case: letter case does not count.
        name: String,
        /// Its value without quotes and escapes.
        value: Vec<u8>,
    },
    /// PostgreSQL refuses a file with such a line.
    Malformed,
}

impl ConfLine {
    /// Reads one line, with or without its end.
    #[must_use]
    pub fn parse(line: &[u8]) -> Self {
        let mut tokens = Tokens(line.strip_suffix(b"\n").unwrap_or(line));
        let name = match tokens.next() {
            None => return Self::Blank,
            Some(Token::Name(name)) => name.to_ascii_lowercase(),
            Some(_) => return Self::Malformed,
        };
        let value = match tokens.next() {
            Some(Token::Equals) => tokens.next(),
            other => other,
        };
        let value = match value {
            Some(Token::Name(text) | Token::Word(text)) => text.to_vec(),
            Some(Token::Quoted(text)) => unquoted(text),
            Some(Token::Equals | Token::Wrong) | None => return Self::Malformed,
        };
        match tokens.next() {
            None => Self::Setting {
                name: String::from_utf8_lossy(&name).into_owned(),
                value,
            },
            Some(_) => Self::Malformed,
        }
    }
}

/// The rest of a line.
struct Tokens<'a>(&'a [u8]);

#[derive(Debug, PartialEq, Eq)]
enum Token<'a> {
    Name(&'a [u8]),
    /// With its quotes.
    Quoted(&'a [u8]),
    /// A number, or a word that can only be a value.
    Word(&'a [u8]),
    Equals,
    Wrong,
}

fn is_letter(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn is_letter_or_digit(byte: u8) -> bool {
    is_letter(byte) || byte.is_ascii_digit()
}

/// How many bytes at the beginning of `text` match.
fn span(text: &[u8], is_such: impl Fn(u8) -> bool) -> usize {
    text.iter().position(|byte| !is_such(*byte)).unwrap_or(text.len())
}

impl<'a> Tokens<'a> {
    /// `None` at the line's end.
    fn next(&mut self) -> Option<Token<'a>> {
        let blank = span(self.0, |byte| b" \t\r".contains(&byte));
        let rest = self.0.get(blank..).unwrap_or_default();
        let (length, token): (usize, fn(&'a [u8]) -> Token<'a>) = match *rest.first()? {
            b'#' => return None,
            b'=' => (1, |_| Token::Equals),
            b'\'' => match quoted_length(rest) {
                Some(length) => (length, Token::Quoted),
                None => (1, |_| Token::Wrong),
            },
            first if is_letter(first) => longest_word(rest),
            _ => match span(rest, |byte| {
                byte.is_ascii_alphanumeric() || b"+-.".contains(&byte)
            }) {
                0 => (1, |_| Token::Wrong),
                length => (length, Token::Word),
            },
        };
        let (text, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some(token(text))
    }
}

/// A name (`a`, `a.b`), or a longer word, which can only be a value.
fn longest_word<'a>(rest: &'a [u8]) -> (usize, fn(&'a [u8]) -> Token<'a>) {
    let mut name = span(rest, is_letter_or_digit);
    if let Some([b'.', first, ..]) = rest.get(name..)
        && is_letter(*first)
    {
        let after_dot = rest.get(name + 1..).unwrap_or_default();
        name += 1 + span(after_dot, is_letter_or_digit);
    }
    let word = span(rest, |byte| is_letter_or_digit(byte) || b"-._:/".contains(&byte));
    match word > name {
        true => (word, Token::Word),
        false => (name, Token::Name),
    }
}

/// The length of a string in quotes; `None` if it does not end on this line.
fn quoted_length(text: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        match (text.get(at)?, text.get(at + 1)) {
            (b'\\', Some(_)) | (b'\'', Some(b'\'')) => at += 2,
            (b'\\', None) => return None,
            (b'\'', _) => return Some(at + 1),
            _ => at += 1,
        }
    }
}

/// `DeescapeQuotedString`.
fn unquoted(text: &[u8]) -> Vec<u8> {
    let inner = text.get(1..text.len().saturating_sub(1)).unwrap_or_default();
    let mut value = Vec::with_capacity(inner.len());
    let mut rest = inner.iter().copied().peekable();
    while let Some(byte) = rest.next() {
        match byte {
            b'\\' => match rest.next() {
                Some(b'b') => value.push(8),
                Some(b'f') => value.push(12),
                Some(b'n') => value.push(b'\n'),
                Some(b'r') => value.push(b'\r'),
                Some(b't') => value.push(b'\t'),
                Some(digit @ b'0'..=b'7') => {
                    let mut number = u32::from(digit - b'0');
                    for _ in 0..2 {
                        if let Some(digit) = rest.next_if(|byte| (b'0'..=b'7').contains(byte)) {
                            number = number << 3 | u32::from(digit - b'0');
                        }
                    }
                    value.push((number & 0xff) as u8);
                }
                Some(other) => value.push(other),
                None => {}
            },
            b'\'' => {
                rest.next_if_eq(&b'\'');
                value.push(b'\'');
            }
            other => value.push(other),
        }
    }
    value
}

/// A file or directory that a line of `pg_hba.conf`, `pg_ident.conf` or a file they name refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessReference {
    /// `include`, or a list of names in a file: `@FILE`.
    File(Vec<u8>),
    /// `include_if_exists`
    FileIfExists(Vec<u8>),
    /// `include_dir`
    Directory(Vec<u8>),
}

/// All files that such a file names.
#[must_use]
pub fn access_references(text: &[u8]) -> Vec<AccessReference> {
    let mut references = Vec::new();
    for line in logical_lines(text) {
        let tokens = access_tokens(&line);
        let named = |token: &AccessToken| match token {
            AccessToken { text, quoted: false } if text.len() > 1 && text.first() == Some(&b'@') => {
                text.get(1..).map(|name| AccessReference::File(name.to_vec()))
            }
            _ => None,
        };
        references.extend(tokens.iter().filter_map(named));
        if let [directive, AccessToken { text: name, .. }] = &*tokens {
            match &*directive.text {
                b"include" => references.push(AccessReference::File(name.clone())),
                b"include_if_exists" => references.push(AccessReference::FileIfExists(name.clone())),
                b"include_dir" => references.push(AccessReference::Directory(name.clone())),
                _ => {}
            }
        }
    }
    references
}

/// Lines that end in a backslash continue on the next one.
fn logical_lines(text: &[u8]) -> Vec<Vec<u8>> {
    let mut lines = Vec::new();
    let mut line = Vec::new();
    for part in text.split(|byte| *byte == b'\n') {
        let part = part.strip_suffix(b"\r").unwrap_or(part);
        match part.strip_suffix(b"\\") {
            Some(part) => line.extend_from_slice(part),
            None => {
                line.extend_from_slice(part);
                lines.push(std::mem::take(&mut line));
            }
        }
    }
    if !line.is_empty() {
        lines.push(line);
    }
    lines
}

struct AccessToken {
    text: Vec<u8>,
    /// It begins with a quote.
    quoted: bool,
}

/// `next_token`: words between blanks and commas.
fn access_tokens(line: &[u8]) -> Vec<AccessToken> {
    let is_blank = |byte: u8| b" \t\r".contains(&byte);
    let mut tokens = Vec::new();
    let mut bytes = line.iter().copied().peekable();
    loop {
        while bytes.next_if(|byte| is_blank(*byte) || *byte == b',').is_some() {}
        if bytes.peek().is_none() {
            return tokens;
        }
        let mut token = AccessToken {
            text: Vec::new(),
            quoted: false,
        };
        let (mut in_quote, mut was_quote, mut saw_quote) = (false, false, false);
        while let Some(byte) = bytes.next_if(|byte| in_quote || !is_blank(*byte)) {
            if byte == b'#' && !in_quote {
                bytes = [].iter().copied().peekable();
                break;
            }
            if byte == b',' && !in_quote {
                break;
            }
            if byte != b'"' || was_quote {
                token.text.push(byte);
            }
            was_quote = in_quote && byte == b'"' && !was_quote;
            if byte == b'"' {
                in_quote = !in_quote;
                saw_quote = true;
                token.quoted |= token.text.is_empty();
            }
        }
        if saw_quote || !token.text.is_empty() {
            tokens.push(token);
        }
    }
}

/// A value between quotes, as a configuration file has it (`DeescapeQuotedString` of `src/backend/utils/misc/guc-file.l`).
#[must_use]
pub fn quoted(value: &str) -> String {
    let mut quoted = String::from("'");
    for c in value.chars() {
        match c {
            '\'' => quoted.push_str("''"),
            '\\' => quoted.push_str("\\\\"),
            c if c.is_ascii_control() => quoted.push_str(&format!("\\{:03o}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('\'');
    quoted
}

/// The location of a path that is written in the file `named_in`, both relative to the data directory
/// (`AbsoluteConfigLocation`); `None` if it leads out of the data directory.
#[must_use]
pub fn location(path: &[u8], named_in: &[u8]) -> Option<Vec<u8>> {
    if path.first() == Some(&b'/') {
        return None;
    }
    let parent = match named_in.iter().rposition(|byte| *byte == b'/') {
        Some(end) => named_in.get(..end)?,
        None => b"",
    };
    let mut names: Vec<&[u8]> = Vec::new();
    for name in parent
        .split(|byte| *byte == b'/')
        .chain(path.split(|byte| *byte == b'/'))
    {
        match name {
            b"" | b"." => {}
            b".." => {
                names.pop()?;
            }
            name => names.push(name),
        }
    }
    Some(names.join(&b'/'))
}

/// Whether `include_dir` takes a file of this name (`GetConfFilesInDir`).
#[must_use]
pub fn is_taken_by_include_dir(name: &[u8]) -> bool {
    name.len() >= 6 && name.first() != Some(&b'.') && name.ends_with(b".conf")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted_as_postgresql_reads_them() {
        assert_eq!(quoted("it's"), "'it''s'");
        assert_eq!(quoted("a\\b\nc\t"), "'a\\\\b\\012c\\011'");
        assert_eq!(quoted("é"), "'é'");
    }

    #[test]
    fn a_setting_is_known_however_it_is_written() {
        for line in [
            "data_directory='/srv'",
            "\t Data_Directory = '/srv'\n",
            "data_directory '/srv'\r\n",
            "DATA_DIRECTORY'/srv'# there",
            "data_directory = '/s\\162v'",
            "data_directory = '\\/srv' # it's",
        ] {
            let expected = ConfLine::Setting {
                name: "data_directory".to_owned(),
                value: b"/srv".to_vec(),
            };
            assert_eq!(ConfLine::parse(line.as_bytes()), expected, "{line}");
        }
    }

    #[test]
    fn values_are_read_as_postgresql_does() {
        for (line, name, value) in [
            ("include it.conf", "include", "it.conf"),
            ("work_mem = 4MB", "work_mem", "4MB"),
            ("x = -1.5e-3", "x", "-1.5e-3"),
            ("a.b = off # c", "a.b", "off"),
            ("search_path = 'it''s \\'\\\\'", "search_path", "it's '\\"),
            ("x = ''", "x", ""),
            ("\u{e9}data_directory = 1", "\u{e9}data_directory", "1"),
        ] {
            let ConfLine::Setting { name: n, value: v } = ConfLine::parse(line.as_bytes()) else {
                panic!("{line}");
            };
            assert_eq!((&*n, &*v), (name, value.as_bytes()), "{line}");
        }
        for line in ["", " \r\n", "# x = 1", "\t#"] {
            assert_eq!(ConfLine::parse(line.as_bytes()), ConfLine::Blank, "{line}");
        }
        for line in [
            "data_directory",
            "x =",
            "x = 1 2",
            "x = = 1",
            "data_directory-x = 1",
            "data_directory/srv",
            "x = 'open",
            "x = /srv",
            "'x' = 1",
            "a.b.c = 1",
            "1 = 2",
            "x = 'a\\",
            "\u{c} x = 1",
        ] {
            assert_eq!(ConfLine::parse(line.as_bytes()), ConfLine::Malformed, "{line}");
        }
    }

    #[test]
    fn paths_are_relative_to_the_file_that_has_them() {
        let at = |path: &str, file: &str| {
            let found = location(path.as_bytes(), file.as_bytes());
            found.map(|path| String::from_utf8(path).unwrap())
        };
        assert_eq!(at("a.conf", "postgresql.conf").as_deref(), Some("a.conf"));
        assert_eq!(at("./b//c/../d.conf", "a/x.conf").as_deref(), Some("a/b/d.conf"));
        assert_eq!(at("../x.conf", "a/x.conf").as_deref(), Some("x.conf"));
        assert_eq!(at("../x.conf", "x.conf"), None);
        assert_eq!(at("a/../../pg/x.conf", "x.conf"), None);
        assert_eq!(at("/etc/x.conf", "x.conf"), None);
    }

    #[test]
    fn files_named_for_access_are_found() {
        use AccessReference::{Directory, File, FileIfExists};
        let text = b"# @no\ninclude hba.d/a\n\"include\" 'b\ninclude_if_exists \"c d\"\ninclude_dir d # e\n\
                     local @users,x,@\"more users\" all trust\nlocal \"@name\" all trust\n\
                     host all \\\n @cont all md5\ninclude a b\nlocal a@b all\n";
        let file = |name: &str| File(name.into());
        let expected = [
            file("hba.d/a"),
            file("'b"),
            FileIfExists(b"c d".to_vec()),
            Directory(b"d".to_vec()),
            file("users"),
            file("more users"),
            file("cont"),
        ];
        assert_eq!(access_references(text), expected);
    }

    #[test]
    fn a_directory_gives_its_conf_files_only() {
        for (name, taken) in [
            ("a.conf", true),
            (".conf", false),
            (".a.conf", false),
            ("a.conf~", false),
            ("b", false),
        ] {
            assert_eq!(is_taken_by_include_dir(name.as_bytes()), taken, "{name}");
        }
    }
}
