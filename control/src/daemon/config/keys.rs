//! The table of keys: each is a line of the file, a flag and an environment variable alike, and is read
//! from text in one way whichever it comes from.

use super::{LogFormat, Peer, Settings};
use crate::node::NetThread;
use crate::workflow::parse_size;
use dflow_dataplane::transport::Backend;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One key of a node's configuration.
#[derive(Debug)]
pub struct Key {
    /// Its name in the file.
    pub name: &'static str,
    /// What stands for its value in help texts.
    pub value: &'static str,
    /// What it is, for people.
    pub help: &'static str,
    /// Takes a value as it is written.
    pub(super) set: fn(&mut Settings, &str) -> Result<(), String>,
    /// The value as it would be written.
    pub show: fn(&Settings) -> String,
}

impl Key {
    /// The flag, without its dashes.
    pub fn flag(&self) -> String {
        self.name.replace('_', "-")
    }

    /// The environment variable.
    pub fn variable(&self) -> String {
        format!("DFLOW_{}", self.name.to_ascii_uppercase())
    }

    /// Whether the flag may stand without a value, which means `true`.
    pub fn is_switch(&self) -> bool {
        self.value == "BOOL"
    }
}

/// All keys, in the order in which they are shown.
pub const KEYS: [Key; 33] = [
    Key {
        name: "name",
        value: "NAME",
        help: "What this node is called: letters a-z, digits and `-`; unique among its peers",
        set: |s, v| name(v).map(|v| s.name = v),
        show: |s| s.name.clone(),
    },
    Key {
        name: "state",
        value: "DIR",
        help: "Where deployed workflows and past runs are kept; one node a directory",
        set: |s, v| put(&mut s.state_dir, Ok(PathBuf::from(v))),
        show: |s| s.state_dir.display().to_string(),
    },
    Key {
        name: "api",
        value: "HOST:PORT",
        help: "Where the HTTP API listens; port 0 takes a free one",
        set: |s, v| put(&mut s.api, address(v)),
        show: |s| s.api.clone(),
    },
    Key {
        name: "data",
        value: "HOST:PORT",
        help: "Where this node listens for its peers",
        set: |s, v| put(&mut s.data, address(v)),
        show: |s| s.data.clone(),
    },
    Key {
        name: "secret_file",
        value: "FILE",
        help: "A file with the secret that peers share and that the API asks for; needed off loopback",
        set: |s, v| put(&mut s.secret_file, Ok(path_or_none(v))),
        show: |s| text_or_none(s.secret_file.as_deref()),
    },
    Key {
        name: "peers",
        value: "LIST",
        help: "The other nodes, as NAME=DATA or NAME=DATA,API (HOST:PORT each), separated by blanks",
        set: |s, v| put(&mut s.peers, peers(v)),
        show: |s| s.peers.iter().map(Peer::to_string).collect::<Vec<_>>().join(" "),
    },
    Key {
        name: "labels",
        value: "LIST",
        help: "What steps may ask for by placement: {prefer: \"label:NAME\"}, besides the node's name, separated by blanks",
        set: |s, v| put(&mut s.labels, Ok(v.split_whitespace().map(str::to_owned).collect())),
        show: |s| s.labels.join(" "),
    },
    Key {
        name: "transport",
        value: "auto|rdma|uring|tcp",
        help: "What carries data between nodes: auto takes RDMA where both ends have it, and TCP elsewhere",
        set: |s, v| put(&mut s.backend, choose(&TRANSPORTS, v, "it is `auto`, `rdma`, `uring` or `tcp`")),
        show: |s| chosen(&TRANSPORTS, s.backend),
    },
    Key {
        name: "net_thread",
        value: "auto|engine|own",
        help: "Which thread moves data between nodes: the engine's (fewer threads to wake), one of its own (copying \
               bulk over TCP never keeps the engine), or what suits the number of processors",
        set: |s, v| put(&mut s.net_thread, choose(&NET_THREADS, v, "it is `auto`, `engine` or `own`")),
        show: |s| chosen(&NET_THREADS, s.net_thread),
    },
    Key {
        name: "cards",
        value: "LIST",
        help: "RDMA devices to use, such as mlx5_0 or mlx5_0,mlx5_1; `none`: those that suit the address of `data`",
        set: |s, v| put(&mut s.rdma_device, Ok((!v.is_empty() && v != "none").then(|| v.to_owned()))),
        show: |s| s.rdma_device.clone().unwrap_or_else(|| "none".into()),
    },
    Key {
        name: "link",
        value: "SIZE",
        help: "What the link to each peer carries in bytes a second, such as 125MB; steps are placed by it",
        set: |s, v| {
            s.link_bytes_per_s = parse_size(v)?;
            if s.link_bytes_per_s < 1_000_000 { Err("it is at least 1MB".into()) } else { Ok(()) }
        },
        show: |s| size(s.link_bytes_per_s),
    },
    Key {
        name: "cpus",
        value: "CORES",
        help: "CPU tokens in cores: how many functions compute at one time; `slots` and `idle_max` grow with it",
        set: |s, v| {
            let cores: f64 = number(v)?;
            if !(0.001..=1e6).contains(&cores) {
                return Err(format!("{v} cores; between 0.001 and 1000000 are possible"));
            }
            // Slots and idle processes that are given come after it.
            s.node.offer((cores * 1000.0) as u32);
            Ok(())
        },
        show: |s| (f64::from(s.node.cpu_milli) / 1000.0).to_string(),
    },
    Key {
        name: "slots",
        value: "N",
        help: "Invocations that may exist at one time, those that wait for data included",
        set: |s, v| put(&mut s.node.slots, at_least(1, v)),
        show: |s| s.node.slots.to_string(),
    },
    Key {
        name: "idle_max",
        value: "N",
        help: "Idle function processes that are kept; a small one has 1 to 10 MiB of its own",
        set: |s, v| put(&mut s.node.idle_max, number(v)),
        show: |s| s.node.idle_max.to_string(),
    },
    Key {
        name: "store",
        value: "SIZE",
        help: "Memory of the object store, such as 2GiB",
        set: |s, v| put(&mut s.node.store_bytes, parse_size(v)),
        show: |s| size(s.node.store_bytes),
    },
    Key {
        name: "prefault",
        value: "SIZE",
        help: "How much of the store is made ready in the background at start",
        set: |s, v| put(&mut s.node.prefault_bytes, parse_size(v)),
        show: |s| size(s.node.prefault_bytes),
    },
    Key {
        name: "spill",
        value: "DIR",
        help: "Where a full store puts what is not in use, or `none`: a full store then waits",
        set: |s, v| put(&mut s.node.spill_dir, Ok(path_or_none(v))),
        show: |s| text_or_none(s.node.spill_dir.as_deref()),
    },
    Key {
        name: "spill_max",
        value: "SIZE",
        help: "Most bytes of the spill directory",
        set: |s, v| put(&mut s.node.spill_bytes, parse_size(v)),
        show: |s| size(s.node.spill_bytes),
    },
    Key {
        name: "spin_us",
        value: "US",
        help: "Microseconds a reader spins before it sleeps",
        set: |s, v| put(&mut s.node.spin_us, number(v)),
        show: |s| s.node.spin_us.to_string(),
    },
    Key {
        name: "engine_spin_us",
        value: "US",
        help: "Microseconds the engine and a network thread look for work before they sleep, giving way to others",
        set: |s, v| put(&mut s.node.engine_spin_us, number(v)),
        show: |s| s.node.engine_spin_us.to_string(),
    },
    Key {
        name: "strict",
        value: "BOOL",
        help: "Copy outputs at their seal: for functions that may be hostile, not only wrong",
        set: |s, v| put(&mut s.node.strict, switch(v)),
        show: |s| s.node.strict.to_string(),
    },
    Key {
        name: "huge_pages",
        value: "BOOL",
        help: "Huge pages for the store where the kernel has them",
        set: |s, v| put(&mut s.node.huge_pages, switch(v)),
        show: |s| s.node.huge_pages.to_string(),
    },
    Key {
        name: "load_timeout_s",
        value: "SECONDS",
        help: "How long a function may take to load",
        set: |s, v| put(&mut s.node.load_timeout_s, at_least(1, v)),
        show: |s| s.node.load_timeout_s.to_string(),
    },
    Key {
        name: "runs_max",
        value: "N",
        help: "Runs that may be under way at one time; a submission beyond them is told to come back",
        set: |s, v| put(&mut s.runs_max, at_least(1, v)),
        show: |s| s.runs_max.to_string(),
    },
    Key {
        name: "keep_s",
        value: "SECONDS",
        help: "How long the outputs of a run can be fetched after its end",
        set: |s, v| put(&mut s.keep, number(v).map(Duration::from_secs)),
        show: |s| s.keep.as_secs().to_string(),
    },
    Key {
        name: "keep_max",
        value: "SIZE",
        help: "Most bytes of outputs that are kept; those of the oldest runs go first",
        set: |s, v| put(&mut s.keep_bytes, parse_size(v)),
        show: |s| size(s.keep_bytes),
    },
    Key {
        name: "bundle_max",
        value: "SIZE",
        help: "Largest workflow that can be deployed, with all its files",
        set: |s, v| put(&mut s.bundle_bytes_max, parse_size(v)),
        show: |s| size(s.bundle_bytes_max),
    },
    Key {
        name: "input_max",
        value: "SIZE",
        help: "Largest input that is taken",
        set: |s, v| put(&mut s.input_bytes_max, parse_size(v)),
        show: |s| size(s.input_bytes_max),
    },
    Key {
        name: "connections_max",
        value: "N",
        help: "HTTP connections at one time; further ones wait",
        set: |s, v| put(&mut s.connections_max, at_least(1, v)),
        show: |s| s.connections_max.to_string(),
    },
    Key {
        name: "history_runs",
        value: "N",
        help: "Past runs that are kept; 0 keeps no journals and no records",
        set: |s, v| put(&mut s.history_runs, number(v)),
        show: |s| s.history_runs.to_string(),
    },
    Key {
        name: "drain_s",
        value: "SECONDS",
        help: "How long runs may go on after SIGTERM before they are cancelled",
        set: |s, v| put(&mut s.drain, number(v).map(Duration::from_secs)),
        show: |s| s.drain.as_secs().to_string(),
    },
    Key {
        name: "log",
        value: "FILTER",
        help: "What is logged to stderr: error, warn, info, debug, trace, or a filter",
        set: |s, v| put(&mut s.log, filter(v)),
        show: |s| s.log.clone(),
    },
    Key {
        name: "log_format",
        value: "text|json",
        help: "How it is logged",
        set: |s, v| {
            s.log_format = match v {
                "text" => LogFormat::Text,
                "json" => LogFormat::Json,
                _ => return Err("it is `text` or `json`".into()),
            };
            Ok(())
        },
        show: |s| s.log_format.word().to_owned(),
    },
];

