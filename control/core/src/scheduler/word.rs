//! What the schedulers of a run's nodes tell each other.
//!
//! # How a run lies on several nodes
//!
//! Each step has a *lead*, which decides for it (fate, width, retries, rollback, settling), and each of its
//! invocations a *host*, which executes it; for all but spread foreach steps they are one node. Every node
//! that has to do with a step (its lead, its hosts, the leads and hosts of those that depend on it, and the home if
//! the run hands its output on) is of its *audience*, and keeps a mirror of the step: lead and hosts tell the
//! audience what becomes of it, and the same code that runs a step on one node spreads what the mirror learns
//! to the readers here. So words go along the edges of the graph, from producers' nodes to consumers' nodes,
//! and none is relayed.
//!
//! **Order.** The words of one node to another arrive in the order they were said. Nothing else is ordered.
//!
//! **Taking back.** Only the lead takes back. [`Word::Withdrawn`] makes all attempts up to a number void, for
//! good: what a host says of them later is not heard. As attempts are numbered by the lead's consent, no word
//! about a void attempt can be mistaken for one about its successor. A node follows a rollback of what it reads
//! only by the word of the lead of the reading step, who hears of it as well. That lead may hear first: so an
//! [`Word::Invoke`] says how much it has followed of what the invocation reads, and the host starts the attempt when it
//! has followed as much. Else it would start on what is void, and nobody would take that back.
//!
//! **Settled.** The lead says so when nothing can take the step back any more; on a stream of ordered words that
//! comes after all that was taken back, so a mirror may believe it.
//!
//! **The end.** A part whose steps, led and hosted, are all over says [`Word::PartDone`]; one that fails says
//! [`Word::PartFailed`], and the home tells all to [`Word::End`], hears [`Word::Gone`] from each, and
//! says [`Word::Close`]. After a good end it says `Close` alone. The home hears nothing else of steps that it neither
//! leads, hosts, reads nor hands on: what it is told does not grow with the graph.

use super::{Outcome, Put, RunError};
use alloc::vec::Vec;
use dflow_proto::InvocationId;
use serde::{Deserialize, Serialize};

/// One thing that a node's scheduler tells another's about a run that both know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Word {
    /// Lead to audience: the step is certain to run, of which a condition had to be asked. For a switch, which case it
    /// chose; else `u32::MAX`.
    Runs {
        /// The step.
        step: u32,
        /// The case.
        chosen: u32,
    },
    /// Lead to audience: it is skipped.
    Skipped {
        /// The step.
        step: u32,
    },
    /// Lead to audience: a foreach step has so many items by now, or for good.
    Width {
        /// The step.
        step: u32,
        /// Items known.
        items: u32,
        /// No more will come.
        pinned: bool,
    },
    /// Lead to audience: the list that a foreach step was made of is void; its items vanish.
    Shrunk {
        /// The step.
        step: u32,
    },
    /// Lead to audience: all attempts up to this one are void, with all that they put.
    Withdrawn {
        /// The invocation.
        invocation: InvocationId,
        /// The last void attempt.
        attempt: u32,
    },
    /// Lead to audience: a foreach item is left out of the step's lists, since it or its own item failed for
    /// good (`true`); or is in them again.
    Out {
        /// The invocation.
        invocation: InvocationId,
        /// Left out.
        out: bool,
        /// It failed itself.
        failed: bool,
    },
    /// Lead to audience: the step is over and nothing can take it back.
    Settled {
        /// The step.
        step: u32,
    },
    /// Lead to host: the item may start, as attempt `attempt`.
    Invoke {
        /// The invocation.
        invocation: InvocationId,
        /// The number of its next attempt.
        attempt: u32,
        /// For steps that it reads and others lead: (step, how many words of theirs that take back the lead has heard).
        after: Vec<(u32, u32)>,
    },
    /// Lead to host: it may not, after all; if it has started it is withdrawn as well.
    Revoke {
        /// The invocation.
        invocation: InvocationId,
    },
    /// Host to audience: an attempt has started.
    Started {
        /// The invocation.
        invocation: InvocationId,
        /// Its try.
        attempt: u32,
    },
    /// Host to audience: an object exists.
    FirstByte(Put),
    /// Host to audience: an object is complete at the host.
    Sealed(Put),
    /// Host to audience: the length of a `many` port.
    Pinned {
        /// The producer.
        invocation: InvocationId,
        /// Its try.
        attempt: u32,
        /// The port.
        port: u16,
        /// Its items.
        count: u32,
    },
    /// Host to audience: an attempt is over. Failures concern the lead alone.
    Ended {
        /// The invocation.
        invocation: InvocationId,
        /// Its try.
        attempt: u32,
        /// How.
        outcome: Outcome,
    },
    /// To the home: all steps that the sender leads are over.
    PartDone,
    /// To the home: a step that the sender leads has failed the run.
    PartFailed {
        /// Why.
        error: RunError,
        /// What has started may end.
        finish: bool,
    },
    /// From the home: the run has failed or was cancelled; stop, or let end what has started.
    End {
        /// What has started may end.
        finish: bool,
    },
    /// To the home: after [`Word::End`], nothing of the run executes here any more.
    Gone,
    /// From the home: the run is over; forget it.
    Close,
}

impl Word {
    /// The step of which a word of its lead takes something back.
    pub(super) const fn takes_back(&self) -> Option<u32> {
        match self {
            Word::Shrunk { step } => Some(*step),
            Word::Withdrawn { invocation, .. } | Word::Out { invocation, .. } => Some(invocation.step),
            _ => None,
        }
    }
}
