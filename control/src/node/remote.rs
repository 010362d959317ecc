//! The client of a baseline's remote store: real bytes over a real socket, by threads of their own.
//!
//! It speaks as much of the Redis protocol as that takes. Each thread has one connection, made when
//! first needed and made anew after an error; every socket operation has a deadline.

use super::baseline::Baseline;
use super::engine::{Request, Requests};
use super::pool::Job;
use bytes::Bytes;
use crossbeam::channel::{Receiver, Sender, bounded};
use dflow_proto::ObjectKey;
use dflow_proto::store::Lease;
use std::io::{self, BufRead, BufReader, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Connections of a node; as many errands are under way at one time.
const THREADS: usize = 16;
/// Errands that may queue.
const ERRANDS_MAX: usize = 1 << 16;
/// A store that says nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(20);
/// What has been fetched is taken from the socket in pieces of this. Bytes.
const PIECE_BYTES: usize = 256 << 10;
/// Keys deleted by one command.
const KEYS_MAX: usize = 1000;

/// Why the remote store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum RemoteError {
    #[error("no remote store answers at {at}: {source}; it has ended or the link is down")]
    Connect { at: SocketAddr, source: io::Error },
    #[error("the remote store at {at} broke off: {source}; it has ended, is too slow, or the link is down")]
    Broken { at: SocketAddr, source: io::Error },
    #[error("the remote store at {at} refuses: {message}")]
    Refused { at: SocketAddr, message: String },
    #[error("the remote store at {at} has lost {key}; it must keep all that is put until it is deleted")]
    Lost { at: SocketAddr, key: String },
    #[error("the remote store at {at} gave {have_bytes} bytes of {key}, {want_bytes} were put")]
    Length { at: SocketAddr, key: String, have_bytes: u64, want_bytes: u64 },
}

/// What a thread is to do.
pub(super) enum Errand {
    /// Before an attempt starts: the trigger's way, and the inputs that are elsewhere.
    Fetch { job: Job, attempt: u32, trigger: bool, objects: Vec<(ObjectKey, u64)> },
    /// Before an attempt counts as ended: its outputs. They are leased until the answer.
    Store { job: Job, attempt: u32, objects: Vec<(ObjectKey, Bytes, Lease)> },
    /// After a run.
    Delete(Vec<ObjectKey>),
}

/// An errand is done.
pub(super) struct Done {
    pub(super) job: Job,
    pub(super) attempt: u32,
    /// It was [`Errand::Store`], and these leases have had their time.
    pub(super) stored: Option<Vec<Lease>>,
    pub(super) result: Result<(), RemoteError>,
}

/// The threads. They end when this is dropped and what they are at is done.
pub(super) struct Remote {
    pub(super) baseline: Arc<Baseline>,
    queue: Sender<Errand>,
}

impl Remote {
    pub(super) fn start(baseline: Arc<Baseline>, requests: &Requests) -> io::Result<Self> {
        let (queue, errands) = bounded(ERRANDS_MAX);
        /// Nodes number their runs alike, and several may share a store.
        static NODES: AtomicU32 = AtomicU32::new(0);
        let node = NODES.fetch_add(1, Ordering::Relaxed);
        for _ in 0..THREADS {
            let (baseline, errands, requests) = (baseline.clone(), errands.clone(), requests.clone());
            let thread = std::thread::Builder::new().name("dflow-remote".into());
            thread.spawn(move || serve(node, &baseline, &errands, &requests))?;
        }
        Ok(Remote { baseline, queue })
    }

    /// Queues an errand; `false` if too many wait.
    pub(super) fn send(&self, errand: Errand) -> bool {
        self.queue.try_send(errand).is_ok()
    }
}

fn serve(node: u32, baseline: &Baseline, errands: &Receiver<Errand>, requests: &Requests) {
    let mut line = Line { node, at: baseline.remote, stream: None, piece: vec![0; PIECE_BYTES] };
    if let Some(lab) = &baseline.lab
        && let Err(error) = lab.enter_thread(0)
    {
        // Its errands fail then, since nobody answers at that address here.
        tracing::warn!(%error, "a thread of a baseline is not in its network");
    }
    for errand in errands {
        let done = match errand {
            Errand::Fetch { job, attempt, trigger, objects } => {
                let result = line.tried(|line| fetch(line, baseline, trigger, &objects));
                Done { job, attempt, stored: None, result }
            }
            Errand::Store { job, attempt, objects } => {
                let result = line.tried(|line| {
                    objects.iter().try_for_each(|(key, bytes, _)| {
                        baseline.traffic.stored(bytes.len() as u64);
                        let name = line.name(*key);
                        line.put(&name, bytes)
                    })
                });
                let leases = objects.into_iter().map(|(_, bytes, lease)| {
                    drop(bytes);
                    lease
                });
                Done { job, attempt, stored: Some(leases.collect()), result }
            }
            Errand::Delete(keys) => {
                let names: Vec<_> = keys.into_iter().map(|key| line.name(key)).collect();
                let result =
                    names.chunks(KEYS_MAX).try_for_each(|names| line.tried(|line| line.delete(names)));
                if let Err(error) = result {
                    tracing::warn!(%error, "objects of a run are left in the remote store");
                }
                continue;
            }
        };
        if requests.send(Request::Remote(done)).is_err() {
            return;
        }
    }
}

