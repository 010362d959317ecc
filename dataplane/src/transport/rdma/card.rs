//! An open card: its queues, its buffers and what it may read and write.
//!
//! The card reads and writes memory on its own. What keeps that sound is ownership:
//!
//! - a [`Memory`] holds the mapping that it registered, and ends the registration before it lets go;
//! - a [`QueuePair`](super::queue::QueuePair) holds the lease of each read that it was given until the card has reported it, or until the
//!   queue pair has been destroyed, after which the card does nothing for it any more;
//! - buffers for messages belong to the [`Card`], which outlives both (they hold it by an `Rc`).
//!
//! Where the driver refuses to end something, the memory behind it is leaked, not reused.

use super::discover::ChosenPort;
use super::lane::Place;
use super::library::{AsyncEvent, Library};
use super::survey::{LINK_LAYER_ETHERNET, for_each_device, last_error};
use super::{BUFFER_BYTES, CardError};
use dflow_proto::ids::Extent;
use dflow_proto::wire::pairing::PROBE_BYTES;
use dflow_shm::segment::Map;
use rdma_sys::{
    ibv_access_flags, ibv_comp_channel, ibv_context, ibv_cq, ibv_device_attr, ibv_device_cap_flags, ibv_mr,
    ibv_pd, ibv_port_attr, ibv_recv_wr, ibv_sge, ibv_srq, ibv_srq_init_attr, ibv_wc, ibv_wc_flags,
    ibv_wc_opcode, ibv_wc_status,
};
use std::alloc::Layout;
use std::cell::Cell;
use std::ffi::{CStr, c_int, c_uint};
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::{NonNull, null_mut};
use std::rc::Rc;
use std::sync::Arc;

/// Buffers that wait for messages, for all peers together: of a transport.
pub(super) const RECEIVES: Receives = Receives { count: 256, bytes: BUFFER_BYTES };
/// Buffers that messages leave from, for all peers together.
pub(super) const SLOTS: usize = 128;
/// Completions that may wait to be taken.
const COMPLETIONS_MAX: c_int = 16 << 10;
/// Work requests that the queue pairs of a link hold together, at the most. Drivers round up to a power of two, some after they have added the one place
/// that a ring leaves free: Soft-RoCE takes 36 KiB for 63, and 68 KiB for 64.
pub(super) const QUEUE_DEPTH: usize = 63;
/// Reads a queue pair has on the wire at a time, and answers at a time.
const READS_MAX: c_int = 16;
/// Either kind of memory windows of type 2.
const WINDOWS: ibv_device_cap_flags = ibv_device_cap_flags(
    ibv_device_cap_flags::IBV_DEVICE_MEM_WINDOW_TYPE_2A.0
        | ibv_device_cap_flags::IBV_DEVICE_MEM_WINDOW_TYPE_2B.0,
);
/// The page size that buffers are aligned to.
const ALIGN: usize = 4096;
const DEVICE_FATAL: c_uint = 8;
const PORT_ACTIVE: c_uint = 9;
const PORT_ERR: c_uint = 10;

/// The buffers of a card's shared receive queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Receives {
    /// How many.
    pub(super) count: usize,
    /// The length of each.
    pub(super) bytes: usize,
}

/// What belongs to an open card and is freed last.
pub(super) struct Shared {
    pub(super) library: &'static Library,
    pub(super) context: *mut ibv_context,
    pub(super) pd: *mut ibv_pd,
    channel: *mut ibv_comp_channel,
    pub(super) cq: *mut ibv_cq,
    pub(super) srq: *mut ibv_srq,
    /// How often memory was registered, where whoever opened the card counts it.
    registrations: Rc<Cell<u64>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: each was made by `Card::open` and is freed once, in the opposite order. Queue pairs and
        // registrations hold this by an `Rc`, so none of them is left. What is NULL was not made.
        unsafe {
            if !self.srq.is_null() {
                (self.library.destroy_srq)(self.srq);
            }
            if !self.cq.is_null() {
                (self.library.destroy_cq)(self.cq);
            }
            if !self.channel.is_null() {
                (self.library.destroy_comp_channel)(self.channel);
            }
            if !self.pd.is_null() {
                (self.library.dealloc_pd)(self.pd);
            }
            (self.library.close_device)(self.context);
        }
    }
}

