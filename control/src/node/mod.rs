//! A DFlow node: one engine thread that owns the scheduler, the store and the pools, and the handle
//! by which a program submits runs and takes results.
//!
//! ```text
//!   Node ──requests──▶ engine ──commands──▶ workers        (rings of shared memory)
//!        ◀──views────         ◀──reports───
//!                      │  ▲
//!                      ▼  │ effects and events, by plain calls
//!               Scheduler, Store (pure)
//! ```

mod baseline;
mod cluster;
mod config;
mod engine;
mod error;
mod logs;
mod net;
mod object;
mod pool;
mod remote;
mod spill;
mod stage;
mod sweep;
mod view;
mod watchdog;

pub use baseline::{Baseline, Crossing, Overlaps, Processes, Traffic};
pub use cluster::{ClusterConfig, ClusterError, LINK_BYTES_PER_S, NODE_MAX, NetThread, PeerConfig, Spread};
pub use config::{Libexec, NodeConfig};
pub use error::{RunFailure, StartError, SubmitError};
pub use logs::{LogLine, LogLines};
pub use object::{ObjectView, OutputValue};
pub use stage::{InputWriter, OpenRun};
pub(crate) use sweep::TempFolder;
pub use view::{
    Failed, Heard, Journal, LinkView, Nodes, PeerView, PoolView, Record, RunView, StepView, Transfer, Watch,
    What,
};

use crate::workflow::Workflow;
use crossbeam::channel::{Receiver, RecvTimeoutError, bounded};
use dflow_core::graph::StartPolicy;
use dflow_core::scheduler::Load;
use dflow_proto::RunId;
use dflow_proto::store::{Listed, Stats};
use engine::{Request, Requests};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// A run to be.
#[derive(Clone, Debug)]
pub struct RunSpec {
    /// The checked workflow.
    pub workflow: Arc<Workflow>,
    /// Values by input name; what is not named takes its default.
    pub inputs: Vec<(String, Given)>,
    /// Overrides the start policy of every step.
    pub start: Option<StartPolicy>,
    /// Over which nodes of the cluster it is spread.
    pub spread: Spread,
}

/// The value of an input.
#[derive(Clone, Debug)]
pub enum Given {
    /// As a word of a command line.
    Text(String),
    /// As JSON.
    Json(serde_json::Value),
    /// The content of a file.
    File(PathBuf),
}

/// The outputs of a run by name, or why there are none.
pub type RunResult = Result<Vec<(String, OutputValue)>, RunFailure>;

/// Takes the result of a run, on the engine's thread: it must neither block nor keep the engine busy.
/// `false` if nobody is there to take it; the outputs are then given back.
pub type Done = Box<dyn FnOnce(RunResult) -> bool + Send>;

/// A node in this process. Dropping it ends its runs and its function processes.
pub struct Node {
    requests: Requests,
    address: Option<SocketAddr>,
    logs: LogLines,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// A run that has been submitted.
pub struct RunHandle {
    watch: Watch,
    result: Receiver<RunResult>,
    requests: Requests,
}

/// What a node uses at one moment.
#[derive(Clone, Debug)]
pub struct NodeStats {
    /// Memory and objects.
    pub store: Stats,
    /// Tokens and slots.
    pub load: Load,
    /// Function processes alive.
    pub workers: u32,
    /// Fork servers alive.
    pub zygotes: u32,
    /// Whether huge pages back the store, in words.
    pub huge_pages: String,
    /// Messages of other nodes' engines since the start.
    pub heard: Heard,
}

impl Node {
    /// Starts the engine. Function processes are started by runs.
    ///
    /// # Errors
    /// When this machine lacks what a node needs; the error says what to do.
    pub fn start(config: NodeConfig) -> Result<Node, StartError> {
        if let Some(path) = config.libexec.missing() {
            return Err(StartError::Missing { path: path.into() });
        }
        let (requests, address, logs, thread) = engine::start(config)?;
        Ok(Node { requests, address, logs, thread: Mutex::new(Some(thread)) })
    }

    /// Begins a run. Inputs are checked against their types and put into the store by the calling
    /// thread.
    ///
    /// # Errors
    /// When an input is missing, mistyped, too large or unreadable, or the store cannot take it.
    pub fn submit(&self, spec: RunSpec) -> Result<RunHandle, SubmitError> {
        let (tx, result) = bounded(1);
        let watch = self.begin(spec, Box::new(move |result| tx.send(result).is_ok()))?;
        Ok(RunHandle { watch, result, requests: self.requests.clone() })
    }

