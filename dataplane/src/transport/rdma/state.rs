//! What is known about connections, registrations and operations.

use super::card::Memory;
use super::lane::{Lane, PerCard, Place};
use super::link::Link;
use crate::transport::{ConnectionId, Epoch, Event, Lease, NodeId, OpError, OpId, Region};
use dflow_proto::Tick;
use dflow_proto::wire::pairing::{Key, LANES_MAX, Lanes};
use dflow_shm::segment::Map;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

/// A registered segment.
pub(super) struct Local {
    pub(super) region: Region,
    pub(super) map: Arc<Map>,
    /// With each card that has not refused it.
    pub(super) memories: PerCard<Memory>,
}

/// A connection.
pub(super) struct Peer {
    pub(super) node: NodeId,
    pub(super) epoch: Epoch,
    pub(super) dialled: bool,
    /// Both ends know RDMA, so messages are wrapped.
    pub(super) paired: bool,
    /// The application knows of it. Before that its events wait in `held`, until it is decided what carries the
    /// data, or for as long as `tell_by`.
    pub(super) told: bool,
    pub(super) tell_by: Tick,
    pub(super) held: VecDeque<Event>,
    /// `close` was called, or it is about to break.
    pub(super) closing: bool,
    pub(super) link: Link,
    /// What the link goes over; numbered as the dialling end has offered them.
    pub(super) lanes: Lanes<Lane>,
    /// Why a lane that was offered is not there.
    pub(super) lane_why: Option<String>,
    /// Ports, the peer's and ours, that do not reach each other.
    pub(super) shunned: Vec<(Place, Place)>,
    /// What of the peer can be read, by region and generation.
    pub(super) keys: BTreeMap<(u32, u32), Key>,
    /// Reads that are not all posted: those that overtake, and the others.
    pub(super) small: VecDeque<u64>,
    pub(super) bulk: VecDeque<u64>,
    /// Number of the next message to send, and of the next to be received.
    pub(super) send_number: u64,
    pub(super) receive_number: u64,
    /// Messages that came before their turn, and their bytes.
    pub(super) early: BTreeMap<u64, Vec<u8>>,
    pub(super) early_bytes: usize,
    /// Asides that the streams had no room for.
    pub(super) unsaid: VecDeque<Vec<u8>>,
    pub(super) sever_after: Option<u64>,
    /// Bytes read by RDMA, and over streams.
    pub(super) card_bytes: u64,
    pub(super) stream_bytes: u64,
    /// Why data goes the way it goes.
    pub(super) why: String,
}

impl Peer {
    pub(super) fn new(node: NodeId, epoch: Epoch, dialled: bool, paired: bool, now: Tick) -> Peer {
        Peer {
            node,
            epoch,
            dialled,
            paired,
            told: false,
            tell_by: now,
            held: VecDeque::new(),
            closing: false,
            link: Link::new(dialled && paired, now),
            lanes: [const { None }; LANES_MAX],
            lane_why: None,
            shunned: Vec::new(),
            keys: BTreeMap::new(),
            small: VecDeque::new(),
            bulk: VecDeque::new(),
            send_number: 1,
            receive_number: 1,
            early: BTreeMap::new(),
            early_bytes: 0,
            unsaid: VecDeque::new(),
            sever_after: None,
            card_bytes: 0,
            stream_bytes: 0,
            why: String::new(),
        }
    }

    /// The lanes that there are, with their numbers.
    pub(super) fn lanes(&self) -> impl Iterator<Item = (usize, &Lane)> {
        self.lanes.iter().enumerate().filter_map(|(number, lane)| Some((number, lane.as_ref()?)))
    }

    /// Bytes that it takes, with what it holds.
    pub(super) fn bytes(&self) -> usize {
        let waiting = (self.small.capacity() + self.bulk.capacity()) * size_of::<u64>();
        let keys = self.keys.len() * size_of::<((u32, u32), Key)>();
        let unsaid: usize = self.unsaid.iter().map(Vec::capacity).sum();
        let queues: usize = self.lanes().map(|(_, lane)| lane.queue.bytes()).sum();
        let why = self.why.capacity() + self.lane_why.as_ref().map_or(0, String::capacity);
        let shunned = self.shunned.capacity() * size_of::<(Place, Place)>();
        size_of::<Peer>() + waiting + keys + unsaid + self.early_bytes + queues + why + shunned
    }
}

/// What carries an operation at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Via {
    /// The cards: bytes handed to them so far, and work not reported yet.
    Card { given_bytes: usize, pieces: usize },
    /// The streams, as operation `inner`, which carries what is missing from byte `from` on.
    Streams { inner: OpId, from: usize },
    /// The streams, once they have room.
    Queued,
}

/// What an operation does, with what it owns.
pub(super) enum Task {
    /// The lease is with the streams while they carry it.
    Read { region: Region, offset: u64, lease: Option<Rc<Lease>> },
    /// As it goes over the wire; with the queue pair or the streams while they carry it.
    Send { message: Vec<u8>, wrapped: bool },
}

/// An accepted operation.
pub(super) struct Operation {
    pub(super) connection: ConnectionId,
    pub(super) tag: u64,
    pub(super) deadline: Tick,
    pub(super) bytes: usize,
    /// Bytes from the start that are in place.
    pub(super) done_bytes: usize,
    /// Pieces behind them, as place and length, that came before their turn, since lanes are not in step.
    pub(super) beyond: Vec<(usize, usize)>,
    pub(super) task: Task,
    pub(super) via: Via,
    /// It is to end for this reason as soon as the card is done with it.
    pub(super) stop: Option<OpError>,
    /// It has completed; the message is still to be delivered, since those behind it are numbered.
    pub(super) ghost: bool,
}

impl Operation {
    /// `bytes` bytes at `at` are in place.
    pub(super) fn came(&mut self, at: usize, bytes: usize) {
        if at != self.done_bytes {
            return self.beyond.push((at, bytes));
        }
        self.done_bytes += bytes;
        while let Some(next) = self.beyond.iter().position(|(at, _)| *at == self.done_bytes) {
            self.done_bytes += self.beyond.swap_remove(next).1;
        }
    }

    /// The first bytes that are not in place, as place and length.
    pub(super) fn gap(&self) -> (usize, usize) {
        let end = self.beyond.iter().map(|(at, _)| *at).min().unwrap_or(self.bytes);
        (self.done_bytes, end - self.done_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_filled_once() {
        let mut operation = Operation {
            connection: ConnectionId(1),
            tag: 0,
            deadline: Tick(0),
            bytes: 100,
            done_bytes: 0,
            beyond: Vec::new(),
            task: Task::Send { message: Vec::new(), wrapped: false },
            via: Via::Queued,
            stop: None,
            ghost: false,
        };
        assert_eq!(operation.gap(), (0, 100));
        operation.came(60, 20);
        operation.came(20, 10);
        assert_eq!((operation.done_bytes, operation.gap()), (0, (0, 20)));
        operation.came(0, 20);
        assert_eq!((operation.done_bytes, operation.gap()), (30, (30, 30)));
        operation.came(80, 20);
        operation.came(30, 30);
        assert_eq!((operation.done_bytes, operation.gap()), (100, (100, 0)));
    }
}
