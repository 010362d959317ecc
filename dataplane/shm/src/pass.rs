//! Messages with file descriptors over `SOCK_SEQPACKET` sockets: one packet, one message.

use core::mem::{MaybeUninit, size_of};
use core::ptr::null_mut;
use serde::{Serialize, de::DeserializeOwned};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Most descriptors of one message.
pub const FDS_MAX: usize = 8;
/// Longest message in bytes.
pub const PACKET_BYTES_MAX: usize = 32 << 10;

/// Why a message was not sent or received.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// The other side has closed its end, or died.
    #[error("the other side of the socket is gone")]
    Closed,
    /// Nothing to receive, or no room to send, on a non-blocking call.
    #[error("the socket is not ready")]
    NotReady,
    /// A packet that is no message: the other side broke the protocol.
    #[error("a packet of {bytes} bytes is no valid message")]
    Malformed {
        /// Its length.
        bytes: usize,
    },
    /// Longer than a packet may be.
    #[error("a message exceeds {PACKET_BYTES_MAX} bytes")]
    TooLong,
    /// The kernel refused.
    #[error("socket: {0}")]
    Os(#[from] io::Error),
}

/// One end of a socket pair.
#[derive(Debug)]
pub struct Channel {
    fd: OwnedFd,
}

impl Channel {
    /// Two connected ends, both closed on exec.
    pub fn pair() -> io::Result<(Channel, Channel)> {
        let mut fds = [0; 2];
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
        // SAFETY: socketpair writes two ints to `fds`.
        if unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: both descriptors are new and nobody else owns them.
        let [one, two] = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        Ok((Channel { fd: one }, Channel { fd: two }))
    }

    /// An end that came from another process.
    pub fn from_fd(fd: OwnedFd) -> Channel {
        Channel { fd }
    }

    /// Gives the descriptor up.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Sends a message and copies of `fds`, waiting for room if `wait` says so.
    pub fn send<T: Serialize>(
        &self,
        message: &T,
        fds: &[BorrowedFd<'_>],
        wait: bool,
    ) -> Result<(), PassError> {
        assert!(fds.len() <= FDS_MAX, "{} descriptors in one message", fds.len());
        let mut packet = vec![0; PACKET_BYTES_MAX];
        let encoded = postcard::to_slice(message, &mut packet).map_err(|_| PassError::TooLong)?;
        let mut control = Control::new();
        let mut part = libc::iovec { iov_base: encoded.as_mut_ptr().cast(), iov_len: encoded.len() };
        let mut header = control.header(&mut part);
        // SAFETY: `header` points to `part`, `control` and `encoded`, all alive on this stack. The
        // control buffer has room for FDS_MAX descriptors, so CMSG_FIRSTHDR is not null and the
        // copy of `fds.len() <= FDS_MAX` ints stays inside of it.
        let sent = unsafe {
            if fds.is_empty() {
                header.msg_control = null_mut();
                header.msg_controllen = 0;
            } else {
                let bytes = size_of::<i32>() * fds.len();
                header.msg_controllen = libc::CMSG_SPACE(bytes as u32) as _;
                let first = libc::CMSG_FIRSTHDR(&raw const header);
                (*first).cmsg_level = libc::SOL_SOCKET;
                (*first).cmsg_type = libc::SCM_RIGHTS;
                (*first).cmsg_len = libc::CMSG_LEN(bytes as u32) as _;
                let raw: Vec<i32> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
                core::ptr::copy_nonoverlapping(raw.as_ptr().cast::<u8>(), libc::CMSG_DATA(first), bytes);
            }
            let flags = libc::MSG_NOSIGNAL | if wait { 0 } else { libc::MSG_DONTWAIT };
            retry(|| libc::sendmsg(self.fd.as_raw_fd(), &raw const header, flags))
        };
        sent.map(|_| ())
    }

    /// Receives a message and its descriptors (closed on exec), waiting for one if `wait` says so.
    pub fn receive<T: DeserializeOwned>(&self, wait: bool) -> Result<(T, Vec<OwnedFd>), PassError> {
        let mut packet = vec![0_u8; PACKET_BYTES_MAX];
        let mut control = Control::new();
        let mut part = libc::iovec { iov_base: packet.as_mut_ptr().cast(), iov_len: packet.len() };
        let mut header = control.header(&mut part);
        let flags = libc::MSG_CMSG_CLOEXEC | if wait { 0 } else { libc::MSG_DONTWAIT };
        // SAFETY: `header` points to `part`, `control` and `packet`, all alive and writable.
        let bytes = retry(|| unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut header, flags) })?;
        // SAFETY: recvmsg has filled `header`, which still points to the live control buffer.
        let fds = unsafe { descriptors(&header) };
        if bytes == 0 {
            return Err(PassError::Closed);
        }
        let malformed = PassError::Malformed { bytes };
        if header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
            return Err(malformed);
        }
        postcard::from_bytes(&packet[..bytes]).map(|message| (message, fds)).map_err(|_| malformed)
    }

    /// Waits until something can be received; false if `timeout` is over first.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let mut poll = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one pollfd, alive and writable.
        match unsafe { libc::poll(&raw mut poll, 1, ms) } {
            0 => Ok(false),
            1.. => Ok(true),
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
                error => Err(error),
            },
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// An aligned control buffer with room for [`FDS_MAX`] descriptors.
struct Control {
    words: [u64; 16],
}

