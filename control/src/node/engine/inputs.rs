//! The table of an attempt's inputs.
//!
//! The table is filled when the attempt gets its memory and kept true until it ends: each time the
//! scheduler says that a source has changed (`Relink`), its entry is computed anew. An object that
//! the table names is leased, a producer's page that it names is held, both until the attempt ends:
//! the function may look at them as long as it runs.

use super::{Attempt, Engine, Phase};
use crate::node::pool::Job;
use crate::workflow::{Runtime, Workflow};
use dflow_core::graph::{PortKind, StepKind};
use dflow_core::scheduler::{ObjectRef, ObjectState, Resolved};
use dflow_proto::ids::Extent;
use dflow_proto::limits::{INLINE_BYTES_MAX, PAGE_BYTES};
use dflow_proto::link::InputValue;
use dflow_proto::store::{Hold, Lease, Leased, Owner, Purpose, Reserve};
use dflow_proto::{InvocationId, ObjectKey, RunId, SegmentId};
use dflow_shm::table::{Entry, TableWriter};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// After a look at a list nothing of it is looked at for so long, by its length: some twenty times what the look took. Not by
/// the clock, since an engine that was kept from its processor meanwhile would be twenty times as late.
const LOOK_AGAIN_NS_ITEM: u64 = 4_000;
/// Items that may be looked at at any time.
const LOOK_ITEMS_FREE: usize = 64;

/// The inputs of one attempt.
pub(super) struct InputTable {
    /// `None` if every input travels in the command.
    writer: Option<TableWriter>,
    /// Where it lies, and the chunks of its lists.
    pub(super) memory: Vec<Extent>,
    /// What the command says of each input.
    pub(super) values: Vec<InputValue>,
    /// What the entries of each list are, to see what has changed.
    lists: Vec<Vec<Entry>>,
    /// Objects it may look at, and where they are (`None`: on the way back from disk).
    leases: BTreeMap<ObjectKey, (Lease, Option<Extent>)>,
    holds: Vec<Hold>,
    /// Pages held already.
    pub(super) held: BTreeSet<Extent>,
    /// Segments that the table lies in or entries name.
    pub(super) segments: BTreeSet<SegmentId>,
}

/// How one input is to be given, before memory for the table is known.
enum Plan {
    Value(InputValue),
    /// Bytes that the node writes behind the table.
    Blob(Vec<u8>),
    /// An entry, or a list of entries.
    Linked,
}

impl Engine {
    /// Builds the table of an attempt from what the scheduler knows now.
    pub(super) fn build_table(&mut self, owner: Owner) -> Result<InputTable, String> {
        let Owner { run, invocation, .. } = owner;
        let workflow = self.workflow(run).ok_or("the run is gone")?;
        let step = &workflow.graph.steps[invocation.step as usize];
        let plans: Result<Vec<Plan>, _> =
            (0..step.inputs.len()).map(|i| self.plan(run, invocation, i as u16, &workflow)).collect();
        let plans = plans?;
        let entries = plans.iter().filter(|p| !matches!(p, Plan::Value(_))).count();
        let mut table = InputTable {
            writer: None,
            memory: Vec::new(),
            values: Vec::new(),
            lists: vec![Vec::new(); step.inputs.len()],
            leases: BTreeMap::new(),
            holds: Vec::new(),
            held: BTreeSet::new(),
            segments: BTreeSet::new(),
        };
        if entries > 0 {
            let head = TableWriter::bytes_for(entries).next_multiple_of(64);
            let blobs: u64 = plans
                .iter()
                .map(|p| if let Plan::Blob(b) = p { (b.len() as u64).next_multiple_of(64) } else { 0 })
                .sum();
            let extent = self.table_memory(owner, head + blobs)?;
            table.memory.push(extent);
            table.segments.insert(extent.segment);
            let part = |offset, bytes| {
                let wanted = Extent { segment: extent.segment, offset: extent.offset + offset, bytes };
                self.store.arena().part_mut(wanted).map_err(|e| e.to_string())
            };
            let mut writer = TableWriter::begin(part(0, head)?, entries);
            let (mut index, mut at) = (0, head);
            for plan in &plans {
                if let Plan::Blob(bytes) = plan {
                    let blob = part(at, bytes.len() as u64)?;
                    blob.copy_in(0, bytes);
                    writer.set(index, Entry::Sealed(blob.extent()));
                    at += (bytes.len() as u64).next_multiple_of(64);
                }
                index += usize::from(!matches!(plan, Plan::Value(_)));
            }
            table.writer = Some(writer);
        }
        let mut index = 0;
        for (input, plan) in plans.into_iter().enumerate() {
            let value = match plan {
                Plan::Value(value) => value,
                Plan::Blob(_) => InputValue::One { index },
                Plan::Linked if workflow.steps[invocation.step as usize].inputs[input].list => {
                    InputValue::List { index }
                }
                Plan::Linked => InputValue::One { index },
            };
            index += u32::from(matches!(value, InputValue::One { .. } | InputValue::List { .. }));
            table.values.push(value);
        }
        for input in 0..step.inputs.len() {
            self.link(owner, &workflow, &mut table, input)?;
        }
        Ok(table)
    }

