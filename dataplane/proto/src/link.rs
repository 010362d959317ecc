//! Messages between a node and one of its function processes.
//!
//! Commands go down, reports come back, each through one ring of shared memory, encoded with
//! postcard. What a report claims is never trusted: the node checks every extent against what it
//! granted. Payload bytes never travel here (values up to [`limits::INLINE_BYTES_MAX`] excepted).
//!
//! [`limits::INLINE_BYTES_MAX`]: crate::limits::INLINE_BYTES_MAX

use crate::ids::{Extent, InvocationId, RunId};
use alloc::{string::String, vec::Vec};
use serde::{Deserialize, Serialize};

/// How the bytes of a port are to be read by a language binding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PortType {
    /// Opaque bytes.
    #[default]
    Bytes,
    /// UTF-8 text.
    Text,
    /// A JSON document (also the form of int, float, bool and list values).
    Json,
}

/// The shape of an output port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PortKind {
    /// One object, readable once sealed (its watermark moves all the same).
    #[default]
    Plain,
    /// One object that may be read while it grows.
    Stream,
    /// An ordered list of objects whose length is pinned when its producer ends.
    Many,
}

/// Node to worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Execute the function once. The worker answers with reports and at last [`Report::Ended`].
    Invoke(Invoke),
    /// The answer to [`Report::Reserve`] and [`Report::Extend`]: an extent to write, page-aligned.
    /// And to [`Report::Adopt`]: the whole file, as every worker may name it.
    Granted {
        /// The request's number.
        ticket: u32,
        /// Where to write; at least as long as was asked.
        extent: Extent,
    },
    /// The answer to [`Report::Reserve`], [`Report::Extend`] or [`Report::Adopt`] when the store can
    /// never satisfy it.
    Refused {
        /// The request's number.
        ticket: u32,
        /// What to tell the function's author.
        why: String,
    },
    /// End after the current invocation.
    Retire,
}

/// Everything a worker needs to execute one invocation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Invoke {
    /// The run.
    pub run: RunId,
    /// Which step and item.
    pub invocation: InvocationId,
    /// The try, from 1.
    pub attempt: u32,
    /// Names, for messages and for the function's context.
    pub workflow: String,
    /// The step's name.
    pub step: String,
    /// The worker's writable memory for this invocation. Its first page is the invocation's page
    /// (slots of the output ports, see dflow-shm `page`); the rest takes small outputs.
    pub allotment: Extent,
    /// The node-written table of inputs (see dflow-shm `table`), one entry per input, in order.
    pub table: Extent,
    /// The inputs, in the order of the step.
    pub inputs: Vec<Input>,
    /// The output ports, in the order of the step; the index is the slot in the page.
    pub outputs: Vec<Output>,
    /// Microseconds the reader spins before it sleeps in a get.
    pub spin_us: u32,
    /// Milliseconds until the node ends the invocation, 0 for none. For the function's information.
    pub timeout_ms: u64,
    /// The function may call this many threads its own (`resources.cpu`, rounded up).
    pub threads: u32,
    /// Objects are announced when they are complete, and not with their first bytes.
    pub whole: bool,
}

/// One input of an invocation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Input {
    /// The port's name in the workflow file.
    pub name: String,
    /// How to read the bytes.
    pub ty: PortType,
    /// Where the value is.
    pub value: InputValue,
}

/// Where an input's value is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum InputValue {
    /// Here.
    Inline(Vec<u8>),
    /// The source was skipped and the port is optional.
    Null,
    /// One object: entry `index` of the table.
    One {
        /// Index of the table entry.
        index: u32,
    },
    /// An ordered list of objects: entry `index` of the table heads it (see dflow-shm `table`).
    List {
        /// Index of the table entry.
        index: u32,
    },
}

/// One output port of an invocation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Output {
    /// The port's name in the workflow file.
    pub name: String,
    /// How the bytes are to be written.
    pub ty: PortType,
    /// Plain, stream or many.
    pub kind: PortKind,
    /// An extent of its own that the node granted beforehand because the size was hinted.
    pub granted: Option<Extent>,
    /// Declared limit in bytes for one object, 0 for none; exceeding it fails the invocation with
    /// `error:OutputTooLarge`.
    pub bytes_max: u64,
    /// A `many` port fails with `error:TooManyItems` past this.
    pub items_max: u32,
    /// The object must be a file of its own (a dedicated segment): some side of it is an `exec` step.
    pub file: bool,
}

