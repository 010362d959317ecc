//! Messages between a node, its zygotes and its workers that travel over sockets rather than rings:
//! the rare ones, and those that carry file descriptors.
//!
//! Each message is one packet of a `SOCK_SEQPACKET` socket, encoded with postcard. How a zygote is
//! started (its arguments) is in dflow-shm `spawn`.

use crate::ids::{SegmentId, WorkerId};
use alloc::string::String;
use serde::{Deserialize, Serialize};

/// Node to zygote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToZygote {
    /// Fork a worker. Four descriptors come along, in this order: the link's segment, the worker's
    /// socket, the pipe that becomes its stdout and stderr, the eventfd that wakes the node.
    /// Answered by [`FromZygote::Forked`] or [`FromZygote::ForkFailed`].
    Fork {
        /// The node's name for it.
        worker: WorkerId,
    },
    /// Kill the worker and all processes of its group. Answered by [`FromZygote::Exited`], once.
    Kill {
        /// Which.
        worker: WorkerId,
    },
}

/// Zygote to node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromZygote {
    /// The function's code is loaded; forks are served from now on.
    Loaded {
        /// Microseconds the loading took.
        us: u64,
    },
    /// The function's code cannot be loaded. The zygote ends.
    LoadFailed {
        /// What is wrong and what to do.
        message: String,
        /// Where, if the runtime tells; may be empty.
        traceback: String,
    },
    /// A worker exists.
    Forked {
        /// Which.
        worker: WorkerId,
        /// Its process, which leads a process group of its own.
        pid: u32,
        /// Microseconds from taking the message to the return of fork.
        us: u64,
    },
    /// No process could be made.
    ForkFailed {
        /// Which.
        worker: WorkerId,
        /// Why.
        message: String,
    },
    /// A worker is gone and reaped.
    Exited {
        /// Which.
        worker: WorkerId,
        /// How.
        exit: Exit,
        /// Peak resident memory of its life in KiB (shared pages it touched included).
        maxrss_kib: u64,
        /// User and system time of its life in microseconds.
        cpu_us: u64,
    },
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// With this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// Node to worker, over the worker's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToWorker {
    /// A segment that later commands and tables may name; its descriptor comes along. Sent before
    /// anything names it. Segment 0 comes first, and writable.
    Segment {
        /// Its id, never used again for another segment.
        id: SegmentId,
        /// Its length in bytes.
        bytes: u64,
        /// Whether the worker may be granted extents in it.
        writable: bool,
    },
    /// Nothing will name this segment again: unmap it when the current invocation is over.
    Gone {
        /// Its id.
        id: SegmentId,
    },
}

/// Worker to node, over the worker's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromWorker {
    /// The file of the [`Report::Adopt`](crate::link::Report::Adopt) of the same ticket; its
    /// descriptor comes along.
    File {
        /// Echoes the report's.
        ticket: u32,
    },
}
