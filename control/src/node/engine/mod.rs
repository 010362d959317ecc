//! The engine: one thread that owns the scheduler, the store and the pools.
//!
//! It sleeps in `select`, which only waits; everything that changes state is a plain call in
//! `turn`, in a fixed order: requests, function processes, clock, then events until none is left.

mod aside;
mod cluster;
mod dispatch;
mod effects;
mod inputs;
mod memory;
mod reports;
mod runs;
mod strict;
mod values;

use super::cluster::PeerConfig;
use super::config::NodeConfig;
use super::error::StartError;
use super::logs::{LogLines, Logs};
use super::pool::{PoolId, Pools};
use super::remote::Remote;
use super::spill::Spiller;
use super::view::{PeerView, PoolView, Transfer, Watch};
use super::watchdog::Watchdog;
use super::{Done, NodeStats};
use crate::workflow::Workflow;
use crossbeam::channel::{Receiver, Sender, TryRecvError, bounded};
use dflow_core::placement::Load;
use dflow_core::scheduler::{Capacity, Effect, Event, Outcome, Scheduler};
use dflow_dataplane::LocalStore;
use dflow_proto::ids::Extent;
use dflow_proto::link::Times;
use dflow_proto::store::{Lease, Listed, Owner, Ticket};
use dflow_proto::{InvocationId, RunId, SegmentId, Tick, WorkerId};
use dflow_shm::lookout::Lookout;
use dflow_shm::page::PageNode;
use rustix::event::{EventfdFlags, epoll, eventfd};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::stage::StageGrant;
pub(super) use cluster::Submission;
use cluster::{Cluster, Shared, StandIn};
use memory::Waiter;

/// Requests that may queue; a program that submits faster than the engine takes is held back.
const REQUESTS_MAX: usize = 1024;
/// The doorbell's mark in epoll; other marks are those of the pools' sockets.
const DOORBELL: u64 = u64::MAX;
/// While there is other work, descriptors are asked once in so many turns: what they tell of is rare.
const UNASKED_MAX: u32 = 16;
/// Longest sleep, so that idle pools are looked at now and then.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// What a program asks of the engine.
pub(super) enum Request {
    /// Name a new run and keep memory for its inputs under that name.
    Open { reply: Sender<RunId> },
    /// Memory for one input of an opened run.
    Stage { run: RunId, bytes: u64, file: bool, reply: Sender<StageGrant> },
    /// Begin an opened run.
    Submit(Submission),
    /// Another node of the cluster.
    Peer(PeerConfig),
    /// All nodes of the cluster.
    Peers { reply: Sender<Vec<PeerView>> },
    /// Objects that have come from other nodes since this was asked for.
    Transfers { reply: Sender<Vec<Transfer>> },
    /// Forget an opened run that could not begin, or the outputs of one that has ended.
    Forget { run: RunId },
    /// End a run.
    Cancel { run: RunId, reason: String },
    /// The watchdog found a function that uses too much memory.
    OverMemory { worker: WorkerId, used_bytes: u64, limit_bytes: u64 },
    /// A spill job is done.
    Spilled(super::spill::Done),
    /// The remote store of a baseline has answered.
    Remote(super::remote::Done),
    /// End all function processes that are idle, and their fork servers.
    Cool { reply: Sender<()> },
    /// Numbers.
    Stats { reply: Sender<NodeStats> },
    /// The pools.
    Pools { reply: Sender<Vec<PoolView>> },
    /// Some of the objects, of one run or of all.
    Objects { run: Option<RunId>, max: usize, reply: Sender<Vec<Listed>> },
    /// End everything.
    Shutdown,
}

/// The sending end: queue, then ring.
#[derive(Clone)]
pub(super) struct Requests {
    queue: Sender<Request>,
    doorbell: Arc<OwnedFd>,
}

/// The engine is gone.
#[derive(Debug)]
pub(super) struct Gone;

