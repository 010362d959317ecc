//! The ceiling: blocking sockets with a thread at each end, into memory that is there.

use super::TransferError;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The request: how many bytes to answer with, or, the other way, how many follow. As long as a transport's.
const REQUEST_BYTES: usize = 64;
/// Where in it the token is, and whether bytes follow.
const TOKEN: std::ops::Range<usize> = 8..24;
const FOLLOW: usize = 24;
const ANSWER_BYTES_MAX: u64 = 1 << 30;
const PATIENCE: Duration = Duration::from_secs(60);
/// A stream's first request must be there by then.
const FIRST: Duration = Duration::from_secs(10);
/// Streams that are served at a time.
const STREAMS_MAX: usize = 64;

/// Where raw sockets are answered, and the word without which they are not. It is told over the transport, so that
/// only who knows the transport's secret has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ticket {
    pub port: u16,
    token: [u8; 16],
}

/// Answers raw sockets beside a transport that listens at `address`.
pub(super) fn beside(address: SocketAddr) -> Result<Ticket, TransferError> {
    // The next port, so that a firewall can be opened ahead.
    let next = SocketAddr::new(address.ip(), address.port().wrapping_add(1).max(1));
    let any = SocketAddr::new(address.ip(), 0);
    let listen = || -> io::Result<(TcpListener, Ticket)> {
        let listener = TcpListener::bind(next).or_else(|_| TcpListener::bind(any))?;
        let mut token = [0; 16];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut token)?;
        let port = listener.local_addr()?.port();
        Ok((listener, Ticket { port, token }))
    };
    let (listener, ticket) = listen().map_err(TransferError::Raw)?;
    std::thread::spawn(move || {
        let served = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for stream in listener.incoming().flatten() {
                // One too many is closed at once.
                if served.fetch_add(1, Ordering::Relaxed) < STREAMS_MAX {
                    let served = &served;
                    scope.spawn(move || {
                        let _ = answer(stream, ticket);
                        served.fetch_sub(1, Ordering::Relaxed);
                    });
                } else {
                    served.fetch_sub(1, Ordering::Relaxed);
                }
            }
        });
    });
    Ok(ticket)
}

fn answer(mut stream: TcpStream, ticket: Ticket) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(FIRST))?;
    let (mut request, mut bytes) = ([0; REQUEST_BYTES], Vec::new());
    loop {
        stream.read_exact(&mut request)?;
        let mut number = [0; 8];
        number.copy_from_slice(&request[..8]);
        let n = u64::from_le_bytes(number);
        if n > ANSWER_BYTES_MAX || request[TOKEN] != ticket.token {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // Who was told may take his time: the transport has its turns.
        stream.set_read_timeout(None)?;
        // Touched once, like the memory of the other side.
        if bytes.len() < n as usize {
            bytes.resize(n as usize, 7u8);
        }
        let bytes = &mut bytes[..n as usize];
        if request[FOLLOW] == 0 {
            stream.write_all(bytes)?;
        } else {
            stream.read_exact(bytes)?;
            stream.write_all(&[0])?;
        }
    }
}

/// Streams to a peer, with the memory they read into.
pub(super) struct Raw {
    streams: Vec<(TcpStream, Vec<u8>)>,
    ticket: Ticket,
}

impl Raw {
    pub(super) fn connect(host: IpAddr, ticket: Ticket, streams: u16) -> Result<Raw, TransferError> {
        let address = SocketAddr::new(host, ticket.port);
        let connect = |_: u16| -> io::Result<(TcpStream, Vec<u8>)> {
            let stream = TcpStream::connect_timeout(&address, Duration::from_secs(10))?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            Ok((stream, Vec::new()))
        };
        let streams = (0..streams).map(connect).collect::<io::Result<_>>();
        Ok(Raw { streams: streams.map_err(TransferError::Raw)?, ticket })
    }

