//! What engines of different nodes say to each other.

use crate::node::view::{Failed, Record};
use dflow_core::graph::StartPolicy;
use dflow_core::placement::{Load, NodeIndex, Placement};
use dflow_core::scheduler::Word;
use dflow_proto::RunId;
use dflow_proto::wire::NodeId;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// One message. They arrive once, in order, as long as both nodes live.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Message {
    /// What a node has, told on each new connection.
    Hello(Facts),
    /// Take part in a run; answered by `Joined` or `Refused`.
    Join(Box<Join>),
    /// The run's workflow can be executed here.
    Joined {
        /// Which run.
        run: RunId,
    },
    /// It has not read the workflow yet, or has forgotten it: the text, please.
    Unread {
        /// Which run.
        run: RunId,
    },
    /// It cannot.
    Refused {
        /// Which run.
        run: RunId,
        /// Why, and what to do.
        why: String,
    },
    /// All nodes have joined: begin when these inputs of the run are here.
    Begin {
        /// Which run.
        run: RunId,
        /// Indexes of inputs that are announced to the receiver.
        inputs: Vec<u16>,
    },
    /// Some node refused: forget what `Join` said.
    Leave {
        /// Which run.
        run: RunId,
    },
    /// From scheduler to scheduler.
    Words {
        /// Of which run.
        run: RunId,
        /// In order.
        words: Vec<Word>,
    },
    /// To the home: the sender cannot do its part for a reason of its own.
    Broken {
        /// Which run.
        run: RunId,
        /// Why.
        why: String,
    },
    /// To the home: what happened at the sender since it told last.
    Happened {
        /// In which run.
        run: RunId,
        /// Times are microseconds since the sender began its part.
        records: Vec<Record>,
        /// As are these.
        failures: Vec<Failed>,
        /// What became of steps that the sender leads.
        fates: Vec<Fate>,
    },
    /// What the sender has to do for all runs.
    Busy(Load),
}

/// What a node has to offer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Facts {
    /// CPU tokens in thousandths of a core.
    pub(crate) cpu_milli: u32,
    /// Invocations that may exist at one time.
    pub(crate) slots: u32,
    /// Memory of its store.
    pub(crate) store_bytes: u64,
    /// What steps may ask for.
    pub(crate) labels: Vec<String>,
}

/// A run, for a node that takes part in it.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Join {
    /// Which.
    pub(crate) run: RunId,
    /// The nodes by their number in the run; the home is the first.
    pub(crate) nodes: Vec<NodeId>,
    /// The receiver's number.
    pub(crate) me: NodeIndex,
    /// Where each step lies.
    pub(crate) placement: Placement,
    /// What that is expected to give the receiver to do.
    pub(crate) load: Load,
    /// The workflow's digest; and what it is of, unless the receiver has read it before.
    pub(crate) digest: [u8; 32],
    pub(crate) reading: Option<Reading>,
    /// Overrides the start policy of every step.
    pub(crate) start: Option<StartPolicy>,
}

/// A workflow to be read.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reading {
    pub(crate) text: String,
    /// Its name for messages.
    pub(crate) file: String,
    /// What relative paths in it are relative to.
    pub(crate) source_dir: PathBuf,
}

/// What became of a step, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fate {
    /// So many items are known.
    Items { step: u32, items: u32 },
    /// It was skipped.
    Skipped { step: u32 },
    /// An invocation is tried again.
    Retried { step: u32 },
    /// One failed for good.
    Failed { step: u32 },
    /// All of it has ended.
    Done { step: u32 },
}

impl Message {
    /// Its bytes. Cannot fail: every type in it serializes unconditionally, and the buffer grows.
    pub(crate) fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).unwrap_or_default()
    }

    /// The message of these bytes.
    ///
    /// # Errors
    /// They are none: the peer speaks another version, or misbehaves.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Message, postcard::Error> {
        postcard::from_bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_and_garbage_does_not() {
        let message = Message::Begin { run: RunId(7), inputs: vec![0, 3] };
        assert_eq!(Message::decode(&message.encode()).expect("what was encoded"), message);
        assert!(Message::decode(&[]).is_err());
        assert!(Message::decode(&[250, 1, 2]).is_err());
        let long = Message::Refused { run: RunId(1), why: "x".repeat(100) };
        assert!(Message::decode(&long.encode()[..50]).is_err());
    }
}
