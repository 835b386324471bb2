//! A Barman on another host, of which nothing but `barman`, `sh` and `tar` is needed there.
//!
//! `barman sync-info`, with which Barman's own passive nodes ask, says where everything is and which WAL there is. An [`outline`] of
//! the home comes first: the descriptions of backups and the names of their files. The files themselves are streamed into the
//! repository ([`files`], [`wal`]), and no copy of a backup lies anywhere. What a stream has brought counts only when the command
//! over there has ended well ([`stream`]).

mod answer;
mod files;
mod outline;
mod stream;
mod wal;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use barmanfs_catalog::{Repository, ServerName};
use barmanfs_pg::wal_name::WalName;
use barmanfs_store::sync::lock;

use super::listing::{self, Found};
use super::{Options, read_found};
use crate::error::Error;
use crate::import::wal::Needed;
use crate::import::{Arrived, ForeignBackup, ForeignWal, Intake, LeftOut, Listing, Source};
use crate::restore::remote::RemoteShell;
use crate::restore::remote::shell::word;
use answer::{Answer, Places};
use outline::{Names, Outline};
use stream::{OnLoss, Stream};
use wal::FarWal;

/// The last file that a Barman's list of WAL has, and where in the list.
pub(crate) type Position = (String, u64);

/// How a Barman is reached.
#[derive(Debug, Clone)]
pub(crate) struct Reached {
    pub(crate) command: String,
    /// The path of its configuration, if it is told that.
    pub(crate) config: Option<PathBuf>,
    /// The server's name there.
    pub(crate) server: String,
}

impl Reached {
    fn barman(&self, command: &str) -> String {
        let config = self.config.as_ref().map_or_else(String::new, |path| {
            format!("-c {} ", word(&path.to_string_lossy()))
        });
        format!("barman {config}{command} {}", word(&self.server))
    }

    /// Whether there is a Barman that has the server.
    ///
    /// # Errors
    /// When there is not.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let script = format!("{} >/dev/null", self.barman("list-backups --minimal"));
        RemoteShell::new(&self.command)?
            .start("ask Barman", &script)?
            .finish()
    }
}

/// One server of it.
pub(crate) struct FarHome<'a> {
    reached: Reached,
    shell: RemoteShell,
    options: Options,
    repository: &'a Repository,
    /// The server here.
    name: &'a ServerName,
    answer: Answer,
    outline: Option<Outline>,
    names: Names,
    found: Vec<Found>,
    lost: OnLoss,
}

impl<'a> FarHome<'a> {
    /// Asks what there is. With `since`, of the WAL only what came after it.
    ///
    /// # Errors
    /// When the other host cannot be reached, or has no Barman with this server.
    pub(crate) fn open(
        reached: Reached,
        (repository, name): (&'a Repository, &'a ServerName),
        options: Options,
        since: Option<&Position>,
    ) -> Result<Self, Error> {
        let shell = RemoteShell::new(&reached.command)?;
        let lost = OnLoss::default();
        let answer = match (ask(&reached, &shell, &lost, since), since) {
            // Its list of WAL has been made again, or cut.
            (Err(_), Some(_)) if lock(&lost).is_none() => ask(&reached, &shell, &lost, None)?,
            (answer, _) => answer?,
        };
        Ok(Self {
            reached,
            shell,
            options,
            repository,
            name,
            answer,
            outline: None,
            names: BTreeMap::new(),
            found: Vec::new(),
            lost,
        })
    }

