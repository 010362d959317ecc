//! What the two ends do over their queue pair: objects, and orders about them.

use super::super::{PATIENCE_MS, TransferError, content, cpu_seconds};
use super::{Mode, Place};
use dflow_dataplane::transport::rdma::bare::{
    Bare, BareError, News, PIECE_BYTES, REQUESTS_MAX, Reach, SENT_BYTES_MAX,
};
use dflow_shm::segment::Map;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often a sleeping end looks whether it is to end.
const LOOK: Duration = Duration::from_millis(200);
/// As long as what a transport announces an object by.
const ANNOUNCEMENT_BYTES: usize = 96;
/// Work requests that are kept free for orders and announcements.
const SPARE: usize = 4;
/// What the last piece of an object says.
const LAST: u32 = 1;
const NOT_LAST: u32 = 0;

/// What the measuring end asks for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// The window that it grants; the answer is the other's.
    Hello { window: Option<Place> },
    /// Take so many objects, and give each back.
    Echo { mode: Mode, bytes: u64, times: u64 },
    /// Take so many objects, and say so.
    Take { mode: Mode, bytes: u64, times: u64 },
    /// Processor time used until now.
    Cpu,
    /// Forget what was brought.
    Clear,
    /// Compare what was brought.
    Check { bytes: u64 },
    /// It is over.
    Done,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    Hello { window: Option<Place> },
    Yes,
    Cpu { seconds: f64 },
    Wrong { why: String },
}

/// An end of a queue pair.
pub(super) struct Duel {
    bare: Bare,
    target: Arc<Map>,
    stop: Arc<AtomicBool>,
    readable: Option<Reach>,
    window: Option<Reach>,
    /// What came while something else was waited for.
    early: VecDeque<News>,
    /// Requests that were done.
    done: u64,
}

impl Duel {
    pub(super) fn new(bare: Bare, target: Arc<Map>, stop: Arc<AtomicBool>) -> Duel {
        Duel { bare, target, stop, readable: None, window: None, early: VecDeque::new(), done: 0 }
    }

    pub(super) fn connect(&mut self, end: &[u8], readable: Reach) -> Result<(), TransferError> {
        self.readable = Some(readable);
        Ok(self.bare.connect(end)?)
    }

    /// Objects of that size that fit into the queue at a time.
    pub(super) fn depth_max(&self, bytes: u64) -> u64 {
        let room = (REQUESTS_MAX - SPARE) as u64;
        (room / bytes.div_ceil(SENT_BYTES_MAX as u64).max(1)).max(1)
    }

    /// Opens and closes a window: nanoseconds of each.
    pub(super) fn window_times(&mut self, times: usize) -> Result<Option<[Vec<u64>; 2]>, TransferError> {
        let mut nanos = [Vec::new(), Vec::new()];
        let bytes = self.target.bytes();
        for _ in 0..times {
            let begun = Instant::now();
            match self.bare.grant(0, bytes) {
                Err(BareError::NoWindows) => return Ok(None),
                granted => granted?,
            };
            self.settle()?;
            nanos[0].push(begun.elapsed().as_nanos() as u64);
            let begun = Instant::now();
            self.bare.revoke()?;
            self.settle()?;
            nanos[1].push(begun.elapsed().as_nanos() as u64);
        }
        Ok(Some(nanos))
    }

