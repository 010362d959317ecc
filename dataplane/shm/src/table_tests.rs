use super::table::*;
use crate::page::{PageNode, PageWriter, Place, SlotState};
use crate::segment::{Map, Segment};
use dflow_proto::ids::{Extent, InvocationId, RunId, SegmentId};
use std::sync::Arc;
use std::time::Duration;

const TABLE: Extent = Extent { segment: SegmentId(0), offset: 4096, bytes: 4096 };
const ALLOTMENT: Extent = Extent { segment: SegmentId(0), offset: 8192, bytes: 65536 };

fn at(offset: u64, bytes: u64) -> Extent {
    Extent { segment: SegmentId(0), offset, bytes }
}

struct Bench {
    map: Arc<Map>,
    writer: TableWriter,
    reader: TableReader,
    next: u64,
}

impl Bench {
    fn new() -> Bench {
        let segment = Segment::create(SegmentId(0), "test", 16 << 20).expect("a memfd");
        let map = segment.map_node().expect("maps");
        let writer = TableWriter::begin(map.part_mut(TABLE).expect("fits"), 3);
        let readonly = segment.map_readonly().expect("maps");
        let reader = TableReader::attach(readonly.part(TABLE).expect("fits")).expect("a table");
        Bench { map, writer, reader, next: 1 << 20 }
    }

    fn producer(&self) -> (PageNode, PageWriter) {
        let id = InvocationId { step: 0, item: 0 };
        let node = PageNode::begin(&self.map, ALLOTMENT, RunId(1), id, 1).expect("fits");
        let page = PageWriter::attach(&self.map.part_mut(ALLOTMENT).expect("fits"), 2).expect("a page");
        (node, page)
    }

    fn maps(&self) -> impl Fn(SegmentId) -> Option<Arc<Map>> + use<> {
        let map = self.map.clone();
        move |id| (id == SegmentId(0)).then(|| map.clone())
    }

    fn object(&self, want: Want) -> Look {
        self.reader.object(&self.maps(), 0, want).expect("well-formed")
    }

    fn item(&self, item: u32) -> Look {
        self.reader.item(&self.maps(), 1, item, Want::Sealed).expect("well-formed")
    }

    fn append(&mut self, entry: Entry) {
        if let Err(ChunkNeeded { bytes }) = self.writer.append(1, entry) {
            let chunk = self.map.part_mut(at(self.next, bytes)).expect("fits");
            self.next += bytes;
            self.writer.add_chunk(1, chunk);
            self.writer.append(1, entry).expect("there is room now");
        }
    }
}

fn ready(look: Look) -> Option<Found> {
    match look {
        Look::Ready(found) => Some(found),
        Look::Wait(_) => None,
    }
}

#[test]
fn an_entry_leads_to_the_page_and_back() {
    let mut bench = Bench::new();
    let (node, page) = bench.producer();
    let Look::Wait(on_table) = bench.object(Want::Sealed) else { panic!("pending") };
    bench.writer.set(0, Entry::Page { page: ALLOTMENT, port: 1, item: None });
    bench.writer.wake();
    assert!(on_table.changed());
    let Look::Wait(on_page) = bench.object(Want::Sealed) else { panic!("empty") };
    let place = Place { port: 1, item: None };
    page.open(place, at(16384, 1000));
    page.advance(place, 10);
    assert!(on_page.changed());
    let growing = Found::Growing { extent: at(16384, 1000), watermark: 10 };
    assert_eq!(ready(bench.object(Want::Bytes(10))), Some(growing));
    assert_eq!(ready(bench.object(Want::Bytes(11))), None);
    page.seal(place, at(16384, 20), true, || Ok::<(), ()>(())).expect("seals");
    assert_eq!(ready(bench.object(Want::Bytes(500))), Some(Found::Sealed(at(16384, 20))));
    // The invocation ends: the node knows the object itself, and then the page may go.
    bench.writer.set(0, Entry::Sealed(at(16384, 20)));
    node.poke(SlotState::Moved);
    assert_eq!(ready(bench.object(Want::Sealed)), Some(Found::Sealed(at(16384, 20))));
}

