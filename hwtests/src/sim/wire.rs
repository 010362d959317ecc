//! The network between simulated nodes: words in order, objects when they come, and the rules by which a node
//! hands words on to its scheduler.

use super::rng::Rng;
use super::world::{Happens, Stored, World};
use dflow_core::graph::Graph;
use dflow_core::placement::{NodeIndex, Place, Placement};
use dflow_core::scheduler::*;
use dflow_proto::{InvocationId, ObjectKey, Tick};
use std::collections::BTreeMap;

/// What a node knows of others.
#[derive(Default)]
pub(super) struct Wire {
    /// Objects put here that others are to fetch.
    pub(super) published: BTreeMap<ObjectKey, Published>,
    /// Words whose objects are still on their way, by invocation.
    held: BTreeMap<InvocationId, Vec<(NodeIndex, Word)>>,
    /// Attempts that are void.
    void: BTreeMap<InvocationId, u32>,
}

/// An object that others are to fetch.
pub(super) struct Published {
    attempt: u32,
    to: Vec<NodeIndex>,
    /// It is complete and on its way.
    sent: bool,
    /// How many have it.
    fetched: usize,
}

/// A random placement over at most `nodes` nodes.
pub(super) fn placement(rng: &mut Rng, graph: &Graph, nodes: u16) -> Placement {
    if nodes <= 1 {
        return Placement::alone(graph.steps.len());
    }
    let mut node = || rng.below(nodes.into()) as NodeIndex;
    let steps = graph.steps.iter().map(|step| match &step.foreach {
        Some(_) => Place::Spread { lead: node(), hosts: (0..1 + node()).map(|_| node()).collect() },
        None => Place::On(node()),
    });
    Placement { nodes, steps: steps.collect() }
}