/// Zeroed pages that the card reads and writes.
struct Pages {
    base: NonNull<u8>,
    layout: Layout,
}

impl Pages {
    fn new(bytes: usize) -> Pages {
        let layout = Layout::from_size_align(bytes, ALIGN).expect("a few MiB, aligned to a page");
        // SAFETY: the layout is not empty.
        let base = unsafe { std::alloc::alloc_zeroed(layout) };
        Pages { base: NonNull::new(base).unwrap_or_else(|| std::alloc::handle_alloc_error(layout)), layout }
    }

    /// The address of `bytes` bytes at `at`.
    fn at(&self, at: usize, bytes: usize) -> *mut u8 {
        assert!(at + bytes <= self.layout.size(), "{bytes} bytes at {at} of {}", self.layout.size());
        // SAFETY: inside the allocation by the assertion.
        unsafe { self.base.as_ptr().add(at) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout; whoever registered the pages has ended that before.
        unsafe { std::alloc::dealloc(self.base.as_ptr(), self.layout) };
    }
}

/// A registration, and what it covers.
struct Registration {
    shared: Rc<Shared>,
    mr: *mut ibv_mr,
    /// Dropped after the registration has ended; leaked if it cannot be ended.
    covered: Option<Covered>,
}

#[expect(dead_code, reason = "they are owned for as long as the card may use them")]
enum Covered {
    Map(Arc<Map>),
    Pages(Pages),
}

impl Registration {
    fn new(
        shared: &Rc<Shared>,
        base: *mut u8,
        bytes: usize,
        access: ibv_access_flags,
        covered: Covered,
    ) -> Result<Registration, CardError> {
        // SAFETY: `covered` owns the range and is kept until the registration has ended.
        let mr = unsafe { (shared.library.reg_mr)(shared.pd, base.cast(), bytes, access.0 as c_int) };
        if mr.is_null() {
            return Err(CardError::register(bytes as u64, last_error()));
        }
        shared.registrations.set(shared.registrations.get() + 1);
        Ok(Registration { shared: shared.clone(), mr, covered: Some(covered) })
    }

    fn keys(&self) -> (u32, u32) {
        // SAFETY: the registration exists until `drop`.
        unsafe { ((*self.mr).lkey, (*self.mr).rkey) }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: made by `new`, ended once.
        if unsafe { (self.shared.library.dereg_mr)(self.mr) } != 0 {
            tracing::warn!("a registration cannot be ended; its memory is kept");
            std::mem::forget(self.covered.take());
        }
    }
}

/// A registered segment.
pub(super) struct Memory {
    registration: Registration,
    base: u64,
    bytes: u64,
    /// What the card asks for when it is to use the memory itself.
    pub(super) local_key: u32,
    /// What peers need, beside the address, to read it.
    pub(super) remote_key: u32,
}

/// What a registration of a segment is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Peers read it, and reads of this node land in it.
    Read,
    /// Windows for peers' writes are opened in it; without one, no peer reaches it.
    Windows,
}

impl Memory {
    /// Whether the `bytes` bytes at `address` are in it.
    pub(super) fn contains(&self, address: u64, bytes: usize) -> bool {
        let end = address.checked_add(bytes as u64);
        address >= self.base && end.is_some_and(|end| end <= self.base + self.bytes)
    }

    /// Its address in this process, which is what peers name.
    pub(super) const fn address(&self) -> u64 {
        self.base
    }

    /// The registration, for requests that name it. Valid as long as `self`.
    pub(super) const fn raw(&self) -> *mut ibv_mr {
        self.registration.mr
    }
}

