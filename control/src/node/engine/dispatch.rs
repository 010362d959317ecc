//! An attempt on its way to a process: memory first, then its inputs' table, then a worker, then the
//! command that starts it.

use super::{Attempt, Engine, Phase};
use crate::node::pool::Job;
use crate::node::view::{Record, What};
use dflow_core::graph::{OutputPort, PortKind, Step};
use dflow_proto::ids::Extent;
use dflow_proto::limits::{ALLOTMENT_BYTES_MAX, ALLOTMENT_BYTES_MIN, PAGE_BYTES};
use dflow_proto::link::{Command, Input, Invoke, Output};
use dflow_proto::store::{Owner, Purpose, Reserve};
use dflow_proto::{SegmentId, WorkerId};
use dflow_shm::page::PageNode;
use std::os::fd::AsFd;

impl Engine {
    /// Asks for the memory of an attempt that has just been started.
    pub(super) fn want_memory(&mut self, owner: Owner) {
        let Some(state) = self.runs.get(&owner.run) else { return };
        let wrote = state.wrote[owner.invocation.step as usize];
        let bytes =
            (PAGE_BYTES + wrote * 2).next_power_of_two().clamp(ALLOTMENT_BYTES_MIN, ALLOTMENT_BYTES_MAX);
        let strict = self.is_strict((owner.run, owner.invocation));
        let purpose = if strict { Purpose::File } else { Purpose::Allotment };
        match self.store.reserve(owner, bytes, purpose) {
            Reserve::Granted(extent) => self.has_allotment(owner, extent, false),
            Reserve::Waiting(ticket) => self.wait_for_memory(owner, ticket),
            Reserve::Refused(error) => {
                self.fail(owner.run, owner.invocation, "StoreFull", error.to_string());
            }
        }
    }

    /// The attempt can be given its inputs and a process.
    pub(super) fn has_allotment(&mut self, owner: Owner, extent: Extent, late: bool) {
        let Owner { run, invocation, attempt } = owner;
        let begun = self
            .store
            .arena()
            .map_of(extent.segment)
            .map(|map| PageNode::begin(&map, extent, run, invocation, attempt));
        let Some(Ok(page)) = begun else {
            unreachable!("the store granted {extent:?} outside of its segments");
        };
        if let Some(state) = self.attempts.get_mut(&(run, invocation)) {
            state.allotment = Some(extent);
            if state.strict {
                // Nobody reads its page, and the node does not touch what it may have truncated.
                state.private.push(extent);
            } else {
                state.page = Some(page);
            }
        }
        match self.build_table(owner) {
            Ok(table) => {
                if let Some(state) = self.attempts.get_mut(&(run, invocation)) {
                    state.table = Some(table);
                }
            }
            Err(message) => return self.fail(run, invocation, "Input", message),
        }
        if late {
            if let Some(state) = self.runs.get(&run) {
                state.watch.record(Record { at: self.now(), invocation, attempt, what: What::Memory });
            }
            // Consumers were told that this producer runs when it had no page yet.
            self.relink_run(run);
        }
        self.want_worker((run, invocation));
    }

    /// Hands an attempt to the process that will execute it.
    pub(super) fn dispatch(&mut self, worker: WorkerId, job: Job) {
        let (run, invocation) = job;
        let (Some(workflow), Some(attempt)) = (self.workflow(run), self.attempts.get_mut(&job)) else {
            return self.pools.done(worker, false);
        };
        attempt.phase = Phase::Running(worker);
        if self.hold_before_command(job, worker) {
            return;
        }
        let Some(attempt) = self.attempts.get_mut(&job) else { return };
        let owner = Owner { run, invocation, attempt: attempt.attempt };
        let cold = attempt.cold;
        let (Some(table), Some(allotment)) = (&attempt.table, attempt.allotment) else {
            unreachable!("an attempt asks for a worker when it has its memory");
        };
        let step = &workflow.graph.steps[invocation.step as usize];
        let inputs = step.inputs.iter().zip(&table.values);
        let inputs =
            inputs.map(|(port, value)| Input { name: port.name.clone(), ty: port.ty, value: value.clone() });
        let mut invoke = Invoke {
            run,
            invocation,
            attempt: owner.attempt,
            workflow: workflow.graph.name.clone(),
            step: step.name.clone(),
            allotment,
            table: table.memory.first().copied().unwrap_or_default(),
            inputs: inputs.collect(),
            outputs: Vec::new(),
            spin_us: self.config.spin_us,
            timeout_ms: step.timeout_ms,
            threads: step.cpu_milli.div_ceil(1000).max(1),
            whole: !self.config.overlaps.streaming,
        };
        let segments: Vec<_> = table.segments.iter().copied().collect();
        invoke.outputs = self.outputs(owner, step, allotment);
        let granted = invoke.outputs.iter().filter_map(|o| o.granted);
        for extent in granted.chain([allotment]) {
            self.show_segment(worker, extent.segment, true);
        }
        for segment in segments {
            self.show_segment(worker, segment, false);
        }
        if let Some(process) = self.pools.worker(worker) {
            let label = if step.foreach.is_some() {
                format!("{}[{}]", step.name, invocation.item)
            } else {
                step.name.clone()
            };
            process.tail.begin(Some(run), &label);
        }
        self.watch_memory(worker);
        if let Some(state) = self.runs.get(&run) {
            state.watch.record(Record {
                at: self.now(),
                invocation,
                attempt: owner.attempt,
                what: What::Dispatched { cold },
            });
        }
        self.command(worker, &Command::Invoke(invoke));
    }

