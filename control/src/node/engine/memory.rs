//! The store's side of the engine: reservations that wait, spilling, what comes back from disk.

use super::{Engine, Phase, Requests};
use crate::node::config::NodeConfig;
use crate::node::error::StartError;
use crate::node::pool::Job;
use crate::node::spill::{Done, Spiller};
use crate::node::stage::StageGrant;
use crossbeam::channel::Sender;
use dflow_core::scheduler::Event;
use dflow_dataplane::{Arena, ArenaConfig, LocalStore, StoreEvent};
use dflow_proto::ids::Extent;
use dflow_proto::limits::HUGE_BYTES;
use dflow_proto::store::{Limits, Owner, Purpose, Reserve, Ticket};
use dflow_proto::{ObjectKey, RunId, WorkerId};

/// How long nothing may move before a waiting reservation is refused.
const STALL_US: u64 = 1_000_000;
/// The same where what other nodes do may give memory back.
const SHARED_STALL_US: u64 = 10_000_000;

/// Who waits for memory.
pub(super) enum Waiter {
    /// An attempt that has not begun.
    Attempt(Owner),
    /// A function that writes an output.
    Worker { worker: WorkerId, ticket: u32 },
    /// What a strict function has sealed.
    Copy { owner: Owner, key: ObjectKey, from: Extent },
    /// An object of another node's.
    Arrival(ObjectKey),
    /// A small one, which came with its bytes.
    Value { key: ObjectKey, owner: Owner, bytes: Vec<u8> },
    /// A program that submits a run.
    Stage { reply: Sender<StageGrant> },
}

/// Makes the store and, if configured, its spill directory.
pub(super) fn open(
    config: &NodeConfig,
    requests: &Requests,
) -> Result<(LocalStore, Option<Spiller>), StartError> {
    let bytes = config.store_bytes.next_multiple_of(HUGE_BYTES);
    let arena = Arena::new(&ArenaConfig {
        bytes,
        huge_pages: config.huge_pages,
        prefault_bytes: config.prefault_bytes,
    })
    .map_err(|source| StartError::Arena { bytes, source })?;
    let spiller = match &config.spill_dir {
        None => None,
        Some(path) => Some(
            Spiller::start(path, requests.clone())
                .map_err(|source| StartError::Spill { path: path.clone(), source })?,
        ),
    };
    let limits = Limits {
        arena_bytes: bytes,
        dedicated_bytes: bytes,
        spill_bytes: if spiller.is_some() { config.spill_bytes } else { 0 },
        ..Limits::default()
    };
    Ok((LocalStore::new(arena, limits), spiller))
}

impl Engine {
    /// The attempt's first memory comes later; its token is free until then.
    pub(super) fn wait_for_memory(&mut self, owner: Owner, ticket: Ticket) {
        let Owner { run, invocation, attempt } = owner;
        if let Some(state) = self.attempts.get_mut(&(run, invocation)) {
            state.phase = Phase::Memory(ticket);
        }
        self.waiting.insert(ticket, Waiter::Attempt(owner));
        self.events.push_back(Event::Blocked { run, invocation, attempt });
    }

    /// Memory for an input of a run that is being submitted.
    pub(super) fn stage(&mut self, run: RunId, bytes: u64, file: bool, reply: Sender<StageGrant>) {
        let purpose = if file { Purpose::File } else { Purpose::Output };
        match self.store.reserve(Owner::inputs(run), bytes, purpose) {
            Reserve::Granted(extent) => self.staged(extent, &reply),
            Reserve::Waiting(ticket) => drop(self.waiting.insert(ticket, Waiter::Stage { reply })),
            // A submitter that went away has its reservation dropped with the run.
            Reserve::Refused(error) => drop(reply.send(Err(error))),
        }
        self.settle();
    }

    fn staged(&self, extent: Extent, reply: &Sender<StageGrant>) {
        match self.store.arena().part_mut(extent) {
            Ok(part) => drop(reply.send(Ok((extent, part)))),
            Err(error) => unreachable!("the store granted an extent outside of its segments: {error}"),
        }
    }

