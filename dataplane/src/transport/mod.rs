//! Moving bytes between nodes.
//!
//! A [`Transport`] reads peers' registered memory into ours and carries small messages. It is polled by one
//! thread, the node's engine; whoever polls it also serves its peers, without the application's help.
//!
//! # The laws
//!
//! They hold for every implementation; `hwtests/src/conformance` tests each against all of them.
//!
//! 1. **Exactly once.** Every accepted operation completes exactly once: after success, error, deadline, cancel,
//!    close, or death of the peer.
//! 2. **Ownership.** The [`Lease`] of a read is the transport's from `submit` until it comes back in the
//!    completion, never before: until then the kernel or a card may write to it.
//! 3. **Visibility.** When a read has completed without error, its bytes are in place for every thread that
//!    learns of the completion.
//! 4. **Order.** Messages of one connection arrive in the order they were accepted. Nothing else is ordered:
//!    not reads among themselves, not reads and messages, not connections.
//! 5. **Pressure is a value.** A full transport refuses an operation with [`RefusedWhy::Full`] and gives it back.
//! 6. **Epochs.** A stale epoch is refused: of a region by its owner, of a node by its peers.
//! 7. **Deadlines.** Every operation and every connection attempt has one, and ends by it.
//! 8. **Blame.** A peer's misbehaviour ends that connection and nothing else.
//! 9. **Beginning and end.** [`Event::Connected`] is the first that is heard of a connection that opens,
//!    [`Event::Disconnected`] the last; it follows the completions of all its operations.
//!
//! # Backends
//!
//! [`Engine`](engine::Engine) is the protocol over any [`Streams`](streams::Streams): [`sim`] (virtual time),
//! [`tcp`] (epoll) and [`uring`]. `rdma` sets queue pairs beside an engine's connections and moves what it can over
//! them: one registration a segment, a one-sided read for [`Op::Read`]. [`open`] chooses.

mod choose;
mod config;
pub mod engine;
mod error;
pub mod faulty;
mod memory;
#[cfg(feature = "rdma")]
pub mod rdma;
pub mod sim;
mod slab;
pub mod streams;
mod sys;
pub mod tcp;
pub mod uring;

pub use choose::{Backend, Chosen, open};
pub use config::{Config, Secret};
pub use error::{Broken, OpError, OpenError, RefusedWhy, Retry};
pub use memory::Lease;

use dflow_proto::Tick;
pub use dflow_proto::wire::{Epoch, NodeId, Region};
use dflow_shm::segment::Map;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// What a transport can do. Data, so that callers choose by it and tests can print it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// The backend's name.
    pub name: &'static str,
    /// The longest read, in bytes.
    pub read_bytes_max: usize,
    /// The longest message, in bytes.
    pub message_bytes_max: usize,
    /// The owner's processor takes no part in a read.
    pub one_sided: bool,
    /// Payload is received into its target without a copy by us.
    pub direct: bool,
    /// Time is virtual: a poll moves it.
    pub virtual_time: bool,
    /// What the kernel or hardware offers, and what is used of it, for people.
    pub features: Vec<String>,
}

/// A connection to a peer, or an attempt at one. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// An accepted operation. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// Work for a transport.
#[derive(Debug)]
pub enum Op {
    /// Fill `into` with the bytes of the peer's `region` from `offset` on.
    Read {
        /// An open connection to the region's owner.
        connection: ConnectionId,
        /// From the owner.
        region: Region,
        /// First byte in the region.
        offset: u64,
        /// Where to; its length is the read's.
        into: Lease,
        /// It ends by then.
        deadline: Tick,
        /// Comes back with the completion.
        tag: u64,
    },
    /// Hand `message` to the peer's application. Done when it has left this process.
    Send {
        /// An open connection.
        connection: ConnectionId,
        /// At most `message_bytes_max`.
        message: Vec<u8>,
        /// It ends by then.
        deadline: Tick,
        /// Comes back with the completion.
        tag: u64,
    },
}

/// The end of an operation.
#[derive(Debug)]
pub struct Completion {
    /// Which.
    pub op: OpId,
    /// The caller's mark.
    pub tag: u64,
    /// Its connection.
    pub connection: ConnectionId,
    /// How it ended.
    pub result: Result<(), OpError>,
    /// Bytes from the start that are in place; all of them if `result` is `Ok`. What lies behind them in the
    /// lease may have changed, too.
    pub done_bytes: usize,
    /// A read's memory.
    pub lease: Option<Lease>,
}

/// What a poll finds.
#[derive(Debug)]
pub enum Event {
    /// A connection is open, dialled by either end.
    Connected {
        /// Which.
        connection: ConnectionId,
        /// Who is there.
        node: NodeId,
        /// Its incarnation.
        epoch: Epoch,
        /// Whether this end dialled.
        dialled: bool,
    },
    /// A connection ended, or could not be made. Nothing of it follows.
    Disconnected {
        /// Which.
        connection: ConnectionId,
        /// Why.
        why: Broken,
    },
    /// A message from a peer.
    Message {
        /// From whom.
        connection: ConnectionId,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// An operation ended.
    Completed(Completion),
}

/// An operation that was not accepted.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct Refused {
    /// Why.
    pub why: RefusedWhy,
    /// The operation as it was given.
    pub op: Box<Op>,
}

