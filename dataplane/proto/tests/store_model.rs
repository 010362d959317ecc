//! The store under random interleavings, against a naive model: a map from every granted page to its grant,
//! and a list of what each object's bytes should be.

use dflow_proto::ids::{Extent, InvocationId, ObjectKey, RunId, SegmentId};
use dflow_proto::limits::{ALLOTMENT_BYTES_MIN, HUGE_BYTES, PAGE_BYTES};
use dflow_proto::store::{
    DiskError, Effect, Effects, Hold, Lease, Leased, Limits, ObjectId, Owner, Purpose, Reserve, Sealed,
    Store, Ticket,
};
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug)]
enum Op {
    Reserve { owner: u8, bytes: u64, purpose: u8 },
    Seal { pick: u16, keep_eighths: u8 },
    GiveBack { pick: u16 },
    Lease { pick: u16 },
    Unlease { pick: u16 },
    Release { pick: u16 },
    Pin { pick: u16 },
    Hold { pick: u16 },
    Unhold { pick: u16 },
    Cancel { pick: u16 },
    Answer { pick: u16, fail: bool },
    DropOwner { owner: u8, release: bool },
    DropRun { run: u8 },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let bytes = prop_oneof![
        3 => 0..70_000u64,
        3 => 1..20u64 << 16,
        2 => (1..5u64).prop_map(|n| n * (HUGE_BYTES / 2)),
        1 => 1..9u64 << 20,
    ];
    let op = prop_oneof![
        8 => (0..8u8, bytes, 0..8u8)
            .prop_map(|(owner, bytes, purpose)| Op::Reserve { owner, bytes, purpose }),
        8 => (any::<u16>(), 0..9u8).prop_map(|(pick, keep_eighths)| Op::Seal { pick, keep_eighths }),
        1 => any::<u16>().prop_map(|pick| Op::GiveBack { pick }),
        4 => any::<u16>().prop_map(|pick| Op::Lease { pick }),
        4 => any::<u16>().prop_map(|pick| Op::Unlease { pick }),
        2 => any::<u16>().prop_map(|pick| Op::Release { pick }),
        1 => any::<u16>().prop_map(|pick| Op::Pin { pick }),
        1 => any::<u16>().prop_map(|pick| Op::Hold { pick }),
        1 => any::<u16>().prop_map(|pick| Op::Unhold { pick }),
        1 => any::<u16>().prop_map(|pick| Op::Cancel { pick }),
        6 => (any::<u16>(), prop::bool::weighted(0.05)).prop_map(|(pick, fail)| Op::Answer { pick, fail }),
        1 => (0..8u8, any::<bool>()).prop_map(|(owner, release)| Op::DropOwner { owner, release }),
        1 => (0..20u8).prop_map(|run| Op::DropRun { run }),
    ];
    prop::collection::vec(op, 1..200)
}

/// Four invocations in each of two runs.
fn owner(n: u8) -> Owner {
    let invocation = InvocationId { step: u32::from(n % 4), item: 0 };
    Owner { run: RunId(u64::from(n / 4)), invocation, attempt: 1 }
}

struct Grant {
    owner: Owner,
    extent: Extent,
    purpose: Purpose,
    /// Where the next object of an allotment goes.
    next: u64,
}

struct Model {
    store: Store,
    fx: Effects,
    /// Open grants.
    grants: Vec<Grant>,
    waiting: BTreeMap<Ticket, (Owner, u64, Purpose)>,
    /// What was sealed and not unkeyed: key, owner.
    keyed: BTreeMap<ObjectKey, Owner>,
    leases: Vec<(Lease, Option<Extent>)>,
    holds: Vec<(Hold, Extent)>,
    /// Disk operations not answered yet.
    jobs: Vec<Effect>,
    copies: BTreeSet<ObjectId>,
    segments: BTreeMap<SegmentId, u64>,
    limits: Limits,
    items: u32,
}

/// Takes one of a list, or nothing of an empty one.
fn pick<T>(list: &mut Vec<T>, n: u16) -> Option<T> {
    (!list.is_empty()).then(|| list.swap_remove(usize::from(n) % list.len()))
}

impl Model {
    fn new(limits: Limits) -> Self {
        Model {
            store: Store::new(limits),
            fx: Vec::new(),
            grants: Vec::new(),
            waiting: BTreeMap::new(),
            keyed: BTreeMap::new(),
            leases: Vec::new(),
            holds: Vec::new(),
            jobs: Vec::new(),
            copies: BTreeSet::new(),
            segments: BTreeMap::new(),
            limits,
            items: 0,
        }
    }

