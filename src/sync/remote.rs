//! The packs of a primary on another host, as a storage: `barmanfs agent --packs` over there reads them.
//!
//! Requests that are announced ([`PackStorage::will_read`]) are sent at once, and their answers come in the same order, so a
//! copy does not wait for the way there and back for each frame. Requests are short and few are under way, so neither side
//! waits for the other to read.

use std::collections::{HashMap, VecDeque};
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

use barmanfs_catalog::Locked;
use barmanfs_store::sync::lock;
use barmanfs_store::threads;
use barmanfs_store::{Error as StoreError, Keys, Listed, PackId, PackStorage, PackUpload, Part, PartMark};

use super::wire::{Answer, PROTOCOL, READ_BYTES_MAX, Request, SpoolEntry};
use crate::error::Error;
use crate::restore::agent::wire::{self, Failure, Frame};
use crate::restore::remote::RemoteShell;
use crate::restore::remote::shell::{BEAT_EVERY, Output, Session, word};

/// Requests under way, and bytes of their answers.
const UNDER_WAY: usize = 32;
const BYTES_UNDER_WAY: u64 = 16 << 20;

/// Answers that came before somebody asked for them: more are dropped.
const KEPT: usize = 4 * UNDER_WAY;

/// How soon the thread that shows that this side is there notices the end.
const NOTICED_WITHIN: Duration = Duration::from_millis(200);

/// The packs of a primary.
#[derive(Debug)]
pub(super) struct FarPacks {
    link: Arc<Mutex<Link>>,
    /// The id of its repository.
    pub(super) id: String,
    /// What opens its packs.
    pub(super) locked: Locked,
}

/// What is read: a pack, where, and how much.
type Place = (PackId, u64, u32);

/// What came instead of bytes.
#[derive(Debug, Clone)]
enum Got {
    Bytes(Vec<u8>),
    Missing,
    Damaged(String),
}

/// The connection.
#[derive(Debug)]
struct Link {
    session: Session,
    from: BufReader<Output>,
    asked: VecDeque<Place>,
    came: HashMap<Place, Got>,
    /// The end of the pack whose size was asked for last.
    tail: Option<(PackId, u64, Vec<u8>)>,
    marks: Option<Vec<PartMark>>,
    /// Why the connection has ended.
    failed: Option<Error>,
}

impl FarPacks {
    /// Connects, and asks which repository it is.
    ///
    /// # Errors
    /// When the other host cannot be reached, or has no barmanfs of this release.
    pub(super) fn connect(command: &str, config: Option<&Path>, server: &str) -> Result<Self, Error> {
        let shell = RemoteShell::new(command)?;
        let config = config.map_or_else(String::new, |path| {
            format!("-c {} ", word(&path.to_string_lossy()))
        });
        let script = format!("exec barmanfs {config}agent --packs {}", word(server));
        let mut session = shell.start("read the primary", &script)?;
        let output = session.output.take();
        let output = output.ok_or_else(|| Error::failed("The agent has no output"))?;
        let mut link = Link {
            session,
            from: BufReader::with_capacity(256 << 10, output),
            asked: VecDeque::new(),
            came: HashMap::new(),
            tail: None,
            marks: None,
            failed: None,
        };
        let hello = link.message(&Request::Hello {
            protocol: PROTOCOL,
            server: server.to_owned(),
        });
        let (id, locked) = match hello.map_err(|error| error.context("The primary"))? {
            Answer::Hello {
                protocol: PROTOCOL,
                repository,
                locked,
            } => (repository, locked),
            _ => return Err(wire::garbled("no greeting")),
        };
        let link = Arc::new(Mutex::new(link));
        let shown = Arc::downgrade(&link);
        threads::start("sync-beat", move || beat(&shown))?;
        Ok(Self { link, id, locked })
    }

    /// What the primary's receiver has and its archive does not.
    pub(super) fn spool(&self, server: &str) -> Result<Vec<SpoolEntry>, Error> {
        let server = server.to_owned();
        match lock(&self.link).message(&Request::Spool { server })? {
            Answer::Spool(entries) => Ok(entries),
            _ => Err(wire::garbled("no list of a spool")),
        }
    }

    /// Bytes of a file in the spool; `None` if it is gone.
    pub(super) fn read_spool(
        &self,
        server: &str,
        name: &str,
        (offset, bytes): (u64, u32),
    ) -> Result<Option<Vec<u8>>, Error> {
        let request = Request::ReadSpool {
            server: server.to_owned(),
            name: name.to_owned(),
            offset,
            bytes: bytes.min(READ_BYTES_MAX),
        };
        match lock(&self.link).ask(&request)? {
            Got::Bytes(bytes) => Ok(Some(bytes)),
            Got::Missing => Ok(None),
            Got::Damaged(reason) => Err(Error::failed(format!(
                "Cannot read {name} of the primary: {reason}"
            ))),
        }
    }
}

