//! A courier in a thread of its own.
//!
//! The engine may wait for this thread to take a command; this thread never waits for the engine. While the
//! engine does not take what it is told, the transport is not polled, so that pressure reaches the peers.

use super::courier::{Courier, Gone};
use super::{Command, NetEvent};
use crate::node::cluster::ClusterConfig;
use crossbeam::channel::{Receiver, Sender, TryRecvError, TrySendError, bounded};
use dflow_dataplane::transport::{OpenError, Wake};
use dflow_shm::segment::Map;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Commands that may queue; the engine waits when there are more.
const COMMANDS_MAX: usize = 16 << 10;
/// Events that may queue for the engine.
const EVENTS_MAX: usize = 4 << 10;
/// How soon an engine that does not take its events is offered them again.
const OFFER_AGAIN: Duration = Duration::from_millis(1);

/// The engine's end.
pub(super) struct Apart {
    commands: Sender<Command>,
    pub(super) events: Receiver<NetEvent>,
    waker: Arc<dyn Wake>,
    /// Commands were given since the thread was last woken.
    unrung: bool,
    thread: Option<JoinHandle<()>>,
}

impl Apart {
    /// Starts the thread; answers also where peers reach this node. `doorbell` wakes the engine.
    pub(super) fn start(
        config: &ClusterConfig,
        main: Arc<Map>,
        doorbell: Arc<OwnedFd>,
        spin_us: u32,
    ) -> Result<(Apart, Option<SocketAddr>), OpenError> {
        let (commands, inbox) = bounded(COMMANDS_MAX);
        let (outbox, events) = bounded(EVENTS_MAX);
        let (ready, opened) = bounded(1);
        let config = config.clone();
        let thread = std::thread::Builder::new()
            .name("dflow-net".into())
            .spawn(move || match Courier::open(&config, main, spin_us) {
                Err(error) => drop(ready.send(Err(error))),
                Ok(courier) => {
                    let _ = ready.send(Ok((courier.waker(), courier.address())));
                    Thread { courier, inbox, outbox, doorbell }.run();
                }
            })
            .map_err(|source| OpenError::Os { what: "start the network thread", source })?;
        let gone = || OpenError::Os {
            what: "start the network thread",
            source: std::io::Error::other("it ended at once"),
        };
        let (waker, address) = opened.recv().map_err(|_| gone())??;
        Ok((Apart { commands, events, waker, unrung: false, thread: Some(thread) }, address))
    }

    /// Queues a command; waits while the queue is full.
    pub(super) fn command(&mut self, command: Command) {
        self.unrung = true;
        match self.commands.try_send(command) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => {}
            Err(TrySendError::Full(command)) => {
                self.waker.wake();
                // A thread that is gone needs no command.
                let _ = self.commands.send(command);
            }
        }
    }

    /// Wakes the thread if it was given something to do.
    pub(super) fn ring(&mut self) {
        if std::mem::take(&mut self.unrung) {
            self.waker.wake();
        }
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        self.command(Command::Stop);
        self.ring();
        if let Some(thread) = self.thread.take() {
            // Its panic, if that is how it ended, has been printed.
            let _ = thread.join();
        }
    }
}

struct Thread {
    courier: Courier,
    inbox: Receiver<Command>,
    outbox: Sender<NetEvent>,
    doorbell: Arc<OwnedFd>,
}

impl Thread {
    fn run(mut self) {
        loop {
            loop {
                match self.inbox.try_recv() {
                    Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return,
                    Ok(command) => self.courier.command(command),
                    Err(TryRecvError::Empty) => break,
                }
            }
            self.offer();
            if !self.courier.events.is_empty() {
                std::thread::sleep(OFFER_AGAIN);
                continue;
            }
            if let Err(Gone) = self.courier.poll(Duration::MAX) {
                return self.linger();
            }
        }
    }

    /// Without a network there is only the engine left to tell.
    fn linger(mut self) {
        while !self.courier.events.is_empty() {
            self.offer();
            std::thread::sleep(OFFER_AGAIN);
            if matches!(self.inbox.try_recv(), Ok(Command::Stop) | Err(TryRecvError::Disconnected)) {
                return;
            }
        }
    }

    /// Gives the engine what it has room for, and rings.
    fn offer(&mut self) {
        let events = &mut self.courier.events;
        let before = events.len();
        while let Some(event) = events.pop_front() {
            match self.outbox.try_send(event) {
                Ok(()) => {}
                Err(TrySendError::Full(event)) => {
                    events.push_front(event);
                    break;
                }
                // An engine that is gone is about to end this thread, too.
                Err(TrySendError::Disconnected(_)) => events.clear(),
            }
        }
        if events.len() < before {
            // A doorbell that overflows is ringing already.
            let _ = rustix::io::write(&*self.doorbell, &1u64.to_ne_bytes());
        }
    }
}
