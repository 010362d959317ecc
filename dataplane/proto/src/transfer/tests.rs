//! The machine against a model of holders, and its rules one by one.

use super::*;
use crate::ids::{InvocationId, RunId};
use crate::wire::Epoch;
use crate::wire::notice::Announce;
use alloc::collections::BTreeMap;
use alloc::vec;
use proptest::prelude::*;

fn key(run: u64, item: u32) -> ObjectKey {
    ObjectKey { run: RunId(run), invocation: InvocationId { step: 0, item: 0 }, port: 0, item }
}

fn announce(key: ObjectKey, attempt: u32, size: Option<u64>, capacity: u64, watermark: u64) -> Notice {
    Notice::Announce(Announce {
        key,
        attempt,
        size,
        capacity_bytes: capacity,
        region: Region { id: 0, generation: 1, epoch: Epoch(1), bytes: capacity + 100 },
        offset: 100,
        watermark,
        relay: vec![],
        inline: vec![],
    })
}

fn limits() -> TransferLimits {
    TransferLimits {
        chunk_bytes: 100,
        window_bytes: 400,
        peer_window_bytes: 300,
        ..TransferLimits::default()
    }
}

/// Drives a receiver and answers its effects as told.
struct Driver {
    receiver: Receiver,
    now: Tick,
    fx: Effects,
    reads: BTreeMap<Ticket, (ObjectKey, PeerId, u64, u64)>,
    /// Bytes that came, by object: for each byte how often.
    filled: BTreeMap<ObjectKey, Vec<u8>>,
    seen: Vec<Effect>,
    limits: TransferLimits,
}

impl Driver {
    fn new(limits: TransferLimits) -> Driver {
        Driver {
            receiver: Receiver::new(limits),
            now: Tick(1),
            fx: vec![],
            reads: BTreeMap::new(),
            filled: BTreeMap::new(),
            seen: vec![],
            limits,
        }
    }

    fn give(&mut self, event: Event) {
        self.receiver.handle(self.now, event, &mut self.fx);
        self.digest();
    }

    fn notice(&mut self, peer: u64, notice: Notice) {
        self.give(Event::Notice { peer: PeerId(peer), notice });
    }

    fn pass(&mut self, ms: u64) {
        self.now = self.now.after_ms(ms);
        self.receiver.tick(self.now, &mut self.fx);
        self.digest();
    }

    fn digest(&mut self) {
        while !self.fx.is_empty() {
            for effect in core::mem::take(&mut self.fx) {
                match effect {
                    Effect::Reserve { key, attempt, bytes } => {
                        self.filled.insert(key, vec![0; bytes as usize]);
                        let granted = Event::Reserved { key, attempt, granted: true };
                        self.receiver.handle(self.now, granted, &mut self.fx);
                    }
                    Effect::Read { ticket, key, peer, offset, at, bytes, .. } => {
                        assert_eq!(offset, at + 100);
                        assert!(bytes > 0 && bytes <= self.limits.chunk_bytes);
                        self.reads.insert(ticket, (key, peer, at, bytes));
                    }
                    Effect::Void { key, .. } => {
                        self.filled.remove(&key);
                        self.seen.push(effect);
                    }
                    other => self.seen.push(other),
                }
            }
        }
        let total: u64 = self.reads.values().map(|read| read.3).sum();
        assert_eq!(total, self.receiver.in_flight_bytes());
        assert!(total < self.limits.window_bytes + self.limits.chunk_bytes);
        let mut peers = BTreeMap::new();
        self.reads.values().for_each(|read| *peers.entry(read.1).or_insert(0) += read.3);
        let most = self.limits.peer_window_bytes + self.limits.chunk_bytes;
        assert!(peers.values().all(|bytes| *bytes < most));
    }

    /// Answers read `index` of those under way.
    fn answer(&mut self, index: usize, done: Option<u64>, fault: Option<ReadFault>) {
        let Some((&ticket, &(key, _, at, bytes))) = self.reads.iter().nth(index % self.reads.len().max(1))
        else {
            return;
        };
        self.reads.remove(&ticket);
        let done_bytes = done.map_or(bytes, |done| done.min(bytes));
        if fault != Some(ReadFault::Damaged)
            && let Some(memory) = self.filled.get_mut(&key)
        {
            memory[at as usize..(at + done_bytes) as usize].iter_mut().for_each(|byte| *byte += 1);
        }
        self.give(Event::Read { ticket, done_bytes, fault });
    }

    fn finish(&mut self) {
        while !self.reads.is_empty() {
            self.answer(0, None, None);
        }
    }

