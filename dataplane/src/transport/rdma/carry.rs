//! Operations on their way: what carries them, and their completions.

use super::card::{Card, Done};
use super::lane::{Lane, PerCard};
use super::queue::Work;
use super::state::{Operation, Task, Via};
use super::{BUFFER_BYTES, Rdma};
use crate::transport::streams::Streams;
use crate::transport::{Completion, ConnectionId, Event, Lease, Op, OpError, OpId, RefusedWhy, Transport};
use dflow_proto::Tick;
use dflow_proto::wire::SMALL_BYTES_MAX;
use dflow_proto::wire::pairing::{Aside, DownReason, LANES_MAX};
use std::rc::Rc;

/// One work request reads at most so much: what is lost when a link breaks, and how long a small read waits behind
/// a large one, are a few of these.
pub(super) const PIECE_BYTES: usize = 2 << 20;
/// Bytes of a connection's reads that its lanes have at a time, all together. More than is in flight on any wire, and little enough
/// that a read whose deadline has passed ends soon after: what the card has cannot be taken back.
const READING_BYTES_MAX: usize = 4 << 20;
/// Marks asides, which no operation stands for.
pub(super) const ASIDE: u64 = u64::MAX;

impl<S: Streams> Rdma<S> {
    /// Takes an operation in; answers its key.
    pub(super) fn begin(&mut self, op: Op) -> u64 {
        let (connection, tag, deadline, bytes, task) = match op {
            Op::Read { connection, region, offset, into, deadline, tag } => {
                let bytes = into.bytes();
                (connection, tag, deadline, bytes, Task::Read { region, offset, lease: Some(Rc::new(into)) })
            }
            Op::Send { connection, message, deadline, tag } => {
                let peer = self.peers.get_mut(&connection).expect("open");
                let bytes = message.len();
                let wrapped = peer.paired;
                let message = match wrapped {
                    true => {
                        let number = peer.send_number;
                        peer.send_number += 1;
                        Aside::Message { number, bytes: &message }.encode()
                    }
                    false => message,
                };
                (connection, tag, deadline, bytes, Task::Send { message, wrapped })
            }
        };
        let is_read = matches!(task, Task::Read { .. });
        let (done_bytes, via, stop, ghost) = (0, Via::Queued, None, false);
        let beyond = Vec::new();
        let operation =
            Operation { connection, tag, deadline, bytes, done_bytes, beyond, task, via, stop, ghost };
        let key = self.ops.insert(operation);
        let by_card = if is_read { self.read_by_card(key) } else { self.send_by_card(key) };
        if !by_card {
            self.by_streams(key);
        }
        key
    }

    /// Whether a card can reach what a read wants, and the memory that it is for; then it is the cards'.
    fn read_by_card(&mut self, key: u64) -> bool {
        let operation = self.ops.get_mut(key).expect("the caller holds it");
        let Task::Read { region, offset, lease: Some(lease) } = &operation.task else { return false };
        let (bytes, lease) = (operation.bytes, lease.extent());
        let Some(peer) = self.peers.get_mut(&operation.connection) else { return false };
        if bytes == 0 || !peer.link.is_up() || region.epoch != peer.epoch {
            return false;
        }
        let Some(remote) = peer.keys.get(&(region.id, region.generation)) else { return false };
        let inside = offset.checked_add(bytes as u64).is_some_and(|end| end <= remote.bytes);
        // What is not so is refused by the owner, in its own words.
        let Some(id) = self.by_segment.get(&lease.segment).filter(|_| inside) else { return false };
        let memories = &self.regions[id].memories;
        if !peer.lanes().any(|(number, lane)| remote.keys[number].is_some() && memories[lane.card].is_some())
        {
            return false;
        }
        operation.via = Via::Card { given_bytes: 0, pieces: 0 };
        match bytes <= SMALL_BYTES_MAX {
            true => peer.small.push_back(key),
            false => peer.bulk.push_back(key),
        }
        let connection = operation.connection;
        self.pump(connection);
        true
    }

