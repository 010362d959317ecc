//! Words between schedulers.
//!
//! Those of one turn go together. Those that come are handed on at once and in order, but for two: that an object
//! is sealed is handed on when its bytes are here, if something here reads it; and that an attempt has ended when
//! none of these is held back. So the scheduler hears of objects on other nodes as it hears of those here.

use super::super::Engine;
use super::super::cluster::Cluster;
use crate::node::net::{Command, Message};
use dflow_core::placement::NodeIndex;
use dflow_core::scheduler::{Event, Put, Word};
use dflow_dataplane::transport::NodeId;
use dflow_proto::ids::ObjectKey;
use dflow_proto::store::{Owner, Sealed};
use dflow_proto::{InvocationId, RunId};
use std::collections::{BTreeMap, BTreeSet};

/// Words of one message.
const WORDS_MAX: usize = 4096;
/// That an attempt has started waits so long for words that say more: it would wake a node that has nothing to do with
/// it yet, and most functions put something, or end, soon. Microseconds.
const STARTED_US_MAX: u64 = 200;

impl Engine {
    /// Keeps a word for the end of the turn.
    pub(in super::super) fn tell_node(&mut self, run: RunId, to: NodeIndex, word: Word) {
        let (Some(state), Some(cluster)) = (self.runs.get_mut(&run), &mut self.cluster) else { return };
        if let Some(shared) = &mut state.shared {
            shared.out.entry(to).or_default().push(word);
            cluster.talking.insert(run);
        }
    }

    /// Sends what was said in this turn, but for what may wait a little for company.
    pub(in super::super) fn flush_words(&mut self) {
        let now = self.now();
        let Some(cluster) = &mut self.cluster else { return };
        let due = cluster.words_at.is_some_and(|at| at <= now);
        let mut waiting = BTreeSet::new();
        for run in std::mem::take(&mut cluster.talking) {
            let Some(shared) = self.runs.get_mut(&run).and_then(|state| state.shared.as_mut()) else {
                continue;
            };
            let says_more = |words: &[Word]| !words.iter().all(|word| matches!(word, Word::Started { .. }));
            let out: BTreeMap<_, _> = shared.out.extract_if(.., |_, words| due || says_more(words)).collect();
            if !shared.out.is_empty() {
                waiting.insert(run);
            }
            let nodes = shared.nodes.clone();
            let over = |word: &Word| matches!(word, Word::PartDone | Word::PartFailed { .. } | Word::Gone);
            if out.values().flatten().any(over) {
                // The home may hand the run's records over as soon as it has heard of its end.
                self.tell_home(run);
                // It may stay for long yet, until the home's outputs are let go of.
                self.drop_load(run);
            }
            let Some(cluster) = &mut self.cluster else { break };
            for (to, words) in out {
                let Some(node) = nodes.get(usize::from(to)) else { continue };
                let mut words = words.into_iter().peekable();
                while words.peek().is_some() {
                    let words = words.by_ref().take(WORDS_MAX).collect();
                    cluster.say(*node, &Message::Words { run, words });
                }
            }
        }
        self.tell_load();
        if let Some(cluster) = &mut self.cluster {
            let leave_at = cluster.words_at.filter(|_| !due).unwrap_or(now.after_us(STARTED_US_MAX));
            cluster.words_at = (!waiting.is_empty()).then_some(leave_at);
            cluster.talking.append(&mut waiting);
            cluster.net.ring();
        }
    }

    pub(super) fn hear_words(&mut self, from: NodeId, run: RunId, words: Vec<Word>) {
        if let Some(invited) = self.cluster.as_mut().and_then(|cluster| cluster.invited.get_mut(&run)) {
            if !invited.keep_words(from, words) {
                self.run_broken(run, "it was told too much before it could begin".into());
            }
            return;
        }
        let index = self.runs.get(&run).and_then(|state| state.shared.as_ref()?.index(from));
        let Some(index) = index else { return };
        words.into_iter().for_each(|word| self.hear(run, index, word));
    }

    /// One word of a run that has begun.
    pub(super) fn hear(&mut self, run: RunId, from: NodeIndex, word: Word) {
        let Some(shared) = self.runs.get_mut(&run).and_then(|state| state.shared.as_mut()) else { return };
        match &word {
            Word::Sealed(Put { key: ObjectKey { invocation, .. }, .. }) | Word::Ended { invocation, .. } => {
                let invocation = *invocation;
                shared.held.entry(invocation).or_default().push((from, word));
                return self.hand_on(run, invocation);
            }
            Word::Withdrawn { invocation, attempt } => {
                let (invocation, attempt) = (*invocation, *attempt);
                self.events.push_back(Event::Heard { run, from, word });
                return self.withdrawn(run, invocation, attempt);
            }
            Word::Started { invocation, attempt } => {
                let owner = Owner { run, invocation: *invocation, attempt: *attempt };
                if self.reads_any(run, *invocation) {
                    self.stand_in(owner);
                }
            }
            Word::Pinned { invocation, attempt, port, count } => {
                let owner = Owner { run, invocation: *invocation, attempt: *attempt };
                self.pin_page(owner, *port, *count);
            }
            Word::FirstByte(put) => self.note_begun(*put),
            _ => {}
        }
        self.events.push_back(Event::Heard { run, from, word });
    }

