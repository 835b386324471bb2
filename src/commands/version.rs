//! `barmanfs version`.

use crate::cli::JsonOption;
use crate::error::{Error, Outcome};
use crate::output::Output;
use crate::report::Version;

/// Runs the command. This needs no configuration.
pub(crate) fn run(out: &mut Output, json: JsonOption) -> Result<Outcome, Error> {
    let shown = Version {
        version: env!("CARGO_PKG_VERSION"),
        repository_format: barmanfs_store::layout::FORMAT_VERSION,
    };
    if json.json {
        out.json(&shown)?;
    } else {
        let Version {
            version,
            repository_format,
        } = shown;
        out.line(format_args!(
            "barmanfs {version} (repository format {repository_format})"
        ))?;
    }
    Ok(Outcome::Done)
}
