//! The input table of an invocation: written by the node, read by the worker.
//!
//! An entry says where an input is *now*: nowhere yet, sealed in an extent, on the page of a
//! running producer, or a list of such. The worker follows it ([`TableReader`]) and sleeps where
//! the next change will show: on the producer's page if there is one, so that the node is not
//! between producer and consumer, else on the table's own `seq`. When the node changes its mind
//! (the producer died, ended, or was replaced) it rewrites the entry first and pokes the page
//! ([`PageNode::poke`](crate::page::PageNode::poke)) second, so that a reader woken from the page
//! finds the new entry.
//!
//! Entries are guarded by a generation each (a sequence lock): what a reader found on a page only
//! counts if the entry that sent it there still stands.

use crate::chain::{self, ChainWriter};
use crate::page::{ObjectView, PageReader, SlotState};
use crate::segment::{Maps, Part, PartMut};
use core::sync::atomic::{Ordering, fence};
use dflow_proto::ids::{Extent, SegmentId};
use dflow_proto::limits::PAGE_BYTES;
use std::time::Duration;

const MAGIC: u32 = 0x4446_5431; // "DFT1"
const AT_MAGIC: usize = 0;
const AT_SEQ: usize = 4;
const AT_ENTRIES: usize = 8;
const HEADER_BYTES: usize = 64;
const ENTRY_BYTES: usize = 64;

const GENERATION: usize = 0;
const KIND: usize = 4;
const SEGMENT: usize = 8;
const PORT: usize = 12;
const OFFSET: usize = 16;
const BYTES: usize = 24;
const ITEM: usize = 32;
const HAS_ITEM: usize = 36;
const COUNT: usize = 40;
const PINNED: usize = 44;

/// The first chunk of a list, in bytes: 63 items.
const LIST_BYTES_MIN: u64 = PAGE_BYTES;

/// Where an input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Nowhere yet.
    Pending,
    /// In the store, complete.
    Sealed(Extent),
    /// An output of a running invocation.
    Page {
        /// The producer's page (its first byte; `bytes` is not used).
        page: Extent,
        /// Its output port.
        port: u16,
        /// The item, if the port is a `many` port.
        item: Option<u32>,
    },
    /// The whole list that a `many` port of a running invocation is.
    Follow {
        /// The producer's page (its first byte; `bytes` is not used).
        page: Extent,
        /// Its output port.
        port: u16,
    },
    /// The source was skipped.
    Null,
    /// The source will never be: the invocation is about to be ended.
    Failed,
}

const KIND_PENDING: u32 = 0;
const KIND_SEALED: u32 = 1;
const KIND_PAGE: u32 = 2;
const KIND_FOLLOW: u32 = 3;
const KIND_NULL: u32 = 4;
const KIND_FAILED: u32 = 5;
const KIND_LIST: u32 = 6;

/// What an entry in memory says: one of [`Entry`], or a list kept by the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loaded {
    Entry(Entry),
    List { head: Option<Extent>, count: u32, pinned: bool },
}

/// A list needs a chunk of shared memory before it can take another item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a list input needs another {bytes} bytes of table memory")]
pub struct ChunkNeeded {
    /// Its length; [`TableWriter::add_chunk`] takes it.
    pub bytes: u64,
}

/// The node's side. Changes become visible entry by entry; sleeping readers learn of them with
/// [`TableWriter::wake`], once per batch.
#[derive(Debug)]
pub struct TableWriter {
    part: PartMut,
    lists: Vec<Option<ListState>>,
}

#[derive(Debug)]
struct ListState {
    chain: ChainWriter,
    head: Option<Extent>,
    pinned: bool,
}

impl TableWriter {
    /// Length of a table of `entries` entries, in bytes (page granularity is the caller's).
    pub const fn bytes_for(entries: usize) -> u64 {
        (HEADER_BYTES + entries * ENTRY_BYTES) as u64
    }

    /// Begins a table in memory that no worker can write and no reader knows yet; all entries are
    /// [`Entry::Pending`]. Panics if `part` is shorter than [`TableWriter::bytes_for`].
    pub fn begin(part: PartMut, entries: usize) -> TableWriter {
        assert!(part.bytes() as u64 >= Self::bytes_for(entries), "{entries} entries in {}", part.bytes());
        part.clear();
        part.word(AT_ENTRIES).store(entries as u32, Ordering::Relaxed);
        part.word(AT_MAGIC).store(MAGIC, Ordering::Release);
        TableWriter { part, lists: (0..entries).map(|_| None).collect() }
    }