impl World<'_> {
    /// Whether the object is put by this node.
    pub(super) fn is_put_at(&self, at: usize, key: ObjectKey) -> bool {
        let InvocationId { step, item } = key.invocation;
        match step {
            ObjectKey::INPUT_STEP => at == 0,
            _ => usize::from(self.placement.of(step).host(item)) == at,
        }
    }

    /// Words between two nodes arrive in order, and later than they were said.
    pub(super) fn say(&mut self, at: usize, to: NodeIndex, word: Word) {
        assert_ne!(at, usize::from(to), "a node tells itself {word:?}");
        if let Word::Withdrawn { invocation, attempt } = word {
            self.make_void(at, invocation, attempt);
        }
        let most = *self.rng.pick(&[5, 100, 2_000]);
        let delay = 1 + self.rng.below(most);
        let last = self.streams.entry((at, to)).or_default();
        let moment = Tick((self.now.0 + delay).max(last.0));
        *last = moment;
        self.later(moment.0 - self.now.0, Happens::Word(to.into(), at as NodeIndex, word));
    }

    pub(super) fn publish(&mut self, at: usize, key: ObjectKey, attempt: u32, to: Vec<NodeIndex>) {
        assert!(self.is_put_at(at, key), "{key:?} is published by node {at}, which does not put it");
        self.nodes[at].wire.published.insert(key, Published { attempt, to, sent: false, fetched: 0 });
        self.send(at, key);
    }

    /// Sends a published object that is complete.
    pub(super) fn send(&mut self, at: usize, key: ObjectKey) {
        let node = &mut self.nodes[at];
        let (Some(published), Some(stored)) = (node.wire.published.get_mut(&key), node.store.get(&key))
        else {
            return;
        };
        if published.attempt != stored.attempt || std::mem::replace(&mut published.sent, true) {
            return;
        }
        let (to, stored) = (published.to.clone(), *stored);
        for node in to {
            let most = *self.rng.pick(&[5, 100, 5_000]);
            // It is announced on the stream of words, and read after that.
            let announced = self.streams.get(&(at, node)).copied().unwrap_or_default();
            let delay = self.rng.below(most).max(announced.since_us(self.now));
            self.later(delay, Happens::Object(node.into(), at as NodeIndex, key, stored));
        }
    }

    /// An object arrives, if it still can: what its node has let go of cannot be read there any more.
    pub(super) fn arrive(&mut self, at: usize, from: NodeIndex, key: ObjectKey, stored: Stored) {
        let source = &self.nodes[usize::from(from)];
        let there = source.store.get(&key).is_some_and(|there| there.attempt == stored.attempt);
        if !there {
            return;
        }
        let input = key.invocation.step == ObjectKey::INPUT_STEP;
        assert!(input || self.nodes[at].scheduler.wants(key), "node {at} is sent {key:?} and has no reader");
        let void = self.nodes[at].wire.void.get(&key.invocation).copied().unwrap_or(0);
        if stored.attempt > void || input {
            let old = self.nodes[at].store.insert(key, Stored { bytes: 0, ..stored });
            assert!(
                old.is_none_or(|old| old.attempt < stored.attempt || input),
                "{key:?} comes twice to node {at}"
            );
            self.wake_followers(at, key.invocation);
            self.unhold(at, key.invocation);
        }
        if let Some(published) = self.nodes[usize::from(from)].wire.published.get_mut(&key)
            && published.attempt == stored.attempt
        {
            published.fetched += 1;
            if published.fetched == published.to.len() {
                self.later(20, Happens::Delivered(from.into(), key, stored.attempt));
            }
        }
    }

    pub(super) fn delivered(&mut self, at: usize, key: ObjectKey, attempt: u32) {
        let current = self.nodes[at].wire.published.get(&key).is_some_and(|p| p.attempt == attempt);
        if current {
            self.nodes[at].wire.published.remove(&key);
            self.tell(at, Event::Delivered { key });
        }
    }

    /// A word arrives. What speaks of an object that comes here waits for the object.
    pub(super) fn word(&mut self, at: usize, from: NodeIndex, word: Word) {
        let of = match &word {
            Word::Sealed(put) => Some(put.key.invocation),
            Word::Ended { invocation, .. } => Some(*invocation),
            _ => None,
        };
        if let Some(id) = of {
            self.nodes[at].wire.held.entry(id).or_default().push((from, word));
            return self.unhold(at, id);
        }
        let withdrawn = match word {
            Word::Withdrawn { invocation, attempt } => Some((invocation, attempt)),
            _ => None,
        };
        if let Some((id, attempt)) = withdrawn {
            self.make_void(at, id, attempt);
        }
        if let Word::Pinned { invocation, attempt, port, count } = word {
            self.nodes[at].lists.insert((invocation.step, port), (count, attempt));
        }
        let invocation = match word {
            Word::Pinned { invocation, .. } => Some(invocation),
            _ => None,
        };
        self.tell(at, Event::Heard { run: self.run, from, word });
        if let Some(invocation) = invocation {
            self.wake_followers(at, invocation);
        }
        if let Some((id, attempt)) = withdrawn {
            // What was put here is the scheduler's to release, which at the end of a run it does all at once.
            let here = usize::from(self.placement.of(id.step).host(id.item)) == at;
            self.nodes[at]
                .store
                .retain(|key, stored| here || key.invocation != id || stored.attempt > attempt);
            self.unhold(at, id);
        }
    }

    /// All attempts up to `attempt` are void: what they put is not waited for any more.
    fn make_void(&mut self, at: usize, id: InvocationId, attempt: u32) {
        let void = self.nodes[at].wire.void.entry(id).or_default();
        *void = attempt.max(*void);
        // Whoever takes it back is told first.
        self.later(0, Happens::Unhold(at, id));
    }

    /// Hands on what waits no more.
    pub(super) fn unhold(&mut self, at: usize, id: InvocationId) {
        let void = self.nodes[at].wire.void.get(&id).copied().unwrap_or(0);
        let Some(words) = self.nodes[at].wire.held.remove(&id) else { return };
        let mut kept = Vec::new();
        for (from, word) in words {
            let waits = match &word {
                Word::Sealed(put) if put.attempt <= void => continue,
                Word::Sealed(put) => {
                    let here = self.nodes[at].store.get(&put.key).is_some_and(|s| s.attempt == put.attempt);
                    self.nodes[at].scheduler.wants(put.key) && !here
                }
                word => kept.iter().any(|(_, held)| attempt_of(held) == attempt_of(word)),
            };
            if waits {
                kept.push((from, word));
            } else if !self.nodes[at].over {
                self.tell(at, Event::Heard { run: self.run, from, word });
            }
        }
        if !kept.is_empty() {
            self.nodes[at].wire.held.insert(id, kept);
        }
    }
}

fn attempt_of(word: &Word) -> u32 {
    match word {
        Word::Sealed(put) => put.attempt,
        Word::Ended { attempt, .. } => *attempt,
        _ => 0,
    }
}
