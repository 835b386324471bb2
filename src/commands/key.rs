//! `barmanfs key` and `barmanfs encrypt`.

use std::path::Path;

use barmanfs_catalog::{EncryptReport, KeyFile, NewRecipient, Repository, SweepOptions, key_files};

use super::App;
use crate::cli::JsonOption;
use crate::cli::keys::{KeyArgs, KeyCommand, RecipientArgs};
use crate::config::Config;
use crate::error::{Error, Outcome};
use crate::keys;
use crate::output::{self, Align, Table};
use crate::progress::Shown;

/// Runs `key`.
pub(crate) fn run(app: &mut App, args: &KeyArgs) -> Result<Outcome, Error> {
    app.place.refuse_remote("Encryption")?;
    let path = app.config.repository.clone();
    match &args.command {
        KeyCommand::Init(wanted) => init(app, &path, wanted),
        KeyCommand::Add(wanted) => add(app, &path, wanted),
        KeyCommand::Remove(remove) => take_away(app, &path, &remove.which),
        KeyCommand::List(json) => list(app, &path, json.json),
        KeyCommand::Rotate(rotate) => {
            app.refuse_foreign_root()?;
            let passphrase = rotate.passphrase_file.as_deref().map(passphrase_in).transpose()?;
            let key = Repository::rotate_key(&path, passphrase.as_ref())?;
            app.out.line(format_args!(
                "New packs are sealed by key {key} from now on, by what is started from now on"
            ))?;
            Ok(Outcome::Done)
        }
        KeyCommand::Check(json) => check(app, &path, json.json),
    }
}

/// Runs `encrypt`.
pub(crate) fn encrypt(app: &mut App, json: JsonOption) -> Result<Outcome, Error> {
    app.place.refuse_remote("Encryption")?;
    let repository = app.repository_for_writing()?;
    let mut monitor = Shown::start("Encrypt", app.options.quiet || json.json);
    let report = repository.encrypt(&SweepOptions::default(), &mut monitor)?;
    drop(monitor);
    let is_well = report.complete;
    if json.json {
        app.out.json(&report)?;
    } else if !(app.options.quiet && is_well) {
        show(app, &report)?;
    }
    Ok(if is_well { Outcome::Done } else { Outcome::Problems })
}

fn show(app: &mut App, report: &EncryptReport) -> Result<(), Error> {
    app.out.line(format_args!(
        "Sealed what {} held",
        output::count(report.sweep.repacked_packs, "plain pack")
    ))?;
    for problem in &report.sweep.problems {
        let reason = output::printable(problem.reason.as_bytes());
        app.out
            .line(format_args!("Problem: pack {}: {reason}", problem.pack))?;
    }
    if let Some(reason) = &report.sweep.unfinished {
        app.out.line(format_args!("Not all of it: {reason}"))?;
    }
    match &report.waiting_for {
        None => app
            .out
            .line("Everything is sealed, and plain packs are refused from now on"),
        Some(why) => app.out.line(format_args!(
            "{} left, waiting for {}",
            output::count(report.plain_packs, "plain pack"),
            output::printable(why.as_bytes())
        )),
    }
}

/// The recipients that a command line names.
pub(super) fn recipients(args: &RecipientArgs) -> Result<Vec<NewRecipient>, Error> {
    let named = args
        .recipients
        .iter()
        .map(|text| keys::recipient(text).map_err(|why| Error::usage(format!("--recipient: {why}"))));
    let mut wanted = named.collect::<Result<Vec<_>, Error>>()?;
    if let Some(file) = &args.recipients_file {
        wanted.extend(keys::recipients_in(file)?);
    }
    if let Some(file) = &args.passphrase_file {
        wanted.push(passphrase_in(file)?);
    }
    Ok(wanted)
}

/// The same, or those that belong to the configuration.
pub(super) fn recipients_or_own(
    args: &RecipientArgs,
    config: Option<&Config>,
) -> Result<Vec<NewRecipient>, Error> {
    let mut wanted = recipients(args)?;
    if let (true, Some(config)) = (wanted.is_empty(), config) {
        wanted = keys::own_recipients(config)?;
    }
    match wanted.is_empty() {
        false => Ok(wanted),
        true => Err(Error::usage("Nobody is named who could open the repository").hint(
            "Make a key with 'age-keygen -o FILE', and set 'key_file = FILE' in [barmanfs], or add --recipient age1...",
        )),
    }
}

