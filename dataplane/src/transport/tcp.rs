//! Plain sockets and epoll: for hosts where io_uring is forbidden.

use super::slab::Slab;
use super::streams::{Outgoing, StreamEvent, StreamId, Streams, Target};
use super::sys::{self, EventWake, Surroundings};
use super::{OpenError, PollError, Wake};
use dflow_proto::Tick;
use dflow_shm::segment::Map;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// Marks of the descriptors that are no streams; a stream's key is never that small.
const WAKE: u64 = 1;
const LISTENER: u64 = 2;
const WATCHED: u64 = 3;
/// Streams accepted before others get their turn.
const ACCEPTS: usize = 64;

/// Streams over plain sockets.
pub struct Tcp {
    surroundings: Surroundings,
    epoll: OwnedFd,
    wake: Arc<EventWake>,
    listener: Option<OwnedFd>,
    watched: Option<OwnedFd>,
    streams: Slab<Socket>,
    /// Streams on which something may be possible.
    ready: Vec<u64>,
    found: Vec<StreamEvent>,
    ready_events: Vec<epoll::Event>,
}

struct Socket {
    /// `None` if it could not even be made.
    fd: Option<OwnedFd>,
    connecting: bool,
    /// The kernel has said so, and no call has contradicted it since. Edge-triggered, so that a busy stream
    /// costs no calls beside those that move bytes.
    readable: bool,
    /// Its end is near: what is read before it leads to no further edge.
    ending: bool,
    writable: bool,
    receive: Option<(Target, usize)>,
    /// As the socket was last told.
    low_water: usize,
    send: Option<(Outgoing, usize)>,
    /// Why.
    failed: Option<io::Error>,
}

impl Tcp {
    /// No streams yet.
    pub fn new() -> Result<Tcp, OpenError> {
        let os = |what| move |source| OpenError::Os { what, source };
        let surroundings = Surroundings::new().map_err(os("open the random device"))?;
        let made = epoll::create(epoll::CreateFlags::CLOEXEC);
        let epoll = made.map_err(|error| os("create an epoll")(error.into()))?;
        let wake = EventWake::new().map_err(os("create an eventfd"))?;
        let added = epoll::add(&epoll, wake.fd(), EventData::new_u64(WAKE), EventFlags::IN);
        added.map_err(|error| os("watch an eventfd")(error.into()))?;
        Ok(Tcp {
            surroundings,
            epoll,
            wake,
            listener: None,
            watched: None,
            streams: Slab::new(),
            ready: Vec::new(),
            found: Vec::new(),
            ready_events: Vec::with_capacity(256),
        })
    }

    fn adopt(&mut self, fd: OwnedFd, connecting: bool) -> io::Result<u64> {
        sys::prepare(fd.as_fd())?;
        let (readable, writable) = (!connecting, !connecting);
        let socket = Socket {
            fd: Some(fd),
            connecting,
            readable,
            ending: false,
            writable,
            receive: None,
            low_water: 1,
            send: None,
            failed: None,
        };
        let key = self.streams.insert(socket);
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let socket = self.streams.get(key).expect("inserted above");
        let fd = socket.fd.as_ref().expect("given above");
        match epoll::add(&self.epoll, fd, EventData::new_u64(key), flags) {
            Ok(()) => Ok(key),
            Err(error) => {
                self.streams.remove(key);
                Err(error.into())
            }
        }
    }

    fn start_dial(&mut self, address: SocketAddr) -> io::Result<u64> {
        let fd = sys::socket(address)?;
        match rustix::net::connect(&fd, &address) {
            Ok(()) | Err(Errno::INPROGRESS) => self.adopt(fd, true),
            Err(error) => Err(error.into()),
        }
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS {
            let Some(listener) = &self.listener else { return };
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match rustix::net::accept_with(listener, flags) {
                Ok(fd) => {
                    // A stream that cannot be watched is closed; its peer dials again.
                    if let Ok(key) = self.adopt(fd, false) {
                        self.found.push(StreamEvent::Accepted(StreamId(key)));
                    }
                }
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(_) => return,
            }
        }
    }

