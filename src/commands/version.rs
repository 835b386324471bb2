//! `barmanfs version`.

use serde_json::json;

use crate::cli::JsonOption;
use crate::error::{Error, Outcome};
use crate::output::Output;

/// Runs the command; needs no configuration.
pub(crate) fn run(out: &mut Output, json: JsonOption) -> Result<Outcome, Error> {
    let version = env!("CARGO_PKG_VERSION");
    let format = barmanfs_store::layout::FORMAT_VERSION;
    if json.json {
        out.json(&json!({ "version": version, "repository_format": format }))?;
    } else {
        out.line(format_args!("barmanfs {version} (repository format {format})"))?;
    }
    Ok(Outcome::Done)
}
