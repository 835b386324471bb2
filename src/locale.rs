//! The abilities of the user's terminal: the characters of its locale, and the length of its lines.

use std::ffi::OsString;
use std::io::IsTerminal;

/// The characters that can be used for drawing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Drawing {
    /// Lines and dots from Unicode.
    Unicode,
    /// Characters that every terminal has.
    Ascii,
}

impl Drawing {
    /// The drawing for this process's locale.
    pub(crate) fn here() -> Self {
        Self::of(|name| std::env::var_os(name))
    }

    /// locale(7): the first of these that is not empty counts; without any, the locale is "C".
    fn of(value: impl Fn(&str) -> Option<OsString>) -> Self {
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .into_iter()
            .filter_map(value)
            .find(|value| !value.is_empty())
            .unwrap_or_default();
        let locale = locale.to_string_lossy().to_ascii_lowercase();
        // "de_DE.UTF-8@euro", "C.utf8"
        let codeset = locale.split_once('.').map_or("", |(_, codeset)| codeset);
        let codeset = codeset.split('@').next().unwrap_or_default();
        match codeset {
            "utf-8" | "utf8" => Self::Unicode,
            _ => Self::Ascii,
        }
    }

    /// Converts a drawing to these characters. Its width stays the same.
    pub(crate) fn shown(self, drawing: &str) -> String {
        match self {
            Self::Unicode => drawing.to_owned(),
            Self::Ascii => drawing.chars().map(plain).collect(),
        }
    }
}

fn plain(c: char) -> char {
    match c {
        '│' | '├' | '┤' => '|',
        '╷' | '╵' | '┼' => '+',
        '─' => '-',
        '╮' => '\\',
        '╭' => '/',
        '●' => '*',
        '○' => 'o',
        '◆' => '#',
        '╳' => 'X',
        c if c.is_ascii() => c,
        _ => '?',
    }
}

/// Number of characters in a line of standard output; `None` if it is not a terminal, so that lines have no
/// limit.
pub(crate) fn columns() -> Option<usize> {
    let stdout = std::io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let columns = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
    let asked = || terminal_size::terminal_size_of(stdout).map(|(width, _)| usize::from(width.0));
    columns.or_else(asked).filter(|columns| *columns > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(set: &[(&str, &str)]) -> Drawing {
        Drawing::of(|name| {
            let found = set.iter().find(|(set, _)| *set == name);
            found.map(|(_, value)| value.into())
        })
    }

    #[test]
    fn the_locale_says_what_can_be_drawn() {
        for set in [
            &[("LANG", "de_DE.UTF-8")][..],
            &[("LC_ALL", ""), ("LC_CTYPE", "C.utf8"), ("LANG", "C")],
            &[("LC_ALL", "en_US.UTF-8@euro"), ("LANG", "C")],
        ] {
            assert_eq!(of(set), Drawing::Unicode, "{set:?}");
        }
        for set in [
            &[][..],
            &[("LANG", "C")],
            &[("LC_ALL", "POSIX"), ("LANG", "de_DE.UTF-8")],
            &[("LC_CTYPE", "de_DE.ISO-8859-1"), ("LANG", "de_DE.UTF-8")],
        ] {
            assert_eq!(of(set), Drawing::Ascii, "{set:?}");
        }
    }

    #[test]
    fn drawings_keep_their_width() {
        assert_eq!(Drawing::Ascii.shown("├─╮ ●"), "|-\\ *");
        assert_eq!(Drawing::Unicode.shown("├─╮"), "├─╮");
    }
}
