//! The ceiling: blocking sockets with a thread at each end, into memory that is there.

use super::TransferError;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// The request: how many bytes to answer with. As long as a transport's.
const REQUEST_BYTES: usize = 64;
const ANSWER_BYTES_MAX: u64 = 1 << 30;
const PATIENCE: Duration = Duration::from_secs(60);

/// Answers each stream in a thread of its own.
pub(super) fn serve(listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || answer(stream));
    }
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let (mut request, mut bytes) = ([0; REQUEST_BYTES], Vec::new());
    loop {
        stream.read_exact(&mut request)?;
        let mut number = [0; 8];
        number.copy_from_slice(&request[..8]);
        let n = u64::from_le_bytes(number);
        if n > ANSWER_BYTES_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // Touched once, like the memory of the other side.
        if bytes.len() < n as usize {
            bytes.resize(n as usize, 7u8);
        }
        stream.write_all(&bytes[..n as usize])?;
    }
}

/// Streams to a peer, with the memory they read into.
pub(super) struct Raw {
    streams: Vec<(TcpStream, Vec<u8>)>,
}

impl Raw {
    pub(super) fn connect(address: SocketAddr, streams: u16) -> Result<Raw, TransferError> {
        let connect = |_: u16| -> io::Result<(TcpStream, Vec<u8>)> {
            let stream = TcpStream::connect_timeout(&address, Duration::from_secs(10))?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            Ok((stream, Vec::new()))
        };
        let streams = (0..streams).map(connect).collect::<io::Result<_>>();
        Ok(Raw { streams: streams.map_err(TransferError::Raw)? })
    }

    /// Makes ready for objects of `bytes` bytes.
    pub(super) fn prepare(&mut self, bytes: u64, streams: u16) {
        let share = (bytes / u64::from(streams)) as usize;
        self.streams.iter_mut().take(streams.into()).for_each(|(_, memory)| memory.resize(share, 1));
    }

    /// Moves `times` objects, `depth` asked for ahead, striped over `streams`; microseconds of each.
    pub(super) fn round(
        &mut self,
        bytes: u64,
        streams: u16,
        depth: u64,
        times: u64,
    ) -> Result<Vec<u64>, TransferError> {
        let share = bytes / u64::from(streams);
        let ends = self.streams.iter_mut().take(streams.into());
        let all = std::thread::scope(|scope| {
            let threads: Vec<_> = ends
                .map(|(stream, memory)| scope.spawn(move || move_all(stream, memory, share, depth, times)))
                .collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, io::Result<Vec<u64>>>| {
                thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread ended badly")))
            };
            threads.into_iter().map(join).collect::<io::Result<Vec<_>>>()
        });
        let mut all = all.map_err(TransferError::Raw)?;
        Ok(all.pop().unwrap_or_default())
    }
}

fn move_all(
    stream: &mut TcpStream,
    memory: &mut [u8],
    share: u64,
    depth: u64,
    times: u64,
) -> io::Result<Vec<u64>> {
    let mut request = [0; REQUEST_BYTES];
    request[..8].copy_from_slice(&share.to_le_bytes());
    let mut asked = std::collections::VecDeque::new();
    let (mut sent, mut nanos) = (0, Vec::with_capacity(times as usize));
    for _ in 0..times {
        while sent < times && (asked.len() as u64) < depth {
            asked.push_back(Instant::now());
            stream.write_all(&request)?;
            sent += 1;
        }
        stream.read_exact(&mut memory[..share as usize])?;
        if let Some(begun) = asked.pop_front() {
            nanos.push(begun.elapsed().as_nanos() as u64);
        }
    }
    Ok(nanos)
}
