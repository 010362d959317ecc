//! Queue pairs: reliable connections between two cards.
//!
//! A queue pair holds the lease of each read that it was given until the card has reported it, or until the queue
//! pair has been destroyed, after which the card does nothing for it any more.

use super::CardError;
use super::card::{Card, Memory, QUEUE_DEPTH, Shared, Slot};
use super::survey::last_error;
use super::window::Window;
use crate::transport::Lease;
use dflow_proto::wire::pairing::{End, PROBE_BYTES};
use rdma_sys::{
    ibv_access_flags, ibv_qp, ibv_qp_attr, ibv_qp_attr_mask, ibv_qp_init_attr, ibv_qp_state, ibv_qp_type,
    ibv_send_flags, ibv_send_wr, ibv_sge, ibv_wr_opcode, rdma_t,
};
use std::collections::VecDeque;
use std::ffi::c_int;
use std::io;
use std::ptr::null_mut;
use std::rc::Rc;

/// Messages up to here travel inside their work request, where the card allows it. Bytes.
const INLINE_BYTES: u32 = 220;
/// A lost packet is sent again after 4.096 us * 2^this, at the least: 67 ms.
const TIMEOUT_EXPONENT: u8 = 14;
/// How often in a row without an answer. Not 7: Soft-RoCE takes that for ever.
const RETRIES: u8 = 6;
/// A receiver without a free buffer is asked again for ever: that it lives is the control connection's affair.
const RETRIES_NOT_READY: u8 = 7;
/// It wants to be asked again after 0.64 ms.
const NOT_READY_TIMER: u8 = 12;

/// Work that a queue pair was given, in order.
pub(super) enum Work {
    /// A piece of a read.
    Read {
        /// Whose.
        op: u64,
        /// Where in the read it begins.
        at: usize,
        /// The piece's length.
        bytes: usize,
        /// Kept until the card is done with it.
        lease: Rc<Lease>,
    },
    /// A message, with its bytes for the case that it must be sent again by other means.
    Send {
        /// Of the operation.
        op: u64,
        /// Encoded.
        message: Vec<u8>,
        /// Where it is sent from, unless it went inline.
        slot: Option<Slot>,
    },
    /// A read of the peer's probe.
    Probe {
        /// Where to.
        slot: Slot,
    },
    /// A piece that goes out of registered memory: it is sent, or written to the peer's.
    Out {
        /// Kept until the card is done with it.
        _lease: Rc<Lease>,
    },
    /// A window is opened or closed.
    Window,
}

/// What a queue pair lets its peer do with the memory that the peer has keys of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admits {
    /// Read it.
    Reads,
    /// Read it, and write it.
    ReadsAndWrites,
}

/// Work requests that each queue pair of a link with so many lanes holds: a link takes about the same memory whether
/// it has one lane or several.
const fn depth_of(lanes: usize) -> usize {
    (QUEUE_DEPTH + 1) / lanes.next_power_of_two() - 1
}

/// The `bytes` bytes from byte `at` of `lease`, which lies in `memory`, as a request names them.
fn part(lease: &Lease, (at, bytes): (usize, usize), memory: &Memory) -> ibv_sge {
    assert!(at + bytes <= lease.bytes(), "{bytes} bytes at {at} of a lease of {}", lease.bytes());
    let address = lease.pointer(at).as_ptr().addr() as u64;
    assert!(memory.contains(address, bytes), "the lease does not lie in the registration");
    ibv_sge { addr: address, length: bytes as u32, lkey: memory.local_key }
}

/// A reliable connection's end.
pub(super) struct QueuePair {
    shared: Rc<Shared>,
    qp: *mut ibv_qp,
    pub(super) mark: u64,
    inline_bytes_max: usize,
    depth: usize,
    /// Not reported yet, oldest first. Emptied only after the card is done with it.
    posted: VecDeque<Work>,
    /// What the peer needs to connect.
    pub(super) end: End,
}

