//! All printing on standard output: text, tables, JSON.
//!
//! Colours are used only on a terminal and without `NO_COLOR`. If the reader has gone away, the program ends quietly.

mod data;
mod document;
mod messages;
pub(crate) mod table;

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::sync::OnceLock;

use barmanfs_catalog::json;
use barmanfs_pg::TimestampMicros;
use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, Outcome};
use crate::locale;
pub(crate) use data::stdout;
use document::Document;
use messages::Messages;
pub(crate) use table::{Align, Cell, Table};

/// How a word is highlighted on a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// Not highlighted.
    Plain,
    /// A heading.
    Bold,
    /// Good.
    Green,
    /// Not decided yet.
    Yellow,
    /// Bad.
    Red,
}

impl Style {
    /// The SGR codes for it.
    fn codes(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Bold => "\x1b[1m",
            Self::Green => "\x1b[32m",
            Self::Yellow => "\x1b[33m",
            Self::Red => "\x1b[1;31m",
        }
    }
}

/// When output has colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ColorChoice {
    /// Never
    Never,
    /// Always, also in a file or a pipe
    Always,
    /// On a terminal, without NO_COLOR
    Auto,
}

/// The choice of the command line. Unset means [`ColorChoice::Auto`].
static COLOR_CHOICE: OnceLock<ColorChoice> = OnceLock::new();

/// Sets the choice for the whole process. The first call counts.
pub(crate) fn choose_colours(choice: ColorChoice) {
    COLOR_CHOICE.get_or_init(|| choice);
}

/// Whether `stream` shows colours.
pub(crate) fn colours(stream: &impl IsTerminal) -> bool {
    match COLOR_CHOICE.get().copied().unwrap_or(ColorChoice::Auto) {
        ColorChoice::Never => false,
        ColorChoice::Always => true,
        ColorChoice::Auto => {
            let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            stream.is_terminal() && !no_color && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
        }
    }
}

/// `text` in `style`, if `colour` is set.
pub(crate) fn paint(text: &str, style: Style, colour: bool) -> String {
    if colour && style != Style::Plain {
        format!("{}{text}\x1b[0m", style.codes())
    } else {
        text.to_owned()
    }
}

/// Barman's own output, for programs that read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Barman's lines
    Console,
    /// Barman's JSON
    Json,
}

/// What standard output consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Text.
    Text,
    /// One JSON document of our own (`--json`).
    Json,
    /// One JSON document in Barman's form (`--format json`).
    BarmanJson,
}

/// Warnings and errors of the log, for a document that has them.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) warnings: Vec<String>,
    pub(crate) errors: Vec<String>,
}

/// How the output is put together.
#[derive(Debug)]
enum Parts {
    Text,
    Document(Document),
    Messages(Messages),
}

/// Prints the document of an error that came before the command: wrong usage.
pub(crate) fn report_error(error: &Error, form: Form) {
    // It is the only text. If it cannot be printed, standard error has it.
    let _unheard = Output::stdout(form).end(Err(error.clone()), Kept::default());
}

/// Standard output, buffered; every write error becomes an [`Error`].
pub(crate) struct Output {
    writer: BufWriter<Box<dyn Write>>,
    colour: bool,
    parts: Parts,
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Output")
            .field("colour", &self.colour)
            .field("parts", &self.parts)
            .finish_non_exhaustive()
    }
}

impl Output {
    /// The process's standard output.
    pub(crate) fn stdout(form: Form) -> Self {
        let stdout = io::stdout();
        Self {
            colour: form == Form::Text && colours(&stdout),
            writer: BufWriter::new(Box::new(stdout)),
            parts: match form {
                Form::Text => Parts::Text,
                Form::Json => Parts::Document(Document::default()),
                Form::BarmanJson => Parts::Messages(Messages::default()),
            },
        }
    }

    /// Prints one or more lines.
    pub(crate) fn line(&mut self, text: impl std::fmt::Display) -> Result<(), Error> {
        self.bytes(format!("{text}\n").as_bytes())
    }