    fn granted(&mut self, owner: Owner, bytes: u64, purpose: Purpose, extent: Extent) {
        assert!(extent.bytes >= bytes);
        assert!(extent.offset.is_multiple_of(PAGE_BYTES));
        assert!(extent.bytes < HUGE_BYTES || extent.offset.is_multiple_of(HUGE_BYTES));
        match self.segments.get(&extent.segment) {
            None => {
                assert_eq!(extent.segment, SegmentId(0));
                assert!(extent.offset >= PAGE_BYTES && extent.end() <= self.limits.arena_bytes);
            }
            Some(&bytes) => assert_eq!((extent.offset, extent.bytes), (0, bytes)),
        }
        self.grants.push(Grant { owner, extent, purpose, next: extent.offset + PAGE_BYTES });
    }

    fn effects(&mut self) {
        for effect in std::mem::take(&mut self.fx) {
            match effect {
                Effect::Granted { ticket, owner, extent } => {
                    let (asked, bytes, purpose) = self.waiting.remove(&ticket).expect("it waits");
                    assert_eq!(asked, owner);
                    self.granted(owner, bytes, purpose, extent);
                }
                Effect::Refused { ticket, .. } => assert!(self.waiting.remove(&ticket).is_some()),
                Effect::Restored { object, extent, .. } => {
                    let mut found = false;
                    for (lease, at) in self.leases.iter_mut().filter(|(lease, _)| lease.object() == object) {
                        assert_eq!(lease.object(), object);
                        *at = Some(extent);
                        found = true;
                    }
                    assert!(found, "restored for nobody");
                }
                Effect::RestoreFailed { object, .. } => {
                    assert!(self.leases.iter().any(|(lease, _)| lease.object() == object));
                }
                Effect::Spill { object, .. } => {
                    assert!(!self.copies.contains(&object));
                    self.jobs.push(effect);
                }
                Effect::Load { object, .. } => {
                    assert!(self.copies.contains(&object));
                    self.jobs.push(effect);
                }
                Effect::Grow { segment, bytes } => {
                    assert!(self.segments.insert(segment, bytes).is_none());
                    self.jobs.push(effect);
                }
                Effect::Create { segment, bytes } => {
                    assert!(self.segments.insert(segment, bytes).is_none());
                }
                Effect::Discard { object } => assert!(self.copies.remove(&object)),
                Effect::Truncate { segment, bytes } => {
                    let had = self.segments.insert(segment, bytes).expect("the segment exists");
                    assert!(bytes < had);
                }
                Effect::Destroy { segment } => assert!(self.segments.remove(&segment).is_some()),
            }
        }
    }

