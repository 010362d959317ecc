//! What is fetched from other nodes: memory for it, the pages its readers look at, its seal.

use super::super::cluster::Cluster;
use super::super::memory::Waiter;
use super::super::{Attempt, Engine, Phase};
use crate::node::net::{Command, Returned};
use dflow_core::graph::PortKind;
use dflow_proto::ids::{Extent, ObjectKey};
use dflow_proto::limits::{ALLOTMENT_BYTES_MAX, ALLOTMENT_BYTES_MIN, OUTPUT_PORTS_MAX, PAGE_BYTES};
use dflow_proto::store::{Owner, Purpose, Reserve, SealError, StoreError, Ticket};
use dflow_proto::transfer::TransferError;
use dflow_proto::{RunId, SegmentId, Tick};
use dflow_shm::page::{PageNode, PageWriter, Place};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// Small objects in an allotment begin on this boundary. Bytes.
const SMALL_ALIGN: u64 = 64;

/// What stands in for a producer on another node, beside its page.
pub(in super::super) struct StandIn {
    writer: PageWriter,
    /// The first byte of its allotment that is free.
    tail: u64,
    /// Items on the page, by `many` port.
    items: BTreeMap<u16, Vec<Place>>,
}

/// An object on its way here.
pub(super) struct Arrival {
    owner: Owner,
    /// The transfer's count of the attempt, which has no 0.
    attempt: u32,
    bytes: u64,
    place: Memory,
    /// When it was first heard of.
    began: Tick,
}

enum Memory {
    Waiting(Ticket),
    Granted(Extent),
}

/// An object that is here and cannot be sealed while that of a void attempt is there.
pub(super) struct Late {
    pub(super) key: ObjectKey,
    owner: Owner,
    extent: Extent,
}

impl Engine {
    /// Makes a page for an attempt that another node executes, unless there is one. False if there is none.
    pub(super) fn stand_in(&mut self, owner: Owner) -> bool {
        let job = (owner.run, owner.invocation);
        if let Some(state) = self.attempts.get(&job) {
            if state.stand_in.is_none() || state.attempt >= owner.attempt {
                return state.stand_in.is_some() && state.attempt == owner.attempt;
            }
            self.retire(owner.run, owner.invocation, owner.attempt - 1);
        }
        let Some(state) = self.runs.get(&owner.run) else { return false };
        let step = &state.workflow.graph.steps[owner.invocation.step as usize];
        let ports = step.outputs.len();
        let wrote = state.wrote[owner.invocation.step as usize];
        let bytes =
            (PAGE_BYTES + wrote * 2).next_power_of_two().clamp(ALLOTMENT_BYTES_MIN, ALLOTMENT_BYTES_MAX);
        if ports > OUTPUT_PORTS_MAX {
            return false;
        }
        // Without a page its readers wait for whole objects.
        let Some(extent) = self.reserve_now(owner, bytes, Purpose::Allotment) else { return false };
        let arena = self.store.arena();
        let page = arena
            .map_of(extent.segment)
            .and_then(|map| PageNode::begin(&map, extent, owner.run, owner.invocation, owner.attempt).ok());
        let part = arena.part_mut(extent);
        let (Some(page), Ok(part)) = (page, part) else {
            unreachable!("the store granted {extent:?} outside of its segments");
        };
        let Some(writer) = PageWriter::attach(&part, ports) else { return false };
        let mut attempt = Attempt::new(owner.attempt, false);
        attempt.phase = Phase::Elsewhere;
        attempt.allotment = Some(extent);
        attempt.page = Some(page);
        attempt.stand_in = Some(Box::new(StandIn { writer, tail: PAGE_BYTES, items: BTreeMap::new() }));
        self.attempts.insert(job, attempt);
        true
    }

    fn reserve_now(&mut self, owner: Owner, bytes: u64, purpose: Purpose) -> Option<Extent> {
        match self.store.reserve(owner, bytes, purpose) {
            Reserve::Granted(extent) => Some(extent),
            Reserve::Waiting(ticket) => {
                self.store.cancel(ticket);
                None
            }
            Reserve::Refused(_) => None,
        }
    }

