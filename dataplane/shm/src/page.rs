//! The invocation page: where a running invocation's outputs are, as its readers see it.
//!
//! It is the first page of the invocation's allotment. The node clears it before the worker or
//! any reader knows of it ([`PageNode::begin`]); the worker writes it while it runs
//! ([`PageWriter`]); every process of the domain reads it ([`PageReader`]); the node pokes it when
//! the worker can no longer speak for it ([`PageNode::poke`]).
//!
//! Readers sleep on the page's `seq`, which moves with every change, so that a hand-over is one
//! wake, from the producer straight to the reader. A seal does not keep readers waiting for the
//! withdrawal of the producer's mapping: if the producer has one thread, that cannot write while it
//! seals; else the slot goes to `Sealing`, readers are woken, the pages are withdrawn, and the slot
//! goes to `Sealed`, most often before the reader is back on its processor.

use crate::chain::{self, ChainWriter};
use crate::segment::{Map, Maps, OutOfBounds, Part, PartMut};
use core::sync::atomic::Ordering;
use dflow_proto::ids::{Extent, InvocationId, RunId, SegmentId};
use dflow_proto::limits::{OUTPUT_PORTS_MAX, PAGE_BYTES};
use std::sync::Arc;

const MAGIC: u32 = 0x4446_5031; // "DFP1"
const AT_MAGIC: usize = 0;
const AT_SEQ: usize = 4;
const AT_RUN: usize = 8;
const AT_STEP: usize = 16;
const AT_ITEM: usize = 20;
const AT_ATTEMPT: usize = 24;
const SLOTS: usize = 256;
const SLOT_BYTES: usize = 64;
const _: () = assert!(SLOTS + SLOT_BYTES * OUTPUT_PORTS_MAX <= PAGE_BYTES as usize);

// Offsets of an object's fields: the same in a slot and in an item of the index.
const STATE: usize = 0;
const SEGMENT: usize = 4;
const OFFSET: usize = 8;
const BYTES: usize = 16;
const WATERMARK: usize = 24;
/// Length of an item of the index.
const ITEM_BYTES: usize = 32;
// Further fields of the slot of a `many` port.
const COUNT: usize = 32;
const PINNED: usize = 36;
const INDEX_SEGMENT: usize = 40;
const INDEX_SET: usize = 44;
const INDEX_OFFSET: usize = 48;
const INDEX_BYTES: usize = 56;

/// The first chunk of an item index, in bytes: 30 items.
const INDEX_BYTES_MIN: u64 = 1024;

/// What a slot, or an item of a `many` port, holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SlotState {
    /// Nothing yet.
    Empty = 0,
    /// An object that grows.
    Open = 1,
    /// All bytes are there; the writer is about to lose its mapping. Lasts microseconds.
    Sealing = 2,
    /// An object, for ever.
    Sealed = 3,
    /// The page no longer speaks for it: the reader's table says more.
    Moved = 4,
    /// The producer is dead: the reader's table says more.
    Failed = 5,
}

impl SlotState {
    fn from_word(word: u32) -> Option<SlotState> {
        use SlotState::{Empty, Failed, Moved, Open, Sealed, Sealing};
        [Empty, Open, Sealing, Sealed, Moved, Failed].into_iter().find(|state| *state as u32 == word)
    }
}

/// One object as a page shows it at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectView {
    /// Its state.
    pub state: SlotState,
    /// Where it is; `bytes` is its length once `Sealing` or `Sealed`, its room while `Open`.
    pub extent: Extent,
    /// Bytes readable so far.
    pub watermark: u64,
}

fn load_object(part: &Part, at: usize) -> Option<ObjectView> {
    let state = SlotState::from_word(part.word(at + STATE).load(Ordering::Acquire))?;
    let watermark = part.double(at + WATERMARK).load(Ordering::Acquire);
    let extent = Extent {
        segment: SegmentId(part.word(at + SEGMENT).load(Ordering::Relaxed)),
        offset: part.double(at + OFFSET).load(Ordering::Relaxed),
        bytes: part.double(at + BYTES).load(Ordering::Relaxed),
    };
    // A page that lies about its watermark must not lead a reader out of the object.
    Some(ObjectView { state, extent, watermark: watermark.min(extent.bytes) })
}

