//! Tables: rows under headings, at most as wide as the terminal.
//!
//! A word is never broken. If the columns together are too wide, texts continue in the next line after a blank. If even
//! their longest words are too wide, each row becomes a block of lines.

use std::fmt::Write as _;

use super::{Style, paint};

/// Blanks between two columns.
const GAP: usize = 2;

/// One cell of a [`Table`].
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// A cell in `style`.
    pub(crate) fn styled(text: impl Into<String>, style: Style) -> Self {
        Self {
            text: text.into(),
            style,
        }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::styled(text, Style::Plain)
    }
}

/// The alignment of a column's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Rows under headings, each column as wide as its widest cell.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty table.
    pub(crate) fn new(columns: &[(&'static str, Align)]) -> Self {
        Self {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; it has one cell for each column.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The text in lines of any length, with a newline at its end.
    #[cfg(test)]
    pub(crate) fn render(&self, colour: bool) -> String {
        self.render_in(None, colour)
    }

    /// The text in lines of at most this many characters, with a newline at its end.
    pub(crate) fn render_in(&self, columns: Option<usize>, colour: bool) -> String {
        match self.widths(columns) {
            Some(widths) => self.side_by_side(&widths, colour),
            None => self.one_below_the_other(colour),
        }
    }

    /// The width of each column; `None` if they do not fit.
    fn widths(&self, columns: Option<usize>) -> Option<Vec<usize>> {
        let measured = |measure: &dyn Fn(&str) -> usize| -> Vec<usize> {
            let column = |n: usize| {
                let cells = self.rows.iter().filter_map(move |row| row.get(n));
                let title = self.columns.get(n).map_or("", |(title, _)| *title);
                let texts = cells.map(|cell| cell.text.as_str()).chain([title]);
                texts.map(measure).max().unwrap_or_default()
            };
            (0..self.columns.len()).map(column).collect()
        };
        let mut widths = measured(&width);
        let Some(columns) = columns else {
            return Some(widths);
        };
        let least = measured(&longest_word);
        // Texts first, because a number is hard to read apart from its unit.
        for align in [Align::Left, Align::Right] {
            while total(&widths) > columns {
                let shrinkable = (0..widths.len()).filter(|&n| {
                    self.columns.get(n).is_some_and(|(_, of)| *of == align) && widths.get(n) > least.get(n)
                });
                let widest = shrinkable.max_by_key(|&n| widths.get(n).copied());
                let Some(width) = widest.and_then(|n| widths.get_mut(n)) else {
                    break;
                };
                *width -= 1;
            }
        }
        (total(&widths) <= columns).then_some(widths)
    }

    fn side_by_side(&self, widths: &[usize], colour: bool) -> String {
        let head: Vec<Cell> = self
            .columns
            .iter()
            .map(|(title, _)| Cell::styled(*title, Style::Bold))
            .collect();
        let mut text = String::new();
        for row in std::iter::once(&head).chain(&self.rows) {
            let cells: Vec<Vec<&str>> = row
                .iter()
                .zip(widths)
                .map(|(cell, width)| lines(&cell.text, *width))
                .collect();
            let height = cells.iter().map(Vec::len).max().unwrap_or(1);
            for nth in 0..height {
                let mut line = String::new();
                for (n, (cell, widest)) in row.iter().zip(widths).enumerate() {
                    let part = cells.get(n).and_then(|lines| lines.get(nth)).copied();
                    let part = part.unwrap_or_default();
                    let pad = " ".repeat(widest.saturating_sub(width(part)));
                    let word = paint(part, cell.style, colour && !part.is_empty());
                    let _ = match self.columns.get(n) {
                        Some((_, Align::Right)) => write!(line, "{pad}{word}  "),
                        _ => write!(line, "{word}{pad}  "),
                    };
                }
                text.push_str(line.trim_end());
                text.push('\n');
            }
        }
        text
    }

    /// Each row as a block of `Title   value`, with an empty line between two blocks.
    fn one_below_the_other(&self, colour: bool) -> String {
        let widest = self.columns.iter().map(|(title, _)| width(title)).max();
        let widest = widest.unwrap_or_default();
        let mut text = String::new();
        for (nth, row) in self.rows.iter().enumerate() {
            if nth > 0 {
                text.push('\n');
            }
            for ((title, _), cell) in self.columns.iter().zip(row) {
                let pad = " ".repeat(widest - width(title) + GAP);
                let title = paint(title, Style::Bold, colour);
                let word = paint(&cell.text, cell.style, colour);
                text.push_str(format!("{title}{pad}{word}").trim_end());
                text.push('\n');
            }
        }
        text
    }
}

fn total(widths: &[usize]) -> usize {
    widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1)
}

fn width(text: &str) -> usize {
    text.chars().count()
}

/// The length of the longest word.
pub(crate) fn longest_word(text: &str) -> usize {
    text.split(' ').map(width).max().unwrap_or_default()
}

/// Splits a text at blanks into lines of at most this many characters. No word may be longer.
pub(crate) fn lines(text: &str, most: usize) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while width(rest) > most {
        // The last blank after which the line is short enough.
        let fits = rest
            .char_indices()
            .enumerate()
            .filter(|(count, (_, c))| *c == ' ' && *count <= most && *count > 0)
            .last();
        let Some((_, (at, _))) = fits else { break };
        let (line, after) = rest.split_at(at);
        lines.push(line.trim_end());
        rest = after.trim_start();
    }
    lines.push(rest);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use insta::assert_snapshot;

    fn table() -> Table {
        let mut table = Table::new(&[("Id", Align::Left), ("Size", Align::Right)]);
        table.row(["20261120T101500".into(), "12 B".into()]);
        table.row([Cell::styled("é", Style::Red), "1.50 GiB".into()]);
        table
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        assert_snapshot!(table().render(false), @"
        Id                   Size
        20261120T101500      12 B
        é                1.50 GiB
        ");
    }

    #[test]
    fn colour_does_not_move_columns() {
        let plain = table()
            .render(true)
            .replace("\x1b[1;31m", "")
            .replace("\x1b[1m", "")
            .replace("\x1b[0m", "");
        assert_eq!(plain, table().render(false));
    }

    #[test]
    fn a_table_that_is_too_wide_is_wrapped_between_words() {
        let mut table = Table::new(&[
            ("Clone", Align::Left),
            ("Target", Align::Left),
            ("Age", Align::Right),
        ]);
        let row = ["test1", "2026-11-20 14:03:07+00", "2 h 03 min"];
        table.row(row.map(Cell::from));
        table.row(["b", "-", "12 s"].map(Cell::from));
        assert_snapshot!(table.render_in(Some(32), false), @"
        Clone  Target                Age
        test1  2026-11-20     2 h 03 min
               14:03:07+00
        b      -                    12 s
        ");
        assert_snapshot!(table.render_in(Some(26), false), @"
        Clone  Target          Age
        test1  2026-11-20   2 h 03
               14:03:07+00     min
        b      -              12 s
        ");
        assert_snapshot!(table.render_in(Some(20), false), @"
        Clone   test1
        Target  2026-11-20 14:03:07+00
        Age     2 h 03 min

        Clone   b
        Target  -
        Age     12 s
        ");
        for columns in 20..60 {
            let text = table.render_in(Some(columns), false);
            for word in row.iter().flat_map(|text| text.split(' ')) {
                assert!(text.contains(word), "{columns}: {text}");
            }
        }
    }
}
