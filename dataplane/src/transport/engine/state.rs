//! What the engine knows about connections, streams and operations.

use crate::transport::memory::{Lease, Source};
use crate::transport::streams::StreamId;
use crate::transport::{Broken, Epoch, NodeId, OpError, Region};
use dflow_proto::Tick;
use dflow_proto::wire::handshake::{Acceptor, Agreed, Dialer};
use dflow_proto::wire::{HANDSHAKE_BYTES_MAX, HEADER_BYTES, WIRE_MESSAGE_BYTES_MAX};
use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;

/// Buffer of a control stream: the longest frame and as much again, so that a receive finds room for many.
pub(super) const CONTROL_BUFFER_BYTES: usize = 2 * (HEADER_BYTES + WIRE_MESSAGE_BYTES_MAX);
/// Buffer of a lane: a header, or a handshake frame; unwanted payload is dropped through it.
pub(super) const LANE_BUFFER_BYTES: usize = 64 << 10;
const _: () = assert!(HEADER_BYTES + HANDSHAKE_BYTES_MAX <= LANE_BUFFER_BYTES);

/// A connection: one control stream and its lanes.
pub(super) struct Connection {
    /// Where it was dialled; `None` if the peer dialled.
    pub(super) dialled: Option<SocketAddr>,
    /// Who must answer; 0 for anybody.
    pub(super) wanted: NodeId,
    /// Control first, then the lanes in order as they are dialled or join.
    pub(super) streams: Vec<StreamId>,
    /// Lanes by number, from 1: index 0 is lane 1.
    pub(super) lanes: Vec<Lane>,
    /// Known after the control stream's handshake.
    pub(super) agreed: Option<Agreed>,
    /// All lanes have joined, and the application was told.
    pub(super) open: bool,
    /// It is being taken down for this reason; waits for its streams to close.
    pub(super) ending: Option<Broken>,
    /// Goodbye was queued; it ends by this time in any case.
    pub(super) goodbye: Option<Tick>,
    /// To be open by then.
    pub(super) deadline: Tick,
    /// When anything was heard last.
    pub(super) heard: Tick,
    /// A ping was sent since.
    pub(super) pinged: bool,
    /// On the engine's list of those with something to send.
    pub(super) dirty: bool,
    /// Break after so many more bytes.
    pub(super) sever_after: Option<u64>,
    /// All its operations, for its end.
    pub(super) ops: BTreeSet<u64>,
    /// Reads not yet requested.
    pub(super) requests: VecDeque<u64>,
    /// Messages not yet sent.
    pub(super) messages: VecDeque<u64>,
    /// Reads requested and not answered, cancelled ones included.
    pub(super) asked: u32,
    /// Bytes of messages that the peer still has room for.
    pub(super) credit: u64,
    /// Bytes of messages taken since the last credit was given.
    pub(super) taken: u64,
    /// Messages that came before all lanes had joined: the peer may have seen that first. At most what it has credit for.
    pub(super) early: Vec<Vec<u8>>,
    /// Encoded frames that go before everything else.
    pub(super) urgent: Vec<u8>,
    /// Small reads of the peer to be answered.
    pub(super) answers: VecDeque<Answer>,
    /// Reads of the peer not answered yet, on all streams.
    pub(super) serving: u32,
    /// Messages in the batch that is being sent.
    pub(super) sending: Vec<u64>,
    /// Small answers in the batch that is being sent.
    pub(super) sending_answers: u32,
    /// Bytes of payload read from the peer.
    pub(super) read_bytes: u64,
}

/// A bulk stream of a connection.
#[derive(Default)]
pub(super) struct Lane {
    /// `None` until it joins.
    pub(super) stream: Option<StreamId>,
    /// Bytes requested on it and not here yet.
    pub(super) awaited_bytes: u64,
    /// Data is being sent on it.
    pub(super) sending: bool,
    /// Data to be sent on it.
    pub(super) answers: VecDeque<Answer>,
    /// When something was last received on it, or first awaited.
    pub(super) moved: Tick,
}

/// A read of the peer that passed all checks.
pub(super) struct Answer {
    pub(super) op: u64,
    pub(super) offset: u64,
    pub(super) source: Source,
}