    fn answer(&mut self, job: Effect, fail: bool) {
        let result = if fail { Err(DiskError::NoSpace) } else { Ok(()) };
        match job {
            Effect::Spill { object, .. } => {
                if !fail {
                    self.copies.insert(object);
                }
                self.store.spilled(object, result, &mut self.fx);
            }
            Effect::Load { object, .. } => self.store.loaded(object, result, &mut self.fx),
            Effect::Grow { segment, .. } => {
                if fail {
                    self.segments.remove(&segment);
                }
                self.store.grown(segment, result, &mut self.fx);
            }
            other => unreachable!("{other:?}"),
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Reserve { owner: n, bytes, purpose } => {
                let owner = owner(n);
                let (bytes, purpose) = match purpose {
                    0 | 1 => (bytes.clamp(ALLOTMENT_BYTES_MIN, 1 << 18), Purpose::Allotment),
                    2 => (bytes.min(1 << 16), Purpose::Table),
                    3 => (bytes, Purpose::File),
                    _ => (bytes, Purpose::Output),
                };
                match self.store.reserve(owner, bytes, purpose, &mut self.fx) {
                    Reserve::Granted(extent) => {
                        self.effects();
                        self.granted(owner, bytes, purpose, extent);
                    }
                    Reserve::Waiting(ticket) => {
                        self.waiting.insert(ticket, (owner, bytes, purpose));
                    }
                    Reserve::Refused(_) => {}
                }
            }
            Op::Seal { pick: n, keep_eighths } => {
                let Some(mut grant) = pick(&mut self.grants, n) else { return };
                self.items += 1;
                let key = ObjectKey {
                    run: grant.owner.run,
                    invocation: grant.owner.invocation,
                    port: 0,
                    item: self.items,
                };
                let (offset, bytes) = match grant.purpose {
                    Purpose::Allotment => (grant.next, u64::from(keep_eighths) * 777),
                    _ => (grant.extent.offset, grant.extent.bytes / 8 * u64::from(keep_eighths)),
                };
                let extent = Extent { offset, bytes, ..grant.extent };
                let fits = grant.extent.contains(&extent);
                let result = self.store.seal(key, grant.owner, extent, &mut self.fx);
                assert_eq!(result.is_ok(), fits && grant.purpose != Purpose::Table, "{result:?}");
                if result.is_ok() {
                    self.keyed.insert(key, grant.owner);
                    let again = self.store.seal(key, grant.owner, extent, &mut self.fx);
                    assert!(again.is_err(), "sealed twice");
                }
                if result.is_err() || grant.purpose == Purpose::Allotment {
                    grant.next += if fits { bytes } else { 0 };
                    self.grants.push(grant);
                }
            }
            Op::GiveBack { pick: n } => {
                let Some(grant) = pick(&mut self.grants, n) else { return };
                if self.store.give_back(grant.owner, grant.extent, &mut self.fx).is_err() {
                    let used = grant.next - grant.extent.offset;
                    self.store.close(grant.owner, grant.extent, used, &mut self.fx).expect("it is open");
                }
                // The place may have gone to somebody who waited, even to the same owner.
                let reused = self.fx.iter().any(|effect| matches!(effect, Effect::Granted { .. }));
                if reused {
                    return;
                }
                let late = self.store.close(grant.owner, grant.extent, 0, &mut self.fx);
                assert!(late.is_err(), "closed twice");
            }
            Op::Lease { pick } => {
                if self.keyed.is_empty() {
                    return;
                }
                let key = *self.keyed.keys().nth(usize::from(pick) % self.keyed.len()).expect("in range");
                match self.store.lease(key, &mut self.fx) {
                    Leased::Ready(lease, extent) => self.leases.push((lease, Some(extent))),
                    Leased::Restoring(lease) => self.leases.push((lease, None)),
                    Leased::Missing => panic!("{key:?} vanished"),
                }
            }
            Op::Unlease { pick: n } => {
                if let Some((lease, _)) = pick(&mut self.leases, n) {
                    self.store.unlease(lease, &mut self.fx);
                }
            }
            Op::Release { pick } | Op::Pin { pick } => {
                if self.keyed.is_empty() {
                    return;
                }
                let key = *self.keyed.keys().nth(usize::from(pick) % self.keyed.len()).expect("in range");
                if matches!(op, Op::Pin { .. }) {
                    assert!(self.store.pin(key));
                    assert!(self.store.release(key, &mut self.fx));
                    assert!(self.store.locate(key).is_some(), "a pinned object went");
                    assert!(self.store.unpin(key, &mut self.fx));
                } else {
                    assert!(self.store.release(key, &mut self.fx));
                }
                assert!(self.store.locate(key).is_none());
                self.keyed.remove(&key);
            }
            Op::Hold { pick } => {
                if !self.grants.is_empty() {
                    let extent = self.grants[usize::from(pick) % self.grants.len()].extent;
                    self.holds.push((self.store.hold(extent).expect("it is granted"), extent));
                }
            }
            Op::Unhold { pick: n } => {
                if let Some((hold, _)) = pick(&mut self.holds, n) {
                    self.store.unhold(hold, &mut self.fx);
                }
            }
            Op::Cancel { pick } => {
                if !self.waiting.is_empty() {
                    let ticket =
                        *self.waiting.keys().nth(usize::from(pick) % self.waiting.len()).expect("in range");
                    self.waiting.remove(&ticket);
                    assert!(self.store.cancel(ticket, &mut self.fx));
                    assert!(!self.store.cancel(ticket, &mut self.fx));
                }
            }
            Op::Answer { pick: n, fail } => {
                if let Some(job) = pick(&mut self.jobs, n) {
                    self.answer(job, fail);
                }
            }
            Op::DropOwner { owner: n, release } => {
                let owner = owner(n);
                let sealed = if release { Sealed::Release } else { Sealed::Keep };
                self.store.drop_owner(owner, sealed, &mut self.fx);
                self.grants.retain(|grant| grant.owner != owner);
                self.waiting.retain(|_, (other, ..)| *other != owner);
                if release {
                    self.keyed.retain(|_, other| *other != owner);
                }
            }
            Op::DropRun { run } => self.drop_run(RunId(u64::from(run))),
        }
    }

    fn drop_run(&mut self, run: RunId) {
        self.store.drop_run(run, &mut self.fx);
        self.grants.retain(|grant| grant.owner.run != run);
        self.waiting.retain(|_, (owner, ..)| owner.run != run);
        self.keyed.retain(|_, owner| owner.run != run);
    }

