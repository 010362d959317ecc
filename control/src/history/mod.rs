//! Past runs, kept in one embedded database file so that they can be looked at later.
//!
//! ```text
//!   Watch, Journal ──collect──▶ RunRecord ──save──▶ history.redb ──load──▶ RunRecord ──▶ trace, report
//! ```
//!
//! A record is written once, when its run is over. The file is opened for that moment only: processes
//! that end runs at the same time wait for each other briefly, and none ever waits while a run is under
//! way. What cannot be written costs a warning, never a run.

mod collect;
mod encode;
mod error;
mod id;
mod record;
mod store;
#[cfg(test)]
mod tests;

pub(crate) use collect::outcome_of;
pub use collect::{Facts, Printed, graph_facts, input_facts};
pub use error::HistoryError;
pub use id::new_run_name;
pub(crate) use id::next as next_run_name;
pub use record::{
    Event, EventKind, FailureFacts, ForeachFacts, GraphFacts, InputFacts, LogFacts, NodeFacts, Outcome,
    Places, PortFacts, RunRecord, SourceFacts, StartFacts, StepFacts, StepRow, Summary,
};
pub use store::{History, RUNS_DEFAULT_MAX, default_dir};

/// Bytes of records that are kept by default; the oldest go first.
pub const BYTES_DEFAULT_MAX: u64 = 256 << 20;
/// Encoded journal of one run; what comes after is counted, not kept. Bytes.
pub const JOURNAL_BYTES_MAX: usize = 16 << 20;
/// Lines that functions printed in one run; the last are kept. Bytes.
pub const LOG_BYTES_MAX: usize = 1 << 20;
/// A drawing of a graph that is larger is not kept. Bytes.
pub const DRAWING_BYTES_MAX: usize = 2 << 20;
/// A message of a failure is cut there. Bytes.
pub const MESSAGE_BYTES_MAX: usize = 16 << 10;