fn store_object(part: &PartMut, at: usize, extent: Extent, watermark: u64, state: SlotState) {
    part.word(at + SEGMENT).store(extent.segment.0, Ordering::Relaxed);
    part.double(at + OFFSET).store(extent.offset, Ordering::Relaxed);
    part.double(at + BYTES).store(extent.bytes, Ordering::Relaxed);
    part.double(at + WATERMARK).store(watermark, Ordering::Release);
    part.word(at + STATE).store(state as u32, Ordering::Release);
}

fn slot_at(port: u16) -> usize {
    assert!((port as usize) < OUTPUT_PORTS_MAX, "output port {port} beyond {OUTPUT_PORTS_MAX}");
    SLOTS + port as usize * SLOT_BYTES
}

fn page_extent(at: Extent) -> Extent {
    Extent { bytes: PAGE_BYTES, ..at }
}

/// A reader's view of a page.
#[derive(Clone, Debug)]
pub struct PageReader {
    part: Part,
}

impl PageReader {
    /// The page at the first byte of `at`.
    pub fn attach(map: &Arc<Map>, at: Extent) -> Result<PageReader, OutOfBounds> {
        Ok(PageReader { part: map.part(page_extent(at))? })
    }

    /// The value to sleep on: read it *before* looking at slots.
    pub fn seq(&self) -> u32 {
        self.part.word(AT_SEQ).load(Ordering::Acquire)
    }

    /// The word that moves with every change, for sleeping: part and offset.
    pub fn seq_word(&self) -> (&Part, usize) {
        (&self.part, AT_SEQ)
    }

    /// The object of a plain or stream port. `None` if the page is no page.
    pub fn object(&self, port: u16) -> Option<ObjectView> {
        if port as usize >= OUTPUT_PORTS_MAX || self.part.word(AT_MAGIC).load(Ordering::Acquire) != MAGIC {
            return None;
        }
        load_object(&self.part, slot_at(port))
    }

    /// State of a `many` port: its slot's state (`Moved` and `Failed` matter), number of items so
    /// far and whether it is final. `None` if the page is no page.
    pub fn list(&self, port: u16) -> Option<(SlotState, u32, bool)> {
        let state = self.object(port)?.state;
        let at = slot_at(port);
        let pinned = self.part.word(at + PINNED).load(Ordering::Acquire) == 1;
        let count = self.part.word(at + COUNT).load(Ordering::Acquire);
        Some((state, count, pinned))
    }

    /// Item `index` of a `many` port, if the port has published it.
    pub fn item(&self, maps: &dyn Maps, port: u16, index: u32) -> Option<ObjectView> {
        let (state, count, _) = self.list(port)?;
        if matches!(state, SlotState::Moved | SlotState::Failed) || index >= count {
            return Some(ObjectView {
                state: if index >= count && state != SlotState::Failed { SlotState::Empty } else { state },
                extent: Extent::default(),
                watermark: 0,
            });
        }
        let at = slot_at(port);
        if self.part.word(at + INDEX_SET).load(Ordering::Acquire) != 1 {
            return None;
        }
        let head = Extent {
            segment: SegmentId(self.part.word(at + INDEX_SEGMENT).load(Ordering::Relaxed)),
            offset: self.part.double(at + INDEX_OFFSET).load(Ordering::Relaxed),
            bytes: self.part.double(at + INDEX_BYTES).load(Ordering::Relaxed),
        };
        let (part, at) = chain::locate(maps, head, ITEM_BYTES, index)?;
        load_object(&part, at)
    }

    /// The run, invocation and attempt that the page says it belongs to, for messages.
    pub fn identity(&self) -> (RunId, InvocationId, u32) {
        let word = |at| self.part.word(at).load(Ordering::Relaxed);
        let run = RunId(self.part.double(AT_RUN).load(Ordering::Relaxed));
        (run, InvocationId { step: word(AT_STEP), item: word(AT_ITEM) }, word(AT_ATTEMPT))
    }
}