    /// Number of entries.
    pub fn entries(&self) -> usize {
        self.lists.len()
    }

    /// Sets entry `index`. Turning a list into something else forgets its items; its chunks are the
    /// caller's to free once the worker has ended the invocation.
    pub fn set(&mut self, index: usize, entry: Entry) {
        self.lists[index] = None;
        store(&self.part, HEADER_BYTES + index * ENTRY_BYTES, Loaded::Entry(entry));
    }

    /// Makes entry `index` an empty list of which more will be known.
    pub fn set_list(&mut self, index: usize) {
        self.lists[index] =
            Some(ListState { chain: ChainWriter::new(ENTRY_BYTES), head: None, pinned: false });
        self.publish(index);
    }

    /// Appends an item to the list `index` and returns its number. Call [`TableWriter::set_list`]
    /// before.
    pub fn append(&mut self, index: usize, entry: Entry) -> Result<u32, ChunkNeeded> {
        let list = self.list(index);
        if let Some(bytes) = list.chain.need(LIST_BYTES_MIN) {
            return Err(ChunkNeeded { bytes });
        }
        let (item, part, at) = list.chain.append().ok_or(ChunkNeeded { bytes: LIST_BYTES_MIN })?;
        store(part, at, Loaded::Entry(entry));
        self.publish(index);
        Ok(item)
    }

    /// Gives the list `index` memory for further items, as [`ChunkNeeded`] asked: in the same
    /// state as a table's (no worker can write it).
    pub fn add_chunk(&mut self, index: usize, chunk: PartMut) {
        let list = self.list(index);
        if let Some(head) = list.chain.add(chunk) {
            list.head = Some(head);
        }
    }

    /// Changes item `item` of the list `index`. Panics if there is no such item.
    pub fn set_item(&mut self, index: usize, item: u32, entry: Entry) {
        let (part, at) = self.list(index).chain.entry(item).expect("the item was appended before");
        store(part, at, Loaded::Entry(entry));
    }

    /// Items of the list `index` so far; 0 if it is no list.
    pub fn count(&self, index: usize) -> u32 {
        self.lists[index].as_ref().map_or(0, |list| list.chain.count())
    }

    /// The list `index` will have no further items.
    pub fn pin(&mut self, index: usize) {
        self.list(index).pinned = true;
        self.publish(index);
    }

    /// Wakes the worker if it sleeps on this table. After each batch of changes.
    pub fn wake(&self) {
        self.part.bump_and_wake(AT_SEQ);
    }

    fn list(&mut self, index: usize) -> &mut ListState {
        self.lists[index].as_mut().expect("set_list was called for this entry")
    }

    fn publish(&mut self, index: usize) {
        let list = self.list(index);
        let loaded = Loaded::List { head: list.head, count: list.chain.count(), pinned: list.pinned };
        store(&self.part, HEADER_BYTES + index * ENTRY_BYTES, loaded);
    }
}

fn store(part: &PartMut, at: usize, value: Loaded) {
    let (mut kind, mut extent, mut port, mut item) = (KIND_PENDING, Extent::default(), 0, None);
    let (mut count, mut pinned) = (0, false);
    match value {
        Loaded::Entry(Entry::Pending) => {}
        Loaded::Entry(Entry::Sealed(object)) => (kind, extent) = (KIND_SEALED, object),
        Loaded::Entry(Entry::Page { page, port: p, item: i }) => {
            (kind, extent, port, item) = (KIND_PAGE, page, p, i);
        }
        Loaded::Entry(Entry::Follow { page, port: p }) => (kind, extent, port) = (KIND_FOLLOW, page, p),
        Loaded::Entry(Entry::Null) => kind = KIND_NULL,
        Loaded::Entry(Entry::Failed) => kind = KIND_FAILED,
        Loaded::List { head, count: c, pinned: p } => {
            (kind, extent, count, pinned) = (KIND_LIST, head.unwrap_or_default(), c, p);
        }
    }
    let generation = part.word(at + GENERATION).load(Ordering::Relaxed);
    part.word(at + GENERATION).store(generation.wrapping_add(1), Ordering::Relaxed);
    fence(Ordering::Release);
    part.word(at + KIND).store(kind, Ordering::Relaxed);
    part.word(at + SEGMENT).store(extent.segment.0, Ordering::Relaxed);
    part.word(at + PORT).store(u32::from(port), Ordering::Relaxed);
    part.double(at + OFFSET).store(extent.offset, Ordering::Relaxed);
    part.double(at + BYTES).store(extent.bytes, Ordering::Relaxed);
    part.word(at + ITEM).store(item.unwrap_or(0), Ordering::Relaxed);
    part.word(at + HAS_ITEM).store(u32::from(item.is_some()), Ordering::Relaxed);
    part.word(at + COUNT).store(count, Ordering::Relaxed);
    part.word(at + PINNED).store(u32::from(pinned), Ordering::Relaxed);
    part.word(at + GENERATION).store(generation.wrapping_add(2), Ordering::Release);
}