impl Control {
    fn new() -> Control {
        // SAFETY: CMSG_SPACE only computes.
        let need = unsafe { libc::CMSG_SPACE((size_of::<i32>() * FDS_MAX) as u32) } as usize;
        assert!(need <= size_of::<Control>());
        Control { words: [0; 16] }
    }

    fn header(&mut self, part: &mut libc::iovec) -> libc::msghdr {
        // SAFETY: an all-zero msghdr is a valid value of that plain C struct.
        let mut header: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
        header.msg_iov = part;
        header.msg_iovlen = 1;
        header.msg_control = self.words.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&self.words) as _;
        header
    }
}

/// Takes the descriptors out of a received control buffer.
///
/// # Safety
/// recvmsg has filled `header`, and its control buffer is alive. Called once per message: the
/// descriptors are owned by the result.
unsafe fn descriptors(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the CMSG macros walk the buffer that the caller vouches for; the kernel wrote
    // consistent lengths, and each descriptor in it is new in this process.
    unsafe {
        let mut next = libc::CMSG_FIRSTHDR(header);
        while !next.is_null() {
            if (*next).cmsg_level == libc::SOL_SOCKET && (*next).cmsg_type == libc::SCM_RIGHTS {
                let bytes = (*next).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(next).cast::<i32>();
                for index in 0..bytes / size_of::<i32>() {
                    fds.push(OwnedFd::from_raw_fd(data.add(index).read_unaligned()));
                }
            }
            next = libc::CMSG_NXTHDR(header, next);
        }
    }
    fds
}

fn retry(mut call: impl FnMut() -> isize) -> Result<usize, PassError> {
    loop {
        if let Ok(bytes) = usize::try_from(call()) {
            return Ok(bytes);
        }
        let error = io::Error::last_os_error();
        return Err(match error.raw_os_error() {
            Some(libc::EINTR) => continue,
            Some(libc::EAGAIN) => PassError::NotReady,
            Some(libc::EPIPE | libc::ECONNRESET) => PassError::Closed,
            _ => PassError::Os(error),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dflow_proto::ids::{SegmentId, WorkerId};
    use dflow_proto::zygote::{ToWorker, ToZygote};

    #[test]
    fn messages_and_descriptors_cross() {
        let (here, there) = Channel::pair().expect("a pair");
        let (pipe_in, pipe_out) = std::io::pipe().expect("a pipe");
        here.send(&ToZygote::Kill { worker: WorkerId(3) }, &[], true).expect("sent");
        let fds = [pipe_out.as_fd(), pipe_in.as_fd()];
        here.send(&ToZygote::Fork { worker: WorkerId(4) }, &fds, true).expect("sent");
        let (message, fds) = there.receive::<ToZygote>(true).expect("received");
        assert_eq!((message, fds.len()), (ToZygote::Kill { worker: WorkerId(3) }, 0));
        let (message, fds) = there.receive::<ToZygote>(true).expect("received");
        assert_eq!((message, fds.len()), (ToZygote::Fork { worker: WorkerId(4) }, 2));
        let mut copy = std::fs::File::from(fds.into_iter().next().expect("two"));
        drop(pipe_out);
        std::io::Write::write_all(&mut copy, b"through").expect("written");
        drop(copy);
        let mut text = String::new();
        let mut pipe_in = pipe_in;
        std::io::Read::read_to_string(&mut pipe_in, &mut text).expect("read");
        assert_eq!(text, "through");
    }

    #[test]
    fn the_end_and_garbage_are_typed() {
        let (here, there) = Channel::pair().expect("a pair");
        assert!(matches!(there.receive::<ToWorker>(false), Err(PassError::NotReady)));
        here.send(&ToWorker::Gone { id: SegmentId(1) }, &[], true).expect("sent");
        assert!(there.wait(Duration::from_secs(1)).expect("polls"));
        let got = there.receive::<ToWorker>(false).expect("received").0;
        assert_eq!(got, ToWorker::Gone { id: SegmentId(1) });
        here.send(&[255_u8; 30], &[], true).expect("sent");
        assert!(matches!(there.receive::<ToWorker>(true), Err(PassError::Malformed { .. })));
        drop(here);
        assert!(matches!(there.receive::<ToWorker>(true), Err(PassError::Closed)));
    }
}