/// The node's handle of a page.
#[derive(Clone, Debug)]
pub struct PageNode {
    part: PartMut,
}

impl PageNode {
    /// Clears the page at the first byte of `allotment` for a new attempt. Before this, what lies
    /// there belongs to someone else; do it before the worker is invoked and before any table
    /// names the page.
    pub fn begin(
        map: &Arc<Map>,
        allotment: Extent,
        run: RunId,
        invocation: InvocationId,
        attempt: u32,
    ) -> Result<PageNode, OutOfBounds> {
        let part = map.part_mut(page_extent(allotment))?;
        part.clear();
        part.double(AT_RUN).store(run.0, Ordering::Relaxed);
        part.word(AT_STEP).store(invocation.step, Ordering::Relaxed);
        part.word(AT_ITEM).store(invocation.item, Ordering::Relaxed);
        part.word(AT_ATTEMPT).store(attempt, Ordering::Relaxed);
        part.word(AT_MAGIC).store(MAGIC, Ordering::Release);
        Ok(PageNode { part })
    }

    /// Marks all ports `Moved` or `Failed` and wakes every reader. The worker must be gone or have
    /// ended the invocation; the readers' tables must already say what holds instead, and the
    /// allotment may be reused only after this.
    pub fn poke(&self, state: SlotState) {
        for port in 0..OUTPUT_PORTS_MAX as u16 {
            self.part.word(slot_at(port) + STATE).store(state as u32, Ordering::Release);
        }
        self.part.bump_and_wake(AT_SEQ);
    }

    /// Reads it as any process would.
    pub fn reader(&self) -> PageReader {
        PageReader { part: (*self.part).clone() }
    }
}

/// The worker's handle of its page. Every method that changes what a reader may wait for also
/// wakes the readers.
#[derive(Debug)]
pub struct PageWriter {
    part: PartMut,
    indexes: Vec<Option<ChainWriter>>,
}

/// Where an object is being written: a port, or an item of a `many` port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Output port.
    pub port: u16,
    /// Item of a `many` port.
    pub item: Option<u32>,
}

impl PageWriter {
    /// Takes over the page that the node has begun, in the worker's opened allotment. Returns
    /// `None` if that is no page.
    pub fn attach(allotment: &PartMut, ports: usize) -> Option<PageWriter> {
        if allotment.bytes() < PAGE_BYTES as usize || ports > OUTPUT_PORTS_MAX {
            return None;
        }
        let part = allotment.clone();
        if part.word(AT_MAGIC).load(Ordering::Acquire) != MAGIC {
            return None;
        }
        Some(PageWriter { part, indexes: (0..ports).map(|_| None).collect() })
    }

    /// Bytes of the index chunk that [`PageWriter::add_chunk`] must be given before the next item
    /// of `port`; `None` if there is room.
    pub fn chunk_needed(&self, port: u16) -> Option<u64> {
        match &self.indexes[port as usize] {
            None => Some(INDEX_BYTES_MIN),
            Some(index) => index.need(INDEX_BYTES_MIN),
        }
    }

    /// Gives the item index of `port` further room.
    pub fn add_chunk(&mut self, port: u16, chunk: PartMut) {
        let index = self.indexes[port as usize].get_or_insert_with(|| ChainWriter::new(ITEM_BYTES));
        if let Some(head) = index.add(chunk) {
            let at = slot_at(port);
            self.part.word(at + INDEX_SEGMENT).store(head.segment.0, Ordering::Relaxed);
            self.part.double(at + INDEX_OFFSET).store(head.offset, Ordering::Relaxed);
            self.part.double(at + INDEX_BYTES).store(head.bytes, Ordering::Relaxed);
            self.part.word(at + INDEX_SET).store(1, Ordering::Release);
        }
    }

