//! Objects between nodes, over every transport.

use dflow_dataplane::transfer::{Landing, Moved, Mover, Publication};
use dflow_dataplane::transport::faulty::Faults;
use dflow_dataplane::transport::{Config, Epoch, NodeId, Region, Secret, Transport};
use dflow_hwtests::conformance::World;
use dflow_hwtests::conformance::worlds::{Failing, OnTcp, OnUring, Sim};
use dflow_proto::ids::{Extent, InvocationId, ObjectKey, RunId, SegmentId};
use dflow_proto::transfer::{TransferError, TransferLimits};
use dflow_shm::segment::{Map, Segment};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const SEGMENT_BYTES: u64 = 64 << 20;

struct Member<T: Transport> {
    mover: Mover<T>,
    id: NodeId,
    map: Arc<Map>,
    region: Region,
    free_from: u64,
    /// Where objects landed, or were put.
    places: BTreeMap<ObjectKey, Extent>,
    watermarks: BTreeMap<ObjectKey, u64>,
    arrived: BTreeMap<ObjectKey, u64>,
    failed: BTreeMap<ObjectKey, TransferError>,
    void: Vec<(ObjectKey, u32)>,
    released: Vec<ObjectKey>,
}

/// Nodes that move objects, in one thread.
struct Cluster<W: World> {
    world: W,
    members: Vec<Member<W::T>>,
    /// Where each object can be asked for.
    origins: BTreeMap<ObjectKey, usize>,
}

fn key(item: u32) -> ObjectKey {
    ObjectKey {
        run: RunId(u64::from(item % 3)),
        invocation: InvocationId { step: 1, item: 0 },
        port: 0,
        item,
    }
}

fn content(key: ObjectKey, bytes: u64) -> Vec<u8> {
    (0..bytes).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 11) as u8 ^ key.item as u8).collect()
}

fn limits() -> TransferLimits {
    TransferLimits {
        chunk_bytes: 256 << 10,
        window_bytes: 4 << 20,
        peer_window_bytes: 2 << 20,
        ..TransferLimits::default()
    }
}

impl<W: World> Cluster<W> {
    fn new(mut world: W, count: u64) -> Cluster<W> {
        let mut members = Vec::new();
        for id in 1..=count {
            let mut config = Config::new("transfer", NodeId(id), Epoch(1), Secret::new("for tests"));
            config.listen = Some(world.any_address());
            config.checksum = id % 2 == 1;
            let mut mover = Mover::new(world.open(config), limits());
            let segment = Segment::create(SegmentId(id as u32), "transfer", SEGMENT_BYTES).expect("a memfd");
            let map = segment.map_node().expect("maps");
            let region = mover.register(&map);
            members.push(Member {
                mover,
                id: NodeId(id),
                map,
                region,
                free_from: 0,
                places: BTreeMap::new(),
                watermarks: BTreeMap::new(),
                arrived: BTreeMap::new(),
                failed: BTreeMap::new(),
                void: Vec::new(),
                released: Vec::new(),
            });
        }
        let addresses: Vec<_> =
            members.iter().map(|m| (m.id, m.mover.address().expect("it listens"))).collect();
        for member in &mut members {
            for (id, address) in &addresses {
                if *id != member.id {
                    member.mover.add_peer(*id, *address);
                }
            }
        }
        Cluster { world, members, origins: BTreeMap::new() }
    }

    fn step(&mut self) {
        let mut found = false;
        for index in 0..self.members.len() {
            found |= self.poll(index, Duration::ZERO);
        }
        if !found {
            self.poll(0, Duration::from_micros(200));
        }
    }

