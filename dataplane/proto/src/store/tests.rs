//! State tables: one test a rule. Random interleavings are in `tests/store_model.rs`.

use super::*;
use crate::ids::{InvocationId, RunId};
use crate::limits::ALLOTMENT_BYTES_MIN;
use alloc::{vec, vec::Vec};

const MIB: u64 = 1 << 20;
/// 16 MiB of arena: 1 MiB for allotments, the rest (one page less) for outputs.
const LIMITS: Limits = Limits {
    arena_bytes: 16 * MIB,
    dedicated_bytes: 4 * MIB,
    spill_bytes: 0,
    objects_max: 100,
    waiting_max: 10,
};
const SPILLING: Limits = Limits { spill_bytes: 64 * MIB, ..LIMITS };

fn owner(step: u32) -> Owner {
    Owner { run: RunId(1), invocation: InvocationId { step, item: 0 }, attempt: 1 }
}

fn key(step: u32, item: u32) -> ObjectKey {
    ObjectKey { run: RunId(1), invocation: InvocationId { step, item: 0 }, port: 0, item }
}

struct Bench {
    store: Store,
    fx: Effects,
}

impl Bench {
    fn new(limits: Limits) -> Self {
        Bench { store: Store::new(limits), fx: Vec::new() }
    }
    fn reserve(&mut self, step: u32, bytes: u64, purpose: Purpose) -> Reserve {
        self.store.reserve(owner(step), bytes, purpose, &mut self.fx)
    }
    fn grant(&mut self, step: u32, bytes: u64, purpose: Purpose) -> Extent {
        match self.reserve(step, bytes, purpose) {
            Reserve::Granted(extent) => extent,
            other => panic!("{other:?}"),
        }
    }
    fn wait(&mut self, step: u32, bytes: u64) -> Ticket {
        match self.reserve(step, bytes, Purpose::Output) {
            Reserve::Waiting(ticket) => ticket,
            other => panic!("{other:?}"),
        }
    }
    fn seal(&mut self, key: ObjectKey, extent: Extent) -> Result<ObjectId, SealError> {
        let owner = Owner { run: key.run, invocation: key.invocation, attempt: 1 };
        self.store.seal(key, owner, extent, &mut self.fx)
    }
    /// An output of `bytes`, sealed.
    fn object(&mut self, step: u32, item: u32, bytes: u64) -> (ObjectId, Extent) {
        let extent = Extent { bytes, ..self.grant(step, bytes, Purpose::Output) };
        (self.seal(key(step, item), extent).unwrap(), extent)
    }
    fn lease(&mut self, key: ObjectKey) -> Leased {
        self.store.lease(key, &mut self.fx)
    }
    fn ready(&mut self, key: ObjectKey) -> (Lease, Extent) {
        match self.lease(key) {
            Leased::Ready(lease, extent) => (lease, extent),
            other => panic!("{other:?}"),
        }
    }
    fn unlease(&mut self, lease: Lease) {
        self.store.unlease(lease, &mut self.fx);
    }
    fn release(&mut self, key: ObjectKey) -> bool {
        self.store.release(key, &mut self.fx)
    }
    fn effects(&mut self) -> Effects {
        core::mem::take(&mut self.fx)
    }
    fn granted(&mut self) -> Vec<Ticket> {
        let ticket = |effect| if let Effect::Granted { ticket, .. } = effect { Some(ticket) } else { None };
        self.effects().into_iter().filter_map(ticket).collect()
    }
    #[track_caller]
    fn assert_empty(&self) {
        let stats = self.store.stats();
        assert_eq!(stats.arena_used_bytes, 0);
        assert_eq!((stats.objects, stats.grants, stats.leases, stats.waiting), (0, 0, 0, 0));
        assert_eq!((stats.dedicated_bytes, stats.overflow_bytes, stats.spilled_bytes), (0, 0, 0));
        assert_eq!(stats.fragmentation, 0.0);
    }
}

