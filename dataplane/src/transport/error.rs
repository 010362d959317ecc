//! What can go wrong, by operation.

use dflow_proto::wire::handshake::HandshakeError;
use dflow_proto::wire::{ErrorCode, Malformed};
use std::io;

/// What a caller can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The same again.
    Now,
    /// The same again, later.
    After,
    /// Another transport to the same peer, or another holder.
    OtherTransport,
    /// Nothing: it would fail again.
    Never,
}

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpError {
    /// Its deadline passed first.
    #[error("not done by its deadline: {done_bytes} of {bytes} bytes are there")]
    TimedOut {
        /// Bytes from the start that are in place.
        done_bytes: usize,
        /// Bytes asked for.
        bytes: usize,
    },
    /// `cancel` was called.
    #[error("cancelled")]
    Cancelled,
    /// The connection ended first.
    #[error("the connection ended before the operation did")]
    Disconnected,
    /// The owner of the bytes refused.
    #[error("the peer did not serve the read: {0}")]
    Remote(ErrorCode),
    /// The bytes are not those that were sent.
    #[error("checksum {have:#010x} where {want:#010x} was sent: bytes were damaged on the way")]
    Corrupt {
        /// Of what arrived.
        have: u32,
        /// Of what was sent.
        want: u32,
    },
    /// A fault that a test asked for.
    #[error("injected fault")]
    Injected,
}

impl OpError {
    /// What to do about it.
    pub const fn retry(&self) -> Retry {
        match self {
            OpError::TimedOut { .. } | OpError::Disconnected => Retry::OtherTransport,
            OpError::Corrupt { .. } | OpError::Injected => Retry::Now,
            OpError::Remote(ErrorCode::Closing) => Retry::OtherTransport,
            OpError::Cancelled | OpError::Remote(_) => Retry::Never,
        }
    }
}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// No stream to that address.
    #[error("cannot connect to {address}: {kind}")]
    Dial {
        /// Where to.
        address: String,
        /// The kernel's reason.
        kind: io::ErrorKind,
    },
    /// The handshake did not end well.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// Not connected by the deadline.
    #[error("not connected by the deadline: the peer does not answer")]
    DialTimedOut,
    /// Bytes that no peer of ours sends.
    #[error("the peer misbehaved: {0}")]
    Malformed(#[from] Malformed),
    /// Frames that make no sense at this point.
    #[error("the peer misbehaved: {0}")]
    Misbehaved(&'static str),
    /// The kernel reported an error.
    #[error("the stream broke: {0}")]
    Io(io::ErrorKind),
    /// The peer closed a stream without a word.
    #[error("the peer closed the stream")]
    Hangup,
    /// The peer said goodbye.
    #[error("the peer closed the connection")]
    Goodbye,
    /// Nothing was heard for too long.
    #[error("nothing was heard from the peer for {ms} ms")]
    Silent {
        /// For how long.
        ms: u64,
    },
    /// A later incarnation of the peer has connected.
    #[error("the peer was restarted: a connection of a later epoch replaced this one")]
    Superseded,
    /// Closed at this end.
    #[error("closed here")]
    Closed,
    /// A fault that a test asked for.
    #[error("severed by an injected fault")]
    Severed,
}

impl Broken {
    /// What to do about it.
    pub const fn retry(&self) -> Retry {
        use dflow_proto::wire::handshake::Refusal;
        match self {
            Broken::Handshake(HandshakeError::Refused(Refusal::Busy { .. })) => Retry::After,
            Broken::Handshake(_) | Broken::Closed | Broken::Superseded => Retry::Never,
            Broken::Malformed(_) | Broken::Misbehaved(_) => Retry::Never,
            Broken::Dial { .. } | Broken::DialTimedOut | Broken::Silent { .. } => Retry::After,
            Broken::Io(_) | Broken::Hangup | Broken::Goodbye | Broken::Severed => Retry::Now,
        }
    }
}

/// Why a transport could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The configuration contradicts itself.
    #[error("{what} is {have}, allowed is {allowed}")]
    Config {
        /// The setting.
        what: &'static str,
        /// Its value.
        have: u64,
        /// The allowed range.
        allowed: &'static str,
    },
    /// Off loopback without a secret, anybody could read every object.
    #[error(
        "refusing to listen on {address} without a secret: set `secret`, or listen on a loopback address"
    )]
    NoSecret {
        /// Where it was to listen.
        address: std::net::SocketAddr,
    },
    /// The RDMA card refused, or there is none.
    #[cfg(feature = "rdma")]
    #[error(transparent)]
    Card(#[from] super::rdma::CardError),
    /// The kernel refused.
    #[error("cannot {what}: {source}")]
    Os {
        /// What was tried.
        what: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// Why an operation was not accepted. It comes back whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefusedWhy {
    /// As many are under way as may be: poll, then try again.
    #[error("{ops} operations are under way, which is the limit: take completions first")]
    Full {
        /// How many.
        ops: usize,
    },
    /// No such connection (any more), or not open yet.
    #[error("the connection is not open")]
    NotConnected,
    /// Longer than an operation may be.
    #[error("{bytes} bytes in one operation, {max} allowed: split it")]
    TooLong {
        /// Asked for.
        bytes: usize,
        /// The limit.
        max: usize,
    },
}
