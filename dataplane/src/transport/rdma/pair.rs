//! What the two ends of a connection say to each other about RDMA, and the messages of their applications.

use super::Rdma;
use super::carry::ASIDE;
use super::link::Due;
use super::queue::QueuePair;
use super::state::Peer;
use crate::transport::streams::Streams;
use crate::transport::{Broken, ConnectionId, Event, NodeId, Op, OpError, Transport};
use dflow_proto::Tick;
use dflow_proto::wire::capability;
use dflow_proto::wire::pairing::{Aside, DownReason, End, Key, PROBE_BYTES};

/// How long a connection may be kept from the application until it is decided what carries its data. Milliseconds.
const DECIDE_MS_MAX: u64 = 500;
/// Segments that one peer may register.
const KEYS_MAX: usize = 64 << 10;
/// Messages that may wait for one before them, as a multiple of the streams' credit: no honest peer needs more than
/// what the streams and the card can hold.
const EARLY_CREDITS: usize = 4;

impl<S: Streams> Rdma<S> {
    /// Handles what the streams found.
    pub(super) fn hear(&mut self, event: Event) {
        match event {
            Event::Connected { connection, node, epoch, dialled } => {
                let now = self.now();
                let paired = self.engine.agreed(connection) & capability::RDMA != 0;
                let mut peer = Peer::new(node, epoch, dialled, paired, now);
                peer.why = match paired {
                    true => "RDMA is being set up".to_owned(),
                    false => "the peer does not use RDMA".to_owned(),
                };
                peer.tell_by = now.after_ms(DECIDE_MS_MAX);
                peer.held.push_back(Event::Connected { connection, node, epoch, dialled });
                self.note_deadline(peer.tell_by);
                self.peers.insert(connection, peer);
                if !paired || self.card.is_none() {
                    if let (true, Some(peer)) = (paired, self.peers.get_mut(&connection)) {
                        peer.why = self.card_why.clone();
                        peer.link.rest(self.reopen_at);
                    }
                    self.tell(connection);
                }
            }
            Event::Disconnected { connection, ref why } => {
                self.harvest();
                let result = if *why == Broken::Closed { OpError::Cancelled } else { OpError::Disconnected };
                self.let_go(connection, &result);
                // Numbered messages that are past their deadline waited for this connection only.
                self.ops_of(connection).into_iter().for_each(|key| drop(self.ops.remove(key)));
                self.peers.remove(&connection);
                self.found.push_back(event);
            }
            Event::Message { connection, bytes } => {
                if self.peers.get(&connection).is_some_and(|peer| peer.paired) {
                    self.aside(connection, &bytes, false);
                } else {
                    self.give(connection, bytes);
                }
            }
            Event::Completed(completion) => self.carried(completion),
        }
    }

    /// A message for the application.
    fn give(&mut self, connection: ConnectionId, bytes: Vec<u8>) {
        let event = Event::Message { connection, bytes };
        match self.peers.get_mut(&connection) {
            Some(peer) if !peer.told => peer.held.push_back(event),
            Some(_) => self.found.push_back(event),
            None => {}
        }
    }

    /// Lets the application know of a connection.
    pub(super) fn tell(&mut self, connection: ConnectionId) {
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        if !std::mem::replace(&mut peer.told, true) {
            tracing::debug!(node = peer.node.0, rdma = peer.link.is_up(), why = peer.why, "connected");
            self.found.append(&mut peer.held);
        }
    }

    /// Says something to the peer's transport, in order.
    pub(super) fn say(&mut self, connection: ConnectionId, aside: &Aside<'_>) {
        if let Some(peer) = self.peers.get_mut(&connection)
            && peer.paired
        {
            peer.unsaid.push_back(aside.encode());
            self.say_rest(connection);
        }
    }

    /// Says what the streams had no room for.
    pub(super) fn say_rest(&mut self, connection: ConnectionId) {
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        while let Some(message) = peer.unsaid.pop_front() {
            let op = Op::Send { connection, message, deadline: Tick(u64::MAX), tag: ASIDE };
            if let Err(refused) = self.engine.submit(op) {
                if let Op::Send { message, .. } = *refused.op {
                    peer.unsaid.push_front(message);
                }
                return;
            }
        }
    }

