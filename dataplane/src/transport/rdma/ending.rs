//! How operations, links and cards end.

use super::card::{Card, CardEvent, RECEIVES, Waking};
use super::discover::Choice;
use super::queue::Work;
use super::state::{Operation, Peer, Task, Via};
use super::{Rdma, look};
use crate::transport::streams::Streams;
use crate::transport::{ConnectionId, OpError, Transport};
use dflow_proto::Tick;
use dflow_proto::wire::pairing::{Aside, DownReason, LANES_MAX};

/// How long the card may take, after an operation should have ended, to be done with its memory: its retries end
/// well before. Then the queue pair is destroyed, which ends it for certain. Milliseconds.
const STUCK_MS: u64 = 1_000;
/// How long after a card went away it is looked for again, at first and at most. Milliseconds.
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
        let is_read = matches!(operation.task, Task::Read { .. });
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
                    // What the streams bring may not be the last that is missing.
                    operation.stop = is_read.then_some(why);
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
        if self.misses_cards() && self.reopen_at <= now {
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

    fn misses_cards(&self) -> bool {
        self.cards_open() < self.cards_wanted
    }

    /// When a link, or the search for a card, has something to do.
    pub(super) fn next_link_deadline(&self) -> Tick {
        let links = self.peers.values().filter(|peer| !peer.closing).filter_map(|peer| peer.link.deadline());
        let reopen = self.misses_cards().then_some(self.reopen_at);
        links.chain(reopen).min().unwrap_or(Tick(u64::MAX))
    }

    /// Takes the lanes of a connection down, and everything off them. The cards do nothing for it afterwards. Messages
    /// that were not reported come back, with their operations.
    fn take_down(&mut self, connection: ConnectionId) -> Vec<(u64, Vec<u8>)> {
        let sends = (0..LANES_MAX).flat_map(|number| self.take_down_lane(connection, number)).collect();
        if let Some(peer) = self.peers.get_mut(&connection) {
            peer.lane_why = None;
            peer.keys.clear();
            peer.small.clear();
            peer.bulk.clear();
        }
        sends
    }

    /// The same for one lane.
    pub(super) fn take_down_lane(&mut self, connection: ConnectionId, number: usize) -> Vec<(u64, Vec<u8>)> {
        let Some(peer) = self.peers.get_mut(&connection) else { return Vec::new() };
        let Some(lane) = peer.lanes[number].take() else { return Vec::new() };
        let card = self.cards[lane.card].as_mut().expect("its lanes end before it does");
        card.outstanding -= lane.queue.posted();
        self.numbers.remove(&(lane.card, lane.queue.end.queue));
        self.marks.remove(&lane.queue.mark);
        let mut sends = Vec::new();
        for work in lane.queue.destroy() {
            match work {
                Work::Send { op, message, slot } => {
                    card.messages -= 1;
                    slot.into_iter().for_each(|slot| card.give_back(slot));
                    sends.push((op, message));
                }
                Work::Probe { slot } => card.give_back(slot),
                // Its lease goes back to the operation, which alone holds it now.
                Work::Read { .. } | Work::Out { .. } | Work::Window => {}
            }
        }
        sends
    }

    /// RDMA to a peer has ended, for `why`. The streams continue what was under way, where it was. `tell` is what
    /// the peer is told, unless it was the one who told us.
    pub(super) fn link_down(&mut self, connection: ConnectionId, why: &str, tell: Option<DownReason>) {
        self.link_ends(connection, why, tell, true);
    }

    /// The same for a link with which nothing is wrong: it is to be set up anew.
    pub(super) fn link_renewed(&mut self, connection: ConnectionId, why: &str, tell: Option<DownReason>) {
        self.link_ends(connection, why, tell, false);
    }

    fn link_ends(&mut self, connection: ConnectionId, why: &str, tell: Option<DownReason>, broke: bool) {
        let now = self.now();
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        let (was_up, was_active) = (peer.link.is_up(), peer.link.is_active());
        let (attempt, node) = (peer.link.attempt(), peer.node.0);
        if !was_active {
            return;
        }
        peer.link.failed(now);
        peer.why = if broke { format!("RDMA is down: {why}") } else { format!("RDMA is set up anew: {why}") };
        let sends = self.take_down(connection);
        if !broke {
            tracing::info!(node, why, "RDMA is set up anew");
        } else if was_up {
            self.stats.downgrades += 1;
            tracing::warn!(node, why, "RDMA broke; its transfers go on over TCP");
        } else {
            tracing::info!(node, why, "no RDMA to this node");
        }
        if let Some(why) = tell {
            self.say(connection, &Aside::Down { attempt, why });
        }
        for (op, message) in sends {
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
                    beyond: Vec::new(),
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

    /// The application's part in a connection ends: what the cards had of it completes with `result`.
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

    /// Something happened to the card at `place`.
    pub(super) fn card_event(&mut self, place: usize, event: CardEvent) {
        match event {
            CardEvent::Gone => self.card_gone(place, "the card was removed"),
            CardEvent::PortDown => self.card_gone(place, "the card's port went down"),
            CardEvent::PortUp | CardEvent::Other => {}
        }
    }

    /// There is this card no more, until it is found again. Links that went over it end, and are set up anew over the
    /// cards that are left.
    fn card_gone(&mut self, place: usize, why: &str) {
        let Some(card) = &self.cards[place] else { return };
        tracing::warn!(
            device = card.choice.device,
            port = card.choice.port,
            why,
            "it is not used for RDMA any more"
        );
        self.harvest();
        let goes_over = |peer: &Peer| peer.lanes().any(|(_, lane)| lane.card == place);
        let broken = self.peers.iter().filter(|(_, peer)| goes_over(peer)).map(|(id, _)| *id);
        for connection in broken.collect::<Vec<_>>() {
            self.link_down(connection, why, Some(DownReason::NoCard));
        }
        self.regions.values_mut().for_each(|local| local.memories[place] = None);
        self.cards[place] = None;
        self.armed = Waking::Never;
        self.reopen_failures = 0;
        self.reopen_at = self.now().after_ms(REOPEN_MS);
        if self.cards_open() == 0 {
            why.clone_into(&mut self.card_why);
            self.rest_all(self.reopen_at);
        }
    }

    /// Looks for cards that are missing.
    fn reopen(&mut self, now: Tick) {
        let listen = self.config.listen.map(|address| address.ip());
        let choice = look(listen, self.config.rdma_device.as_deref());
        let outcome =
            choice.map_err(|error| error.to_string()).and_then(|choice| self.adopt_missing(&choice));
        match outcome {
            Ok(()) => self.use_new_cards(now),
            Err(why) => self.card_why = why,
        }
        if self.misses_cards() {
            self.reopen_at = now.after_ms((REOPEN_MS << self.reopen_failures.min(16)).min(REOPEN_MS_MAX));
            self.reopen_failures += 1;
        }
        if self.cards_open() == 0 {
            self.rest_all(self.reopen_at);
        }
    }

    /// Opens what is chosen and not open yet; an error if that is nothing.
    fn adopt_missing(&mut self, choice: &Choice) -> Result<(), String> {
        let mut outcome = Err("no other card is there".to_owned());
        for port in &choice.ports {
            let is_open = self.cards.iter().flatten().any(|card| card.choice.is_same_port(port));
            let Some(place) = self.cards.iter().position(Option::is_none).filter(|_| !is_open) else {
                continue;
            };
            let probe_bytes = self.engine.random();
            let opened = Card::open(port, probe_bytes, &self.registrations, RECEIVES)
                .map_err(|error| error.to_string());
            match opened.and_then(|card| self.adopt(place, card).map_err(|error| error.to_string())) {
                Ok(()) => {
                    tracing::info!(%port, "it is used for RDMA again");
                    outcome = Ok(());
                }
                Err(why) if outcome.is_err() => outcome = Err(why),
                Err(_) => {}
            }
        }
        outcome
    }

    /// A card was added: links that do without are set up anew.
    fn use_new_cards(&mut self, now: Tick) {
        let cards = self.cards_open();
        for connection in self.peers.keys().copied().collect::<Vec<_>>() {
            let peer = &self.peers[&connection];
            if peer.link.is_active() && peer.lanes().count() < cards {
                self.link_renewed(connection, "there is another card", Some(DownReason::Unwanted));
            }
            if let Some(peer) = self.peers.get_mut(&connection)
                && !peer.link.is_active()
            {
                peer.link.rest(now);
            }
        }
    }

    /// There is nothing to try with until then.
    fn rest_all(&mut self, until: Tick) {
        self.peers.values_mut().for_each(|peer| peer.link.rest(until));
    }
}