    /// What holds after each step.
    fn check(&self) {
        let stats = self.store.stats();
        assert!(stats.waiting as usize >= self.waiting.len());
        assert_eq!(stats.leases as usize, self.leases.len());
        assert!(stats.arena_used_bytes + stats.arena_free_bytes == stats.arena_bytes);
        assert!(stats.spilled_bytes + stats.overflow_bytes <= self.limits.spill_bytes);
        // Nothing that somebody writes, reads or looks at shares a byte with anything else of the kind,
        // except readers of one object, and objects and holds inside the grant that they are part of.
        let mut taken: BTreeMap<(SegmentId, u64), (u64, &str)> = BTreeMap::new();
        let mut take = |extent: Extent, what| {
            if extent.bytes == 0 {
                return;
            }
            if let Some((at, (end, other))) = taken.range(..(extent.segment, extent.end())).next_back() {
                assert!(
                    at.0 != extent.segment || *end <= extent.offset,
                    "{what} {extent:?} overlaps a {other} at {at:?}"
                );
            }
            taken.insert((extent.segment, extent.offset), (extent.end(), what));
        };
        for grant in &self.grants {
            take(grant.extent, "grant");
        }
        let inside_open = |extent: &Extent| self.grants.iter().any(|grant| grant.extent.contains(extent));
        let mut seen = BTreeSet::new();
        for (lease, extent) in &self.leases {
            if let Some(extent) = extent
                && !inside_open(extent)
                && seen.insert(lease.object())
            {
                take(*extent, "leased object");
            }
        }
        // What is being written to or read from disk stays put as well.
        for job in &self.jobs {
            if let Effect::Spill { object, extent, .. } | Effect::Load { object, extent, .. } = job
                && seen.insert(*object)
            {
                take(*extent, "object being copied");
            }
        }
        for key in self.keyed.keys() {
            let location = self.store.locate(*key).expect("a keyed object exists");
            if let Some(extent) = location.extent {
                assert_eq!(extent.bytes, location.bytes);
            }
        }
    }

    /// Ends everything; the store must be as new.
    fn finish(mut self) {
        // With the disk answering and nobody new asking, whoever waits is served or was refused once all
        // that holds memory has gone.
        for (lease, _) in std::mem::take(&mut self.leases) {
            self.store.unlease(lease, &mut self.fx);
            self.effects();
        }
        for (hold, _) in std::mem::take(&mut self.holds) {
            self.store.unhold(hold, &mut self.fx);
            self.effects();
        }
        for key in std::mem::take(&mut self.keyed).into_keys() {
            self.store.release(key, &mut self.fx);
            self.effects();
        }
        for _ in 0..10_000 {
            self.effects();
            if let Some(job) = self.jobs.pop() {
                self.answer(job, false);
            } else if let Some(grant) = self.grants.pop() {
                let used = 0;
                self.store.close(grant.owner, grant.extent, used, &mut self.fx).expect("it is open");
            } else {
                break;
            }
        }
        assert!(self.waiting.is_empty(), "{:?} still wait in an empty store", self.waiting);
        self.drop_run(RunId(0));
        self.drop_run(RunId(1));
        self.effects();
        let stats = self.store.stats();
        assert_eq!(stats.arena_used_bytes, 0);
        assert_eq!(stats.fragmentation, 0.0);
        assert_eq!((stats.objects, stats.objects_on_disk, stats.grants, stats.waiting), (0, 0, 0, 0));
        assert_eq!((stats.dedicated_bytes, stats.overflow_bytes, stats.spilled_bytes), (0, 0, 0));
        assert!(self.segments.is_empty() && self.copies.is_empty());
    }
}

fn run(limits: Limits, ops: Vec<Op>) -> (u64, u64) {
    let mut model = Model::new(limits);
    for op in ops {
        model.apply(op);
        model.effects();
        model.check();
    }
    let stats = model.store.stats();
    model.finish();
    (stats.spills, stats.loads)
}

/// Runs many interleavings, the same each time, and tells how many objects went to disk and came back.
fn explore(limits: Limits) -> (u64, u64) {
    let config = ProptestConfig {
        cases: 600,
        rng_seed: RngSeed::Fixed(limits.spill_bytes),
        failure_persistence: None,
        ..Default::default()
    };
    let (spills, loads) = (Cell::new(0), Cell::new(0));
    let result = TestRunner::new(config).run(&ops(), |ops| {
        let (spilled, loaded) = run(limits, ops);
        spills.set(spills.get() + spilled);
        loads.set(loads.get() + loaded);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    (spills.get(), loads.get())
}

const LIMITS: Limits = Limits {
    arena_bytes: 8 << 20,
    dedicated_bytes: 4 << 20,
    spill_bytes: 0,
    objects_max: 1000,
    waiting_max: 1000,
};

#[test]
fn without_a_disk() {
    assert_eq!(explore(LIMITS), (0, 0));
}

#[test]
fn with_a_disk() {
    let (spills, loads) = explore(Limits { spill_bytes: 16 << 20, ..LIMITS });
    assert!(spills > 100 && loads > 20, "too tame: {spills} spills, {loads} loads");
}

#[test]
fn with_a_small_disk() {
    let (spills, loads) = explore(Limits { spill_bytes: 3 << 20, arena_bytes: 2 << 20, ..LIMITS });
    assert!(spills > 100 && loads > 20, "too tame: {spills} spills, {loads} loads");
}
