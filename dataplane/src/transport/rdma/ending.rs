//! How operations, links and the card end.

use super::card::{Card, CardEvent};
use super::queue::Work;
use super::state::{Operation, Task, Via};
use super::{Rdma, look};
use crate::transport::streams::Streams;
use crate::transport::{ConnectionId, OpError, Transport};
use dflow_proto::Tick;
use dflow_proto::wire::pairing::{Aside, DownReason};
use std::collections::VecDeque;

/// How long the card may take, after an operation should have ended, to be done with its memory: its retries end
/// well before. Then the queue pair is destroyed, which ends it for certain. Milliseconds.
const STUCK_MS: u64 = 1_000;
/// How long after the card went away it is looked for again, at first and at most. Milliseconds.
const REOPEN_MS: u64 = 1_000;
const REOPEN_MS_MAX: u64 = 30_000;

impl<S: Streams> Rdma<S> {
    /// Ends an operation early: now, or when the card is done with what it already has.
    pub(super) fn stop(&mut self, key: u64, why: OpError) {
        let Some(operation) = self.ops.get_mut(key) else { return };
        if operation.ghost || operation.stop.is_some() {
            return;
        }
        let timed_out = matches!(why, OpError::TimedOut { .. });
        match (&operation.task, operation.via) {
            // A message that has its number must go; the application need not wait for it.
            (Task::Send { wrapped: true, .. }, _) => {
                if timed_out {
                    self.complete_ahead(key, why);
                }
            }
            (_, Via::Streams { inner, .. }) => {
                // Deadlines of what the streams carry are theirs.
                if !timed_out {
                    self.engine.cancel(inner);
                }
            }
            (Task::Read { .. }, Via::Card { pieces, .. }) if pieces > 0 => {
                operation.stop = Some(why);
                let stuck = operation.deadline.max(self.engine.now()).after_ms(STUCK_MS);
                self.note_deadline(stuck);
            }
            _ => self.finish(key, Err(why)),
        }
    }

    fn complete_ahead(&mut self, key: u64, why: OpError) {
        let Some(mut operation) = self.ops.remove(key) else { return };
        let via = operation.via;
        self.complete(key, &mut operation, Err(why));
        // The card and the streams know it by its key, so it must keep it.
        if via == Via::Queued {
            let again = self.ops.insert(operation);
            self.overflow.iter_mut().filter(|waiting| **waiting == key).for_each(|waiting| *waiting = again);
        }
    }

    /// Ends what has had its time.
    pub(super) fn expire(&mut self) {
        let now = self.now();
        if self.card.is_none() && self.reopen_at <= now {
            self.reopen(now);
        }
        self.expire_links(now);
        if now < self.deadline_min {
            return;
        }
        let mut next = Tick(u64::MAX);
        let (mut due, mut stuck) = (Vec::new(), Vec::new());
        for (key, operation) in self.ops.iter().filter(|(_, operation)| !operation.ghost) {
            let streams =
                matches!((&operation.via, &operation.task), (Via::Streams { .. }, Task::Read { .. }));
            let until = match &operation.stop {
                Some(_) => operation.deadline.min(now).after_ms(STUCK_MS),
                None => operation.deadline,
            };
            match () {
                () if streams => {}
                () if until > now => next = next.min(until),
                () if operation.stop.is_some() => stuck.push(operation.connection),
                () => due.push((
                    key,
                    OpError::TimedOut { done_bytes: operation.done_bytes, bytes: operation.bytes },
                )),
            }
        }
        self.deadline_min = next;
        due.into_iter().for_each(|(key, why)| self.stop(key, why));
        for connection in stuck {
            self.link_down(connection, "the card does not end a read", Some(DownReason::Broken));
        }
        for connection in self.peers.keys().copied().collect::<Vec<_>>() {
            let peer = &self.peers[&connection];
            match () {
                () if peer.told => {}
                () if peer.tell_by <= now => self.tell(connection),
                () => self.deadline_min = self.deadline_min.min(peer.tell_by),
            }
        }
    }

    fn expire_links(&mut self, now: Tick) {
        if self.next_link_deadline() > now {
            return;
        }
        for connection in self.peers.keys().copied().collect::<Vec<_>>() {
            let due =
                self.peers.get(&connection).filter(|peer| !peer.closing).and_then(|peer| peer.link.due(now));
            if let Some(due) = due {
                self.due(connection, due);
            }
            self.say_rest(connection);
        }
    }

    /// When a link, or the search for a card, has something to do.
    pub(super) fn next_link_deadline(&self) -> Tick {
        let links = self.peers.values().filter(|peer| !peer.closing).filter_map(|peer| peer.link.deadline());
        let reopen = self.card.is_none().then_some(self.reopen_at);
        links.chain(reopen).min().unwrap_or(Tick(u64::MAX))
    }