/// Reads an entry and its generation; spins while the node is writing it (nanoseconds).
fn load(part: &Part, at: usize) -> Option<(u32, Loaded)> {
    // A writer that dies half-way takes this process along; the bound is for a corrupted table.
    for _ in 0..1_000_000 {
        let generation = part.word(at + GENERATION).load(Ordering::Acquire);
        if !generation.is_multiple_of(2) {
            core::hint::spin_loop();
            continue;
        }
        let word = |offset| part.word(at + offset).load(Ordering::Relaxed);
        let double = |offset| part.double(at + offset).load(Ordering::Relaxed);
        let kind = word(KIND);
        let extent =
            Extent { segment: SegmentId(word(SEGMENT)), offset: double(OFFSET), bytes: double(BYTES) };
        let (port, count, pinned) = (word(PORT) as u16, word(COUNT), word(PINNED) == 1);
        let item = (word(HAS_ITEM) == 1).then(|| word(ITEM));
        fence(Ordering::Acquire);
        if part.word(at + GENERATION).load(Ordering::Relaxed) != generation {
            continue;
        }
        let loaded = match kind {
            KIND_PENDING => Loaded::Entry(Entry::Pending),
            KIND_SEALED => Loaded::Entry(Entry::Sealed(extent)),
            KIND_PAGE => Loaded::Entry(Entry::Page { page: extent, port, item }),
            KIND_FOLLOW => Loaded::Entry(Entry::Follow { page: extent, port }),
            KIND_NULL => Loaded::Entry(Entry::Null),
            KIND_FAILED => Loaded::Entry(Entry::Failed),
            KIND_LIST => Loaded::List { head: (extent.bytes > 0).then_some(extent), count, pinned },
            _ => return None,
        };
        return Some((generation, loaded));
    }
    None
}

/// How much of an object a reader needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// All of it.
    Sealed,
    /// At least this many bytes from its beginning, or all of it if it is shorter.
    Bytes(u64),
}

/// What a reader found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A complete object.
    Sealed(Extent),
    /// An object that still grows.
    Growing {
        /// Where it grows.
        extent: Extent,
        /// Bytes readable so far.
        watermark: u64,
    },
    /// The source was skipped.
    Null,
    /// The source will never be.
    Failed,
    /// The list has only `count` items.
    End {
        /// Its pinned length.
        count: u32,
    },
}

/// A look at an input: what it is, or where to sleep until it may have changed.
#[derive(Debug)]
pub enum Look {
    /// Found.
    Ready(Found),
    /// Not yet.
    Wait(WaitOn),
}

/// A word to sleep on, as it was before the look that was in vain.
#[derive(Debug)]
pub struct WaitOn {
    part: Part,
    at: usize,
    seq: u32,
    /// The change is microseconds away ([`SlotState::Sealing`]): worth spinning for even where
    /// spinning is off.
    pub imminent: bool,
}

impl WaitOn {
    /// Whether the word has moved since the look.
    pub fn changed(&self) -> bool {
        self.part.word(self.at).load(Ordering::Acquire) != self.seq
    }

    /// Sleeps until it moves, for at most `timeout`; may return early.
    pub fn sleep(&self, timeout: Duration) {
        self.part.wait(self.at, self.seq, timeout);
    }
}

/// The table or a page it leads to is not well-formed, or names a segment this process does not
/// have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("input {index}: {what}")]
pub struct BadTable {
    /// Index of the entry.
    pub index: u32,
    /// What is wrong.
    pub what: &'static str,
}

