//! What others fetch from here.
//!
//! An object is announced to its readers' nodes when it begins to exist. While it grows, its producer's page is
//! looked at now and then, and how far it has come is passed on. Its memory is lent to the network until all who
//! were told have fetched it.

use super::super::Engine;
use super::super::cluster::Cluster;
use super::super::values::Parked;
use crate::node::net::{Command, Publish, Returned};
use dflow_core::graph::PortKind;
use dflow_core::placement::NodeIndex;
use dflow_core::scheduler::Event;
use dflow_dataplane::transport::NodeId;
use dflow_proto::ids::ObjectKey;
use dflow_proto::store::{Leased, Owner};
use dflow_proto::wire::ANNOUNCED_BYTES_MAX;
use dflow_proto::{RunId, SegmentId, Tick};
use dflow_shm::page::{ObjectView, SlotState};

/// Pages of growing objects are looked at this often while they grow,
const LOOK_US_MIN: u64 = 200;
/// and this often while they do not. Microseconds.
const LOOK_US_MAX: u64 = 3_000;

/// A published object that is not sealed yet.
pub(super) struct Growing {
    attempt: u32,
    to: Vec<NodeIndex>,
    /// What its readers' nodes know; `None` if they have not been told of it yet.
    watermark: Option<u64>,
}

impl Engine {
    /// An object exists here that others read.
    pub(in super::super) fn publish(&mut self, key: ObjectKey, attempt: u32, to: Vec<NodeIndex>) {
        let Some(cluster) = &mut self.cluster else { return };
        cluster.undelivered.insert(key);
        if key.invocation.step == ObjectKey::INPUT_STEP
            && let Some(shared) = self.runs.get_mut(&key.run).and_then(|state| state.shared.as_mut())
        {
            to.iter().for_each(|node| shared.inputs.entry(*node).or_default().push(key.port));
        }
        if self.store.locate(key).is_some_and(|at| at.attempt == attempt) {
            return self.publish_sealed(key, attempt, to);
        }
        let watermark = self.publish_open(key, attempt, &to);
        let now = self.now();
        if let Some(cluster) = &mut self.cluster {
            cluster.growing.insert(key, Growing { attempt, to, watermark });
            (cluster.grow_at, cluster.grow_pause_us) = (now, LOOK_US_MIN);
        }
    }

    pub(in super::super) fn publish_sealed(&mut self, key: ObjectKey, attempt: u32, to: Vec<NodeIndex>) {
        let nodes = self.nodes_of(key.run, &to);
        match self.store.lease(key) {
            Leased::Ready(lease, extent) => {
                let Some(Cluster { net, returns, .. }) = self.cluster.as_deref_mut() else {
                    return self.store.unlease(lease);
                };
                let small = extent.bytes <= ANNOUNCED_BYTES_MAX as u64;
                let inline = small.then(|| self.store.arena().copy_out(extent).ok()).flatten();
                let map = self.store.arena().map_of(extent.segment);
                let (size, watermark) = (Some(extent.bytes), extent.bytes);
                let attempt = attempt.max(1);
                let publish = match (inline, map) {
                    (Some(inline), _) => {
                        self.store.unlease(lease);
                        Publish { attempt, place: None, size, watermark, inline }
                    }
                    (None, Some(map)) => {
                        let place = Some((map, extent, returns.lend(Returned::Lease(lease))));
                        Publish { attempt, place, size, watermark, inline: Vec::new() }
                    }
                    // A sealed object lies in a segment that is there.
                    (None, None) => return self.store.unlease(lease),
                };
                net.command(Command::Publish { key, publish, to: nodes });
            }
            Leased::Restoring(lease) => {
                self.restoring.push(lease);
                self.parked.push(Parked::Publish(key, attempt, to));
            }
            // It has been withdrawn meanwhile.
            Leased::Missing => {}
        }
    }

    /// Lets others read what has been written of an object so far; `None` if that must wait for its seal. What
    /// lies in a segment of its own waits: whoever writes there could still make it shorter.
    fn publish_open(&mut self, key: ObjectKey, attempt: u32, to: &[NodeIndex]) -> Option<u64> {
        let nodes = self.nodes_of(key.run, to);
        let view = self.on_page(key, attempt)?;
        let owner = Owner { run: key.run, invocation: key.invocation, attempt };
        let open = view.state == SlotState::Open && view.extent.segment == SegmentId(0);
        // The page is its function's: only what the attempt was granted can be read through it.
        if !open || !self.store.owns(owner, view.extent) {
            return None;
        }
        let map = self.store.arena().map_of(view.extent.segment)?;
        let hold = self.store.hold(view.extent)?;
        let Cluster { net, returns, .. } = self.cluster.as_deref_mut()?;
        let place = Some((map, view.extent, returns.lend(Returned::Hold(hold))));
        let watermark = view.watermark;
        let publish = Publish { attempt, place, size: None, watermark, inline: Vec::new() };
        net.command(Command::Publish { key, publish, to: nodes });
        Some(watermark)
    }

