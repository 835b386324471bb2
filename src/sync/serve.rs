//! The side of the primary: `barmanfs agent --packs SERVER` answers what a passive node asks for.
//!
//! It reads packs and the spool, and writes nothing. The catalog is not opened.

use std::io::{BufReader, BufWriter, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::SystemTime;

use barmanfs_catalog::{Locked, ServerName, repository_id};
use barmanfs_store::{Error as StoreError, Listed, LocalPacks, PackId, PackStorage, Part, PartMark};
use rustix::event::PollFlags;

use super::spool;
use super::wire::{Answer, PROTOCOL, READ_BYTES_MAX, Request, TAIL_BYTES};
use crate::error::Error;
use crate::readiness::is_ready;
use crate::restore::agent::wire::{self, Failure, Frame};
use crate::restore::remote::shell::SILENCE;

/// Answers until the other side ends the connection.
///
/// # Errors
/// When the repository cannot be read or the other side is not understood. It is told there, too.
pub(crate) fn run(repository: &Path, server: &str) -> Result<(), Error> {
    let mut to = BufWriter::with_capacity(256 << 10, std::io::stdout().lock());
    let served = Server::open(repository, server).and_then(|server| server.run(&mut to));
    if let Err(error) = &served {
        // Somebody may still listen. If not, the exit code says it.
        let _ = wire::write_json(&mut to, Frame::Failure, &Failure::from(error));
    }
    served
}

struct Server<'a> {
    path: &'a Path,
    id: String,
    locked: Locked,
    name: ServerName,
    packs: LocalPacks,
}

/// Requests, and an end when nothing comes for too long: a connection may be dropped without a word.
struct Requests(std::io::Stdin);

impl Read for Requests {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match is_ready(&self.0.as_fd(), PollFlags::IN, SILENCE) {
            true => Ok(rustix::io::read(self.0.as_fd(), buffer)?),
            false => Err(std::io::Error::other(format!(
                "the other side has said nothing for {} seconds",
                SILENCE.as_secs()
            ))),
        }
    }
}

impl<'a> Server<'a> {
    fn open(path: &'a Path, server: &str) -> Result<Self, Error> {
        let packs = LocalPacks::open(&path.join("packs")).map_err(barmanfs_catalog::Error::from)?;
        Ok(Self {
            path,
            id: repository_id(path)?,
            locked: Locked::of(path)?,
            name: server.parse()?,
            packs,
        })
    }

    fn run(&self, to: &mut impl Write) -> Result<(), Error> {
        let mut from = BufReader::new(Requests(std::io::stdin()));
        let mut is_known = false;
        loop {
            let request = match wire::read_frame(&mut from)? {
                None => return Ok(()),
                Some((Frame::Message, bytes)) => wire::json::<Request>(&bytes)?,
                Some(_) => return Err(wire::garbled("no request")),
            };
            match &request {
                Request::Hello {
                    protocol: PROTOCOL,
                    server,
                } if server == self.name.as_str() => is_known = true,
                Request::Hello { protocol, .. } if *protocol != PROTOCOL => {
                    return Err(Error::failed(format!(
                        "The passive node speaks version {protocol} of the protocol, this barmanfs {PROTOCOL}"
                    ))
                    .hint("Install the same release of barmanfs on both hosts"));
                }
                _ if !is_known => return Err(wire::garbled("no greeting")),
                _ => {}
            }
            self.answer(&request, to)?;
            to.flush()
                .map_err(|error| Error::failed(format!("Cannot send to the other host: {error}")))?;
        }
    }

    fn answer(&self, request: &Request, to: &mut impl Write) -> Result<(), Error> {
        let message = |to: &mut _, answer: &Answer| wire::write_json(to, Frame::Message, answer);
        match &request {
            Request::Beat => Ok(()),
            Request::Hello { .. } => message(
                to,
                &Answer::Hello {
                    protocol: PROTOCOL,
                    repository: self.id.clone(),
                    locked: self.locked.clone(),
                },
            ),
            Request::Marks => message(to, &Answer::Marks(self.marks()?)),
            Request::List { part } => wire::write_frame(to, Frame::Content, &self.list(*part)?),
            Request::Size { pack } => send(to, self.size(*pack)),
            Request::Read { pack, offset, bytes } => send(to, self.read(*pack, *offset, *bytes)),
            Request::Spool { server } => {
                let entries = spool::list(self.path, self.own(server)?)?;
                message(to, &Answer::Spool(entries))
            }
            Request::ReadSpool {
                server,
                name,
                offset,
                bytes,
            } => {
                let place = (*offset, (*bytes).min(READ_BYTES_MAX));
                match spool::read(self.path, self.own(server)?, name, place)? {
                    Some(bytes) => wire::write_frame(to, Frame::Content, &bytes),
                    None => message(to, &Answer::Missing),
                }
            }
        }
    }