    fn plan(
        &mut self,
        run: RunId,
        invocation: InvocationId,
        input: u16,
        workflow: &Workflow,
    ) -> Result<Plan, String> {
        let step = &workflow.graph.steps[invocation.step as usize];
        let port = &step.inputs[input as usize];
        let ty = workflow.steps[invocation.step as usize].inputs[input as usize].ty;
        let scalar = ty.is_scalar();
        // A program takes a scalar as text on its command line and anything else as a file.
        let program = matches!(&step.kind, StepKind::Call(f) if matches!(workflow.functions[*f as usize].runtime, Runtime::Exec { .. }));
        let small = |bytes: Vec<u8>| {
            if if program { scalar } else { bytes.len() as u64 <= INLINE_BYTES_MAX } {
                Plan::Value(InputValue::Inline(bytes))
            } else {
                Plan::Blob(bytes)
            }
        };
        Ok(match self.scheduler.resolve(run, invocation, input) {
            Resolved::Const(id) => small(workflow.constants[id as usize].bytes.clone()),
            Resolved::Element { index, .. } => {
                self.know_list(run, invocation.step);
                small(self.element(run, invocation.step, index, ty)?)
            }
            Resolved::Null if port.optional => Plan::Value(InputValue::Null),
            Resolved::Object(ObjectRef { key, state: ObjectState::Sealed }) if !program || scalar => {
                let Some(location) = self.store.locate(key) else { return Ok(Plan::Linked) };
                match location.extent.filter(|e| e.bytes <= INLINE_BYTES_MAX) {
                    Some(extent) => self.copy_out(extent).map_or(Plan::Linked, small),
                    None => Plan::Linked,
                }
            }
            _ => Plan::Linked,
        })
    }

    /// Memory for a table or a part of one.
    fn table_memory(&mut self, owner: Owner, bytes: u64) -> Result<Extent, String> {
        match self.store.reserve(owner, bytes, Purpose::Table) {
            Reserve::Granted(extent) => Ok(extent),
            Reserve::Waiting(ticket) => {
                self.store.cancel(ticket);
                Err(format!("no room for a table of {bytes} bytes of inputs; raise --store or lower --slots"))
            }
            Reserve::Refused(error) => Err(error.to_string()),
        }
    }

    /// Brings one input's entry up to what the scheduler knows.
    fn link(
        &mut self,
        owner: Owner,
        workflow: &Workflow,
        table: &mut InputTable,
        input: usize,
    ) -> Result<(), String> {
        let index = match table.values[input] {
            InputValue::One { index } | InputValue::List { index } => index as usize,
            InputValue::Inline(_) | InputValue::Null => return Ok(()),
        };
        match self.scheduler.resolve(owner.run, owner.invocation, input as u16) {
            Resolved::Const(_) | Resolved::Element { .. } => {}
            Resolved::Null => set(table, index, Entry::Null),
            Resolved::Pending => set(table, index, Entry::Pending),
            Resolved::Object(object) => {
                let entry = self.entry(workflow, table, object);
                set(table, index, entry);
            }
            Resolved::Follow { producer, attempt, port } => {
                let page = self.page_of(owner.run, producer, attempt);
                let entry = match page.filter(|_| self.config.overlaps.hand_over) {
                    Some(page) => {
                        self.hold(table, (owner.run, producer), page);
                        Entry::Follow { page, port }
                    }
                    None => Entry::Pending,
                };
                set(table, index, entry);
            }
            Resolved::List { items, pinned } => {
                let entries: Vec<_> =
                    items.into_iter().map(|item| self.entry(workflow, table, item)).collect();
                self.link_list(owner, table, input, index, entries, pinned)?;
            }
        }
        Ok(())
    }