    fn send_by_card(&mut self, key: u64) -> bool {
        let operation = self.ops.get_mut(key).expect("the caller holds it");
        let Task::Send { message, wrapped: true } = &mut operation.task else { return false };
        let Some(peer) = self.peers.get_mut(&operation.connection) else { return false };
        if !peer.link.is_up() || message.len() > BUFFER_BYTES {
            return false;
        }
        let cards = &mut self.cards;
        let has_room = |lane: &&mut Lane| lane.queue.has_room() && has_room(cards, lane);
        let lane = peer.lanes.iter_mut().flatten().filter(has_room).min_by_key(|lane| lane.queue.posted());
        let Some(lane) = lane else { return false };
        let card = cards[lane.card].as_mut().expect("its lanes end before it does");
        match lane.queue.send(card, key, std::mem::take(message)) {
            Ok(()) => {
                card.outstanding += 1;
                card.messages += 1;
                operation.via = Via::Card { given_bytes: 0, pieces: 1 };
                true
            }
            Err(refused) => {
                *message = refused;
                false
            }
        }
    }

    /// Gives the cards what they have room for: small reads first, large ones piece by piece, each over the lane that
    /// has the least to read.
    pub(super) fn pump(&mut self, connection: ConnectionId) {
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        let (mut failed, mut to_streams) = (None, Vec::new());
        while peer.link.is_up() {
            let small = !peer.small.is_empty();
            let Some(&key) = peer.small.front().or(peer.bulk.front()) else { break };
            let waiting = if small { &mut peer.small } else { &mut peer.bulk };
            // Operations that ended while they waited left their number there.
            let Some(operation) = self.ops.get_mut(key) else {
                waiting.pop_front();
                continue;
            };
            let (Task::Read { region, offset, lease: Some(lease) }, Via::Card { given_bytes, pieces }) =
                (&operation.task, &mut operation.via)
            else {
                waiting.pop_front();
                continue;
            };
            if operation.stop.is_some() {
                waiting.pop_front();
                continue;
            }
            let remote = peer.keys.get(&(region.id, region.generation));
            let segment = self.by_segment.get(&lease.extent().segment);
            let memories = segment.map(|id| &self.regions[id].memories);
            // Several lanes have smaller pieces, so that each has as many under way as one alone.
            let lanes = peer.lanes.iter().flatten().count().max(1);
            let reading_bytes: usize = peer.lanes.iter().flatten().map(|lane| lane.reading_bytes).sum();
            let mut least: Option<(usize, &mut Lane)> = None;
            let mut reachable = false;
            for (number, lane) in peer.lanes.iter_mut().enumerate() {
                let Some(lane) = lane else { continue };
                let known = remote.is_some_and(|remote| remote.keys[number].is_some());
                if !known || memories.is_none_or(|memories| memories[lane.card].is_none()) {
                    continue;
                }
                reachable = true;
                let room = lane.queue.has_room() && has_room(&self.cards, lane);
                if room && least.as_ref().is_none_or(|(_, least)| lane.reading_bytes < least.reading_bytes) {
                    least = Some((number, lane));
                }
            }
            if !reachable {
                // Revoked, or deregistered here, while it waited. The streams get what is left of it, once the cards
                // are done with their part.
                if *pieces > 0 {
                    break;
                }
                waiting.pop_front();
                to_streams.push(key);
                continue;
            }
            let Some((number, lane)) = least else { break };
            let card = self.cards[lane.card].as_mut().expect("its lanes end before it does");
            let piece = (operation.bytes - *given_bytes)
                .min(PIECE_BYTES / lanes)
                .min(card.limits.message_bytes_max as usize);
            if reading_bytes > 0 && reading_bytes + piece > READING_BYTES_MAX {
                break;
            }
            let (Some(remote), Some(memories)) = (remote, memories) else { unreachable!("it is reachable") };
            let (Some(key_there), Some(memory)) = (remote.keys[number], &memories[lane.card]) else {
                unreachable!("as above")
            };
            let from = (remote.address + offset + *given_bytes as u64, key_there);
            match lane.queue.read(key, lease, (*given_bytes, piece), memory, from) {
                Ok(()) => {
                    *given_bytes += piece;
                    *pieces += 1;
                    card.outstanding += 1;
                    lane.reading_bytes += piece;
                    if *given_bytes == operation.bytes {
                        waiting.pop_front();
                    }
                }
                Err(error) => {
                    failed = Some(format!("the card took no more work: {error}"));
                    break;
                }
            }
        }
        to_streams.into_iter().for_each(|key| self.by_streams(key));
        if let Some(why) = failed {
            self.link_down(connection, &why, Some(DownReason::Broken));
        }
    }

    /// Hands an operation, or what is left of it, to the streams.
    pub(super) fn by_streams(&mut self, key: u64) {
        let operation = self.ops.get_mut(key).expect("the caller holds it");
        operation.via = Via::Queued;
        // In order behind those that already wait.
        if !self.overflow.is_empty() {
            return self.overflow.push_back(key);
        }
        if !self.try_streams(key) {
            self.overflow.push_back(key);
        }
    }