#[test]
fn an_object_lives_until_it_is_released_and_unleased() {
    let mut b = Bench::new(LIMITS);
    let (_, extent) = b.object(1, 0, 5000);
    let (lease, at) = b.ready(key(1, 0));
    assert_eq!(at, extent);
    assert!(b.release(key(1, 0)));
    assert_eq!(b.lease(key(1, 0)), Leased::Missing);
    assert_eq!(b.store.stats().arena_used_bytes, 8192);
    b.unlease(lease);
    b.assert_empty();
    assert!(!b.release(key(1, 0)));
}

#[test]
fn a_pin_outlives_the_last_reader() {
    let mut b = Bench::new(LIMITS);
    b.object(1, 0, 1);
    assert!(b.store.pin(key(1, 0)));
    assert!(b.release(key(1, 0)));
    let (lease, _) = b.ready(key(1, 0));
    b.unlease(lease);
    assert!(b.store.unpin(key(1, 0), &mut b.fx));
    b.assert_empty();
    assert!(!b.store.pin(key(1, 0)));
}

#[test]
fn an_output_gives_its_tail_back_at_seal() {
    let mut b = Bench::new(LIMITS);
    let extent = b.grant(1, MIB, Purpose::Output);
    b.seal(key(1, 0), Extent { bytes: 4097, ..extent }).unwrap();
    assert_eq!(b.store.stats().arena_used_bytes, 8192);
}

#[test]
fn an_allotment_is_freed_with_its_last_object_and_its_last_hold() {
    let mut b = Bench::new(LIMITS);
    let extent = b.grant(1, ALLOTMENT_BYTES_MIN, Purpose::Allotment);
    let page = Extent { bytes: PAGE_BYTES, ..extent };
    let hold = b.store.hold(page).unwrap();
    for item in 0..3 {
        let offset = extent.offset + PAGE_BYTES + u64::from(item) * 64;
        b.seal(key(1, item), Extent { offset, bytes: 64, ..extent }).unwrap();
    }
    b.store.close(owner(1), extent, 0, &mut b.fx).unwrap();
    assert_eq!(b.store.stats().arena_used_bytes, 2 * PAGE_BYTES);
    for item in [1, 0, 2] {
        assert!(b.release(key(1, item)));
    }
    assert_eq!(b.store.stats().arena_used_bytes, 2 * PAGE_BYTES);
    b.store.unhold(hold, &mut b.fx);
    b.assert_empty();
    assert_eq!(b.store.hold(page), None);
}

#[test]
fn a_seal_that_lies_is_refused_and_changes_nothing() {
    let mut b = Bench::new(LIMITS);
    let a = b.grant(1, ALLOTMENT_BYTES_MIN, Purpose::Allotment);
    let table = b.grant(1, 4096, Purpose::Table);
    let other = b.grant(2, 4096, Purpose::Output);
    let inside = Extent { offset: a.offset + 4096, bytes: 100, ..a };
    b.seal(key(1, 0), inside).unwrap();
    let before = b.store.stats();
    let shifted = |by: i64, bytes| Extent { offset: inside.offset.wrapping_add_signed(by), bytes, ..a };
    let k = key(1, 1);
    let cases = [
        (k, a, SealError::NotForObjects { extent: a }),
        (k, shifted(-1, 1), SealError::NotForObjects { extent: shifted(-1, 1) }),
        (k, table, SealError::NotForObjects { extent: table }),
        (k, other, SealError::NotGranted { extent: other }),
        (k, shifted(99, 2), SealError::Overlap { extent: shifted(99, 2), other: key(1, 0) }),
        (k, shifted(0, 100), SealError::Overlap { extent: shifted(0, 100), other: key(1, 0) }),
        (k, shifted(50, 1), SealError::Overlap { extent: shifted(50, 1), other: key(1, 0) }),
        (k, shifted(0, 1 << 40), SealError::NotGranted { extent: shifted(0, 1 << 40) }),
        (k, shifted(0, u64::MAX), SealError::NotGranted { extent: shifted(0, u64::MAX) }),
        (key(1, 0), shifted(200, 1), SealError::Already { key: key(1, 0), attempt: 1 }),
    ];
    for (key, extent, error) in cases {
        assert_eq!(b.seal(key, extent), Err(error));
    }
    let stranger = b.store.seal(key(1, 1), owner(2), other, &mut b.fx);
    assert_eq!(stranger, Err(SealError::NotYours { key: key(1, 1) }));
    assert_eq!(b.store.stats(), before);
    b.store.close(owner(1), a, 0, &mut b.fx).unwrap();
    let late = shifted(200, 1);
    assert_eq!(b.seal(k, late), Err(SealError::NotGranted { extent: late }));
}

