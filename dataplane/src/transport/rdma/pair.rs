//! What the two ends of a connection say to each other about RDMA, and the messages of their applications.

use super::Rdma;
use super::card::Card;
use super::carry::ASIDE;
use super::lane::{Lane, PerCard, Place, pair};
use super::link::Due;
use super::queue::{Admits, QueuePair};
use super::state::Peer;
use crate::transport::streams::Streams;
use crate::transport::{Broken, ConnectionId, Event, NodeId, Op, OpError, Transport};
use dflow_proto::Tick;
use dflow_proto::wire::capability;
use dflow_proto::wire::pairing::{Aside, DownReason, End, Key, LANES_MAX, Lanes, PROBE_BYTES, lane_bits};

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
                if !paired || self.cards_open() == 0 {
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
            Aside::Offer { attempt, ends } if !peer.dialled => self.offered(connection, attempt, &ends),
            Aside::Answer { attempt, ends } if peer.dialled => {
                let now = self.engine.now();
                if peer.link.probe(attempt, now) {
                    self.answered(connection, &ends);
                }
            }
            Aside::Ready { attempt, lanes } if !peer.dialled => {
                let now = self.engine.now();
                if peer.link.probe(attempt, now) {
                    self.readied(connection, lanes);
                }
            }
            Aside::Down { attempt, why } => {
                if peer.link.is_active() && peer.link.attempt() == attempt {
                    match why {
                        DownReason::Unwanted => self.link_renewed(connection, &why.to_string(), None),
                        _ => self.link_down(connection, &why.to_string(), None),
                    }
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
        let keys: Vec<Key> = self.regions.keys().filter_map(|id| self.key(connection, *id)).collect();
        keys.into_iter().for_each(|key| self.say(connection, &Aside::Key(key)));
    }

    fn key(&self, connection: ConnectionId, id: (u32, u32)) -> Option<Key> {
        let (local, peer) = (self.regions.get(&id)?, self.peers.get(&connection)?);
        let mut keys = [None; LANES_MAX];
        for (number, lane) in peer.lanes() {
            keys[number] = local.memories[lane.card].as_ref().map(|memory| memory.remote_key);
        }
        // All cards know it by the same address.
        let address = local.memories.iter().flatten().next()?.address();
        let key = Key { id: id.0, generation: id.1, bytes: local.region.bytes, address, keys };
        (lane_bits(&keys) != 0).then_some(key)
    }

    /// A segment was registered.
    pub(super) fn tell_key(&mut self, id: (u32, u32)) {
        for connection in self.linked() {
            if let Some(key) = self.key(connection, id) {
                self.say(connection, &Aside::Key(key));
            }
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
            Due::Settle => self.settle(connection),
            Due::Renew => {
                if let Some(peer) = self.peers.get_mut(&connection) {
                    peer.shunned.clear();
                }
                self.link_renewed(connection, "lanes are tried again", Some(DownReason::Unwanted));
            }
            Due::Offer if self.cards_open() == 0 => {
                let until = self.reopen_at;
                if let Some(peer) = self.peers.get_mut(&connection) {
                    peer.link.rest(until);
                }
                self.tell(connection);
            }
            Due::Offer => self.offer(connection),
        }
    }

    /// Offers a lane for each card; its number is the card's place.
    fn offer(&mut self, connection: ConnectionId) {
        let (now, count, open) = (self.now(), self.cards_open(), self.cards.each_ref().map(Option::is_some));
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        let attempt = peer.link.offer(now);
        peer.keys.clear();
        let (mut ends, mut refused) = ([None; LANES_MAX], String::new());
        for (place, end) in ends.iter_mut().enumerate().filter(|(place, _)| open[*place]) {
            match self.make_lane(connection, place, place, count) {
                Ok(made) => *end = Some(made),
                Err(why) => refused = why,
            }
        }
        if lane_bits(&ends) == 0 {
            return self.link_down(connection, &refused, None);
        }
        self.say(connection, &Aside::Offer { attempt, ends });
        self.tell_keys(connection);
    }

    /// Makes one of `count` lanes, with the card at `place`.
    fn make_lane(
        &mut self,
        connection: ConnectionId,
        number: usize,
        place: usize,
        count: usize,
    ) -> Result<End, String> {
        let random = self.engine.random();
        let card = self.cards[place].as_ref().expect("the caller has looked");
        let psn = u32::from_le_bytes(random[..4].try_into().expect("four of them"));
        let mark = self.mark_next;
        let queue =
            QueuePair::new(card, count, mark, psn, Admits::Reads).map_err(|error| error.to_string())?;
        self.mark_next += 1;
        let end = queue.end;
        let peer = self.peers.get_mut(&connection).expect("the caller holds it");
        peer.lanes[number] = Some(Lane { card: place, queue, end: None, proven: false, reading_bytes: 0 });
        self.numbers.insert((place, end.queue), connection);
        self.marks.insert(mark, (connection, number));
        Ok(end)
    }

    /// The dialling end offers RDMA.
    fn offered(&mut self, connection: ConnectionId, attempt: u32, ends: &Lanes<End>) {
        // An offer while a link is there means that the peer has given that one up.
        self.link_down(connection, &DownReason::Unwanted.to_string(), None);
        let now = self.now();
        let ours: PerCard<Place> = self.cards.each_ref().map(|card| card.as_ref().map(Card::place));
        let theirs = ends.each_ref().map(|end| end.as_ref().map(Place::of));
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        peer.link.answer(attempt, now);
        let mut pairs = pair(&theirs, &ours, |their, our| peer.shunned.contains(&(their, our)));
        if lane_bits(&pairs) == 0 {
            // Nothing else is left: they may reach each other by now.
            peer.shunned.clear();
            pairs = pair(&theirs, &ours, |_, _| false);
        }
        peer.lane_why = (!peer.shunned.is_empty()).then(|| "its ports did not reach each other".to_owned());
        let count = pairs.iter().flatten().count();
        let (mut own, mut refused) = ([None; LANES_MAX], self.card_why.clone());
        for (number, pair) in pairs.iter().enumerate() {
            let (Some(place), Some(end)) = (*pair, &ends[number]) else { continue };
            let made = self.make_lane(connection, number, place, count);
            match made.and_then(|made| self.connect_lane(connection, number, end).map(|()| made)) {
                Ok(made) => own[number] = Some(made),
                Err(why) => {
                    // The kernel may take a second to find no way to a peer, for all who wait for it here: once is enough.
                    self.shun(connection, place, end);
                    self.drop_lane(connection, number, &why);
                    refused = why;
                }
            }
        }
        if lane_bits(&own) == 0 {
            let reason = if self.cards_open() > 0 { DownReason::SetUp } else { DownReason::NoCard };
            return self.link_down(connection, &refused, Some(reason));
        }
        self.say(connection, &Aside::Answer { attempt, ends: own });
        self.tell_keys(connection);
    }

    /// The peer has answered our offer.
    fn answered(&mut self, connection: ConnectionId, ends: &Lanes<End>) {
        let offered = self.peers.get(&connection).map_or(0, |peer| lane_bits(&peer.lanes));
        if lane_bits(ends) & !offered != 0 {
            return self.engine.break_off(connection, Broken::Misbehaved("it answers what was not offered"));
        }
        let mut refused = String::new();
        for (number, end) in ends.iter().enumerate() {
            let Some(end) = end else {
                self.take_down_lane(connection, number);
                continue;
            };
            let outcome = self.connect_lane(connection, number, end);
            if let Err(why) = outcome.and_then(|()| self.probe_lane(connection, number)) {
                self.drop_lane(connection, number, &why);
                refused = why;
            }
        }
        if self.peers.get(&connection).is_some_and(|peer| lane_bits(&peer.lanes) == 0) {
            self.link_down(connection, &refused, Some(DownReason::SetUp));
        }
    }

    /// The dialling end has found which lanes work.
    fn readied(&mut self, connection: ConnectionId, bits: u8) {
        let offered = self.peers.get(&connection).map_or(0, |peer| lane_bits(&peer.lanes));
        if bits & !offered != 0 {
            return self.engine.break_off(connection, Broken::Misbehaved("it is ready for no lane of ours"));
        }
        for number in 0..LANES_MAX {
            if bits >> number & 1 == 0 {
                self.take_down_lane(connection, number);
            } else if let Err(why) = self.probe_lane(connection, number) {
                return self.link_down(connection, &why, Some(DownReason::SetUp));
            }
        }
    }

    fn connect_lane(&mut self, connection: ConnectionId, number: usize, end: &End) -> Result<(), String> {
        let peer = self.peers.get_mut(&connection).expect("the caller holds it");
        let lane = peer.lanes[number].as_mut().expect("the caller has made it");
        lane.end = Some(*end);
        let card = self.cards[lane.card].as_ref().expect("its lanes end before it does");
        lane.queue.connect(card, end).map_err(|error| error.to_string())
    }

    fn probe_lane(&mut self, connection: ConnectionId, number: usize) -> Result<(), String> {
        let peer = self.peers.get_mut(&connection).expect("the caller holds it");
        let lane = peer.lanes[number].as_mut().expect("the caller has made it");
        let end = lane.end.as_ref().expect("it is connected");
        let card = self.cards[lane.card].as_mut().expect("its lanes end before it does");
        let slot = card.take_slot().ok_or_else(|| "all buffers are in use".to_owned())?;
        lane.queue.read_probe(card, slot, end).map_err(|(slot, error)| {
            card.give_back(slot);
            format!("the probe could not be sent: {error}")
        })?;
        card.outstanding += 1;
        Ok(())
    }

    /// A probe came back.
    pub(super) fn probed(&mut self, connection: ConnectionId, number: usize, bytes: &[u8; PROBE_BYTES]) {
        let now = self.now();
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        let Some(lane) = &mut peer.lanes[number] else { return };
        if lane.end.is_none_or(|end| end.probe_bytes != *bytes) {
            let why = "the probe came from another node: two fabrics use the same addresses";
            return self.lane_failed(connection, number, why);
        }
        lane.proven = true;
        peer.link.one_came(now);
        if peer.lanes().all(|(_, lane)| lane.proven) {
            self.settle(connection);
        }
    }

    /// The probe of a lane did not come back as it should.
    pub(super) fn lane_failed(&mut self, connection: ConnectionId, number: usize, why: &str) {
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        if !peer.dialled {
            // The other end relies on it already. Next time it is told to do without.
            let lane = peer.lanes[number].as_ref();
            if let Some((place, end)) = lane.and_then(|lane| Some((lane.card, lane.end?))) {
                self.shun(connection, place, &end);
            }
            return self.link_down(connection, why, Some(DownReason::Probe));
        }
        self.drop_lane(connection, number, why);
        let Some(peer) = self.peers.get(&connection) else { return };
        if lane_bits(&peer.lanes) == 0 {
            self.link_down(connection, why, Some(DownReason::Probe));
        } else if peer.lanes().all(|(_, lane)| lane.proven) {
            self.settle(connection);
        }
    }

    /// Puts these ports together no more, until there is nothing else or the link is renewed.
    fn shun(&mut self, connection: ConnectionId, place: usize, end: &End) {
        if let (Some(card), Some(peer)) = (&self.cards[place], self.peers.get_mut(&connection)) {
            // A peer whose addresses change does not make this grow.
            if peer.shunned.len() >= LANES_MAX * LANES_MAX {
                peer.shunned.clear();
            }
            peer.shunned.push((Place::of(end), card.place()));
        }
    }

    /// Does without a lane.
    fn drop_lane(&mut self, connection: ConnectionId, number: usize, why: &str) {
        self.take_down_lane(connection, number);
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        tracing::info!(node = peer.node.0, lane = number, why, "a lane is not used");
        peer.lane_why = Some(why.to_owned());
    }

    /// The link goes up with the lanes whose probes came back.
    fn settle(&mut self, connection: ConnectionId) {
        let now = self.now();
        for number in 0..LANES_MAX {
            let Some(peer) = self.peers.get(&connection) else { return };
            if peer.lanes[number].as_ref().is_some_and(|lane| !lane.proven) {
                self.drop_lane(connection, number, "its probe did not come back in time");
            }
        }
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        peer.link.up(now, peer.lane_why.is_none());
        let cards = peer.lanes().filter_map(|(_, lane)| self.cards[lane.card].as_ref());
        let mut why = cards.map(|card| card.choice.to_string()).collect::<Vec<_>>().join("; and ");
        if let Some(lost) = peer.lane_why.take() {
            why.push_str("; another lane is not used: ");
            why.push_str(&lost);
        }
        let (attempt, dialled, NodeId(node)) = (peer.link.attempt(), peer.dialled, peer.node);
        let lanes = lane_bits(&peer.lanes);
        tracing::info!(node, lanes = lanes.count_ones(), why, "RDMA is up");
        peer.why = why;
        if dialled {
            self.say(connection, &Aside::Ready { attempt, lanes });
        }
        self.tell(connection);
    }
}
