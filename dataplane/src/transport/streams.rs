//! The seam between the protocol and the ways of moving a byte stream.
//!
//! Completion style, since that is what io_uring gives and what others can imitate: memory moves in with a call
//! and comes back with its event. On each stream at most one receive and one send are under way.

use super::memory::{Lease, Source};
use super::{OpenError, PollError, Wake};
use dflow_proto::Tick;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// A byte stream. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// Where received bytes go.
#[derive(Debug)]
pub enum Target {
    /// Into `buffer[at..to]`; done with the first bytes that come.
    Buffer {
        /// The memory.
        buffer: Vec<u8>,
        /// First free byte.
        at: usize,
        /// End of the space to fill.
        to: usize,
    },
    /// Into `lease[at..to]`; done when all have come.
    Memory {
        /// The memory.
        lease: Lease,
        /// First byte to fill.
        at: usize,
        /// End of the space to fill.
        to: usize,
    },
}

impl Target {
    /// Bytes that were asked for.
    pub(super) const fn wanted(&self) -> usize {
        match self {
            Target::Buffer { at, to, .. } | Target::Memory { at, to, .. } => *to - *at,
        }
    }

    /// Whether it is done only when all bytes have come.
    pub(super) const fn is_whole(&self) -> bool {
        matches!(self, Target::Memory { .. })
    }

    /// Where byte `done` of those wanted goes. Valid for the rest of them while `self` is neither moved out of
    /// its owner's hands nor touched.
    pub(super) fn pointer(&mut self, done: usize) -> *mut u8 {
        debug_assert!(done <= self.wanted());
        match self {
            Target::Buffer { buffer, at, .. } => buffer[*at + done..].as_mut_ptr(),
            Target::Memory { lease, at, .. } => lease.pointer(*at + done).as_ptr(),
        }
    }

    /// Copies received bytes to their place.
    pub(super) fn copy_in(&mut self, done: usize, bytes: &[u8]) {
        match self {
            Target::Buffer { buffer, at, .. } => buffer[*at + done..][..bytes.len()].copy_from_slice(bytes),
            Target::Memory { lease, at, .. } => lease.copy_in(*at + done, bytes),
        }
    }
}

/// What to send: `head`, then `body`, as one.
#[derive(Debug, Default)]
pub struct Outgoing {
    /// Frames, or the header of `body`.
    pub head: Vec<u8>,
    /// Bytes of a registered segment, sent from where they lie.
    pub(crate) body: Option<Source>,
}

impl Outgoing {
    /// Bytes alone.
    pub fn plain(head: Vec<u8>) -> Outgoing {
        Outgoing { head, body: None }
    }

    pub(super) fn bytes(&self) -> usize {
        self.head.len() + self.body.as_ref().map_or(0, Source::bytes)
    }
}

/// What happened to a stream.
#[derive(Debug)]
pub enum StreamEvent {
    /// A peer dialled us.
    Accepted(StreamId),
    /// A stream that we dialled is open, or not.
    Dialled(StreamId, io::Result<()>),
    /// A receive is over: `bytes` came, and `result` tells whether more can come. `Ok` with less than was wanted
    /// (for a buffer: none) after [`Streams::interrupt`]; else the end of the stream is `UnexpectedEof`.
    Received {
        /// The stream.
        stream: StreamId,
        /// The memory.
        target: Target,
        /// How many bytes came in this receive.
        bytes: usize,
        /// Whether the stream goes on.
        result: io::Result<()>,
    },
    /// A send is over.
    Sent {
        /// The stream.
        stream: StreamId,
        /// What was given.
        outgoing: Outgoing,
        /// Whether all of it went.
        result: io::Result<()>,
    },
    /// [`Wake::wake`] was called.
    Woken,
    /// What [`Streams::watch`] was given is readable. Comes again for as long as it is.
    Watched,
    /// After [`Streams::close`]: all memory has come back, nothing follows.
    Closed(StreamId),
}

/// Byte streams, and the environment that comes with them: time, randomness, sleep.
pub trait Streams {
    /// The backend's name.
    fn name(&self) -> &'static str;
    /// What the kernel offers and what is used of it.
    fn features(&self) -> Vec<String>;
    /// Whether `wait` moves the time.
    fn virtual_time(&self) -> bool;
    /// The time.
    fn now(&self) -> Tick;
    /// Bytes that nobody can foretell (in a simulation: that a seed determines).
    fn random(&mut self) -> [u8; 32];
    /// Accepts streams from now on; answers where.
    fn listen(&mut self, address: SocketAddr) -> Result<SocketAddr, OpenError>;
    /// Opens a stream; answered by [`StreamEvent::Dialled`].
    fn dial(&mut self, address: SocketAddr) -> StreamId;
    /// Receives; answered by [`StreamEvent::Received`].
    fn receive(&mut self, stream: StreamId, target: Target);
    /// Makes the receive that is under way end soon with what has come.
    fn interrupt(&mut self, stream: StreamId);
    /// Sends; answered by [`StreamEvent::Sent`].
    fn send(&mut self, stream: StreamId, outgoing: Outgoing);
    /// Ends a stream: what is under way is answered soon, then [`StreamEvent::Closed`] follows. `abort` drops
    /// what the peer has not received yet and resets the stream.
    fn close(&mut self, stream: StreamId, abort: bool);
    /// A segment was registered: prepare it for sends.
    fn register(&mut self, map: &Arc<dflow_shm::segment::Map>, region: u32);
    /// A registration ended.
    fn deregister(&mut self, region: u32);
    /// Submits what was asked for and collects events; returns as soon as there are any, else after `timeout`.
    fn wait(&mut self, events: &mut Vec<StreamEvent>, timeout: Duration) -> Result<(), PollError>;
    /// Lets `wait` end, with [`StreamEvent::Watched`], also when `fd` is readable. For one descriptor, so that what
    /// works beside the streams needs no thread and no sleep of its own.
    fn watch(&mut self, fd: OwnedFd) -> Result<(), OpenError>;
    /// Whether large sends and receives are to be cut into pieces, so that what is small and comes meanwhile has its
    /// turn between two copies. Costs large ones some speed.
    fn cut(&mut self, _small: bool) {}
    /// Wakes `wait` from another thread.
    fn waker(&self) -> Arc<dyn Wake>;
}