    fn poll(&mut self, index: usize, wait: Duration) -> bool {
        let member = &mut self.members[index];
        let mut moved = Vec::new();
        member.mover.poll(&mut moved, wait).expect("the event queue works");
        let found = !moved.is_empty();
        for event in moved {
            match event {
                Moved::Reserve { key, attempt, bytes } => {
                    let extent = member.reserve(key, bytes);
                    let landing = Landing { map: member.map.clone(), extent, keep: None };
                    member.mover.granted(key, attempt, Some(landing));
                }
                Moved::Inline { key, bytes, .. } => {
                    let extent = member.reserve(key, bytes.len() as u64);
                    member.map.part_mut(extent).expect("inside").copy_in(0, &bytes);
                    member.arrived.insert(key, bytes.len() as u64);
                }
                Moved::Advanced { key, watermark, .. } => {
                    let before = member.watermarks.insert(key, watermark).unwrap_or(0);
                    assert!(watermark > before, "watermarks only rise");
                }
                Moved::Arrived { key, size, .. } => {
                    member.arrived.insert(key, size);
                }
                Moved::Void { key, attempt } => {
                    member.watermarks.remove(&key);
                    member.void.push((key, attempt));
                }
                Moved::Failed { key, why } => {
                    member.failed.insert(key, why);
                }
                Moved::Seek { key } => {
                    if let Some(origin) = self.origins.get(&key) {
                        member.mover.ask(key, &[NodeId(*origin as u64 + 1)]);
                    }
                }
                Moved::Released { key } => member.released.push(key),
                Moved::Wanted { .. } | Moved::Up { .. } | Moved::Down { .. } | Moved::Said { .. } => {}
            }
        }
        found
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&Cluster<W>) -> bool) {
        let give_up = self.members[0].mover.now().after_ms(60_000);
        while !done(self) {
            self.step();
            assert!(self.members[0].mover.now() < give_up, "did not happen: {what}");
        }
    }

    /// Member `index` holds a growing object of which nothing is there yet.
    fn open(&mut self, index: usize, key: ObjectKey, attempt: u32, capacity_bytes: u64) {
        let member = &mut self.members[index];
        let extent = member.reserve(key, capacity_bytes);
        let publication = Publication {
            attempt,
            region: member.region,
            offset: extent.offset,
            capacity_bytes,
            size: None,
            watermark: 0,
            inline: Vec::new(),
            keep: None,
        };
        member.mover.publish(key, publication);
        self.origins.insert(key, index);
    }

    /// Writes `[from, to)` of an object and moves its watermark.
    fn write(&mut self, index: usize, key: ObjectKey, from: u64, to: u64) {
        let member = &mut self.members[index];
        let bytes = content(key, to);
        let part = member.map.part_mut(member.places[&key]).expect("inside");
        part.copy_in(from as usize, &bytes[from as usize..]);
        member.mover.advance(key, to);
    }

    /// A sealed object.
    fn put(&mut self, index: usize, key: ObjectKey, bytes: u64) {
        self.open(index, key, 1, bytes);
        self.write(index, key, 0, bytes);
        self.members[index].mover.seal(key, bytes);
    }

    fn announce(&mut self, index: usize, key: ObjectKey, to: &[usize]) {
        let nodes: Vec<NodeId> = to.iter().map(|index| self.members[*index].id).collect();
        self.members[index].mover.announce(key, &nodes);
    }

    fn fetch(&mut self, index: usize, key: ObjectKey) {
        let deadline = self.members[index].mover.now().after_ms(50_000);
        self.members[index].mover.fetch(key, deadline);
    }

    fn assert_has(&self, index: usize, key: ObjectKey, bytes: u64) {
        let member = &self.members[index];
        assert_eq!(member.arrived.get(&key), Some(&bytes), "size of {key:?} at {index}");
        let mut have = vec![0; bytes as usize];
        member.map.part(member.places[&key]).expect("inside").copy_out(0, &mut have);
        assert!(have == content(key, bytes), "content of {key:?} at {index}");
    }
}

