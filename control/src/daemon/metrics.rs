//! What a node counts, in the form that Prometheus reads.

use crate::history::Outcome;
use crate::node::{Journal, NodeStats, PeerView, PoolView, Transfer, What};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How a run ended.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

/// A part of an attempt's time.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PhaseLabel {
    phase: &'static str,
}

/// A state of function processes.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PoolLabel {
    function: String,
    runtime: &'static str,
    state: &'static str,
}

/// A kind of the store's memory.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

/// What carried bytes from a peer.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct LinkLabel {
    transport: String,
    peer: String,
}

/// A node.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PeerLabel {
    peer: String,
}

/// The counters of a node. What the engine knows is looked up when it is asked for.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
    /// Runs that were begun.
    pub submitted: Counter,
    /// Submissions that were told to come back.
    pub refused: Counter,
    /// Runs whose record could not be written.
    pub unrecorded: Counter,
    /// Bytes of inputs that were streamed in.
    pub input_bytes: Counter,
    /// Bytes of outputs that were streamed out.
    pub output_bytes: Counter,
    ended: Family<ResultLabel, Counter>,
    run_seconds: Family<ResultLabel, Histogram>,
    phase_seconds: Family<PhaseLabel, Histogram>,
    attempts: Family<ResultLabel, Counter>,
    retries: Counter,
    runs: Gauge,
    store_bytes: Family<KindLabel, Gauge>,
    store_objects: Family<KindLabel, Gauge>,
    spills: Gauge,
    loads: Gauge,
    invocations: Family<KindLabel, Gauge>,
    workers: Family<PoolLabel, Gauge>,
    work_seconds: Family<PeerLabel, Gauge<f64, AtomicU64>>,
    link_bytes: Family<LinkLabel, Gauge>,
    heard: Family<KindLabel, Gauge>,
    transfer_seconds: Family<PeerLabel, Histogram>,
    transfer_bytes: Family<PeerLabel, Histogram>,
}

/// From 100 us to 400 s.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(1e-4, 4.0, 12))
}

/// From 1 KiB to 4 GiB.
fn sizes() -> Histogram {
    Histogram::new(exponential_buckets(1024.0, 4.0, 12))
}

impl Metrics {
    /// All zero.
    pub fn new(node: &str) -> Metrics {
        let metrics = Metrics {
            registry: Mutex::new(Registry::with_labels(
                [("node".into(), node.to_owned().into())].into_iter(),
            )),
            submitted: Counter::default(),
            refused: Counter::default(),
            unrecorded: Counter::default(),
            input_bytes: Counter::default(),
            output_bytes: Counter::default(),
            ended: Family::default(),
            run_seconds: Family::new_with_constructor(seconds),
            phase_seconds: Family::new_with_constructor(seconds),
            attempts: Family::default(),
            retries: Counter::default(),
            runs: Gauge::default(),
            store_bytes: Family::default(),
            store_objects: Family::default(),
            spills: Gauge::default(),
            loads: Gauge::default(),
            invocations: Family::default(),
            workers: Family::default(),
            work_seconds: Family::default(),
            link_bytes: Family::default(),
            heard: Family::default(),
            transfer_seconds: Family::new_with_constructor(seconds),
            transfer_bytes: Family::new_with_constructor(sizes),
        };
        metrics.register();
        metrics
    }

    fn register(&self) {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let r = registry.sub_registry_with_prefix("dflow");
        r.register("runs_submitted", "Runs that were begun", self.submitted.clone());
        r.register("runs_refused", "Submissions told to come back later", self.refused.clone());
        r.register("runs_unrecorded", "Runs whose record could not be written", self.unrecorded.clone());
        r.register("runs_ended", "Runs that ended, by result", self.ended.clone());
        r.register("runs_under_way", "Runs that are open or under way", self.runs.clone());
        let (run, phase) = (self.run_seconds.clone(), self.phase_seconds.clone());
        r.register_with_unit("run", "From a run's submission to its end", Unit::Seconds, run);
        r.register_with_unit("attempt_phase", "Where the time of attempts went", Unit::Seconds, phase);
        r.register("attempts", "Attempts that ended, by result", self.attempts.clone());
        r.register("retries", "Attempts that were tried again", self.retries.clone());
        r.register_with_unit("store", "Memory and disk of the store", Unit::Bytes, self.store_bytes.clone());
        r.register("store_objects", "Objects of the store", self.store_objects.clone());
        r.register("store_spills", "Objects ever written to disk", self.spills.clone());
        r.register("store_loads", "Objects ever brought back", self.loads.clone());
        r.register("invocations", "Invocations now, and what bounds them", self.invocations.clone());
        r.register("workers", "Function processes", self.workers.clone());
        r.register_with_unit(
            "work",
            "What runs have still to do on a node by what they cost before, of one core; what placement begins with",
            Unit::Seconds,
            self.work_seconds.clone(),
        );
        let links = self.link_bytes.clone();
        r.register_with_unit("link_read", "Read from a peer since it connected", Unit::Bytes, links);
        r.register("messages_heard", "Messages of other nodes' engines", self.heard.clone());
        let (took, size) = (self.transfer_seconds.clone(), self.transfer_bytes.clone());
        r.register_with_unit(
            "transfer",
            "From the announcement of an object to its last byte",
            Unit::Seconds,
            took,
        );
        r.register_with_unit("transfer_size", "Objects that came from a peer", Unit::Bytes, size);
        r.register_with_unit("api_input", "Inputs streamed in", Unit::Bytes, self.input_bytes.clone());
        r.register_with_unit("api_output", "Outputs streamed out", Unit::Bytes, self.output_bytes.clone());
    }