    fn arrived(&self, key: ObjectKey) -> Option<u64> {
        self.seen.iter().rev().find_map(|effect| match effect {
            Effect::Arrived { key: k, size, .. } if *k == key => Some(*size),
            _ => None,
        })
    }

    fn fetch(&mut self, key: ObjectKey) {
        let deadline = self.now.after_ms(60_000);
        self.give(Event::Fetch { key, deadline });
    }
}

#[test]
fn an_object_is_read_while_it_grows() {
    let mut driver = Driver::new(limits());
    let object = key(1, 0);
    driver.fetch(object);
    assert!(driver.seen.is_empty(), "at first it waits to be told");
    driver.pass(limits().seek_ms);
    assert!(matches!(driver.seen[..], [Effect::Seek { .. }]));
    driver.notice(5, announce(object, 1, None, 1000, 40));
    assert_eq!(driver.reads.values().map(|read| (read.2, read.3)).collect::<Vec<_>>(), [(0, 40)]);
    // The tail gathers while something is on its way.
    driver.notice(5, Notice::Progress { key: object, attempt: 1, watermark: 70 });
    assert_eq!(driver.reads.len(), 1);
    driver.notice(5, Notice::Progress { key: object, attempt: 1, watermark: 190 });
    assert_eq!(driver.reads.len(), 2);
    driver.finish();
    assert_eq!(driver.arrived(object), None);
    driver.notice(5, Notice::Sealed { key: object, attempt: 1, size: 333 });
    driver.finish();
    assert_eq!(driver.arrived(object), Some(333));
    assert!(driver.filled[&object][..333].iter().all(|times| *times == 1), "no byte is read twice");
    assert!(matches!(driver.seen.last(), Some(Effect::Tell { notice: Notice::Finished { .. }, .. })));
}

#[test]
fn a_lost_holder_is_replaced_at_the_offset_reached() {
    let mut driver = Driver::new(limits());
    let object = key(1, 0);
    driver.notice(5, announce(object, 1, Some(1000), 1000, 1000));
    driver.fetch(object);
    driver.answer(0, None, None);
    for _ in 0..driver.reads.len() {
        driver.answer(0, Some(30), Some(ReadFault::HolderLost));
    }
    driver.give(Event::PeerGone { peer: PeerId(5) });
    driver.pass(1);
    assert!(driver.seen.iter().any(|effect| matches!(effect, Effect::Seek { .. })));
    // Another holder that has only part of it, and then a whole one.
    driver.notice(6, announce(object, 1, None, 1000, 450));
    driver.finish();
    driver.notice(7, announce(object, 1, Some(1000), 1000, 1000));
    driver.finish();
    assert_eq!(driver.arrived(object), Some(1000));
    assert!(driver.filled[&object].iter().all(|times| *times == 1));
}

#[test]
fn a_void_attempt_is_forgotten_and_the_next_one_fetched() {
    let mut driver = Driver::new(limits());
    let object = key(1, 0);
    driver.fetch(object);
    driver.notice(5, announce(object, 1, None, 500, 200));
    driver.answer(0, None, None);
    driver.notice(5, Notice::Withdrawn { key: object, attempt: 1, lost: true });
    assert!(driver.seen.contains(&Effect::Void { key: object, attempt: 1 }));
    // A late word about the void attempt changes nothing.
    driver.notice(6, announce(object, 1, Some(500), 500, 500));
    assert!(!driver.filled.contains_key(&object));
    driver.finish();
    driver.notice(5, announce(object, 2, Some(450), 450, 450));
    driver.finish();
    assert_eq!(driver.arrived(object), Some(450));
}

#[test]
fn deadlines_and_cancels_end_transfers() {
    let mut driver = Driver::new(limits());
    driver.give(Event::Fetch { key: key(1, 0), deadline: Tick(1).after_ms(100) });
    driver.give(Event::Fetch { key: key(1, 1), deadline: Tick(1).after_ms(100) });
    driver.notice(5, announce(key(1, 1), 1, Some(1000), 1000, 1000));
    driver.give(Event::Cancel { key: key(1, 1) });
    assert!(driver.seen.contains(&Effect::Failed { key: key(1, 1), why: TransferError::Cancelled }));
    driver.pass(200);
    let why = TransferError::TimedOut { have_bytes: 0, holders: 0 };
    assert!(driver.seen.contains(&Effect::Failed { key: key(1, 0), why }));
    driver.finish();
    assert_eq!((driver.receiver.objects(), driver.receiver.deadline()), (0, None));
}