#[test]
fn an_empty_object_needs_no_memory() {
    let mut b = Bench::new(LIMITS);
    let extent = b.grant(1, 0, Purpose::Output);
    b.seal(key(1, 0), Extent { bytes: 0, ..extent }).unwrap();
    assert_eq!(b.store.stats().arena_used_bytes, 0);
    let (lease, at) = b.ready(key(1, 0));
    assert_eq!(at.bytes, 0);
    b.unlease(lease);
    b.release(key(1, 0));
    b.assert_empty();
}

#[test]
fn a_file_is_a_segment_as_long_as_its_object() {
    let mut b = Bench::new(LIMITS);
    let extent = b.grant(1, 10_000, Purpose::File);
    let segment = extent.segment;
    assert_eq!((extent.offset, extent.bytes), (0, 10_000));
    assert_eq!(b.effects(), [Effect::Create { segment, bytes: 10_000 }]);
    b.seal(key(1, 0), Extent { bytes: 777, ..extent }).unwrap();
    assert_eq!(b.effects(), [Effect::Truncate { segment, bytes: 777 }]);
    b.release(key(1, 0));
    assert_eq!(b.effects(), [Effect::Destroy { segment }]);
    let adopted = b.store.adopt(owner(1), 0);
    b.seal(key(1, 0), adopted).unwrap();
    assert_eq!(b.ready(key(1, 0)).1, adopted);
}

#[test]
fn large_outputs_cannot_keep_an_invocation_from_starting() {
    let mut b = Bench::new(LIMITS);
    while let Reserve::Granted(_) = b.reserve(1, PAGE_BYTES, Purpose::Output) {}
    for step in 2..18 {
        b.grant(step, ALLOTMENT_BYTES_MIN, Purpose::Allotment);
    }
    assert!(matches!(b.reserve(18, ALLOTMENT_BYTES_MIN, Purpose::Allotment), Reserve::Waiting(_)));
}

#[test]
fn a_dead_attempt_gives_its_memory_back_and_its_keys() {
    let mut b = Bench::new(LIMITS);
    let allotment = b.grant(1, ALLOTMENT_BYTES_MIN, Purpose::Allotment);
    let (first, _) = b.object(1, 0, MIB);
    b.grant(1, MIB, Purpose::Output);
    let (lease, _) = b.ready(key(1, 0));
    let hold = b.store.hold(allotment).unwrap();
    b.store.drop_owner(owner(1), Sealed::Release, &mut b.fx);
    assert_eq!(b.lease(key(1, 0)), Leased::Missing);
    // The reader still reads the old bytes, and looks at the old page, while the retry seals anew.
    assert_eq!(b.store.stats().arena_used_bytes, MIB + ALLOTMENT_BYTES_MIN);
    let retry = Owner { attempt: 2, ..owner(1) };
    let Reserve::Granted(extent) = b.store.reserve(retry, MIB, Purpose::Output, &mut b.fx) else { panic!() };
    let second = b.store.seal(key(1, 0), retry, extent, &mut b.fx).unwrap();
    assert_ne!(first, second);
    assert_eq!(b.store.locate(key(1, 0)).unwrap().attempt, 2);
    b.unlease(lease);
    b.store.unhold(hold, &mut b.fx);
    assert_eq!(b.store.stats().arena_used_bytes, MIB);
    b.store.drop_owner(owner(1), Sealed::Release, &mut b.fx);
    assert!(b.store.locate(key(1, 0)).is_some(), "the retry's object is not the dead attempt's");
    b.store.drop_run(RunId(1), &mut b.fx);
    b.assert_empty();
}