/// Words for what carries data.
const TRANSPORTS: [(&str, Backend); 4] =
    [("auto", Backend::Auto), ("rdma", Backend::Rdma), ("uring", Backend::Uring), ("tcp", Backend::Tcp)];

const NET_THREADS: [(&str, NetThread); 3] =
    [("auto", NetThread::Auto), ("engine", NetThread::Engine), ("own", NetThread::Own)];

/// What a word stands for, or which words there are.
fn choose<T: Copy>(words: &[(&str, T)], word: &str, which: &str) -> Result<T, String> {
    words.iter().find(|(name, _)| *name == word).map(|(_, value)| *value).ok_or_else(|| which.to_owned())
}

/// The word for a value.
fn chosen<T: PartialEq>(words: &[(&str, T)], value: T) -> String {
    words.iter().find(|(_, other)| *other == value).map_or_else(String::new, |(name, _)| (*name).to_owned())
}

fn put<T>(place: &mut T, value: Result<T, String>) -> Result<(), String> {
    *place = value?;
    Ok(())
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.trim().parse().map_err(|_| "it is a number".to_owned())
}

fn at_least<T: std::str::FromStr + PartialOrd + std::fmt::Display>(min: T, text: &str) -> Result<T, String> {
    let value = number(text)?;
    if value < min { Err(format!("it is at least {min}")) } else { Ok(value) }
}

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "true" | "yes" | "on" | "1" => Ok(true),
        "false" | "no" | "off" | "0" => Ok(false),
        _ => Err("it is `true` or `false`".to_owned()),
    }
}