    /// Does on one stream what can be done now.
    fn progress(&mut self, key: u64) {
        let Some(socket) = self.streams.get_mut(key) else { return };
        let Some(fd) = &socket.fd else { return };
        let stream = StreamId(key);
        if socket.connecting {
            if !socket.writable {
                return;
            }
            socket.connecting = false;
            let error = match rustix::net::sockopt::socket_error(fd) {
                Ok(Ok(())) => None,
                Ok(Err(error)) | Err(error) => Some(io::Error::from(error)),
            };
            self.found.push(StreamEvent::Dialled(stream, error.map_or(Ok(()), Err)));
            return;
        }
        while socket.writable
            && let Some((outgoing, done)) = &mut socket.send
        {
            let result = match sys::send(fd.as_fd(), outgoing, *done) {
                Ok(n) => {
                    *done += n;
                    if *done < outgoing.bytes() {
                        // Less than was offered: the socket's buffer is full, and an edge will tell.
                        socket.writable = false;
                        break;
                    }
                    Ok(())
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    socket.writable = false;
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            if let Some((outgoing, _)) = socket.send.take() {
                self.found.push(StreamEvent::Sent { stream, outgoing, result });
            }
        }
        while socket.readable
            && let Some((target, done)) = &mut socket.receive
        {
            let wanted = target.wanted() - *done;
            let result = match sys::receive(fd.as_fd(), target, *done) {
                Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    *done += n;
                    // Less than there was room for: the kernel had no more. What comes now is a new edge, and the
                    // call that would only say so is saved.
                    socket.readable = n == wanted || socket.ending;
                    if target.is_whole() && n < wanted {
                        continue;
                    }
                    Ok(())
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    socket.readable = false;
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            if let Some((target, bytes)) = socket.receive.take() {
                self.found.push(StreamEvent::Received { stream, target, bytes, result });
            }
        }
        // It waits now. Should enough have come meanwhile, being told so is an edge.
        if let Some((target, done)) = &socket.receive {
            let bytes = sys::low_water(target, target.wanted() - done);
            if bytes != socket.low_water {
                socket.low_water = bytes;
                sys::set_low_water(fd.as_fd(), bytes);
            }
        }
    }
}

impl Streams for Tcp {
    fn name(&self) -> &'static str {
        "tcp"
    }

    fn features(&self) -> Vec<String> {
        vec!["epoll, edge-triggered".to_owned()]
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
        let os = |source| OpenError::Os { what: "listen", source };
        let (fd, bound) = sys::listen(address).map_err(os)?;
        let added = epoll::add(&self.epoll, &fd, EventData::new_u64(LISTENER), EventFlags::IN);
        added.map_err(|error| os(error.into()))?;
        self.listener = Some(fd);
        Ok(bound)
    }

    fn dial(&mut self, address: SocketAddr) -> StreamId {
        match self.start_dial(address) {
            Ok(key) => StreamId(key),
            Err(error) => {
                // Reported like a refusal by the other side: callers have one way to learn of failure.
                let socket = Socket {
                    fd: None,
                    connecting: false,
                    readable: false,
                    ending: false,
                    writable: false,
                    receive: None,
                    low_water: 1,
                    send: None,
                    failed: Some(error),
                };
                let key = self.streams.insert(socket);
                self.ready.push(key);
                StreamId(key)
            }
        }
    }

    fn receive(&mut self, stream: StreamId, target: Target) {
        let socket = self.streams.get_mut(stream.0).expect("streams in use exist");
        assert!(socket.receive.is_none(), "one receive at a time");
        socket.receive = Some((target, 0));
        self.ready.push(stream.0);
    }

    fn interrupt(&mut self, stream: StreamId) {
        let Some(socket) = self.streams.get_mut(stream.0) else { return };
        if let Some((mut target, mut bytes)) = socket.receive.take() {
            if let Some(fd) = &socket.fd {
                bytes += sys::drain(fd.as_fd(), &mut target, bytes);
            }
            self.found.push(StreamEvent::Received { stream, target, bytes, result: Ok(()) });
        }
    }

    fn send(&mut self, stream: StreamId, outgoing: Outgoing) {
        let socket = self.streams.get_mut(stream.0).expect("streams in use exist");
        assert!(socket.send.is_none(), "one send at a time");
        socket.send = Some((outgoing, 0));
        self.ready.push(stream.0);
    }

    fn close(&mut self, stream: StreamId, abort: bool) {
        let Some(socket) = self.streams.remove(stream.0) else { return };
        let aborted = || Err(io::ErrorKind::ConnectionAborted.into());
        if let Some((mut target, mut bytes)) = socket.receive {
            if let Some(fd) = &socket.fd {
                bytes += sys::drain(fd.as_fd(), &mut target, bytes);
            }
            self.found.push(StreamEvent::Received { stream, target, bytes, result: aborted() });
        }
        if let Some((outgoing, _)) = socket.send {
            self.found.push(StreamEvent::Sent { stream, outgoing, result: aborted() });
        }
        if let Some(fd) = socket.fd.filter(|_| abort) {
            sys::reset_on_close(fd.as_fd());
        }
        self.found.push(StreamEvent::Closed(stream));
    }

    fn register(&mut self, _: &Arc<Map>, _: u32) {}

    fn deregister(&mut self, _: u32) {}

    fn wait(&mut self, events: &mut Vec<StreamEvent>, timeout: Duration) -> Result<(), PollError> {
        for key in std::mem::take(&mut self.ready) {
            let failed = self.streams.get_mut(key).and_then(|socket| socket.failed.take());
            match failed {
                Some(error) => self.found.push(StreamEvent::Dialled(StreamId(key), Err(error))),
                None => self.progress(key),
            }
        }
        let timeout = if self.found.is_empty() { timeout } else { Duration::ZERO };
        let timeout = rustix::event::Timespec {
            tv_sec: timeout.as_secs().min(i32::MAX as u64) as i64,
            tv_nsec: timeout.subsec_nanos().into(),
        };
        self.ready_events.clear();
        let spare = rustix::buffer::spare_capacity(&mut self.ready_events);
        match epoll::wait(&self.epoll, spare, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(PollError(error.into())),
        }
        let ready_events = std::mem::take(&mut self.ready_events);
        for event in &ready_events {
            match event.data.u64() {
                WAKE => {
                    self.wake.drain();
                    self.found.push(StreamEvent::Woken);
                }
                LISTENER => self.accept(),
                WATCHED => self.found.push(StreamEvent::Watched),
                key => {
                    let ends = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
                    if let Some(socket) = self.streams.get_mut(key) {
                        let flags = event.flags;
                        socket.ending |= flags.intersects(ends);
                        socket.readable |= flags.intersects(EventFlags::IN | ends);
                        socket.writable |=
                            flags.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR);
                    }
                    self.progress(key);
                }
            }
        }
        self.ready_events = ready_events;
        events.append(&mut self.found);
        Ok(())
    }

    fn watch(&mut self, fd: OwnedFd) -> Result<(), OpenError> {
        epoll::add(&self.epoll, &fd, EventData::new_u64(WATCHED), EventFlags::IN)
            .map_err(|error| OpenError::Os { what: "watch a descriptor", source: error.into() })?;
        self.watched = Some(fd);
        Ok(())
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.wake.clone()
    }
}