    fn link_list(
        &mut self,
        owner: Owner,
        table: &mut InputTable,
        input: usize,
        index: usize,
        entries: Vec<Entry>,
        pinned: bool,
    ) -> Result<(), String> {
        let Some(writer) = &mut table.writer else { return Ok(()) };
        let old = std::mem::take(&mut table.lists[input]);
        if old.len() > entries.len() || writer.count(index) == 0 {
            writer.set_list(index);
        }
        let known = writer.count(index) as usize;
        for (item, entry) in entries.iter().enumerate() {
            if item < known {
                if old[item] != *entry {
                    writer.set_item(index, item as u32, *entry);
                }
                continue;
            }
            while let Err(needed) = writer.append(index, *entry) {
                let extent = match self.store.reserve(owner, needed.bytes, Purpose::Table) {
                    Reserve::Granted(extent) => extent,
                    Reserve::Waiting(ticket) => {
                        self.store.cancel(ticket);
                        return Err(format!(
                            "no room for a list of {} items; raise --store or lower --slots",
                            entries.len()
                        ));
                    }
                    Reserve::Refused(error) => return Err(error.to_string()),
                };
                table.memory.push(extent);
                table.segments.insert(extent.segment);
                let chunk = self.store.arena().part_mut(Extent { bytes: needed.bytes, ..extent });
                writer.add_chunk(index, chunk.map_err(|e| e.to_string())?);
            }
        }
        if pinned {
            writer.pin(index);
        }
        table.lists[input] = entries;
        Ok(())
    }

    /// Where an object is for a reader.
    fn entry(&mut self, workflow: &Workflow, table: &mut InputTable, object: ObjectRef) -> Entry {
        let key = object.key;
        match object.state {
            ObjectState::Pending => Entry::Pending,
            ObjectState::Running { attempt } if !self.shows_page(key, attempt) => Entry::Pending,
            ObjectState::Running { attempt } => match self.page_of(key.run, key.invocation, attempt) {
                Some(page) => {
                    self.hold(table, (key.run, key.invocation), page);
                    let port = &workflow.graph.steps[key.invocation.step as usize].outputs[key.port as usize];
                    let item = (port.kind == PortKind::Many).then_some(key.item);
                    Entry::Page { page, port: key.port, item }
                }
                None => Entry::Pending,
            },
            ObjectState::Sealed => self.lease_for(table, key),
        }
    }

    /// The entry of a sealed object, which is leased for as long as the table is there.
    fn lease_for(&mut self, table: &mut InputTable, key: ObjectKey) -> Entry {
        if let Some((_, Some(extent))) = table.leases.get(&key) {
            return Entry::Sealed(*extent);
        }
        let (lease, extent) = match self.store.lease(key) {
            Leased::Ready(lease, extent) => (lease, Some(extent)),
            // The entry follows when it is back.
            Leased::Restoring(lease) => (lease, None),
            Leased::Missing => return Entry::Failed,
        };
        if let Some((old, _)) = table.leases.insert(key, (lease, extent)) {
            self.store.unlease(old);
        }
        table.segments.extend(extent.map(|e| e.segment));
        extent.map_or(Entry::Pending, Entry::Sealed)
    }

    /// An object has been sealed on the page of `producer`: those who look at the page may be
    /// reading it already, so it is leased for them before anything else can happen to it.
    pub(super) fn lease_for_readers(&mut self, producer: Job, key: ObjectKey) {
        let Some(page) = self.attempts.get(&producer).and_then(|a| a.allotment) else { return };
        let page = Extent { bytes: PAGE_BYTES, ..page };
        let looks = |a: &Attempt| a.table.as_ref().is_some_and(|t| t.held.contains(&page));
        let readers: Vec<Job> = self.attempts.iter().filter(|(_, a)| looks(a)).map(|(job, _)| *job).collect();
        for job in readers {
            let Some(mut table) = self.attempts.get_mut(&job).and_then(|a| a.table.take()) else { continue };
            self.lease_for(&mut table, key);
            if let Some(attempt) = self.attempts.get_mut(&job) {
                attempt.table = Some(table);
            }
        }
    }

    fn page_of(&self, run: RunId, producer: InvocationId, attempt: u32) -> Option<Extent> {
        let state = self.attempts.get(&(run, producer)).filter(|a| a.attempt == attempt && !a.strict)?;
        state.allotment.map(|page| Extent { bytes: PAGE_BYTES, ..page })
    }