#[test]
fn runs_share_the_window() {
    let mut driver = Driver::new(TransferLimits { window_bytes: 1000, peer_window_bytes: 1000, ..limits() });
    for item in 0..20 {
        driver.notice(5, announce(key(1, item), 1, Some(1000), 1000, 1000));
        driver.fetch(key(1, item));
    }
    driver.notice(5, announce(key(2, 0), 1, Some(3000), 3000, 3000));
    driver.fetch(key(2, 0));
    for _ in 0..40 {
        driver.answer(0, None, None);
    }
    let of = |run| driver.reads.values().filter(|read| read.0.run == RunId(run)).count();
    assert_eq!((of(1), of(2)), (5, 5));
}

#[test]
fn small_values_need_no_read() {
    let mut driver = Driver::new(limits());
    let Notice::Announce(mut notice) = announce(key(1, 0), 1, Some(3), 3, 3) else { panic!() };
    notice.inline = vec![1, 2, 3];
    driver.notice(5, Notice::Announce(notice));
    assert!(matches!(&driver.seen[0], Effect::Inline { bytes, .. } if *bytes == [1, 2, 3]));
    driver.fetch(key(1, 0));
    assert_eq!(driver.arrived(key(1, 0)), Some(3));
}

#[test]
fn one_object_for_many_spreads_without_a_hot_spot() {
    let nodes: Vec<NodeId> = (1..=7).map(NodeId).collect();
    let chain = relay_plan(&nodes, 64 << 20, 1 << 20);
    assert_eq!(chain.len(), 1);
    assert_eq!((chain[0].0, chain[0].1.len()), (NodeId(1), 6));
    let many: Vec<NodeId> = (1..=114).map(NodeId).collect();
    assert_eq!(relay_plan(&many, 64 << 20, 1 << 20).len(), 2);
    assert_eq!(relay_plan(&nodes[..3], 1000, 1 << 20).len(), 3);
    assert!(relay_plan(&[], 1000, 1 << 20).is_empty());
    // Everybody is reached once, however it is split.
    fn reach(nodes: &[NodeId], size: u64, reached: &mut Vec<NodeId>) {
        for (node, rest) in relay_plan(nodes, size, 1 << 20) {
            reached.push(node);
            reach(&rest, size, reached);
        }
    }
    for size in [0, 1 << 20, 64 << 20, 1 << 30] {
        let mut reached = vec![];
        reach(&many, size, &mut reached);
        reached.sort();
        assert_eq!(reached, many);
    }
}

proptest! {
    /// Holders come, grow, fail and go as they like; at the end each wanted byte has come exactly once.
    #[test]
    fn every_byte_comes_once(
        steps in prop::collection::vec((0_u8..9, any::<u8>(), 0_u64..1200), 0..200),
        sizes in prop::collection::vec(1_u64..1500, 1..5),
    ) {
        let mut driver = Driver::new(TransferLimits { failures_max: 10_000, holder_failures_max: 10_000, ..limits() });
        let keys: Vec<_> = (0..sizes.len() as u32).map(|i| key(u64::from(i % 2), i)).collect();
        for key in &keys {
            driver.give(Event::Fetch { key: *key, deadline: Tick(1).after_ms(10_000_000) });
        }
        for (what, which, amount) in steps {
            let index = usize::from(which) % keys.len();
            let (object, size) = (keys[index], sizes[index]);
            let peer = u64::from(which >> 4);
            match what {
                0 => driver.notice(peer, announce(object, 1, None, 1500, amount.min(size))),
                1 => driver.notice(peer, Notice::Progress { key: object, attempt: 1, watermark: amount.min(size) }),
                2 => driver.notice(peer, Notice::Withdrawn { key: object, attempt: 1, lost: false }),
                3 => driver.answer(which.into(), Some(amount % 100), Some(ReadFault::Again)),
                4 => driver.answer(which.into(), None, Some(ReadFault::Damaged)),
                5 => {
                    // A connection's reads are answered before its end is told.
                    while let Some(at) = driver.reads.values().position(|read| read.1 == PeerId(peer)) {
                        driver.answer(at, Some(amount % 100), Some(ReadFault::HolderLost));
                    }
                    driver.give(Event::PeerGone { peer: PeerId(peer) });
                }
                6 => driver.pass(amount % 50),
                _ => driver.answer(which.into(), None, None),
            }
        }
        for (object, size) in keys.iter().zip(&sizes) {
            driver.notice(99, announce(*object, 1, Some(*size), 1500, *size));
        }
        for _ in 0..200 {
            driver.finish();
            driver.pass(100);
        }
        for (object, size) in keys.iter().zip(&sizes) {
            prop_assert_eq!(driver.arrived(*object), Some(*size));
            prop_assert!(driver.filled[object][..*size as usize].iter().all(|times| *times == 1));
        }
        prop_assert_eq!(driver.receiver.in_flight_bytes(), 0);
    }
}