    /// Prints a sentence, broken between words to fit the terminal.
    pub(crate) fn sentence(&mut self, text: &str, style: Style) -> Result<(), Error> {
        let parts = match locale::columns() {
            Some(columns) if table::longest_word(text) <= columns => table::lines(text, columns),
            _ => vec![text],
        };
        for part in parts {
            self.line(paint(part, style, self.colour))?;
        }
        Ok(())
    }

    /// Prints text that consists of whole lines. In Barman's JSON, each line is a message.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let printed = match &mut self.parts {
            Parts::Messages(messages) => {
                let text = String::from_utf8_lossy(bytes);
                text.lines()
                    .try_for_each(|line| messages.info(&mut self.writer, line))
            }
            Parts::Text | Parts::Document(_) => self.writer.write_all(bytes),
        };
        printed.map_err(|error| Error::output(&error))
    }

    /// Standard output for data, and nothing else.
    ///
    /// # Errors
    /// When it is closed.
    pub(crate) fn for_data(&mut self) -> Result<File, Error> {
        self.parts = Parts::Text;
        stdout()
    }

    /// Prints one value as the JSON document, see [`json`]. People can read it, too.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> Result<(), Error> {
        self.json_value(json::document(value))
    }

    /// Prints a list as the JSON document, under the key `name`.
    pub(crate) fn json_list(&mut self, name: &str, values: &impl Serialize) -> Result<(), Error> {
        self.json_value(json::list(name, values))
    }

    fn json_value(&mut self, value: serde_json::Result<Value>) -> Result<(), Error> {
        let value = value.map_err(|error| Error::output(&error.into()))?;
        self.document()?.set(value);
        Ok(())
    }

    /// Begins the document with a list that is too long to keep in memory.
    pub(crate) fn json_begin(&mut self, name: &str) -> Result<(), Error> {
        let begun = self.document()?.begin_list(name);
        self.raw(&begun)
    }

    /// Prints one element of that list.
    pub(crate) fn json_element(&mut self, value: &impl Serialize) -> Result<(), Error> {
        let value = json::element(value).map_err(|error| Error::output(&error.into()))?;
        let element = self.document()?.element(&value);
        self.raw(&element)
    }

    /// Sets what Barman's JSON has under `name`, mostly a server.
    pub(crate) fn barman_result(&mut self, name: &str, value: Value) -> Result<(), Error> {
        match &mut self.parts {
            Parts::Messages(messages) => messages.result(name, value),
            Parts::Text | Parts::Document(_) => return Err(Error::failed("Barman's JSON was not asked for")),
        }
        Ok(())
    }

    fn document(&mut self) -> Result<&mut Document, Error> {
        match &mut self.parts {
            Parts::Document(document) => Ok(document),
            Parts::Text | Parts::Messages(_) => Err(Error::failed("JSON was not asked for")),
        }
    }

    fn raw(&mut self, text: &str) -> Result<(), Error> {
        self.writer
            .write_all(harmless_json(text).as_bytes())
            .map_err(|error| Error::output(&error))
    }

    /// What the output consists of.
    pub(crate) fn form(&self) -> Form {
        match self.parts {
            Parts::Text => Form::Text,
            Parts::Document(_) => Form::Json,
            Parts::Messages(_) => Form::BarmanJson,
        }
    }

    /// Prints what has been said so far, before long work.
    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        self.writer.flush().map_err(|error| Error::output(&error))
    }

    /// Prints a table.
    pub(crate) fn table(&mut self, table: &Table) -> Result<(), Error> {
        let text = table.render_in(locale::columns(), self.colour);
        self.bytes(text.as_bytes())
    }

    /// A word in `style`, if this output shows colours.
    pub(crate) fn paint(&self, text: &str, style: Style) -> String {
        paint(text, style, self.colour)
    }

    /// Prints what is left, with the error if there is one, and flushes. An error in printing makes a command fail that
    /// was done.
    pub(crate) fn end(mut self, done: Result<Outcome, Error>, kept: Kept) -> Result<Outcome, Error> {
        let rest = match &mut self.parts {
            Parts::Text => String::new(),
            Parts::Document(document) => document.end(done.as_ref().err()),
            Parts::Messages(messages) => messages.end(done.as_ref().err(), kept),
        };
        let printed = self
            .raw(&rest)
            .and_then(|()| self.writer.flush().map_err(|error| Error::output(&error)));
        done.and_then(|outcome| printed.map(|()| outcome))
    }
}

