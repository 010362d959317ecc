//! The configuration of a node: defaults, then a file, then the environment, then flags. Every key can
//! be given in each of them, and `dflow config show` says where each value came from.

mod file;
mod keys;
mod layer;
#[cfg(test)]
mod tests;

pub use keys::{KEYS, Key};
pub use layer::{ConfigError, Origin};

use crate::history;
use crate::node::{LINK_BYTES_PER_S, NetThread, NodeConfig};
use dflow_dataplane::transport::Backend;
use std::fmt;
use std::net::{IpAddr, ToSocketAddrs};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Read when no file is named, if it is there.
pub const DEFAULT_FILE: &str = "/etc/dflow/node.toml";
/// Port of the API unless told.
pub const API_PORT: u16 = 7400;
/// Port for peers unless told.
pub const DATA_PORT: u16 = 7401;
/// A secret that is shorter can be guessed. Bytes.
const SECRET_BYTES_MIN: usize = 16;
/// A secret that is longer is some other file. Bytes.
const SECRET_BYTES_MAX: u64 = 4096;

/// What a node is told when it starts.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What it is called.
    pub name: String,
    /// Where deployed workflows and past runs are kept.
    pub state_dir: PathBuf,
    /// Where the API listens.
    pub api: String,
    /// Where it listens for its peers.
    pub data: String,
    /// The file of the shared secret.
    pub secret_file: Option<PathBuf>,
    /// The other nodes.
    pub peers: Vec<Peer>,
    /// What steps may ask for when they are placed.
    pub labels: Vec<String>,
    /// What carries data between nodes.
    pub backend: Backend,
    /// Which thread moves data between nodes.
    pub net_thread: NetThread,
    /// RDMA devices to use; `None`: those that suit.
    pub rdma_device: Option<String>,
    /// What the link to each peer carries, in bytes a second.
    pub link_bytes_per_s: u64,
    /// Runs that may be under way at one time.
    pub runs_max: usize,
    /// How long outputs are kept after a run's end.
    pub keep: Duration,
    /// Most bytes of outputs that are kept.
    pub keep_bytes: u64,
    /// Largest workflow with its files, in bytes.
    pub bundle_bytes_max: u64,
    /// Largest input, in bytes.
    pub input_bytes_max: u64,
    /// HTTP connections at one time.
    pub connections_max: usize,
    /// Past runs that are kept; 0 for none.
    pub history_runs: u64,
    /// How long runs may go on after SIGTERM.
    pub drain: Duration,
    /// What is logged.
    pub log: String,
    /// How it is logged.
    pub log_format: LogFormat,
    /// The engine's part.
    pub node: NodeConfig,
}

/// Another node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// What it calls itself.
    pub name: String,
    /// Where it listens for its peers, as HOST:PORT.
    pub data: String,
    /// Where its API listens, as HOST:PORT.
    pub api: String,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON document a line.
    Json,
}

/// The secret that peers share. It is not shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// Settings, and where each key's value came from, in the order of [`KEYS`].
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The values.
    pub settings: Settings,
    /// Their origins.
    pub origins: Vec<Origin>,
    /// The secret, if there is one.
    pub secret: Option<Secret>,
}

impl Default for Settings {
    fn default() -> Self {
        let node = NodeConfig { spill_dir: Some("/var/tmp".into()), ..NodeConfig::default() };
        Settings {
            name: own_name(),
            state_dir: history::default_dir().unwrap_or_else(|| "/var/lib/dflow".into()),
            api: format!("127.0.0.1:{API_PORT}"),
            data: format!("127.0.0.1:{DATA_PORT}"),
            secret_file: None,
            peers: Vec::new(),
            labels: Vec::new(),
            backend: Backend::Auto,
            net_thread: NetThread::Auto,
            rdma_device: None,
            link_bytes_per_s: LINK_BYTES_PER_S,
            runs_max: 10_000,
            keep: Duration::from_secs(600),
            keep_bytes: node.store_bytes / 4,
            bundle_bytes_max: 256 << 20,
            input_bytes_max: 64 << 30,
            connections_max: 4096,
            history_runs: history::RUNS_DEFAULT_MAX,
            drain: Duration::from_secs(30),
            log: "info".into(),
            log_format: LogFormat::Text,
            node,
        }
    }
}

/// The machine's name as far as it can be a node's.
fn own_name() -> String {
    let uname = rustix::system::uname();
    let host = uname.nodename().to_string_lossy().to_ascii_lowercase();
    let host = host.split('.').next().unwrap_or_default();
    let name: String = host.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    if keys::name(&name).is_ok() { name } else { "node".to_owned() }
}