    /// `false` when the streams are full.
    fn try_streams(&mut self, key: u64) -> bool {
        let operation = self.ops.get_mut(key).expect("the caller holds it");
        let connection = operation.connection;
        // What lanes brought out of turn is not read again: the streams fill one gap after the other.
        let (from, gap) = operation.gap();
        let op = match &mut operation.task {
            Task::Read { region, offset, lease } => {
                let lease = lease.take().expect("it is here while nobody carries it");
                let into = match Rc::try_unwrap(lease) {
                    Ok(lease) => lease.cut(from, gap),
                    Err(kept) => {
                        // The card could not be made to let go of it.
                        *lease_of(&mut operation.task) = Some(kept);
                        self.finish(key, Err(OpError::Disconnected));
                        return true;
                    }
                };
                let offset = *offset + from as u64;
                Op::Read { connection, region: *region, offset, into, deadline: operation.deadline, tag: key }
            }
            Task::Send { message, wrapped } => {
                // A numbered message must arrive, or those behind it never would.
                let deadline = if *wrapped { Tick(u64::MAX) } else { operation.deadline };
                Op::Send { connection, message: std::mem::take(message), deadline, tag: key }
            }
        };
        match self.engine.submit(op) {
            Ok(inner) => {
                operation.via = Via::Streams { inner, from };
                true
            }
            Err(refused) => {
                match (*refused.op, &mut operation.task) {
                    (Op::Read { into, .. }, Task::Read { lease, .. }) => {
                        *lease = Some(Rc::new(into.whole(from, operation.bytes)));
                    }
                    (Op::Send { message: back, .. }, Task::Send { message, .. }) => *message = back,
                    _ => unreachable!("what was given comes back"),
                }
                if matches!(refused.why, RefusedWhy::Full { .. }) {
                    return false;
                }
                self.finish(key, Err(OpError::Disconnected));
                true
            }
        }
    }

    /// Hands the streams what they had no room for.
    pub(super) fn pump_overflow(&mut self) {
        while let Some(&key) = self.overflow.front() {
            let waits = self.ops.get(key).is_some_and(|operation| operation.via == Via::Queued);
            if waits && !self.try_streams(key) {
                return;
            }
            self.overflow.pop_front();
        }
    }

    /// Takes all completions of the cards. Whether there were any.
    pub(super) fn harvest(&mut self) -> bool {
        let mut any = false;
        for place in 0..LANES_MAX {
            while let Some(card) = &self.cards[place] {
                let mut done = std::mem::take(&mut self.done);
                if !card.poll(&mut done) {
                    self.done = done;
                    break;
                }
                any = true;
                for done in done.drain(..) {
                    self.completed(place, done);
                }
                self.done = done;
            }
        }
        any
    }

    fn completed(&mut self, place: usize, done: Done) {
        let Some(card) = &mut self.cards[place] else { return };
        if done.received {
            let message = done.result.is_ok().then(|| card.message(done.mark, done.bytes));
            if let Err(error) = card.wait_for_message(done.mark as usize) {
                tracing::warn!(%error, "a receive buffer is lost");
            }
            // A queue pair that is gone may still have reported.
            if let (Some(message), Some(&connection)) = (message, self.numbers.get(&(place, done.number))) {
                self.aside(connection, &message, true);
            }
            return;
        }
        let Some(&(connection, number)) = self.marks.get(&done.mark) else { return };
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        let Some(lane) = &mut peer.lanes[number] else { return };
        match done.result {
            Ok(()) => {
                let work = lane.queue.reported().expect("a queue pair reports what it was given, once");
                card.outstanding -= 1;
                self.worked(connection, number, work);
            }
            // The queue pair is in error, and all that it had will be reported so. Destroying it takes the work
            // back at once.
            Err(status) if peer.link.is_up() => {
                self.link_down(connection, &status, Some(DownReason::Broken));
            }
            Err(status) => self.lane_failed(connection, number, &status),
        }
    }

