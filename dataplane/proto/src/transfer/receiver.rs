//! The machine.

use super::chunks::Chunks;
use super::{Effect, Effects, Event, PeerId, ReadFault, Ticket, TransferError, TransferLimits};
use crate::ids::{ObjectKey, RunId, Tick};
use crate::wire::notice::{Announce, Notice};
use crate::wire::{NodeId, Region};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

/// A holder that failed once is left alone this long, doubling with each further failure. Milliseconds.
const REST_MS: u64 = 5;

/// Fetches objects. See the [module](super).
#[derive(Debug)]
pub struct Receiver {
    limits: TransferLimits,
    objects: BTreeMap<ObjectKey, Object>,
    flights: BTreeMap<Ticket, Flight>,
    next_ticket: u64,
    in_flight_bytes: u64,
    peer_bytes: BTreeMap<PeerId, u64>,
    run_bytes: BTreeMap<RunId, u64>,
    /// Objects of which something can perhaps be asked for, by run.
    ready: BTreeMap<RunId, BTreeSet<ObjectKey>>,
    /// Objects that could go on but for a peer's window, by that peer.
    blocked: BTreeMap<PeerId, BTreeSet<ObjectKey>>,
    /// Times at which an object must be looked at.
    alarms: BTreeSet<(Tick, ObjectKey)>,
}

/// An object somebody has announced or somebody here wants.
#[derive(Debug)]
struct Object {
    /// The try being fetched; 0 if none was announced.
    attempt: u32,
    /// Lower tries are void, whoever still announces them.
    attempt_min: u32,
    size: Option<u64>,
    capacity_bytes: u64,
    holders: Vec<Holder>,
    relay: Vec<NodeId>,
    /// Until when it is wanted here; `None` if it is only known.
    wanted: Option<Tick>,
    memory: Memory,
    chunks: Chunks,
    /// Reads of this try under way.
    reads: u32,
    failures: u32,
    alarm: Option<Tick>,
    seek_at: Tick,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Memory {
    None,
    Asked,
    Granted,
    /// All bytes are here.
    Full,
}

#[derive(Clone, Copy, Debug)]
struct Holder {
    peer: PeerId,
    region: Region,
    offset: u64,
    watermark: u64,
    failures: u32,
    rests_until: Tick,
}

#[derive(Clone, Copy, Debug)]
struct Flight {
    key: ObjectKey,
    attempt: u32,
    peer: PeerId,
    from: u64,
    to: u64,
}

impl Receiver {
    /// Knows and wants nothing.
    pub fn new(limits: TransferLimits) -> Receiver {
        Receiver {
            limits,
            objects: BTreeMap::new(),
            flights: BTreeMap::new(),
            next_ticket: 1,
            in_flight_bytes: 0,
            peer_bytes: BTreeMap::new(),
            run_bytes: BTreeMap::new(),
            ready: BTreeMap::new(),
            blocked: BTreeMap::new(),
            alarms: BTreeSet::new(),
        }
    }

    /// When [`Receiver::tick`] has something to do.
    pub fn deadline(&self) -> Option<Tick> {
        self.alarms.first().map(|(at, _)| *at)
    }

    /// Bytes asked for and not answered.
    pub const fn in_flight_bytes(&self) -> u64 {
        self.in_flight_bytes
    }

    /// Objects known or wanted.
    pub fn objects(&self) -> usize {
        self.objects.len()
    }

    /// Takes an event.
    pub fn handle(&mut self, now: Tick, event: Event, fx: &mut Effects) {
        match event {
            Event::Fetch { key, deadline } => self.fetch(now, key, deadline, fx),
            Event::Cancel { key } => self.give_up(key, TransferError::Cancelled, fx),
            Event::Notice { peer, notice } => self.notice(now, peer, notice, fx),
            Event::Reserved { key, attempt, granted } => self.reserved(key, attempt, granted, fx),
            Event::Read { ticket, done_bytes, fault } => self.read(now, ticket, done_bytes, fault, fx),
            Event::PeerGone { peer } => self.lose_peer(now, peer),
        }
        self.schedule(now, fx);
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Tick, fx: &mut Effects) {
        while let Some((at, key)) = self.alarms.first().copied()
            && at <= now
        {
            self.alarms.pop_first();
            let Some(object) = self.objects.get_mut(&key) else { continue };
            object.alarm = None;
            for holder in object.holders.iter_mut().filter(|holder| holder.rests_until <= now) {
                holder.rests_until = Tick(0);
            }
            let have_bytes = object.chunks.done();
            if object.wanted.is_some_and(|deadline| deadline <= now) {
                let holders = object.holders.len();
                self.give_up(key, TransferError::TimedOut { have_bytes, holders }, fx);
                continue;
            }
            if object.wanted.is_some() && object.holders.is_empty() && object.memory != Memory::Full {
                if object.seek_at <= now {
                    object.seek_at = now.after_ms(self.limits.seek_ms);
                    fx.push(Effect::Seek { key });
                }
            } else {
                self.mark_ready(key);
            }
            self.set_alarm(key);
        }
        self.schedule(now, fx);
    }

