//! System calls on sockets, for the backends that use them.

use super::streams::{Outgoing, Target};
use rustix::event::EventfdFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// A non-blocking stream socket of the family of `address`.
pub(super) fn socket(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    Ok(fd)
}

/// What every stream gets: no waiting for more bytes before a small frame leaves.
pub(super) fn prepare(fd: BorrowedFd<'_>) -> io::Result<()> {
    sockopt::set_tcp_nodelay(fd, true)?;
    Ok(())
}

/// A listening socket and where it listens.
pub(super) fn listen(address: SocketAddr) -> io::Result<(OwnedFd, SocketAddr)> {
    let fd = socket(address)?;
    sockopt::set_socket_reuseaddr(&fd, true)?;
    rustix::net::bind(&fd, &address)?;
    rustix::net::listen(&fd, BACKLOG)?;
    let bound = SocketAddr::try_from(rustix::net::getsockname(&fd)?)?;
    Ok((fd, bound))
}

/// Makes the close of `fd` a reset instead of an orderly end.
pub(super) fn reset_on_close(fd: BorrowedFd<'_>) {
    // A socket that cannot take the option is closed in the orderly way, which ends it as well.
    let _ = sockopt::set_socket_linger(fd, Some(std::time::Duration::ZERO));
}

/// Receives more of `target`, of which `done` bytes are there. 0 is the end of the stream.
pub(super) fn receive(fd: BorrowedFd<'_>, target: &mut Target, done: usize) -> io::Result<usize> {
    let (pointer, bytes) = (target.pointer(done), target.wanted() - done);
    // SAFETY: `Target::pointer` gives the address of `bytes` writable bytes that `target` owns, and `target` is
    // borrowed for the call.
    let n = unsafe { libc::recv(fd.as_raw_fd(), pointer.cast(), bytes, libc::MSG_DONTWAIT) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Takes what of a payload has come below the low-water mark, before its receive is given up. Answers how much.
pub(super) fn drain(fd: BorrowedFd<'_>, target: &mut Target, done: usize) -> usize {
    if !target.is_whole() || done == target.wanted() {
        return 0;
    }
    receive(fd, target, done).unwrap_or(0)
}

/// Large payloads are waited for in pieces of this size: fewer wake-ups than segments, yet copying begins while
/// the rest is on its way. Bytes.
const LOW_WATER_BYTES_MAX: usize = 512 << 10;

/// How much should be there before a receive of `missing` bytes is worth waking up for.
pub(super) const fn low_water(target: &Target, missing: usize) -> usize {
    match target {
        Target::Memory { .. } if missing > LOW_WATER_BYTES_MAX => LOW_WATER_BYTES_MAX,
        Target::Memory { .. } => missing,
        Target::Buffer { .. } => 1,
    }
}

/// Lets the socket count as readable only when so many bytes are there (or its end is).
pub(super) fn set_low_water(fd: BorrowedFd<'_>, bytes: usize) {
    let value = bytes as libc::c_int;
    // A socket that does not take it wakes us more often, which is all.
    // SAFETY: the option's value is an int that lives for the call.
    unsafe {
        let length = size_of::<libc::c_int>() as libc::socklen_t;
        let value = (&raw const value).cast();
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVLOWAT, value, length);
    }
}

/// The two parts of `outgoing` behind its first `done` bytes, for the kernel.
pub(super) fn parts(outgoing: &Outgoing, done: usize) -> ([libc::iovec; 2], usize) {
    let head = &outgoing.head[done.min(outgoing.head.len())..];
    let skipped = done.saturating_sub(outgoing.head.len());
    let first = libc::iovec { iov_base: head.as_ptr().cast_mut().cast(), iov_len: head.len() };
    let second = match &outgoing.body {
        Some(body) => {
            libc::iovec { iov_base: body.pointer(skipped).as_ptr().cast(), iov_len: body.bytes() - skipped }
        }
        None => libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 },
    };
    if first.iov_len == 0 {
        ([second, first], 1)
    } else {
        ([first, second], 1 + usize::from(second.iov_len > 0))
    }
}

/// Sends more of `outgoing`, of which `done` bytes have gone.
pub(super) fn send(fd: BorrowedFd<'_>, outgoing: &Outgoing, done: usize) -> io::Result<usize> {
    let (mut iov, count) = parts(outgoing, done);
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: an all-zero `msghdr` is valid. The vectors point into `outgoing`, which is borrowed for the call
    // and owns or keeps alive what they cover; the kernel only reads it.
    let n = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = iov.as_mut_ptr();
        message.msg_iovlen = count as _;
        libc::sendmsg(fd.as_raw_fd(), &raw const message, flags)
    };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Time and randomness, the same for all backends on real sockets.
pub(super) struct Surroundings {
    begin: Instant,
    random: File,
}

impl Surroundings {
    pub(super) fn new() -> io::Result<Surroundings> {
        Ok(Surroundings { begin: Instant::now(), random: File::open("/dev/urandom")? })
    }

    pub(super) fn now(&self) -> dflow_proto::Tick {
        // 1 at the least: 0 stands for "never" with some callers.
        dflow_proto::Tick(self.begin.elapsed().as_micros() as u64 + 1)
    }

    pub(super) fn random(&mut self) -> [u8; 32] {
        let mut bytes = [0; 32];
        // Without randomness proofs could be replayed: rather no node than such a one.
        self.random.read_exact(&mut bytes).expect("the kernel's random device gives bytes");
        bytes
    }
}

/// Wakes a poll by an event descriptor.
pub(super) struct EventWake(OwnedFd);

impl EventWake {
    pub(super) fn new() -> io::Result<Arc<EventWake>> {
        let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(EventWake(fd)))
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.0
    }

    pub(super) fn drain(&self) {
        // An empty counter is as good as a drained one.
        let _ = rustix::io::read(&self.0, &mut [0_u8; 8]);
    }
}

impl super::Wake for EventWake {
    fn wake(&self) {
        // A counter that is full wakes all the same.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}
