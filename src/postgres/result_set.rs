//! The rows that a statement returns.

use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{DataRowBody, RowDescriptionBody};

use super::Error;

/// The values of a row; `None` for NULL.
pub(super) type Row = Vec<Option<Vec<u8>>>;

/// The rows of one statement.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ResultSet {
    columns: Vec<String>,
    rows: Vec<Row>,
}

impl ResultSet {
    /// A result with these columns, and no rows yet.
    pub(super) fn begin(body: &RowDescriptionBody) -> Result<Self, Error> {
        let names = body.fields().map(|field| Ok(field.name().to_owned())).collect();
        let columns = names.map_err(|_| Error::protocol("a malformed row description"))?;
        Ok(Self {
            columns,
            rows: Vec::new(),
        })
    }

    /// Adds a row.
    pub(super) fn push(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// How many rows there are.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The columns' names.
    pub(crate) fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The value of a row's column; `None` if it is NULL or does not exist.
    pub(crate) fn bytes(&self, row: usize, column: &str) -> Option<&[u8]> {
        let number = self.columns.iter().position(|name| name == column)?;
        self.rows.get(row)?.get(number)?.as_deref()
    }

    /// The value of a row's column as text; `None` if it is NULL, does not exist, or is not UTF-8.
    pub(crate) fn text(&self, row: usize, column: &str) -> Option<&str> {
        std::str::from_utf8(self.bytes(row, column)?).ok()
    }

    /// The value of a row's column, which must exist and be valid.
    pub(super) fn parse<T: std::str::FromStr>(&self, row: usize, column: &str) -> Result<T, Error> {
        self.text(row, column)
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| Error::protocol(format!("a result without a usable \"{column}\"")))
    }
}

/// Reads a row from its message.
pub(super) fn row(body: &DataRowBody) -> Result<Row, Error> {
    let buffer = body.buffer();
    let mut values = Vec::new();
    let mut ranges = body.ranges();
    while let Some(range) = ranges.next().map_err(|_| Error::protocol("a malformed row"))? {
        values.push(match range {
            Some(range) => Some(
                buffer
                    .get(range)
                    .ok_or_else(|| Error::protocol("a malformed row"))?
                    .to_vec(),
            ),
            None => None,
        });
    }
    Ok(values)
}