    /// Forgets all objects of a run, without a word about them.
    pub fn drop_run(&mut self, run: RunId, fx: &mut Effects) {
        let keys: Vec<ObjectKey> = self.objects.keys().filter(|key| key.run == run).copied().collect();
        keys.into_iter().for_each(|key| self.forget(key, fx));
    }

    fn fetch(&mut self, now: Tick, key: ObjectKey, deadline: Tick, fx: &mut Effects) {
        let objects = self.objects.len();
        if objects >= self.limits.objects_max && !self.objects.contains_key(&key) {
            let why = TransferError::TooManyObjects { objects };
            return fx.push(Effect::Failed { key, why });
        }
        // Producers announce to those who will read, so at first it is worth waiting to be told.
        let patience = now.after_ms(self.limits.seek_ms);
        let object = self.objects.entry(key).or_insert_with(|| Object::unknown(patience));
        if object.memory == Memory::Full {
            let (attempt, size) = (object.attempt, object.size.unwrap_or(object.chunks.done()));
            return fx.push(Effect::Arrived { key, attempt, size });
        }
        object.wanted = Some(object.wanted.map_or(deadline, |earlier| earlier.max(deadline)));
        self.ask_for_memory(key, fx);
        self.set_alarm(key);
    }

    fn notice(&mut self, now: Tick, peer: PeerId, notice: Notice, fx: &mut Effects) {
        match notice {
            Notice::Announce(announce) => self.announced(now, peer, announce, fx),
            Notice::Progress { key, attempt, watermark } => {
                self.moved(key, attempt, peer, watermark, None, fx);
            }
            Notice::Sealed { key, attempt, size } => self.moved(key, attempt, peer, size, Some(size), fx),
            Notice::Withdrawn { key, attempt, lost } => {
                let Some(object) = self.objects.get_mut(&key).filter(|object| object.attempt == attempt)
                else {
                    return;
                };
                if lost {
                    self.void(now, key, fx);
                } else {
                    object.holders.retain(|holder| holder.peer != peer);
                }
                self.look_for_holders(now, key);
            }
            // What we hold is the driver's to answer.
            Notice::Want { .. } | Notice::Finished { .. } | Notice::Say { .. } => {}
        }
    }

    fn announced(&mut self, now: Tick, peer: PeerId, announce: Announce, fx: &mut Effects) {
        let key = announce.key;
        if !self.objects.contains_key(&key) && self.objects.len() >= self.limits.objects_max {
            return;
        }
        let object = self.objects.entry(key).or_insert_with(|| Object::unknown(now));
        if announce.attempt < object.attempt.max(object.attempt_min) {
            return;
        }
        if announce.attempt > object.attempt {
            if object.attempt > 0 {
                self.void(now, key, fx);
            }
            let object = self.objects.get_mut(&key).expect("void keeps it");
            (object.attempt, object.size) = (announce.attempt, None);
            object.capacity_bytes = announce.capacity_bytes;
        }
        let object = self.objects.get_mut(&key).expect("inserted above");
        if self.limits.announced_ms > 0 && object.memory != Memory::Full {
            object.wanted.get_or_insert(now.after_ms(self.limits.announced_ms));
        }
        // Memory was asked for by what the first holder said; another's larger claims must not reach beyond it.
        let capacity = object.capacity_bytes;
        object.size = object.size.or(announce.size.filter(|size| *size <= capacity));
        for node in announce.relay {
            if !object.relay.contains(&node) {
                object.relay.push(node);
            }
        }
        if object.memory == Memory::Full {
            return self.pass_on(key, fx);
        }
        if announce.size == Some(announce.inline.len() as u64) {
            object.memory = Memory::Full;
            object.wanted = None;
            let attempt = object.attempt;
            fx.push(Effect::Inline { key, attempt, bytes: announce.inline });
            fx.push(Effect::Tell { peer, notice: Notice::Finished { key } });
            return self.set_alarm(key);
        }
        object.holders.retain(|holder| holder.peer != peer);
        object.holders.push(Holder {
            peer,
            region: announce.region,
            offset: announce.offset,
            watermark: announce.watermark.min(capacity),
            failures: 0,
            rests_until: Tick(0),
        });
        self.ask_for_memory(key, fx);
        self.finish_if_whole(key, fx);
        self.mark_ready(key);
        self.set_alarm(key);
    }