/// The polling thread cannot go on: its ring, epoll or card is broken. The node's data plane must be restarted.
#[derive(Debug, thiserror::Error)]
#[error("the transport's event queue failed: {0}")]
pub struct PollError(#[from] pub std::io::Error);

/// What carries the data of a connection at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// The backend's name.
    pub transport: &'static str,
    /// Why it, for people.
    pub why: String,
    /// Bytes read over RDMA.
    pub rdma_bytes: u64,
    /// Bytes read over streams.
    pub stream_bytes: u64,
}

/// Wakes a sleeping [`Transport::poll`] from another thread.
pub trait Wake: Send + Sync {
    /// Makes the current or next poll return soon.
    fn wake(&self);
}

/// See the [module](self) for the laws.
pub trait Transport {
    /// What it can do.
    fn capabilities(&self) -> &Capabilities;

    /// The time that deadlines are given in.
    fn now(&self) -> Tick;

    /// Where it accepts connections.
    fn address(&self) -> Option<SocketAddr>;

    /// Lets peers read a segment: once for each segment, not for each transfer.
    fn register(&mut self, map: &Arc<Map>) -> Region;

    /// Ends a registration. Reads already being served finish; later ones are refused. `false` if there was none.
    fn deregister(&mut self, region: Region) -> bool;

    /// Begins to connect. Ends in `Connected`, or `Disconnected` by the deadline. `node` is who must answer.
    fn connect(&mut self, address: SocketAddr, node: Option<NodeId>, deadline: Tick) -> ConnectionId;

    /// Accepts an operation, or gives it back.
    fn submit(&mut self, op: Op) -> Result<OpId, Refused>;

    /// Asks that an operation end soon. It completes as `Cancelled`, or as it would have. Unknown ids are ignored.
    fn cancel(&mut self, op: OpId);

    /// Moves everything along, appends what was found to `events`, and returns when something was found or
    /// `wait` has passed.
    fn poll(&mut self, events: &mut Vec<Event>, wait: Duration) -> Result<(), PollError>;

    /// Ends a connection: what was accepted but not begun is cancelled.
    fn close(&mut self, connection: ConnectionId);

    /// To wake the polling thread by.
    fn waker(&self) -> Arc<dyn Wake>;

    /// Lets polls return also while `fd` is readable, so that the polling thread can wait for what is not the
    /// transport's. For one descriptor, which the caller makes unreadable before the next poll.
    ///
    /// # Errors
    /// The kernel refuses to watch it.
    fn watch(&mut self, fd: OwnedFd) -> Result<(), OpenError>;

    /// The seam of the fault decorator: breaks the connection, without a word to the peer, at the moment when
    /// `after_bytes` more bytes have been received on it.
    fn sever(&mut self, connection: ConnectionId, after_bytes: u64);

    /// What carries a connection's data, and why; `None` if there is no such connection.
    fn path(&self, connection: ConnectionId) -> Option<Path>;

    /// Numbers of this moment.
    fn stats(&self) -> Stats;
}

impl<T: Transport + ?Sized> Transport for Box<T> {
    fn capabilities(&self) -> &Capabilities {
        (**self).capabilities()
    }
    fn now(&self) -> Tick {
        (**self).now()
    }
    fn address(&self) -> Option<SocketAddr> {
        (**self).address()
    }
    fn register(&mut self, map: &Arc<Map>) -> Region {
        (**self).register(map)
    }
    fn deregister(&mut self, region: Region) -> bool {
        (**self).deregister(region)
    }
    fn connect(&mut self, address: SocketAddr, node: Option<NodeId>, deadline: Tick) -> ConnectionId {
        (**self).connect(address, node, deadline)
    }
    fn submit(&mut self, op: Op) -> Result<OpId, Refused> {
        (**self).submit(op)
    }
    fn cancel(&mut self, op: OpId) {
        (**self).cancel(op);
    }
    fn poll(&mut self, events: &mut Vec<Event>, wait: Duration) -> Result<(), PollError> {
        (**self).poll(events, wait)
    }
    fn close(&mut self, connection: ConnectionId) {
        (**self).close(connection);
    }
    fn waker(&self) -> Arc<dyn Wake> {
        (**self).waker()
    }
    fn watch(&mut self, fd: OwnedFd) -> Result<(), OpenError> {
        (**self).watch(fd)
    }
    fn sever(&mut self, connection: ConnectionId, after_bytes: u64) {
        (**self).sever(connection, after_bytes);
    }
    fn path(&self, connection: ConnectionId) -> Option<Path> {
        (**self).path(connection)
    }
    fn stats(&self) -> Stats {
        (**self).stats()
    }
}

/// Counters since the start, and gauges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Operations under way.
    pub ops: usize,
    /// Connections, open and opening.
    pub connections: usize,
    /// Bytes of payload read from peers.
    pub read_bytes: u64,
    /// Of those, bytes that came over RDMA.
    pub rdma_bytes: u64,
    /// Bytes of payload served to peers. What they read one-sided is not seen, and not counted, by the owner.
    pub served_bytes: u64,
    /// Operations accepted.
    pub accepted: u64,
    /// Operations completed.
    pub completed: u64,
    /// Operations refused because the transport was full.
    pub refused_full: u64,
    /// Connections ended because the peer misbehaved.
    pub misbehaved: u64,
    /// Times that RDMA to a peer broke and streams took over.
    pub downgrades: u64,
    /// Times that memory was registered with a card: each segment, the buffers for messages and the page for probes,
    /// once as long as the card is there.
    pub registrations: u64,
}
