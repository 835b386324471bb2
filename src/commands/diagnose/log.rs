//! The end of the log.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use serde_json::{Value, json};

use super::part;
use crate::config::Config;
use crate::error::Error;
use crate::output::printable;

/// How many lines are shown.
const LINES: usize = 100;

/// As much of the end of the file is read.
const BYTES: u64 = 256 << 10;

/// The last lines of `log_file`, if there is one.
pub(super) fn of(config: &Config) -> Value {
    let Some(path) = &config.log_file else {
        return part(Ok(json!({"file": null, "lines": []})));
    };
    let read = last_lines(path).map(|lines| json!({"file": path, "lines": lines}));
    part(read.map_err(|error| Error::failed(format!("Cannot read {}: {error}", path.display()))))
}

fn last_lines(path: &Path) -> std::io::Result<Vec<String>> {
    let mut file = barmanfs_store::open_regular(path)?;
    let length = file.metadata()?.len();
    let from = length.saturating_sub(BYTES);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    // The first line may be cut.
    let lines: Vec<&str> = text.lines().skip(usize::from(from > 0)).collect();
    let last = lines.iter().skip(lines.len().saturating_sub(LINES));
    Ok(last.map(|line| printable(line.as_bytes())).collect())
}