fn filter(text: &str) -> Result<String, String> {
    tracing_subscriber::EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|e| e.to_string())
}

/// A name of a node: part of run names and of URLs, so that few characters are good.
pub(super) fn name(text: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if text.is_empty() || text.len() > 63 || !text.chars().all(good) {
        return Err("it is 1 to 63 of the letters a-z, digits and `-`".to_owned());
    }
    Ok(text.to_owned())
}

fn address(text: &str) -> Result<String, String> {
    let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
    match port.map(str::parse::<u16>) {
        Some(Ok(_)) => Ok(text.to_owned()),
        _ => Err("it is HOST:PORT, such as 127.0.0.1:7400 or [::1]:7400".to_owned()),
    }
}

fn peers(text: &str) -> Result<Vec<Peer>, String> {
    let one = |word: &str| {
        let (own_name, addresses) =
            word.split_once('=').ok_or_else(|| format!("`{word}`: a peer is NAME=DATA or NAME=DATA,API"))?;
        let (data, api) = match addresses.split_once(',') {
            Some((data, api)) => (data, Some(api)),
            None => (addresses, None),
        };
        let told = |why: String| format!("peer `{word}`: {why}");
        Ok(Peer {
            name: name(own_name).map_err(told)?,
            data: address(data).map_err(told)?,
            api: api.map(address).transpose().map_err(told)?.unwrap_or_default(),
        })
    };
    text.split_whitespace().map(one).collect()
}

fn path_or_none(text: &str) -> Option<PathBuf> {
    (!text.is_empty() && text != "none").then(|| PathBuf::from(text))
}

fn text_or_none(path: Option<&Path>) -> String {
    path.map_or_else(|| "none".to_owned(), |p| p.display().to_string())
}

/// A size as it would be written: exact.
fn size(bytes: u64) -> String {
    let units = [(1u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit)) {
        Some((unit, word)) => format!("{}{word}", bytes / unit),
        None => bytes.to_string(),
    }
}
