//! What a node is told when it starts.

use super::baseline::{Baseline, Overlaps};
use super::cluster::ClusterConfig;
use dflow_proto::limits::HUGE_BYTES;
use dflow_proto::store::StoreError;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Settings of a node. `Default` fits an embedded node on this machine.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// CPU tokens in thousandths of a core. Default: the cores this process may use.
    pub cpu_milli: u32,
    /// Invocations that may exist at one time (their processes, blocked ones included).
    pub slots: u32,
    /// Idle function processes kept, over all functions.
    pub idle_max: u32,
    /// Memory of the store in bytes. Pages are taken from the system when first used.
    pub store_bytes: u64,
    /// Where the store spills when it is full; `None`: full blocks instead.
    pub spill_dir: Option<PathBuf>,
    /// Most bytes the spill directory may hold.
    pub spill_bytes: u64,
    /// Bytes of the store made ready in the background at start.
    pub prefault_bytes: u64,
    /// Microseconds a reader spins before it sleeps.
    pub spin_us: u32,
    /// Microseconds that the engine, and a network thread, look for work before they sleep, giving way to others.
    pub engine_spin_us: u32,
    /// Copy each output at its seal, for functions that may be hostile to their own tenant.
    pub strict: bool,
    /// Huge pages for the store where the kernel has them.
    pub huge_pages: bool,
    /// Keep a journal of each run: what traces, reports and the history are made of.
    pub journal: bool,
    /// Seconds a function may take to load (imports, dlopen).
    pub load_timeout_s: u64,
    /// What is done earlier than control flow would; for measurements.
    pub overlaps: Overlaps,
    /// The system that is imitated instead; for measurements.
    pub baseline: Option<Arc<Baseline>>,
    /// The cluster this node belongs to; `None`: it is alone.
    pub cluster: Option<ClusterConfig>,
    /// Where `dflow-zygote`, `libdflow.so` and the Python package lie.
    pub libexec: Libexec,
}

/// Longer than what one node does between two words of another: a hop of a chain finds engines awake. A machine with one
/// processor has none that is idle while others work.
const ENGINE_SPIN_US: u32 = 100;

/// Invocations that may exist at one time, for each core: those that wait for data have started already.
const SLOTS_A_CORE: u32 = 4;
/// Idle processes that are kept for each core. Of a few workflows with a dozen functions each, as many as start at
/// one time: a busy node that keeps fewer forks for every other invocation. One has 1 to 10 MiB of its own.
const IDLE_A_CORE: u32 = 32;

impl Default for NodeConfig {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get()) as u32;
        let memory = total_memory_bytes();
        NodeConfig {
            cpu_milli: cores * 1000,
            slots: slots_of(cores),
            idle_max: cores * IDLE_A_CORE,
            store_bytes: (memory / 4).clamp(256 << 20, 64 << 30) & !((2 << 20) - 1),
            spill_dir: None,
            spill_bytes: 64 << 30,
            prefault_bytes: 64 << 20,
            spin_us: 0,
            engine_spin_us: if cores > 1 { ENGINE_SPIN_US } else { 0 },
            strict: false,
            huge_pages: true,
            journal: true,
            load_timeout_s: 60,
            overlaps: Overlaps::ALL,
            baseline: None,
            cluster: None,
            libexec: Libexec::find(),
        }
    }
}

fn slots_of(cores: u32) -> u32 {
    cores.saturating_mul(SLOTS_A_CORE).saturating_add(4)
}

impl NodeConfig {
    /// Offers so many thousandths of a core, and at least as many slots and idle processes as these can use.
    pub fn offer(&mut self, cpu_milli: u32) {
        let cores = cpu_milli / 1000;
        self.cpu_milli = cpu_milli;
        self.slots = self.slots.max(slots_of(cores));
        self.idle_max = self.idle_max.max(cores.saturating_mul(IDLE_A_CORE));
    }

    /// Refuses an object of so many bytes that the store could not hold even if it had nothing else: for whoever
    /// must take its bytes from elsewhere before the store can be asked.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`], which says what there is.
    pub fn could_hold(&self, need_bytes: u64) -> Result<(), StoreError> {
        let have_bytes = self.store_bytes.next_multiple_of(HUGE_BYTES);
        let spill_bytes = if self.spill_dir.is_some() { self.spill_bytes } else { 0 };
        if need_bytes <= have_bytes.max(spill_bytes) {
            return Ok(());
        }
        Err(StoreError::TooLarge { need_bytes, have_bytes, spill_bytes, disk: None })
    }
}

/// Physical memory of this machine in bytes (1 GiB if the kernel does not say).
fn total_memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    let kib = line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse::<u64>().ok());
    kib.map_or(1 << 30, |k| k * 1024)
}

/// Files that function processes are made from.
#[derive(Clone, Debug)]
pub struct Libexec {
    /// The fork server of native functions and programs.
    pub zygote: PathBuf,
    /// The library that runs inside every function process.
    pub libdflow: PathBuf,
    /// The folder that holds the Python package `dflow`.
    pub python: PathBuf,
}

impl Libexec {
    /// Looks in `DFLOW_LIBEXEC`, beside this executable, in `../lib/dflow`, and (for a build tree)
    /// in the workspace's `ffi/python`.
    pub fn find() -> Self {
        let mut roots: Vec<PathBuf> =
            std::env::var_os("DFLOW_LIBEXEC").map(PathBuf::from).into_iter().collect();
        if let Some(dir) = std::env::current_exe().ok().and_then(|e| e.parent().map(Path::to_path_buf)) {
            roots.push(dir.clone());
            // Test binaries and examples lie one folder deeper than what cargo builds beside them.
            roots.extend(dir.parent().map(Path::to_path_buf));
            roots.push(dir.join("../lib/dflow"));
        }
        let pick = |name: &str| {
            roots.iter().map(|r| r.join(name)).find(|p| p.exists()).unwrap_or_else(|| PathBuf::from(name))
        };
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ffi/python");
        let python = roots.iter().map(|r| r.join("python")).find(|p| p.join("dflow").is_dir());
        Libexec {
            zygote: pick("dflow-zygote"),
            libdflow: pick("libdflow.so"),
            python: python.unwrap_or(source),
        }
    }

    /// The first file that is missing, for an error that names it.
    pub fn missing(&self) -> Option<&Path> {
        [&self.zygote, &self.libdflow].into_iter().map(PathBuf::as_path).find(|p| !p.is_file())
    }
}