/// What the card and its port allow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Reads on the wire at a time, a queue pair.
    pub(super) reads_out_max: u8,
    /// Reads answered at a time, a queue pair.
    pub(super) reads_in_max: u8,
    /// Work requests of all queue pairs together, so that the completion queue cannot overflow.
    pub(super) work_max: usize,
    /// The longest message or read in bytes.
    pub(super) message_bytes_max: u32,
    /// The largest packet: 128 bytes << this.
    pub(super) mtu: u8,
    /// The port's short address.
    pub(super) lid: u16,
    /// RoCE.
    pub(super) ethernet: bool,
    /// It has memory windows of type 2, which work requests open and close.
    pub(super) windows: bool,
}

/// One completion.
pub(super) struct Done {
    /// What the work request was marked with: a queue pair's key, or a buffer's number.
    pub(super) mark: u64,
    /// The queue pair.
    pub(super) number: u32,
    /// How it ended.
    pub(super) result: Result<(), String>,
    /// Bytes received.
    pub(super) bytes: usize,
    /// A message came; else work of ours was done.
    pub(super) received: bool,
    /// What came with it are 32 bits of the sender's choice.
    pub(super) word: Option<u32>,
    /// The peer wrote to memory, and used a buffer up only to tell.
    pub(super) written: bool,
}

/// What happened to the card itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CardEvent {
    /// It is being removed, or broke.
    Gone,
    /// The port is down.
    PortDown,
    /// The port is up.
    PortUp,
    /// Something else, of which the queue pairs tell.
    Other,
}

/// By what a card wakes who sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Waking {
    /// Nothing.
    Never,
    /// A message that has come.
    Arrivals,
    /// Any completion.
    All,
}

/// An open card.
pub(super) struct Card {
    /// Receive buffers first, then slots; ended before the card is closed.
    buffers: Registration,
    /// What peers read to prove that they reach this card and no other.
    probe: Registration,
    pub(super) shared: Rc<Shared>,
    free: Vec<u16>,
    receives: Receives,
    /// As chosen.
    pub(super) choice: ChosenPort,
    /// What it allows.
    pub(super) limits: Limits,
    /// The contents of the page for probes.
    pub(super) probe_bytes: [u8; PROBE_BYTES],
    /// Where it lies.
    pub(super) probe_address: u64,
    /// Work that it has not reported, of all queue pairs.
    pub(super) outstanding: usize,
    /// Messages among it.
    pub(super) messages: usize,
}

