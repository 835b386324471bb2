//! Python literals, as `repr()` writes them.

use std::fmt::Write as _;
use std::iter::Peekable;
use std::str::CharIndices;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum Literal {
    /// `None`
    None,
    /// `True` or `False`
    Bool(bool),
    /// `16384`
    Int(i64),
    /// `0.529443`
    Float(f64),
    /// `'ts1'`
    Text(String),
    /// `[…]` or `(…)`
    List(Vec<Literal>),
    /// `{…}`, in the order of the text
    Dict(Vec<(Literal, Literal)>),
}

/// A text that is no literal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at byte {at}: {reason}")]
pub struct BadLiteral {
    /// Where, in bytes from the text's start.
    pub at: usize,
    /// What is wrong there.
    pub reason: &'static str,
}

/// How deep lists may be inside each other: each level is a call.
const DEEPEST: usize = 32;

impl Literal {
    /// Reads a text that is one literal, with blanks around it.
    ///
    /// # Errors
    /// When it is anything else, has a number beyond 64 bits, or is nested more than 32 deep.
    pub fn parse(text: &str) -> Result<Self, BadLiteral> {
        let mut parser = Parser {
            text,
            rest: text.char_indices().peekable(),
        };
        let value = parser.value(0)?;
        match parser.peek() {
            None => Ok(value),
            Some(_) => Err(parser.wrong("there is more behind the value")),
        }
    }

    /// The text, if it is one.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The value of a key, if it is a dictionary that has it.
    #[must_use]
    pub fn value_of(&self, key: &str) -> Option<&Self> {
        let Self::Dict(entries) = self else { return None };
        let mut entries = entries.iter();
        entries
            .find(|(name, _)| name.as_text() == Some(key))
            .map(|(_, value)| value)
    }

    /// The elements, if it is a list or a tuple.
    #[must_use]
    pub fn as_list(&self) -> Option<&[Self]> {
        match self {
            Self::List(elements) => Some(elements),
            _ => None,
        }
    }
}

/// Writes a text as a literal, in one line.
#[must_use]
pub fn quoted(text: &str) -> String {
    let mut written = String::from("'");
    for c in text.chars() {
        match c {
            '\'' | '\\' => written.extend(['\\', c]),
            '\n' => written.push_str("\\n"),
            c if c.is_control() => {
                let _never_fails = write!(written, "\\x{:02x}", u32::from(c));
            }
            c => written.push(c),
        }
    }
    written.push('\'');
    written
}

/// Writes tablespaces, each with its name, OID and place, as `backup.info` has them: `[('fast', 16435, '/srv/fast')]`, or
/// `None` without any.
#[must_use]
pub fn tablespaces<'a>(tablespaces: impl Iterator<Item = (Option<&'a str>, u32, &'a str)>) -> String {
    let written: Vec<String> = tablespaces
        .map(|(name, oid, place)| {
            let name = name.map_or_else(|| oid.to_string(), str::to_owned);
            format!("({}, {oid}, {})", quoted(&name), quoted(place))
        })
        .collect();
    match written.is_empty() {
        true => "None".to_owned(),
        false => format!("[{}]", written.join(", ")),
    }
}

struct Parser<'a> {
    text: &'a str,
    rest: Peekable<CharIndices<'a>>,
}

impl<'a> Parser<'a> {
    fn wrong(&mut self, reason: &'static str) -> BadLiteral {
        let at = self.rest.peek().map_or(self.text.len(), |(at, _)| *at);
        BadLiteral { at, reason }
    }

    /// The next character that is not blank.
    fn peek(&mut self) -> Option<char> {
        while self
            .rest
            .next_if(|(_, next)| next.is_ascii_whitespace())
            .is_some()
        {}
        self.rest.peek().map(|(_, next)| *next)
    }

    fn value(&mut self, depth: usize) -> Result<Literal, BadLiteral> {
        if depth > DEEPEST {
            return Err(self.wrong("the value is nested too deep"));
        }
        match self.peek() {
            None => Err(self.wrong("a value is missing")),
            Some('[') => self.list(']', depth),
            Some('(') => self.list(')', depth),
            Some('{') => self.dict(depth),
            Some(quote @ ('\'' | '"')) => self.text(quote).map(Literal::Text),
            Some('0'..='9' | '-' | '+' | '.') => self.number(),
            Some(_) => self.word(),
        }
    }