    /// Handles what the peer says.
    pub(super) fn aside(&mut self, connection: ConnectionId, bytes: &[u8], over_card: bool) {
        let aside = match Aside::decode(bytes) {
            Ok(aside) => aside,
            Err(malformed) => return self.engine.break_off(connection, Broken::Malformed(malformed)),
        };
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        match aside {
            Aside::Message { number, bytes } => self.message(connection, number, bytes),
            _ if over_card => {
                self.engine.break_off(connection, Broken::Misbehaved("more than messages over RDMA"));
            }
            Aside::Offer { attempt, end } if !peer.dialled => self.offered(connection, attempt, &end),
            Aside::Answer { attempt, end } if peer.dialled => {
                let now = self.engine.now();
                if peer.link.probe(attempt, now) {
                    peer.end = Some(end);
                    self.connect_and_probe(connection, true);
                }
            }
            Aside::Ready { attempt } if !peer.dialled => {
                let now = self.engine.now();
                if peer.link.probe(attempt, now) {
                    self.connect_and_probe(connection, false);
                }
            }
            Aside::Down { attempt, why } => {
                if peer.link.is_active() && peer.link.attempt() == attempt {
                    self.link_down(connection, &why.to_string(), None);
                }
            }
            Aside::Key(key) => {
                if peer.keys.len() >= KEYS_MAX {
                    return self.engine.break_off(connection, Broken::Misbehaved("too many segments"));
                }
                peer.keys.insert((key.id, key.generation), key);
            }
            Aside::Revoke { id, generation } => drop(peer.keys.remove(&(id, generation))),
            Aside::Offer { .. } | Aside::Answer { .. } | Aside::Ready { .. } => {
                self.engine.break_off(connection, Broken::Misbehaved("it speaks as the other end"));
            }
        }
    }

    /// A numbered message: each once, in order.
    fn message(&mut self, connection: ConnectionId, number: u64, bytes: &[u8]) {
        let peer = self.peers.get_mut(&connection).expect("the caller holds it");
        if number < peer.receive_number {
            return;
        }
        if number > peer.receive_number {
            if peer.early.insert(number, bytes.to_vec()).is_none() {
                peer.early_bytes += bytes.len() + size_of::<Vec<u8>>();
            }
            if peer.early_bytes > EARLY_CREDITS * self.config.message_credit_bytes as usize {
                self.engine.break_off(connection, Broken::Misbehaved("a message is missing"));
            }
            return;
        }
        peer.receive_number += 1;
        let mut in_turn = vec![bytes.to_vec()];
        while let Some(bytes) = peer.early.remove(&peer.receive_number) {
            peer.receive_number += 1;
            peer.early_bytes -= bytes.len() + size_of::<Vec<u8>>();
            in_turn.push(bytes);
        }
        in_turn.into_iter().for_each(|bytes| self.give(connection, bytes));
    }

    /// The keys of all registered segments.
    fn tell_keys(&mut self, connection: ConnectionId) {
        let keys: Vec<Key> = self.regions.keys().filter_map(|id| self.key(*id)).collect();
        keys.into_iter().for_each(|key| self.say(connection, &Aside::Key(key)));
    }

    fn key(&self, id: (u32, u32)) -> Option<Key> {
        let local = self.regions.get(&id)?;
        let memory = local.memory.as_ref()?;
        let (address, key) = (memory.address(), memory.remote_key);
        Some(Key { id: id.0, generation: id.1, bytes: local.region.bytes, address, key })
    }

    /// A segment was registered.
    pub(super) fn tell_key(&mut self, id: (u32, u32)) {
        if let Some(key) = self.key(id) {
            self.linked().into_iter().for_each(|connection| self.say(connection, &Aside::Key(key)));
        }
    }

    /// A registration has ended.
    pub(super) fn tell_revoked(&mut self, (id, generation): (u32, u32)) {
        let aside = Aside::Revoke { id, generation };
        self.linked().into_iter().for_each(|connection| self.say(connection, &aside));
    }

    fn linked(&self) -> Vec<ConnectionId> {
        self.peers.iter().filter(|(_, peer)| peer.link.is_active()).map(|(id, _)| *id).collect()
    }