    /// A run is over, so long after its submission.
    pub fn ended(&self, outcome: &Outcome, took: Duration) {
        let label = ResultLabel { result: outcome.word() };
        self.ended.get_or_create(&label).inc();
        self.run_seconds.get_or_create(&label).observe(took.as_secs_f64());
    }

    /// Where the time of a run's attempts went.
    pub fn phases(&self, journal: &Journal) {
        for record in &journal.records {
            let What::Ended { ok, times } = record.what else { continue };
            self.attempts.get_or_create(&ResultLabel { result: if ok { "done" } else { "failed" } }).inc();
            let compute = times.total_us.saturating_sub(times.setup_us + times.wait_us + times.put_us);
            let phases = [
                ("setup", times.setup_us),
                ("wait", times.wait_us),
                ("put", times.put_us),
                ("compute", compute),
            ];
            for (phase, us) in phases {
                self.phase_seconds.get_or_create(&PhaseLabel { phase }).observe(us as f64 / 1e6);
            }
        }
        self.retries.inc_by(journal.failures.iter().filter(|f| f.retried).count() as u64);
    }

    /// Objects that have come from other nodes.
    pub fn transfers(&self, transfers: &[Transfer]) {
        for transfer in transfers {
            let label = PeerLabel { peer: transfer.peer.clone() };
            self.transfer_seconds.get_or_create(&label).observe(transfer.us as f64 / 1e6);
            self.transfer_bytes.get_or_create(&label).observe(transfer.bytes as f64);
        }
    }

    /// All of it as text, with what the engine says of itself now.
    pub fn text(
        &self,
        runs: usize,
        stats: Option<&NodeStats>,
        pools: &[PoolView],
        peers: &[PeerView],
    ) -> String {
        self.runs.set(runs as i64);
        if let Some(stats) = stats {
            let store = &stats.store;
            for (kind, value) in [
                ("arena", store.arena_bytes),
                ("arena_used", store.arena_used_bytes),
                ("dedicated", store.dedicated_bytes),
                ("overflow", store.overflow_bytes),
                ("spilled", store.spilled_bytes),
            ] {
                self.store_bytes.get_or_create(&KindLabel { kind }).set(value as i64);
            }
            for (kind, value) in [("all", store.objects), ("on_disk", store.objects_on_disk)] {
                self.store_objects.get_or_create(&KindLabel { kind }).set(i64::from(value));
            }
            self.spills.set(store.spills as i64);
            self.loads.set(store.loads as i64);
            let load = &stats.load;
            for (kind, value) in [
                ("ready", i64::from(load.ready)),
                ("early", i64::from(load.early)),
                ("blocked", i64::from(load.blocked)),
                ("slots_used", i64::from(load.slots_used)),
                ("cpu_milli_used", load.cpu_milli_used),
            ] {
                self.invocations.get_or_create(&KindLabel { kind }).set(value);
            }
            for (kind, value) in [("words", stats.heard.words), ("tidings", stats.heard.tidings)] {
                self.heard.get_or_create(&KindLabel { kind }).set(value as i64);
            }
        }
        self.workers.clear();
        for pool in pools {
            for (state, value) in [("busy", pool.workers.saturating_sub(pool.idle)), ("idle", pool.idle)] {
                let label = PoolLabel { function: pool.function.clone(), runtime: pool.runtime, state };
                self.workers.get_or_create(&label).inc_by(i64::from(value));
            }
        }
        self.work_seconds.clear();
        for peer in peers.iter().filter(|peer| peer.up) {
            let label = PeerLabel { peer: peer.name.clone() };
            self.work_seconds.get_or_create(&label).set(peer.work_us as f64 / 1e6);
        }
        self.link_bytes.clear();
        for (peer, link) in peers.iter().filter_map(|peer| Some((peer, peer.link.as_ref()?))) {
            let streams = if link.transport == "rdma" { "streams" } else { &link.transport };
            for (transport, bytes) in [("rdma", link.rdma_bytes), (streams, link.stream_bytes)] {
                let label = LinkLabel { transport: transport.to_owned(), peer: peer.name.clone() };
                self.link_bytes.get_or_create(&label).set(bytes as i64);
            }
        }
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &registry);
        text
    }
}
