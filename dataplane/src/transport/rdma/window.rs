//! Memory windows: keys by which one peer may write to some bytes of a registration, for a while.

use super::CardError;
use super::card::{Card, Memory, Shared};
use super::survey::last_error;
use rdma_sys::{bind_mw_t, ibv_access_flags, ibv_mw, ibv_mw_bind_info, ibv_mw_type};
use std::io;
use std::rc::Rc;

/// A window of type 2: it is opened and closed by work requests of the queue pair whose peer it is for, and no other
/// queue pair's peer reaches anything by its key. Closed at first. What it bounds depends on the card: with Soft-RoCE, whoever has
/// its key can write anywhere in the registration.
///
/// It is to be dropped before the queue pair that opened it is destroyed, and that before the registration: a window that is
/// open holds both, and Soft-RoCE then waits 50 s for it, in the kernel.
pub(super) struct Window {
    shared: Rc<Shared>,
    mw: *mut ibv_mw,
}

impl Window {
    /// A window of `card`, which has some.
    pub(super) fn new(card: &Card) -> Result<Window, CardError> {
        let shared = card.shared.clone();
        let fail = |source| CardError::Os { what: "make a memory window", source };
        // SAFETY: context and protection domain exist as long as `shared`.
        let mw = unsafe {
            let Some(alloc) = (*shared.context).ops.alloc_mw.filter(|_| card.limits.windows) else {
                return Err(fail(io::Error::from_raw_os_error(libc::EOPNOTSUPP)));
            };
            alloc(shared.pd, ibv_mw_type::IBV_MW_TYPE_2)
        };
        if mw.is_null() { Err(fail(last_error())) } else { Ok(Window { shared, mw }) }
    }

    /// The key that it has, or had last.
    pub(super) fn key(&self) -> u32 {
        // SAFETY: the window exists until `drop`.
        unsafe { (*self.mw).rkey }
    }

    /// What a request says that opens it upon some bytes of `memory` for writing, and the key that it has then: another
    /// one each time (of 256), so that whoever kept the last one has nothing.
    pub(super) fn opening(&self, memory: &Memory, address: u64, bytes: usize) -> (bind_mw_t, u32) {
        let key = self.key() & !0xff | self.key().wrapping_add(1) & 0xff;
        let bind_info = ibv_mw_bind_info {
            mr: memory.raw(),
            addr: address,
            length: bytes as u64,
            mw_access_flags: ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0,
        };
        (bind_mw_t { mw: self.mw, rkey: key, bind_info }, key)
    }

    /// The card has taken the request.
    pub(super) fn is_opened(&mut self, key: u32) {
        // SAFETY: the window exists until `drop`, and the library does not read it on its own. Drivers take the key that
        // the window has from here when it is opened again.
        unsafe { (*self.mw).rkey = key };
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: made by `new`, freed once. A driver refuses while it is in use; then the registration cannot be ended
        // either, which keeps its memory.
        let error = unsafe { (*self.shared.context).ops.dealloc_mw.map_or(0, |dealloc| dealloc(self.mw)) };
        if error != 0 {
            tracing::warn!(error, "a memory window cannot be freed");
        }
    }
}