fn passphrase_in(file: &Path) -> Result<NewRecipient, Error> {
    let passphrase = keys::passphrase("--passphrase-file", file).map_err(Error::failed)?;
    Ok(NewRecipient::Passphrase(passphrase))
}

fn init(app: &mut App, path: &Path, args: &RecipientArgs) -> Result<Outcome, Error> {
    app.refuse_foreign_root()?;
    let wanted = recipients_or_own(args, Some(&app.config))?;
    let key = Repository::encrypt_from_now(path, &wanted)?;
    app.out.line(format_args!(
        "What is started from now on seals new packs of {} by key {key}",
        path.display()
    ))?;
    app.out
        .line("Start receive-wal, mounts and clones again: they opened the repository without a key")?;
    app.out
        .line("'barmanfs encrypt' seals what is there; a new copy in an object store needs another prefix")?;
    warn_if_shut(app, path)
}

/// A key that this host cannot open is of no use here.
fn warn_if_shut(app: &mut App, path: &Path) -> Result<Outcome, Error> {
    let shut = Repository::check_keys(path)?
        .into_iter()
        .find_map(|key| key.problem);
    match shut {
        None => Ok(Outcome::Done),
        Some(problem) => {
            app.out.line(format_args!("WARNING: {problem}"))?;
            Ok(Outcome::Problems)
        }
    }
}

fn add(app: &mut App, path: &Path, args: &RecipientArgs) -> Result<Outcome, Error> {
    app.refuse_foreign_root()?;
    let wanted = recipients(args)?;
    if wanted.is_empty() {
        return Err(Error::usage("No recipient is named").hint("barmanfs key add --recipient age1..."));
    }
    for recipient in &wanted {
        for file in Repository::add_recipient(path, recipient)? {
            app.out.line(format_args!(
                "{} can open key {}: {}",
                file.recipient.as_deref().unwrap_or_default(),
                file.key,
                file.path.display()
            ))?;
        }
    }
    Ok(Outcome::Done)
}

fn take_away(app: &mut App, path: &Path, which: &str) -> Result<Outcome, Error> {
    app.refuse_foreign_root()?;
    let is_meant = |file: &KeyFile| {
        file.recipient.as_deref() == Some(which) || format!("{}:{}", file.key, file.number) == which
    };
    for file in Repository::remove_recipient(path, &is_meant)? {
        app.out.line(format_args!("Removed {}", file.path.display()))?;
    }
    app.out.line(
        "This takes no key from anybody: who could open the repository may have kept the key, and copies of it may have this file. \
         'barmanfs key rotate' makes a new key for what comes from now on",
    )?;
    Ok(Outcome::Done)
}

fn list(app: &mut App, path: &Path, json: bool) -> Result<Outcome, Error> {
    let files = key_files(path)?;
    if json {
        app.out.json_list("keys", &files)?;
        return Ok(Outcome::Done);
    }
    if files.is_empty() {
        app.out.line(format_args!(
            "The repository {} has no keys: it is not encrypted",
            path.display()
        ))?;
        return Ok(Outcome::Done);
    }
    let mut table = Table::new(&[
        ("KEY", Align::Left),
        ("NUMBER", Align::Right),
        ("SINCE", Align::Left),
        ("RECIPIENT", Align::Left),
    ]);
    for file in &files {
        let recipient = file.recipient.as_deref().unwrap_or("not known");
        table.row([
            file.key.to_string().into(),
            file.number.to_string().into(),
            file.added_at.map_or_else(String::new, output::second).into(),
            output::printable(recipient.as_bytes()).into(),
        ]);
    }
    app.out.table(&table)?;
    Ok(Outcome::Done)
}

fn check(app: &mut App, path: &Path, json: bool) -> Result<Outcome, Error> {
    let checked = Repository::check_keys(path)?;
    let is_well = checked.iter().all(|key| key.problem.is_none());
    if json {
        app.out.json_list("keys", &checked)?;
    } else if checked.is_empty() {
        app.out.line(format_args!(
            "The repository {} has no keys: it is not encrypted",
            path.display()
        ))?;
    } else if !(app.options.quiet && is_well) {
        for key in &checked {
            let recipients = output::count(key.recipients, "recipient");
            match &key.problem {
                None => app
                    .out
                    .line(format_args!("Key {}: opens ({recipients})", key.key))?,
                Some(problem) => app.out.line(format_args!("Key {}: {problem}", key.key))?,
            }
        }
    }
    Ok(if is_well { Outcome::Done } else { Outcome::Problems })
}
