//! Whether a person has started this process.

use std::fs::File;

/// Whether the process has a controlling terminal, wherever its output goes: what cron, a service manager or ssh with a
/// command starts has none.
pub(crate) fn is_of_a_person() -> bool {
    File::open("/dev/tty").is_ok()
}
