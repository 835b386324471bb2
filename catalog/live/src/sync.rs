//! Making durable: bytes first, then the journal's word that they are the file's.
//!
//! A sync takes down which blocks the journal does not know of, syncs the upper file, tells the journal and flushes
//! it. Only then these blocks count as told. Blocks written meanwhile wait for the next sync. Whatever fails, all stays
//! as untold as it was, and the caller hears of it.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::io::Errno;

use crate::attributes::{described, introduction_anew, recorded};
use crate::blocks::{BLOCK_BYTES, Blocks, blocks_of};
use crate::clone::LiveClone;
use crate::disk::{DiskFile, file_name};
use crate::error::{Error, Result, failed};
use crate::names::{Names, Under, join};
use crate::node::{Body, Data, FileNode, Node, Partial, State, file_of};
use crate::ranges::zero;
use crate::record::Change;
use crate::stat::NodeId;

/// Bytes nobody synced are durable after this at the latest, and a little: as kernels do.
const FLUSH_INTERVAL: Duration = Duration::from_secs(5);

/// Names in one record of a journal that is written anew.
const NAMES_IN_RECORD: usize = 256;

/// What a sync tells the journal.
struct Told {
    upper: Arc<dyn DiskFile>,
    size_bytes: u64,
    lower_bytes: u64,
    blocks: Blocks,
    /// Nothing of the lower file is visible any more.
    whole: bool,
    /// There is anything to tell.
    news: bool,
}

impl LiveClone {
    /// Makes a file durable: its bytes and, unless only they were asked for, its times. Changes of names and attributes
    /// made before are durable too, whichever node they were of.
    ///
    /// # Errors
    /// When it is not durable; the next sync tries again.
    pub fn sync(&self, id: NodeId, data_only: bool) -> Result<()> {
        let node = self.node(id)?;
        self.mend()?;
        if let Body::File(file) = &node.body {
            self.sync_file(&node, file, data_only)?;
        }
        self.flush_journal()
    }

    /// Makes durable what changed of names.
    ///
    /// # Errors
    /// As [`sync`](Self::sync).
    pub fn sync_directory(&self, _id: NodeId) -> Result<()> {
        self.mend()?;
        self.flush_journal()
    }

    /// Makes everything durable.
    ///
    /// # Errors
    /// The first that there was; all else is durable.
    pub fn flush_all(&self) -> Result<()> {
        self.flush_files(|_| true)
    }

    /// Makes durable what only the journal can: bytes of files that are partly the backup's. Others are the kernel's.
    pub(crate) fn flush_dirty(&self) -> Result<()> {
        self.flush_files(|file| !matches!(file.read().state, State::Plain))?;
        if self.journal.wants_rewrite() {
            self.rewrite_journal()?;
        }
        Ok(())
    }

    fn flush_files(&self, wanted: impl Fn(&FileNode) -> bool) -> Result<()> {
        let mended = self.mend();
        let nodes: Vec<Arc<Node>> = self.dirty().values().cloned().collect();
        let mut result = mended;
        for node in nodes {
            if let Ok(file) = file_of(&node)
                && wanted(file)
            {
                result = result.and(self.sync_file(&node, file, false));
            }
        }
        result.and(self.flush_journal())
    }

    /// A journal that failed is written anew before anything else is tried.
    fn mend(&self) -> Result<()> {
        if self.journal.is_broken() {
            self.rewrite_journal()?;
        }
        Ok(())
    }

    fn flush_journal(&self) -> Result<()> {
        self.journal.flush()?;
        self.reap();
        Ok(())
    }

    fn sync_file(&self, node: &Arc<Node>, file: &FileNode, data_only: bool) -> Result<()> {
        let _gate = self.gate();
        let _sync = file.syncing();
        self.dirty().remove(&node.id);
        let was_dirty = file.dirty.swap(false, Ordering::AcqRel) || file.handed_out.load(Ordering::Acquire);
        let times = !data_only && file.stamped.swap(false, Ordering::Relaxed);
        if !was_dirty && !times {
            return Ok(());
        }
        let synced = self.sync_upper(node, file, times);
        if synced.is_err() {
            file.stamped.fetch_or(times, Ordering::Relaxed);
        }
        // Times that were not asked for are left for the next flush, and what the kernel writes while the file is open.
        let left = file.stamped.load(Ordering::Relaxed) || file.handed_out.load(Ordering::Relaxed);
        if left || synced.is_err() {
            self.mark_dirty(node, file);
        }
        synced
    }

