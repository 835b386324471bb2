//! `barmanfs quarantine`: decides about WAL files that were put aside.

use barmanfs_catalog::{Comparison, QuarantinedWal, Repository, ServerName};
use barmanfs_pg::wal_name::WalName;

use super::App;
use super::show_backup::Facts;
use crate::cli::quarantine::{QuarantineArgs, QuarantineCommand, ReleaseArgs, TakeArgs};
use crate::error::{Error, Outcome};
use crate::output::{self, Align, Table};
use crate::report::{ComparedFile, MovedFile, QuarantinedFile};

/// Digits of an id that suffice to distinguish files in a list.
const SHORT_ID: usize = 8;

/// Runs the command.
pub(crate) fn run(app: &mut App, args: &QuarantineArgs) -> Result<Outcome, Error> {
    let repository = match args.command {
        QuarantineCommand::List(_) | QuarantineCommand::Show(_) => app.repository()?,
        _ => app.repository_for_writing()?,
    };
    let server = app.known_server(&repository, &args.server)?;
    match &args.command {
        QuarantineCommand::List(json) => list(app, &repository, &server, json.json),
        QuarantineCommand::Show(which) => {
            let kept = find(&repository, &server, &which.name)?;
            show(app, &repository, &kept, which.json.json)
        }
        QuarantineCommand::Release(release) => accept(app, &repository, &server, release),
        QuarantineCommand::Delete(which) => {
            let kept = find(&repository, &server, &which.name)?;
            delete(app, &repository, &kept, which.json.json)
        }
        QuarantineCommand::Take(take) => take_out(app, &repository, &server, take),
    }
}

fn list(app: &mut App, repository: &Repository, server: &ServerName, json: bool) -> Result<Outcome, Error> {
    let files = repository.wal(server).quarantined()?;
    if json {
        let files: Vec<QuarantinedFile<'_>> = files.iter().map(QuarantinedFile::new).collect();
        app.out.json_list("files", &files)?;
    } else if files.is_empty() {
        app.out
            .line(format_args!("Server {server} has nothing in quarantine"))?;
    } else {
        let mut table = Table::new(&[
            ("NAME", Align::Left),
            ("PUT ASIDE", Align::Left),
            ("SIZE", Align::Right),
            ("ID", Align::Left),
            ("WHY", Align::Left),
        ]);
        for kept in &files {
            let id = kept.id();
            table.row([
                kept.file.name.to_string().into(),
                output::second(kept.file.archived_at).into(),
                output::bytes(kept.file.size_bytes).into(),
                id.get(..SHORT_ID).unwrap_or(&id).to_owned().into(),
                output::printable(kept.reason.as_bytes()).into(),
            ]);
        }
        app.out.table(&table)?;
    }
    Ok(Outcome::Done)
}

fn show(app: &mut App, repository: &Repository, kept: &QuarantinedWal, json: bool) -> Result<Outcome, Error> {
    let compared = repository.compare_quarantined(kept)?;
    let fault = repository.fault_of(&kept.file)?;
    if json {
        app.out.json(&ComparedFile {
            file: QuarantinedFile::new(kept),
            comparison: (&compared).into(),
            fault: &fault,
        })?;
        return Ok(Outcome::Done);
    }
    let mut facts = Facts::default();
    facts.add("Name", kept.file.name.to_string());
    facts.add("Id", kept.id());
    facts.add(
        "Put aside",
        format!(
            "{}, brought by {}",
            output::second(kept.file.archived_at),
            kept.file.origin
        ),
    );
    facts.add("Size", format!("{} bytes", kept.file.size_bytes));
    facts.add("CRC-32C", format!("{:08x}", kept.file.map.crc32c));
    facts.add("Why", output::printable(kept.reason.as_bytes()));
    let usable = fault.is_none();
    facts.add_some("Fault", fault.map(|fault| output::printable(fault.as_bytes())));
    facts.add("Archive", compared_text(kept, &compared, usable));
    app.out.bytes(facts.render().as_bytes())?;
    Ok(Outcome::Done)
}

fn compared_text(kept: &QuarantinedWal, compared: &Comparison, usable: bool) -> String {
    let name = kept.file.name;
    match compared {
        Comparison::None if !usable => format!("has no {name}"),
        Comparison::None => format!("has no {name}: 'release' accepts this one"),
        Comparison::Same => format!("has a {name} with the same bytes: this one can be deleted"),
        Comparison::Differs { offset, lsn } => {
            let lsn = lsn.map(|lsn| format!(", LSN {lsn}")).unwrap_or_default();
            format!("has another {name}: they differ from byte {offset} on{lsn}")
        }
        Comparison::Unreadable { reason } => {
            format!("cannot be compared: {}", output::printable(reason.as_bytes()))
        }
    }
}

fn accept(
    app: &mut App,
    repository: &Repository,
    server: &ServerName,
    args: &ReleaseArgs,
) -> Result<Outcome, Error> {
    let kept = find(repository, server, &args.which.name)?;
    repository.release_quarantined(&kept, args.replace)?;
    let name = kept.file.name;
    done(
        app,
        args.which.json.json,
        server,
        name,
        "released",
        &format!("Archived {name} of server {server}"),
    )
}

fn delete(
    app: &mut App,
    repository: &Repository,
    kept: &QuarantinedWal,
    json: bool,
) -> Result<Outcome, Error> {
    repository.delete_quarantined(kept)?;
    let (name, server) = (kept.file.name, &kept.file.server);
    let text = format!("Deleted quarantined {name} of server {server}; 'barmanfs sweep' frees its space");
    done(app, json, server, name, "deleted", &text)
}

fn take_out(
    app: &mut App,
    repository: &Repository,
    server: &ServerName,
    args: &TakeArgs,
) -> Result<Outcome, Error> {
    let taken = repository.take_from_archive(server, &args.name, args.force);
    let reason = taken.map_err(|error| {
        let is_good = matches!(error, barmanfs_catalog::Error::ArchivedIsGood { .. });
        let error = Error::from(error);
        match is_good && !args.force && matches!(args.name, WalName::History(_)) {
            true => error.hint(
                "If it is wrong all the same, --force takes it, unless WAL of its timeline is archived",
            ),
            false => error,
        }
    })?;
    let text = format!(
        "Took {} of server {server} out of the archive, into quarantine: {}",
        args.name,
        output::printable(reason.as_bytes())
    );
    done(app, args.json.json, server, args.name, "taken", &text)
}

fn find(repository: &Repository, server: &ServerName, name: &str) -> Result<QuarantinedWal, Error> {
    repository.find_quarantined(server, name).map_err(|error| {
        Error::from(error).hint(format!(
            "'barmanfs quarantine {server} list' shows those there are"
        ))
    })
}

fn done(
    app: &mut App,
    json: bool,
    server: &ServerName,
    name: WalName,
    what: &'static str,
    text: &str,
) -> Result<Outcome, Error> {
    if json {
        app.out.json(&MovedFile {
            server,
            name,
            done: what,
        })?;
    } else if !app.options.quiet {
        app.out.line(text)?;
    }
    Ok(Outcome::Done)
}