    /// Does what the store asks for; false if nothing.
    pub(super) fn take_store_effects(&mut self) -> bool {
        let mut any = false;
        while let Some(event) = self.store.next_event() {
            any = true;
            match event {
                StoreEvent::Granted { ticket, extent, .. } => self.granted(ticket, extent),
                StoreEvent::Refused { ticket, error, .. } => self.refused(ticket, error),
                StoreEvent::Restored { key, .. } | StoreEvent::RestoreFailed { key, .. } => {
                    // A failed restore shows when the object is asked for again.
                    self.unpark();
                    self.relink_run(key.run);
                }
                StoreEvent::Spill { object, bytes } => {
                    if let Some(spiller) = &self.spiller {
                        spiller.save(object, bytes);
                    }
                }
                StoreEvent::Load { object, into } => {
                    if let Some(spiller) = &self.spiller {
                        spiller.load(object, into);
                    }
                }
                StoreEvent::Discard { object } => {
                    if let Some(spiller) = &self.spiller {
                        spiller.delete(object);
                    }
                }
                StoreEvent::Grow { segment, bytes } => {
                    if let Some(spiller) = &self.spiller {
                        let file = spiller.overflow(segment, bytes);
                        self.store.grown(segment, file);
                    }
                }
                StoreEvent::Gone { segment } => {
                    self.hide_from_net(segment);
                    self.pools.hide_segment(segment);
                }
            }
        }
        any
    }

    fn granted(&mut self, ticket: Ticket, extent: Extent) {
        match self.waiting.remove(&ticket) {
            Some(Waiter::Attempt(owner)) => {
                let Owner { run, invocation, attempt } = owner;
                self.events.push_back(Event::Resumed { run, invocation, attempt });
                self.has_allotment(owner, extent, true);
            }
            Some(Waiter::Worker { worker, ticket }) => self.grant(worker, ticket, extent),
            Some(Waiter::Copy { owner, key, from }) => self.copy_later(owner, key, from, extent),
            Some(Waiter::Arrival(key)) => self.landing_granted(key, extent),
            Some(Waiter::Value { key, owner, bytes }) => self.value_lands(key, owner, extent, &bytes),
            Some(Waiter::Stage { reply }) => self.staged(extent, &reply),
            None => {}
        }
    }

    fn refused(&mut self, ticket: Ticket, error: dflow_proto::store::StoreError) {
        match self.waiting.remove(&ticket) {
            Some(Waiter::Attempt(owner)) => {
                self.fail(owner.run, owner.invocation, "StoreFull", error.to_string())
            }
            Some(Waiter::Worker { worker, ticket }) => {
                self.command(worker, &dflow_proto::link::Command::Refused { ticket, why: error.to_string() });
            }
            Some(Waiter::Copy { owner, .. }) => {
                self.fail(owner.run, owner.invocation, "StoreFull", error.to_string());
            }
            Some(Waiter::Arrival(key)) => self.landing_refused(key, &error),
            Some(Waiter::Value { key, owner, .. }) => self.no_room(key, owner.attempt, &error),
            Some(Waiter::Stage { reply }) => drop(reply.send(Err(error))),
            None => {}
        }
    }

    /// A spill job is done.
    pub(super) fn spilled(&mut self, done: Done) {
        match done {
            Done::Saved(object, result) => self.store.spilled(object, result),
            Done::Loaded(object, result) => self.store.loaded(object, result),
        }
    }

    /// If reservations wait and nothing that runs could ever give memory back, one of them must
    /// hear that it cannot be had. A reader that has just been woken still counts as asleep for a
    /// moment, so the stall must last before it is believed. False if nothing was refused.
    pub(super) fn relieve(&mut self) -> bool {
        let at_work = |(job, a): (&Job, &super::Attempt)| {
            let at_work = a.phase == Phase::Worker || matches!(a.phase, Phase::Running(_)) && !a.blocked;
            at_work && !self.is_held(job)
        };
        if self.waiting.is_empty() || self.attempts.iter().any(at_work) {
            self.stalled_since = None;
            return false;
        }
        let now = self.now();
        let since = *self.stalled_since.get_or_insert(now);
        let patience = if self.awaits_others() { SHARED_STALL_US } else { STALL_US };
        now.since_us(since) >= patience && self.store.stalled()
    }

    /// A copy of the bytes of a sealed object in memory. Nothing can move it before this call
    /// returns: the store acts only when this thread lets it.
    pub(super) fn copy_out(&self, extent: Extent) -> Result<Vec<u8>, String> {
        self.store.arena().copy_out(extent).map_err(|e| e.to_string())
    }
}
