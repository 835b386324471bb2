//! `barmanfs verify`.

use barmanfs_catalog::{Damage, Repository, VerifyReport, VerifyScope};

mod boot;

pub(super) use boot::plain_request as boot_request;

use super::App;
use crate::cli::check::VerifyArgs;
use crate::error::{Error, Outcome};
use crate::output::{self, Output, Style};
use crate::progress::Shown;

/// The word for the WAL archive where a backup is expected.
const WAL: &str = "wal";

/// Runs the command.
pub(crate) fn run(app: &mut App, args: &VerifyArgs) -> Result<Outcome, Error> {
    if args.boot {
        return boot::run(app, args);
    }
    let repository = app.repository_as_stored()?;
    let scope = scope(app, &repository, args)?;
    let report = repository.verify(&scope, &mut Shown::start("Verify", app.options.quiet))?;
    // A failure here must not prevent the output of the report.
    if report.catalog_faults.is_empty()
        && let Err(error) = repository.note_damage(&report)
    {
        tracing::warn!("What is damaged could not be written down, so backups still refer to it: {error}");
    }
    if args.json.json {
        app.out.json(&report)?;
    } else if !(app.options.quiet && report.is_clean() && report.snapshots == 0) {
        show(&mut app.out, &report)?;
    }
    Ok(if report.is_clean() {
        Outcome::Done
    } else {
        Outcome::Problems
    })
}

fn scope(app: &App, repository: &Repository, args: &VerifyArgs) -> Result<VerifyScope, Error> {
    if args.server == super::ALL {
        return match &args.what {
            None => Ok(VerifyScope::All),
            Some(_) => Err(Error::usage(
                "Name the server whose backup or WAL is to be verified",
            )),
        };
    }
    let server = app.known_server(repository, &args.server)?;
    match args.what.as_deref() {
        None => Ok(VerifyScope::Server(server)),
        Some(WAL) => Ok(VerifyScope::Wal(server)),
        Some(backup) => {
            let id = app.backup(repository, &server, backup)?.id;
            Ok(VerifyScope::Backup(server, id))
        }
    }
}

fn show(out: &mut Output, report: &VerifyReport) -> Result<(), Error> {
    for fault in &report.catalog_faults {
        out.line(format_args!(
            "{} catalog: {}",
            out.paint("DAMAGED", Style::Red),
            output::printable(fault.as_bytes())
        ))?;
    }
    if !report.catalog_faults.is_empty() {
        return out.line(
            "Nothing else was checked: make the catalog again from the packs with 'barmanfs rebuild-catalog', then verify",
        );
    }
    show_faults(out, report)?;
    if report.mended_chunks > 0 {
        out.line(format_args!(
            "{} of the chunks have a damaged copy; each has a good one, which is used from now on",
            report.mended_chunks
        ))?;
    }
    let verdict = if report.is_clean() {
        out.paint("all as it should be", Style::Green)
    } else if report.bad_chunks == 0 {
        out.paint("see above", Style::Red)
    } else {
        out.paint(
            &format!("{} of the chunks are damaged or missing", report.bad_chunks),
            Style::Red,
        )
    };
    out.line(format_args!(
        "{}, {}, {}, {}: {verdict}",
        output::count(report.backups, "backup"),
        output::count(report.wal_files, "WAL file"),
        output::count(report.chunks, "chunk"),
        output::bytes(report.bytes)
    ))?;
    if report.snapshots > 0 {
        out.line(format_args!(
            "Not checked: {}, whose files are in the storage",
            output::count(report.snapshots, "snapshot")
        ))?;
    }
    if report.is_a_pack_missing() {
        out.line(
            "Packs are not there. Is their file system mounted? Put them back from a copy of the repository, or give up what they \
             hold with 'barmanfs rebuild-catalog'. Until then backups fail",
        )?;
    } else if report.bad_chunks > 0 {
        out.line(
            "Of these, what the server still has is stored again by the next full backup (backup --incremental never), WAL \
             when it is archived again, what a primary has by the next sync, and an imported backup when it is imported again: \
             then this reads again, in all backups",
        )?;
    }
    Ok(())
}

/// Each pack, and each file of a backup, that is not as it should be.
fn show_faults(out: &mut Output, report: &VerifyReport) -> Result<(), Error> {
    for problem in &report.pack_problems {
        out.line(format_args!(
            "{} pack {}: {}",
            out.paint("DAMAGED", Style::Red),
            problem.pack,
            problem.reason
        ))?;
    }
    for unread in &report.unread_packs {
        out.line(format_args!(
            "{} pack {}: {}",
            out.paint("NOT READ", Style::Red),
            output::printable(unread.pack.as_bytes()),
            output::printable(unread.reason.as_bytes())
        ))?;
    }
    for damage in &report.damages {
        let line = sentence(damage);
        out.line(format_args!("{} {line}", out.paint("DAMAGED", Style::Red)))?;
    }
    if report.damages_cut {
        out.line("... and more")?;
    }
    Ok(())
}

/// `main 20261120T101500 base/5/16384: page 17 and 15 more: ...`
fn sentence(damage: &Damage) -> String {
    let whose = match (&damage.backup, &damage.clone) {
        (Some(id), _) => format!("{} {id}", damage.server),
        (None, Some(clone)) => format!("{} clone {clone}", damage.server),
        (None, None) => format!("{} wal", damage.server),
    };
    let file = output::printable(damage.file.as_bytes());
    let pages = match (damage.first_page, damage.pages) {
        (None, _) => String::new(),
        (Some(page), ..=1) => format!(" page {page}"),
        (Some(page), pages) => format!(" page {page} and {} more", pages - 1),
    };
    format!("{whose} {file}{pages}: {}", damage.reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_named_by_backup_file_and_page() {
        let mut damage = Damage {
            server: "main".parse().unwrap(),
            backup: Some("20261120T101500".parse().unwrap()),
            clone: None,
            file: "base/5/16384".to_owned(),
            first_page: Some(17),
            pages: 16,
            reason: "chunk is gone".to_owned(),
        };
        assert_eq!(
            sentence(&damage),
            "main 20261120T101500 base/5/16384 page 17 and 15 more: chunk is gone"
        );
        damage.backup = None;
        damage.first_page = None;
        assert_eq!(sentence(&damage), "main wal base/5/16384: chunk is gone");
        damage.clone = Some("test".parse().unwrap());
        assert_eq!(sentence(&damage), "main clone test base/5/16384: chunk is gone");
    }
}