    fn moved(
        &mut self,
        key: ObjectKey,
        attempt: u32,
        peer: PeerId,
        watermark: u64,
        size: Option<u64>,
        fx: &mut Effects,
    ) {
        let Some(object) = self.objects.get_mut(&key).filter(|object| object.attempt == attempt) else {
            return;
        };
        let capacity = object.capacity_bytes;
        object.size = object.size.or(size.filter(|size| *size <= capacity));
        if let Some(holder) = object.holders.iter_mut().find(|holder| holder.peer == peer) {
            holder.watermark = holder.watermark.max(watermark.min(capacity));
        }
        self.finish_if_whole(key, fx);
        self.mark_ready(key);
    }

    fn ask_for_memory(&mut self, key: ObjectKey, fx: &mut Effects) {
        let Some(object) = self.objects.get_mut(&key) else { return };
        if object.wanted.is_some() && object.memory == Memory::None && object.attempt > 0 {
            object.memory = Memory::Asked;
            let bytes = object.size.unwrap_or(object.capacity_bytes);
            fx.push(Effect::Reserve { key, attempt: object.attempt, bytes });
        }
    }

    fn reserved(&mut self, key: ObjectKey, attempt: u32, granted: bool, fx: &mut Effects) {
        let Some(object) = self.objects.get_mut(&key) else { return };
        if object.attempt != attempt || object.memory != Memory::Asked {
            return;
        }
        if !granted {
            let bytes = object.size.unwrap_or(object.capacity_bytes);
            return self.give_up(key, TransferError::NoRoom { bytes }, fx);
        }
        object.memory = Memory::Granted;
        self.pass_on(key, fx);
        self.finish_if_whole(key, fx);
        self.mark_ready(key);
    }

    /// Announces the copy here, finished or not, to those it is to be passed on to.
    fn pass_on(&mut self, key: ObjectKey, fx: &mut Effects) {
        let Some(object) = self.objects.get_mut(&key) else { return };
        if !object.relay.is_empty() && matches!(object.memory, Memory::Granted | Memory::Full) {
            let nodes = core::mem::take(&mut object.relay);
            fx.push(Effect::Relay { key, attempt: object.attempt, nodes });
        }
    }

    fn read(
        &mut self,
        now: Tick,
        ticket: Ticket,
        done_bytes: u64,
        fault: Option<ReadFault>,
        fx: &mut Effects,
    ) {
        let Some(flight) = self.flights.remove(&ticket) else { return };
        let bytes = flight.to - flight.from;
        self.in_flight_bytes -= bytes;
        subtract(&mut self.peer_bytes, flight.peer, bytes);
        subtract(&mut self.run_bytes, flight.key.run, bytes);
        let left = self.peer_bytes.get(&flight.peer).copied().unwrap_or(0);
        if left <= self.limits.peer_window_bytes / 2 {
            // Above half, another answer of this peer is still to come and will see to it.
            let blocked = self.blocked.remove(&flight.peer).unwrap_or_default();
            blocked.into_iter().for_each(|key| self.mark_ready(key));
        }
        let Some(object) = self.objects.get_mut(&flight.key) else { return };
        if object.attempt != flight.attempt || object.memory != Memory::Granted {
            return;
        }
        object.reads -= 1;
        let here = match fault {
            None => flight.to,
            Some(ReadFault::Damaged) => flight.from,
            Some(_) => flight.from + done_bytes.min(bytes),
        };
        let key = flight.key;
        let advanced = object.chunks.came(flight.from, here, flight.to);
        if let Some(fault) = fault {
            object.failures += 1;
            if let Some(at) = object.holders.iter().position(|holder| holder.peer == flight.peer) {
                let holder = &mut object.holders[at];
                holder.failures += 1;
                holder.rests_until = now.after_ms(REST_MS << holder.failures.min(8));
                if fault == ReadFault::HolderLost || holder.failures > self.limits.holder_failures_max {
                    object.holders.remove(at);
                }
            }
            if object.failures > self.limits.failures_max {
                let failures = object.failures;
                return self.give_up(key, TransferError::TooManyFailures { failures }, fx);
            }
            self.look_for_holders(now, key);
        } else if let Some(holder) = object.holders.iter_mut().find(|holder| holder.peer == flight.peer) {
            holder.failures = 0;
        }
        if advanced {
            let object = &self.objects[&key];
            let (attempt, watermark) = (object.attempt, object.chunks.done());
            fx.push(Effect::Advanced { key, attempt, watermark });
            self.finish_if_whole(key, fx);
        }
        self.mark_ready(key);
        self.set_alarm(key);
    }

