//! Streams over io_uring: one ring, owned by the thread that polls.
//!
//! A receive goes straight from the socket to the target extent; header and payload of an answer leave in one
//! `sendmsg`. Completions are delivered only when this thread asks for them (deferred task-run), so nothing
//! interrupts it, and it can look for work without a system call while it spins.
//!
//! Zero-copy send is tried once on each stream and kept only where the kernel reports that it did not copy after
//! all, as it does on loopback and virtual links.

mod probe;

pub use probe::{Probe, Setup};

use super::slab::Slab;
use super::streams::{Outgoing, StreamEvent, StreamId, Streams, Target};
use super::sys::{self, EventWake, Surroundings};
use super::{OpenError, PollError, Wake};
use dflow_proto::Tick;
use dflow_shm::segment::Map;
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use probe::FILES;
use rustix::io::Errno;
use rustix::net::SocketFlags;
use std::io;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// From here on a send without a copy can pay. Bytes.
const ZERO_COPY_BYTES_MIN: usize = 128 << 10;
/// What is copied at a time while small things are to have their turn in between.
const PIECE_BYTES: usize = 128 << 10;
/// Sends whose memory the kernel may still read after it has reported them, a stream.
const HELD_MAX: usize = 8;
/// The bit in a notification that says the bytes were copied after all.
const COPIED: u32 = 1 << 31;
/// Tells a receive not to look before the socket says that there is something.
const POLL_FIRST: u16 = 1;
/// Asks for that bit.
const REPORT_USAGE: u16 = 8;

/// What a completion belongs to; stands in the third byte of its mark, between generation and slot.
const RECEIVE: u64 = 0;
const SEND: u64 = 1;
const DIAL: u64 = 2;
const CANCEL: u64 = 3;
const WAKE: u64 = 4;
const LISTEN: u64 = 5;
const WATCH: u64 = 6;
const SLOTS_MAX: u64 = 1 << 24;

/// Streams over a ring. Bound to the thread that made it.
pub struct Uring {
    ring: IoUring,
    probe: Probe,
    surroundings: Surroundings,
    wake: Arc<EventWake>,
    /// In place of sockets that could not be made, so that a dial fails in one way only, also when the process has
    /// no descriptor left. Always writable.
    stand_in: Arc<OwnedFd>,
    listener: Option<OwnedFd>,
    /// Beside the streams, and whether the kernel looks at it now.
    watched: Option<(OwnedFd, bool)>,
    sockets: Slab<Box<Socket>>,
    found: Vec<StreamEvent>,
    zero_copy: bool,
    /// What one send or receive copies at most.
    piece_bytes: usize,
    /// Requests in the kernel that use memory of ours.
    in_kernel: usize,
    /// A ring with one issuer must not move to another thread.
    _not_send: PhantomData<*const ()>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ZeroCopy {
    Untried,
    Trying,
    Pays,
    Copies,
}

/// Boxed, so that what the kernel is given pointers to does not move.
struct Socket {
    /// [`Uring::stand_in`] if it could not be made.
    fd: Arc<OwnedFd>,
    /// Registered under its slot's number.
    fixed: bool,
    receive: Option<(Target, usize)>,
    interrupted: bool,
    /// The last receive emptied it: the next one waits before it looks.
    drained: bool,
    /// As the socket was last told.
    low_water: usize,
    send: Option<(Outgoing, usize)>,
    zero_copy: ZeroCopy,
    /// The send under way is without a copy.
    sending_zero_copy: bool,
    /// Reported as sent, still read by the kernel.
    held: Vec<Outgoing>,
    notifications: usize,
    iov: [libc::iovec; 2],
    message: libc::msghdr,
    /// Requests in the kernel.
    pending: usize,
    closing: bool,
    failed: Option<io::Error>,
}

impl Uring {
    /// A ring as `probe` found it. `zero_copy` may be given up here, never forced.
    pub fn new(probe: Probe, zero_copy: bool) -> Result<Uring, OpenError> {
        let os = |what| move |source| OpenError::Os { what, source };
        let ring = probe.setup.build().map_err(os("set up io_uring"))?;
        // Saves a look-up in each call; where it is not known, the descriptor serves.
        let _ = ring.submitter().register_ring_fd();
        if probe.files {
            ring.submitter().register_files_sparse(FILES).map_err(os("register files with io_uring"))?;
        }
        let wake = EventWake::new().map_err(os("create an eventfd"))?;
        let stand_in = wake.fd().try_clone().map_err(os("copy a descriptor"))?;
        let mut uring = Uring {
            ring,
            zero_copy: zero_copy && probe.zero_copy,
            probe,
            surroundings: Surroundings::new().map_err(os("open the random device"))?,
            wake,
            stand_in: Arc::new(stand_in),
            listener: None,
            watched: None,
            sockets: Slab::new(),
            found: Vec::new(),
            piece_bytes: usize::MAX,
            in_kernel: 0,
            _not_send: PhantomData,
        };
        uring.watch_wake();
        Ok(uring)
    }

    fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: every entry that is built in this file points only into a boxed `Socket` or memory that it
            // owns, and `Socket`s stay in the slab until `pending` is 0, that is until the kernel has answered.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            // The queue is full: hand it over. An error shows again, and is reported, in `wait`.
            let _ = self.ring.submit();
        }
    }

    fn watch_wake(&mut self) {
        let fd = types::Fd(self.wake.fd().as_raw_fd());
        self.push(&opcode::PollAdd::new(fd, libc::POLLIN as u32).build().user_data(WAKE << 24));
    }

    fn watch_listener(&mut self) {
        if let Some(listener) = &self.listener {
            let fd = types::Fd(listener.as_raw_fd());
            self.push(&opcode::PollAdd::new(fd, libc::POLLIN as u32).build().user_data(LISTEN << 24));
        }
    }

    /// Looks at the watched descriptor again; not before the caller had a chance to make it unreadable.
    fn watch_again(&mut self) {
        if let Some((fd, looking @ false)) = &mut self.watched {
            *looking = true;
            let fd = types::Fd(fd.as_raw_fd());
            self.push(&opcode::PollAdd::new(fd, libc::POLLIN as u32).build().user_data(WATCH << 24));
        }
    }

    fn adopt(&mut self, fd: Arc<OwnedFd>) -> u64 {
        // SAFETY: all-zero is a valid value of these plain C structs.
        let (iov, message) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        let socket = Socket {
            fd,
            fixed: false,
            receive: None,
            interrupted: false,
            drained: false,
            low_water: 1,
            send: None,
            zero_copy: if self.zero_copy { ZeroCopy::Untried } else { ZeroCopy::Copies },
            sending_zero_copy: false,
            held: Vec::new(),
            notifications: 0,
            iov,
            message,
            pending: 0,
            closing: false,
            failed: None,
        };
        let key = self.sockets.insert(Box::new(socket));
        assert!(key & 0xffff_ffff < SLOTS_MAX, "more sockets than a process can have");
        key
    }

    /// Makes a connected socket ready for the ring: blocking (else the ring would not wait for it), registered.
    fn equip(&mut self, key: u64) -> io::Result<()> {
        let socket = self.sockets.get_mut(key).expect("the caller holds it");
        sys::prepare(socket.fd.as_fd())?;
        rustix::io::ioctl_fionbio(&socket.fd, false)?;
        let slot = key as u32;
        if self.probe.files && slot < FILES {
            let fds = [socket.fd.as_raw_fd()];
            socket.fixed = self.ring.submitter().register_files_update(slot, &fds).is_ok();
        }
        Ok(())
    }

    fn accept(&mut self) {
        while let Some(listener) = &self.listener {
            match rustix::net::accept_with(listener, SocketFlags::CLOEXEC) {
                Ok(fd) => {
                    let key = self.adopt(Arc::new(fd));
                    match self.equip(key) {
                        Ok(()) => self.found.push(StreamEvent::Accepted(StreamId(key))),
                        Err(_) => drop(self.sockets.remove(key)),
                    }
                }
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(_) => return,
            }
        }
    }

    fn start_receive(&mut self, key: u64) {
        let socket = self.sockets.get_mut(key).expect("the caller holds it");
        let (target, done) = socket.receive.as_mut().expect("a receive is under way");
        let (pointer, bytes) = (target.pointer(*done), target.wanted() - *done);
        // A payload is taken in large pieces: the socket reports nothing less, and the receive waits for that.
        let low_water = sys::low_water(target, bytes);
        if low_water != socket.low_water {
            socket.low_water = low_water;
            sys::set_low_water(socket.fd.as_fd(), low_water);
        }
        let ioprio = if socket.drained || target.is_whole() { POLL_FIRST } else { 0 };
        let bytes = bytes.min(self.piece_bytes) as u32;
        let entry = match socket.fixed {
            true => opcode::Recv::new(types::Fixed(key as u32), pointer, bytes).ioprio(ioprio),
            false => opcode::Recv::new(types::Fd(socket.fd.as_raw_fd()), pointer, bytes).ioprio(ioprio),
        };
        let entry = entry.build();
        socket.pending += 1;
        self.in_kernel += 1;
        self.push(&entry.user_data(mark(key, RECEIVE)));
    }

    fn start_send(&mut self, key: u64) {
        let socket = self.sockets.get_mut(key).expect("the caller holds it");
        let (outgoing, done) = socket.send.as_ref().expect("a send is under way");
        let big = outgoing.body.as_ref().is_some_and(|body| body.bytes() >= ZERO_COPY_BYTES_MIN);
        let zero_copy = big
            && socket.held.len() < HELD_MAX
            && matches!(socket.zero_copy, ZeroCopy::Untried | ZeroCopy::Pays);
        let (mut iov, count) = sys::parts(outgoing, *done);
        if !zero_copy {
            let mut room = self.piece_bytes;
            for part in &mut iov {
                part.iov_len = part.iov_len.min(room);
                room -= part.iov_len;
            }
        }
        socket.iov = iov;
        socket.message.msg_iov = socket.iov.as_mut_ptr();
        socket.message.msg_iovlen = count as _;
        socket.sending_zero_copy = zero_copy;
        if zero_copy && socket.zero_copy == ZeroCopy::Untried {
            socket.zero_copy = ZeroCopy::Trying;
        }
        let message = &raw const socket.message;
        let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32;
        let (slot, fd) = (types::Fixed(key as u32), types::Fd(socket.fd.as_raw_fd()));
        let entry = match (zero_copy, socket.fixed) {
            (true, true) => opcode::SendMsgZc::new(slot, message).ioprio(REPORT_USAGE).flags(flags).build(),
            (true, false) => opcode::SendMsgZc::new(fd, message).ioprio(REPORT_USAGE).flags(flags).build(),
            (false, true) => opcode::SendMsg::new(slot, message).flags(flags).build(),
            (false, false) => opcode::SendMsg::new(fd, message).flags(flags).build(),
        };
        socket.pending += 1;
        self.in_kernel += 1;
        self.push(&entry.user_data(mark(key, SEND)));
    }

    fn cancel(&mut self, key: u64, kind: u64) {
        let entry = opcode::AsyncCancel::new(mark(key, kind)).build();
        self.push(&entry.user_data(CANCEL << 24));
    }

    fn completed(&mut self, entry: &cqueue::Entry) {
        let user = entry.user_data();
        let (kind, key) = ((user >> 24) & 0xff, user & !(0xff << 24));
        match kind {
            CANCEL => return,
            WAKE => {
                self.wake.drain();
                self.watch_wake();
                return self.found.push(StreamEvent::Woken);
            }
            LISTEN => {
                self.accept();
                return self.watch_listener();
            }
            WATCH => {
                if let Some((_, looking)) = &mut self.watched {
                    *looking = false;
                }
                return self.found.push(StreamEvent::Watched);
            }
            _ => {}
        }
        let more = cqueue::more(entry.flags());
        let Some(socket) = self.sockets.get_mut(key) else { return };
        if !more {
            socket.pending -= 1;
            self.in_kernel -= 1;
        }
        match kind {
            _ if cqueue::notif(entry.flags()) => self.notified(key, entry.result()),
            RECEIVE => {
                socket.drained = !cqueue::sock_nonempty(entry.flags());
                self.received(key, entry.result());
            }
            SEND => self.sent(key, entry.result(), more),
            DIAL => self.dialled(key),
            _ => {}
        }
        self.bury(key);
    }

    fn received(&mut self, key: u64, result: i32) {
        let socket = self.sockets.get_mut(key).expect("the caller holds it");
        let (target, done) = socket.receive.as_mut().expect("a receive was under way");
        let outcome = match result {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            n if n > 0 => {
                *done += n as usize;
                let missing = target.is_whole() && *done < target.wanted();
                if missing && !socket.interrupted && !socket.closing {
                    return self.start_receive(key);
                }
                Ok(())
            }
            e if -e == libc::EINTR || -e == libc::EAGAIN => match socket.interrupted || socket.closing {
                false => return self.start_receive(key),
                true => Ok(()),
            },
            e if -e == libc::ECANCELED => {
                *done += sys::drain(socket.fd.as_fd(), target, *done);
                match socket.interrupted {
                    true => Ok(()),
                    false => Err(io::ErrorKind::ConnectionAborted.into()),
                }
            }
            e => Err(io::Error::from_raw_os_error(-e)),
        };
        if let Some((target, bytes)) = socket.receive.take() {
            let stream = StreamId(key);
            self.found.push(StreamEvent::Received { stream, target, bytes, result: outcome });
        }
    }

    fn sent(&mut self, key: u64, result: i32, notification_follows: bool) {
        let socket = self.sockets.get_mut(key).expect("the caller holds it");
        let (outgoing, done) = socket.send.as_mut().expect("a send was under way");
        let outcome = match result {
            n if n >= 0 => {
                *done += n as usize;
                if *done < outgoing.bytes() && !socket.closing && !notification_follows {
                    return self.start_send(key);
                }
                match *done < outgoing.bytes() {
                    true => Err(io::ErrorKind::WriteZero.into()),
                    false => Ok(()),
                }
            }
            e if -e == libc::EINTR || -e == libc::EAGAIN => return self.start_send(key),
            e if socket.sending_zero_copy
                && [libc::EOPNOTSUPP, libc::EINVAL, libc::ENOBUFS, libc::ENOMEM].contains(&-e) =>
            {
                // Not with this socket, or not with this little locked memory.
                socket.zero_copy = ZeroCopy::Copies;
                return self.start_send(key);
            }
            e => Err(io::Error::from_raw_os_error(-e)),
        };
        if let Some((mut outgoing, _)) = socket.send.take() {
            if notification_follows {
                socket.notifications += 1;
                socket.held.push(std::mem::take(&mut outgoing));
            }
            self.found.push(StreamEvent::Sent { stream: StreamId(key), outgoing, result: outcome });
        }
    }

    /// The kernel does not read a zero-copy send's memory any more, and says whether it ever did.
    fn notified(&mut self, key: u64, result: i32) {
        let socket = self.sockets.get_mut(key).expect("the caller holds it");
        socket.notifications -= 1;
        if socket.notifications == 0 {
            // Notifications do not say which send they are about, so memory is let go when none is out.
            socket.held.clear();
        }
        if result >= 0 || result as u32 & COPIED != 0 {
            socket.zero_copy = if result as u32 & COPIED != 0 { ZeroCopy::Copies } else { ZeroCopy::Pays };
        }
    }

    fn dialled(&mut self, key: u64) {
        let socket = self.sockets.get_mut(key).expect("the caller holds it");
        if socket.closing {
            return;
        }
        let result = match socket.failed.take() {
            Some(error) => Err(error),
            None => match rustix::net::sockopt::socket_error(&socket.fd) {
                Ok(Ok(())) => self.equip(key),
                Ok(Err(error)) | Err(error) => Err(error.into()),
            },
        };
        self.found.push(StreamEvent::Dialled(StreamId(key), result));
    }

    /// Lets a closed socket go once the kernel holds none of its memory.
    fn bury(&mut self, key: u64) {
        let Some(socket) = self.sockets.get(key) else { return };
        if !socket.closing || socket.pending > 0 {
            return;
        }
        let Some(mut socket) = self.sockets.remove(key) else { return };
        if socket.fixed {
            // A slot that keeps the descriptor would keep the connection open.
            let cleared = self.ring.submitter().register_files_update(key as u32, &[-1]);
            debug_assert!(cleared.is_ok(), "clearing a registered slot");
        }
        let stream = StreamId(key);
        let aborted = || Err(io::ErrorKind::ConnectionAborted.into());
        if let Some((target, bytes)) = socket.receive.take() {
            self.found.push(StreamEvent::Received { stream, target, bytes, result: aborted() });
        }
        if let Some((outgoing, _)) = socket.send.take() {
            self.found.push(StreamEvent::Sent { stream, outgoing, result: aborted() });
        }
        self.found.push(StreamEvent::Closed(stream));
    }

    fn harvest(&mut self) {
        loop {
            let Some(entry) = self.ring.completion().next() else { return };
            self.completed(&entry);
        }
    }

    fn enter(&mut self, timeout: Duration) -> io::Result<()> {
        if timeout.is_zero() {
            let queue = self.ring.submission();
            // While nothing is to be submitted and the kernel has flagged no work, looking costs no call.
            let flagged = self.probe.setup == Setup::Plain || queue.taskrun() || queue.cq_overflow();
            if !queue.is_empty() || flagged {
                drop(queue);
                self.ring.submit()?;
            }
            return Ok(());
        }
        let time = types::Timespec::from(timeout.min(Duration::from_secs(3600)));
        let args = types::SubmitArgs::new().timespec(&time);
        self.ring.submitter().submit_with_args(1, &args).map(drop)
    }
}

