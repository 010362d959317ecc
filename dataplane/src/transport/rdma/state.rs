//! What is known about connections, registrations and operations.

use super::card::Memory;
use super::link::Link;
use super::queue::QueuePair;
use crate::transport::{ConnectionId, Epoch, Event, Lease, NodeId, OpError, OpId, Region};
use dflow_proto::Tick;
use dflow_proto::wire::pairing::{End, Key};
use dflow_shm::segment::Map;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

/// A registered segment.
pub(super) struct Local {
    pub(super) region: Region,
    pub(super) map: Arc<Map>,
    /// With the card; `None` while there is none, or if it refused.
    pub(super) memory: Option<Memory>,
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
    pub(super) queue: Option<QueuePair>,
    pub(super) queue_number: u32,
    pub(super) queue_mark: u64,
    /// The other end of `queue`.
    pub(super) end: Option<End>,
    /// What of the peer can be read, by region and generation.
    pub(super) keys: BTreeMap<(u32, u32), Key>,
    /// Reads that are not all posted: those that overtake, and the others.
    pub(super) small: VecDeque<u64>,
    pub(super) bulk: VecDeque<u64>,
    /// Bytes of reads posted and not reported.
    pub(super) reading_bytes: usize,
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
            queue: None,
            queue_number: 0,
            queue_mark: 0,
            end: None,
            keys: BTreeMap::new(),
            small: VecDeque::new(),
            bulk: VecDeque::new(),
            reading_bytes: 0,
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

    /// Bytes that it takes, with what it holds.
    pub(super) fn bytes(&self) -> usize {
        let waiting = (self.small.capacity() + self.bulk.capacity()) * size_of::<u64>();
        let keys = self.keys.len() * size_of::<((u32, u32), Key)>();
        let unsaid: usize = self.unsaid.iter().map(Vec::capacity).sum();
        let queue = self.queue.as_ref().map_or(0, QueuePair::bytes);
        size_of::<Peer>() + waiting + keys + unsaid + self.early_bytes + queue + self.why.capacity()
    }
}

/// What carries an operation at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Via {
    /// The card: bytes handed to it so far, and work not reported yet.
    Card { given_bytes: usize, pieces: usize },
    /// The streams, as operation `inner`, which began at byte `from`.
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
    pub(super) done_bytes: usize,
    pub(super) task: Task,
    pub(super) via: Via,
    /// It is to end for this reason as soon as the card is done with it.
    pub(super) stop: Option<OpError>,
    /// It has completed; the message is still to be delivered, since those behind it are numbered.
    pub(super) ghost: bool,
}
