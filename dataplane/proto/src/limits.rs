//! The bounds on everything, in one place. A limit that users may raise is the default of a
//! configuration key; the others are part of the protocol.

/// Granularity of the arena: extents begin and end on this boundary, in bytes.
pub const PAGE_BYTES: u64 = 4096;
/// Extents of at least this size are aligned to it, so that huge pages can back them. Bytes.
pub const HUGE_BYTES: u64 = 2 << 20;
/// First extent an invocation gets: its page and room for small outputs. Bytes.
pub const ALLOTMENT_BYTES_MIN: u64 = 64 << 10;
/// The allotment grows with what a step wrote before, up to this. Bytes.
pub const ALLOTMENT_BYTES_MAX: u64 = 4 << 20;
/// Values up to this size travel inside a message instead of by extent. Bytes.
pub const INLINE_BYTES_MAX: u64 = 256;
/// Each direction of a link between node and worker. Bytes, a power of two.
pub const RING_BYTES: u32 = 128 << 10;
/// The longest message on a link: an invocation of a thousand named inputs. Bytes.
pub const MESSAGE_BYTES_MAX: usize = 96 << 10;
/// Ports a step may have, each way.
pub const PORTS_MAX: usize = 1024;
/// Output ports that fit an invocation's page.
pub const OUTPUT_PORTS_MAX: usize = 60;
/// Items of one foreach or one `many` port unless the workflow sets `max_items`.
pub const ITEMS_DEFAULT_MAX: u32 = 1_000_000;
/// Steps in one workflow.
pub const STEPS_MAX: usize = 100_000;
/// A workflow file. Bytes.
pub const WORKFLOW_BYTES_MAX: u64 = 64 << 20;
/// A JSON or text value that a condition may look at. Bytes.
pub const CONDITION_BYTES_MAX: u64 = 1 << 20;
/// What is kept of a worker's stderr for an error report. Bytes.
pub const STDERR_TAIL_BYTES: usize = 8 << 10;
/// Waits of one invocation that it tells the node of; of more, the longest.
pub const WAITS_MAX: usize = 64;
/// Attempts of one invocation, whatever the workflow asks.
pub const ATTEMPTS_MAX: u32 = 100;