    /// Elements up to `end`; a comma may follow the last one. `(x)` is taken for a tuple: `repr()` writes no such thing.
    fn list(&mut self, end: char, depth: usize) -> Result<Literal, BadLiteral> {
        self.rest.next();
        let mut elements = Vec::new();
        loop {
            if self.peek() == Some(end) {
                self.rest.next();
                return Ok(Literal::List(elements));
            }
            elements.push(self.value(depth + 1)?);
            self.comma_or(end)?;
        }
    }

    fn dict(&mut self, depth: usize) -> Result<Literal, BadLiteral> {
        self.rest.next();
        let mut entries = Vec::new();
        loop {
            if self.peek() == Some('}') {
                self.rest.next();
                return Ok(Literal::Dict(entries));
            }
            let key = self.value(depth + 1)?;
            if self.peek() != Some(':') {
                return Err(self.wrong("a key has no colon behind it"));
            }
            self.rest.next();
            entries.push((key, self.value(depth + 1)?));
            self.comma_or('}')?;
        }
    }

    /// Takes a comma; the end is left for the caller.
    fn comma_or(&mut self, end: char) -> Result<(), BadLiteral> {
        match self.peek() {
            Some(',') => {
                self.rest.next();
                Ok(())
            }
            Some(other) if other == end => Ok(()),
            _ => Err(self.wrong("a comma or the list's end is missing")),
        }
    }

    fn text(&mut self, quote: char) -> Result<String, BadLiteral> {
        self.rest.next();
        let mut text = String::new();
        loop {
            match self.rest.next() {
                None => return Err(self.wrong("the text has no end")),
                Some((_, next)) if next == quote => return Ok(text),
                Some((_, '\\')) => text.extend(self.escape()?),
                Some((_, next)) => text.push(next),
            }
        }
    }

    /// What is behind a backslash. `None` for the end of a line, which means nothing.
    fn escape(&mut self) -> Result<Option<char>, BadLiteral> {
        let Some((_, next)) = self.rest.next() else {
            return Err(self.wrong("the text has no end"));
        };
        Ok(Some(match next {
            '\n' => return Ok(None),
            'a' => '\x07',
            'b' => '\x08',
            'f' => '\x0c',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\x0b',
            '\\' | '\'' | '"' => next,
            'x' => return self.code(2).map(Some),
            'u' => return self.code(4).map(Some),
            'U' => return self.code(8).map(Some),
            '0'..='7' => return self.octal(next).map(Some),
            _ => return Err(self.wrong("this escape is unknown")),
        }))
    }

    fn code(&mut self, digits: usize) -> Result<char, BadLiteral> {
        let mut code = 0_u32;
        for _ in 0..digits {
            let digit = self.rest.next().and_then(|(_, next)| next.to_digit(16));
            let Some(digit) = digit else {
                return Err(self.wrong("a hexadecimal digit is missing"));
            };
            code = code.wrapping_mul(16).wrapping_add(digit);
        }
        char::from_u32(code).ok_or_else(|| self.wrong("there is no character with this code"))
    }

    fn octal(&mut self, first: char) -> Result<char, BadLiteral> {
        let mut code = first.to_digit(8).unwrap_or_default();
        for _ in 0..2 {
            let next = self.rest.next_if(|(_, next)| next.is_digit(8));
            let Some(digit) = next.and_then(|(_, next)| next.to_digit(8)) else {
                break;
            };
            code = code * 8 + digit;
        }
        char::from_u32(code).ok_or_else(|| self.wrong("there is no character with this code"))
    }

    fn number(&mut self) -> Result<Literal, BadLiteral> {
        let digits = self.run(|next| next.is_ascii_digit() || matches!(next, '+' | '-' | '.' | 'e' | 'E'));
        if let Ok(number) = digits.parse() {
            return Ok(Literal::Int(number));
        }
        let is_whole = digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
        match digits.parse::<f64>() {
            Ok(number) if number.is_finite() && !is_whole => Ok(Literal::Float(number)),
            _ => Err(self.wrong("the number cannot be read")),
        }
    }

    fn word(&mut self) -> Result<Literal, BadLiteral> {
        let word = self.run(|next| next.is_ascii_alphanumeric() || next == '_');
        match (word, self.rest.peek()) {
            ("None", _) => Ok(Literal::None),
            ("True", _) => Ok(Literal::Bool(true)),
            ("False", _) => Ok(Literal::Bool(false)),
            // What Python 2 wrote for a text.
            ("u", Some((_, quote @ ('\'' | '"')))) => {
                let quote = *quote;
                self.text(quote).map(Literal::Text)
            }
            _ => Err(self.wrong("this is no value")),
        }
    }