impl Link {
    /// Sends a request.
    fn send(&mut self, request: &Request) -> Result<(), Error> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        let sent = wire::write_json(&mut self.session, Frame::Message, request);
        sent.map_err(|error| self.end(error))
    }

    /// Reads an answer of either kind.
    fn receive(&mut self) -> Result<Result<Vec<u8>, Answer>, Error> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        let read = match wire::read_frame(&mut self.from) {
            Ok(Some((Frame::Content, bytes))) => return Ok(Ok(bytes)),
            Ok(Some((Frame::Message, bytes))) => wire::json::<Answer>(&bytes).map(Err),
            Ok(Some((Frame::Failure, bytes))) => {
                let said = wire::json::<Failure>(&bytes).map_or_else(|error| error, Error::from);
                let said = said.context("On the primary");
                self.failed = Some(said.clone());
                return Err(said);
            }
            Ok(Some(_)) => Err(wire::garbled("another frame than an answer")),
            Ok(None) => Err(Error::failed("The primary has ended the connection")),
            Err(error) => Err(error),
        };
        read.map_err(|error| self.end(error))
    }

    /// What ssh says about its end is the better reason.
    fn end(&mut self, error: Error) -> Error {
        let error = self.session.finish().err().unwrap_or(error);
        self.failed = Some(error.clone());
        error
    }

    /// Takes the answers of what was announced, so that the next one is that of the next request.
    fn drain(&mut self) -> Result<(), Error> {
        while let Some(place) = self.asked.pop_front() {
            let got = self.got()?;
            self.keep(place, got);
        }
        Ok(())
    }

    fn keep(&mut self, place: Place, got: Got) {
        if self.came.len() >= KEPT {
            // Whoever announced these has given up.
            self.came.clear();
        }
        self.came.insert(place, got);
    }

    fn got(&mut self) -> Result<Got, Error> {
        match self.receive()? {
            Ok(bytes) => Ok(Got::Bytes(bytes)),
            Err(Answer::Missing) => Ok(Got::Missing),
            Err(Answer::Damaged(reason)) => Ok(Got::Damaged(wire::shown(&reason))),
            Err(_) => Err(wire::garbled("another answer than bytes")),
        }
    }

    fn ask(&mut self, request: &Request) -> Result<Got, Error> {
        self.drain()?;
        self.send(request)?;
        self.got()
    }

    fn message(&mut self, request: &Request) -> Result<Answer, Error> {
        self.drain()?;
        self.send(request)?;
        match self.receive()? {
            Err(answer) => Ok(answer),
            Ok(_) => Err(wire::garbled("bytes instead of an answer")),
        }
    }

    /// Sends a request for a part of a pack, unless enough are under way.
    fn announce(&mut self, place: Place) -> Result<(), Error> {
        let under_way: u64 = self.asked.iter().map(|(_, _, bytes)| u64::from(*bytes)).sum();
        let is_known = self.asked.contains(&place) || self.came.contains_key(&place);
        if is_known
            || place.2 > READ_BYTES_MAX
            || self.asked.len() >= UNDER_WAY
            || under_way + u64::from(place.2) > BYTES_UNDER_WAY
        {
            return Ok(());
        }
        self.request(place)
    }

    fn request(&mut self, place: Place) -> Result<(), Error> {
        let (pack, offset, bytes) = place;
        self.send(&Request::Read { pack, offset, bytes })?;
        self.asked.push_back(place);
        Ok(())
    }

    fn read(&mut self, place: Place) -> Result<Got, Error> {
        if let Some((pack, begin, tail)) = &self.tail
            && *pack == place.0
            && let Some(skipped) = place.1.checked_sub(*begin)
            && let Ok(skipped) = usize::try_from(skipped)
            && let Some(bytes) = tail.get(skipped..skipped.saturating_add(place.2 as usize))
        {
            return Ok(Got::Bytes(bytes.to_vec()));
        }
        if let Some(got) = self.came.remove(&place) {
            return Ok(got);
        }
        if !self.asked.contains(&place) {
            self.request(place)?;
        }
        while let Some(next) = self.asked.pop_front() {
            let got = self.got()?;
            if next == place {
                return Ok(got);
            }
            self.keep(next, got);
        }
        Err(wire::garbled("no answer"))
    }

    fn size(&mut self, pack: PackId) -> Result<Result<u64, Got>, Error> {
        let bytes = match self.ask(&Request::Size { pack })? {
            Got::Bytes(bytes) => bytes,
            other => return Ok(Err(other)),
        };
        let (size, tail) = bytes
            .split_first_chunk::<8>()
            .ok_or_else(|| wire::garbled("no size"))?;
        let size = u64::from_be_bytes(*size);
        let begin = size
            .checked_sub(tail.len() as u64)
            .ok_or_else(|| wire::garbled("more bytes than a pack has"))?;
        self.tail = Some((pack, begin, tail.to_vec()));
        Ok(Ok(size))
    }
}