    fn hold(&mut self, table: &mut InputTable, producer: Job, page: Extent) {
        // What stands on the page may lie in segments of its own.
        table.segments.extend(self.attempts.get(&producer).iter().flat_map(|a| &a.published));
        table.segments.insert(page.segment);
        if table.held.insert(page)
            && let Some(hold) = self.store.hold(page)
        {
            table.holds.push(hold);
        }
    }

    /// Brings the tables up to date that are due; false if none was.
    ///
    /// A change of one item costs a look at the whole list, so a list of a hundred thousand items
    /// that appear one by one is not looked at for each: the time between two looks grows with its length.
    pub(super) fn freshen(&mut self) -> bool {
        let now = self.now();
        let due: Vec<_> =
            self.dirty.iter().filter(|(_, after)| **after <= now).map(|(key, _)| *key).collect();
        for key in &due {
            self.dirty.remove(key);
            self.relink(key.0, key.1, key.2);
            let now = self.now();
            if let Some(attempt) = self.attempts.get_mut(&(key.0, key.1)) {
                let items = attempt.table.as_ref().map_or(0, |table| table.lists[usize::from(key.2)].len());
                let pause_ns = items.saturating_sub(LOOK_ITEMS_FREE) as u64 * LOOK_AGAIN_NS_ITEM;
                attempt.fresh_until = now.after_us(pause_ns / 1_000).max(attempt.fresh_until);
            }
        }
        !due.is_empty()
    }

    /// A source of a running attempt has changed.
    fn relink(&mut self, run: RunId, invocation: InvocationId, input: u16) {
        let Some(attempt) = self.attempts.get_mut(&(run, invocation)) else { return };
        let owner = Owner { run, invocation, attempt: attempt.attempt };
        let (Some(mut table), Some(workflow)) = (attempt.table.take(), self.workflow(run)) else { return };
        let linked = self.link(owner, &workflow, &mut table, input as usize);
        let segments: Vec<_> = table.segments.iter().copied().collect();
        let Some(attempt) = self.attempts.get_mut(&(run, invocation)) else { return };
        let phase = attempt.phase;
        if let Phase::Running(worker) = phase {
            for segment in segments {
                self.show_segment(worker, segment, false);
            }
        }
        if let Some(writer) = &table.writer {
            writer.wake();
        }
        if let Some(attempt) = self.attempts.get_mut(&(run, invocation)) {
            attempt.table = Some(table);
        }
        if let Err(message) = linked {
            // It cannot be told of its inputs any more.
            match phase {
                Phase::Running(worker) => {
                    if let Some(attempt) = self.attempts.get_mut(&(run, invocation)) {
                        attempt.misbehaved = Some(message);
                    }
                    self.pools.kill(worker);
                }
                Phase::Elsewhere => {}
                Phase::Memory(_) | Phase::Worker => self.fail(run, invocation, "StoreFull", message),
            }
        }
    }

    /// The attempts of a run.
    pub(super) fn jobs_of(&self, run: RunId) -> impl Iterator<Item = (&Job, &Attempt)> {
        let from = (run, InvocationId { step: 0, item: 0 });
        let to = (run, InvocationId { step: u32::MAX, item: u32::MAX });
        self.attempts.range(from..=to)
    }

    /// Looks at all tables of a run again.
    pub(super) fn relink_run(&mut self, run: RunId) {
        let linked =
            |(job, attempt): (&Job, &Attempt)| attempt.table.as_ref().map(|t| (job.1, t.values.len()));
        let jobs: Vec<_> = self.jobs_of(run).filter_map(linked).collect();
        for (invocation, inputs) in jobs {
            (0..inputs).for_each(|input| self.relink(run, invocation, input as u16));
        }
    }

    /// Gives a table's memory, leases and holds back.
    pub(super) fn drop_table(&mut self, owner: Owner, table: InputTable) {
        table.leases.into_values().for_each(|(lease, _)| self.store.unlease(lease));
        table.holds.into_iter().for_each(|hold| self.store.unhold(hold));
        for extent in table.memory {
            if let Err(error) = self.store.give_back(owner, extent) {
                unreachable!("a table's own memory was refused: {error}");
            }
        }
    }

    pub(super) fn workflow(&self, run: RunId) -> Option<Arc<Workflow>> {
        self.runs.get(&run).map(|state| state.workflow.clone())
    }
}

fn set(table: &mut InputTable, index: usize, entry: Entry) {
    if let Some(writer) = &mut table.writer {
        writer.set(index, entry);
    }
}
