//! The store on real memory, with a directory for a disk.

use dflow_dataplane::{Arena, ArenaConfig, LocalStore, PutError, StoreEvent};
use dflow_proto::ids::{Extent, InvocationId, ObjectKey, RunId};
use dflow_proto::limits::HUGE_BYTES;
use dflow_proto::store::{
    DiskError, Lease, Leased, Limits, ObjectId, Owner, Purpose, Reserve, SealError, Sealed, StoreError,
};
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const RUN: RunId = RunId(1);

fn limits(arena_bytes: u64, spill_bytes: u64) -> Limits {
    Limits { arena_bytes, dedicated_bytes: arena_bytes, spill_bytes, ..Limits::default() }
}

fn store(limits: Limits) -> LocalStore {
    let config = ArenaConfig { bytes: limits.arena_bytes, huge_pages: true, prefault_bytes: 0 };
    LocalStore::new(Arena::new(&config).expect("an arena"), limits)
}

fn owner(step: u32) -> Owner {
    Owner { run: RUN, invocation: InvocationId { step, item: 0 }, attempt: 1 }
}

fn key(step: u32, item: u32) -> ObjectKey {
    ObjectKey { run: RUN, invocation: InvocationId { step, item: 0 }, port: 0, item }
}

/// Bytes that differ between objects and between places in one.
fn pattern(seed: u32, bytes: u64) -> Vec<u8> {
    let mut state = u64::from(seed) << 32 | bytes | 1;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

fn grant(store: &mut LocalStore, step: u32, bytes: u64, purpose: Purpose) -> Extent {
    match store.reserve(owner(step), bytes, purpose) {
        Reserve::Granted(extent) => extent,
        other => panic!("{other:?}"),
    }
}

fn read(store: &mut LocalStore, key: ObjectKey) -> Vec<u8> {
    let Leased::Ready(lease, extent) = store.lease(key) else { panic!("{key:?} is not in memory") };
    let bytes = store.arena().copy_out(extent).expect("readable");
    store.unlease(lease);
    bytes
}

/// The driver: does what a node does with a spill directory.
struct Node {
    store: LocalStore,
    dir: TempDir,
    granted: Vec<Extent>,
    restored: Vec<(ObjectId, Extent)>,
    disk_full: bool,
}

impl Node {
    fn new(arena_bytes: u64) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = store(limits(arena_bytes, 1 << 30));
        Node { store, dir, granted: Vec::new(), restored: Vec::new(), disk_full: false }
    }

    fn path(&self, object: ObjectId) -> PathBuf {
        self.dir.path().join(object.0.to_string())
    }

    fn pump(&mut self) {
        while let Some(event) = self.store.next_event() {
            match event {
                StoreEvent::Granted { extent, .. } => self.granted.push(extent),
                StoreEvent::Restored { object, extent, .. } => self.restored.push((object, extent)),
                StoreEvent::Spill { object, .. } if self.disk_full => {
                    self.store.spilled(object, Err(DiskError::NoSpace));
                }
                StoreEvent::Spill { object, bytes } => {
                    fs::write(self.path(object), &bytes).expect("written");
                    drop(bytes);
                    self.store.spilled(object, Ok(()));
                }
                StoreEvent::Load { object, into } => {
                    let bytes = fs::read(self.path(object)).expect("its copy is there");
                    assert_eq!(bytes.len(), into.bytes());
                    into.copy_in(0, &bytes);
                    self.store.loaded(object, Ok(()));
                }
                StoreEvent::Discard { object } => {
                    fs::remove_file(self.path(object)).expect("its copy is there")
                }
                StoreEvent::Grow { segment, bytes } => {
                    let file = tempfile::tempfile_in(self.dir.path()).expect("a file");
                    file.set_len(bytes).expect("sized");
                    self.store.grown(segment, Ok(OwnedFd::from(file)));
                }
                StoreEvent::Gone { .. } => {}
                StoreEvent::Refused { error, .. } => panic!("{error}"),
                StoreEvent::RestoreFailed { error, .. } => panic!("{error}"),
            }
        }
    }

    fn reserve(&mut self, step: u32, bytes: u64) -> Extent {
        match self.store.reserve(owner(step), bytes, Purpose::Output) {
            Reserve::Granted(extent) => extent,
            Reserve::Waiting(_) => {
                self.pump();
                self.granted.pop().expect("a full store makes room")
            }
            Reserve::Refused(error) => panic!("{error}"),
        }
    }

    fn put(&mut self, step: u32, item: u32, bytes: u64) {
        let extent = Extent { bytes, ..self.reserve(step, bytes) };
        self.store.arena().part_mut(extent).expect("granted").copy_in(0, &pattern(item, bytes));
        self.store.seal(key(step, item), owner(step), extent).expect("sealed");
        self.pump();
    }

    fn lease(&mut self, key: ObjectKey) -> (Lease, Extent) {
        match self.store.lease(key) {
            Leased::Ready(lease, extent) => (lease, extent),
            Leased::Restoring(lease) => {
                self.pump();
                let object = lease.object();
                let found = self.restored.iter().find(|(id, _)| *id == object);
                let extent = found.expect("what was spilled comes back").1;
                (lease, extent)
            }
            Leased::Missing => panic!("{key:?} is missing"),
        }
    }
}

