//! What a node's programs see of another's outputs: an object is put here, announced, and a waiting get returns
//! there. Over the same [`Mover`](dflow_dataplane::transfer::Mover) as a node's courier, with its limits.
//!
//! ```text
//!   client                          server
//!   put ──── announcement ────────▶ waiting get returns      ECHO: is put back
//!   waiting get returns ◀────────── put                      DROP: is let go at once
//!                                                            ACK:  one byte is put back; all of it is compared
//!                                                                  when its run is over
//! ```
//! One clock measures: half of an echo's way is one hand-over.

mod client;
mod end;
mod serve;

pub use client::{BULK_BYTES, Figure, PutClient, SPREAD_BYTES};
pub use serve::serve_puts;

use super::raw::Ticket;
use dflow_dataplane::transport::NodeId;
use dflow_proto::RunId;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// The client's number; servers count from 1.
pub const CLIENT: NodeId = NodeId(1000);

/// What becomes of an object at the server, said by its port.
const DROP: u16 = 0;
const ECHO: u16 = 1;
const ACK: u16 = 2;
/// The port of what the server puts.
const BACK: u16 = 3;

/// What the ends say to each other beside objects.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    /// Have memory for objects of so many bytes.
    Room { bytes: u64 },
    /// Other servers, for objects that pass through several.
    Nodes { nodes: Vec<(u64, SocketAddr)> },
    /// No more of this run comes.
    Over { run: RunId },
    /// The last word was done as asked; raw sockets are answered there.
    Done { raw: Ticket },
    /// It was not.
    Cannot { why: String },
}