    /// Holds a busy worker to its step's memory, once its process is known.
    pub(super) fn watch_memory(&mut self, id: WorkerId) {
        let Some(worker) = self.pools.worker(id) else { return };
        let (pid, job) = (worker.pid, worker.job());
        let Some((run, invocation)) = job.filter(|_| pid > 0) else { return };
        let limit =
            self.runs.get(&run).map_or(0, |r| r.workflow.steps[invocation.step as usize].memory_bytes);
        if limit > 0 {
            self.watchdog.watch(id, pid, limit);
        }
    }

    /// The output ports, with memory for those whose size is known to exceed the allotment.
    fn outputs(&mut self, owner: Owner, step: &Step, allotment: Extent) -> Vec<Output> {
        let room = allotment.bytes / 2;
        let strict = self.is_strict((owner.run, owner.invocation));
        let port = |port: &OutputPort| {
            let known = port.hint_bytes > room && !port.file && port.kind != PortKind::Many && !strict;
            let granted = known
                .then(|| self.store.reserve(owner, port.hint_bytes, Purpose::Output))
                .and_then(|r| match r {
                    Reserve::Granted(extent) => Some(extent),
                    Reserve::Waiting(ticket) => {
                        self.store.cancel(ticket);
                        None
                    }
                    Reserve::Refused(_) => None,
                });
            Output {
                name: port.name.clone(),
                ty: port.ty,
                kind: port.kind,
                granted,
                bytes_max: port.bytes_max,
                items_max: port.items_max,
                file: port.file,
            }
        };
        step.outputs.iter().map(port).collect()
    }

    /// Gives a worker a segment of its own besides the main one, unless it has it.
    pub(super) fn show_segment(&mut self, worker: WorkerId, segment: SegmentId, writable: bool) {
        let arena = self.store.arena().clone();
        let Some(worker) = self.pools.worker(worker).filter(|w| !w.knows(segment, writable)) else { return };
        // A reader's descriptor cannot be written by, whatever the function tries.
        let found = if writable { arena.segment(segment) } else { arena.segment_readonly(segment) };
        if let Some((fd, bytes)) = found
            && let Err(error) = worker.show(segment, fd.as_fd(), bytes, writable)
        {
            tracing::warn!(%error, ?segment, "a segment could not be shown");
        }
    }

    /// An object in a segment of its own is about to be named on a page: its readers need the
    /// segment before they look.
    pub(super) fn share_segment(&mut self, extent: Extent, producer: Job) {
        if extent.segment == SegmentId(0) {
            return;
        }
        let Some(attempt) = self.attempts.get_mut(&producer) else { return };
        attempt.published.insert(extent.segment);
        let Some(page) = attempt.allotment else { return };
        let page = Extent { bytes: PAGE_BYTES, ..page };
        let reader = |a: &Attempt| match a.phase {
            Phase::Running(worker) if a.table.as_ref().is_some_and(|t| t.held.contains(&page)) => {
                Some(worker)
            }
            _ => None,
        };
        let readers: Vec<_> = self.attempts.values().filter_map(reader).collect();
        for worker in readers {
            self.show_segment(worker, extent.segment, false);
        }
    }
}
