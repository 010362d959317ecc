//! Why a card cannot be used.

use rustix::process::{Resource, getrlimit};
use std::io;

/// What a card refused, or why there is none.
#[derive(Debug, thiserror::Error)]
pub enum CardError {
    /// No card that could be used; the text says of each why.
    #[error("{0}")]
    None(String),
    /// Registering memory locks it, and the limit is too low.
    #[error(
        "registering {need_bytes} bytes with the card locks them in memory, of which {have_bytes} are allowed: \
         run `ulimit -l unlimited` before the node, or set `LimitMEMLOCK=infinity` in its unit"
    )]
    MemLock {
        /// The limit in bytes.
        have_bytes: u64,
        /// What was to be locked, in bytes.
        need_bytes: u64,
    },
    /// The driver refused.
    #[error("the card cannot {what}: {source}")]
    Os {
        /// What was tried.
        what: &'static str,
        /// The driver's reason.
        source: io::Error,
    },
}

impl CardError {
    /// Why `need_bytes` could not be registered. The driver says ENOMEM for a limit as for a lack of memory; it is
    /// the limit unless there is none.
    pub(super) fn register(need_bytes: u64, source: io::Error) -> CardError {
        match (source.raw_os_error(), getrlimit(Resource::Memlock).current) {
            (Some(libc::ENOMEM | libc::EPERM), Some(have_bytes)) => {
                CardError::MemLock { have_bytes, need_bytes }
            }
            _ => CardError::Os { what: "register memory", source },
        }
    }
}
