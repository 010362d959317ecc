//! A worker's connection to its node: reports go up, commands come down.

use crate::fault::{Code, Fault};
use crate::segments::{Segments, lock};
use dflow_proto::ids::{Extent, SegmentId};
use dflow_proto::link::{Command, Invoke, Report};
use dflow_shm::PushError;
use dflow_shm::futex::Bell;
use dflow_shm::link::{Commands, NodePage, Reports, WorkerEnd};
use dflow_shm::pass::Channel;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// A node that does not empty a worker's ring for this long is gone or hangs.
const FULL_TIMEOUT: Duration = Duration::from_secs(60);
/// A wait for memory shorter than this is not worth giving the CPU token back for.
const SHORT_WAIT: Duration = Duration::from_millis(1);
/// Sleepers look around this often though nobody wakes them.
pub(crate) const LONG_WAIT: Duration = Duration::from_secs(10);

/// Whether the node must look at a report now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// Wake it.
    Now,
    /// Wake it if someone waits for a CPU token.
    IfTokensWanted,
    /// With the next one.
    Later,
}

#[derive(Debug)]
struct Inbox {
    commands: Commands,
    retired: bool,
    next_ticket: u32,
}

/// The connection; shared by all threads of the function.
#[derive(Debug)]
pub(crate) struct Node {
    reports: Mutex<Reports>,
    inbox: Mutex<Inbox>,
    page: NodePage,
    bell: Bell,
    pub(crate) segments: Segments,
}

impl Node {
    /// Takes up the connection with the descriptors of a fork, once segment 0 is here.
    pub(crate) fn connect(link: OwnedFd, socket: Channel, bell: OwnedFd) -> Result<Node, Fault> {
        let end = WorkerEnd::attach(link).map_err(|e| Fault::new(Code::Node, e.to_string()))?;
        let segments = Segments::new(socket);
        let main = segments.read(SegmentId(0))?;
        let page = NodePage::attach(&main).map_err(|e| Fault::new(Code::Node, e.to_string()))?;
        Ok(Node {
            reports: Mutex::new(end.reports),
            inbox: Mutex::new(Inbox { commands: end.commands, retired: false, next_ticket: 1 }),
            page,
            bell: Bell::from_fd(bell),
            segments,
        })
    }

    /// Sends a report; waits while the ring is full.
    pub(crate) fn report(&self, report: &Report, urgency: Urgency) -> Result<(), Fault> {
        let mut end = None;
        loop {
            let pushed = lock(&self.reports).push(report);
            match pushed {
                Ok(()) => break,
                Err(PushError::Full) => {
                    self.page.ring(&self.bell);
                    if Instant::now() > *end.get_or_insert_with(|| Instant::now() + FULL_TIMEOUT) {
                        return Err(Fault::new(Code::Node, "the node has not taken a report for a minute"));
                    }
                    std::thread::sleep(Duration::from_micros(50));
                }
                Err(error) => return Err(Fault::new(Code::Node, error.to_string())),
            }
        }
        match urgency {
            Urgency::Now => self.page.ring(&self.bell),
            Urgency::IfTokensWanted => self.page.ring_if_tokens_wanted(&self.bell),
            Urgency::Later => {}
        }
        Ok(())
    }

    /// The next invocation, `None` if there will be none.
    pub(crate) fn next(&self) -> Result<Option<Invoke>, Fault> {
        let mut inbox = lock(&self.inbox);
        while !inbox.retired {
            match inbox.receive(0, LONG_WAIT)? {
                Some(Command::Invoke(invoke)) => return Ok(Some(invoke)),
                Some(Command::Retire) => inbox.retired = true,
                // The answer to a request of an invocation that ended before it came.
                Some(Command::Granted { extent, .. }) => {
                    self.report(&Report::Unused { extent }, Urgency::Now)?;
                }
                Some(Command::Refused { .. }) | None => {}
            }
        }
        Ok(None)
    }

    /// Asks for memory and waits for it. If that takes long and `yields` says so, the CPU token goes
    /// back meanwhile.
    pub(crate) fn request(
        &self,
        ask: impl FnOnce(&Node, u32) -> Result<Report, Fault>,
        spin_us: u32,
        yields: bool,
    ) -> Result<Extent, Fault> {
        // Holding the lock for the whole exchange makes other threads' requests queue here.
        let mut inbox = lock(&self.inbox);
        let ticket = inbox.next_ticket;
        inbox.next_ticket = ticket.wrapping_add(1);
        let report = ask(self, ticket)?;
        self.report(&report, Urgency::Now)?;
        let answer = match inbox.answer(ticket, spin_us, SHORT_WAIT)? {
            Some(answer) => answer,
            None => {
                if yields {
                    self.report(&Report::Blocked, Urgency::IfTokensWanted)?;
                }
                let answer = loop {
                    match inbox.answer(ticket, 0, LONG_WAIT) {
                        Ok(Some(answer)) => break Ok(answer),
                        Ok(None) => {}
                        Err(fault) => break Err(fault),
                    }
                };
                if yields {
                    self.report(&Report::Resumed, Urgency::IfTokensWanted)?;
                }
                answer?
            }
        };
        answer.map_err(|why| Fault::new(Code::NoMemory, why))
    }
}

impl Inbox {
    fn receive(&mut self, spin_us: u32, timeout: Duration) -> Result<Option<Command>, Fault> {
        self.commands.receive(spin_us, timeout).map_err(|e| Fault::new(Code::Node, e.to_string()))
    }

    /// The answer to a request, if it comes in time.
    fn answer(
        &mut self,
        ticket: u32,
        spin_us: u32,
        timeout: Duration,
    ) -> Result<Option<Result<Extent, String>>, Fault> {
        let end = Instant::now() + timeout;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.receive(spin_us, left)? {
                Some(Command::Granted { ticket: t, extent }) if t == ticket => return Ok(Some(Ok(extent))),
                Some(Command::Refused { ticket: t, why }) if t == ticket => return Ok(Some(Err(why))),
                Some(Command::Retire) => self.retired = true,
                Some(_) => return Err(Fault::new(Code::Node, "the node answered what was not asked")),
                None if left.is_zero() => return Ok(None),
                None => {}
            }
        }
    }
}
