//! How busy this node is, and what it knows of others.
//!
//! A run brings each of its nodes a load by what its steps have cost before. It is worked off as invocations end, and what
//! is left of it goes with the run. Peers are told when it is no longer what they must assume, which is what they were
//! told, worked off since. So a home places a run as the last ones have left the nodes, its own and others', and what it
//! is wrong by is what has changed since a message ago.

use super::super::Engine;
use super::Cluster;
use crate::node::net::Message;
use dflow_core::placement::Load;
use dflow_dataplane::transport::NodeId;
use dflow_proto::{RunId, Tick};

/// A load is told of when each core's share differs by this from what peers assume,
const TELL_US_MIN: u64 = 2_000;
/// and by one part in so many.
const TELL_PART: u64 = 8;
/// Pause between two tellings for each peer, so that a node with many says no more in a second than one with few.
const PAUSE_US: u64 = 1_000;

/// A load that was told of, and when.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Told {
    load: Load,
    at: Tick,
}

impl Told {
    /// What is assumed to be left of it.
    pub(super) fn now(self, now: Tick, cpu_milli: u32) -> Load {
        self.load.after(now.since_us(self.at), cpu_milli)
    }

    /// The same node was given more.
    pub(super) fn add(&mut self, load: Load, now: Tick, cpu_milli: u32) {
        *self = Told { load: self.now(now, cpu_milli).and(load), at: now };
    }
}

/// This node's own.
#[derive(Default)]
pub(super) struct Own {
    pub(super) load: Load,
    /// What peers know.
    told: Told,
    /// It has changed since it was compared with what they know.
    changed: bool,
    /// When they are told what they could not be told yet.
    pub(super) tell_at: Option<Tick>,
}

impl Own {
    fn set(&mut self, load: Load) {
        self.changed |= self.load != load;
        self.load = load;
    }

    /// Whether peers must be told now, of whom there are so many.
    fn is_due(&mut self, now: Tick, cpu_milli: u32, peers: u64) -> bool {
        let assumed = self.told.now(now, cpu_milli).work_us;
        let limit_us = TELL_US_MIN.saturating_mul(u64::from(cpu_milli)) / 1000;
        let differs =
            self.changed && self.load.work_us.abs_diff(assumed) >= limit_us.max(assumed / TELL_PART).max(1);
        let may_at = self.told.at.after_us(PAUSE_US.saturating_mul(peers));
        let is_due = differs && may_at <= now;
        self.changed = differs && !is_due;
        self.tell_at = self.changed.then_some(may_at);
        is_due
    }
}

impl Cluster {
    /// How busy a node is, this one or another.
    pub(super) fn load_of(&self, node: NodeId, cpu_milli: u32, now: Tick) -> Load {
        match self.peers.get(&node) {
            Some(peer) if node != self.config.node => peer.load.now(now, cpu_milli),
            _ => self.own.load,
        }
    }

    /// Another node is about to be given this.
    pub(super) fn add_load(&mut self, node: NodeId, load: Load, now: Tick) {
        if let Some(peer) = self.peers.get_mut(&node) {
            let cpu_milli = peer.facts.as_ref().map_or(1000, |facts| facts.cpu_milli);
            peer.load.add(load, now, cpu_milli);
        }
    }
}

impl Engine {
    /// A run begins here that brings so much.
    pub(in super::super) fn take_on(&mut self, run: RunId, load: Load) {
        let (Some(state), Some(cluster)) = (self.runs.get_mut(&run), &mut self.cluster) else { return };
        state.load = load;
        cluster.own.set(cluster.own.load.and(load));
    }

    /// An invocation of it has ended well, after so much work.
    pub(in super::super) fn work_off(&mut self, run: RunId, busy_us: u64) {
        let (Some(state), Some(cluster)) = (self.runs.get_mut(&run), &mut self.cluster) else { return };
        let left = Load { work_us: state.load.work_us.saturating_sub(busy_us), ..state.load };
        let left = if left.work_us == 0 { Load::default() } else { left };
        cluster.own.set(cluster.own.load.without(state.load.without(left)));
        state.load = left;
    }

    /// It is over here.
    pub(in super::super) fn drop_load(&mut self, run: RunId) {
        let (Some(state), Some(cluster)) = (self.runs.get_mut(&run), &mut self.cluster) else { return };
        cluster.own.set(cluster.own.load.without(std::mem::take(&mut state.load)));
    }

    /// Tells peers how busy this node is, if they assume something else.
    pub(super) fn tell_load(&mut self) {
        let now = self.now();
        let Some(cluster) = self.cluster.as_mut().filter(|cluster| cluster.own.changed) else { return };
        let up: Vec<NodeId> =
            cluster.peers.iter().filter(|(_, peer)| peer.up).map(|(node, _)| *node).collect();
        if cluster.own.is_due(now, self.config.cpu_milli, up.len() as u64) {
            let load = cluster.own.load;
            cluster.own.told = Told { load, at: now };
            up.into_iter().for_each(|node| cluster.say(node, &Message::Busy(load)));
        }
    }

    pub(super) fn heard_load(&mut self, from: NodeId, load: Load) {
        let at = self.now();
        if let Some(peer) = self.cluster.as_mut().and_then(|cluster| cluster.peers.get_mut(&from)) {
            peer.load = Told { load, at };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU_MILLI: u32 = 4_000;

    fn load(work_us: u64) -> Load {
        Load { work_us, width_milli: 8_000 }
    }

    #[test]
    fn peers_are_told_what_they_cannot_assume_and_not_too_often() {
        let mut own = Own::default();
        let due = |own: &mut Own, at: u64| {
            let due = own.is_due(Tick(at), CPU_MILLI, 2);
            if due {
                own.told = Told { load: own.load, at: Tick(at) };
            }
            due
        };
        own.set(load(4_000));
        assert!(!due(&mut own, 100_000), "a millisecond of each core");
        own.set(load(80_000));
        assert!(due(&mut own, 100_000));
        own.set(load(76_000));
        assert!(!due(&mut own, 101_000), "as they assume");
        own.set(load(20_000));
        assert!(!due(&mut own, 101_500), "they were told 1.5 ms ago");
        assert_eq!(own.tell_at, Some(Tick(102_000)));
        assert!(due(&mut own, 102_000));
        assert!(own.tell_at.is_none() && !due(&mut own, 200_000), "nothing has changed");
        own.set(Load::default());
        assert!(!due(&mut own, 200_000), "they assume that it is done");
    }

    #[test]
    fn what_was_told_is_worked_off_and_added_to() {
        let mut told = Told { load: load(80_000), at: Tick(1_000) };
        assert_eq!(told.now(Tick(11_000), CPU_MILLI).work_us, 40_000);
        told.add(load(10_000), Tick(11_000), CPU_MILLI);
        assert_eq!(told.now(Tick(11_000), CPU_MILLI), Load { work_us: 50_000, width_milli: 16_000 });
    }
}