#[test]
fn those_who_wait_are_served_in_order_and_a_large_one_is_not_passed_for_ever() {
    let mut b = Bench::new(LIMITS);
    b.object(1, 0, 8 * MIB);
    let big = b.wait(2, 10 * MIB);
    let mut passes = 0;
    while let Reserve::Granted(extent) = b.reserve(3, PAGE_BYTES, Purpose::Output) {
        b.store.give_back(owner(3), extent, &mut b.fx).unwrap();
        passes += 1;
        assert!(passes < 1000);
    }
    assert_eq!(passes, 64);
    b.release(key(1, 0));
    let granted = b.granted();
    assert_eq!(granted.len(), 2);
    assert_eq!(granted[0], big);
}

#[test]
fn a_cancelled_wait_no_longer_stands_in_the_way() {
    let mut b = Bench::new(LIMITS);
    b.object(1, 0, 10 * MIB);
    let first = b.wait(2, 8 * MIB);
    let second = b.wait(3, 7 * MIB);
    assert!(b.store.cancel(first, &mut b.fx));
    assert!(!b.store.cancel(first, &mut b.fx));
    b.release(key(1, 0));
    assert_eq!(b.granted(), [second]);
}

#[test]
fn what_can_never_fit_is_refused_at_once_and_the_rest_when_all_wait() {
    let mut b = Bench::new(LIMITS);
    let Reserve::Refused(error) = b.reserve(1, 17 * MIB, Purpose::Output) else { panic!() };
    assert!(matches!(error, StoreError::TooLarge { need_bytes, .. } if need_bytes == 17 * MIB), "{error}");
    assert!(!b.store.stalled(&mut b.fx));
    b.grant(1, 8 * MIB, Purpose::Output);
    let small = b.wait(2, 7 * MIB);
    let large = b.wait(3, 8 * MIB);
    assert!(b.store.stalled(&mut b.fx));
    let fx = b.effects();
    assert!(
        matches!(&fx[..], [Effect::Refused { ticket, error: StoreError::Full { .. }, .. }] if *ticket == large)
    );
    b.store.drop_owner(owner(1), Sealed::Keep, &mut b.fx);
    assert_eq!(b.granted(), [small]);
}

#[test]
fn the_queue_is_bounded() {
    let mut b = Bench::new(LIMITS);
    b.grant(1, 14 * MIB, Purpose::Output);
    (0..10).for_each(|_| assert!(b.wait(2, 14 * MIB).0 > 0));
    assert_eq!(
        b.reserve(2, 14 * MIB, Purpose::Output),
        Reserve::Refused(StoreError::TooManyWaiting { waiting: 10 })
    );
}

/// Fills the store with two objects, one leased, and makes a third wait for the other to be spilled.
fn spill_one(b: &mut Bench) -> (ObjectId, Lease, Ticket) {
    b.object(1, 0, 6 * MIB);
    let (victim, at) = b.object(1, 1, 6 * MIB);
    let (lease, _) = b.ready(key(1, 0));
    let ticket = b.wait(2, 4 * MIB);
    assert_eq!(b.effects(), [Effect::Spill { object: victim, key: key(1, 1), extent: at }]);
    (victim, lease, ticket)
}