    /// Work of a card is done.
    fn worked(&mut self, connection: ConnectionId, number: usize, work: Work) {
        let peer = self.peers.get_mut(&connection).expect("its queue pair reported");
        let lane = peer.lanes[number].as_mut().expect("it reported");
        let card = self.cards[lane.card].as_mut().expect("its lanes end before it does");
        match work {
            Work::Read { op, at, bytes, lease } => {
                drop(lease);
                self.stats.rdma_bytes += bytes as u64;
                lane.reading_bytes -= bytes;
                peer.card_bytes += bytes as u64;
                let severed = peer.sever_after.as_mut().is_some_and(|left| {
                    *left = left.saturating_sub(bytes as u64);
                    *left == 0
                });
                let operation =
                    self.ops.get_mut(op).expect("an operation lives while the card has work of it");
                let Via::Card { pieces, .. } = &mut operation.via else { unreachable!("the card had it") };
                *pieces -= 1;
                let idle = *pieces == 0;
                operation.came(at, bytes);
                if operation.done_bytes == operation.bytes {
                    self.finish(op, Ok(()));
                } else if idle && let Some(why) = operation.stop.take() {
                    self.finish(op, Err(why));
                }
                if severed {
                    self.let_go(connection, &OpError::Disconnected);
                    self.engine.sever(connection, 0);
                } else {
                    self.pump(connection);
                }
            }
            Work::Send { op, slot, .. } => {
                card.messages -= 1;
                slot.into_iter().for_each(|slot| card.give_back(slot));
                if let Some(operation) = self.ops.get_mut(op) {
                    operation.done_bytes = operation.bytes;
                    self.finish(op, Ok(()));
                }
                self.pump(connection);
            }
            Work::Probe { slot } => {
                let probed = card.probed(&slot);
                card.give_back(slot);
                self.probed(connection, number, &probed);
            }
            Work::Out { .. } | Work::Window => unreachable!("a transport posts none"),
        }
    }

    /// The streams have carried something to its end.
    pub(super) fn carried(&mut self, completion: Completion) {
        if completion.tag == ASIDE {
            return;
        }
        let key = completion.tag;
        let Some(operation) = self.ops.get_mut(key) else { return };
        let Via::Streams { from, .. } = operation.via else { return };
        if let (Task::Read { lease, .. }, Some(back)) = (&mut operation.task, completion.lease) {
            *lease = Some(Rc::new(back.whole(from, operation.bytes)));
            if let Some(peer) = self.peers.get_mut(&operation.connection) {
                peer.stream_bytes += completion.done_bytes as u64;
            }
        }
        operation.came(from, completion.done_bytes);
        let (done_bytes, bytes) = (operation.done_bytes, operation.bytes);
        let result = match completion.result {
            Err(OpError::TimedOut { .. }) => Err(OpError::TimedOut { done_bytes, bytes }),
            Ok(()) if done_bytes < bytes => match operation.stop.take() {
                // There is another gap.
                None => return self.by_streams(key),
                Some(why) => Err(why),
            },
            result => result,
        };
        self.finish(key, result);
    }

    /// Completes an operation and forgets it.
    pub(super) fn finish(&mut self, key: u64, result: Result<(), OpError>) {
        let Some(mut operation) = self.ops.remove(key) else { return };
        self.complete(key, &mut operation, result);
    }

    /// Tells the application of an operation's end, once.
    pub(super) fn complete(&mut self, key: u64, operation: &mut Operation, result: Result<(), OpError>) {
        if std::mem::replace(&mut operation.ghost, true) {
            return;
        }
        let mut done_bytes = operation.done_bytes;
        let lease = match &mut operation.task {
            Task::Read { lease, .. } => {
                self.stats.read_bytes += done_bytes as u64;
                lease.take().and_then(|lease| Rc::try_unwrap(lease).ok())
            }
            Task::Send { .. } => {
                if result.is_ok() {
                    done_bytes = operation.bytes;
                }
                None
            }
        };
        self.live -= 1;
        self.stats.completed += 1;
        self.found.push_back(Event::Completed(Completion {
            op: OpId(key),
            tag: operation.tag,
            connection: operation.connection,
            result,
            done_bytes,
            lease,
        }));
    }

    /// Keys of the operations of a connection.
    pub(super) fn ops_of(&self, connection: ConnectionId) -> Vec<u64> {
        let of = self.ops.iter().filter(|(_, operation)| operation.connection == connection);
        of.map(|(key, _)| key).collect()
    }
}

fn has_room(cards: &PerCard<Card>, lane: &Lane) -> bool {
    cards[lane.card].as_ref().is_some_and(Card::has_room)
}

fn lease_of(task: &mut Task) -> &mut Option<Rc<Lease>> {
    match task {
        Task::Read { lease, .. } => lease,
        Task::Send { .. } => unreachable!("only reads have one"),
    }
}