impl<T: Transport> Member<T> {
    fn reserve(&mut self, key: ObjectKey, bytes: u64) -> Extent {
        let extent = Extent { segment: self.map.segment(), offset: self.free_from, bytes };
        self.free_from += bytes.next_multiple_of(64);
        self.places.insert(key, extent);
        extent
    }
}

fn sizes_of_all_kinds<W: World>(world: W) {
    let mut cluster = Cluster::new(world, 2);
    let sizes = [0, 1, 5000, 70_000, 256 << 10, 5 << 20];
    for (item, bytes) in sizes.into_iter().enumerate() {
        let object = key(item as u32);
        cluster.put(0, object, bytes);
        // Half are announced before they are wanted, half are asked for.
        if item % 2 == 0 {
            cluster.announce(0, object, &[1]);
        }
        cluster.fetch(1, object);
    }
    cluster.until("all arrive", |c| c.members[1].arrived.len() == sizes.len());
    for (item, bytes) in sizes.into_iter().enumerate() {
        cluster.assert_has(1, key(item as u32), bytes);
    }
    cluster.until("the holder is told", |c| c.members[0].released.len() == sizes.len());
    assert_eq!(cluster.members[1].mover.stats().in_flight_bytes, 0);
}

fn a_stream_is_read_while_written<W: World>(world: W) {
    let mut cluster = Cluster::new(world, 2);
    let (object, bytes, step) = (key(1), 3_000_000, 100_000);
    cluster.open(0, object, 1, bytes + 5000);
    cluster.announce(0, object, &[1]);
    cluster.fetch(1, object);
    for to in (step..=bytes).step_by(step as usize) {
        cluster.write(0, object, to - step, to);
        cluster.until("the reader follows", |c| c.members[1].watermarks.get(&object) == Some(&to));
    }
    cluster.members[0].mover.seal(object, bytes);
    cluster.until("it arrives", |c| c.members[1].arrived.contains_key(&object));
    cluster.assert_has(1, object, bytes);
}

fn many_readers_make_a_chain<W: World>(world: W) {
    let mut cluster = Cluster::new(world, 8);
    let (object, bytes) = (key(2), 8 << 20);
    cluster.put(0, object, bytes);
    (1..8).for_each(|index| cluster.fetch(index, object));
    cluster.announce(0, object, &[1, 2, 3, 4, 5, 6, 7]);
    cluster.until("all have it", |c| (1..8).all(|index| c.members[index].arrived.contains_key(&object)));
    (1..8).for_each(|index| cluster.assert_has(index, object, bytes));
    for member in &cluster.members {
        let served = member.mover.stats().transport.served_bytes;
        assert!(served <= bytes * 2, "{:?} served {served} bytes: a hot spot", member.id);
    }
}

fn a_lost_holder_is_replaced<W: World>(world: W) {
    let mut cluster = Cluster::new(world, 3);
    let (object, bytes) = (key(3), 12 << 20);
    cluster.put(0, object, bytes);
    cluster.put(2, object, bytes);
    cluster.origins.insert(object, 0);
    cluster.announce(2, object, &[1]);
    cluster.fetch(1, object);
    cluster.until("it has begun", |c| c.members[1].watermarks.contains_key(&object));
    let before = cluster.members[1].watermarks[&object];
    drop(cluster.members.remove(2));
    cluster.until("it arrives", |c| c.members[1].arrived.contains_key(&object));
    cluster.assert_has(1, object, bytes);
    let served = cluster.members[0].mover.stats().transport.served_bytes;
    assert!(served <= bytes - before + limits().window_bytes, "it began anew: {served} after {before}");
}