    /// The next item of a `many` port; `None` if its index needs a chunk first.
    pub fn append(&mut self, port: u16) -> Option<Place> {
        let (item, part, at) = self.indexes[port as usize].as_mut()?.append()?;
        part.word(at + STATE).store(SlotState::Empty as u32, Ordering::Relaxed);
        Some(Place { port, item: Some(item) })
    }

    /// Shows an object that will grow inside `extent`. Wakes nobody: there is nothing to read yet.
    pub fn open(&self, place: Place, extent: Extent) {
        let (part, at) = self.locate(place);
        store_object(part, at, extent, 0, SlotState::Open);
        self.publish(place);
    }

    /// Moves the watermark of an open object and wakes its readers.
    pub fn advance(&self, place: Place, watermark: u64) {
        let (part, at) = self.locate(place);
        part.double(at + WATERMARK).store(watermark, Ordering::Release);
        self.part.bump_and_wake(AT_SEQ);
    }

    /// Shows a complete object to whose bytes the function never had a pointer.
    pub fn put(&self, place: Place, extent: Extent) {
        let (part, at) = self.locate(place);
        store_object(part, at, extent, extent.bytes, SlotState::Sealed);
        self.publish(place);
        self.part.bump_and_wake(AT_SEQ);
    }

    /// Seals an open object, whose writable mapping `withdraw` takes away.
    ///
    /// If nobody but the caller could write to it meanwhile (`alone`: the process has one thread, and
    /// that is in here until the mapping is gone), readers are let in at once, and the hand-over costs
    /// the same for a gigabyte as for a page. Else they are woken, the mapping is withdrawn while they
    /// come, and then they are let in.
    pub fn seal<E>(
        &self,
        place: Place,
        extent: Extent,
        alone: bool,
        withdraw: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let (part, at) = self.locate(place);
        let state = if alone { SlotState::Sealed } else { SlotState::Sealing };
        store_object(part, at, extent, extent.bytes, state);
        self.publish(place);
        self.part.bump_and_wake(AT_SEQ);
        let result = withdraw();
        if !alone && result.is_ok() {
            part.word(at + STATE).store(SlotState::Sealed as u32, Ordering::Release);
            // Readers that came back meanwhile spin for a moment before they sleep again; this wake is
            // for those whose patience ended, and a cheap system call if there are none.
            self.part.bump_and_wake(AT_SEQ);
        }
        result
    }

    /// The number of items of a `many` port is final.
    pub fn pin(&self, port: u16) -> u32 {
        let count = self.indexes[port as usize].as_ref().map_or(0, ChainWriter::count);
        let at = slot_at(port);
        self.part.word(at + COUNT).store(count, Ordering::Release);
        self.part.word(at + PINNED).store(1, Ordering::Release);
        self.part.word(at + STATE).store(SlotState::Sealed as u32, Ordering::Release);
        self.part.bump_and_wake(AT_SEQ);
        count
    }

    fn locate(&self, place: Place) -> (&PartMut, usize) {
        match place.item {
            None => (&self.part, slot_at(place.port)),
            Some(item) => self.indexes[place.port as usize]
                .as_ref()
                .and_then(|index| index.entry(item))
                .expect("a Place with an item only comes from append"),
        }
    }

