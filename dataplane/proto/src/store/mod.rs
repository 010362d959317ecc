//! DStore of one node as a pure state machine: which bytes of which segment belong to whom.
//!
//! The store moves no byte. It answers at once what it can and says the rest in [`Effect`]s, which the driver
//! does in order. Memory is granted to an [`Owner`] (`reserve`), written by it, and becomes an object by
//! `seal`; from then on the object lives until its last reader `release`s it, nobody `lease`s it and nobody
//! `pin`s it. When memory is short, objects that nobody reads go to disk (`Spill`) and come back when leased
//! (`Load`); when nothing can go, a grant is made in a file (`Grow`), so a store with a spill directory that has room never stops a
//! run that could finish.
//!
//! The verbs (all take `fx: &mut Effects` where memory may come free):
//!
//! | verb | meaning |
//! |---|---|
//! | `reserve(owner, bytes, purpose, fx) -> Reserve` | ask for memory |
//! | `cancel(ticket, fx) -> bool` | a waiting reservation is not wanted any more |
//! | `give_back(owner, extent, fx) -> Result<(), GrantError>` | a grant was not used |
//! | `close(owner, extent, used_bytes, fx) -> Result<(), GrantError>` | an allotment gets no more objects |
//! | `adopt(owner, bytes) -> Result<Extent, StoreError>` | a segment made elsewhere becomes a `File` grant |
//! | `hold(extent) -> Option<Hold>`, `unhold(hold, fx)` | keep a grant's memory while others look at it |
//! | `seal(key, owner, extent, fx) -> Result<ObjectId, SealError>` | bytes become an object |
//! | `lease(key, fx) -> Leased`, `unlease(lease, fx)` | read an object |
//! | `locate(key) -> Option<Location>` | look without a lease |
//! | `pin(key) -> bool`, `unpin(key, fx) -> bool` | keep an object although its readers are done |
//! | `release(key, fx) -> bool` | its last reader is done |
//! | `drop_owner(owner, sealed, fx)`, `drop_run(run, fx)` | an attempt, a run is over |
//! | `stalled(fx) -> bool` | nothing can run until memory comes free: refuse somebody |
//! | `spilled(object, result, fx)`, `loaded(object, result, fx)`, `grown(segment, result, fx)` | answers to effects |
//! | `warmed(end)`, `trim(retain_bytes) -> Option<Extent>`, `high_water() -> u64` | pages touched so far |
//! | `stats() -> Stats` | numbers |

mod types;

pub use types::*;

/// The smallest arena. Bytes.
pub const ARENA_BYTES_MIN: u64 = 1 << 20;
