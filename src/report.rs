//! The JSON documents that commands print: their shapes, and what fills them. `tests/json_shape.txt` lists all keys.

mod check;

pub(crate) use check::CheckedServer;
