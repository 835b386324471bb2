//! Restores a backup that is a snapshot of the storage: the clones of its disks are attached already.

use std::path::Path;

use barmanfs_catalog::{Repository, StorageSnapshot};
use barmanfs_fs::views::{CopyOptions, StandbyOptions, append_recovery};

use super::request;
use super::{App, Choice, hooked, resolved, restore_command};
use crate::cli::restore::RestoreArgs;
use crate::error::{Error, Outcome};
use crate::report::RestoreReport;
use crate::restore::cloned_disks::{ClonedDisks, Host};
use crate::restore::remote::RemoteShell;

/// Options that mean nothing where nothing is copied.
fn refuse(args: &RestoreArgs) -> Result<(), Error> {
    let given = [
        (args.is_self_contained(), "--no-get-wal and --same-timeline"),
        (args.barman_layout, "--barman-layout"),
        (args.no_recovery, "--no-recovery"),
        (args.keep_origin, "--keep-origin"),
        (args.recovery_conf_filename.is_some(), "--recovery-conf-filename"),
        (!args.tablespace.is_empty(), "--tablespace"),
        (args.waldir.is_some(), "--waldir"),
        (args.restore_config.is_some(), "--restore-config"),
        (args.delta_restore, "--delta-restore"),
    ];
    match given.iter().find(|(is_given, _)| *is_given) {
        None => Ok(()),
        Some((_, option)) => Err(Error::usage(format!(
            "{option} means nothing for a snapshot: its files are on the cloned disks already"
        ))),
    }
}

/// Checks the disks, and places what makes a backup of them.
pub(super) fn run(
    app: &mut App,
    args: &RestoreArgs,
    repository: &Repository,
    choice: &Choice,
    snapshot: &StorageSnapshot,
) -> Result<Outcome, Error> {
    refuse(args)?;
    let Some(plan) = choice.plan.clone() else {
        return Err(Error::failed(format!(
            "Backup {} cannot be recovered",
            choice.backup.id
        )));
    };
    let directory = resolved(args, &args.destination)?;
    let disks = ClonedDisks {
        backup: &choice.backup,
        snapshot,
        directory: &directory,
        host: match &args.remote_ssh_command {
            Some(command) => Host::There(RemoteShell::new(command)?),
            None => Host::Here,
        },
    };
    disks.check()?;
    let copy = CopyOptions {
        restore_command: restore_command(app, args, choice)?,
        standby: args.standby_mode.then(|| StandbyOptions {
            primary_conninfo: args.primary_conninfo.clone(),
        }),
        ..CopyOptions::default()
    };
    let action = request::usual_action(app.config.recovery_target_action, app.config.is_barmans);
    let is_remote = args.remote_ssh_command.is_some();
    let mut report = RestoreReport::on_disks(&choice.backup, &plan, &directory, is_remote);
    report.notes.clone_from(&choice.notes);
    report.standby = args.standby_mode;
    report.dry_run = args.dry_run;
    if !args.dry_run {
        let config = app.config.server(choice.backup.server.as_str()).cloned();
        let what = (&choice.backup, directory.as_path(), args);
        hooked::with_hooks(repository, config.as_ref(), what, || {
            // The scripts before a restore may have changed what is there.
            let found = disks.check()?;
            let mut text = found.auto_conf;
            let required = found.control.required_settings;
            append_recovery(&mut text, (plan.clone(), action), &copy, required);
            disks.place(&text, args.standby_mode)
        })?;
    }
    if args.json.json {
        app.out.json(&report)?;
    } else if !app.options.quiet {
        show(app, args, choice, &directory)?;
    }
    Ok(Outcome::Done)
}

fn show(app: &mut App, args: &RestoreArgs, choice: &Choice, directory: &Path) -> Result<(), Error> {
    for note in &choice.notes {
        app.out.line(format_args!("Note: {note}"))?;
    }
    let done = match args.dry_run {
        true => "would be placed",
        false => "are placed",
    };
    app.out.line(format_args!(
        "The disks of backup {} are as they were: its label and the settings of the recovery {done} in {}",
        choice.backup.id,
        directory.display()
    ))
}
