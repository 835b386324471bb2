//! Makes files durable: first the bytes, then the journal record that assigns them to the file.
//!
//! A sync notes which blocks are not in the journal, syncs the upper file, writes the record and flushes the journal.
//! Only then do these blocks count as journalled. Blocks written meanwhile wait for the next sync. On failure nothing
//! is marked as journalled, and the caller gets the error.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use barmanfs_store::threads;
use rustix::io::Errno;

use crate::attributes::{described, introduction_for_rewrite, recorded};
use crate::blocks::{BLOCK_BYTES, Blocks, blocks_of};
use crate::disk::{DiskFile, file_name};
use crate::error::{Error, Result, failed};
use crate::live_clone::LiveClone;
use crate::names::{Names, Under, join};
use crate::node::{Body, Data, FileNode, Node, Partial, State, file_of};
use crate::ranges::zero;
use crate::record::Change;
use crate::stat::NodeId;

use barmanfs_store::sync::write;

/// Bytes that no program syncs are durable a little later than this, as with a kernel's file system.
const FLUSH_INTERVAL: Duration = Duration::from_secs(5);

/// Names in one record of a rewritten journal.
const NAMES_IN_RECORD: usize = 256;

/// The state that one sync writes to the journal.
struct SyncRecord {
    upper: Arc<dyn DiskFile>,
    size_bytes: u64,
    lower_bytes: u64,
    blocks: Blocks,
    /// Nothing of the lower file is visible any more.
    whole: bool,
    /// There is something to write.
    is_needed: bool,
}

impl LiveClone {
    /// Makes a file durable: its bytes and, unless `data_only`, its times. Earlier changes of names and attributes are
    /// durable too, whichever node they belong to.
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

    /// Makes changes of names durable.
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
    /// The first error. Everything else is durable.
    pub fn flush_all(&self) -> Result<()> {
        self.flush_files(|_| true)
    }

    /// Makes durable what only the journal can: bytes of partial files. The kernel writes back the others.
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

