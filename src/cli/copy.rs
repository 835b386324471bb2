//! The command line of `barmanfs copy`.

use std::ffi::OsString;

use clap::Args;

use super::JsonOption;

/// Ends `barmanfs copy --help`.
pub(super) const COPY_HELP: &str = "\
One of the two is a directory, the other s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///DIRECTORY. Packs are
copied as they are, and only those that are missing, so an interrupted copy goes on where it ended. A repository is copied
while it is in use. Back, the copy goes into an empty directory, which becomes a repository that every command works on.
Credentials are those of the store's own tools; the keys bucket_... of the configuration say the rest.
--from-versions reads the oldest version of each object of a bucket that keeps versions: what was deleted or overwritten there comes
back. Exit code 3: something could not be copied, and is named.

Examples:
  barmanfs copy /var/lib/barmanfs s3://backups/main
  barmanfs copy /var/lib/barmanfs s3://backups/main --delete --dry-run
  barmanfs copy s3://backups/main /srv/restored
  barmanfs copy s3://backups/main /srv/restored --from-versions --before 2026-11-30T04:00:00Z";

/// `copy`
#[derive(Debug, Args)]
pub(crate) struct CopyArgs {
    /// The directory of a repository, or the URL of a copy
    pub(crate) from: OsString,
    /// The URL of a copy, or a directory that is empty or not there yet
    pub(crate) to: OsString,
    /// Remove packs from the bucket that the repository no longer has
    #[arg(long)]
    pub(crate) delete: bool,
    /// Read the oldest version of each object, as if nothing in the bucket had been deleted or overwritten (S3)
    #[arg(long)]
    pub(crate) from_versions: bool,
    /// Leave out objects that came at this time or later, such as 2026-11-30T04:00:00Z
    #[arg(long, value_name = "TIME", requires = "from_versions")]
    pub(crate) before: Option<jiff::Timestamp>,
    /// Only say what would be copied and removed
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) json: JsonOption,
}
