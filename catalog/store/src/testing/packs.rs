//! Storages for tests: packs in memory, and a wrapper that records each call and lets a test fail it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::sync::lock;
use crate::{Error, Keys, Listed, PackId, PackStorage, PackUpload, Part, PartMark, Result};

type Files = Arc<Mutex<HashMap<PackId, Vec<u8>>>>;

/// Packs in memory. A test may change their bytes.
#[derive(Debug, Default)]
pub struct MemoryPacks {
    /// The bytes of each pack.
    pub files: Files,
}

#[derive(Debug)]
struct MemoryUpload {
    files: Files,
    id: PackId,
    bytes: Vec<u8>,
}

impl PackStorage for MemoryPacks {
    fn keys(&self) -> &Keys {
        Keys::none()
    }

    fn begin(&self) -> Result<Box<dyn PackUpload>> {
        Ok(Box::new(MemoryUpload {
            files: Arc::clone(&self.files),
            id: PackId::random()?,
            bytes: Vec::new(),
        }))
    }

    fn begin_copy(&self, id: PackId) -> Result<Box<dyn PackUpload>> {
        Ok(Box::new(MemoryUpload {
            files: Arc::clone(&self.files),
            id,
            bytes: Vec::new(),
        }))
    }

    fn read_at(&self, id: PackId, offset: u64, buf: &mut [u8]) -> Result<()> {
        let files = lock(&self.files);
        let file = files.get(&id).ok_or(Error::MissingPack(id))?;
        let bytes = usize::try_from(offset)
            .ok()
            .and_then(|start| file.get(start..start + buf.len()));
        buf.copy_from_slice(bytes.ok_or_else(|| Error::damaged(format!("Pack {id}"), "It ends early"))?);
        Ok(())
    }

    fn will_read(&self, _id: PackId, _offset: u64, _bytes: u32) {}

    fn bytes(&self, id: PackId) -> Result<u64> {
        let files = lock(&self.files);
        let file = files.get(&id).ok_or(Error::MissingPack(id))?;
        Ok(file.len() as u64)
    }

    fn list(&self, each: &mut dyn FnMut(PackId) -> Result<()>) -> Result<()> {
        let packs: Vec<PackId> = lock(&self.files).keys().copied().collect();
        packs.into_iter().try_for_each(each)
    }

    fn part_mark(&self, _part: Part) -> Result<PartMark> {
        Ok(PartMark::Unknown)
    }

    fn list_part(&self, part: Part, each: &mut dyn FnMut(Listed) -> Result<()>) -> Result<()> {
        self.list(&mut |pack| match part {
            Part::First(first) if pack.as_bytes()[0] == first => each(Listed::Pack(pack)),
            _ => Ok(()),
        })
    }

    fn settle(&self, _packs: &[PackId]) -> Result<()> {
        Ok(())
    }

    fn remove(&self, id: PackId) -> Result<()> {
        lock(&self.files).remove(&id);
        Ok(())
    }

    fn remove_abandoned(&self, _older_than: Duration) -> Result<usize> {
        Ok(0)
    }
}

impl PackUpload for MemoryUpload {
    fn id(&self) -> PackId {
        self.id
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        let mut files = lock(&self.files);
        match files.get(&self.id) {
            Some(there) if *there != self.bytes => Err(Error::other_bytes(self.id)),
            _ => {
                files.insert(self.id, self.bytes);
                Ok(())
            }
        }
    }
}

/// A call of a storage or of an upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// A pack is begun.
    Begin,
    /// Bytes of a pack that is being written.
    Write(PackId),
    /// A pack is to become durable and visible.
    Finish(PackId),
    /// Bytes of a pack are read.
    Read(PackId),
    /// Bytes of a pack will be read soon: where they begin, and how many.
    WillRead(PackId, u64, u32),
    /// A pack's size, with which the reading of its footer begins.
    Bytes(PackId),
    /// Packs are listed.
    List,
    /// The mark of a part is asked for.
    Mark(Part),
    /// A pack is removed.
    Remove(PackId),
    /// What happened to packs is made durable.
    Settle(Vec<PackId>),
    /// What killed writers left is removed.
    RemoveAbandoned,
}

/// Runs before each call, which fails with its error.
type Before = dyn Fn(&Call) -> Result<()> + Send + Sync;