    /// Part of a stand-in's allotment.
    fn carve(&mut self, owner: Owner, bytes: u64) -> Option<Extent> {
        let state =
            self.attempts.get_mut(&(owner.run, owner.invocation)).filter(|a| a.attempt == owner.attempt)?;
        let (allotment, stand_in) = (state.allotment?, state.stand_in.as_mut()?);
        let at = stand_in.tail;
        let end = at.checked_add(bytes)?;
        if end > allotment.bytes {
            return None;
        }
        stand_in.tail = end.next_multiple_of(SMALL_ALIGN);
        Some(Extent { offset: allotment.offset + at, bytes, ..allotment })
    }

    /// Where an object stands on its producer's page here.
    fn page_place(&mut self, owner: Owner, key: ObjectKey) -> Option<Place> {
        let workflow = self.workflow(owner.run)?;
        let port =
            workflow.graph.steps.get(owner.invocation.step as usize)?.outputs.get(usize::from(key.port))?;
        if port.kind != PortKind::Many {
            return Some(Place { port: key.port, item: None });
        }
        if key.item >= port.items_max {
            return None;
        }
        loop {
            let stand_in = self.stand_in_of(owner)?;
            let items = stand_in.items.entry(key.port).or_default();
            if let Some(place) = items.get(key.item as usize) {
                return Some(*place);
            }
            if let Some(place) = stand_in.writer.append(key.port) {
                items.push(place);
                continue;
            }
            let bytes = stand_in.writer.chunk_needed(key.port)?;
            let extent = match self.carve(owner, bytes) {
                Some(extent) => extent,
                None => self.reserve_now(owner, bytes, Purpose::Allotment)?,
            };
            let chunk = self.store.arena().part_mut(Extent { bytes, ..extent }).ok()?;
            self.stand_in_of(owner)?.writer.add_chunk(key.port, chunk);
        }
    }

    fn stand_in_of(&mut self, owner: Owner) -> Option<&mut StandIn> {
        let state = self.attempts.get_mut(&(owner.run, owner.invocation))?;
        state.stand_in.as_deref_mut().filter(|_| state.attempt == owner.attempt)
    }

    /// The number of items of a `many` port is known.
    pub(super) fn pin_page(&mut self, owner: Owner, port: u16, count: u32) {
        if self.stand_in_of(owner).is_none() {
            return;
        }
        let last = count.checked_sub(1);
        let key = |item| ObjectKey { run: owner.run, invocation: owner.invocation, port, item };
        // A port without items needs no index.
        if last.is_none_or(|item| self.page_place(owner, key(item)).is_some())
            && let Some(stand_in) = self.stand_in_of(owner)
            && stand_in.items.get(&port).map_or(0, Vec::len) == count as usize
        {
            stand_in.writer.pin(port);
        }
    }

    /// Whose an object that comes here is; `None` if nothing here can want it.
    fn arriving_owner(&self, key: ObjectKey, attempt: u32) -> Option<Owner> {
        let run = key.run;
        if key.invocation.step == ObjectKey::INPUT_STEP {
            let invited = self.cluster.as_ref()?.invited.contains_key(&run);
            return (invited || self.runs.contains_key(&run)).then(|| Owner::inputs(run));
        }
        let shared = self.runs.get(&run)?.shared.as_ref()?;
        let void = shared.void.get(&key.invocation).copied().unwrap_or(0);
        let wanted = attempt > void && self.scheduler.wants(key);
        wanted.then_some(Owner { run, invocation: key.invocation, attempt })
    }

    /// Whether an object is to be a file of its own, since programs read it.
    fn is_file(&self, key: ObjectKey) -> bool {
        let invited = || Some(&self.cluster.as_ref()?.invited.get(&key.run)?.workflow);
        let workflow = self.runs.get(&key.run).map(|state| &state.workflow).or_else(invited);
        let Some(workflow) = workflow else { return false };
        match key.invocation.step {
            ObjectKey::INPUT_STEP => workflow.inputs.get(usize::from(key.port)).is_some_and(|i| i.file),
            step => {
                let ports = workflow.graph.steps.get(step as usize).map(|step| &step.outputs);
                ports.and_then(|ports| ports.get(usize::from(key.port))).is_some_and(|port| port.file)
            }
        }
    }

