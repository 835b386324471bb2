//! The configuration a startable view adds: it recovers by itself to the backup's end, and cannot touch the server it
//! was taken from, nor that server's archive.

use std::fmt::Write;

use barmanfs_catalog::Backup;
use barmanfs_pg::ServerVersion;

/// `postgresql.auto.conf` holds what ALTER SYSTEM was told; larger than this it is something else.
pub(super) const MAX_AUTO_CONF_BYTES: u64 = 4 << 20;

/// For a data directory that has none: Debian keeps them outside.
pub(super) const MINIMAL: [(&str, &str); 2] =
    [("postgresql.conf", POSTGRESQL_CONF), ("pg_hba.conf", PG_HBA_CONF)];

/// `hot_standby` would demand settings at least as large as the original's, which are not known here; the copy is
/// promoted as soon as it is consistent and has no use for it.
const POSTGRESQL_CONF: &str = "\
# Made by barmanfs: the data directory that was backed up has no postgresql.conf,
# the server keeps it elsewhere (Debian: /etc/postgresql). Replace this file by the
# server's own before the copy takes over production.
listen_addresses = ''
hot_standby = off
";

const PG_HBA_CONF: &str = "\
# Made by barmanfs: the data directory that was backed up has no pg_hba.conf.
# Local connections only, under the operating system's user name.
local  all          all  peer
local  replication  all  peer
";

/// Appends the marked block to the text of `postgresql.auto.conf`. What comes later wins, so whatever the server was
/// told before stays in the file and has no effect.
pub(super) fn append_block(text: &mut Vec<u8>, backup: &Backup) {
    if text.last().is_some_and(|&byte| byte != b'\n') {
        text.push(b'\n');
    }
    text.extend_from_slice(block(backup).as_bytes());
}

fn block(backup: &Backup) -> String {
    let Backup { id, server, .. } = backup;
    let mut block = format!(
        "\n# ---- barmanfs: begin ----\n\
         # A copy of backup {id} of server {server}. It recovers to the end of the backup, then goes on as a\n\
         # server of its own on a new timeline, and archives nothing.\n\
         # When it takes over production, remove everything from \"begin\" to \"end\"\n\
         # and restart it, so that it archives its WAL again.\n\
         archive_mode = off\n\
         restore_command = 'false'\n\
         # What an earlier recovery may have left: of two targets set at once, even to\n\
         # nothing, the later is refused, so these come first.\n\
         recovery_target_time = ''\n\
         recovery_target_xid = ''\n\
         recovery_target_name = ''\n\
         recovery_target_lsn = ''\n\
         recovery_target = 'immediate'\n\
         recovery_target_action = 'promote'\n\
         recovery_target_timeline = 'latest'\n\
         # Commands of the original that must not run for a copy.\n\
         archive_cleanup_command = ''\n\
         recovery_end_command = ''\n"
    );
    if !backup.tablespaces.is_empty() && knows_in_place_tablespaces(backup.server_version) {
        let note = "# The tablespaces are plain directories under pg_tblspc. Remove this line only once they are\n\
                    # symbolic links again.\n";
        // Writing to a String cannot fail.
        let _ = writeln!(block, "{note}allow_in_place_tablespaces = on");
    }
    block.push_str("# ---- barmanfs: end ----\n");
    block
}

/// Versions that refuse directories in pg_tblspc without this setting also have it: it came to the minor releases of
/// August 2022 with the check.
fn knows_in_place_tablespaces(version: ServerVersion) -> bool {
    let since = match version.major() {
        13 => 130_008,
        14 => 140_005,
        _ => 150_000,
    };
    version.0 >= since
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_for_tablespaces_follows_the_version() {
        for (version, known) in [
            (130_007, false),
            (130_008, true),
            (140_004, false),
            (140_005, true),
            (150_000, true),
            (180_006, true),
        ] {
            assert_eq!(
                knows_in_place_tablespaces(ServerVersion(version)),
                known,
                "{version}"
            );
        }
    }
}