#[derive(Default)]
struct Rule {
    before: Option<Arc<Before>>,
    calls: Vec<Call>,
}

/// A storage whose calls are recorded, and fail as a test decides.
pub struct TestPacks<S> {
    packs: S,
    rule: Arc<Mutex<Rule>>,
}

impl<S: PackStorage> TestPacks<S> {
    /// Wraps `packs`. No call fails yet.
    pub fn new(packs: S) -> Self {
        Self {
            packs,
            rule: Arc::default(),
        }
    }

    /// Runs `before` ahead of each call from now on. The call fails with its error; it may also wait, or panic.
    pub fn before_each(&self, before: impl Fn(&Call) -> Result<()> + Send + Sync + 'static) {
        lock(&self.rule).before = Some(Arc::new(before));
    }

    /// Lets all calls pass again.
    pub fn let_all_pass(&self) {
        lock(&self.rule).before = None;
    }

    /// The calls so far.
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.rule).calls.clone()
    }

    fn note(&self, call: &Call) -> Result<()> {
        note(&self.rule, call)
    }
}

impl<S: fmt::Debug> fmt::Debug for TestPacks<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestPacks")
            .field("packs", &self.packs)
            .finish_non_exhaustive()
    }
}

/// The rule runs without the lock: it may wait for other calls.
fn note(rule: &Mutex<Rule>, call: &Call) -> Result<()> {
    let before = {
        let mut rule = lock(rule);
        rule.calls.push(call.clone());
        rule.before.clone()
    };
    before.map_or(Ok(()), |before| before(call))
}

impl<S: PackStorage> PackStorage for TestPacks<S> {
    fn keys(&self) -> &Keys {
        self.packs.keys()
    }

    fn begin(&self) -> Result<Box<dyn PackUpload>> {
        self.note(&Call::Begin)?;
        Ok(Box::new(TestUpload {
            upload: self.packs.begin()?,
            rule: Arc::clone(&self.rule),
        }))
    }

    fn begin_copy(&self, id: PackId) -> Result<Box<dyn PackUpload>> {
        self.note(&Call::Begin)?;
        Ok(Box::new(TestUpload {
            upload: self.packs.begin_copy(id)?,
            rule: Arc::clone(&self.rule),
        }))
    }

    fn read_at(&self, id: PackId, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.note(&Call::Read(id))?;
        self.packs.read_at(id, offset, buf)
    }

    fn will_read(&self, id: PackId, offset: u64, bytes: u32) {
        // A hint cannot fail.
        let _ = self.note(&Call::WillRead(id, offset, bytes));
        self.packs.will_read(id, offset, bytes);
    }

    fn bytes(&self, id: PackId) -> Result<u64> {
        self.note(&Call::Bytes(id))?;
        self.packs.bytes(id)
    }

    fn list(&self, each: &mut dyn FnMut(PackId) -> Result<()>) -> Result<()> {
        self.note(&Call::List)?;
        self.packs.list(each)
    }

    fn part_mark(&self, part: Part) -> Result<PartMark> {
        self.note(&Call::Mark(part))?;
        self.packs.part_mark(part)
    }

    fn list_part(&self, part: Part, each: &mut dyn FnMut(Listed) -> Result<()>) -> Result<()> {
        self.note(&Call::List)?;
        self.packs.list_part(part, each)
    }

    fn remove(&self, id: PackId) -> Result<()> {
        self.note(&Call::Remove(id))?;
        self.packs.remove(id)
    }

    fn settle(&self, packs: &[PackId]) -> Result<()> {
        self.note(&Call::Settle(packs.to_vec()))?;
        self.packs.settle(packs)
    }

    fn remove_abandoned(&self, older_than: Duration) -> Result<usize> {
        self.note(&Call::RemoveAbandoned)?;
        self.packs.remove_abandoned(older_than)
    }
}

struct TestUpload {
    upload: Box<dyn PackUpload>,
    rule: Arc<Mutex<Rule>>,
}

impl fmt::Debug for TestUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestUpload")
            .field("upload", &self.upload)
            .finish_non_exhaustive()
    }
}

impl PackUpload for TestUpload {
    fn id(&self) -> PackId {
        self.upload.id()
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        note(&self.rule, &Call::Write(self.id()))?;
        self.upload.write(bytes)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        note(&self.rule, &Call::Finish(self.id()))?;
        self.upload.finish()
    }
}