    /// Takes the queue pair of a connection down, and everything off it. The card does nothing for it afterwards.
    fn take_down(&mut self, connection: ConnectionId) -> VecDeque<Work> {
        let Some(peer) = self.peers.get_mut(&connection) else { return VecDeque::new() };
        let Some(queue) = peer.queue.take() else { return VecDeque::new() };
        self.outstanding -= queue.posted();
        self.numbers.remove(&peer.queue_number);
        self.marks.remove(&peer.queue_mark);
        peer.end = None;
        peer.keys.clear();
        peer.reading_bytes = 0;
        peer.small.clear();
        peer.bulk.clear();
        let work = queue.destroy();
        work.into_iter()
            .filter_map(|work| match work {
                Work::Send { op, message, slot } => {
                    if let (Some(slot), Some(card)) = (slot, &mut self.card) {
                        card.give_back(slot);
                    }
                    Some(Work::Send { op, message, slot: None })
                }
                Work::Probe { slot } => {
                    if let Some(card) = &mut self.card {
                        card.give_back(slot);
                    }
                    None
                }
                // Its lease goes back to the operation, which alone holds it now.
                Work::Read { .. } => None,
            })
            .collect()
    }

    /// RDMA to a peer has ended, for `why`. The streams continue what was under way, where it was. `tell` is what
    /// the peer is told, unless it was the one who told us.
    pub(super) fn link_down(&mut self, connection: ConnectionId, why: &str, tell: Option<DownReason>) {
        let now = self.now();
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        let (was_up, was_active) = (peer.link.is_up(), peer.link.is_active());
        let (attempt, node) = (peer.link.attempt(), peer.node.0);
        if !was_active {
            return;
        }
        peer.link.failed(now);
        peer.why = format!("RDMA is down: {why}");
        let sends = self.take_down(connection);
        if was_up {
            self.stats.downgrades += 1;
            tracing::warn!(node, why, "RDMA broke; its transfers go on over TCP");
        } else {
            tracing::info!(node, why, "no RDMA to this node");
        }
        if let Some(why) = tell {
            self.say(connection, &Aside::Down { attempt, why });
        }
        for work in sends {
            let Work::Send { op, message, .. } = work else { continue };
            let key = match self.ops.get_mut(op) {
                Some(operation) => {
                    operation.task = Task::Send { message, wrapped: true };
                    op
                }
                // It is past its deadline, but those behind it wait for its number.
                None => self.ops.insert(Operation {
                    connection,
                    tag: 0,
                    deadline: Tick(u64::MAX),
                    bytes: message.len(),
                    done_bytes: 0,
                    task: Task::Send { message, wrapped: true },
                    via: Via::Queued,
                    stop: None,
                    ghost: true,
                }),
            };
            self.by_streams(key);
        }
        for key in self.ops_of(connection) {
            let Some(operation) = self.ops.get_mut(key) else { continue };
            if let (Task::Read { .. }, Via::Card { .. }) = (&operation.task, operation.via) {
                match operation.stop.take() {
                    Some(why) => self.finish(key, Err(why)),
                    None => self.by_streams(key),
                }
            }
        }
        self.tell(connection);
    }

    /// The application's part in a connection ends: what the card had of it completes with `result`.
    pub(super) fn let_go(&mut self, connection: ConnectionId, result: &OpError) {
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        peer.closing = true;
        drop(self.take_down(connection));
        for key in self.ops_of(connection) {
            let Some(operation) = self.ops.get(key) else { continue };
            // What the streams carry they end themselves.
            if !operation.ghost && !matches!(operation.via, Via::Streams { .. }) {
                self.finish(key, Err(operation.stop.clone().unwrap_or_else(|| result.clone())));
            }
        }
    }

    /// Something happened to the card.
    pub(super) fn card_event(&mut self, event: CardEvent) {
        match event {
            CardEvent::Gone => self.card_gone("the card was removed"),
            CardEvent::PortDown => self.card_gone("the card's port went down"),
            CardEvent::PortUp | CardEvent::Other => {}
        }
    }

    /// There is no card any more, until one is found.
    fn card_gone(&mut self, why: &str) {
        tracing::warn!(why, "RDMA is off");
        self.harvest();
        for connection in self.peers.keys().copied().collect::<Vec<_>>() {
            self.link_down(connection, why, Some(DownReason::NoCard));
        }
        why.clone_into(&mut self.card_why);
        self.regions.values_mut().for_each(|local| local.memory = None);
        self.card = None;
        self.armed = false;
        self.reopen_failures = 0;
        self.reopen_at = self.now().after_ms(REOPEN_MS);
        let until = self.reopen_at;
        self.peers.values_mut().for_each(|peer| peer.link.rest(until));
    }

    fn reopen(&mut self, now: Tick) {
        let listen = self.config.listen.map(|address| address.ip());
        let card = look(listen, self.config.rdma_device.as_deref());
        let probe_bytes = self.engine.random();
        let outcome = card
            .and_then(|choice| Card::open(&choice, probe_bytes, &self.registrations))
            .map_err(|error| error.to_string());
        let outcome = outcome.and_then(|card| {
            let choice = card.choice.to_string();
            self.adopt(card).map_err(|error| error.to_string())?;
            Ok(choice)
        });
        match outcome {
            Ok(choice) => {
                tracing::info!(choice, "RDMA is on again");
                self.peers.values_mut().for_each(|peer| peer.link.rest(now));
            }
            Err(why) => {
                self.card = None;
                self.card_why = why;
                self.reopen_at = now.after_ms((REOPEN_MS << self.reopen_failures.min(16)).min(REOPEN_MS_MAX));
                self.reopen_failures += 1;
                let until = self.reopen_at;
                self.peers.values_mut().for_each(|peer| peer.link.rest(until));
            }
        }
    }
}