/// Lets the primary know that this side is there. It ends with the storage, or the connection.
fn beat(link: &Weak<Mutex<Link>>) {
    let mut last = Instant::now();
    loop {
        thread::sleep(NOTICED_WITHIN);
        let Some(link) = link.upgrade() else { return };
        if last.elapsed() >= BEAT_EVERY {
            last = Instant::now();
            if lock(&link).send(&Request::Beat).is_err() {
                return;
            }
        }
    }
}

fn failed(error: &Error) -> StoreError {
    StoreError::io(
        "read",
        &PathBuf::from("the packs of the primary"),
        io::Error::other(error.to_string()),
    )
}

fn only_read() -> StoreError {
    StoreError::Invalid("The packs of a primary are only read".to_owned())
}

fn lost(pack: PackId, got: Got) -> StoreError {
    match got {
        Got::Damaged(reason) => StoreError::damaged(format!("Pack {pack}"), reason),
        Got::Missing | Got::Bytes(_) => StoreError::MissingPack(pack),
    }
}

impl PackStorage for FarPacks {
    fn keys(&self) -> &Keys {
        Keys::none()
    }

    fn begin(&self) -> Result<Box<dyn PackUpload>, StoreError> {
        Err(only_read())
    }

    fn begin_copy(&self, _id: PackId) -> Result<Box<dyn PackUpload>, StoreError> {
        Err(only_read())
    }

    fn read_at(&self, id: PackId, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        let mut done = 0;
        while done < buf.len() {
            let left = buf.get_mut(done..).unwrap_or_default();
            let bytes = u32::try_from(left.len())
                .unwrap_or(READ_BYTES_MAX)
                .min(READ_BYTES_MAX);
            let place = (id, offset + done as u64, bytes);
            let got = lock(&self.link).read(place).map_err(|error| failed(&error))?;
            match got {
                Got::Bytes(read) if read.len() == bytes as usize => {
                    left.iter_mut().zip(read).for_each(|(to, from)| *to = from);
                    done += bytes as usize;
                }
                Got::Bytes(_) => return Err(failed(&wire::garbled("other bytes than asked for"))),
                other => return Err(lost(id, other)),
            }
        }
        Ok(())
    }

    fn will_read(&self, id: PackId, offset: u64, bytes: u32) {
        // The read that follows meets the error.
        let _ = lock(&self.link).announce((id, offset, bytes));
    }

    fn bytes(&self, id: PackId) -> Result<u64, StoreError> {
        let size = lock(&self.link).size(id).map_err(|error| failed(&error))?;
        size.map_err(|got| lost(id, got))
    }

    fn list(&self, each: &mut dyn FnMut(PackId) -> Result<(), StoreError>) -> Result<(), StoreError> {
        for part in Part::all() {
            self.list_part(part, &mut |listed| match listed {
                Listed::Pack(pack) => each(pack),
                Listed::Astray { .. } => Ok(()),
            })?;
        }
        Ok(())
    }

    fn part_mark(&self, part: Part) -> Result<PartMark, StoreError> {
        let Part::First(first) = part else {
            return Ok(PartMark::Unknown);
        };
        let mut link = lock(&self.link);
        // One question answers for all; a new look begins with the first.
        if first == 0 || link.marks.is_none() {
            link.marks = match link.message(&Request::Marks).map_err(|error| failed(&error))? {
                Answer::Marks(marks) => Some(marks),
                _ => return Err(failed(&wire::garbled("no states of directories"))),
            };
        }
        let mark = link
            .marks
            .as_ref()
            .and_then(|marks| marks.get(usize::from(first)));
        Ok(mark.copied().unwrap_or(PartMark::Unknown))
    }

    fn list_part(
        &self,
        part: Part,
        each: &mut dyn FnMut(Listed) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let Part::First(part) = part else { return Ok(()) };
        let got = lock(&self.link).ask(&Request::List { part });
        let Got::Bytes(ids) = got.map_err(|error| failed(&error))? else {
            return Err(failed(&wire::garbled("no list of packs")));
        };
        let (ids, rest) = ids.as_chunks::<{ PackId::BYTES }>();
        if !rest.is_empty() || ids.iter().any(|id| id[0] != part) {
            return Err(failed(&wire::garbled("no list of packs of this part")));
        }
        ids.iter().try_for_each(|id| each(Listed::Pack(PackId(*id))))
    }

    fn remove(&self, _id: PackId) -> Result<(), StoreError> {
        Err(only_read())
    }

    fn settle(&self, _packs: &[PackId]) -> Result<(), StoreError> {
        Err(only_read())
    }

    fn remove_abandoned(&self, _older_than: Duration) -> Result<usize, StoreError> {
        Err(only_read())
    }
}