    fn sync_upper(&self, node: &Node, file: &FileNode, times: bool) -> Result<()> {
        let told = {
            let mut data = file.write();
            // Whoever is to sync it may have been told to before it went.
            if data.gone || matches!(data.state, State::Lower) {
                return Ok(());
            }
            let upper = self.upper(node, &mut data)?;
            let State::Partial(partial) = &data.state else {
                drop(data);
                self.sync_bytes(node, file, &*upper)?;
                return self.settle(node, &mut file.write());
            };
            let told = Told::of(partial, upper);
            if told.whole {
                self.make_whole(node, partial, &told.upper)?;
            }
            told
        };
        self.sync_bytes(node, file, &*told.upper)?;
        if told.news || times {
            self.tell(node, &told)?;
            self.journal.flush()?;
        }
        let mut data = file.write();
        self.told(node, &mut data, &told)?;
        self.settle(node, &mut data)
    }

    /// Makes the upper file durable, and its name: the journal may say of it what it likes then.
    fn sync_bytes(&self, node: &Node, file: &FileNode, upper: &dyn DiskFile) -> Result<()> {
        if file.failed.load(Ordering::Relaxed) {
            return Err(Error::Refused(Errno::IO));
        }
        upper.sync_data().map_err(|error| {
            file.failed.store(true, Ordering::Relaxed);
            let path = self.upper_path(node);
            tracing::error!(
                "Cannot sync {}: {error}. Some of it may be lost: no sync of it is answered for until the repository is \
                 mounted anew",
                path.display()
            );
            failed("sync", path, error)
        })?;
        self.journal.flush_names()
    }

    /// Makes the upper file what the whole file is: nothing in blocks that were never written, and its size and time.
    fn make_whole(&self, node: &Node, partial: &Partial, upper: &Arc<dyn DiskFile>) -> Result<()> {
        let fail = |error| failed("complete", self.upper_path(node), error);
        let end = blocks_of(0..partial.size_bytes).end;
        let mut at = 0;
        while at < end {
            let (is_upper, next) = partial.blocks.run(at, end);
            if !is_upper {
                // A crash may have left there what was written and not synced.
                zero(&**upper, at * BLOCK_BYTES..next * BLOCK_BYTES).map_err(fail)?;
            }
            at = next;
        }
        upper.set_size(partial.size_bytes).map_err(fail)?;
        upper.set_mtime(node.meta().mtime).map_err(fail)
    }

    fn tell(&self, node: &Node, told: &Told) -> Result<()> {
        let _names = self.names();
        let meta = node.meta();
        if meta.links == 0 {
            return Ok(());
        }
        let mut changes = described(node, *meta);
        changes.push(Change::Data {
            id: node.id,
            size_bytes: told.size_bytes,
            lower_bytes: told.lower_bytes,
            added: told.blocks.runs().collect(),
        });
        if told.whole {
            changes.push(Change::Plain { id: node.id });
        }
        self.journal.append(&changes)?;
        recorded(node);
        Ok(())
    }

    /// The journal knows now, durably.
    fn told(&self, node: &Node, data: &mut Data, told: &Told) -> Result<()> {
        let State::Partial(partial) = &mut data.state else {
            return Ok(());
        };
        partial.pending = partial.pending.without(&told.blocks);
        partial.journaled_bytes = told.size_bytes;
        if told.whole {
            // It may have been written to since it was made whole; that is in the upper file as well.
            let mtime = node.meta().mtime;
            let timed = told.upper.set_mtime(mtime);
            timed.map_err(|error| failed("set the time of", self.upper_path(node), error))?;
            data.state = State::Plain;
        }
        Ok(())
    }

    /// Counts the upper file's bytes, and closes it when nobody uses the file.
    fn settle(&self, node: &Node, data: &mut Data) -> Result<()> {
        if let Some(upper) = &data.upper {
            let status = upper.status();
            let status = status.map_err(|error| failed("read", self.upper_path(node), error))?;
            self.count(&mut data.counted_bytes, status.allocated_bytes);
        }
        if node.users.load(Ordering::Relaxed) == 0 {
            data.upper = None;
        }
        Ok(())
    }

    /// Has the upper file of a node removed that no name leads to and nobody has open.
    pub(crate) fn doom(&self, node: &Node) {
        let Body::File(file) = &node.body else {
            return;
        };
        let position = self.journal.position();
        let mut data = file.write();
        data.gone = true;
        data.upper = None;
        self.count(&mut data.counted_bytes, 0);
        file.dirty.store(false, Ordering::Release);
        self.dirty().remove(&node.id);
        if !matches!(data.state, State::Lower) {
            self.doomed().push((position, node.id));
        }
    }

