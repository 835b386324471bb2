//! `barmanfs umount`.

use crate::cli::UmountArgs;
use crate::error::{Error, Outcome};

/// Runs the command; needs no configuration.
pub(crate) fn run(args: &UmountArgs) -> Result<Outcome, Error> {
    barmanfs_fs::unmount(&args.mount_point)?;
    Ok(Outcome::Done)
}