#[test]
fn what_is_put_is_read() {
    let mut store = store(limits(16 * MIB, 0));
    let inputs = Owner::inputs(RUN);
    for (index, bytes) in [0u64, 1, 4095, 4096, 4097, 3 * MIB].into_iter().enumerate() {
        let key = ObjectKey::input(RUN, index as u16);
        let data = pattern(index as u32, bytes);
        store.put_bytes(key, inputs, &data).expect("there is room");
        assert_eq!(read(&mut store, key), data);
    }
    let twice = store.put_bytes(ObjectKey::input(RUN, 0), inputs, b"x");
    assert!(matches!(twice, Err(PutError::Seal(SealError::Already { .. }))));
    let full = store.put_bytes(ObjectKey::input(RUN, 9), inputs, &pattern(0, 13 * MIB));
    assert!(matches!(full, Err(PutError::NoRoom { .. })), "{full:?}");
    let large = store.put_bytes(ObjectKey::input(RUN, 9), inputs, &pattern(0, 17 * MIB));
    assert!(matches!(large, Err(PutError::Store(StoreError::TooLarge { .. }))), "{large:?}");
    store.drop_run(RUN);
    assert_eq!(store.stats().arena_used_bytes, 0);
}

#[test]
fn a_file_is_put_without_a_detour() {
    let mut store = store(limits(16 * MIB, 0));
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    let data = pattern(7, 5 * MIB + 3);
    file.write_all(&data).expect("written");
    let key = ObjectKey::input(RUN, 0);
    store.put_file(key, Owner::inputs(RUN), file.path()).expect("there is room");
    assert_eq!(read(&mut store, key), data);
    let missing = store.put_file(ObjectKey::input(RUN, 1), Owner::inputs(RUN), "/nowhere/at/all".as_ref());
    let Err(error @ PutError::File { .. }) = missing else { panic!("{missing:?}") };
    assert!(error.to_string().starts_with("cannot read /nowhere/at/all: "), "{error}");
}

#[test]
fn a_file_grant_becomes_a_file_of_exactly_its_objects_length() {
    let mut store = store(limits(16 * MIB, 0));
    let extent = grant(&mut store, 1, 10_000, Purpose::File);
    let data = pattern(1, 777);
    store.arena().part_mut(extent).expect("granted").copy_in(0, &data);
    store.seal(key(1, 0), owner(1), Extent { bytes: 777, ..extent }).expect("sealed");
    let (fd, bytes) = store.arena().segment_readonly(extent.segment).expect("it lives");
    let file = File::from(fd);
    assert_eq!((bytes, file.metadata().expect("stat").len()), (777, 777));
    assert_eq!(read(&mut store, key(1, 0)), data);
    let (fd, _) = store.arena().segment(extent.segment).expect("it lives");
    assert!(File::from(fd).set_len(0).is_err(), "its length is fixed");
    assert!((&file).write(b"x").is_err(), "readers cannot write");
    store.release(key(1, 0));
    assert!(store.arena().segment(extent.segment).is_none());
    assert!(matches!(store.next_event(), Some(StoreEvent::Gone { segment }) if segment == extent.segment));
}

#[test]
fn an_adopted_file_that_is_truncated_later_does_not_end_the_node() {
    let mut store = store(limits(16 * MIB, 0));
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&pattern(3, 9000)).expect("written");
    let fd = OwnedFd::from(file.try_clone().expect("cloned"));
    let short = store.adopt(owner(1), fd, 9001);
    assert!(short.is_err(), "shorter than announced");
    let fd = OwnedFd::from(file.try_clone().expect("cloned"));
    let extent = store.adopt(owner(1), fd, 9000).expect("as long as announced");
    store.seal(key(1, 0), owner(1), extent).expect("sealed");
    assert_eq!(read(&mut store, key(1, 0)), pattern(3, 9000));
    file.set_len(10).expect("truncated");
    assert!(store.arena().copy_out(extent).is_err());
    store.drop_owner(owner(1), Sealed::Release);
    assert_eq!(store.stats().dedicated_bytes, 0);
}

#[test]
fn a_segment_the_system_refuses_is_a_refusal() {
    let limits = Limits { dedicated_bytes: u64::MAX, ..limits(16 * MIB, 0) };
    let mut store = store(limits);
    let refused = store.reserve(owner(1), u64::MAX / 2 + 1, Purpose::File);
    assert!(matches!(refused, Reserve::Refused(StoreError::Segment { .. })), "{refused:?}");
    assert_eq!((store.stats().dedicated_bytes, store.stats().grants), (0, 0));
}