    fn finish_if_whole(&mut self, key: ObjectKey, fx: &mut Effects) {
        let Some(object) = self.objects.get_mut(&key) else { return };
        if object.memory != Memory::Granted || object.size.is_none_or(|size| object.chunks.done() < size) {
            return;
        }
        object.memory = Memory::Full;
        object.wanted = None;
        let (attempt, size) = (object.attempt, object.chunks.done());
        fx.push(Effect::Arrived { key, attempt, size });
        for holder in core::mem::take(&mut object.holders) {
            fx.push(Effect::Tell { peer: holder.peer, notice: Notice::Finished { key } });
        }
        self.set_alarm(key);
    }

    /// What was read so far must not be used. Forgets all holders of that try.
    fn void(&mut self, now: Tick, key: ObjectKey, fx: &mut Effects) {
        self.cancel_reads(key, fx);
        let Some(object) = self.objects.get_mut(&key) else { return };
        if object.memory != Memory::None {
            fx.push(Effect::Void { key, attempt: object.attempt });
        }
        let (wanted, alarm, attempt_min) = (object.wanted, object.alarm, object.attempt + 1);
        *object = Object { wanted, alarm, attempt_min, ..Object::unknown(now) };
    }

    fn lose_peer(&mut self, now: Tick, peer: PeerId) {
        let held = |object: &Object| object.holders.iter().any(|holder| holder.peer == peer);
        let keys: Vec<ObjectKey> =
            self.objects.iter().filter(|(_, object)| held(object)).map(|(key, _)| *key).collect();
        for key in keys {
            let object = self.objects.get_mut(&key).expect("found above");
            object.holders.retain(|holder| holder.peer != peer);
            if object.holders.is_empty() && object.wanted.is_none() && object.memory == Memory::None {
                // Nobody here asked for it, and nobody has it: if it is wanted later, it is asked for.
                self.objects.remove(&key);
            } else {
                self.look_for_holders(now, key);
            }
        }
    }

    fn look_for_holders(&mut self, now: Tick, key: ObjectKey) {
        if let Some(object) = self.objects.get_mut(&key)
            && object.holders.is_empty()
        {
            object.seek_at = now;
        }
        self.set_alarm(key);
    }

    fn give_up(&mut self, key: ObjectKey, why: TransferError, fx: &mut Effects) {
        if self.objects.get(&key).is_some_and(|object| object.wanted.is_some()) {
            fx.push(Effect::Failed { key, why });
            self.forget(key, fx);
        }
    }

    fn forget(&mut self, key: ObjectKey, fx: &mut Effects) {
        self.cancel_reads(key, fx);
        if let Some(object) = self.objects.remove(&key) {
            if let Some(at) = object.alarm {
                self.alarms.remove(&(at, key));
            }
            for holder in object.holders {
                fx.push(Effect::Tell { peer: holder.peer, notice: Notice::Finished { key } });
            }
        }
    }

    fn cancel_reads(&mut self, key: ObjectKey, fx: &mut Effects) {
        let of_key = self.flights.iter().filter(|(_, flight)| flight.key == key);
        fx.extend(of_key.map(|(ticket, _)| Effect::CancelRead { ticket: *ticket }));
    }