    /// An announced object needs memory.
    pub(super) fn landing_wanted(&mut self, key: ObjectKey, attempt: u32, bytes: u64) {
        let Some(owner) = self.arriving_owner(key, attempt) else { return self.not_wanted(key) };
        if self.cluster.as_ref().is_some_and(|c| c.arrivals.contains_key(&key)) {
            self.landing_void(key, u32::MAX);
        }
        let purpose = if self.is_file(key) { Purpose::File } else { Purpose::Output };
        let place = match self.store.reserve(owner, bytes, purpose) {
            Reserve::Granted(extent) => Memory::Granted(extent),
            Reserve::Waiting(ticket) => {
                self.waiting.insert(ticket, Waiter::Arrival(key));
                Memory::Waiting(ticket)
            }
            Reserve::Refused(error) => return self.no_room(key, attempt, &error),
        };
        let granted = matches!(place, Memory::Granted(_));
        let began = self.now();
        if let Some(cluster) = &mut self.cluster {
            cluster.arrivals.insert(key, Arrival { owner, attempt, bytes, place, began });
        }
        if granted {
            self.land(key);
        }
    }

    /// There is memory for an object that had to wait.
    pub(in super::super) fn landing_granted(&mut self, key: ObjectKey, extent: Extent) {
        if let Some(arrival) = self.cluster.as_mut().and_then(|c| c.arrivals.get_mut(&key)) {
            arrival.place = Memory::Granted(extent);
            self.land(key);
        }
    }

    /// There will be none.
    pub(in super::super) fn landing_refused(&mut self, key: ObjectKey, error: &StoreError) {
        if let Some(arrival) = self.cluster.as_mut().and_then(|c| c.arrivals.remove(&key)) {
            self.no_room(key, arrival.attempt, error);
        }
    }

    pub(in super::super) fn no_room(&mut self, key: ObjectKey, attempt: u32, error: &StoreError) {
        if let Some(cluster) = &mut self.cluster {
            cluster.net.command(Command::Granted { key, attempt, landing: None });
        }
        let what = self.object_name(key);
        self.run_broken(key.run, format!("{what} cannot be fetched: {error}"));
    }

    /// Lets bytes land, and readers follow.
    fn land(&mut self, key: ObjectKey) {
        let Some(Arrival { owner, attempt, bytes, place: Memory::Granted(granted), .. }) =
            self.cluster.as_ref().and_then(|c| c.arrivals.get(&key))
        else {
            return;
        };
        let (owner, attempt, extent) = (*owner, *attempt, Extent { bytes: *bytes, ..*granted });
        let (Some(map), Some(hold)) = (self.store.arena().map_of(extent.segment), self.store.hold(extent))
        else {
            unreachable!("the store granted {extent:?} outside of its segments");
        };
        if let Some(Cluster { net, returns, .. }) = self.cluster.as_deref_mut() {
            let landing = Some((map, extent, returns.lend(Returned::Hold(hold))));
            net.command(Command::Granted { key, attempt, landing });
        }
        self.show_on_page(owner, key, |writer, place| writer.open(place, extent), extent);
    }

    /// Writes an object on its producer's page, making the page first where there is none.
    fn show_on_page(
        &mut self,
        owner: Owner,
        key: ObjectKey,
        show: impl FnOnce(&PageWriter, Place),
        extent: Extent,
    ) {
        if owner.attempt == 0 {
            return;
        }
        if self.stand_in_of(owner).is_none() {
            if !self.stand_in(owner) {
                return;
            }
            // Consumers were told that this producer runs when it had no page yet.
            self.relink_run(owner.run);
        }
        let Some(place) = self.page_place(owner, key) else { return };
        if extent.segment != SegmentId(0) {
            self.share_segment(extent, (owner.run, owner.invocation));
        }
        if let Some(stand_in) = self.stand_in_of(owner) {
            show(&stand_in.writer, place);
        }
    }