    /// Removes upper files that are not needed even if power is lost now.
    fn reap(&self) {
        let durable = self.journal.durable();
        let ripe: Vec<_> = self
            .doomed()
            .extract_if(.., |(position, _)| *position <= durable)
            .collect();
        for (_, id) in ripe {
            if let Err(error) = self.disk.remove(&file_name(id)) {
                let path = self.disk.path().join(file_name(id));
                tracing::warn!(
                    "Cannot remove {}, which is not needed any more: {error}",
                    path.display()
                );
            }
        }
    }

    /// Writes the journal anew, with no more in it than what is.
    pub(crate) fn rewrite_journal(&self) -> Result<()> {
        {
            let _alone = self.gate.write().unwrap_or_else(PoisonError::into_inner);
            let names = self.names();
            let nodes = names.nodes.values().filter_map(|node| node_record(node));
            let made = std::iter::once(vec![Change::Made { count: names.made }]);
            self.journal
                .rewrite(&mut made.chain(nodes).chain(name_records(&names)))?;
        }
        self.reap();
        Ok(())
    }
}

impl Told {
    fn of(partial: &Partial, upper: Arc<dyn DiskFile>) -> Self {
        let whole = partial.blocks.contains_all(blocks_of(0..partial.lower_bytes));
        Self {
            upper,
            size_bytes: partial.size_bytes,
            lower_bytes: partial.lower_bytes,
            blocks: partial.pending.clone(),
            whole,
            news: whole || !partial.pending.is_empty() || partial.size_bytes != partial.journaled_bytes,
        }
    }
}

/// What the journal has to say of a node; nothing of one it need not know.
fn node_record(node: &Node) -> Option<Vec<Change>> {
    let meta = *node.meta();
    if meta.links == 0 || !node.recorded.load(Ordering::Relaxed) {
        return None;
    }
    let mut changes = introduction_anew(node);
    changes.push(Change::Attributes { id: node.id, meta });
    if let Body::File(file) = &node.body {
        match &file.read().state {
            State::Lower => {}
            State::Plain => changes.push(Change::Plain { id: node.id }),
            State::Partial(partial) => changes.push(Change::Data {
                id: node.id,
                size_bytes: partial.journaled_bytes,
                lower_bytes: partial.lower_bytes,
                added: partial.blocks.without(&partial.pending).runs().collect(),
            }),
        }
    }
    Some(changes)
}

/// What it has to say of names: all that lead elsewhere than in the lower layer.
fn name_records(names: &Names) -> impl Iterator<Item = Vec<Change>> + '_ {
    let mut differences = names.differences.iter().flat_map(move |(parent, differences)| {
        let origin = names.nodes.get(parent).and_then(|node| node.origin.as_deref());
        differences.iter().filter_map(move |(name, under)| {
            let node = match under {
                Under::Nothing => None,
                Under::Node(id, _) => Some(*id),
            };
            let at_home = |id| {
                let place = names.nodes.get(&id).and_then(|node| node.origin.as_deref());
                origin.is_some_and(|origin| place == Some(&*join(origin, name)))
            };
            let change = Change::Name {
                parent: *parent,
                name: name.to_vec(),
                node,
            };
            (!node.is_some_and(at_home)).then_some(change)
        })
    });
    std::iter::from_fn(move || {
        let record: Vec<Change> = differences.by_ref().take(NAMES_IN_RECORD).collect();
        (!record.is_empty()).then_some(record)
    })
}

/// Flushes a clone every few seconds while this lives.
#[derive(Debug)]
pub struct Flusher {
    thread: Option<JoinHandle<()>>,
    stop: Option<Sender<()>>,
}

impl Flusher {
    /// Begins to flush a clone.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start(clone: &Arc<LiveClone>) -> Result<Self> {
        let (stop, stopped) = channel::<()>();
        let clone = Arc::clone(clone);
        let work = move || {
            let mut failing = false;
            while stopped.recv_timeout(FLUSH_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                let flushed = clone.flush_dirty();
                if let (Err(error), false) = (&flushed, failing) {
                    tracing::error!("Cannot make durable what was written to a clone: {error}");
                }
                failing = flushed.is_err();
            }
        };
        let thread = std::thread::Builder::new()
            .name("barmanfs-flush".to_owned())
            .spawn(work);
        let thread = thread.map_err(|error| Error::io("start a thread for", "a clone", error))?;
        Ok(Self {
            thread: Some(thread),
            stop: Some(stop),
        })
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("The thread that flushes a clone came to a bad end");
        }
    }
}