#[test]
fn a_full_store_spills_what_nobody_reads_and_brings_it_back() {
    let mut b = Bench::new(SPILLING);
    let (victim, lease, ticket) = spill_one(&mut b);
    b.store.spilled(victim, Ok(()), &mut b.fx);
    assert_eq!(b.granted(), [ticket]);
    let Leased::Restoring(second) = b.lease(key(1, 1)) else { panic!() };
    // Nothing can go (a lease and an open grant), so a file takes it.
    let fx = b.effects();
    let [Effect::Grow { segment, bytes }] = fx[..] else { panic!("{fx:?}") };
    b.store.grown(segment, Ok(()), &mut b.fx);
    let extent = Extent { segment, offset: 0, bytes };
    assert_eq!(b.effects(), [Effect::Load { object: victim, key: key(1, 1), extent }]);
    let Leased::Restoring(third) = b.lease(key(1, 1)) else { panic!() };
    b.unlease(third);
    b.store.loaded(victim, Ok(()), &mut b.fx);
    assert_eq!(b.effects(), [Effect::Restored { object: victim, key: key(1, 1), extent }]);
    b.unlease(lease);
    b.unlease(second);
    b.store.drop_run(RunId(1), &mut b.fx);
    assert!(b.effects().contains(&Effect::Discard { object: victim }));
    b.assert_empty();
}

#[test]
fn an_object_leased_while_it_is_spilled_stays_and_its_copy_serves_later() {
    let mut b = Bench::new(SPILLING);
    let (victim, lease, ticket) = spill_one(&mut b);
    let (late, _) = b.ready(key(1, 1));
    b.store.spilled(victim, Ok(()), &mut b.fx);
    let fx = b.effects();
    let [Effect::Grow { segment, .. }] = fx[..] else { panic!("{fx:?}") };
    assert!(b.store.cancel(ticket, &mut b.fx));
    b.store.grown(segment, Ok(()), &mut b.fx);
    assert_eq!(b.effects(), [Effect::Destroy { segment }]);
    b.unlease(late);
    // It is on disk already: no write, the memory is there at once.
    assert!(matches!(b.reserve(2, 4 * MIB, Purpose::Output), Reserve::Granted(_)));
    assert_eq!(b.effects(), []);
    b.unlease(lease);
}

#[test]
fn an_object_released_while_it_is_spilled_goes_when_the_disk_is_done() {
    let mut b = Bench::new(SPILLING);
    let (victim, lease, ticket) = spill_one(&mut b);
    b.release(key(1, 1));
    assert_eq!(b.effects(), []);
    b.store.spilled(victim, Ok(()), &mut b.fx);
    let fx = b.effects();
    assert_eq!(fx[0], Effect::Discard { object: victim });
    assert!(matches!(fx[1], Effect::Granted { ticket: t, .. } if t == ticket));
    b.unlease(lease);
    b.store.drop_run(RunId(1), &mut b.fx);
    b.assert_empty();
}

#[test]
fn objects_larger_than_the_arena_lie_in_a_file() {
    let mut b = Bench::new(SPILLING);
    let ticket = b.wait(1, 40 * MIB);
    let fx = b.effects();
    let [Effect::Grow { segment, bytes }] = fx[..] else { panic!("{fx:?}") };
    b.store.grown(segment, Ok(()), &mut b.fx);
    let extent = Extent { segment, offset: 0, bytes };
    assert_eq!(b.effects(), [Effect::Granted { ticket, owner: owner(1), extent }]);
    b.seal(key(1, 0), Extent { bytes: 39 * MIB, ..extent }).unwrap();
    b.release(key(1, 0));
    assert_eq!(b.effects(), [Effect::Truncate { segment, bytes: 39 * MIB }, Effect::Destroy { segment }]);
    b.assert_empty();
}

#[test]
fn a_full_disk_is_not_tried_again_until_something_leaves_it() {
    let mut b = Bench::new(SPILLING);
    let (victim, lease, ticket) = spill_one(&mut b);
    b.store.spilled(victim, Err(DiskError::NoSpace), &mut b.fx);
    assert_eq!(b.effects(), []);
    b.unlease(lease);
    assert_eq!(b.effects(), []);
    assert!(matches!(b.reserve(2, 40 * MIB, Purpose::Output), Reserve::Refused(StoreError::TooLarge { .. })));
    assert!(b.store.stalled(&mut b.fx));
    let fx = b.effects();
    let [Effect::Refused { ticket: t, error, .. }] = &fx[..] else { panic!("{fx:?}") };
    assert_eq!(*t, ticket);
    assert!(alloc::format!("{error}").contains("no space left in the spill directory"), "{error}");
    b.store.drop_run(RunId(1), &mut b.fx);
    b.assert_empty();
}