    /// Asks for its WAL from the beginning of the list.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) fn list_all_wal(&mut self) -> Result<(), Error> {
        self.answer = ask(&self.reached, &self.shell, &self.lost, None)?;
        Ok(())
    }

    /// Where its list of WAL ended.
    pub(crate) fn position(&self) -> Option<Position> {
        let Answer {
            last_name,
            last_position,
            ..
        } = &self.answer;
        (!last_name.is_empty()).then(|| (last_name.clone(), *last_position))
    }

    /// The processes that reach the other host.
    pub(crate) fn shell(&self) -> &RemoteShell {
        &self.shell
    }

    /// Why nothing more can be read: the connection is lost, or a stream was not what it should be.
    ///
    /// # Errors
    /// That reason.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match lock(&self.lost).take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn fail(&self, error: Error) {
        lock(&self.lost).get_or_insert(error);
    }

    fn places(&self) -> &Places {
        &self.answer.places
    }

    fn stream(&self, doing: &'static str, script: &str) -> Result<Stream, Error> {
        Stream::start(&self.shell, doing, script, &self.lost)
    }

    fn read_outline(&self) -> Result<(Outline, Names), Error> {
        let places = self.places();
        let (server, base) = (
            word(&places.backup_directory),
            word(&places.basebackups_directory),
        );
        let meta = "identity.json meta/*-backup.info meta/*-keep meta/*-delete_this";
        let early = "*/backup.info */annotations/keep";
        let ask = |place: &str, patterns: &str| {
            let script = outline::descriptions_script(place, patterns);
            self.stream("read descriptions", &script)
        };
        let (of_server, of_base) = (ask(&server, meta)?, ask(&base, early)?);
        let names = self.read_names(None)?;
        // No command of this host is run as the owner of the repository: it has no key for the other host.
        let place = self.repository.directory_of_syncs()?;
        let _acting = self.repository.as_owner()?;
        let outline = Outline::begin(&place.join(format!("{}.barman", self.name)))?;
        outline.describe(of_server, "", outline::is_of_server)?;
        outline.describe(of_base, "base", outline::is_of_base)?;
        outline.name(&names)?;
        Ok((outline, names))
    }

    fn read_names(&self, id: Option<&str>) -> Result<Names, Error> {
        let base = word(&self.places().basebackups_directory);
        outline::read_names(self.stream("list files", &outline::names_script(&base, id))?)
    }

    /// What has become of a backup since it was listed; `None` if it is as it was.
    fn changed(&self, id: &str) -> Result<Option<String>, Error> {
        let meta = word(&format!("{}/meta", self.places().backup_directory));
        let base = word(&self.places().basebackups_directory);
        let script = format!(
            "m={meta} b={base}; if test -e \"$m/{id}-delete_this\" || ! {{ test -e \"$m/{id}-backup.info\" || \
             test -e \"$b/{id}/backup.info\"; }}; then echo deleted; else echo there; fi"
        );
        let mut said = String::new();
        std::io::Read::read_to_string(&mut self.stream("look at a backup", &script)?, &mut said)
            .map_err(|error| Error::failed(error.to_string()))?;
        if said.trim() != "there" {
            return Ok(Some("Barman has deleted it meanwhile".to_owned()));
        }
        let is_same = self.read_names(Some(id))?.get(id) == self.names.get(id);
        Ok(
            (!is_same)
                .then(|| "its files have changed meanwhile: some were deleted, or have come".to_owned()),
        )
    }
}

fn ask(
    reached: &Reached,
    shell: &RemoteShell,
    lost: &OnLoss,
    since: Option<&Position>,
) -> Result<Answer, Error> {
    let since = since.map_or_else(String::new, |(name, position)| {
        format!(" {} {position}", word(name))
    });
    let script = format!("{}{since}", reached.barman("sync-info"));
    Answer::read(Stream::start(shell, "ask Barman", &script, lost)?)
}

impl Source for FarHome<'_> {
    fn described(&self) -> String {
        format!(
            "Barman by '{}', server {}",
            self.reached.command, self.reached.server
        )
    }

    fn backups(&mut self) -> Result<Listing, Error> {
        let (outline, names) = self.read_outline()?;
        let (found, left_out) = listing::list(outline.place(), &self.options)?;
        let backups = found.iter().map(|found| found.backup.clone()).collect();
        (self.outline, self.names, self.found) = (Some(outline), names, found);
        Ok(Listing { backups, left_out })
    }

    fn read(&mut self, backup: &ForeignBackup, intake: &mut Intake<'_>) -> Result<Arrived, Error> {
        let found = self.found.iter().find(|found| found.backup.name == backup.name);
        let found = found.ok_or_else(|| Error::failed("it was not listed"))?;
        let arrived = files::read(self, found, intake);
        if lock(&self.lost).is_some() {
            return arrived;
        }
        read_found(arrived, self.changed(&backup.name)?)
    }

    fn wal(
        &mut self,
        spool: &Path,
    ) -> Result<Box<dyn Iterator<Item = Result<ForeignWal, LeftOut>> + '_>, Error> {
        let needed = Needed::of(self.repository, self.name)?;
        let mut wanted: Vec<WalName> = Vec::new();
        for name in &self.answer.wals {
            if needed.has(name)? {
                wanted.push(*name);
            }
        }
        wanted.sort_by_cached_key(|name| (name.segment().is_some(), name.to_string()));
        Ok(Box::new(FarWal {
            home: &*self,
            spool: spool.to_owned(),
            wanted: wanted.into(),
            stream: None,
            asked: BTreeMap::new(),
            missing: Vec::new(),
        }))
    }
}