    pub(super) fn came_more(&mut self, key: ObjectKey, attempt: u32, watermark: u64) {
        let arrival = self.cluster.as_ref().and_then(|c| c.arrivals.get(&key));
        let Some(owner) = arrival.filter(|a| a.attempt == attempt).map(|a| a.owner) else { return };
        if self.stand_in_of(owner).is_none() {
            return;
        }
        let place = self.page_place(owner, key);
        if let (Some(place), Some(stand_in)) = (place, self.stand_in_of(owner)) {
            stand_in.writer.advance(place, watermark);
        }
    }

    pub(super) fn came_whole(&mut self, key: ObjectKey, attempt: u32, size: u64) {
        let now = self.now();
        let source = self.runs.get(&key.run).and_then(|run| run.shared.as_ref()?.source(key));
        let Some(cluster) = &mut self.cluster else { return };
        match cluster.arrivals.remove(&key) {
            Some(Arrival { owner, attempt: of, place: Memory::Granted(granted), began, .. })
                if of == attempt =>
            {
                if let Some(source) = source {
                    cluster.count_transfer(source, size, now.since_us(began));
                }
                // Nothing lands there any more.
                cluster.net.command(Command::Release { key });
                self.take_in(key, owner, Extent { bytes: size, ..granted });
            }
            Some(other) => drop(cluster.arrivals.insert(key, other)),
            None => {}
        }
    }

    pub(super) fn came_inline(&mut self, key: ObjectKey, attempt: u32, bytes: Vec<u8>) {
        let Some(owner) = self.arriving_owner(key, attempt) else { return self.not_wanted(key) };
        if self.store.locate(key).is_some_and(|at| at.attempt == owner.attempt) {
            return;
        }
        let length = bytes.len() as u64;
        let file = self.is_file(key);
        let carved = if file || owner.attempt == 0 {
            None
        } else {
            let new = self.stand_in_of(owner).is_none();
            if new && self.stand_in(owner) {
                self.relink_run(owner.run);
            }
            self.carve(owner, length)
        };
        let purpose = if file { Purpose::File } else { Purpose::Output };
        let extent = match carved {
            Some(extent) => extent,
            None => match self.store.reserve(owner, length, purpose) {
                Reserve::Granted(extent) => Extent { bytes: length, ..extent },
                Reserve::Waiting(ticket) => {
                    self.waiting.insert(ticket, Waiter::Value { key, owner, bytes });
                    return;
                }
                Reserve::Refused(error) => return self.no_room(key, attempt, &error),
            },
        };
        self.value_lands(key, owner, extent, &bytes);
    }

    /// A small object has its memory.
    pub(in super::super) fn value_lands(
        &mut self,
        key: ObjectKey,
        owner: Owner,
        extent: Extent,
        bytes: &[u8],
    ) {
        let extent = Extent { bytes: bytes.len() as u64, ..extent };
        match self.store.arena().part_mut(extent) {
            Ok(part) => part.copy_in(0, bytes),
            Err(error) => unreachable!("the store granted {extent:?} outside of its segments: {error}"),
        }
        self.take_in(key, owner, extent);
    }

    /// An object is here, whole.
    fn take_in(&mut self, key: ObjectKey, owner: Owner, extent: Extent) {
        match self.store.seal(key, owner, extent) {
            Ok(_) => {}
            Err(SealError::Already { attempt, .. }) if attempt < owner.attempt => {
                // The word that takes the other back is on its way from a third node.
                if let Some(cluster) = &mut self.cluster {
                    cluster.late.push(Late { key, owner, extent });
                }
                return;
            }
            Err(error) => {
                tracing::debug!(?key, %error, "what came is not taken in");
                return;
            }
        }
        let job = (key.run, key.invocation);
        if key.invocation.step == ObjectKey::INPUT_STEP {
            return self.input_came(key);
        }
        self.show_on_page(owner, key, |writer, place| writer.put(place, extent), extent);
        self.lease_for_readers(job, key);
        if let Some(state) = self.runs.get_mut(&key.run) {
            let wrote = &mut state.wrote[key.invocation.step as usize];
            *wrote = (*wrote).max(extent.bytes);
            if let Some(shared) = &mut state.shared {
                shared.unheard.insert(key, owner.attempt);
            }
        }
        self.hand_on(key.run, key.invocation);
    }