impl Requests {
    /// Queues a request; waits while the queue is full.
    pub(super) fn send(&self, request: Request) -> Result<(), Gone> {
        self.queue.send(request).map_err(|_| Gone)?;
        // A doorbell that overflows is ringing already.
        let _ = rustix::io::write(&*self.doorbell, &1u64.to_ne_bytes());
        Ok(())
    }
}

impl From<Gone> for super::error::SubmitError {
    fn from(_: Gone) -> Self {
        super::error::SubmitError::NodeGone
    }
}

/// What the engine knows of a run beyond what the scheduler does.
struct RunState {
    workflow: Arc<Workflow>,
    watch: Watch,
    /// The pool of each function.
    pools: Vec<PoolId>,
    /// JSON lists that foreach steps iterate.
    lists: BTreeMap<u32, values::JsonList>,
    /// Bytes the last invocation of each step wrote, as a hint for the next one's allotment.
    wrote: Vec<u64>,
    done: Option<Done>,
    /// Leases of outputs that the program still looks at.
    outputs: Vec<Lease>,
    /// Its other nodes; `None` if it lies here alone.
    shared: Option<Box<Shared>>,
    /// What is left of it to be done here, as far as is known.
    load: Load,
}

/// One attempt between its start and its end.
struct Attempt {
    attempt: u32,
    phase: Phase,
    /// It had to wait for a process.
    cold: bool,
    /// A kill is under way; its death is no crash.
    stopping: bool,
    /// It was killed for memory: bytes used, bytes allowed.
    over_memory: Option<(u64, u64)>,
    /// It was killed for breaking the protocol: how.
    misbehaved: Option<String>,
    blocked: bool,
    /// When its tables may be looked at again.
    fresh_until: Tick,
    /// Its first memory, whose first page is its page.
    allotment: Option<Extent>,
    page: Option<PageNode>,
    table: Option<inputs::InputTable>,
    times: Times,
    /// Segments besides the main one that its objects lie in.
    published: BTreeSet<SegmentId>,
    /// Its function may be hostile: see `strict`.
    strict: bool,
    /// Memory that only its process can write and nobody else is given.
    private: Vec<Extent>,
    /// Sealed outputs that wait for memory to be copied to, and how it ended meanwhile.
    copies: u32,
    finish: Option<Outcome>,
    aside: aside::Aside,
    /// Of an attempt that another node executes.
    stand_in: Option<Box<StandIn>>,
}

/// What an attempt waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Store memory.
    Memory(Ticket),
    /// A function process.
    Worker,
    /// Its end.
    Running(WorkerId),
    /// What another node, which executes it, makes known.
    Elsewhere,
}

impl Attempt {
    fn new(attempt: u32, strict: bool) -> Self {
        Attempt {
            attempt,
            strict,
            private: Vec::new(),
            published: BTreeSet::new(),
            copies: 0,
            finish: None,
            aside: aside::Aside::default(),
            stand_in: None,
            phase: Phase::Worker,
            cold: false,
            stopping: false,
            over_memory: None,
            misbehaved: None,
            blocked: false,
            fresh_until: Tick(0),
            allotment: None,
            page: None,
            table: None,
            times: Times::default(),
        }
    }
}