impl QueuePair {
    /// A queue pair of a link with so many `lanes`, whose completions carry `mark`, which is 2^32 or more. `psn` is a
    /// random number.
    pub(super) fn new(
        card: &Card,
        lanes: usize,
        mark: u64,
        psn: u32,
        admits: Admits,
    ) -> Result<QueuePair, CardError> {
        assert!(mark >= 1 << 32, "smaller marks are buffers");
        let fail = |what, source| CardError::Os { what, source };
        let shared = card.shared.clone();
        let depth = depth_of(lanes);
        // SAFETY: zero is valid for these plain structs; queue and domain exist as long as `shared`, which the
        // result holds.
        unsafe {
            let mut init: ibv_qp_init_attr = std::mem::zeroed();
            (init.send_cq, init.recv_cq, init.srq) = (shared.cq, shared.cq, shared.srq);
            init.qp_type = ibv_qp_type::IBV_QPT_RC;
            init.sq_sig_all = 1;
            init.cap.max_send_wr = depth as u32;
            init.cap.max_send_sge = 1;
            init.cap.max_inline_data = INLINE_BYTES;
            let mut qp = (shared.library.create_qp)(shared.pd, &raw mut init);
            if qp.is_null() {
                // Some cards have no room for inline data.
                init.cap.max_inline_data = 0;
                qp = (shared.library.create_qp)(shared.pd, &raw mut init);
            }
            if qp.is_null() {
                return Err(fail("make a queue pair", last_error()));
            }
            let (limits, choice) = (card.limits, &card.choice);
            let end = End {
                queue: (*qp).qp_num,
                psn: psn & 0xff_ffff,
                gid: choice.gid.bytes,
                lid: limits.lid,
                mtu: limits.mtu,
                reads_max: limits.reads_in_max,
                probe_address: card.probe_address,
                probe_key: card.probe_key(),
                probe_bytes: card.probe_bytes,
            };
            let inline_bytes_max = init.cap.max_inline_data as usize;
            let posted = VecDeque::new();
            let queue = QueuePair { shared, qp, mark, inline_bytes_max, depth, posted, end };
            let mut attr: ibv_qp_attr = std::mem::zeroed();
            attr.qp_state = ibv_qp_state::IBV_QPS_INIT;
            attr.port_num = choice.port;
            attr.qp_access_flags = ibv_access_flags::IBV_ACCESS_REMOTE_READ.0;
            if admits == Admits::ReadsAndWrites {
                attr.qp_access_flags |= ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0;
            }
            let mask = ibv_qp_attr_mask::IBV_QP_STATE
                | ibv_qp_attr_mask::IBV_QP_PKEY_INDEX
                | ibv_qp_attr_mask::IBV_QP_PORT
                | ibv_qp_attr_mask::IBV_QP_ACCESS_FLAGS;
            queue.modify(&mut attr, mask).map_err(|source| fail("prepare a queue pair", source))?;
            Ok(queue)
        }
    }