#[test]
fn eight_times_the_arena_goes_through_it_and_comes_back_unharmed() {
    let mut node = Node::new(8 * MIB);
    let sizes = [MIB, 300_000, 2 * MIB, 5000, 3 * MIB + 1];
    let count = 50;
    for item in 0..count {
        node.put(1, item, sizes[item as usize % sizes.len()]);
    }
    let stats = node.store.stats();
    assert!(stats.spills > 20 && stats.objects_on_disk > 20, "{stats:?}");
    // Back in another order than they came, some held while others move.
    let mut held = None;
    for n in 0..count {
        let item = n * 7 % count;
        let (lease, extent) = node.lease(key(1, item));
        let bytes = node.store.arena().copy_out(extent).expect("readable");
        assert!(bytes == pattern(item, sizes[item as usize % sizes.len()]), "object {item} changed");
        if let Some(before) = held.replace(lease) {
            node.store.unlease(before);
        }
        node.pump();
    }
    node.store.unlease(held.expect("the last"));
    node.store.drop_run(RUN);
    node.pump();
    let stats = node.store.stats();
    assert_eq!((stats.arena_used_bytes, stats.objects, stats.spilled_bytes), (0, 0, 0));
    assert_eq!(fs::read_dir(node.dir.path()).expect("listed").count(), 0, "copies are left on disk");
}

#[test]
fn an_object_three_times_the_arena_fits() {
    let mut node = Node::new(8 * MIB);
    node.put(1, 0, 24 * MIB);
    assert_eq!(node.store.stats().overflow_bytes, 24 * MIB);
    let (lease, extent) = node.lease(key(1, 0));
    assert!(node.store.arena().copy_out(extent).expect("readable") == pattern(0, 24 * MIB));
    node.store.release(key(1, 0));
    node.store.unlease(lease);
    assert_eq!(node.store.stats().overflow_bytes, 0);
}

#[test]
fn a_full_disk_leaves_what_is_in_memory_alone() {
    let mut node = Node::new(8 * MIB);
    node.put(1, 0, 3 * MIB);
    node.disk_full = true;
    let waiting = node.store.reserve(owner(2), 5 * MIB, Purpose::Output);
    assert!(matches!(waiting, Reserve::Waiting(_)), "{waiting:?}");
    node.pump();
    assert!(node.granted.is_empty());
    assert!(node.store.stalled());
    let Some(StoreEvent::Refused { error, .. }) = node.store.next_event() else { panic!("nobody was told") };
    assert!(error.to_string().contains("no space left"), "{error}");
    assert!(read(&mut node.store, key(1, 0)) == pattern(0, 3 * MIB));
}

#[test]
fn free_memory_goes_back_to_the_system_when_idle() {
    let mut store = store(limits(64 * MIB, 0));
    let inputs = Owner::inputs(RUN);
    store.put_bytes(ObjectKey::input(RUN, 0), inputs, &pattern(1, 24 * MIB)).expect("there is room");
    assert_eq!(store.trim(8 * MIB), 0, "nothing is free at the end");
    store.drop_run(RUN);
    let blocks = |store: &LocalStore| {
        let (fd, _) = store.arena().segment(dflow_dataplane::arena::MAIN).expect("the arena");
        std::os::unix::fs::MetadataExt::blocks(&File::from(fd).metadata().expect("stat")) * 512
    };
    let before = blocks(&store);
    let trimmed = store.trim(8 * MIB);
    assert!(trimmed >= 16 * MIB, "{trimmed}");
    assert!(before - blocks(&store) >= 16 * MIB);
    // And it can be used again.
    store.put_bytes(ObjectKey::input(RUN, 0), inputs, &pattern(2, 24 * MIB)).expect("there is room");
    assert!(read(&mut store, ObjectKey::input(RUN, 0)) == pattern(2, 24 * MIB));
}

#[test]
fn pages_are_touched_ahead_of_their_use() {
    let config = ArenaConfig { bytes: 64 * MIB, huge_pages: true, prefault_bytes: 4 * HUGE_BYTES };
    let mut store = LocalStore::new(Arena::new(&config).expect("an arena"), limits(64 * MIB, 0));
    let reached = |store: &LocalStore, bytes| {
        let since = Instant::now();
        while store.arena().prefaulted() < bytes {
            if since.elapsed() > Duration::from_secs(10) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    };
    if !reached(&store, 4 * HUGE_BYTES) {
        println!("SKIP prefaulting: this kernel has no MADV_POPULATE_WRITE");
        return;
    }
    assert_eq!(store.arena().prefaulted(), 4 * HUGE_BYTES, "no more than was asked for");
    let extent = grant(&mut store, 1, 10 * MIB, Purpose::Output);
    assert!(reached(&store, extent.end()), "it keeps ahead of what is granted");
}
