//! What the scheduler tells the driver, and what the driver may ask it.

use super::{Failure, Word};
use crate::graph::Source;
use crate::placement::NodeIndex;
use alloc::{string::String, vec::Vec};
use dflow_proto::{InvocationId, ObjectKey, RunId, Tick};
use serde::{Deserialize, Serialize};

/// What the driver must do. An effect leaves no choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Start this attempt on a worker of the step's function. It holds a slot and (if the step
    /// asks for CPU) a token from now on.
    Start {
        /// The run.
        run: RunId,
        /// The invocation.
        invocation: InvocationId,
        /// Its try, from 1.
        attempt: u32,
        /// Some input is not complete yet.
        early: bool,
    },
    /// Have workers of this function warm: its turn comes soon.
    Warm {
        /// The run (whose graph names the function).
        run: RunId,
        /// Index of the function.
        function: u32,
        /// How many.
        workers: u32,
    },
    /// Evaluate the step's `when` or its switch; all that it reads is sealed for good or skipped. Should
    /// the step be skipped before the answer ([`Note::Skipped`]), no answer is needed, and what it reads may
    /// be released.
    Evaluate {
        /// The run.
        run: RunId,
        /// The step.
        step: u32,
    },
    /// Tell the length of the JSON list that the foreach step iterates; it is sealed for good. As with
    /// [`Effect::Evaluate`], a step that is skipped needs no answer.
    MeasureList {
        /// The run.
        run: RunId,
        /// The foreach step.
        step: u32,
    },
    /// A source of a running invocation's input `input` has changed its producer attempt, got
    /// items, been pinned or chosen: refresh its table from [`Scheduler::resolve`].
    Relink {
        /// The run.
        run: RunId,
        /// The running consumer.
        invocation: InvocationId,
        /// Index of the input.
        input: u16,
    },
    /// End this attempt at once; answer with `Ended { outcome: Stopped }`.
    Stop {
        /// The run.
        run: RunId,
        /// The invocation.
        invocation: InvocationId,
        /// Its try.
        attempt: u32,
        /// Why, for people.
        why: StopReason,
    },
    /// No one will read this object again: free it.
    Release(ObjectKey),
    /// Tell another node of the run, after all that it was told before.
    Tell {
        /// The run.
        run: RunId,
        /// Whom.
        to: NodeIndex,
        /// What.
        word: Word,
    },
    /// An object that has readers on other nodes exists here (and may still grow): let them fetch it, keep it
    /// for them, and answer by [`Event::Delivered`] when they have. Void once released, or its attempt failed.
    ///
    /// [`Event::Delivered`]: super::Event::Delivered
    Publish {
        /// The object.
        key: ObjectKey,
        /// The attempt that puts it; 0 for a run input.
        attempt: u32,
        /// Who reads it.
        to: Vec<NodeIndex>,
    },
    /// A step or invocation changed its state; for people and records only.
    Note {
        /// The run.
        run: RunId,
        /// What.
        note: Note,
    },
    /// The run is over; no effect names it again. Its kept outputs are pinned until the driver
    /// releases the run by [`Scheduler::forget`].
    RunEnded {
        /// The run.
        run: RunId,
        /// How.
        result: Result<(), RunError>,
    },
}

/// Why an attempt is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// It read part of an attempt that died.
    Poisoned,
    /// The run was cancelled or failed.
    RunOver,
    /// It exceeded its timeout.
    Timeout,
}

/// A change worth showing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A foreach step learnt about more items.
    Expanded {
        /// The step.
        step: u32,
        /// Items known so far.
        items: u32,
        /// No more will come.
        pinned: bool,
    },
    /// The step was skipped.
    Skipped {
        /// The step.
        step: u32,
    },
    /// An attempt failed and will be tried again.
    Retrying {
        /// The invocation.
        invocation: InvocationId,
        /// The attempt that failed.
        attempt: u32,
        /// Why.
        failure: Failure,
        /// When it may start again.
        at: Tick,
    },
    /// An invocation failed for good.
    Failed {
        /// The invocation.
        invocation: InvocationId,
        /// The last attempt.
        attempt: u32,
        /// Why.
        failure: Failure,
        /// The run goes on (`tolerate` or `on_failure: ignore`).
        tolerated: bool,
    },
    /// All invocations of the step have ended.
    StepDone {
        /// The step.
        step: u32,
    },
}

/// Why a run failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum RunError {
    /// An invocation failed for good.
    #[error("step {step}{} failed at attempt {attempt}: {}", .item.map(|i| alloc::format!("[{i}]")).unwrap_or_default(), .failure.message)]
    Step {
        /// The step's name.
        step: String,
        /// The item, in a foreach.
        item: Option<u32>,
        /// The attempt.
        attempt: u32,
        /// Why.
        failure: Failure,
    },
    /// The run's deadline passed.
    #[error("the run exceeded its deadline of {deadline_ms} ms; unfinished: {}", .unfinished.join(", "))]
    Deadline {
        /// The deadline.
        deadline_ms: u64,
        /// Names of steps that had not ended (the first ten).
        unfinished: Vec<String>,
    },
    /// Someone ended it.
    #[error("cancelled: {0}")]
    Cancelled(String),
    /// A node that executed some of it is gone.
    #[error("a node was lost: {0}")]
    NodeLost(String),
}

/// What a source is at this moment, for the driver to fill tables from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// A literal of the file.
    Const(u32),
    /// One object.
    Object(ObjectRef),
    /// An ordered list of objects; `pinned` when no more will come.
    List {
        /// The items known so far.
        items: Vec<ObjectRef>,
        /// Complete.
        pinned: bool,
    },
    /// The whole list of a `many` port whose producer runs: its page has the index.
    Follow {
        /// The producer.
        producer: InvocationId,
        /// Its running try.
        attempt: u32,
        /// The output port.
        port: u16,
    },
    /// Not known yet: the producer has not started, or a switch is not decided.
    Pending,
    /// Skipped; the port is optional.
    Null,
    /// One element of the JSON list that the foreach iterates.
    Element {
        /// The list (never itself `Element`).
        list: Source,
        /// Index of the element.
        index: u32,
    },
}

/// One object and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectRef {
    /// Its key.
    pub key: ObjectKey,
    /// Its state.
    pub state: ObjectState,
}

/// The state of an object as the scheduler knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectState {
    /// Its producer has not started.
    Pending,
    /// This attempt of its producer runs and has not sealed it yet.
    Running {
        /// The attempt.
        attempt: u32,
    },
    /// In the store.
    Sealed,
}