impl Loaded {
    /// Reads `file` (or [`DEFAULT_FILE`] if there is one) and lays over it what `given` knows: for a key
    /// its value from a flag or a variable.
    ///
    /// # Errors
    /// The first value that is wrong, or values that do not go together; the error says where it is from.
    pub fn load(
        file: Option<&Path>,
        given: impl Fn(&Key) -> Option<(String, Origin)>,
    ) -> Result<Loaded, ConfigError> {
        let mut settings = Settings::default();
        let mut origins = vec![Origin::Default; KEYS.len()];
        let default = Path::new(DEFAULT_FILE);
        let file = file.or_else(|| default.exists().then_some(default));
        let lines = file.map(file::read).transpose()?.unwrap_or_default();
        let from_file = |key: &Key| {
            let line = lines.iter().find(|line| line.key == key.name)?;
            let path = file.unwrap_or(default).to_owned();
            Some((line.value.clone(), Origin::File { path, line: line.line }))
        };
        for (key, origin) in KEYS.iter().zip(&mut origins) {
            for (value, from) in [from_file(key), given(key)].into_iter().flatten() {
                (key.set)(&mut settings, &value).map_err(|what| ConfigError::Value {
                    key: key.name,
                    value,
                    origin: from.clone(),
                    what,
                })?;
                *origin = from;
            }
        }
        let set = |name: &str| {
            KEYS.iter().zip(&origins).any(|(key, origin)| key.name == name && *origin != Origin::Default)
        };
        if !set("keep_max") {
            settings.keep_bytes = settings.node.store_bytes / 4;
        }
        settings.node.journal = settings.history_runs > 0;
        settings.name_peers()?;
        let secret = settings.secret_file.as_deref().map(Secret::read).transpose()?;
        settings.guard(secret.is_some())?;
        Ok(Loaded { settings, origins, secret })
    }
}

impl Settings {
    /// Completes peers by the address of their API, and refuses names that are not unique.
    fn name_peers(&mut self) -> Result<(), ConfigError> {
        let port = self.api.rsplit_once(':').map_or("", |(_, port)| port).to_owned();
        for peer in &mut self.peers {
            if peer.api.is_empty() {
                let host = peer.data.rsplit_once(':').map_or("", |(host, _)| host);
                peer.api = format!("{host}:{port}");
            }
        }
        for (index, peer) in self.peers.iter().enumerate() {
            if peer.name == self.name {
                return Err(ConfigError::Together(format!(
                    "two nodes of one name: this node and the peer at {} are both called `{}`; give this one another \
                     with `name`",
                    peer.data, peer.name
                )));
            }
            if let Some(twin) = self.peers[..index].iter().find(|p| p.name == peer.name) {
                return Err(ConfigError::Together(format!(
                    "two nodes of one name: the peers at {} and {} are both called `{}`",
                    twin.data, peer.data, peer.name
                )));
            }
        }
        Ok(())
    }

    /// Off loopback, everybody who can reach the port could run programs here.
    fn guard(&self, has_secret: bool) -> Result<(), ConfigError> {
        for (key, address) in [("api", &self.api), ("data", &self.data)] {
            if !has_secret && !is_loopback(address) {
                return Err(ConfigError::Together(format!(
                    "`{key}` = `{address}` is not loopback, and whoever reaches it could run programs as this user: \
                     set `secret_file` (make one with `head -c 32 /dev/urandom | base64 > FILE; chmod 600 FILE`)"
                )));
            }
        }
        Ok(())
    }
}

/// Whether only this machine can reach an address. A name that does not resolve is not known to be so.
pub(crate) fn is_loopback(address: &str) -> bool {
    if let Some(ip) = address.rsplit_once(':').and_then(|(host, _)| host.parse::<IpAddr>().ok()) {
        return ip.is_loopback();
    }
    address.to_socket_addrs().is_ok_and(|mut all| all.len() > 0 && all.all(|a| a.ip().is_loopback()))
}

impl Secret {
    /// A secret that is at hand.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// Reads a file that holds nothing else.
    ///
    /// # Errors
    /// When it cannot be read, is too short or too long, or others can read it too.
    pub fn read(path: &Path) -> Result<Secret, ConfigError> {
        let wrong = |what: String| ConfigError::Secret { path: path.to_owned(), what };
        let metadata = std::fs::metadata(path).map_err(|e| wrong(e.to_string()))?;
        if metadata.len() > SECRET_BYTES_MAX {
            return Err(wrong(format!("{} bytes; at most {SECRET_BYTES_MAX} are read", metadata.len())));
        }
        if metadata.mode() & 0o077 != 0 {
            return Err(wrong(format!(
                "others can read it (mode {:o}): chmod 600 {}",
                metadata.mode() & 0o777,
                path.display()
            )));
        }
        let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
        let text = text.trim();
        if text.len() < SECRET_BYTES_MIN {
            return Err(wrong(format!("{} bytes; at least {SECRET_BYTES_MIN} are needed", text.len())));
        }
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(wrong("it has characters that are not printable ASCII; base64 is good".to_owned()));
        }
        Ok(Secret(text.to_owned()))
    }

    /// The secret itself.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether `other` is the secret, in a time that does not tell how much of it is right.
    pub fn is(&self, other: &str) -> bool {
        let (own, other) = (self.0.as_bytes(), other.as_bytes());
        let differ = own.iter().zip(other).fold(0, |differ, (a, b)| differ | (a ^ b));
        own.len() == other.len() && std::hint::black_box(differ) == 0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={},{}", self.name, self.data, self.api)
    }
}

impl LogFormat {
    /// Its name.
    pub const fn word(self) -> &'static str {
        match self {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        }
    }
}