/// A completion's mark: generation, kind, slot.
const fn mark(key: u64, kind: u64) -> u64 {
    key | kind << 24
}

impl Streams for Uring {
    fn name(&self) -> &'static str {
        "uring"
    }

    fn features(&self) -> Vec<String> {
        let setup = match self.probe.setup {
            Setup::Deferred => "single issuer, deferred task-run",
            Setup::Cooperative => "cooperative task-run",
            Setup::Plain => "plain ring",
        };
        let files = if self.probe.files { "registered files" } else { "no registered files" };
        let copy = if self.zero_copy { "zero-copy send where it pays" } else { "copying send" };
        vec![setup.to_owned(), files.to_owned(), copy.to_owned()]
    }

    fn virtual_time(&self) -> bool {
        false
    }

    fn now(&self) -> Tick {
        self.surroundings.now()
    }

    fn random(&mut self) -> [u8; 32] {
        self.surroundings.random()
    }

    fn listen(&mut self, address: SocketAddr) -> Result<SocketAddr, OpenError> {
        let (fd, bound) = sys::listen(address).map_err(|source| OpenError::Os { what: "listen", source })?;
        self.listener = Some(fd);
        self.watch_listener();
        Ok(bound)
    }

    fn dial(&mut self, address: SocketAddr) -> StreamId {
        let mut failed = None;
        let fd = sys::socket(address).and_then(|fd| match rustix::net::connect(&fd, &address) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(fd),
            Err(error) => Err(error.into()),
        });
        let fd = match fd {
            Ok(fd) => Arc::new(fd),
            Err(error) => {
                failed = Some(error);
                self.stand_in.clone()
            }
        };
        let key = self.adopt(fd);
        let socket = self.sockets.get_mut(key).expect("adopted above");
        socket.failed = failed;
        socket.pending += 1;
        self.in_kernel += 1;
        let fd = types::Fd(socket.fd.as_raw_fd());
        let entry = opcode::PollAdd::new(fd, libc::POLLOUT as u32).build();
        self.push(&entry.user_data(mark(key, DIAL)));
        StreamId(key)
    }

    fn receive(&mut self, stream: StreamId, target: Target) {
        let socket = self.sockets.get_mut(stream.0).expect("streams in use exist");
        assert!(socket.receive.is_none(), "one receive at a time");
        (socket.receive, socket.interrupted) = (Some((target, 0)), false);
        self.start_receive(stream.0);
    }

    fn interrupt(&mut self, stream: StreamId) {
        if let Some(socket) = self.sockets.get_mut(stream.0)
            && socket.receive.is_some()
        {
            socket.interrupted = true;
            self.cancel(stream.0, RECEIVE);
        }
    }

    fn send(&mut self, stream: StreamId, outgoing: Outgoing) {
        let socket = self.sockets.get_mut(stream.0).expect("streams in use exist");
        assert!(socket.send.is_none(), "one send at a time");
        socket.send = Some((outgoing, 0));
        self.start_send(stream.0);
    }

    fn close(&mut self, stream: StreamId, abort: bool) {
        let Some(socket) = self.sockets.get_mut(stream.0) else { return };
        if abort {
            sys::reset_on_close(socket.fd.as_fd());
        }
        socket.closing = true;
        if socket.pending > 0 {
            [RECEIVE, SEND, DIAL].into_iter().for_each(|kind| self.cancel(stream.0, kind));
        }
        self.bury(stream.0);
    }

    fn register(&mut self, _: &Arc<Map>, _: u32) {}

    fn deregister(&mut self, _: u32) {}

    fn wait(&mut self, events: &mut Vec<StreamEvent>, timeout: Duration) -> Result<(), PollError> {
        self.harvest();
        self.watch_again();
        let timeout = if self.found.is_empty() { timeout } else { Duration::ZERO };
        match self.enter(timeout) {
            Ok(()) => {}
            // Time is up, a signal came, or completions must be taken first: all are answered by harvesting.
            Err(error)
                if [Some(libc::ETIME), Some(libc::EINTR), Some(libc::EBUSY), Some(libc::EAGAIN)]
                    .contains(&error.raw_os_error()) => {}
            Err(error) => return Err(PollError(error)),
        }
        self.harvest();
        events.append(&mut self.found);
        Ok(())
    }

    fn cut(&mut self, small: bool) {
        self.piece_bytes = if small { PIECE_BYTES } else { usize::MAX };
    }

    fn watch(&mut self, fd: OwnedFd) -> Result<(), OpenError> {
        self.watched = Some((fd, false));
        Ok(())
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.wake.clone()
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // The kernel may be writing into leases: they are let go only when it has answered.
        for key in self.sockets.keys() {
            self.close(StreamId(key), true);
        }
        let rounds = 100;
        for _ in 0..rounds {
            if self.in_kernel == 0 {
                return;
            }
            let mut events = Vec::new();
            if self.wait(&mut events, Duration::from_millis(50)).is_err() {
                break;
            }
        }
        // It does not answer: memory that it might still write to is never given back.
        tracing::error!(
            requests = self.in_kernel,
            "io_uring does not end its requests; their memory is lost"
        );
        for key in self.sockets.keys() {
            if let Some(socket) = self.sockets.remove(key) {
                std::mem::forget(socket);
            }
        }
    }
}
