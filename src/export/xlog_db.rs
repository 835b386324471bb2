//! Barman's `xlog.db`: one line for each archived WAL file, in the order of the names.

use barmanfs_pg::TimestampMicros;
use barmanfs_pg::wal_name::WalName;

use crate::restore::SourceFile;

/// The line of a file that is neither compressed nor encrypted.
pub(super) fn line(name: &WalName, size_bytes: u64, time: TimestampMicros) -> String {
    let micros = time.unix_micros();
    format!(
        "{name}\t{size_bytes}\t{}.{:06}\tNone\tNone\n",
        micros.div_euclid(1_000_000),
        micros.rem_euclid(1_000_000)
    )
}

/// Where Barman keeps a file, below its directory of WAL.
pub(super) fn place(name: &WalName) -> String {
    let text = name.to_string();
    match (name.segment(), text.get(..16)) {
        (Some(_), Some(directory)) => format!("{directory}/{text}"),
        _ => text,
    }
}

/// The time of a file in `pg_wal` of a view, which is that of its archiving.
pub(super) fn time_of(file: &SourceFile) -> TimestampMicros {
    TimestampMicros::from_unix_micros(
        file.stat.mtime_s.saturating_mul(1_000_000) + i64::from(file.stat.mtime_ns / 1000),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_places_are_barmans() {
        let name = "000000010000000000000006".parse().unwrap();
        let time = "2026-11-28T15:55:01.061771Z".parse().unwrap();
        assert_eq!(
            line(&name, 16_777_216, time),
            "000000010000000000000006\t16777216\t1795881301.061771\tNone\tNone\n"
        );
        assert_eq!(place(&name), "0000000100000000/000000010000000000000006");
        assert_eq!(place(&"00000002.history".parse().unwrap()), "00000002.history");
        let label = "000000010000000000000006.00000028.backup";
        assert_eq!(
            place(&label.parse().unwrap()),
            format!("0000000100000000/{label}")
        );
    }
}