    /// The characters from here on that match.
    fn run(&mut self, matches: impl Fn(char) -> bool) -> &'a str {
        let at = |parser: &mut Self| parser.rest.peek().map_or(parser.text.len(), |(at, _)| *at);
        let start = at(self);
        while self.rest.next_if(|(_, next)| matches(*next)).is_some() {}
        let end = at(self);
        self.text.get(start..end).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(text: &str) -> Literal {
        Literal::Text(text.to_owned())
    }

    #[test]
    fn what_python_writes_is_read() {
        for (written, value) in [
            ("None", Literal::None),
            (" True ", Literal::Bool(true)),
            ("-7", Literal::Int(-7)),
            ("1e-05", Literal::Float(0.00001)),
            ("0.529443", Literal::Float(0.529_443)),
            ("[]", Literal::List(vec![])),
            ("('a',)", Literal::List(vec![text("a")])),
            ("u'a'", text("a")),
            (r#""it's""#, text("it's")),
            (
                r"'\'\\\n\t\x41\u00e9\U0001f600\101\0'",
                text("'\\\n\tA\u{e9}\u{1f600}A\0"),
            ),
            (
                "[('ts1', 16384, '/a b')]",
                Literal::List(vec![Literal::List(vec![
                    text("ts1"),
                    Literal::Int(16384),
                    text("/a b"),
                ])]),
            ),
            (
                "{'a': {'b': 1}, 'c': None}",
                Literal::Dict(vec![
                    (text("a"), Literal::Dict(vec![(text("b"), Literal::Int(1))])),
                    (text("c"), Literal::None),
                ]),
            ),
        ] {
            assert_eq!(Literal::parse(written), Ok(value), "{written}");
        }
    }

    #[test]
    fn what_is_no_literal_is_refused_with_its_place() {
        for (written, at) in [
            ("", 0),
            ("nan", 3),
            ("1 2", 2),
            ("[1", 2),
            ("[1 2]", 3),
            ("(1]", 2),
            ("{1}", 2),
            ("'a", 2),
            (r"'\xg0'", 4),
            (r"'\ud800'", 7),
            ("99999999999999999999", 20),
            ("__import__('os')", 10),
            ("[,]", 1),
        ] {
            let refused = Literal::parse(written).unwrap_err();
            assert_eq!(refused.at, at, "{written}: {refused}");
        }
        let deep = "[".repeat(1_000_000);
        assert_eq!(
            Literal::parse(&deep).unwrap_err().reason,
            "the value is nested too deep"
        );
    }

    fn repr(value: &Literal) -> String {
        match value {
            Literal::None => "None".to_owned(),
            Literal::Bool(true) => "True".to_owned(),
            Literal::Bool(false) => "False".to_owned(),
            Literal::Int(number) => number.to_string(),
            Literal::Float(number) => format!("{number:?}"),
            Literal::Text(text) => quoted(text),
            Literal::List(list) => format!("[{}]", list.iter().map(repr).collect::<Vec<_>>().join(", ")),
            Literal::Dict(dict) => {
                let entries = dict
                    .iter()
                    .map(|(key, value)| format!("{}: {}", repr(key), repr(value)));
                format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
            }
        }
    }

    fn any_literal() -> impl Strategy<Value = Literal> {
        let leaf = prop_oneof![
            Just(Literal::None),
            any::<bool>().prop_map(Literal::Bool),
            any::<i64>().prop_map(Literal::Int),
            (-1e9..1e9).prop_map(Literal::Float),
            ".*".prop_map(Literal::Text),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Literal::List),
                prop::collection::vec((inner.clone(), inner), 0..5).prop_map(Literal::Dict),
            ]
        })
    }

    #[test]
    fn tablespaces_are_a_list_of_tuples() {
        let written = tablespaces([(Some("fast"), 16435, "/srv/fast"), (None, 5, "/a'b")].into_iter());
        assert_eq!(written, r"[('fast', 16435, '/srv/fast'), ('5', 5, '/a\'b')]");
        assert_eq!(tablespaces(std::iter::empty()), "None");
    }

    proptest! {
        #[test]
        fn a_written_text_is_read_back(text in any::<String>()) {
            prop_assert_eq!(Literal::parse(&quoted(&text)), Ok(Literal::Text(text.clone())));
            prop_assert!(!quoted(&text).contains('\n'));
        }

        #[test]
        fn values_come_back(value in any_literal()) {
            prop_assert_eq!(Literal::parse(&repr(&value)), Ok(value));
        }

        #[test]
        fn any_text_is_read_or_refused(text in r#"[\[\](){}'"\\xuU0-9.,: eNTa-]{0,60}"#) {
            if let Err(refused) = Literal::parse(&text) {
                prop_assert!(refused.at <= text.len());
            }
        }
    }
}