/// The worker's side. Every method is one look that never blocks.
#[derive(Debug)]
pub struct TableReader {
    part: Part,
    entries: u32,
}

impl TableReader {
    /// The table in `part`, or `None` if there is none.
    pub fn attach(part: Part) -> Option<TableReader> {
        if part.bytes() < HEADER_BYTES || part.word(AT_MAGIC).load(Ordering::Acquire) != MAGIC {
            return None;
        }
        let entries = part.word(AT_ENTRIES).load(Ordering::Relaxed);
        (TableWriter::bytes_for(entries as usize) <= part.bytes() as u64)
            .then_some(TableReader { part, entries })
    }

    /// Looks at a single object.
    pub fn object(&self, maps: &dyn Maps, index: u32, want: Want) -> Result<Look, BadTable> {
        let at = self.at(index)?;
        self.look(maps, index, &self.part, at, want)
    }

    /// Looks at item `item` of a list; [`Found::End`] if the list is shorter.
    pub fn item(&self, maps: &dyn Maps, index: u32, item: u32, want: Want) -> Result<Look, BadTable> {
        let at = self.at(index)?;
        loop {
            let seq = self.seq();
            let (generation, loaded) = self.load(index, at)?;
            match loaded {
                Loaded::List { count, pinned: true, .. } if item >= count => {
                    return Ok(Look::Ready(Found::End { count }));
                }
                Loaded::List { count, .. } if item >= count => return Ok(self.wait(seq)),
                Loaded::List { head, .. } => {
                    let found = head.and_then(|head| chain::locate(maps, head, ENTRY_BYTES, item));
                    match found {
                        Some((part, at)) => return self.look(maps, index, &part, at, want),
                        None if self.stands(at, generation) => {
                            return Err(BadTable { index, what: "its list is damaged" });
                        }
                        None => {}
                    }
                }
                Loaded::Entry(Entry::Follow { page, port }) => {
                    let page = self.page(maps, index, page)?;
                    let page_seq = page.seq();
                    let list = page.list(port);
                    let view = page.item(maps, port, item);
                    fence(Ordering::Acquire);
                    if !self.stands(at, generation) {
                        continue;
                    }
                    let (state, count, pinned) =
                        list.ok_or(BadTable { index, what: "its producer's page is damaged" })?;
                    match state {
                        SlotState::Moved | SlotState::Failed => return Ok(self.wait(seq)),
                        _ if item >= count && pinned => return Ok(Look::Ready(Found::End { count })),
                        _ => {}
                    }
                    let view =
                        view.ok_or(BadTable { index, what: "its producer's item index is damaged" })?;
                    return Ok(match show(view, want) {
                        Shown::Found(found) => Look::Ready(found),
                        Shown::Wait { imminent } => wait_on_page(&page, page_seq, imminent),
                        Shown::Elsewhere => self.wait(seq),
                    });
                }
                Loaded::Entry(entry) => return self.plain(index, entry, seq),
            }
        }
    }

    /// Looks at the length of a list: [`Found::End`] once it is pinned.
    pub fn length(&self, maps: &dyn Maps, index: u32) -> Result<Look, BadTable> {
        let at = self.at(index)?;
        loop {
            let seq = self.seq();
            let (generation, loaded) = self.load(index, at)?;
            match loaded {
                Loaded::List { count, pinned: true, .. } => return Ok(Look::Ready(Found::End { count })),
                Loaded::List { .. } => return Ok(self.wait(seq)),
                Loaded::Entry(Entry::Follow { page, port }) => {
                    let page = self.page(maps, index, page)?;
                    let page_seq = page.seq();
                    let list = page.list(port);
                    fence(Ordering::Acquire);
                    if !self.stands(at, generation) {
                        continue;
                    }
                    return Ok(
                        match list.ok_or(BadTable { index, what: "its producer's page is damaged" })? {
                            (SlotState::Moved | SlotState::Failed, ..) => self.wait(seq),
                            (_, count, true) => Look::Ready(Found::End { count }),
                            _ => wait_on_page(&page, page_seq, false),
                        },
                    );
                }
                Loaded::Entry(entry) => return self.plain(index, entry, seq),
            }
        }
    }