    /// The server that was asked for when this process was started, if this is its name: no request leads to another one.
    fn own(&self, server: &str) -> Result<&ServerName, Error> {
        match server == self.name.as_str() {
            true => Ok(&self.name),
            false => Err(wire::garbled("a request about another server")),
        }
    }

    /// By this host's clock: a mark that may still be that of another listing is none.
    fn marks(&self) -> Result<Vec<PartMark>, Error> {
        let now = SystemTime::now();
        let marks = (0..=u8::MAX).map(|first| {
            let mark = self.packs.part_mark(Part::First(first))?;
            Ok(match mark.is_settled(now) {
                true => mark,
                false => PartMark::Unknown,
            })
        });
        let marks: Result<Vec<_>, StoreError> = marks.collect();
        Ok(marks.map_err(barmanfs_catalog::Error::from)?)
    }

    fn list(&self, part: u8) -> Result<Vec<u8>, Error> {
        let mut ids = Vec::new();
        self.packs
            .list_part(Part::First(part), &mut |listed| {
                if let Listed::Pack(pack) = listed {
                    ids.extend_from_slice(pack.as_bytes());
                }
                Ok(())
            })
            .map_err(barmanfs_catalog::Error::from)?;
        Ok(ids)
    }

    fn size(&self, pack: PackId) -> Result<Vec<u8>, StoreError> {
        let size = self.packs.bytes(pack)?;
        let tail = size.min(TAIL_BYTES);
        let mut answer = size.to_be_bytes().to_vec();
        answer.extend(self.read(pack, size - tail, u32::try_from(tail).unwrap_or_default())?);
        Ok(answer)
    }

    fn read(&self, pack: PackId, offset: u64, bytes: u32) -> Result<Vec<u8>, StoreError> {
        let mut buffer = vec![0; bytes.min(READ_BYTES_MAX) as usize];
        self.packs.read_at(pack, offset, &mut buffer)?;
        Ok(buffer)
    }
}

/// Sends what was read, or why it was not. What is wrong with one pack ends no connection.
fn send(to: &mut impl Write, read: Result<Vec<u8>, StoreError>) -> Result<(), Error> {
    match read {
        Ok(bytes) => wire::write_frame(to, Frame::Content, &bytes),
        Err(StoreError::MissingPack(_)) => wire::write_json(to, Frame::Message, &Answer::Missing),
        Err(StoreError::Damaged { reason, .. }) => {
            wire::write_json(to, Frame::Message, &Answer::Damaged(reason))
        }
        Err(error) => Err(barmanfs_catalog::Error::from(error).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use barmanfs_catalog::{CreateOptions, Repository};

    #[test]
    fn no_request_leads_to_the_spool_of_another_server() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("repository");
        Repository::create(&path, CreateOptions::default()).unwrap();
        let segment = "000000010000000000000001";
        for server in ["main", "other"] {
            std::fs::create_dir_all(path.join("spool").join(server)).unwrap();
            std::fs::write(
                path.join("spool").join(server).join(format!("{segment}.partial")),
                server,
            )
            .unwrap();
        }
        let served = Server::open(&path, "main").unwrap();
        let answered = |request: &Request| {
            let mut answer = Vec::new();
            served.answer(request, &mut answer).map(|()| answer)
        };
        for (server, is_answered) in [("main", true), ("other", false)] {
            let list = Request::Spool {
                server: server.to_owned(),
            };
            let read = Request::ReadSpool {
                server: server.to_owned(),
                name: segment.to_owned(),
                offset: 0,
                bytes: 10,
            };
            assert_eq!(answered(&list).is_ok(), is_answered, "{server}");
            assert_eq!(answered(&read).is_ok(), is_answered, "{server}");
        }
    }
}