    /// Does what is due on a connection's way to RDMA.
    pub(super) fn due(&mut self, connection: ConnectionId, due: Due) {
        match due {
            Due::GiveUp => {
                self.link_down(connection, "the peer did not answer in time", Some(DownReason::Probe));
            }
            Due::Offer if self.card.is_none() => {
                let until = self.reopen_at;
                if let Some(peer) = self.peers.get_mut(&connection) {
                    peer.link.rest(until);
                }
                self.tell(connection);
            }
            Due::Offer => {
                let now = self.now();
                let Some(peer) = self.peers.get_mut(&connection) else { return };
                let attempt = peer.link.offer(now);
                peer.keys.clear();
                match self.make_queue(connection) {
                    Ok(end) => {
                        self.say(connection, &Aside::Offer { attempt, end });
                        self.tell_keys(connection);
                    }
                    Err(why) => self.link_down(connection, &why, None),
                }
            }
        }
    }

    fn make_queue(&mut self, connection: ConnectionId) -> Result<End, String> {
        let random = self.engine.random();
        let card = self.card.as_ref().ok_or_else(|| self.card_why.clone())?;
        let psn = u32::from_le_bytes(random[..4].try_into().expect("four of them"));
        let mark = self.mark_next;
        let queue = QueuePair::new(card, mark, psn).map_err(|error| error.to_string())?;
        self.mark_next += 1;
        let end = queue.end;
        let peer = self.peers.get_mut(&connection).expect("the caller holds it");
        (peer.queue_number, peer.queue_mark) = (end.queue, mark);
        peer.queue = Some(queue);
        self.numbers.insert(end.queue, connection);
        self.marks.insert(mark, connection);
        Ok(end)
    }

    /// The dialling end offers RDMA.
    fn offered(&mut self, connection: ConnectionId, attempt: u32, end: &End) {
        // An offer while a link is there means that the peer has given that one up.
        self.link_down(connection, &DownReason::Unwanted.to_string(), None);
        let outcome = self.make_queue(connection).and_then(|own| {
            let (Some(card), Some(peer)) = (&self.card, self.peers.get_mut(&connection)) else {
                return Err(self.card_why.clone());
            };
            let queue = peer.queue.as_ref().expect("just made");
            queue.connect(card, end).map_err(|error| error.to_string())?;
            Ok(own)
        });
        let now = self.now();
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        peer.link.answer(attempt, now);
        peer.end = Some(*end);
        match outcome {
            Ok(own) => {
                self.say(connection, &Aside::Answer { attempt, end: own });
                self.tell_keys(connection);
            }
            Err(why) => {
                let reason = if self.card.is_some() { DownReason::SetUp } else { DownReason::NoCard };
                self.link_down(connection, &why, Some(reason));
            }
        }
    }

    /// The peer is ready for our probe; the dialling end must connect its queue pair first.
    fn connect_and_probe(&mut self, connection: ConnectionId, connect: bool) {
        let (Some(card), Some(peer)) = (&mut self.card, self.peers.get_mut(&connection)) else { return };
        let (Some(queue), Some(end)) = (&mut peer.queue, peer.end) else { return };
        let outcome = match connect {
            true => queue.connect(card, &end).map_err(|error| error.to_string()),
            false => Ok(()),
        };
        let outcome = outcome.and_then(|()| {
            let slot = card.take_slot().ok_or_else(|| "all buffers are in use".to_owned())?;
            queue.read_probe(card, slot, &end).map_err(|(slot, error)| {
                card.give_back(slot);
                format!("the probe could not be sent: {error}")
            })
        });
        match outcome {
            Ok(()) => self.outstanding += 1,
            Err(why) => self.link_down(connection, &why, Some(DownReason::SetUp)),
        }
    }

    /// The probe came back.
    pub(super) fn probed(&mut self, connection: ConnectionId, bytes: &[u8; PROBE_BYTES]) {
        let now = self.now();
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        if peer.end.is_none_or(|end| end.probe_bytes != *bytes) {
            let why = "the probe came from another node: two fabrics use the same addresses";
            return self.link_down(connection, why, Some(DownReason::Probe));
        }
        peer.link.up(now);
        let (attempt, dialled, NodeId(node)) = (peer.link.attempt(), peer.dialled, peer.node);
        let card = self.card.as_ref().expect("it brought the probe");
        peer.why = card.choice.to_string();
        tracing::info!(node, why = peer.why, "RDMA is up");
        if dialled {
            self.say(connection, &Aside::Ready { attempt });
        }
        self.tell(connection);
    }
}