impl Card {
    /// Opens what was chosen. `probe_bytes` is what peers must find; `registrations` counts each time that memory is
    /// registered.
    pub(super) fn open(
        choice: &ChosenPort,
        probe_bytes: [u8; PROBE_BYTES],
        registrations: &Rc<Cell<u64>>,
        receives: Receives,
    ) -> Result<Card, CardError> {
        let mut opened = None;
        for_each_device(|library, device, name| {
            if name == choice.device {
                // SAFETY: the device is valid during the call.
                opened = Some((library, unsafe { (library.open_device)(device) }, last_error()));
            }
        })
        .map_err(CardError::None)?;
        let (library, context, error) =
            opened.ok_or_else(|| CardError::None(format!("{} is gone", choice.device)))?;
        let fail = |what, source| CardError::Os { what, source };
        if context.is_null() {
            return Err(fail("open the card", error));
        }
        let null = (null_mut(), null_mut(), null_mut(), null_mut());
        let registrations = registrations.clone();
        let mut shared =
            Shared { library, context, pd: null.0, channel: null.1, cq: null.2, srq: null.3, registrations };
        // SAFETY: the context is open; everything is checked for NULL before it is used, and freed by `Shared`.
        let (limits, depth) = unsafe {
            let mut attr: ibv_device_attr = std::mem::zeroed();
            if (library.query_device)(context, &raw mut attr) != 0 {
                return Err(fail("query the card", last_error()));
            }
            let mut port: ibv_port_attr = std::mem::zeroed();
            if (library.query_port)(context, choice.port, &raw mut port) != 0 {
                return Err(fail("query its port", last_error()));
            }
            shared.pd = (library.alloc_pd)(context);
            if shared.pd.is_null() {
                return Err(fail("make a protection domain", last_error()));
            }
            shared.channel = (library.create_comp_channel)(context);
            if shared.channel.is_null() {
                return Err(fail("make a completion channel", last_error()));
            }
            for fd in [(*shared.channel).fd, (*context).async_fd] {
                let flags = libc::fcntl(fd, libc::F_GETFL);
                if flags < 0 || libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) != 0 {
                    return Err(fail("make its events non-blocking", last_error()));
                }
            }
            let completions = attr.max_cqe.min(COMPLETIONS_MAX);
            shared.cq = (library.create_cq)(context, completions, null_mut(), shared.channel, 0);
            if shared.cq.is_null() {
                return Err(fail("make a completion queue", last_error()));
            }
            let depth = (attr.max_srq_wr.max(1) as usize).min(receives.count);
            let mut srq: ibv_srq_init_attr = std::mem::zeroed();
            (srq.attr.max_wr, srq.attr.max_sge) = (depth as u32, 1);
            shared.srq = (library.create_srq)(shared.pd, &raw mut srq);
            if shared.srq.is_null() {
                return Err(fail("make a shared receive queue", last_error()));
            }
            let limits = Limits {
                reads_out_max: attr.max_qp_init_rd_atom.clamp(1, READS_MAX) as u8,
                reads_in_max: attr.max_qp_rd_atom.clamp(1, READS_MAX) as u8,
                work_max: (completions as usize).saturating_sub(depth).max(QUEUE_DEPTH),
                message_bytes_max: port.max_msg_sz,
                mtu: port.active_mtu as u8,
                lid: port.lid,
                ethernet: port.link_layer == LINK_LAYER_ETHERNET,
                windows: attr.max_mw > 0 && attr.device_cap_flags & WINDOWS.0 != 0,
            };
            (limits, depth)
        };
        let shared = Rc::new(shared);
        let receives = Receives { count: depth, ..receives };
        let pages = Pages::new(depth * receives.bytes + SLOTS * BUFFER_BYTES);
        let (base, bytes) = (pages.at(0, 0), pages.layout.size());
        let covered = Covered::Pages(pages);
        let buffers =
            Registration::new(&shared, base, bytes, ibv_access_flags::IBV_ACCESS_LOCAL_WRITE, covered)?;
        let page = Pages::new(ALIGN);
        let target = page.at(0, PROBE_BYTES);
        // SAFETY: the fresh page has room for the bytes, and nobody else knows it yet.
        unsafe { std::ptr::copy_nonoverlapping(probe_bytes.as_ptr(), target, PROBE_BYTES) };
        let access = ibv_access_flags::IBV_ACCESS_REMOTE_READ;
        let probe = Registration::new(&shared, target, PROBE_BYTES, access, Covered::Pages(page))?;
        let card = Card {
            buffers,
            probe,
            shared,
            free: (0..SLOTS as u16).rev().collect(),
            receives,
            choice: choice.clone(),
            limits,
            probe_bytes,
            probe_address: target.addr() as u64,
            outstanding: 0,
            messages: 0,
        };
        for buffer in 0..depth {
            card.wait_for_message(buffer).map_err(|source| fail("post a receive buffer", source))?;
        }
        Ok(card)
    }

    /// Where its port is.
    pub(super) const fn place(&self) -> Place {
        Place { gid: self.choice.gid.bytes, lid: self.limits.lid }
    }

    /// Whether it may be given more work.
    pub(super) const fn has_room(&self) -> bool {
        self.outstanding < self.limits.work_max
    }

    /// What to be awake for: completions, and what happens to the card.
    pub(super) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        // SAFETY: both are open until `Shared` is dropped, which the borrow of `self` prevents.
        unsafe {
            [
                BorrowedFd::borrow_raw((*self.shared.channel).fd),
                BorrowedFd::borrow_raw((*self.shared.context).async_fd),
            ]
        }
    }

    /// The key by which the card uses its own buffers.
    pub(super) fn buffers_key(&self) -> u32 {
        self.buffers.keys().0
    }

    /// The key by which peers read the probe.
    pub(super) fn probe_key(&self) -> u32 {
        self.probe.keys().1
    }

    /// Asks to be woken by the next completion that `waking` tells of. Asked twice, it is by the next that either tells of.
    pub(super) fn arm(&self, waking: Waking) {
        // SAFETY: the queue exists; `req_notify_cq` is one of the driver's table.
        unsafe {
            if let Some(arm) = (*self.shared.context).ops.req_notify_cq {
                arm(self.shared.cq, c_int::from(waking == Waking::Arrivals));
            }
        }
    }

    /// Takes a wake-up; whether one has come. There is no second before the card is armed again.
    pub(super) fn take_wake(&self) -> bool {
        let (mut cq, mut context) = (null_mut(), null_mut());
        // SAFETY: the channel is non-blocking and carries events of this one queue, each acknowledged once.
        unsafe {
            let came =
                (self.shared.library.get_cq_event)(self.shared.channel, &raw mut cq, &raw mut context) == 0;
            if came {
                (self.shared.library.ack_cq_events)(cq, 1);
            }
            came
        }
    }

    /// The next thing that happened to the card.
    pub(super) fn event(&self) -> Option<CardEvent> {
        let mut event = AsyncEvent::empty();
        // SAFETY: the descriptor is non-blocking, and `AsyncEvent` has the layout that the library fills. What
        // was got is acknowledged at once, since queue pairs cannot be destroyed before.
        unsafe {
            if (self.shared.library.get_async_event)(self.shared.context, &raw mut event) != 0 {
                return None;
            }
            (self.shared.library.ack_async_event)(&raw mut event);
        }
        Some(match event.kind {
            DEVICE_FATAL => CardEvent::Gone,
            // Each who has opened a card hears of all its ports.
            PORT_ERR | PORT_ACTIVE if event.port() != u32::from(self.choice.port) => CardEvent::Other,
            PORT_ERR => CardEvent::PortDown,
            PORT_ACTIVE => CardEvent::PortUp,
            _ => CardEvent::Other,
        })
    }

    /// Takes completions, some at a time; `false` when there was none.
    pub(super) fn poll(&self, done: &mut Vec<Done>) -> bool {
        // SAFETY: zero is valid for this plain struct, of which the driver fills as many as it answers.
        let mut entries: [ibv_wc; 32] = unsafe { std::mem::zeroed() };
        // SAFETY: the queue exists, and there is room for as many entries as are asked for.
        let count = unsafe {
            let poll = (*self.shared.context).ops.poll_cq.expect("every driver has it");
            poll(self.shared.cq, entries.len() as c_int, entries.as_mut_ptr())
        };
        let count = usize::try_from(count).unwrap_or(0);
        done.extend(entries[..count].iter().map(|entry| Done {
            mark: entry.wr_id,
            number: entry.qp_num,
            result: match entry.status {
                ibv_wc_status::IBV_WC_SUCCESS => Ok(()),
                status => Err(self.status(status)),
            },
            bytes: entry.byte_len as usize,
            // The opcode of a failed one is undefined; a mark below 2^32 is a buffer's number.
            received: entry.wr_id < 1 << 32,
            word: (entry.wc_flags & ibv_wc_flags::IBV_WC_WITH_IMM.0 != 0).then(|| {
                // SAFETY: by this flag it is the immediate, in network byte order; any bits are one.
                u32::from_be(unsafe { entry.imm_data_invalidated_rkey_union.imm_data })
            }),
            written: entry.opcode == ibv_wc_opcode::IBV_WC_RECV_RDMA_WITH_IMM,
        }));
        count > 0
    }

    fn status(&self, status: c_uint) -> String {
        // SAFETY: the library answers with a constant string for any number.
        unsafe { CStr::from_ptr((self.shared.library.wc_status_str)(status)) }.to_string_lossy().into_owned()
    }

    fn pages(&self) -> &Pages {
        match &self.buffers.covered {
            Some(Covered::Pages(pages)) => pages,
            _ => unreachable!("buffers cover pages until they are dropped"),
        }
    }

    /// Copies a received message out.
    pub(super) fn message(&self, buffer: u64, bytes: usize) -> Vec<u8> {
        self.with_message(buffer, bytes, <[u8]>::to_vec)
    }

    /// Shows a received message where it lies. Its buffer must not have been posted again.
    pub(super) fn with_message<T>(&self, buffer: u64, bytes: usize, see: impl FnOnce(&[u8]) -> T) -> T {
        let bytes = bytes.min(self.receives.bytes);
        let from = self.pages().at(buffer as usize * self.receives.bytes, bytes);
        // SAFETY: the card has reported this buffer, so it writes there no more until it is posted again, which
        // needs the caller, who waits.
        see(unsafe { std::slice::from_raw_parts(from, bytes) })
    }

    /// Gives a receive buffer to the card.
    pub(super) fn wait_for_message(&self, buffer: usize) -> io::Result<()> {
        let bytes = self.receives.bytes;
        let address = self.pages().at(buffer * bytes, bytes);
        let mut part =
            ibv_sge { addr: address.addr() as u64, length: bytes as u32, lkey: self.buffers.keys().0 };
        let mut request =
            ibv_recv_wr { wr_id: buffer as u64, next: null_mut(), sg_list: &raw mut part, num_sge: 1 };
        let mut bad = null_mut();
        // SAFETY: the buffer is registered and the card's alone until it reports it; request and part live for
        // the call, which copies them.
        let error = unsafe {
            let post = (*self.shared.context).ops.post_srq_recv.expect("a card with a shared queue has it");
            post(self.shared.srq, &raw mut request, &raw mut bad)
        };
        if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
    }

    /// A buffer to send from or to read a probe into, if one is free.
    pub(super) fn take_slot(&mut self) -> Option<Slot> {
        self.free.pop().map(Slot)
    }

    /// Gives a slot back.
    pub(super) fn give_back(&mut self, slot: Slot) {
        self.free.push(slot.0);
    }

    /// The address of a slot's first `bytes` bytes.
    pub(super) fn slot(&self, slot: &Slot, bytes: usize) -> *mut u8 {
        let first = self.receives.count * self.receives.bytes;
        assert!(bytes <= BUFFER_BYTES, "{bytes} bytes in a slot");
        self.pages().at(first + usize::from(slot.0) * BUFFER_BYTES, bytes)
    }

    /// What a probe brought.
    pub(super) fn probed(&self, slot: &Slot) -> [u8; PROBE_BYTES] {
        let mut bytes = [0; PROBE_BYTES];
        // SAFETY: the card has reported the read into this slot, or its queue pair is gone.
        unsafe {
            std::ptr::copy_nonoverlapping(self.slot(slot, PROBE_BYTES), bytes.as_mut_ptr(), PROBE_BYTES)
        };
        bytes
    }

    /// Registers a segment, once for its life.
    pub(super) fn register(&self, map: &Arc<Map>, purpose: Purpose) -> Result<Memory, CardError> {
        let whole = Extent { segment: map.segment(), offset: 0, bytes: map.bytes() };
        let base = map.pointer(whole).expect("a map contains itself").as_ptr();
        let mut access = match purpose {
            Purpose::Read => ibv_access_flags::IBV_ACCESS_REMOTE_READ,
            Purpose::Windows => ibv_access_flags::IBV_ACCESS_MW_BIND,
        };
        if map.part_mut(whole).is_ok() {
            access |= ibv_access_flags::IBV_ACCESS_LOCAL_WRITE;
        }
        let covered = Covered::Map(map.clone());
        let registration = Registration::new(&self.shared, base, map.bytes() as usize, access, covered)?;
        let (local_key, remote_key) = registration.keys();
        let base = base.addr() as u64;
        Ok(Memory { registration, base, bytes: map.bytes(), local_key, remote_key })
    }
}

/// A buffer for one message on its way out.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Slot(u16);