    /// Takes in what waited for a predecessor to go; false if nothing could be.
    pub(in super::super) fn take_in_late(&mut self) -> bool {
        let Some(cluster) = &mut self.cluster else { return false };
        if cluster.late.is_empty() {
            return false;
        }
        let gone = |late: &mut Late| self.store.locate(late.key).is_none();
        let ready: Vec<Late> = cluster.late.extract_if(.., gone).collect();
        let any = !ready.is_empty();
        ready.into_iter().for_each(|late| self.take_in(late.key, late.owner, late.extent));
        any
    }

    /// What has come of an attempt is void, or its memory is to be given anew.
    pub(super) fn landing_void(&mut self, key: ObjectKey, attempt: u32) {
        let Some(cluster) = &mut self.cluster else { return };
        let Some(arrival) = cluster.arrivals.remove(&key) else { return };
        if arrival.attempt > attempt {
            cluster.arrivals.insert(key, arrival);
            return;
        }
        match arrival.place {
            Memory::Waiting(ticket) => {
                self.store.cancel(ticket);
                self.waiting.remove(&ticket);
            }
            Memory::Granted(extent) => {
                // It is lent to the network until nothing lands there any more. Its owner may be gone already.
                let _ = self.store.give_back(arrival.owner, extent);
            }
        }
    }

    /// All that comes of these objects' attempts up to one is void.
    pub(super) fn void_arrivals(&mut self, keys: RangeInclusive<ObjectKey>, attempt: u32) {
        let Some(cluster) = &mut self.cluster else { return };
        cluster.late.retain(|late| late.owner.attempt > attempt || !keys.contains(&late.key));
        let keys: Vec<ObjectKey> = cluster.arrivals.range(keys).map(|(key, _)| *key).collect();
        keys.into_iter().for_each(|key| self.landing_void(key, attempt));
    }

    pub(super) fn fetch_failed(&mut self, key: ObjectKey, why: &TransferError) {
        if matches!(why, TransferError::Cancelled | TransferError::NoRoom { .. }) {
            // The reason has been told already.
            return;
        }
        self.landing_void(key, u32::MAX);
        let what = self.object_name(key);
        self.run_broken(key.run, format!("{what} cannot be fetched: {why}"));
    }

    /// Nobody is known to have an object: the node that put it is asked.
    pub(super) fn seek(&mut self, key: ObjectKey) {
        let home = || Some(self.cluster.as_ref()?.invited.get(&key.run)?.home());
        let shared = self.runs.get(&key.run).and_then(|state| state.shared.as_ref());
        let node = shared.and_then(|shared| shared.source(key)).or_else(home);
        if let (Some(node), Some(cluster)) = (node, &mut self.cluster) {
            cluster.net.command(Command::Ask { key, node });
        }
    }

    /// Of a run that is over, or of an attempt that is void.
    fn not_wanted(&mut self, key: ObjectKey) {
        let known = self.runs.contains_key(&key.run);
        if let Some(cluster) = &mut self.cluster {
            let command = if known { Command::Cancel { key } } else { Command::Drop { run: key.run } };
            cluster.net.command(command);
        }
    }

    /// `output lines of step split[3]`.
    fn object_name(&self, key: ObjectKey) -> String {
        let Some(workflow) = self.workflow(key.run) else { return "an object".into() };
        if key.invocation.step == ObjectKey::INPUT_STEP {
            let name = workflow.inputs.get(usize::from(key.port)).map(|input| input.name.as_str());
            return format!("input {}", name.unwrap_or_default());
        }
        let Some(step) = workflow.graph.steps.get(key.invocation.step as usize) else {
            return "an object".into();
        };
        let port = step.outputs.get(usize::from(key.port)).map(|port| port.name.as_str()).unwrap_or_default();
        match step.foreach {
            Some(_) => format!("output {port} of step {}[{}]", step.name, key.invocation.item),
            None => format!("output {port} of step {}", step.name),
        }
    }
}

impl Waiter {
    /// The run of an object on its way here that waits for memory.
    pub(super) fn arrives_for(&self) -> Option<RunId> {
        match self {
            Waiter::Arrival(key) | Waiter::Value { key, .. } => Some(key.run),
            _ => None,
        }
    }
}