    /// Makes an item visible by counting it.
    fn publish(&self, place: Place) {
        if let Some(item) = place.item {
            let at = slot_at(place.port);
            self.part.word(at + STATE).store(SlotState::Open as u32, Ordering::Relaxed);
            self.part.word(at + COUNT).fetch_max(item + 1, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::Segment;
    use std::time::Duration;

    const ALLOTMENT: Extent = Extent { segment: SegmentId(0), offset: 4096, bytes: 65536 };

    fn page() -> (Arc<Map>, PageNode, PageWriter, PageReader) {
        let segment = Segment::create(SegmentId(0), "test", 1 << 20).expect("a memfd");
        let map = segment.map_node().expect("maps");
        let invocation = InvocationId { step: 3, item: 4 };
        let node = PageNode::begin(&map, ALLOTMENT, RunId(9), invocation, 2).expect("fits");
        let writer = PageWriter::attach(&map.part_mut(ALLOTMENT).expect("fits"), 2).expect("a page");
        let reader = PageReader::attach(&segment.map_readonly().expect("maps"), ALLOTMENT).expect("fits");
        assert_eq!(reader.identity(), (RunId(9), invocation, 2));
        (map, node, writer, reader)
    }

    fn at(offset: u64, bytes: u64) -> Extent {
        Extent { segment: SegmentId(0), offset, bytes }
    }

    #[test]
    fn an_object_goes_through_its_states() {
        let (_, node, writer, reader) = page();
        let place = Place { port: 1, item: None };
        assert_eq!(reader.object(1).expect("a page").state, SlotState::Empty);
        writer.open(place, at(16384, 8192));
        let seq = reader.seq();
        writer.advance(place, 100);
        assert_ne!(reader.seq(), seq);
        let view = reader.object(1).expect("a page");
        assert_eq!((view.state, view.watermark, view.extent.bytes), (SlotState::Open, 100, 8192));
        let mut seen = None;
        for (alone, state) in [(false, SlotState::Sealing), (true, SlotState::Sealed)] {
            writer
                .seal(place, at(16384, 5000), alone, || {
                    seen = reader.object(1).map(|view| view.state);
                    Ok::<(), ()>(())
                })
                .expect("withdraws");
            assert_eq!(seen, Some(state));
        }
        let view = reader.object(1).expect("a page");
        assert_eq!((view.state, view.watermark, view.extent), (SlotState::Sealed, 5000, at(16384, 5000)));
        node.poke(SlotState::Failed);
        assert_eq!(reader.object(1).expect("a page").state, SlotState::Failed);
    }

    #[test]
    fn items_appear_as_they_are_put_and_the_count_is_pinned() {
        let (map, _, mut writer, reader) = page();
        let maps = {
            let map = map.clone();
            move |_| Some(map.clone())
        };
        assert_eq!(reader.item(&maps, 0, 0).expect("a page").state, SlotState::Empty);
        let mut next = 8192;
        for n in 0..500_u64 {
            if let Some(bytes) = writer.chunk_needed(0) {
                writer.add_chunk(0, map.part_mut(at(next, bytes)).expect("fits"));
                next += bytes;
            }
            let place = writer.append(0).expect("there is room");
            writer.put(place, at(n * 8, n));
        }
        assert_eq!(reader.list(0), Some((SlotState::Open, 500, false)));
        for n in 0..500 {
            let view = reader.item(&maps, 0, n).expect("well-formed");
            assert_eq!((view.state, view.extent), (SlotState::Sealed, at(u64::from(n) * 8, u64::from(n))));
        }
        assert_eq!(writer.pin(0), 500);
        assert_eq!(reader.list(0), Some((SlotState::Sealed, 500, true)));
        assert_eq!(writer.pin(1), 0, "no item is a list too");
        assert_eq!(reader.list(1), Some((SlotState::Sealed, 0, true)));
    }

    #[test]
    fn a_sleeping_reader_is_woken_by_a_put() {
        let (_, _, writer, reader) = page();
        let thread = std::thread::spawn(move || {
            loop {
                let seq = reader.seq();
                let view = reader.object(0).expect("a page");
                if view.state == SlotState::Sealed {
                    return view.extent;
                }
                let (part, word) = reader.seq_word();
                part.wait(word, seq, Duration::from_secs(10));
            }
        });
        writer.put(Place { port: 0, item: None }, at(12288, 77));
        assert_eq!(thread.join().expect("no panic"), at(12288, 77));
    }

    #[test]
    fn garbage_is_no_page() {
        let segment = Segment::create(SegmentId(0), "test", 1 << 20).expect("a memfd");
        let map = segment.map_node().expect("maps");
        assert!(PageWriter::attach(&map.part_mut(ALLOTMENT).expect("fits"), 2).is_none());
        let reader = PageReader::attach(&map, ALLOTMENT).expect("fits");
        assert!(reader.object(0).is_none());
        assert!(reader.object(u16::MAX).is_none());
    }
}