#[test]
fn a_dead_producer_sends_readers_back_to_the_table() {
    let mut bench = Bench::new();
    let (node, _page) = bench.producer();
    bench.writer.set(0, Entry::Page { page: ALLOTMENT, port: 0, item: None });
    let Look::Wait(on_page) = bench.object(Want::Sealed) else { panic!("empty") };
    let maps = bench.maps();
    let reader = bench.reader;
    let thread = std::thread::spawn(move || {
        let mut wait = on_page;
        loop {
            wait.sleep(Duration::from_secs(10));
            match reader.object(&maps, 0, Want::Sealed).expect("well-formed") {
                Look::Ready(found) => return found,
                Look::Wait(next) => wait = next,
            }
        }
    });
    bench.writer.set(0, Entry::Pending);
    bench.writer.wake();
    node.poke(SlotState::Failed);
    bench.writer.set(0, Entry::Failed);
    bench.writer.wake();
    assert_eq!(thread.join().expect("no panic"), Found::Failed);
}

#[test]
fn a_list_grows_and_is_pinned() {
    let mut bench = Bench::new();
    assert_eq!(ready(bench.item(0)), None, "not linked yet");
    bench.writer.set_list(1);
    assert_eq!(ready(bench.reader.length(&bench.maps(), 1).expect("well-formed")), None);
    for n in 0..300 {
        bench.append(if n % 2 == 0 { Entry::Pending } else { Entry::Sealed(at(n, 1)) });
    }
    assert_eq!(ready(bench.item(0)), None);
    bench.writer.set_item(1, 0, Entry::Sealed(at(5, 6)));
    assert_eq!(ready(bench.item(0)), Some(Found::Sealed(at(5, 6))));
    assert_eq!(ready(bench.item(299)), Some(Found::Sealed(at(299, 1))));
    assert_eq!(ready(bench.item(300)), None);
    bench.writer.pin(1);
    assert_eq!(ready(bench.item(300)), Some(Found::End { count: 300 }));
    assert_eq!(ready(bench.reader.length(&bench.maps(), 1).expect("ok")), Some(Found::End { count: 300 }));
    assert!(bench.reader.object(&bench.maps(), 1, Want::Sealed).is_err(), "a list is not one object");
}

#[test]
fn a_followed_list_comes_from_the_page() {
    let mut bench = Bench::new();
    let (node, mut page) = bench.producer();
    bench.writer.set(1, Entry::Follow { page: ALLOTMENT, port: 0 });
    let Look::Wait(on_page) = bench.item(0) else { panic!("no item yet") };
    page.add_chunk(0, bench.map.part_mut(at(16384, 1024)).expect("fits"));
    let place = page.append(0).expect("room");
    page.put(place, at(20480, 3));
    assert!(on_page.changed());
    assert_eq!(ready(bench.item(0)), Some(Found::Sealed(at(20480, 3))));
    assert_eq!(ready(bench.item(1)), None);
    page.pin(0);
    assert_eq!(ready(bench.item(1)), Some(Found::End { count: 1 }));
    assert_eq!(ready(bench.reader.length(&bench.maps(), 1).expect("ok")), Some(Found::End { count: 1 }));
    node.poke(SlotState::Moved);
    assert_eq!(ready(bench.item(0)), None, "moved: the table says where");
}

#[test]
fn a_damaged_table_is_an_error() {
    let bench = Bench::new();
    assert!(bench.reader.object(&bench.maps(), 3, Want::Sealed).is_err(), "no such entry");
    let mut other = Bench::new();
    other.writer.set(0, Entry::Page { page: at(1 << 40, 0), port: 0, item: None });
    assert!(other.reader.object(&other.maps(), 0, Want::Sealed).is_err(), "out of bounds");
    other.writer.set(0, Entry::Page { page: at(1 << 20, 0), port: 0, item: None });
    assert!(other.reader.object(&other.maps(), 0, Want::Sealed).is_err(), "no page there");
}