fn a_void_attempt_is_replaced<W: World>(world: W) {
    let mut cluster = Cluster::new(world, 3);
    let object = key(4);
    cluster.open(0, object, 1, 1 << 20);
    cluster.write(0, object, 0, 500_000);
    cluster.announce(0, object, &[1]);
    cluster.fetch(1, object);
    cluster.until("part of it is here", |c| c.members[1].watermarks.get(&object) == Some(&500_000));
    cluster.members[0].mover.withdraw(object, true);
    cluster.until("it is void", |c| c.members[1].void == [(object, 1)]);
    cluster.open(2, object, 2, 1 << 20);
    cluster.write(2, object, 0, 900_000);
    cluster.members[2].mover.seal(object, 900_000);
    cluster.announce(2, object, &[1]);
    cluster.until("the next try arrives", |c| c.members[1].arrived.contains_key(&object));
    cluster.assert_has(1, object, 900_000);
}

fn what_nobody_has_fails_by_its_deadline<W: World>(world: W) {
    let mut cluster = Cluster::new(world, 2);
    cluster.origins.insert(key(5), 0);
    let deadline = cluster.members[1].mover.now().after_ms(100);
    cluster.members[1].mover.fetch(key(5), deadline);
    cluster.fetch(1, key(6));
    cluster.members[1].mover.cancel(key(6));
    cluster.until("both fail", |c| c.members[1].failed.len() == 2);
    assert_eq!(cluster.members[1].failed[&key(5)], TransferError::TimedOut { have_bytes: 0, holders: 0 });
    assert_eq!(cluster.members[1].failed[&key(6)], TransferError::Cancelled);
}

/// io_uring's world, or a line that says why there is none.
#[expect(clippy::print_stdout, reason = "a test that is skipped says so")]
fn uring() -> Option<OnUring> {
    OnUring::new().inspect_err(|why| println!("SKIP transport over io_uring: {why}")).ok()
}

/// All to all, with whatever the world does to it.
fn a_shuffle_completes<W: World>(world: W) -> Cluster<W> {
    let mut cluster = Cluster::new(world, 4);
    let bytes = |item: u32| u64::from(item * 77_777 % 900_001);
    for item in 0..32 {
        let from = item as usize % 4;
        cluster.put(from, key(item), bytes(item));
        let others: Vec<usize> = (0..4).filter(|index| *index != from).collect();
        cluster.announce(from, key(item), &others);
        others.into_iter().for_each(|index| cluster.fetch(index, key(item)));
    }
    cluster.until("everybody has everything", |c| c.members.iter().all(|member| member.arrived.len() == 24));
    for item in 0..32 {
        for index in (0..4).filter(|index| *index != item as usize % 4) {
            cluster.assert_has(index, key(item), bytes(item));
        }
    }
    cluster
}

macro_rules! everywhere {
    ($($test:ident),* $(,)?) => {
        mod on_sim {
            use super::*;
            $(#[test] fn $test() {
                for seed in 0..4 {
                    super::$test(Sim::new(seed));
                }
            })*
        }
        mod on_tcp {
            use super::*;
            $(#[test] fn $test() {
                super::$test(OnTcp);
            })*
        }
        mod on_uring {
            use super::*;
            $(#[test] fn $test() {
                if let Some(world) = uring() {
                    super::$test(world);
                }
            })*
        }
    };
}

everywhere!(
    sizes_of_all_kinds,
    a_stream_is_read_while_written,
    many_readers_make_a_chain,
    a_lost_holder_is_replaced,
    a_void_attempt_is_replaced,
    what_nobody_has_fails_by_its_deadline,
);

#[test]
fn a_shuffle_survives_a_storm() {
    for seed in 1..=6 {
        a_shuffle_completes(Failing(Sim::new(seed), Faults::storm(seed)));
    }
    a_shuffle_completes(Failing(OnTcp, Faults::storm(1)));
    if let Some(world) = uring() {
        a_shuffle_completes(Failing(world, Faults::storm(2)));
    }
}

#[test]
fn a_seed_replays() {
    let hash = |seed| {
        let cluster = a_shuffle_completes(Failing(Sim::new(seed), Faults::storm(seed)));
        cluster.world.0.0.hash()
    };
    assert_eq!(hash(3), hash(3));
    assert_ne!(hash(3), hash(4));
}