    /// Makes ready for objects of `bytes` bytes.
    pub(super) fn prepare(&mut self, bytes: u64, streams: u16) {
        let share = (bytes / u64::from(streams)) as usize;
        self.streams.iter_mut().for_each(|(_, memory)| memory.resize(share, 1));
    }

    /// Moves `times` objects, `depth` asked for ahead, striped over `streams`; nanoseconds of each. As many go the
    /// other way meanwhile, over as many streams again, if `both_ways`.
    pub(super) fn round(
        &mut self,
        bytes: u64,
        streams: u16,
        depth: u64,
        times: u64,
        both_ways: bool,
    ) -> Result<Vec<u64>, TransferError> {
        let share = bytes / u64::from(streams);
        let mut request = [0; REQUEST_BYTES];
        request[..8].copy_from_slice(&share.to_le_bytes());
        request[TOKEN].copy_from_slice(&self.ticket.token);
        let (ends, others) = self.streams.split_at_mut(streams.into());
        let others = if both_ways { &mut others[..streams.into()] } else { &mut [] };
        let request = &request;
        let all = std::thread::scope(|scope| {
            let givers: Vec<_> = others
                .iter_mut()
                .map(|(stream, memory)| scope.spawn(move || give_all(stream, memory, *request, depth, times)))
                .collect();
            let takers: Vec<_> = ends
                .iter_mut()
                .map(|(stream, memory)| scope.spawn(move || take_all(stream, memory, request, depth, times)))
                .collect();
            let ended = || io::Error::other("a thread ended badly");
            for giver in givers {
                giver.join().unwrap_or_else(|_| Err(ended()))?;
            }
            takers
                .into_iter()
                .map(|taker| taker.join().unwrap_or_else(|_| Err(ended())))
                .collect::<io::Result<Vec<_>>>()
        });
        let mut all = all.map_err(TransferError::Raw)?;
        Ok(all.pop().unwrap_or_default())
    }
}

/// Writes `times` objects, of which `depth` are not acknowledged.
fn give_all(
    stream: &mut TcpStream,
    memory: &[u8],
    mut request: [u8; REQUEST_BYTES],
    depth: u64,
    times: u64,
) -> io::Result<()> {
    request[FOLLOW] = 1;
    let mut taken = [0];
    for sent in 1..=times {
        stream.write_all(&request)?;
        stream.write_all(memory)?;
        if sent >= depth {
            stream.read_exact(&mut taken)?;
        }
    }
    for _ in 1..depth.min(times + 1) {
        stream.read_exact(&mut taken)?;
    }
    Ok(())
}

/// Reads `times` objects, `depth` of them asked for ahead; nanoseconds of each.
fn take_all(
    stream: &mut TcpStream,
    memory: &mut [u8],
    request: &[u8; REQUEST_BYTES],
    depth: u64,
    times: u64,
) -> io::Result<Vec<u64>> {
    let mut asked = std::collections::VecDeque::new();
    let (mut sent, mut nanos) = (0, Vec::with_capacity(times as usize));
    for _ in 0..times {
        while sent < times && (asked.len() as u64) < depth {
            asked.push_back(Instant::now());
            stream.write_all(request)?;
            sent += 1;
        }
        stream.read_exact(memory)?;
        if let Some(begun) = asked.pop_front() {
            nanos.push(begun.elapsed().as_nanos() as u64);
        }
    }
    Ok(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_was_told_is_answered() {
        let door = TcpListener::bind("127.0.0.1:0").expect("a port");
        let ticket = beside(door.local_addr().expect("bound")).expect("listens");
        let host = IpAddr::from([127, 0, 0, 1]);
        let mut right = Raw::connect(host, ticket, 2).expect("connects");
        right.prepare(1000, 1);
        assert_eq!(right.round(1000, 1, 2, 5, true).expect("answers").len(), 5);
        let mut wrong = Raw::connect(host, Ticket { token: [1; 16], ..ticket }, 1).expect("connects");
        wrong.prepare(1000, 1);
        assert!(matches!(wrong.round(1000, 1, 1, 1, false), Err(TransferError::Raw(_))));
    }
}