    fn modify(&self, attr: &mut ibv_qp_attr, mask: ibv_qp_attr_mask) -> io::Result<()> {
        // SAFETY: the queue pair exists until it is destroyed in `drop`; `attr` lives for the call.
        match unsafe { (self.shared.library.modify_qp)(self.qp, attr, mask.0 as c_int) } {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Connects it to the `peer`'s end.
    pub(super) fn connect(&self, card: &Card, peer: &End) -> Result<(), CardError> {
        let (limits, choice) = (card.limits, &card.choice);
        // SAFETY: zero is valid for this plain struct.
        let mut attr: ibv_qp_attr = unsafe { std::mem::zeroed() };
        attr.qp_state = ibv_qp_state::IBV_QPS_RTR;
        attr.path_mtu = limits.mtu.min(peer.mtu).into();
        attr.dest_qp_num = peer.queue;
        attr.rq_psn = peer.psn;
        attr.max_dest_rd_atomic = limits.reads_in_max;
        attr.min_rnr_timer = NOT_READY_TIMER;
        attr.ah_attr.port_num = choice.port;
        attr.ah_attr.dlid = peer.lid;
        // On one InfiniBand subnet the short address is enough, and routers are not asked.
        if limits.ethernet || peer.gid[..8] != choice.gid.bytes[..8] {
            attr.ah_attr.is_global = 1;
            attr.ah_attr.grh.dgid.raw = peer.gid;
            attr.ah_attr.grh.sgid_index = choice.gid.index;
            attr.ah_attr.grh.hop_limit = 64;
        }
        let mask = ibv_qp_attr_mask::IBV_QP_STATE
            | ibv_qp_attr_mask::IBV_QP_AV
            | ibv_qp_attr_mask::IBV_QP_PATH_MTU
            | ibv_qp_attr_mask::IBV_QP_DEST_QPN
            | ibv_qp_attr_mask::IBV_QP_RQ_PSN
            | ibv_qp_attr_mask::IBV_QP_MAX_DEST_RD_ATOMIC
            | ibv_qp_attr_mask::IBV_QP_MIN_RNR_TIMER;
        self.modify(&mut attr, mask)
            .map_err(|source| CardError::Os { what: "find a way to the peer's address", source })?;
        attr.qp_state = ibv_qp_state::IBV_QPS_RTS;
        attr.sq_psn = self.end.psn;
        attr.timeout = TIMEOUT_EXPONENT;
        attr.retry_cnt = RETRIES;
        attr.rnr_retry = RETRIES_NOT_READY;
        attr.max_rd_atomic = limits.reads_out_max.min(peer.reads_max).max(1);
        let mask = ibv_qp_attr_mask::IBV_QP_STATE
            | ibv_qp_attr_mask::IBV_QP_TIMEOUT
            | ibv_qp_attr_mask::IBV_QP_RETRY_CNT
            | ibv_qp_attr_mask::IBV_QP_RNR_RETRY
            | ibv_qp_attr_mask::IBV_QP_SQ_PSN
            | ibv_qp_attr_mask::IBV_QP_MAX_QP_RD_ATOMIC;
        self.modify(&mut attr, mask).map_err(|source| CardError::Os { what: "start a queue pair", source })
    }

    /// Bytes of this process that it takes beside its own: its work, with messages kept to be sent again. What the
    /// driver maps for it is the driver's.
    pub(super) fn bytes(&self) -> usize {
        let messages = self.posted.iter().map(|work| match work {
            Work::Send { message, .. } => message.capacity(),
            Work::Read { .. } | Work::Probe { .. } | Work::Out { .. } | Work::Window => 0,
        });
        self.posted.capacity() * size_of::<Work>() + messages.sum::<usize>()
    }

    /// Work not reported yet.
    pub(super) fn posted(&self) -> usize {
        self.posted.len()
    }

    /// Whether it takes more work.
    pub(super) fn has_room(&self) -> bool {
        self.posted.len() < self.depth
    }

    /// Reads `bytes` bytes at `from` of the peer into byte `at` of `lease`, which lies in `memory`.
    pub(super) fn read(
        &mut self,
        op: u64,
        lease: &Rc<Lease>,
        (at, bytes): (usize, usize),
        memory: &Memory,
        from: (u64, u32),
    ) -> io::Result<()> {
        let local = part(lease, (at, bytes), memory);
        // SAFETY: the bytes are the lease's, and `posted` holds it until the card is done.
        unsafe { self.post(local, ibv_wr_opcode::IBV_WR_RDMA_READ, from, None, false)? };
        self.posted.push_back(Work::Read { op, at, bytes, lease: lease.clone() });
        Ok(())
    }

    /// Writes `bytes` bytes from byte `at` of `lease`, which lies in `memory`, to `to` of the peer. With a `word`, the peer is
    /// told by it when they are there, which uses up one of its receive buffers.
    pub(super) fn write(
        &mut self,
        lease: &Rc<Lease>,
        (at, bytes): (usize, usize),
        memory: &Memory,
        to: (u64, u32),
        word: Option<u32>,
    ) -> io::Result<()> {
        let opcode = match word {
            Some(_) => ibv_wr_opcode::IBV_WR_RDMA_WRITE_WITH_IMM,
            None => ibv_wr_opcode::IBV_WR_RDMA_WRITE,
        };
        self.post_out(lease, (at, bytes), memory, opcode, to, word)
    }

    /// Sends `bytes` bytes from byte `at` of `lease`, which lies in `memory`, as a message with a `word`. The peer's receive
    /// buffers must be as long.
    pub(super) fn send_from(
        &mut self,
        lease: &Rc<Lease>,
        (at, bytes): (usize, usize),
        memory: &Memory,
        word: u32,
    ) -> io::Result<()> {
        let opcode = ibv_wr_opcode::IBV_WR_SEND_WITH_IMM;
        self.post_out(lease, (at, bytes), memory, opcode, (0, 0), Some(word))
    }

    fn post_out(
        &mut self,
        lease: &Rc<Lease>,
        (at, bytes): (usize, usize),
        memory: &Memory,
        opcode: ibv_wr_opcode::Type,
        to: (u64, u32),
        word: Option<u32>,
    ) -> io::Result<()> {
        let local = part(lease, (at, bytes), memory);
        let inline = bytes <= self.inline_bytes_max;
        // SAFETY: the bytes are the lease's, and `posted` holds it until the card is done.
        unsafe { self.post(local, opcode, to, word, inline)? };
        self.posted.push_back(Work::Out { _lease: lease.clone() });
        Ok(())
    }

    /// Opens `window` upon the `bytes` bytes at `address`, which lie in `memory`, to the peer of this queue pair, for
    /// writing; answers the key by which the peer reaches them once this is reported.
    pub(super) fn open_window(
        &mut self,
        window: &mut Window,
        memory: &Memory,
        address: u64,
        bytes: usize,
    ) -> io::Result<u32> {
        assert!(memory.contains(address, bytes), "the window does not lie in the registration");
        let (bind, key) = window.opening(memory, address, bytes);
        let mut request = self.request(ibv_wr_opcode::IBV_WR_BIND_MW);
        request.bind_mw_tso_union.bind_mw = bind;
        // SAFETY: the request names a window and a registration of this protection domain, both of which exist.
        unsafe { self.submit(&mut request)? };
        window.is_opened(key);
        self.posted.push_back(Work::Window);
        Ok(key)
    }

    /// Closes `window`, which was opened by this queue pair. Once this is reported, nothing that the peer writes by its key
    /// arrives.
    pub(super) fn close_window(&mut self, window: &Window) -> io::Result<()> {
        let mut request = self.request(ibv_wr_opcode::IBV_WR_LOCAL_INV);
        request.imm_data_invalidated_rkey_union.invalidated_rkey = window.key();
        // SAFETY: the request has no memory.
        unsafe { self.submit(&mut request)? };
        self.posted.push_back(Work::Window);
        Ok(())
    }

    /// Reads the peer's probe.
    pub(super) fn read_probe(
        &mut self,
        card: &Card,
        slot: Slot,
        peer: &End,
    ) -> Result<(), (Slot, io::Error)> {
        let address = card.slot(&slot, PROBE_BYTES);
        let lkey = card.buffers_key();
        let local = ibv_sge { addr: address.addr() as u64, length: PROBE_BYTES as u32, lkey };
        let from = (peer.probe_address, peer.probe_key);
        // SAFETY: the slot belongs to this request until it is given back, which `posted` decides; the card's
        // buffers live as long as `shared`.
        match unsafe { self.post(local, ibv_wr_opcode::IBV_WR_RDMA_READ, from, None, false) } {
            Ok(()) => {
                self.posted.push_back(Work::Probe { slot });
                Ok(())
            }
            Err(error) => Err((slot, error)),
        }
    }

    /// Sends a message of at most [`BUFFER_BYTES`]. Gives it back if there is no room, or the card refuses.
    pub(super) fn send(&mut self, card: &mut Card, op: u64, message: Vec<u8>) -> Result<(), Vec<u8>> {
        let inline = message.len() <= self.inline_bytes_max;
        let slot = if inline { None } else { card.take_slot() };
        let local = match &slot {
            _ if inline => {
                ibv_sge { addr: message.as_ptr().addr() as u64, length: message.len() as u32, lkey: 0 }
            }
            Some(slot) => {
                let target = card.slot(slot, message.len());
                // SAFETY: the slot is free, so neither the card nor anybody else uses its bytes.
                unsafe { std::ptr::copy_nonoverlapping(message.as_ptr(), target, message.len()) };
                let lkey = card.buffers_key();
                ibv_sge { addr: target.addr() as u64, length: message.len() as u32, lkey }
            }
            None => return Err(message),
        };
        // SAFETY: inline bytes are copied by the call; a slot's belong to this request until it is given back.
        match unsafe { self.post(local, ibv_wr_opcode::IBV_WR_SEND, (0, 0), None, inline) } {
            Ok(()) => {
                self.posted.push_back(Work::Send { op, message, slot });
                Ok(())
            }
            Err(_) => {
                slot.into_iter().for_each(|slot| card.give_back(slot));
                Err(message)
            }
        }
    }

    /// Posts one request with memory of ours.
    ///
    /// # Safety
    /// `local` is memory that stays, and that nobody else uses in a way that the request does not bear, until this
    /// request is reported or the queue pair is destroyed; inline, it must stay for the call only.
    unsafe fn post(
        &mut self,
        mut local: ibv_sge,
        opcode: ibv_wr_opcode::Type,
        (remote_addr, rkey): (u64, u32),
        word: Option<u32>,
        inline: bool,
    ) -> io::Result<()> {
        let mut request = self.request(opcode);
        if inline {
            request.send_flags |= ibv_send_flags::IBV_SEND_INLINE.0;
        }
        request.sg_list = &raw mut local;
        request.num_sge = 1;
        request.wr.rdma = rdma_t { remote_addr, rkey };
        request.imm_data_invalidated_rkey_union.imm_data = word.unwrap_or(0).to_be();
        // SAFETY: `local` lives for the call, which copies it. The memory is the caller's promise.
        unsafe { self.submit(&mut request) }
    }

    /// A request without memory.
    fn request(&self, opcode: ibv_wr_opcode::Type) -> ibv_send_wr {
        // SAFETY: zero is valid for this plain struct.
        let mut request: ibv_send_wr = unsafe { std::mem::zeroed() };
        request.wr_id = self.mark;
        request.opcode = opcode;
        request.send_flags = ibv_send_flags::IBV_SEND_SIGNALED.0;
        if opcode == ibv_wr_opcode::IBV_WR_SEND {
            // It wakes a receiver that sleeps for arrivals only.
            request.send_flags |= ibv_send_flags::IBV_SEND_SOLICITED.0;
        }
        request
    }

    /// Gives a request to the card.
    ///
    /// # Safety
    /// What the request points to exists during the call, and the memory that its entries name as [`QueuePair::post`] says.
    unsafe fn submit(&mut self, request: &mut ibv_send_wr) -> io::Result<()> {
        let mut bad = null_mut();
        // SAFETY: the queue pair exists; the request lives for the call, which copies it. The rest is the caller's
        // promise.
        let error = unsafe {
            let post = (*self.shared.context).ops.post_send.expect("every driver has it");
            post(self.qp, request, &raw mut bad)
        };
        if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
    }

    /// The work that the completion just taken is about: a queue pair reports in order.
    pub(super) fn reported(&mut self) -> Option<Work> {
        self.posted.pop_front()
    }

    /// Ends it. The card touches none of its memory afterwards; what was not reported comes back.
    pub(super) fn destroy(mut self) -> VecDeque<Work> {
        let ended = self.end_now();
        let work = std::mem::take(&mut self.posted);
        if !ended {
            // The card may go on writing: its leases are never given back to their owner.
            std::mem::forget(work);
            return VecDeque::new();
        }
        work
    }

    fn end_now(&mut self) -> bool {
        let qp = std::mem::replace(&mut self.qp, null_mut());
        if qp.is_null() {
            return true;
        }
        // SAFETY: made by `new`, destroyed once.
        let error = unsafe { (self.shared.library.destroy_qp)(qp) };
        if error != 0 {
            tracing::error!(error, "a queue pair cannot be destroyed; memory that it reads into is lost");
        }
        error == 0
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        if !self.end_now() {
            std::mem::forget(std::mem::take(&mut self.posted));
        }
    }
}