/// `1 file`, `2 files`
pub(crate) fn count(number: impl TryInto<u64>, noun: &str) -> String {
    // No number here is larger than 64 bits.
    let number = number.try_into().unwrap_or(u64::MAX);
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// `1.50 GiB`
pub(crate) fn bytes(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

/// `0.42 s`, `12 s`, `3 min 05 s`, `2 h 03 min`
pub(crate) fn duration(duration: std::time::Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..10 => format!("{:.2} s", duration.as_secs_f64()),
        10..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// A time to the second: `2026-11-20 14:03:07+00`.
pub(crate) fn second(time: TimestampMicros) -> String {
    let text = time.to_string();
    match text.split_once('.') {
        Some((second, _)) => format!("{second}+00"),
        None => text,
    }
}

/// Text from a server, or a file name, with dangerous characters escaped: those that a terminal acts on and those that
/// make the text look like another one. These are control characters, and characters that change the direction of
/// writing.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_dangerous(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// The same for a message that may have several lines.
pub(crate) fn printable_lines(text: &str) -> String {
    let lines: Vec<String> = text.split('\n').map(|line| printable(line.as_bytes())).collect();
    lines.join("\n")
}

/// JSON with the characters escaped that a terminal could act on; the meaning is the same. Between its strings, JSON
/// has at most line breaks.
fn harmless_json(text: &str) -> std::borrow::Cow<'_, str> {
    if !text.chars().any(|c| c != '\n' && is_dangerous(c)) {
        return text.into();
    }
    let mut harmless = String::with_capacity(text.len());
    for c in text.chars() {
        if c != '\n' && is_dangerous(c) {
            // All of them are in the first plane of Unicode.
            harmless.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            harmless.push(c);
        }
    }
    harmless.into()
}

fn is_dangerous(c: char) -> bool {
    let turns_direction = matches!(
        c,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    c.is_control() || turns_direction || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}')
}

/// A value of zero or more, in percent of `whole`: `12.34 %`.
pub(crate) fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    #[allow(clippy::cast_precision_loss, reason = "shown with two digits")]
    let percent = part as f64 * 100.0 / whole as f64;
    format!("{percent:.2} %")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(
            (count(1, "file"), count(2, "file")),
            ("1 file".to_owned(), "2 files".to_owned())
        );
        assert_eq!(bytes(3 << 29), "1.50 GiB");
        assert_eq!(duration(Duration::from_millis(420)), "0.42 s");
        assert_eq!(duration(Duration::from_secs(185)), "3 min 05 s");
        assert_eq!(duration(Duration::from_secs(7380)), "2 h 03 min");
        assert_eq!(
            second(TimestampMicros::from_unix_seconds(0)),
            "1970-01-01 00:00:00+00"
        );
        assert_eq!(percent(1, 8), "12.50 %");
        assert_eq!(percent(1, 0), "-");
    }

    #[test]
    fn no_text_controls_the_terminal() {
        assert_eq!(printable(b"a\x1b[2Jb\n\xff"), "a\\u{1b}[2Jb\\n\u{fffd}");
        assert_eq!(
            printable("\u{9b}1m\u{202e}x\u{7}".as_bytes()),
            "\\u{9b}1m\\u{202e}x\\u{7}"
        );
        assert_eq!(printable("größe ✓".as_bytes()), "größe ✓");
        assert_eq!(printable_lines("a\nb\r"), "a\nb\\r");
    }
}