#[test]
fn a_copy_that_cannot_be_read_fails_the_lease_and_not_the_store() {
    let mut b = Bench::new(SPILLING);
    let (victim, lease, ticket) = spill_one(&mut b);
    b.store.spilled(victim, Ok(()), &mut b.fx);
    assert_eq!(b.granted(), [ticket]);
    b.unlease(lease);
    b.release(key(1, 0));
    let Leased::Restoring(lease) = b.lease(key(1, 1)) else { panic!() };
    assert!(matches!(b.effects()[..], [Effect::Load { .. }]));
    let broken = DiskError::Io("bad block".into());
    b.store.loaded(victim, Err(broken.clone()), &mut b.fx);
    let error = StoreError::Unreadable(broken);
    assert_eq!(b.effects(), [Effect::RestoreFailed { object: victim, key: key(1, 1), error }]);
    b.unlease(lease);
    b.store.drop_run(RunId(1), &mut b.fx);
    b.assert_empty();
}

#[test]
fn the_window_that_costs_least_is_cleared() {
    let mut b = Bench::new(SPILLING);
    let mut ids = vec![];
    // 15 objects of 1 MiB less a page, tiling the zone; the first and the last are leased.
    for item in 0..14 {
        ids.push(b.object(1, item, MIB).0);
    }
    let (a, _) = b.ready(key(1, 0));
    let (z, _) = b.ready(key(1, 5));
    b.release(key(1, 9));
    b.wait(2, MIB + MIB / 2);
    // Item 9 is a hole; one neighbour suffices, and the older of the two is taken.
    let fx = b.effects();
    assert!(matches!(fx[..], [Effect::Spill { object, .. }] if object == ids[8]), "{fx:?}");
    b.unlease(a);
    b.unlease(z);
}

#[test]
fn files_beyond_their_limit_send_the_largest_away() {
    let mut b = Bench::new(SPILLING);
    for (item, bytes) in [(0, MIB), (1, 2 * MIB), (2, MIB)] {
        let extent = b.grant(1, bytes, Purpose::File);
        b.seal(key(1, item), extent).unwrap();
    }
    b.effects();
    assert!(matches!(b.reserve(2, 2 * MIB, Purpose::File), Reserve::Waiting(_)));
    let fx = b.effects();
    let [Effect::Spill { object, key: k, extent }] = fx[..] else { panic!("{fx:?}") };
    assert_eq!(k, key(1, 1));
    b.store.spilled(object, Ok(()), &mut b.fx);
    let fx = b.effects();
    let [Effect::Destroy { segment }, Effect::Create { .. }, Effect::Granted { .. }] = fx[..] else {
        panic!("{fx:?}")
    };
    assert_eq!(segment, extent.segment);
}

#[test]
fn trimmed_pages_are_cold_again() {
    let mut b = Bench::new(LIMITS);
    b.object(1, 0, 8 * MIB);
    assert_eq!(b.store.trim(0), None);
    assert_eq!(b.store.high_water(), 10 * MIB);
    b.store.warmed(12 * MIB);
    assert_eq!(b.store.high_water(), 10 * MIB, "what was only prefaulted is not a reason to prefault more");
    b.release(key(1, 0));
    let cold = b.store.trim(4 * MIB).unwrap();
    assert_eq!((cold.offset, cold.end()), (4 * MIB, 12 * MIB));
    assert_eq!(b.store.high_water(), 4 * MIB);
    assert_eq!(b.store.trim(4 * MIB), None);
}