    /// Grants the target to the other end, if the card can.
    fn own_window(&mut self) -> Result<Option<Place>, TransferError> {
        match self.bare.grant(0, self.target.bytes()) {
            Ok(reach) => {
                self.settle()?;
                Ok(Some(reach.into()))
            }
            Err(BareError::NoWindows) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Tells the other end of this one's window, and is told.
    pub(super) fn greet(&mut self) -> Result<(), TransferError> {
        let window = self.own_window()?;
        self.order(&Order::Hello { window })?;
        match self.reply()? {
            Reply::Hello { window } => {
                self.window = window.map(Reach::from);
                Ok(())
            }
            other => Err(TransferError::Peer(format!("{other:?}"))),
        }
    }

    pub(super) fn order(&mut self, order: &Order) -> Result<(), TransferError> {
        self.say(order)
    }

    /// The answer to an order.
    pub(super) fn reply(&mut self) -> Result<Reply, TransferError> {
        match self.hear()? {
            Reply::Wrong { why } => Err(TransferError::Peer(why)),
            reply => Ok(reply),
        }
    }

    fn say(&mut self, what: &impl Serialize) -> Result<(), TransferError> {
        let message = serde_json::to_vec(what).map_err(|e| TransferError::Peer(e.to_string()))?;
        self.make_room(0)?;
        Ok(self.bare.say(message)?)
    }

    fn hear<T: for<'a> Deserialize<'a>>(&mut self) -> Result<T, TransferError> {
        loop {
            match self.next()? {
                News::Message(received) => {
                    let text = self.bare.text(&received);
                    self.bare.give_back(received)?;
                    return serde_json::from_slice(&text).map_err(|e| TransferError::Peer(e.to_string()));
                }
                News::Done => {}
                News::Written(_) => return Err(TransferError::Peer("it writes unasked".into())),
            }
        }
    }

    /// What happens next.
    fn next(&mut self) -> Result<News, TransferError> {
        match self.early.pop_front() {
            Some(news) => Ok(news),
            None => self.fresh(),
        }
    }

    fn fresh(&mut self) -> Result<News, TransferError> {
        let until = Instant::now() + Duration::from_millis(PATIENCE_MS);
        while !self.stop.load(Ordering::Acquire) {
            if let Some(news) = self.bare.next(LOOK)? {
                self.done += u64::from(matches!(news, News::Done));
                return Ok(news);
            }
            if Instant::now() > until {
                return Err(TransferError::Peer(format!("nothing came for {PATIENCE_MS} ms")));
            }
        }
        Err(TransferError::Peer("it is gone".into()))
    }

    /// Waits until `done` holds, and keeps what comes meanwhile for later.
    fn wait(&mut self, done: impl Fn(&Bare) -> bool) -> Result<(), TransferError> {
        while !done(&self.bare) {
            self.step()?;
        }
        Ok(())
    }

    /// Takes one thing that happens; keeps it for later unless a request is done.
    fn step(&mut self) -> Result<(), TransferError> {
        match self.fresh()? {
            News::Done => {}
            other => self.early.push_back(other),
        }
        Ok(())
    }

    /// Waits until the queue takes more than `spare` requests.
    fn make_room(&mut self, spare: usize) -> Result<(), TransferError> {
        self.wait(|bare| bare.under_way() + spare < REQUESTS_MAX)
    }

    /// Waits until all requests are done.
    pub(super) fn settle(&mut self) -> Result<(), TransferError> {
        self.wait(|bare| bare.under_way() == 0)
    }

    /// Brings an object to the other end, or tells it to read it.
    pub(super) fn put(&mut self, mode: Mode, bytes: usize) -> Result<(), TransferError> {
        match mode {
            Mode::Read => {
                self.make_room(0)?;
                Ok(self.bare.say(vec![0; ANNOUNCEMENT_BYTES])?)
            }
            Mode::Write | Mode::Send => self.push(mode, bytes),
        }
    }

    fn push(&mut self, mode: Mode, bytes: usize) -> Result<(), TransferError> {
        let piece = if mode == Mode::Write { PIECE_BYTES } else { SENT_BYTES_MAX };
        for at in (0..bytes).step_by(piece) {
            let (n, last) = (piece.min(bytes - at), at + piece >= bytes);
            self.make_room(SPARE)?;
            match mode {
                Mode::Write => {
                    let window = self.window.ok_or(BareError::NoWindows)?;
                    self.bare.write(window, at as u64, at, n, last.then_some(LAST))?;
                }
                _ => self.bare.send(at, n, if last { LAST } else { NOT_LAST })?,
            }
        }
        Ok(())
    }

    fn pull(&mut self, bytes: usize) -> Result<(), TransferError> {
        let from = self.readable.ok_or_else(|| TransferError::Peer("it says nowhere what to read".into()))?;
        for at in (0..bytes).step_by(PIECE_BYTES) {
            self.make_room(SPARE)?;
            self.bare.read(from, at as u64, at, PIECE_BYTES.min(bytes - at))?;
        }
        Ok(())
    }

    /// Waits until an object is in place here.
    pub(super) fn get(&mut self, mode: Mode, bytes: usize) -> Result<(), TransferError> {
        let mut at = 0;
        loop {
            match (mode, self.next()?) {
                (_, News::Done) => {}
                (Mode::Read, News::Message(received)) => {
                    self.bare.give_back(received)?;
                    self.pull(bytes)?;
                    return self.settle();
                }
                (Mode::Write, News::Written(LAST)) => return Ok(()),
                (Mode::Send, News::Message(received)) if at + received.bytes <= bytes => {
                    let (n, last) = (received.bytes, received.word == Some(LAST));
                    self.bare.place(received, at)?;
                    at += n;
                    if last {
                        return Ok(());
                    }
                }
                (_, news) => return Err(TransferError::Peer(format!("{news:?} instead of an object"))),
            }
        }
    }

    /// Reads, writes or sends `times` objects, `depth` at a time.
    pub(super) fn flood(
        &mut self,
        mode: Mode,
        bytes: usize,
        times: u64,
        depth: u64,
    ) -> Result<(), TransferError> {
        let piece = if mode == Mode::Send { SENT_BYTES_MAX } else { PIECE_BYTES };
        let pieces = bytes.div_ceil(piece) as u64;
        let before = self.done;
        for begun in 0..times {
            while begun - (self.done - before) / pieces >= depth {
                self.step()?;
            }
            match mode {
                Mode::Read => self.pull(bytes)?,
                Mode::Write | Mode::Send => self.push(mode, bytes)?,
            }
        }
        self.settle()
    }

    pub(super) fn clear(&self) -> Result<(), TransferError> {
        content::clear(&self.target)
    }

    pub(super) fn check(&self, bytes: u64) -> Result<(), TransferError> {
        content::check(&self.target, 0, bytes)
    }

    /// Does what the other end asks for, until it is done.
    pub(super) fn obey(&mut self) -> Result<(), TransferError> {
        loop {
            let answer = match self.hear()? {
                Order::Hello { window } => {
                    self.window = window.map(Reach::from);
                    Reply::Hello { window: self.own_window()? }
                }
                Order::Echo { mode, bytes, times } => {
                    self.say(&Reply::Yes)?;
                    for _ in 0..times {
                        self.get(mode, bytes as usize)?;
                        self.put(mode, bytes as usize)?;
                    }
                    continue;
                }
                Order::Take { mode, bytes, times } => {
                    self.say(&Reply::Yes)?;
                    for _ in 0..times {
                        self.get(mode, bytes as usize)?;
                    }
                    Reply::Yes
                }
                Order::Cpu => Reply::Cpu { seconds: cpu_seconds() },
                Order::Clear => self.clear().map_or_else(wrong, |()| Reply::Yes),
                Order::Check { bytes } => self.check(bytes).map_or_else(wrong, |()| Reply::Yes),
                Order::Done => return self.settle(),
            };
            self.say(&answer)?;
        }
    }
}

fn wrong(error: TransferError) -> Reply {
    Reply::Wrong { why: error.to_string() }
}