    /// Hands on what waits no more, in order.
    pub(super) fn hand_on(&mut self, run: RunId, invocation: InvocationId) {
        let Some(shared) = self.runs.get_mut(&run).and_then(|state| state.shared.as_mut()) else { return };
        let Some(words) = shared.held.remove(&invocation) else { return };
        let mut kept: Vec<(NodeIndex, Word)> = Vec::new();
        for (from, word) in words {
            let waits = match &word {
                Word::Sealed(put) => {
                    let here = self.store.locate(put.key).is_some_and(|at| at.attempt == put.attempt);
                    !here && self.scheduler.wants(put.key)
                }
                word => kept.iter().any(|(_, held)| attempt_of(held) == attempt_of(word)),
            };
            if waits {
                if let (Word::Sealed(put), Some(Cluster { net, arrivals, .. })) =
                    (&word, self.cluster.as_deref_mut())
                    && !arrivals.contains_key(&put.key)
                {
                    // Its announcement may have been lost with a connection.
                    net.command(Command::Fetch { key: put.key });
                }
                kept.push((from, word));
                continue;
            }
            match &word {
                Word::Sealed(put) => {
                    self.note_begun(*put);
                    if let Some(shared) = self.runs.get_mut(&run).and_then(|state| state.shared.as_mut()) {
                        shared.unheard.remove(&put.key);
                    }
                }
                Word::Ended { invocation, attempt, .. } => self.retire(run, *invocation, *attempt),
                _ => {}
            }
            self.events.push_back(Event::Heard { run, from, word });
        }
        if let Some(shared) = self.runs.get_mut(&run).and_then(|state| state.shared.as_mut())
            && !kept.is_empty()
        {
            shared.held.insert(invocation, kept);
        }
    }

    /// All attempts up to this one are void. The scheduler lets go of what it has heard of; the rest goes here.
    fn withdrawn(&mut self, run: RunId, invocation: InvocationId, attempt: u32) {
        let Some(shared) = self.runs.get_mut(&run).and_then(|state| state.shared.as_mut()) else { return };
        let void = shared.void.entry(invocation).or_default();
        *void = attempt.max(*void);
        if let Some(held) = shared.held.get_mut(&invocation) {
            held.retain(|(_, word)| attempt_of(word) > attempt);
        }
        let first = ObjectKey { run, invocation, port: 0, item: 0 };
        let last = ObjectKey { port: u16::MAX, item: u32::MAX, ..first };
        let unheard = shared.unheard.range(first..=last).filter(|(_, of)| **of <= attempt);
        let unheard: Vec<ObjectKey> = unheard.map(|(key, _)| *key).collect();
        for key in unheard {
            shared.unheard.remove(&key);
            self.store.release(key);
        }
        self.void_arrivals(first..=last, attempt);
        self.retire(run, invocation, attempt);
        self.hand_on(run, invocation);
    }

    /// Whether something here reads what the invocation puts.
    fn reads_any(&self, run: RunId, invocation: InvocationId) -> bool {
        let Some(workflow) = self.workflow(run) else { return false };
        let Some(step) = workflow.graph.steps.get(invocation.step as usize) else { return false };
        let mut keys =
            (0..step.outputs.len() as u16).map(|port| ObjectKey { run, invocation, port, item: 0 });
        keys.any(|key| self.scheduler.wants(key))
    }

    /// Ends the stand-in of an attempt, once its readers' tables have been rewritten.
    pub(super) fn retire(&mut self, run: RunId, invocation: InvocationId, attempt: u32) {
        let owner = Owner { run, invocation, attempt };
        match self.attempts.get(&(run, invocation)) {
            Some(state) if state.stand_in.is_some() && state.attempt <= attempt => {
                let owner = Owner { attempt: state.attempt, ..owner };
                if let Some(state) = self.attempts.remove(&(run, invocation)) {
                    // Whoever sleeps on the page looks at its table again: not all that the producer put is on it.
                    self.retired.push((owner, false, state));
                }
            }
            _ => self.store.drop_owner(owner, Sealed::Keep),
        }
    }

    /// Ends all stand-ins of a run.
    pub(super) fn retire_all(&mut self, run: RunId) {
        let jobs: Vec<_> = self
            .jobs_of(run)
            .filter(|(_, a)| a.stand_in.is_some())
            .map(|(job, a)| (job.1, a.attempt))
            .collect();
        jobs.into_iter().for_each(|(invocation, attempt)| self.retire(run, invocation, attempt));
    }
}

fn attempt_of(word: &Word) -> u32 {
    match word {
        Word::Sealed(put) => put.attempt,
        Word::Ended { attempt, .. } => *attempt,
        _ => 0,
    }
}
