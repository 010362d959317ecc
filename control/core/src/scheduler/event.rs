//! What the driver tells the scheduler.

use super::Word;
use crate::graph::{ErrorClass, Graph, StartPolicy};
use crate::placement::{NodeIndex, Part};
use alloc::{string::String, sync::Arc};
use dflow_proto::{InvocationId, ObjectKey, RunId};
use serde::{Deserialize, Serialize};

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A run begins. Its inputs are already in the store.
    Submit {
        /// Its id, never used before.
        run: RunId,
        /// Its checked graph.
        graph: Arc<Graph>,
        /// Overrides every step's start policy.
        start: Option<StartPolicy>,
        /// This node's share, or `None` if the whole run lies here.
        part: Option<Part>,
    },
    /// Another node's scheduler said something; in the order it was said.
    Heard {
        /// The run.
        run: RunId,
        /// Who.
        from: NodeIndex,
        /// What.
        word: Word,
    },
    /// All nodes that an object was published to have fetched it.
    Delivered {
        /// The object.
        key: ObjectKey,
    },
    /// A node that takes part in the run is gone for good.
    Lost {
        /// The run.
        run: RunId,
        /// Which.
        node: NodeIndex,
        /// For people: its name and how it went.
        why: String,
    },
    /// The answer to [`Effect::Evaluate`].
    Evaluated {
        /// The run.
        run: RunId,
        /// The step whose `when` or `switch` it is.
        step: u32,
        /// For `when`: 1 holds, 0 does not. For a switch: the index of the chosen case; an index past the
        /// last says that none holds, and the switch is skipped.
        /// `Err` fails the step with the message.
        result: Result<u32, String>,
    },
    /// The answer to [`Effect::MeasureList`].
    ListLength {
        /// The run.
        run: RunId,
        /// The foreach step.
        step: u32,
        /// Number of elements, or why it is no list.
        result: Result<u32, String>,
    },
    /// The first byte of an object exists.
    FirstByte(Put),
    /// An object is complete (and, if it was not announced before, now exists).
    Sealed(Put),
    /// The length of a `many` port is known.
    Pinned {
        /// The run.
        run: RunId,
        /// The producer.
        invocation: InvocationId,
        /// Its try.
        attempt: u32,
        /// The output port.
        port: u16,
        /// Number of items.
        count: u32,
    },
    /// A running invocation sleeps in a get or a reserve.
    Blocked {
        /// The run.
        run: RunId,
        /// The invocation.
        invocation: InvocationId,
        /// Its try.
        attempt: u32,
    },
    /// It is awake again. Takes a token, on credit if there is none.
    Resumed {
        /// The run.
        run: RunId,
        /// The invocation.
        invocation: InvocationId,
        /// Its try.
        attempt: u32,
    },
    /// An attempt is over and its process idle or gone. All its `Sealed` and `Pinned` came before.
    Ended {
        /// The run.
        run: RunId,
        /// The invocation.
        invocation: InvocationId,
        /// Its try.
        attempt: u32,
        /// How.
        outcome: Outcome,
    },
    /// Someone ends the run.
    Cancel {
        /// The run.
        run: RunId,
        /// Why.
        reason: String,
    },
    /// Only time has passed.
    Wake,
}

/// An object that a running attempt puts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Put {
    /// Which object.
    pub key: ObjectKey,
    /// The attempt that puts it.
    pub attempt: u32,
    /// Its size in bytes (so far).
    pub bytes: u64,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// All outputs sealed and pinned.
    Ok,
    /// It failed.
    Failed(Failure),
    /// It ended since the scheduler had asked for it by [`Effect::Stop`].
    Stopped,
}

/// Why an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// For `retry.on`.
    pub class: ErrorClass,
    /// For people: what, and what to do.
    pub message: String,
}

impl Event {
    /// The run it is about; `None` for [`Event::Wake`].
    pub const fn run(&self) -> Option<RunId> {
        match self {
            Event::Submit { run, .. }
            | Event::Evaluated { run, .. }
            | Event::ListLength { run, .. }
            | Event::Pinned { run, .. }
            | Event::Blocked { run, .. }
            | Event::Resumed { run, .. }
            | Event::Ended { run, .. }
            | Event::Heard { run, .. }
            | Event::Lost { run, .. }
            | Event::Cancel { run, .. } => Some(*run),
            Event::FirstByte(put) | Event::Sealed(put) => Some(put.key.run),
            Event::Delivered { key } => Some(key.run),
            Event::Wake => None,
        }
    }
}