    /// An object as its producer's page shows it.
    fn on_page(&self, key: ObjectKey, attempt: u32) -> Option<ObjectView> {
        let state = self.attempts.get(&(key.run, key.invocation)).filter(|a| a.attempt == attempt)?;
        let reader = state.page.as_ref()?.reader();
        let workflow = self.workflow(key.run)?;
        let port = workflow.graph.steps[key.invocation.step as usize].outputs.get(usize::from(key.port))?;
        let arena = self.store.arena().clone();
        match port.kind {
            PortKind::Many => reader.item(&move |segment| arena.map_of(segment), key.port, key.item),
            _ => reader.object(key.port),
        }
    }

    /// Passes on how far published objects have come.
    pub(super) fn look_at_growing(&mut self) {
        let Some(cluster) = &self.cluster else { return };
        let told: Vec<_> = cluster.growing.iter().map(|(key, g)| (*key, g.attempt, g.watermark)).collect();
        let mut any = false;
        for (key, attempt, told) in told {
            let watermark = match told {
                Some(told) => self.on_page(key, attempt).map(|view| view.watermark).filter(|w| *w > told),
                None => {
                    let to = self.cluster.as_ref().and_then(|c| Some(c.growing.get(&key)?.to.clone()));
                    self.publish_open(key, attempt, &to.unwrap_or_default())
                }
            };
            let (Some(watermark), Some(cluster)) = (watermark, &mut self.cluster) else { continue };
            any = true;
            if let Some(growing) = cluster.growing.get_mut(&key) {
                growing.watermark = Some(watermark);
            }
            if told.is_some() {
                cluster.net.command(Command::Advance { key, watermark });
            }
        }
        let now = self.now();
        if let Some(cluster) = &mut self.cluster {
            let pause = if any { LOOK_US_MIN } else { (cluster.grow_pause_us * 3 / 2).min(LOOK_US_MAX) };
            cluster.grow_pause_us = pause;
            cluster.grow_at = Tick(now.0 + pause);
        }
    }

    /// An object has been sealed here.
    pub(in super::super) fn sealed_here(&mut self, key: ObjectKey, bytes: u64) {
        let Some(cluster) = &mut self.cluster else { return };
        let Some(growing) = cluster.growing.remove(&key) else { return };
        match growing.watermark {
            Some(_) => cluster.net.command(Command::Seal { key, size: bytes }),
            None => self.publish_sealed(key, growing.attempt, growing.to),
        }
    }

    /// An attempt is over: what it has not sealed will never be whole.
    pub(in super::super) fn stop_growing(&mut self, owner: Owner) {
        let Some(cluster) = &mut self.cluster else { return };
        let first = ObjectKey { run: owner.run, invocation: owner.invocation, port: 0, item: 0 };
        let last = ObjectKey { port: u16::MAX, item: u32::MAX, ..first };
        let of = cluster.growing.range(first..=last).filter(|(_, growing)| growing.attempt == owner.attempt);
        let keys: Vec<ObjectKey> = of.map(|(key, _)| *key).collect();
        for key in keys {
            cluster.growing.remove(&key);
            cluster.undelivered.remove(&key);
            cluster.net.command(Command::Void { key });
        }
    }

    /// The scheduler has let go of an object.
    pub(in super::super) fn unpublish(&mut self, key: ObjectKey) {
        let Some(cluster) = &mut self.cluster else { return };
        if self.runs.get(&key.run).is_none_or(|state| state.shared.is_none()) {
            return;
        }
        // Before all have it an object is let go of only if it is void, or its run at an end.
        let void = cluster.undelivered.remove(&key);
        cluster.growing.remove(&key);
        cluster.net.command(if void { Command::Void { key } } else { Command::Release { key } });
    }

    /// A segment's memory goes.
    pub(in super::super) fn hide_from_net(&mut self, segment: SegmentId) {
        if let Some(cluster) = &mut self.cluster {
            cluster.net.command(Command::Gone { segment });
        }
    }

    pub(super) fn delivered(&mut self, key: ObjectKey) {
        if let Some(cluster) = &mut self.cluster
            && cluster.undelivered.remove(&key)
        {
            self.events.push_back(Event::Delivered { key });
        }
    }

    fn nodes_of(&self, run: RunId, to: &[NodeIndex]) -> Vec<NodeId> {
        let shared = self.runs.get(&run).and_then(|state| state.shared.as_ref());
        let node = |index: &NodeIndex| shared?.nodes.get(usize::from(*index)).copied();
        to.iter().filter_map(node).collect()
    }
}