/// The state of a node.
struct Engine {
    config: NodeConfig,
    origin: Instant,
    scheduler: Scheduler,
    store: LocalStore,
    pools: Pools,
    spiller: Option<Spiller>,
    /// Where a baseline keeps objects.
    remote: Option<Remote>,
    holds: aside::Holds,
    /// Other nodes; `None` if there are none.
    cluster: Option<Box<Cluster>>,
    runs: BTreeMap<RunId, RunState>,
    attempts: BTreeMap<(RunId, InvocationId), Attempt>,
    /// Who waits for which reservation.
    waiting: BTreeMap<Ticket, Waiter>,
    /// Questions that wait for an object to come back from disk, and the leases that bring it.
    parked: Vec<values::Parked>,
    restoring: Vec<Lease>,
    /// Table entries to be computed anew, and not before when.
    dirty: BTreeMap<(RunId, InvocationId, u16), Tick>,
    /// Attempts that are over, until the scheduler has had their readers' tables rewritten.
    retired: Vec<(Owner, bool, Attempt)>,
    /// Runs that are over and that nobody looks at.
    forgotten: Vec<RunId>,
    /// Scratch of `take_reports`.
    reporting: Vec<WorkerId>,
    events: VecDeque<Event>,
    effects: Vec<Effect>,
    requests: Receiver<Request>,
    sender: Requests,
    epoll: OwnedFd,
    lookout: Lookout,
    /// Turns since the descriptors were asked.
    unasked: u32,
    logs: Logs,
    watchdog: Watchdog,
    /// Since when reservations wait while nothing runs.
    stalled_since: Option<Tick>,
    next_run: u64,
    tokens_wanted: bool,
    stop: bool,
}

/// Starts the engine thread.
pub(super) fn start(
    config: NodeConfig,
) -> Result<(Requests, Option<SocketAddr>, LogLines, JoinHandle<()>), StartError> {
    let system = |what| move |source: std::io::Error| StartError::System { what, source };
    let doorbell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .map_err(|e| system("make an eventfd")(e.into()))?;
    let doorbell = Arc::new(doorbell);
    let (queue, requests) = bounded(REQUESTS_MAX);
    let sender = Requests { queue, doorbell };
    let logs = Logs::start().map_err(system("start the log thread"))?;
    let lines = logs.lines();
    let own = sender.clone();
    let watchdog = Watchdog::start(move |worker, used_bytes, limit_bytes| {
        // A node that is gone has no functions to hold to their limits.
        let _ = own.send(Request::OverMemory { worker, used_bytes, limit_bytes });
    })
    .map_err(system("start the watchdog thread"))?;
    if let Some(cluster) = &config.cluster {
        cluster.check()?;
    }
    let (ready, started) = bounded(1);
    let requests = (sender.clone(), requests);
    // Made where it runs: what it polls the network with is bound to its thread.
    let thread = std::thread::Builder::new()
        .name("dflow-engine".into())
        .spawn(move || match Engine::new(config, requests, logs, watchdog) {
            Err(error) => drop(ready.send(Err(error))),
            Ok(engine) => {
                let _ = ready.send(Ok(engine.cluster.as_ref().and_then(|cluster| cluster.net.address)));
                engine.run();
            }
        })
        .map_err(system("start the engine thread"))?;
    let gone = |_| system("start the engine thread")(std::io::Error::other("it ended at once"));
    let address = started.recv().map_err(gone)??;
    Ok((sender, address, lines, thread))
}

impl Engine {
    fn new(
        config: NodeConfig,
        (sender, requests): (Requests, Receiver<Request>),
        logs: Logs,
        watchdog: Watchdog,
    ) -> Result<Self, StartError> {
        let system =
            |what| move |source: rustix::io::Errno| StartError::System { what, source: source.into() };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(system("make an epoll set"))?;
        epoll::add(
            &epoll,
            sender.doorbell.as_fd(),
            epoll::EventData::new_u64(DOORBELL),
            epoll::EventFlags::IN,
        )
        .map_err(system("watch the doorbell"))?;
        let (store, spiller) = memory::open(&config, &sender)?;
        let remote = config.baseline.clone().map(|baseline| Remote::start(baseline, &sender)).transpose();
        let remote = remote
            .map_err(|source| StartError::System { what: "start the threads of a baseline", source })?;
        let cluster = config.cluster.clone().map(|cluster| {
            let main = store.arena().map().clone();
            Cluster::start(cluster, main, sender.doorbell.clone(), epoll.as_fd(), config.engine_spin_us)
                .map(Box::new)
        });
        let cluster = cluster.transpose()?;
        let next_run = config.cluster.as_ref().map_or(1, |cluster| cluster.first_run());
        let pools = Pools::new(&config, store.arena(), &epoll, sender.doorbell.clone(), logs.clone())?;
        Ok(Engine {
            scheduler: Scheduler::new(Capacity { cpu_milli: config.cpu_milli, slots: config.slots }),
            origin: Instant::now(),
            store,
            pools,
            spiller,
            remote,
            holds: aside::Holds::default(),
            cluster,
            runs: BTreeMap::new(),
            attempts: BTreeMap::new(),
            waiting: BTreeMap::new(),
            parked: Vec::new(),
            restoring: Vec::new(),
            dirty: BTreeMap::new(),
            retired: Vec::new(),
            forgotten: Vec::new(),
            reporting: Vec::new(),
            events: VecDeque::new(),
            effects: Vec::new(),
            requests,
            sender,
            epoll,
            lookout: Lookout::default(),
            unasked: 0,
            logs,
            watchdog,
            stalled_since: None,
            next_run,
            tokens_wanted: false,
            stop: false,
            config,
        })
    }