impl Connection {
    pub(super) fn new(dialled: Option<SocketAddr>, lanes: u16, deadline: Tick) -> Connection {
        Connection {
            dialled,
            wanted: NodeId(0),
            streams: Vec::new(),
            lanes: (0..lanes).map(|_| Lane::default()).collect(),
            agreed: None,
            open: false,
            ending: None,
            goodbye: None,
            deadline,
            heard: Tick(0),
            pinged: false,
            dirty: false,
            sever_after: None,
            ops: BTreeSet::new(),
            requests: VecDeque::new(),
            messages: VecDeque::new(),
            asked: 0,
            credit: 0,
            taken: 0,
            early: Vec::new(),
            urgent: Vec::new(),
            answers: VecDeque::new(),
            serving: 0,
            sending: Vec::new(),
            sending_answers: 0,
            read_bytes: 0,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.open && self.ending.is_none() && self.goodbye.is_none()
    }

    pub(super) fn is_alive(&self) -> bool {
        self.ending.is_none()
    }

    /// Who is there, once proven.
    pub(super) fn peer(&self) -> Option<(NodeId, Epoch)> {
        self.agreed.as_ref().map(|agreed| (agreed.node, agreed.epoch))
    }

    /// How many more bytes may be received before the injected fault strikes.
    pub(super) fn allowed(&self) -> usize {
        self.sever_after.map_or(usize::MAX, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX))
    }
}

/// How far a stream is.
pub(super) enum Phase {
    /// We dialled and shake hands.
    Dialling(Dialer),
    /// The peer dialled and shakes hands.
    Accepting(Acceptor),
    /// Frames flow.
    Open,
    /// A refusal is being sent; then it closes.
    Refusing,
}

/// What the bytes that come next on a lane are.
pub(super) enum Expect {
    /// A header (or, in a handshake, a whole frame).
    Frame,
    /// The rest of the payload of a read, into its lease.
    Payload { op: u64, check: Option<u32> },
    /// The rest of the payload of a read that nobody wants any more. `op` was its number.
    Unwanted { bytes: usize, op: u64 },
}

/// A byte stream of a connection, or one that a peer has just dialled.
pub(super) struct Stream {
    /// Its connection, once known.
    pub(super) connection: Option<u64>,
    /// 0 for control.
    pub(super) lane: u16,
    pub(super) phase: Phase,
    /// A handshake must be over by then.
    pub(super) deadline: Tick,
    /// Sent as soon as the stream is open.
    pub(super) greeting: Vec<u8>,
    /// Received, not yet used: `buffer[start..end]`. Empty while the driver has it.
    pub(super) buffer: Vec<u8>,
    pub(super) start: usize,
    pub(super) end: usize,
    /// A receive is under way.
    pub(super) receiving: bool,
    /// A send is under way.
    pub(super) sending: bool,
    pub(super) expect: Expect,
    /// `close` was called.
    pub(super) closing: bool,
}

impl Stream {
    pub(super) fn new(connection: Option<u64>, lane: u16, phase: Phase, deadline: Tick) -> Stream {
        Stream {
            connection,
            lane,
            phase,
            deadline,
            greeting: Vec::new(),
            buffer: Vec::new(),
            start: 0,
            end: 0,
            receiving: false,
            sending: false,
            expect: Expect::Frame,
            closing: false,
        }
    }
}

/// What an operation does, with what it owns.
pub(super) enum Task {
    Read { region: Region, offset: u64, lease: Option<Lease> },
    Send { message: Vec<u8> },
}

/// How far an operation is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// In its connection's queue.
    Queued,
    /// The request is on its way (a message: in the batch being sent), to be answered on this lane.
    Asked { lane: u16 },
    /// The driver has the lease and fills it.
    Filling { lane: u16 },
}

/// An accepted operation.
pub(super) struct Operation {
    pub(super) connection: u64,
    pub(super) tag: u64,
    pub(super) deadline: Tick,
    pub(super) bytes: usize,
    pub(super) done_bytes: usize,
    pub(super) task: Task,
    pub(super) stage: Stage,
    /// It is to end for this reason as soon as its lease is back.
    pub(super) stop: Option<OpError>,
    /// It has completed; its number lives on until the peer's answer has come.
    pub(super) ghost: bool,
}

impl Operation {
    pub(super) fn new(connection: u64, tag: u64, deadline: Tick, bytes: usize, task: Task) -> Operation {
        Operation {
            connection,
            tag,
            deadline,
            bytes,
            done_bytes: 0,
            task,
            stage: Stage::Queued,
            stop: None,
            ghost: false,
        }
    }
}
