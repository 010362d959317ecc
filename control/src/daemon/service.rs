//! The life of a node as a service: ports first, then the engine, then ready; and the way back.

use super::cluster::cluster;
use super::config::{Loaded, is_loopback};
use super::error::DaemonError;
use super::metrics::Metrics;
use super::notify::notify;
use super::recorder;
use super::registry::Registry;
use super::runs::{Bounds, Runs};
use crate::api::{self, Api};
use crate::history::History;
use crate::node::Node;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// Threads that may wait for the engine or the disk.
const BLOCKING_MAX: usize = 128;
/// Threads that serve connections, at most: functions need the cores more.
const THREADS_MAX: usize = 4;
/// How long cancelled runs may take to end.
const CANCEL_MAX: Duration = Duration::from_secs(5);
/// How often it is looked whether all runs have ended.
const LOOK: Duration = Duration::from_millis(20);

/// Runs a node until it is told to end. `ready` is called with the address of the API once it answers.
///
/// # Errors
/// When it cannot start here.
pub fn run(loaded: Loaded, ready: impl FnOnce(&str)) -> Result<(), DaemonError> {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(THREADS_MAX);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .max_blocking_threads(BLOCKING_MAX)
        .thread_name("dflow-api")
        .enable_all()
        .build()
        .map_err(|source| DaemonError::System { what: "start the runtime", source })?;
    let result = runtime.block_on(serve(loaded, ready));
    // What still follows a run is cut off.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// Connections, pipes of workers and objects of programs are files: as many are open as the system allows, and not the
/// few that a shell's programs may have.
fn open_many_files() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "the limit of open files stays at {:?}", limit.current);
    }
}

async fn serve(mut loaded: Loaded, ready: impl FnOnce(&str)) -> Result<(), DaemonError> {
    let started = Instant::now();
    open_many_files();
    // Before anything else, so that no signal finds the default action.
    let mut signals = Signals::new()?;
    let (listener, address) = listen("api", &loaded.settings.api).await?;
    loaded.settings.api = address;
    loaded.settings.node.cluster = cluster(&loaded)?;
    let settings = Arc::new(loaded.settings);
    let registry = Arc::new(Registry::open(&settings.state_dir)?);
    let node = Arc::new(Node::start(settings.node.clone())?);
    let metrics = Arc::new(Metrics::new(&settings.name));
    let history = (settings.history_runs > 0).then(|| {
        History::at(settings.state_dir.clone())
            .keeping(settings.history_runs, crate::history::BYTES_DEFAULT_MAX)
    });
    let system = |source| DaemonError::System { what: "start the recorder thread", source };
    let (recording, recorder) = match &history {
        Some(history) => {
            let (node, metrics) = (settings.node.clone(), metrics.clone());
            let (sender, thread) =
                recorder::start(history.clone(), node, metrics, settings.runs_max).map_err(system)?;
            (Some(sender), Some(thread))
        }
        None => (None, None),
    };
    let bounds = Bounds { runs_max: settings.runs_max, keep: settings.keep, keep_bytes: settings.keep_bytes };
    let name = (settings.name.as_str(), !settings.peers.is_empty());
    let (runs, queues) = Runs::new(node.clone(), registry.clone(), name, bounds, metrics.clone(), recording);
    let closer = tokio::spawn(runs.clone().serve(queues));
    let (stop, stopped) = watch::channel(false);
    let api = Api {
        runs: runs.clone(),
        registry,
        history,
        metrics,
        settings: settings.clone(),
        secret: loaded.secret,
        started,
    };
    let server = tokio::spawn(api::serve(listener, api::router(api), settings.connections_max, stopped));
    tracing::info!(
        node = settings.name,
        api = settings.api,
        took_ms = started.elapsed().as_millis() as u64,
        loopback_only = is_loopback(&settings.api),
        "ready"
    );
    ready(&settings.api);
    notify("READY=1");
    let told = async {
        signals.next().await;
        notify("STOPPING=1");
        drain(&runs, &mut signals, settings.drain).await;
    };
    let died = tokio::select! {
        () = told => None,
        // Its runs will never end, so that there is nothing to wait for.
        why = death(&node) => {
            tracing::error!(why, "the engine died");
            Some(why)
        }
    };
    // Clients learn how their runs ended before the connections go.
    let _ = stop.send(true);
    let _ = server.await;
    closer.abort();
    // An aborted task has given its senders back when it is awaited.
    let _ = closer.await;
    drop(runs);
    if let Some(recorder) = recorder {
        let _ = tokio::task::spawn_blocking(move || recorder.join()).await;
    }
    let ended = tokio::task::spawn_blocking(move || drop(node)).await;
    tracing::info!(node = settings.name, clean = ended.is_ok() && died.is_none(), "ended");
    died.map_or(Ok(()), |why| Err(DaemonError::Died { why }))
}

/// Waits until the engine has ended by itself; returns why.
async fn death(node: &Node) -> String {
    loop {
        if let Some(why) = node.death() {
            return why;
        }
        tokio::time::sleep(LOOK * 10).await;
    }
}

/// No new runs; those under way may end; after `patience`, or another signal, they are cancelled.
async fn drain(runs: &Arc<Runs>, signals: &mut Signals, patience: Duration) {
    runs.drain();
    let under_way = runs.under_way();
    tracing::info!(under_way, patience_s = patience.as_secs(), "draining: no new runs are taken");
    tokio::select! {
        () = all_ended(runs) => return,
        () = tokio::time::sleep(patience) => {
            tracing::warn!(under_way = runs.under_way(), "runs are cancelled: the time to drain is over");
        }
        () = signals.next() => {
            tracing::warn!(under_way = runs.under_way(), "runs are cancelled: told to end a second time");
        }
    }
    let cancelled = runs.clone();
    super::blocking(move || cancelled.cancel_all("its node ends")).await;
    if tokio::time::timeout(CANCEL_MAX, all_ended(runs)).await.is_err() {
        tracing::error!(under_way = runs.under_way(), "runs did not end when they were cancelled");
    }
}

async fn all_ended(runs: &Runs) {
    while runs.under_way() > 0 {
        tokio::time::sleep(LOOK).await;
    }
}

/// Binds a port. Returns the address with the port that was taken.
async fn listen(key: &'static str, address: &str) -> Result<(TcpListener, String), DaemonError> {
    let failed = |source: io::Error| {
        let hint = match source.kind() {
            io::ErrorKind::AddrInUse => {
                format!(
                    "; another program has the port (`ss -ltnp` shows which): end it, or choose another with `{key}`"
                )
            }
            io::ErrorKind::PermissionDenied => {
                "; ports below 1024 need root or CAP_NET_BIND_SERVICE".to_owned()
            }
            io::ErrorKind::AddrNotAvailable => {
                "; this machine has no such address (`ip address` lists them)".to_owned()
            }
            _ => String::new(),
        };
        DaemonError::Listen { key, address: address.to_owned(), source, hint }
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let taken = listener.local_addr().map_err(failed)?;
    let (host, _) = address.rsplit_once(':').unwrap_or((address, ""));
    Ok((listener, format!("{host}:{}", taken.port())))
}

/// What tells a service to end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Signals, DaemonError> {
        let catch =
            |kind| signal(kind).map_err(|source| DaemonError::System { what: "catch signals", source });
        Ok(Signals { interrupt: catch(SignalKind::interrupt())?, terminate: catch(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