fn fetch(
    line: &mut Line,
    baseline: &Baseline,
    trigger: bool,
    objects: &[(ObjectKey, u64)],
) -> Result<(), RemoteError> {
    if trigger {
        baseline.traffic.triggered();
        line.ping()?;
    }
    for (key, bytes) in objects {
        let name = line.name(*key);
        line.take(&name, *bytes)?;
        baseline.traffic.fetched(*bytes);
    }
    Ok(())
}

/// One connection.
struct Line {
    /// Which of the nodes of this process it is for.
    node: u32,
    at: SocketAddr,
    stream: Option<BufReader<TcpStream>>,
    piece: Vec<u8>,
}

impl Line {
    /// An object's name in the store.
    fn name(&self, key: ObjectKey) -> String {
        let (node, run) = (self.node, key.run.0);
        format!("{node}/{run}/{}/{}/{}/{}", key.invocation.step, key.invocation.item, key.port, key.item)
    }

    /// Does something on the connection, which is closed if that fails half-way.
    fn tried(&mut self, act: impl FnOnce(&mut Self) -> Result<(), RemoteError>) -> Result<(), RemoteError> {
        let result = self.open().and_then(|()| act(self));
        if result.is_err() {
            self.stream = None;
        }
        result
    }

    fn open(&mut self) -> Result<(), RemoteError> {
        if self.stream.is_some() {
            return Ok(());
        }
        let at = self.at;
        let connect = || {
            let stream = TcpStream::connect_timeout(&at, SILENCE)?;
            stream.set_read_timeout(Some(SILENCE))?;
            stream.set_write_timeout(Some(SILENCE))?;
            stream.set_nodelay(true)?;
            Ok(BufReader::new(stream))
        };
        self.stream = Some(connect().map_err(|source| RemoteError::Connect { at, source })?);
        Ok(())
    }

    fn stream(&mut self) -> Result<&mut BufReader<TcpStream>, RemoteError> {
        let gone = || RemoteError::Connect { at: self.at, source: io::ErrorKind::NotConnected.into() };
        self.stream.as_mut().ok_or_else(gone)
    }

    /// Sends a command whose last word may be long.
    fn command(&mut self, words: &[&str], last: &[u8]) -> Result<(), RemoteError> {
        let mut head = format!("*{}\r\n", words.len() + 1);
        words.iter().for_each(|word| head.push_str(&format!("${}\r\n{word}\r\n", word.len())));
        head.push_str(&format!("${}\r\n", last.len()));
        let at = self.at;
        let stream = self.stream()?.get_mut();
        let slices = &mut [IoSlice::new(head.as_bytes()), IoSlice::new(last), IoSlice::new(b"\r\n")][..];
        write_all(stream, slices).map_err(|source| RemoteError::Broken { at, source })
    }

    /// The first line of an answer, without its end.
    fn answer(&mut self) -> Result<String, RemoteError> {
        let at = self.at;
        let mut line = Vec::new();
        let read = self.stream()?.take(1024).read_until(b'\n', &mut line);
        read.map_err(|source| RemoteError::Broken { at, source })?;
        let Some(text) = line.strip_suffix(b"\r\n") else {
            return Err(RemoteError::Broken { at, source: io::ErrorKind::UnexpectedEof.into() });
        };
        let text = String::from_utf8_lossy(text).into_owned();
        match text.strip_prefix('-') {
            Some(message) => Err(RemoteError::Refused { at, message: message.into() }),
            None => Ok(text),
        }
    }

    fn ping(&mut self) -> Result<(), RemoteError> {
        self.command(&[], b"PING")?;
        self.answer().map(drop)
    }

    fn put(&mut self, key: &str, bytes: &[u8]) -> Result<(), RemoteError> {
        self.command(&["SET", key], bytes)?;
        self.answer().map(drop)
    }

    /// Receives an object of `want_bytes`; its bytes are those that the node has already.
    fn take(&mut self, key: &str, want_bytes: u64) -> Result<(), RemoteError> {
        self.command(&["GET"], key.as_bytes())?;
        let head = self.answer()?;
        let at = self.at;
        let have_bytes = head.strip_prefix('$').and_then(|n| n.parse::<i64>().ok());
        match have_bytes {
            Some(-1) => return Err(RemoteError::Lost { at, key: key.into() }),
            Some(have) if have as u64 == want_bytes => {}
            Some(have) => {
                return Err(RemoteError::Length { at, key: key.into(), have_bytes: have as u64, want_bytes });
            }
            None => {
                return Err(RemoteError::Refused { at, message: format!("not an answer to GET: {head}") });
            }
        }
        let mut piece = std::mem::take(&mut self.piece);
        let mut left = want_bytes as usize + 2;
        let mut result = Ok(());
        while left > 0 && result.is_ok() {
            let part = left.min(piece.len());
            result = self.stream()?.read_exact(&mut piece[..part]);
            left -= part;
        }
        self.piece = piece;
        result.map_err(|source| RemoteError::Broken { at, source })
    }

    fn delete(&mut self, keys: &[String]) -> Result<(), RemoteError> {
        let Some((last, rest)) = keys.split_last() else { return Ok(()) };
        let words: Vec<&str> = std::iter::once("DEL").chain(rest.iter().map(String::as_str)).collect();
        self.command(&words, last.as_bytes())?;
        self.answer().map(drop)
    }
}

fn write_all(stream: &mut TcpStream, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    while !slices.is_empty() {
        match stream.write_vectored(slices) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut slices, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