    /// As [`Node::submit`], for a program with many runs: `done` is called at the run's end.
    ///
    /// # Errors
    /// As of [`Node::submit`]; `done` is then not called.
    pub fn begin(&self, spec: RunSpec, done: Done) -> Result<Watch, SubmitError> {
        let data = stage::check(&spec)?;
        let mut open = self.open(spec.workflow)?;
        for (index, data) in data.iter().enumerate() {
            open.write(index, data)?;
        }
        open.spread(spec.spread);
        open.begin(spec.start, done)
    }

    /// A run that is to get its inputs one by one, of any size, before it begins.
    ///
    /// # Errors
    /// When the node has been shut down.
    pub fn open(&self, workflow: Arc<Workflow>) -> Result<OpenRun, SubmitError> {
        OpenRun::open(self.requests.clone(), workflow)
    }

    /// Ends a run; its result then tells `reason`. A run that has ended stays as it is.
    pub fn cancel(&self, run: RunId, reason: &str) {
        // A run whose node is gone has ended.
        let _ = self.requests.send(Request::Cancel { run, reason: reason.into() });
    }

    /// What functions have printed since the last call of [`LogLines::take`].
    pub fn logs(&self) -> &LogLines {
        &self.logs
    }

    /// What the node uses now; `None` if its engine is gone.
    pub fn stats(&self) -> Option<NodeStats> {
        let (reply, stats) = bounded(1);
        self.requests.send(Request::Stats { reply }).ok()?;
        stats.recv().ok()
    }

    /// The functions' processes now; `None` if the engine is gone.
    pub fn pools(&self) -> Option<Vec<PoolView>> {
        let (reply, pools) = bounded(1);
        self.requests.send(Request::Pools { reply }).ok()?;
        pools.recv().ok()
    }

    /// The first `max` objects of the store, of one run or of all; `None` if the engine is gone.
    pub fn objects(&self, run: Option<RunId>, max: usize) -> Option<Vec<Listed>> {
        let (reply, objects) = bounded(1);
        self.requests.send(Request::Objects { run, max, reply }).ok()?;
        objects.recv().ok()
    }

    /// Ends the function processes that have nothing to do, and their fork servers: the next
    /// invocations find no process and no loaded code. Meant for measurements, between runs; `false`
    /// if the engine is gone.
    pub fn cool(&self) -> bool {
        let (reply, done) = bounded(1);
        self.requests.send(Request::Cool { reply }).is_ok() && done.recv().is_ok()
    }

    /// Every node of the cluster that is known, this one first; empty if it belongs to none, `None` if the
    /// engine is gone.
    pub fn peers(&self) -> Option<Vec<PeerView>> {
        let (reply, peers) = bounded(1);
        self.requests.send(Request::Peers { reply }).ok()?;
        peers.recv().ok()
    }

    /// Objects that have come from other nodes since the last call (the last of them, if nobody asks for long); `None`
    /// if the engine is gone.
    pub fn take_transfers(&self) -> Option<Vec<Transfer>> {
        let (reply, transfers) = bounded(1);
        self.requests.send(Request::Transfers { reply }).ok()?;
        transfers.recv().ok()
    }

    /// Makes another node of the cluster known, or gives it another address.
    pub fn add_peer(&self, peer: PeerConfig) {
        // A node that is gone needs no peers.
        let _ = self.requests.send(Request::Peer(peer));
    }

    /// Where other nodes reach this one; `None` if it belongs to no cluster.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Why the engine has ended though nobody told it to; `None` as long as it is at work. Told once.
    pub fn death(&self) -> Option<String> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = thread.take_if(|thread| thread.is_finished())?;
        let Err(panic) = ended.join() else { return Some("it ended without a reason".to_owned()) };
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Some(text.unwrap_or("it panicked without a message").to_owned())
    }

    /// Ends all runs and function processes and waits until they are gone.
    pub fn shutdown(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // An engine that is gone already needs no word, and its panic has been printed.
            let _ = self.requests.send(Request::Shutdown);
            let _ = thread.join();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop();
    }
}

impl RunHandle {
    /// The run's id.
    pub fn id(&self) -> RunId {
        self.watch.run
    }

    /// Its state and journal.
    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Waits for the result, at most `timeout`; `None` if it is not there yet. The result is
    /// handed out once.
    pub fn wait(&self, timeout: Option<Duration>) -> Option<RunResult> {
        let Some(timeout) = timeout else {
            return Some(self.result.recv().unwrap_or(Err(RunFailure::NodeGone)));
        };
        match self.result.recv_timeout(timeout) {
            Ok(result) => Some(result),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Err(RunFailure::NodeGone)),
        }
    }

    /// Ends the run; its result then tells `reason`.
    pub fn cancel(&self, reason: &str) {
        // A run whose node is gone has ended.
        let _ = self.requests.send(Request::Cancel { run: self.watch.run, reason: reason.into() });
    }
}
