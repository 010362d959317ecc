//! Measuring what the design gains: its overlaps switched off one by one, and other systems' ways with
//! data and triggers imitated on this engine.

use crate::netns::Lab;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What DFlow does earlier than control flow would. All are on unless a measurement wants to know
/// what one of them is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlaps {
    /// Processes are made before the inputs of their invocation are complete. Off: nothing is
    /// warmed ahead, and an invocation that finds no idle process has none made before its inputs
    /// are complete.
    pub cold_start: bool,
    /// A function looks at some inputs while others do not exist yet. Off: it gets its process, but
    /// is told of its work only when every input has begun and every list is pinned.
    pub fan_in: bool,
    /// An object is read while it is being written. Off: its producer announces it at the seal.
    pub streaming: bool,
    /// A reader is woken by the producer itself. Off: by the node, once it has taken the
    /// producer's report in. (A list read as a whole is then known when its producer has ended.)
    pub hand_over: bool,
}

impl Overlaps {
    /// Their names on the command line, in the order of the fields.
    pub const NAMES: [&'static str; 4] = ["cold-start", "fan-in", "streaming", "hand-over"];

    /// All of them.
    pub const ALL: Overlaps = Overlaps { cold_start: true, fan_in: true, streaming: true, hand_over: true };

    /// All but one of [`Overlaps::NAMES`]; `None` for another name.
    pub fn without(name: &str) -> Option<Overlaps> {
        match name {
            "cold-start" => Some(Overlaps { cold_start: false, ..Self::ALL }),
            "fan-in" => Some(Overlaps { fan_in: false, ..Self::ALL }),
            "streaming" => Some(Overlaps { streaming: false, ..Self::ALL }),
            "hand-over" => Some(Overlaps { hand_over: false, ..Self::ALL }),
            _ => None,
        }
    }
}

impl Default for Overlaps {
    fn default() -> Self {
        Self::ALL
    }
}

/// Which hand-overs leave the node's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crossing {
    /// Every object goes through the remote store, every trigger over the link.
    Every,
    /// Only what passes from one virtual worker to another.
    BetweenWorkers,
}

/// Where an imitated system's function processes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processes {
    /// Each is made by a process that loads the function for it alone, and is kept: without fork servers, a cold
    /// start is the start of a runtime.
    Runtimes,
    /// Each is forked from a process that has loaded the function, for one invocation.
    OneEach,
}

/// Another system, imitated: control flow, and a remote store for objects.
///
/// A node with a baseline starts invocations when their inputs are complete, warms nothing ahead, sends
/// a trigger that crosses over the link and back before the invocation begins, fetches inputs that cross
/// before the function starts, and counts a function as ended when its outputs that cross are stored.
#[derive(Debug)]
pub struct Baseline {
    /// Its name, for messages.
    pub name: String,
    /// Where the remote store answers (the Redis protocol: PING, SET, GET, DEL).
    pub remote: SocketAddr,
    /// The network in whose first namespace the node's end of the link is; `None`: the caller's own.
    pub lab: Option<Arc<Lab>>,
    /// Where its function processes come from.
    pub processes: Processes,
    /// What goes there.
    pub crossing: Crossing,
    /// The virtual worker of each step, by the workflow's name; steps of others are on one worker.
    pub workers: BTreeMap<String, Vec<u32>>,
    /// What has gone there.
    pub traffic: Traffic,
}

/// Counts of what a baseline has moved.
#[derive(Debug, Default)]
pub struct Traffic {
    stored_bytes: AtomicU64,
    fetched_bytes: AtomicU64,
    triggers: AtomicU64,
}

impl Traffic {
    pub(super) fn stored(&self, bytes: u64) {
        self.stored_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn fetched(&self, bytes: u64) {
        self.fetched_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn triggered(&self) {
        self.triggers.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes stored, bytes fetched, triggers sent, since the baseline was made.
    pub fn totals(&self) -> (u64, u64, u64) {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (load(&self.stored_bytes), load(&self.fetched_bytes), load(&self.triggers))
    }
}

impl Baseline {
    /// The virtual worker of a step.
    pub(super) fn worker(&self, workflow: &str, step: u32) -> u32 {
        let workers = self.workers.get(workflow);
        workers.and_then(|workers| workers.get(step as usize)).copied().unwrap_or(0)
    }

    /// Whether what passes from one step to another leaves the node's memory.
    pub(super) fn crosses(&self, workflow: &str, from: u32, to: u32) -> bool {
        match self.crossing {
            Crossing::Every => true,
            Crossing::BetweenWorkers => self.worker(workflow, from) != self.worker(workflow, to),
        }
    }
}