    /// An entry that stands where a list should: the node has not linked it yet, or it is none.
    fn plain(&self, index: u32, entry: Entry, seq: u32) -> Result<Look, BadTable> {
        match entry {
            Entry::Pending => Ok(self.wait(seq)),
            Entry::Null => Ok(Look::Ready(Found::Null)),
            Entry::Failed => Ok(Look::Ready(Found::Failed)),
            Entry::Sealed(_) | Entry::Page { .. } | Entry::Follow { .. } => {
                Err(BadTable { index, what: "it is one object, not a list" })
            }
        }
    }

    fn look(
        &self,
        maps: &dyn Maps,
        index: u32,
        part: &Part,
        at: usize,
        want: Want,
    ) -> Result<Look, BadTable> {
        loop {
            let seq = self.seq();
            let damaged = BadTable { index, what: "its table entry is damaged" };
            let (generation, loaded) = load(part, at).ok_or(damaged)?;
            let (page, port, item) = match loaded {
                Loaded::Entry(Entry::Pending) => return Ok(self.wait(seq)),
                Loaded::Entry(Entry::Sealed(extent)) => return Ok(Look::Ready(Found::Sealed(extent))),
                Loaded::Entry(Entry::Null) => return Ok(Look::Ready(Found::Null)),
                Loaded::Entry(Entry::Failed) => return Ok(Look::Ready(Found::Failed)),
                Loaded::Entry(Entry::Page { page, port, item }) => (page, port, item),
                Loaded::Entry(Entry::Follow { .. }) | Loaded::List { .. } => {
                    return Err(BadTable { index, what: "it is a list, not one object" });
                }
            };
            let page = self.page(maps, index, page)?;
            let page_seq = page.seq();
            let view = match item {
                None => page.object(port),
                Some(item) => page.item(maps, port, item),
            };
            fence(Ordering::Acquire);
            if part.word(at + GENERATION).load(Ordering::Relaxed) != generation {
                continue;
            }
            let view = view.ok_or(BadTable { index, what: "its producer's page is damaged" })?;
            return Ok(match show(view, want) {
                Shown::Found(found) => Look::Ready(found),
                Shown::Wait { imminent } => wait_on_page(&page, page_seq, imminent),
                Shown::Elsewhere => self.wait(seq),
            });
        }
    }

    fn at(&self, index: u32) -> Result<usize, BadTable> {
        if index >= self.entries {
            return Err(BadTable { index, what: "the table has fewer entries" });
        }
        Ok(HEADER_BYTES + index as usize * ENTRY_BYTES)
    }

    fn load(&self, index: u32, at: usize) -> Result<(u32, Loaded), BadTable> {
        load(&self.part, at).ok_or(BadTable { index, what: "its table entry is damaged" })
    }

    fn stands(&self, at: usize, generation: u32) -> bool {
        self.part.word(at + GENERATION).load(Ordering::Relaxed) == generation
    }

    fn page(&self, maps: &dyn Maps, index: u32, page: Extent) -> Result<PageReader, BadTable> {
        let map =
            maps.map(page.segment).ok_or(BadTable { index, what: "its producer's page is not mapped" })?;
        PageReader::attach(&map, page)
            .map_err(|_| BadTable { index, what: "its producer's page is out of bounds" })
    }

    fn seq(&self) -> u32 {
        self.part.word(AT_SEQ).load(Ordering::Acquire)
    }

    fn wait(&self, seq: u32) -> Look {
        Look::Wait(WaitOn { part: self.part.clone(), at: AT_SEQ, seq, imminent: false })
    }
}

fn wait_on_page(page: &PageReader, seq: u32, imminent: bool) -> Look {
    let (part, at) = page.seq_word();
    Look::Wait(WaitOn { part: part.clone(), at, seq, imminent })
}

enum Shown {
    Found(Found),
    Wait { imminent: bool },
    Elsewhere,
}

fn show(view: ObjectView, want: Want) -> Shown {
    match view.state {
        SlotState::Sealed => Shown::Found(Found::Sealed(view.extent)),
        SlotState::Moved | SlotState::Failed => Shown::Elsewhere,
        SlotState::Empty => Shown::Wait { imminent: false },
        SlotState::Open | SlotState::Sealing => match want {
            Want::Bytes(bytes) if view.watermark >= bytes => {
                Shown::Found(Found::Growing { extent: view.extent, watermark: view.watermark })
            }
            _ => Shown::Wait { imminent: view.state == SlotState::Sealing },
        },
    }
}
