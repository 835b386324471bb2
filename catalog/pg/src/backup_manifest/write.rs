//! Writes a manifest byte for byte as PostgreSQL does.

use std::fmt;
use std::io::{self, Write};

use sha2::{Digest, Sha256};

use super::{ManifestFile, WalRange};
use crate::SystemId;

/// Writes a manifest to `W`, file by file.
pub struct ManifestWriter<W: Write> {
    output: W,
    hasher: Sha256,
    /// The separator to write before the next entry.
    separator: &'static str,
}

impl<W: Write> fmt::Debug for ManifestWriter<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManifestWriter").finish_non_exhaustive()
    }
}

impl<W: Write> ManifestWriter<W> {
    /// Begins a manifest: of version 2 where the cluster's identity is given, as PostgreSQL 17 and
    /// later want it, else of version 1, which is all that 13 to 16 accept.
    ///
    /// # Errors
    /// Those of the output, as for the other functions here.
    pub fn begin(output: W, system_id: Option<SystemId>) -> io::Result<Self> {
        let mut writer = Self {
            output,
            hasher: Sha256::new(),
            separator: "\n",
        };
        match system_id {
            None => writer.put("{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [")?,
            Some(id) => writer.put(&format!(
                "{{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": {id},\n\"Files\": ["
            ))?,
        }
        Ok(writer)
    }

    /// Lists a file.
    ///
    /// # Errors
    /// Those of the output.
    pub fn file(&mut self, file: &ManifestFile) -> io::Result<()> {
        let path = match std::str::from_utf8(&file.path) {
            Ok(path) => format!("\"Path\": {}", json(path)?),
            Err(_) => format!("\"Encoded-Path\": \"{}\"", crate::hex::encode(&file.path)),
        };
        let mut line = format!("{}{{ {path}, \"Size\": {}", self.separator, file.size_bytes);
        if !file.modified.is_empty() {
            line += &format!(", \"Last-Modified\": {}", json(&file.modified)?);
        }
        if let Some(checksum) = &file.checksum {
            let (algorithm, hex) = checksum.words();
            line += &format!(
                ", \"Checksum-Algorithm\": {}, \"Checksum\": \"{hex}\"",
                json(algorithm)?
            );
        }
        line += " }";
        self.separator = ",\n";
        self.put(&line)
    }

    /// Ends the manifest, and gives the output back, not flushed.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(mut self, wal_ranges: &[WalRange]) -> io::Result<W> {
        self.put("\n],\n\"WAL-Ranges\": [")?;
        for (at, range) in wal_ranges.iter().enumerate() {
            let WalRange {
                timeline,
                start_lsn,
                end_lsn,
            } = range;
            let separator = if at == 0 { "\n" } else { ",\n" };
            self.put(&format!(
                "{separator}{{ \"Timeline\": {timeline}, \"Start-LSN\": \"{start_lsn}\", \"End-LSN\": \"{end_lsn}\" }}"
            ))?;
        }
        self.put("\n],\n")?;
        let Self {
            mut output, hasher, ..
        } = self;
        writeln!(
            output,
            "\"Manifest-Checksum\": \"{}\"}}",
            crate::hex::encode(&hasher.finalize())
        )?;
        Ok(output)
    }

    fn put(&mut self, text: &str) -> io::Result<()> {
        self.hasher.update(text);
        self.output.write_all(text.as_bytes())
    }
}

/// The text as a JSON string; serde_json escapes as PostgreSQL does.
fn json(text: &str) -> io::Result<String> {
    serde_json::to_string(text).map_err(io::Error::from)
}