    /// When the object must be looked at again: its deadline, a holder's rest, the next search.
    fn set_alarm(&mut self, key: ObjectKey) {
        let Some(object) = self.objects.get_mut(&key) else { return };
        let mut at = object.wanted;
        if object.wanted.is_some() && object.memory != Memory::Full {
            let rests = object.holders.iter().map(|holder| holder.rests_until).filter(|rest| *rest > Tick(0));
            let seeks = object.holders.is_empty().then_some(object.seek_at);
            at = at.into_iter().chain(rests.filter(|_| object.reads == 0)).chain(seeks).min();
        }
        if at == object.alarm {
            return;
        }
        if let Some(old) = object.alarm.take() {
            self.alarms.remove(&(old, key));
        }
        if let Some(at) = at {
            object.alarm = Some(at);
            self.alarms.insert((at, key));
        }
    }

    fn mark_ready(&mut self, key: ObjectKey) {
        if self.objects.get(&key).is_some_and(|object| object.memory == Memory::Granted) {
            self.ready.entry(key.run).or_default().insert(key);
        }
    }

    /// Asks for chunks while the window has room: always for the run that has the least on its way.
    fn schedule(&mut self, now: Tick, fx: &mut Effects) {
        while self.in_flight_bytes < self.limits.window_bytes {
            let least = |run: &&RunId| self.run_bytes.get(*run).copied().unwrap_or(0);
            let Some(run) = self.ready.keys().min_by_key(least).copied() else { return };
            let keys = self.ready.get_mut(&run).expect("found above");
            let Some(key) = keys.pop_first() else {
                self.ready.remove(&run);
                continue;
            };
            if keys.is_empty() {
                self.ready.remove(&run);
            }
            if self.ask(now, key, fx) {
                self.mark_ready(key);
            }
        }
    }

    /// Asks for one chunk of an object. `false` if none can be asked for now.
    fn ask(&mut self, now: Tick, key: ObjectKey, fx: &mut Effects) -> bool {
        let Some(object) = self.objects.get_mut(&key) else { return false };
        if object.memory != Memory::Granted {
            return false;
        }
        let (chunk, peer_window) = (self.limits.chunk_bytes, self.limits.peer_window_bytes);
        let peer_bytes = &self.peer_bytes;
        let load = |holder: &Holder| peer_bytes.get(&holder.peer).copied().unwrap_or(0);
        let end = object.size.unwrap_or(u64::MAX);
        let awake = object.holders.iter().filter(|holder| holder.rests_until <= now);
        let candidates = awake.filter_map(|holder| {
            let range = object.chunks.peek(holder.watermark.min(end), chunk)?;
            Some((load(holder), range, *holder))
        });
        // The least busy holder; of those, the one that can give most.
        let best =
            candidates.min_by_key(|(load, (from, to), holder)| (*load, u64::MAX - (to - from), holder.peer));
        let Some((load, (from, to), holder)) = best else { return false };
        if load >= peer_window {
            self.blocked.entry(holder.peer).or_default().insert(key);
            return false;
        }
        // The tail of an object that still grows: while something is on its way, more of it gathers.
        let growing = object.size.is_none_or(|size| to < size);
        if to - from < chunk && growing && object.reads > 0 {
            return false;
        }
        object.chunks.asked(from, to);
        object.reads += 1;
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        let attempt = object.attempt;
        self.flights.insert(ticket, Flight { key, attempt, peer: holder.peer, from, to });
        self.in_flight_bytes += to - from;
        *self.peer_bytes.entry(holder.peer).or_default() += to - from;
        *self.run_bytes.entry(key.run).or_default() += to - from;
        fx.push(Effect::Read {
            ticket,
            key,
            attempt,
            peer: holder.peer,
            region: holder.region,
            offset: holder.offset + from,
            at: from,
            bytes: to - from,
            deadline: now.after_ms(self.limits.read_ms_max),
        });
        true
    }
}

impl Object {
    fn unknown(seek_at: Tick) -> Object {
        Object {
            attempt: 0,
            attempt_min: 1,
            size: None,
            capacity_bytes: 0,
            holders: Vec::new(),
            relay: Vec::new(),
            wanted: None,
            memory: Memory::None,
            chunks: Chunks::default(),
            reads: 0,
            failures: 0,
            alarm: None,
            seek_at,
        }
    }
}

fn subtract<K: Ord>(counts: &mut BTreeMap<K, u64>, key: K, bytes: u64) {
    if let Some(count) = counts.get_mut(&key) {
        *count -= bytes;
        if *count == 0 {
            counts.remove(&key);
        }
    }
}
