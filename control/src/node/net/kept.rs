//! Memory of the store that the network may still read or fill.
//!
//! The store belongs to the engine's thread. What it lends to the network comes back by itself, when
//! the last operation that touches it is over: the last owner's drop puts it on a list and rings the engine.

use dflow_proto::store::{Hold, Lease};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

/// What comes back to the store.
#[derive(Debug)]
pub(crate) enum Returned {
    /// Of a sealed object.
    Lease(Lease),
    /// Of memory that grows or is being filled.
    Hold(Hold),
}

/// Where lent memory comes back. Holds at most what was lent.
#[derive(Debug)]
pub(crate) struct Returns {
    list: Mutex<Vec<Returned>>,
    doorbell: Arc<OwnedFd>,
}

/// Lent memory; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Kept {
    lent: Option<Returned>,
    returns: Arc<Returns>,
}

impl Returns {
    pub(crate) fn new(doorbell: Arc<OwnedFd>) -> Arc<Returns> {
        Arc::new(Returns { list: Mutex::new(Vec::new()), doorbell })
    }

    /// Lends something.
    pub(crate) fn lend(self: &Arc<Self>, lent: Returned) -> Kept {
        Kept { lent: Some(lent), returns: self.clone() }
    }

    /// What has come back since the last call.
    pub(crate) fn take(&self) -> Vec<Returned> {
        // A push is whole or not there, also if its thread panicked.
        std::mem::take(&mut *self.list.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(lent) = self.lent.take() {
            self.returns.list.lock().unwrap_or_else(PoisonError::into_inner).push(lent);
            // A doorbell that overflows is ringing already.
            let _ = rustix::io::write(&*self.returns.doorbell, &1u64.to_ne_bytes());
        }
    }
}
