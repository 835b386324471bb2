//! What Barman does to the configuration of a restored server, for sites whose programs look for that: lines that would archive
//! or set a target become comments with Barman's mark. The block of the copy, which is read last, has the same effect and more.

use barmanfs_pg::conf::ConfLine;

use super::TARGETS;

/// Barman's mark of a line that it has taken out.
const MARK: &[u8] = b"#BARMAN#";

/// What stands in the place of an `archive_command`.
const ARCHIVE_NOTHING: &[u8] = b"archive_command = false\n";

/// Further settings of a recovery, beside those that name a target.
const OF_A_RECOVERY: [&str; 3] = [
    "recovery_target_inclusive",
    "recovery_target_timeline",
    "recovery_target_action",
];

/// The text as Barman leaves it.
pub(super) fn marked(text: &[u8]) -> Vec<u8> {
    let mut marked = Vec::with_capacity(text.len());
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let name = match ConfLine::parse(line) {
            ConfLine::Setting { name, .. } => name,
            ConfLine::Blank | ConfLine::Malformed => String::new(),
        };
        let archives = name == "archive_command";
        if archives || TARGETS.contains(&name.as_str()) || OF_A_RECOVERY.contains(&name.as_str()) {
            marked.extend_from_slice(MARK);
        }
        marked.extend_from_slice(line);
        if archives {
            if !line.ends_with(b"\n") {
                marked.push(b'\n');
            }
            marked.extend_from_slice(ARCHIVE_NOTHING);
        }
    }
    marked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_archives_or_sets_a_target_is_marked_whatever_its_letters() {
        let text = "port = 5433\nArchive_Command = 'cp %p /srv/%f'\nrecovery_target_time='2026-11-20'\n# archive_command = x\n\
                    recovery_target_action shutdown\nrecovery_min_apply_delay = 5\narchive_command = a";
        let expected = "port = 5433\n#BARMAN#Archive_Command = 'cp %p /srv/%f'\narchive_command = false\n\
                        #BARMAN#recovery_target_time='2026-11-20'\n# archive_command = x\n\
                        #BARMAN#recovery_target_action shutdown\nrecovery_min_apply_delay = 5\n\
                        #BARMAN#archive_command = a\narchive_command = false\n";
        assert_eq!(String::from_utf8(marked(text.as_bytes())).unwrap(), expected);
    }
}