    fn run(mut self) {
        let mut ready = Vec::new();
        while !self.stop {
            self.select(&mut ready);
            self.turn(&ready);
        }
        // What was said in the last turn leaves.
        self.poll_net(Duration::ZERO);
        self.pools.shutdown();
    }

    fn now(&self) -> Tick {
        Tick(self.origin.elapsed().as_micros() as u64)
    }

    /// Waits for work, the doorbell, a socket of the pools, or the next deadline.
    fn select(&mut self, ready: &mut Vec<u64>) {
        ready.clear();
        if self.look_out() && self.unasked < UNASKED_MAX {
            self.unasked += 1;
            return;
        }
        self.unasked = 0;
        // Workers ring only a sleeper. Having said that it sleeps, the engine must look once more:
        // what was pushed before the word was seen has rung no bell.
        self.pools.node_page().sleep();
        let timeout = if self.has_work() { Duration::ZERO } else { self.idle_max() };
        // Where the network is polled here, it is there that the engine sleeps; it watches all the rest.
        let timeout = if self.poll_net(timeout) { Duration::ZERO } else { timeout };
        let timeout = rustix::event::Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: timeout.subsec_nanos().into(),
        };
        let mut events =
            [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 64];
        let count = epoll::wait(&self.epoll, events.as_mut_slice(), Some(&timeout)).unwrap_or(0);
        self.pools.node_page().awake();
        for event in &events[..count] {
            match event.data.u64() {
                DOORBELL => {
                    let mut word = [0u8; 8];
                    // Empty is fine: the bell only wakes.
                    let _ = rustix::io::read(&*self.sender.doorbell, &mut word);
                }
                mark => ready.push(mark),
            }
        }
    }

    /// Looks for work for as long as that is worth it; says whether there is any.
    fn look_out(&mut self) -> bool {
        let span = Duration::from_micros(self.config.engine_spin_us.into()).min(self.idle_max());
        self.lookout.begin(span);
        loop {
            self.poll_net(Duration::ZERO);
            if self.has_work() {
                return true;
            }
            if !self.lookout.again() {
                return false;
            }
        }
    }

    /// How long the engine may do nothing.
    fn idle_max(&self) -> Duration {
        let deadlines =
            [self.scheduler.deadline(), self.pools.deadline(), self.dirty.values().copied().min()];
        let net = self.cluster.as_ref().and_then(|cluster| cluster.deadline());
        let deadline = deadlines.into_iter().flatten().chain(net).min();
        deadline.map_or(SLEEP_MAX, |d| Duration::from_micros(d.since_us(self.now()))).min(SLEEP_MAX)
    }

    /// Something has come that no descriptor need tell of.
    fn has_work(&self) -> bool {
        self.pools.any_report() || !self.requests.is_empty() || self.net_waits()
    }

    /// Takes in all that happened, then acts until nothing follows any more.
    fn turn(&mut self, ready: &[u64]) {
        self.take_requests();
        self.take_reports();
        for mark in ready {
            self.pools.readable(*mark);
        }
        self.pools.tick(self.now());
        self.take_pool_events();
        self.take_net_events();
        if self.scheduler.deadline().is_some_and(|d| d <= self.now()) {
            self.events.push_back(Event::Wake);
        }
        self.settle();
    }

    /// Feeds the scheduler and the store until neither has anything left to say.
    fn settle(&mut self) {
        loop {
            if let Some(event) = self.events.pop_front() {
                let mut effects = std::mem::take(&mut self.effects);
                let begins =
                    matches!(event, Event::Submit { part: Some(_), .. }).then(|| event.run()).flatten();
                self.scheduler.handle(self.now(), event, &mut effects);
                for effect in effects.drain(..) {
                    self.apply(effect);
                }
                self.effects = effects;
                if let Some(run) = begins {
                    self.tell_to_begin(run);
                }
                self.news();
            } else if self.freshen() || self.release_held() || self.take_apart() {
            } else if let Some(run) = self.forgotten.pop() {
                // Only now: its attempts that were cut off have given their own memory back.
                self.forget(run);
            } else if !self.take_in_late()
                && !self.take_store_effects()
                && !self.take_pool_events()
                && !self.relieve()
            {
                break;
            }
        }
        self.flush_words();
        self.want_tokens(self.scheduler.load().ready > 0);
    }

    /// Tells workers whether someone waits for a CPU token, so that those who fall asleep ring.
    fn want_tokens(&mut self, wanted: bool) {
        if wanted != self.tokens_wanted {
            self.tokens_wanted = wanted;
            self.pools.node_page().want_tokens(wanted);
            // What was reported silently before the word was out is found by the look that
            // `select` takes before it sleeps.
        }
    }

    fn take_requests(&mut self) {
        loop {
            match self.requests.try_recv() {
                Ok(request) => self.request(request),
                Err(TryRecvError::Empty) => return,
                // The engine holds a sender of its own, so this cannot be; ending is right anyway.
                Err(TryRecvError::Disconnected) => {
                    self.stop = true;
                    return;
                }
            }
        }
    }

    fn request(&mut self, request: Request) {
        match request {
            Request::Open { reply } => {
                let run = RunId(self.next_run);
                self.next_run += 1;
                // A submitter that went away leaves an empty name behind.
                let _ = reply.send(run);
            }
            Request::Stage { run, bytes, file, reply } => self.stage(run, bytes, file, reply),
            Request::Submit(submission) => self.submit_over(submission),
            Request::Peer(peer) => self.add_peer(peer),
            Request::Peers { reply } => self.tell_peers(reply),
            Request::Transfers { reply } => {
                let transfers = self.cluster.as_mut().map(|cluster| cluster.take_transfers());
                drop(reply.send(transfers.unwrap_or_default()));
            }
            Request::Forget { run } => self.forget(run),
            Request::Cancel { run, reason } => self.events.push_back(Event::Cancel { run, reason }),
            Request::OverMemory { worker, used_bytes, limit_bytes } => {
                self.over_memory(worker, used_bytes, limit_bytes)
            }
            Request::Spilled(done) => self.spilled(done),
            Request::Remote(done) => self.remote_done(done),
            Request::Cool { reply } => {
                self.pools.cool();
                let _ = reply.send(());
            }
            Request::Stats { reply } => {
                let _ = reply.send(self.stats());
            }
            Request::Pools { reply } => drop(reply.send(self.pools.list())),
            Request::Objects { run, max, reply } => drop(reply.send(self.store.list(run, max))),
            Request::Shutdown => self.stop = true,
        }
    }

    fn stats(&self) -> NodeStats {
        let (workers, zygotes) = self.pools.count();
        NodeStats {
            store: self.store.stats(),
            load: self.scheduler.load(),
            workers,
            zygotes,
            huge_pages: self.store.arena().huge_pages().to_string(),
            heard: self.cluster.as_ref().map(|cluster| cluster.heard).unwrap_or_default(),
        }
    }
}
