//! The scripts before and after a restore.

use std::path::Path;

use barmanfs_catalog::{Backup, Repository, TimelineChoice};
use serde_json::{Map, Value};

use crate::cli::restore::RestoreArgs;
use crate::config::ServerConfig;
use crate::error::Error;
use crate::hooks::{Hook, Hooks, Recovery};
use crate::restore::Relocation;
use crate::signals::Interruption;

/// Restores with the server's hooks around it. Those after it run when it was done, as in Barman.
pub(super) fn with_hooks<T>(
    repository: &Repository,
    config: Option<&ServerConfig>,
    (backup, directory, args): (&Backup, &Path, &RestoreArgs),
    restore: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    let is_hooked = |config: &&ServerConfig| config.hooks.has(Hook::Recovery.word());
    let Some(config) = config.filter(is_hooked) else {
        return restore();
    };
    let tablespaces: Vec<_> = args
        .tablespace
        .iter()
        .map(Relocation::name_and_location)
        .collect();
    let options = options(args);
    let recovery = Recovery {
        destination: directory,
        tablespaces: &tablespaces,
        remote_command: args.remote_ssh_command.as_deref(),
        options: &options,
    };
    let interruption = Interruption::watch(|| {})?;
    let is_stopped = || interruption.requested();
    let hooks = Hooks::of(config, repository, &is_stopped);
    hooks.before_recovery(backup, &recovery)?;
    let restored = restore()?;
    hooks.after_recovery(backup, &recovery);
    Ok(restored)
}

/// The options for target and mode that were given, with Barman's names.
fn options(args: &RestoreArgs) -> Map<String, Value> {
    let target = &args.target;
    let timeline = target.target_tli.map(|choice| match choice {
        TimelineChoice::Latest => "latest".to_owned(),
        TimelineChoice::Current => "current".to_owned(),
        TimelineChoice::Id(timeline) => timeline.0.to_string(),
    });
    let texts = [
        ("target_tli", timeline),
        ("target_time", target.target_time.clone()),
        ("target_xid", target.target_xid.clone()),
        ("target_lsn", target.target_lsn.clone()),
        ("target_name", target.target_name.clone()),
        (
            "target_action",
            target.target_action.map(|action| action.as_str().to_owned()),
        ),
        ("recovery_conf_filename", args.recovery_conf_filename.clone()),
        ("custom_restore_command", args.restore_command.clone()),
    ];
    let switches = [
        ("target_immediate", target.target_immediate),
        ("exclusive", target.exclusive),
        ("standby_mode", args.standby_mode),
    ];
    let texts = texts
        .into_iter()
        .filter_map(|(name, text)| Some((name.to_owned(), Value::String(text?))));
    let switches = switches
        .into_iter()
        .filter(|(_, on)| *on)
        .map(|(name, on)| (name.to_owned(), Value::Bool(on)));
    texts.chain(switches).collect()
}