/// Worker to node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Report {
    /// The process is up and its function loaded.
    Ready {
        /// Its pid, as a check against the zygote's word.
        pid: u32,
    },
    /// The function's first line is about to run.
    Began,
    /// Room for an output beyond the allotment is needed. `file` asks for a segment of its own.
    Reserve {
        /// Echoed in the answer.
        ticket: u32,
        /// Index of the output port it is for.
        port: u16,
        /// Size in bytes.
        bytes: u64,
        /// Whether it must be a dedicated segment.
        file: bool,
    },
    /// The allotment is full: another one like it is needed, for any number of small outputs and item
    /// indexes (its first page stays unused). Answered as [`Report::Reserve`]; closed with the
    /// allotment when the invocation has ended.
    Extend {
        /// Echoed in the answer; counts on the same numbers as [`Report::Reserve`].
        ticket: u32,
        /// Size in bytes.
        bytes: u64,
    },
    /// A file that a program wrote is to become an object without being copied. Its read-only
    /// descriptor was sent over the worker's socket before ([`FromWorker::File`]). Answered by
    /// [`Command::Granted`], after which the worker publishes and reports the object as any other.
    ///
    /// [`FromWorker::File`]: crate::zygote::FromWorker::File
    Adopt {
        /// Echoed in the answer; counts on the same numbers as [`Report::Reserve`].
        ticket: u32,
        /// Length of the file; the node checks it.
        bytes: u64,
    },
    /// The watermark of an object left 0: readers may start.
    FirstByte {
        /// Output port.
        port: u16,
        /// Item of a `many` port, else 0.
        item: u32,
        /// Where it is being written.
        extent: Extent,
    },
    /// An object is complete. Reported after its readers were woken.
    Sealed {
        /// Output port.
        port: u16,
        /// Item of a `many` port, else 0.
        item: u32,
        /// Exactly the object's bytes, inside the allotment or a grant.
        extent: Extent,
    },
    /// A `many` port will have no further items.
    Pinned {
        /// Output port.
        port: u16,
        /// Its number of items.
        count: u32,
    },
    /// About to sleep in a get or a reserve: the CPU token is free.
    Blocked,
    /// Awake again; runs on credit if no token was free.
    Resumed,
    /// Grants not used: the worker will not write there (any more).
    Unused {
        /// The extent as granted.
        extent: Extent,
    },
    /// Where the invocation waited for its inputs, in the order of time. Comes before
    /// [`Report::Ended`], and only if it waited: `Blocked` and `Resumed` reach the node when it next
    /// looks, so they cannot tell when the wait was.
    Waited {
        /// At most [`limits::WAITS_MAX`], the longest.
        ///
        /// [`limits::WAITS_MAX`]: crate::limits::WAITS_MAX
        waits: Vec<Wait>,
    },
    /// The invocation is over.
    Ended {
        /// How.
        outcome: Outcome,
        /// Where its time went.
        times: Times,
        /// The process has children of its own left and must not be reused.
        tainted: bool,
    },
}

/// A wait of an invocation for one of its inputs. Times in microseconds since its first line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    /// Index of the input.
    pub input: u16,
    /// Item of a list; `None` for a single object, or for the length of a list.
    pub item: Option<u32>,
    /// When it began.
    pub from_us: u64,
    /// When it was over.
    pub until_us: u64,
}

/// How an invocation ended, as the worker saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// All outputs are sealed and pinned.
    Ok,
    /// The function reported or raised an error.
    Error {
        /// Class name, for `retry.on: [error:NAME]`.
        name: String,
        /// What happened; ends with the traceback where there is one.
        message: String,
    },
    /// A program ended with a non-zero status.
    Exit {
        /// Its status.
        code: i32,
    },
    /// A program was killed by a signal.
    Signal {
        /// Its number.
        signal: i32,
    },
    /// An input's producer attempt died after part of it had been read.
    Poisoned,
}

/// Where the time of one invocation went, in microseconds, measured by the worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// From taking the command to the function's first line.
    pub setup_us: u64,
    /// Asleep or spinning in gets.
    pub wait_us: u64,
    /// Inside puts: copying, waiting for memory.
    pub put_us: u64,
    /// From the first line to the end, the two above included.
    pub total_us: u64,
    /// User and system CPU time of the process during the invocation.
    pub cpu_us: u64,
}