    /// A journal whose flush failed is rewritten before anything else is tried.
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
        // Times that were not requested are left for the next flush, and so are bytes that the kernel writes while the
        // file is open.
        let left = file.stamped.load(Ordering::Relaxed) || file.handed_out.load(Ordering::Relaxed);
        if left || synced.is_err() {
            self.mark_dirty(node, file);
        }
        synced
    }

    fn sync_upper(&self, node: &Node, file: &FileNode, times: bool) -> Result<()> {
        let record = {
            let mut data = file.write();
            // The file may have lost its last name after this sync was requested.
            if data.gone || matches!(data.state, State::Lower) {
                return Ok(());
            }
            let upper = self.upper(node, &mut data)?;
            let State::Partial(partial) = &data.state else {
                drop(data);
                self.sync_bytes(node, file, &*upper)?;
                return self.settle(node, &mut file.write());
            };
            let record = SyncRecord::of(partial, upper);
            if record.whole {
                self.make_whole(node, partial, &record.upper)?;
            }
            record
        };
        self.sync_bytes(node, file, &*record.upper)?;
        if record.is_needed || times {
            self.append_data(node, &record)?;
            self.journal.flush()?;
        }
        let mut data = file.write();
        self.mark_journaled(node, &mut data, &record)?;
        self.settle(node, &mut data)
    }

    /// Makes the upper file and its name durable. After that, the journal may refer to it.
    fn sync_bytes(&self, node: &Node, file: &FileNode, upper: &dyn DiskFile) -> Result<()> {
        if file.failed.load(Ordering::Relaxed) {
            return Err(Error::Refused(Errno::IO));
        }
        upper.sync_data().map_err(|error| {
            file.failed.store(true, Ordering::Relaxed);
            let path = self.upper_path(node);
            tracing::error!(
                "Cannot sync {}: {error}. Some of its bytes may be lost. Every sync of this file fails until the \
                 repository is mounted again",
                path.display()
            );
            failed("sync", path, error)
        })?;
        self.journal.flush_names()
    }

    /// Turns the upper file into the whole file: zeros in blocks that were never written, then size and time.
    fn make_whole(&self, node: &Node, partial: &Partial, upper: &Arc<dyn DiskFile>) -> Result<()> {
        let fail = |error| failed("complete", self.upper_path(node), error);
        let end = blocks_of(0..partial.size_bytes).end;
        let mut at = 0;
        while at < end {
            let (is_upper, next) = partial.blocks.run(at, end);
            if !is_upper {
                // After a crash there may be bytes here that were written and not synced.
                zero(&**upper, at * BLOCK_BYTES..next * BLOCK_BYTES).map_err(fail)?;
            }
            at = next;
        }
        upper.set_size(partial.size_bytes).map_err(fail)?;
        upper.set_mtime(node.meta().mtime).map_err(fail)
    }

    fn append_data(&self, node: &Node, record: &SyncRecord) -> Result<()> {
        let _names = self.names();
        let meta = node.meta();
        if meta.links == 0 {
            return Ok(());
        }
        let mut changes = described(node, *meta);
        changes.push(Change::Data {
            id: node.id,
            size_bytes: record.size_bytes,
            lower_bytes: record.lower_bytes,
            added: record.blocks.runs().collect(),
        });
        if record.whole {
            changes.push(Change::Plain { id: node.id });
        }
        self.journal.append(&changes)?;
        recorded(node);
        Ok(())
    }

    /// Marks the blocks as journaled: the record that has them is durable.
    fn mark_journaled(&self, node: &Node, data: &mut Data, record: &SyncRecord) -> Result<()> {
        let State::Partial(partial) = &mut data.state else {
            return Ok(());
        };
        partial.pending = partial.pending.without(&record.blocks);
        partial.journaled_bytes = record.size_bytes;
        if record.whole {
            // Writes since then are in the upper file as well.
            let mtime = node.meta().mtime;
            let timed = record.upper.set_mtime(mtime);
            timed.map_err(|error| failed("set the time of", self.upper_path(node), error))?;
            data.state = State::Plain;
        }
        Ok(())
    }

    /// Counts the upper file's bytes, and closes it when the file has no user.
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

    /// Schedules the removal of the upper file of a node that has no name and is not open.
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

    /// Removes upper files that will not be needed even if power is lost now.
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

    /// Rewrites the journal so that it holds only the present state.
    pub(crate) fn rewrite_journal(&self) -> Result<()> {
        {
            let _alone = write(&self.gate);
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

impl SyncRecord {
    fn of(partial: &Partial, upper: Arc<dyn DiskFile>) -> Self {
        let whole = partial.blocks.contains_all(blocks_of(0..partial.lower_bytes));
        Self {
            upper,
            size_bytes: partial.size_bytes,
            lower_bytes: partial.lower_bytes,
            blocks: partial.pending.clone(),
            whole,
            is_needed: whole || !partial.pending.is_empty() || partial.size_bytes != partial.journaled_bytes,
        }
    }
}

/// The record of a node; `None` for one that the journal need not have.
fn node_record(node: &Node) -> Option<Vec<Change>> {
    let meta = *node.meta();
    if meta.links == 0 || !node.recorded.load(Ordering::Relaxed) {
        return None;
    }
    let mut changes = introduction_for_rewrite(node);
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

/// The records of names: all that lead elsewhere than in the lower layer.
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

/// Flushes a clone every few seconds while it exists.
#[derive(Debug)]
pub struct Flusher {
    thread: Option<JoinHandle<()>>,
    stop: Option<Sender<()>>,
}

impl Flusher {
    /// Starts to flush a clone.
    ///
    /// # Errors
    /// When the system cannot start a thread.
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
        let thread = threads::start("barmanfs-flush", work).map_err(barmanfs_store::Error::from)?;
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
            tracing::error!("The thread that flushes a clone panicked");
        }
    }
}
